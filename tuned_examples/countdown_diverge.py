"""Countdown, the paper's Table 1 row ``diverge``: ``rllib train file tuned_examples/countdown_diverge.py``."""

from countdown_common import make_config

config, stop = make_config("diverge")
