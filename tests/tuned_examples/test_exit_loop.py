"""The example that trains a Hugging Face model on one machine, here a tiny one."""

from __future__ import annotations

import asyncio
import runpy
from typing import Any

import numpy as np
import pytest
import torch

from envs.base import Message, Outcome, SelfImprovementEnv, Task, TaskInstance
from rllib_exit.curriculum.exit import CurriculumConfig
from rllib_exit.env_runners.generator import SamplingParams
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup, Segment
from tests.tuned_examples.examples import EXAMPLES


class VowelEnv(SelfImprovementEnv):
    """The quality is the share of vowels: something that a model without sense can learn."""

    def __init__(self) -> None:
        super().__init__([Task(f"t{i}", f"Say {i}.") for i in range(4)])

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "user", "content": task.prompt}]

    def respond(self, task: Task, response: str) -> Outcome:
        return Outcome(sum(letter in "aeiou" for letter in response) / max(1, len(response)))


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "exit_loop.py"))


def sample(policy: Any, seed: int) -> Segment:
    """A response to a chat."""
    prompt_ids = policy.chat.encode([{"role": "user", "content": "Say 1."}])
    generation = asyncio.run(policy.generate(prompt_ids, SamplingParams(max_tokens=8), seed))
    ids = np.array([*prompt_ids, *generation.token_ids], np.int32)
    logprobs = np.concatenate([np.zeros(len(prompt_ids), np.float32), generation.logprobs])
    return Segment(ids, np.arange(len(ids)) >= len(prompt_ids), logprobs)


def logprobs_N(policy: Any, segment: Segment) -> np.ndarray:
    with torch.no_grad():
        return policy.logprobs(segment).numpy()


def test_it_trains_on_the_log_probabilities_that_it_samples_with(example: dict[str, Any], tiny_model: str) -> None:
    policy = example["Policy"](tiny_model, 1e-3)
    segment = sample(policy, seed=5)
    assert sample(policy, seed=5).token_ids.tolist() == segment.token_ids.tolist() and segment.loss_mask.sum() > 1
    np.testing.assert_allclose(logprobs_N(policy, segment), segment.logprobs[segment.loss_mask], atol=1e-4)


def test_an_update_makes_good_responses_more_likely_and_bad_ones_less(example: dict[str, Any], tiny_model: str) -> None:
    policy = example["Policy"](tiny_model, 1e-4)
    segments = [sample(policy, seed) for seed in range(2)]
    rollouts = tuple(
        Rollout((segment,), (), quality, quality) for segment, quality in zip(segments, (1, 0), strict=True)
    )
    group = RolloutGroup(RolloutRequest("00000000", TaskInstance("t1")), rollouts)
    before = [logprobs_N(policy, segment).sum() for segment in segments]
    asyncio.run(policy.update([ScoredGroup(group, np.array([1.0, -1.0]))]))
    after = [logprobs_N(policy, segment).sum() for segment in segments]
    assert after[0] > before[0] and after[1] < before[1]


def test_two_iterations_with_a_tiny_model(example: dict[str, Any], tiny_model: str) -> None:
    policy = example["Policy"](tiny_model, 3e-3)
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    config = CurriculumConfig(buffer_size=8, min_buffer_size=2, diversity_bonus=True)
    returns = asyncio.run(
        example["train"](
            policy,
            VowelEnv,
            config,
            0,
            num_iterations=2,
            prompts_per_batch=2,
            rollouts_per_prompt=4,
            sampling=SamplingParams(max_tokens=8),
        )
    )
    assert len(returns) == 2 and all(0 < value < 1 for value in returns)
    changed = [name for name, weight in policy.model.state_dict().items() if not torch.equal(weight, before[name])]
    assert len(changed) == len(before)
