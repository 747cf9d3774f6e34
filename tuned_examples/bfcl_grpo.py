"""Tool use, the paper's Table 1 row ``grpo``: ``rllib train file tuned_examples/bfcl_grpo.py``."""

from bfcl_common import make_config

config, stop = make_config("grpo")
