"""Competition math, the paper's Table 1 row ``diverge``: ``rllib train file tuned_examples/math_diverge.py``."""

from math_common import make_config

config, stop = make_config("diverge")
