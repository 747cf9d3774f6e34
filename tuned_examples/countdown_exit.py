"""Countdown, the paper's Table 1 row ``exit``: ``rllib train file tuned_examples/countdown_exit.py``."""

from countdown_common import make_config

config, stop = make_config("exit")
