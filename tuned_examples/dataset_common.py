"""What the examples on data sets share: one configuration per scale, data and reward apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rllib_exit import GRPOConfig
from rllib_exit.scale import cpu_dtype, current_scale

# Rows of our own with the columns of the data sets, which a very small model can learn from.
SMALL_DATA = Path(__file__).parent / "data"


def make_config(max_response_tokens: int) -> tuple[GRPOConfig, dict[str, Any]]:
    """A config without data and reward, and the stopping condition.

    Args:
        max_response_tokens: At CPU scale.
    """
    config = GRPOConfig().debugging(seed=0).self_improvement(steps=4)
    if current_scale() == "paper":
        config = (
            config.language_model("Qwen/Qwen2.5-1.5B-Instruct", gradient_checkpointing=True)
            .generation(max_response_tokens=1024)
            .training(lr=1e-6, prompts_per_batch=128, kl_coeff=0.001, max_tokens_per_micro_batch=16384)
            .curriculum("exit", buffer_size=512, min_buffer_size=128, diversity_metric="edit_distance")
            .learners(num_learners=1, num_gpus_per_learner=1)
            .env_runners(num_gpus_per_env_runner=1)
        )
        return config.evaluation(evaluation_interval=10), {"training_iteration": 200}
    config = (
        config.language_model("bundled:smollm2-135m-instruct", dtype=cpu_dtype(), max_model_len=1024)
        .generation(max_response_tokens=max_response_tokens)
        .training(lr=3e-5, prompts_per_batch=8, kl_coeff=0.0, max_tokens_per_micro_batch=1024)
        .curriculum("exit", buffer_size=32, min_buffer_size=8, diversity_metric="edit_distance")
    )
    return config.evaluation(evaluation_interval=10), {"training_iteration": 20}
