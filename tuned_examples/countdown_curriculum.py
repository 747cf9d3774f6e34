"""Countdown, the paper's Table 1 row ``curriculum``: ``rllib train file tuned_examples/countdown_curriculum.py``."""

from countdown_common import make_config

config, stop = make_config("curriculum")
