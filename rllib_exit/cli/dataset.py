"""The config of ``rllib train --dataset``. Imports Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rllib_exit.grpo import GRPOConfig
from rllib_exit.scale import cpu_dtype, current_scale


def dataset_config(
    data: str, prompt: str, answer: str, rewards: Sequence[str], model: str, strategy: str
) -> tuple[GRPOConfig, dict[str, Any], None]:
    """The config, when to stop, and no settings of a sweep.

    Args:
        data: See :meth:`GRPOConfig.dataset`.
        prompt: The column of prompts.
        answer: The column of answers.
        rewards: See :meth:`GRPOConfig.reward`.
        model: See :meth:`GRPOConfig.language_model`.
        strategy: See :meth:`GRPOConfig.curriculum`.
    """
    data = str(Path(data).absolute()) if Path(data).exists() else data  # found again from another directory
    config = GRPOConfig().dataset(data, prompt=prompt, answer=answer).reward(*rewards).debugging(seed=0)
    if current_scale() == "paper":
        config.language_model(model, gradient_checkpointing=True)
        config.learners(num_learners=1, num_gpus_per_learner=1).env_runners(num_gpus_per_env_runner=1)
        config.curriculum(strategy, buffer_size=512, min_buffer_size=128, diversity_metric="edit_distance")
    else:
        config.language_model(model, dtype=cpu_dtype(), max_model_len=1024).generation(max_response_tokens=64)
        config.training(lr=3e-5, prompts_per_batch=8, kl_coeff=0.0, max_tokens_per_micro_batch=1024)
        config.curriculum(strategy, buffer_size=32, min_buffer_size=8, diversity_metric="edit_distance")
    return config.evaluation(evaluation_interval=10), {"training_iteration": 100}, None
