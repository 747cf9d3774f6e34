"""ML engineering, the paper's Table 1 row ``grpo``: ``rllib train file tuned_examples/mle_grpo.py``."""

from mle_common import make_config

config, stop = make_config("grpo")
