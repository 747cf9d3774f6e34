"""What the five countdown examples share: one configuration per scale, the strategy apart."""

from __future__ import annotations

from typing import Any

from envs.countdown.env import CountdownEnv
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.scale import current_scale

HELD_OUT = {"split": "test", "limit": 400}


def make_config(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """The config and the stopping condition of a row of the paper's Table 1."""
    return cpu(strategy) if current_scale() == "cpu" else paper(strategy)


def paper(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """Qwen2.5-1.5B-Instruct on four numbers; the paper has no such domain: the settings are those of its Table 4."""
    tasks = {"numbers": 4, "number_range": [1, 25], "limit": 4096, "prompt": "prose"}
    config = (
        GRPOConfig()
        .environment(CountdownEnv, env_config=tasks)
        .language_model("Qwen/Qwen2.5-1.5B-Instruct", max_model_len=4096, gradient_checkpointing=True)
        .generation(max_response_tokens=1024)
        .training(
            lr=1e-6,
            prompts_per_batch=128,
            rollouts_per_prompt=8,
            kl_coeff=0.001,
            max_tokens_per_micro_batch=16384,
        )
        .curriculum(strategy, buffer_size=512, min_buffer_size=128, diversity_metric="edit_distance")
        .learners(num_learners=1, num_gpus_per_learner=1)
        .env_runners(num_env_runners=1, num_gpus_per_env_runner=1)
        .self_improvement(steps=16, splits={"test": tasks | HELD_OUT, "five": tasks | HELD_OUT | {"numbers": 5}})
        .evaluation(
            evaluation_interval=10,
            evaluation_config=GRPOConfig.overrides(env_config=tasks | {"split": "validation", "limit": 200}),
        )
        .debugging(seed=0)
    )
    return config, {"training_iteration": 500}


def cpu(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """A model of one million parameters, which iterates in a second or two on a core.

    Many prompts an iteration and a low learning rate keep the policy's entropy: a policy that gives every task the
    same few answers has nothing to improve on.
    """
    config = (
        GRPOConfig()
        .environment(CountdownEnv)
        .language_model("bundled:countdown-1m", dtype="float32", max_model_len=128)
        .generation(max_response_tokens=12, engine_args={"max_num_seqs": 512})
        .training(
            lr=2e-4,
            prompts_per_batch=64,
            rollouts_per_prompt=8,
            kl_coeff=0.0,
            max_tokens_per_micro_batch=8192,
        )
        .env_runners(num_envs_per_env_runner=512)
        .curriculum(strategy, buffer_size=1024, min_buffer_size=64, diversity_metric="edit_distance")
        .self_improvement(steps=16, splits={"test": HELD_OUT})
        .evaluation(
            evaluation_interval=40,
            evaluation_config=GRPOConfig.overrides(env_config={"split": "validation", "limit": 200}),
        )
        .debugging(seed=0)
    )
    return config, {"training_iteration": 400}
