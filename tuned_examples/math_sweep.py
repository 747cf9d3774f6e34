"""Competition math, appendix A.5's sweep of GRPO: ``rllib train file tuned_examples/math_sweep.py``."""

from __future__ import annotations

from typing import Any

from math_common import make_config
from ray import tune

from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.scale import current_scale

# Learning rates, KL coefficients, buffer sizes.
SPACES: dict[str, tuple[list[float], list[float], list[int]]] = {
    "paper": ([5e-7, 1e-6, 5e-6], [0.0, 0.001, 0.01], [100, 256, 512, 1024]),
    "cpu": ([2e-5, 5e-5, 2e-4], [0.0, 0.01], [32, 64]),
}
PROBS: Any = tune.grid_search([0.2, 0.5, 0.8])


def make_sweep(strategy: str) -> tuple[GRPOConfig, dict[str, Any], tune.TuneConfig]:
    """The config with its search spaces, the stopping condition and what trials are ranked by.

    They are ranked by the accuracy of first responses on the 100 validation problems (at CPU scale, on the
    arithmetic that the other examples evaluate on).
    """
    config, stop = make_config(strategy)
    grids: list[Any] = [tune.grid_search(values) for values in SPACES[current_scale()]]
    lr, kl_coeff, buffer_size = grids
    most = config.min_buffer_size
    # The smallest buffers are smaller than the others' minimum.
    min_buffer_size: Any = tune.sample_from(lambda spec: min(most, spec["config"]["buffer_size"]))
    config.training(lr=lr).self_improvement(steps=0)
    if strategy == "grpo":
        config.training(kl_coeff=kl_coeff)
    else:
        config.curriculum(
            self_iteration_prob=PROBS,
            buffer_size=buffer_size,
            min_buffer_size=min_buffer_size,
        )
    if config.divergence_prob:
        config.curriculum(divergence_prob=PROBS)
    return config, stop, tune.TuneConfig(metric="evaluation/accuracy/step_0", mode="max")


config, stop, tune_config = make_sweep("grpo")
