"""ML engineering, the paper's Table 1 row ``diverge``: ``rllib train file tuned_examples/mle_diverge.py``."""

from mle_common import make_config

config, stop = make_config("diverge")
