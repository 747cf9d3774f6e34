"""Competition math, the paper's Table 1 row ``curriculum``: ``rllib train file tuned_examples/math_curriculum.py``."""

from math_common import make_config

config, stop = make_config("curriculum")
