"""ML engineering, the paper's Table 1 row ``curriculum``: ``rllib train file tuned_examples/mle_curriculum.py``."""

from mle_common import make_config

config, stop = make_config("curriculum")
