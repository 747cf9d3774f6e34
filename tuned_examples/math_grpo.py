"""Competition math, the paper's Table 1 row ``grpo``: ``rllib train file tuned_examples/math_grpo.py``."""

from math_common import make_config

config, stop = make_config("grpo")
