"""Competition math, the paper's Table 1 row ``exit``: ``rllib train file tuned_examples/math_exit.py``."""

from math_common import make_config

config, stop = make_config("exit")
