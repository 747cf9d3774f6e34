"""Tool use, appendix A.5's sweep of GRPO: ``rllib train file tuned_examples/bfcl_sweep.py``."""

from __future__ import annotations

from typing import Any

from bfcl_common import make_config
from ray import tune

from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.scale import current_scale

# Learning rates, KL coefficients, buffer sizes.
SPACES: dict[str, tuple[list[float], list[float], list[int]]] = {
    "paper": ([1e-7, 5e-7, 1e-6, 5e-6], [0.0, 0.001, 0.01], [100, 320, 640]),
    "cpu": ([5e-6, 2e-5, 5e-5], [0.0, 0.01], [32, 64]),
}
PROBS: Any = tune.grid_search([0.2, 0.5, 0.8])


def make_sweep(strategy: str) -> tuple[GRPOConfig, dict[str, Any], tune.TuneConfig]:
    """The config with its search spaces, the stopping condition and what trials are ranked by.

    GRPO trains without the 25 validation tasks and is ranked by the accuracy on them. The other strategies train on
    all 100 tasks and are ranked by the starting turn at which the curriculum plateaus.
    """
    config, stop = make_config(strategy)
    grids: list[Any] = [tune.grid_search(values) for values in SPACES[current_scale()]]
    lr, kl_coeff, buffer_size = grids
    most = config.min_buffer_size
    # The smallest buffers are smaller than the others' minimum.
    min_buffer_size: Any = tune.sample_from(lambda spec: min(most, spec["config"]["buffer_size"]))
    config.training(lr=lr)
    if strategy == "grpo":
        validation: Any = config.evaluation_config
        validation["env_config"] = {**validation["env_config"], "split": "val"}
        config.environment(env_config={**config.env_config, "split": "train75"})
        config.evaluation(evaluation_interval=10).self_improvement(steps=0)
        config.training(kl_coeff=kl_coeff)
        return config, stop, tune.TuneConfig(metric="evaluation/accuracy/step_0", mode="max")
    config.evaluation(evaluation_interval=None)
    config.curriculum(
        self_iteration_prob=PROBS,
        buffer_size=buffer_size,
        min_buffer_size=min_buffer_size,
    )
    if config.divergence_prob:
        config.curriculum(divergence_prob=PROBS)
    return config, stop, tune.TuneConfig(metric="curriculum/starting_turn_plateau", mode="max")


config, stop, tune_config = make_sweep("grpo")
