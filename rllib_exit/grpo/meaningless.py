"""RLlib's settings that mean nothing for a language model, each with what to use."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_exit.settings_group import check

_BATCH = "an iteration trains on whole episodes: use prompts_per_batch and rollouts_per_prompt"
_SAMPLING = "a language model explores by sampling: use temperature"
_EVALUATION = "evaluation plays every task of its environment once: use evaluation_config, such as its env_config.limit"
_REWARD = "an episode has one return, which the environment's reward() gives: change that"
_TEXT = "observations and actions are texts: change the environment's prompt() and respond()"
_ONE_POLICY = "one language model is trained: leave it out"

INSTEAD = {
    "gamma": "an episode has one return, which is not discounted: leave it out",
    "train_batch_size": _BATCH,
    "_train_batch_size_per_learner": _BATCH,
    "rollout_fragment_length": _BATCH,
    "batch_mode": _BATCH,
    "min_time_s_per_iteration": _BATCH,
    "min_train_timesteps_per_iteration": _BATCH,
    "min_sample_timesteps_per_iteration": _BATCH,
    "explore": _SAMPLING,
    "exploration_config": _SAMPLING,
    "model": "the model's name is model_name, which .language_model(...) sets",
    "optimizer": "use lr, weight_decay and adam_betas",
    "grad_clip_by": "gradients are clipped by their global norm, grad_clip: leave it out",
    "evaluation_duration": _EVALUATION,
    "evaluation_duration_unit": _EVALUATION,
    "evaluation_parallel_to_training": "with .asynchronous() rollouts go on during the update: use that",
    "custom_evaluation_function": _EVALUATION,
    "clip_rewards": _REWARD,
    "clip_actions": _TEXT,
    "observation_filter": _TEXT,
    "num_gpus": "use num_gpus_per_learner and num_gpus_per_env_runner",
    "framework_str": "the learner is torch's: leave it out",
    "policies_to_train": _ONE_POLICY,
    "count_steps_by": _ONE_POLICY,
    "input_": "there is no offline training: use warm_start() or `rllib sft`",
    "output": "use log_rollouts",
}


def check_meaningless(config: AlgorithmConfig) -> None:
    """Refuses what is set, but would change nothing. RLlib itself sets some of it in an evaluation's config.

    Raises:
        ValueError: Names the setting, its value and what to use.
    """
    defaults: Any = AlgorithmConfig()
    for name, mend in () if config.in_evaluation else INSTEAD.items():
        check(config, name, getattr(config, name) == getattr(defaults, name), mend)
