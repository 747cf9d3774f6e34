"""ExIt on a mixture of reasoning-gym's tasks: ``rllib train file tuned_examples/reasoning_gym_exit.py``.

It needs the package: ``pip install 'rllib-exit[reasoning-gym]'``. Any of its 105 data sets can be named, each with its
own parameters.
"""

from __future__ import annotations

from envs.reasoning_gym.env import ReasoningGymEnv
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.scale import cpu_dtype, current_scale

CPU = current_scale() == "cpu"
# Sums of two numbers are what the small model can begin with.
ENV_CONFIG = {
    "datasets": {"chain_sum": 2, "countdown": 1},
    "params": {
        "chain_sum": {"min_terms": 2, "max_terms": 3 - CPU, "min_digits": 1, "max_digits": 3 - 2 * CPU},
        "countdown": {"min_numbers": 3, "max_numbers": 4 - CPU, "max_value": 20},
    },
    "size": 512 if CPU else 8192,
    "seed": 0,
}
TEST = {"seed": 1, "size": 96}

config = (
    GRPOConfig()
    .environment(ReasoningGymEnv, env_config=ENV_CONFIG)
    .language_model(
        "bundled:smollm2-135m-instruct" if CPU else "Qwen/Qwen2.5-3B-Instruct",
        dtype=cpu_dtype() if CPU else "bfloat16",
        max_model_len=1024 if CPU else 4096,
    )
    .generation(max_response_tokens=64 if CPU else 1024)
    .training(lr=4e-5 if CPU else 1e-6, prompts_per_batch=16 if CPU else 128, rollouts_per_prompt=8, kl_coeff=0.0)
    .curriculum(
        "exit",
        buffer_size=64 if CPU else 512,
        min_buffer_size=16 if CPU else 128,
        diversity_metric="edit_distance",  # answers are short, and mostly no text
    )
    .self_improvement(steps=4, splits={"test": {**ENV_CONFIG, **TEST}})
    .evaluation(evaluation_interval=10, evaluation_config=GRPOConfig.overrides(env_config={**ENV_CONFIG, **TEST}))
    .debugging(seed=0)
)
stop = {"training_iteration": 40 if CPU else 500}
