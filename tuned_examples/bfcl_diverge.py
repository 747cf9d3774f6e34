"""Tool use, the paper's Table 1 row ``diverge``: ``rllib train file tuned_examples/bfcl_diverge.py``."""

from bfcl_common import make_config

config, stop = make_config("diverge")
