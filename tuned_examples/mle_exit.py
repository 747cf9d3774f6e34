"""ML engineering, the paper's Table 1 row ``exit``: ``rllib train file tuned_examples/mle_exit.py``."""

from mle_common import make_config

config, stop = make_config("exit")
