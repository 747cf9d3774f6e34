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
    """A model of one million parameters, which iterates in a second, and a target that the prompt does not show.

    The feedback says how far off an answer is. So one answer is right about as often as any other, however well the
    policy is trained, and what can be learned is to use the feedback: to keep an answer that is right, and to give
    another one where it is wrong. The KL term keeps the policy's entropy: a policy that gives every task the same few
    answers has nothing to improve on, and nothing to learn from.

    With ``--set env_config.numbers=3 --set env_config.hidden_target=False`` it is the usual countdown. There, take
    ``lr=2e-4`` and ``prompts_per_batch=64``.
    """
    config = (
        GRPOConfig()
        .environment(CountdownEnv, env_config={"numbers": 2, "hidden_target": True})
        .language_model("bundled:countdown-1m", dtype="float32", max_model_len=128)
        .generation(max_response_tokens=12)
        .training(
            lr=3e-4,
            prompts_per_batch=32,
            rollouts_per_prompt=8,
            kl_coeff=0.02,
            ref_update_rate=0.0,
            max_tokens_per_micro_batch=8192,
        )
        .env_runners(num_envs_per_env_runner=512)
        .curriculum(strategy, buffer_size=512, min_buffer_size=32, diversity_metric="edit_distance")
        .self_improvement(steps=16, splits={"test": HELD_OUT})
        .evaluation(
            evaluation_interval=20,
            evaluation_config=GRPOConfig.overrides(env_config={"split": "validation", "limit": 200}),
        )
        .debugging(seed=0)
    )
    return config, {"training_iteration": 120}
