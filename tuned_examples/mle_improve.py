"""ML engineering, the paper's Table 1 row ``improve``: ``rllib train file tuned_examples/mle_improve.py``."""

from mle_common import make_config

config, stop = make_config("improve")
