"""The bundled countdown model knows the format and some arithmetic, and nothing of self-improvement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.base import Kind
from envs.countdown.env import CountdownEnv
from envs.countdown.grading import grade
from rllib_exit.curriculum.exit import STRATEGIES
from rllib_exit.models import COUNTDOWN, resolve_model
from tests.countdown_model import Policy, qualities
from tests.scripts import load_benchmark

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pretraining() -> Any:
    return load_benchmark("pretrain_countdown")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(resolve_model(COUNTDOWN), CountdownEnv({"split": "test"}))


def test_it_is_small_and_comes_with_the_package(policy: Policy):
    directory = Path(resolve_model(COUNTDOWN))
    assert directory.is_relative_to(ROOT / "rllib_exit")
    assert sum(file.stat().st_size for file in directory.iterdir()) < 3e6
    assert 0.9e6 < policy.model.num_parameters() < 3e6
    assert policy.model.config.head_dim == 32  # vLLM's CPU attention has no smaller ones


def test_it_is_trained_on_the_ids_that_it_is_asked_with(pretraining: Any, policy: Policy):
    backend = pretraining.make_tokenizer().backend_tokenizer
    episodes = pretraining.Player(seed=1)
    for _ in range(200):
        chat = episodes.episode()
        ids = backend.encode(pretraining.render(chat), add_special_tokens=False).ids
        for turn in (1, 3):
            asked, answer = policy.chat.encode(chat[:turn]), chat[turn]["content"]
            assert ids[: len(asked)] == asked
            end = ids.index(policy.eos, len(asked))
            assert policy.chat.decode(ids[len(asked) : end]) == answer
        assert policy.chat.tokenizer.unk_token_id not in ids


def test_it_is_not_trained_on_self_improvement(pretraining: Any):
    """The answer after a step is as often right whether the old one was right or wrong, but for repetitions."""
    episodes = pretraining.Player(seed=2)
    right: dict[tuple[str, bool], list[bool]] = {}
    repeated: dict[tuple[str, bool], list[bool]] = {}
    for _ in range(6000):
        task, first, request, second, _ = (message["content"] for message in episodes.episode())
        *numbers, _, target = task.split()
        if target == "?" or len(numbers) == 2:  # two numbers have so few answers that most are repeated by chance
            continue
        key = request.split()[-1], "right" in request
        repeated.setdefault(key, []).append(first == second)
        if first != second:
            verdict = grade(second, list(map(int, numbers)), int(target), "+-*")
            right.setdefault(key, []).append(verdict.distance == 0)
    for kind, share in (("improve", 0.5), ("diverge", 0.1)):
        # A new answer may be the old one by chance; most often where the task has one solution, which was found.
        was_right, was_wrong = np.mean(repeated[kind, True]), np.mean(repeated[kind, False])
        assert share - 0.05 < was_wrong < share + 0.1 and was_right < share + (1 - share) * 0.65
        assert np.mean(right[kind, True]) < np.mean(right[kind, False])


@pytest.mark.slow
def test_it_does_not_improve_by_steps(policy: Policy):
    """Accuracy by self-improvement step is flat or falls before training, on all held-out tasks.

    A sample's standard error is 1.5 points.
    """
    accuracy = qualities(policy.chains(list(policy.env.tasks), steps=4)).mean(axis=1)
    assert 0.2 < accuracy[0] < 0.7, accuracy
    assert accuracy[1:].mean() < accuracy[0] + 0.04, accuracy


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("kind", ["improve", "diverge"])
def test_nearly_all_its_answers_are_well_formed(hidden: bool, kind: Kind):
    env = CountdownEnv({"split": "test", "limit": 200, "hidden_target": hidden})
    chains = Policy(resolve_model(COUNTDOWN), env).chains(list(env.tasks), steps=1, kind=kind)
    for rollouts in chains:
        formed = [(rollout.turns[-1].feedback or "").startswith(("value", "guess")) for rollout in rollouts]
        assert np.mean(formed) > 0.9


def learn_a_hidden_target(seed: int, most_iterations: int = 200) -> tuple[float, np.ndarray, int]:
    """Trains by ExIt where the target is hidden, until self-improvement beats what a first answer can be.

    Returns:
        What part of the tasks a first answer can be right on at most, the accuracy by step, and the iterations.
    """
    env = CountdownEnv({"numbers": 2, "hidden_target": True})
    # Tasks with the same numbers look the same, so that one first answer is right on one of them.
    ceiling = len({task.data["numbers"] for task in env.tasks.values()}) / len(env.tasks)
    policy = Policy(resolve_model(COUNTDOWN), env, seed=seed, lr=3e-4)
    config = STRATEGIES["exit"].replace(buffer_size=512, min_buffer_size=32)
    accuracy = np.zeros(1)
    for iteration, _ in enumerate(policy.train(config, most_iterations, prompts=32, seed=seed), start=1):
        if iteration % 10 == 0:
            accuracy = qualities(policy.chains(list(env.tasks), steps=3)).mean(axis=1)
            if accuracy[-1] > ceiling + 0.1:
                return ceiling, accuracy, iteration
    return ceiling, accuracy, most_iterations


@pytest.mark.slow
def test_exit_learns_to_self_improve():
    """It gets right by steps what no first answer can get right."""
    ceiling, accuracy, iterations = learn_a_hidden_target(seed=0)
    assert accuracy[0] < ceiling + 0.05  # by luck, in one sample
    assert accuracy[-1] > ceiling + 0.1, (ceiling, accuracy, iterations)


def test_a_hidden_target_cannot_be_met_but_by_luck():
    env = CountdownEnv({"split": "test", "hidden_target": True})
    assert qualities(Policy(resolve_model(COUNTDOWN), env).chains(list(env.tasks), steps=0)).mean() < 0.1
