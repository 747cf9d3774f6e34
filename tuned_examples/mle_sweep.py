"""ML engineering, appendix A.5's sweep of GRPO: ``rllib train file tuned_examples/mle_sweep.py``."""

from __future__ import annotations

from typing import Any

from mle_common import make_config
from ray import tune

from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.scale import current_scale

# Learning rates, KL coefficients.
SPACES: dict[str, tuple[list[float], list[float]]] = {
    "paper": ([5e-7, 1e-6, 5e-6], [0.0, 0.001, 0.01]),
    "cpu": ([5e-6, 2e-5, 5e-5], [0.0, 0.01]),
}
REF_UPDATE_RATES: Any = tune.grid_search([0.0, 0.5, 1.0])
BUFFER_SIZES: Any = tune.grid_search([3, 24, 32, 64])
MIN_BUFFER_SIZES: Any = tune.grid_search([3, 8])
PROBS: Any = tune.grid_search([0.2, 0.5, 0.8])


def make_sweep(strategy: str) -> tuple[GRPOConfig, dict[str, Any], tune.TuneConfig]:
    """The config with its search spaces, the stopping condition and what trials are ranked by.

    They are ranked by what 16 steps of greedy search add to the score on the training competitions (at CPU scale,
    as many steps as the other examples take).
    """
    config, stop = make_config(strategy)
    grids: list[Any] = [tune.grid_search(values) for values in SPACES[current_scale()]]
    lr, kl_coeff = grids
    evaluation: Any = config.evaluation_config
    evaluation.pop("env_config", None)  # what it trains on
    config.evaluation(evaluation_interval=stop["training_iteration"] // 3)
    config.training(lr=lr).self_improvement(greedy_search=True)
    if strategy == "grpo":
        config.training(kl_coeff=kl_coeff, ref_update_rate=REF_UPDATE_RATES)
    else:
        config.curriculum(
            self_iteration_prob=PROBS,
            buffer_size=BUFFER_SIZES,
            min_buffer_size=MIN_BUFFER_SIZES,
        )
    if config.divergence_prob:
        config.curriculum(divergence_prob=PROBS)
    return config, stop, tune.TuneConfig(metric="evaluation/improvement", mode="max")


config, stop, tune_config = make_sweep("grpo")
