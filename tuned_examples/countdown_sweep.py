"""Countdown, a sweep of ExIt: ``rllib train file tuned_examples/countdown_sweep.py``."""

from __future__ import annotations

from typing import Any

from countdown_common import make_config
from ray import tune

from rllib_exit.scale import current_scale

LEARNING_RATES = {"paper": [5e-7, 1e-6, 5e-6], "cpu": [1e-4, 2e-4, 4e-4]}

config, stop = make_config("exit")
lr: Any = tune.grid_search(LEARNING_RATES[current_scale()])
prob: Any = tune.grid_search([0.2, 0.5, 0.8])
config.training(lr=lr).curriculum(self_iteration_prob=prob, divergence_prob=prob)
# The accuracy after 8 steps on the validation tasks, which is what self-improvement is for.
config.self_improvement(steps=8)
tune_config = tune.TuneConfig(metric="evaluation/accuracy/step_8", mode="max")
