"""Learners and batches for them, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.learner.training_data import TrainingData

from envs.base import TaskInstance
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.learner.batch import TrainBatch, make_batches
from rllib_exit.learner.torch_learner import GRPOTorchLearner
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup, Segment
from rllib_exit.settings import TrainingSettings


def make_learner(model: str, **fields: Any) -> GRPOTorchLearner:
    config = (
        GRPOConfig()
        .language_model(model, dtype="float32", max_model_len=512)
        .training(lr=1e-3, learner_threads=1)
        .curriculum("grpo")
        .debugging(seed=0)
    )
    for name, value in fields.items():
        setattr(config, name, value)
    space = gym.spaces.Text(8)
    spec = config.get_multi_rl_module_spec(spaces={"default_policy": (space, space)})
    learner = GRPOTorchLearner(config=config, module_spec=spec)
    learner.build()
    return learner


def make_groups(rng: np.random.Generator, num_groups: int = 3, group_size: int = 4) -> list[RolloutGroup]:
    groups = []
    for g in range(num_groups):
        prompt = rng.integers(5, 200, rng.integers(3, 12))
        rollouts = []
        for _ in range(group_size):
            response = rng.integers(5, 200, rng.integers(1, 9))
            ids = np.concatenate([prompt, response]).astype(np.int32)
            mask = np.arange(len(ids)) >= len(prompt)
            logprobs = np.where(mask, rng.normal(-5, 1, len(ids)), 0).astype(np.float32)
            rollouts.append(Rollout((Segment(ids, mask, logprobs),), (), float(rng.random()), 0.5))
        groups.append(RolloutGroup(RolloutRequest(str(g), TaskInstance("t")), tuple(rollouts)))
    return groups


def batch(groups: Sequence[RolloutGroup], num_learners: int = 1, part: bool = False, **kwargs: Any) -> list[TrainBatch]:
    scored = [ScoredGroup(group, group.returns_G - group.returns_G.mean()) for group in groups]
    return make_batches(scored, TrainingSettings(**kwargs), max_rollout_tokens=16, num_learners=num_learners, part=part)


def update(learner: GRPOTorchLearner, train_batch: TrainBatch) -> dict[str, float]:
    stats = learner.update(training_data=TrainingData(batch=train_batch))  # type: ignore[arg-type]
    return {name: float(value.peek()) for name, value in stats.items() if hasattr(value, "peek")}


def weights(learner: GRPOTorchLearner) -> np.ndarray:
    return torch.cat([p.detach().ravel() for p in learner.language_model.model.parameters()]).numpy()
