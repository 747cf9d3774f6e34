"""Countdown, the paper's Table 1 row ``improve``: ``rllib train file tuned_examples/countdown_improve.py``."""

from countdown_common import make_config

config, stop = make_config("improve")
