"""Competition math, the paper's Table 1 row ``improve``: ``rllib train file tuned_examples/math_improve.py``."""

from math_common import make_config

config, stop = make_config("improve")
