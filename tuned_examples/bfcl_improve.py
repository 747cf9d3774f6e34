"""Tool use, the paper's Table 1 row ``improve``: ``rllib train file tuned_examples/bfcl_improve.py``."""

from bfcl_common import make_config

config, stop = make_config("improve")
