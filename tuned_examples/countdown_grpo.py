"""Countdown, the paper's Table 1 row ``grpo``: ``rllib train file tuned_examples/countdown_grpo.py``."""

from countdown_common import make_config

config, stop = make_config("grpo")
