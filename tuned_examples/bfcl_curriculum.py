"""Tool use, the paper's Table 1 row ``curriculum``: ``rllib train file tuned_examples/bfcl_curriculum.py``."""

from bfcl_common import make_config

config, stop = make_config("curriculum")
