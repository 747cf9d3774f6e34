"""Tool use, the paper's Table 1 row ``exit``: ``rllib train file tuned_examples/bfcl_exit.py``."""

from bfcl_common import make_config

config, stop = make_config("exit")
