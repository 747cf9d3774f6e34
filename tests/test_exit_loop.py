"""ExIt in one file: against a plain reading of the paper's section 4, and against the distributed algorithm."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from envs.base import Message, Outcome, SelfImprovementEnv, Task, TaskInstance, Turn
from rllib_exit.curriculum.exit import STRATEGIES, CurriculumConfig, ExIt
from rllib_exit.env_runners.generator import SamplingParams
from rllib_exit.env_runners.player import PromptTooLongError
from rllib_exit.exit_loop import exit_loop
from rllib_exit.objective.diversity import diversity_coefficients, edit_diversity_coefficients
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup
from tests.fakes import ScriptedGenerator

NUM_TASKS = 5
STRATEGY = pytest.mark.parametrize("strategy", STRATEGIES)
Identity = tuple[str, tuple[Turn, ...], Turn | None]


class MarkEnv(SelfImprovementEnv):
    """A response begins with its mark, a digit; the last of three turns' marks is the quality. A 9 is not valid."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        long_task = [Task("long", "word " * 1000)] if (config or {}).get("long_task") else []
        super().__init__([*(Task(f"t{i}", f"Task {i}.") for i in range(NUM_TASKS)), *long_task])
        self.num_turns = (config or {}).get("num_turns", 3)
        self.num_responses = 0

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "user", "content": task.prompt}]

    def begin(self, task: Task) -> None:
        self.num_responses = 0

    def respond(self, task: Task, response: str) -> Outcome:
        self.num_responses += 1
        mark = int(response[0])
        return Outcome(mark / 9, f"A {mark}.", done=self.num_responses == self.num_turns, valid=mark < 9)

    def solution(self, response: str) -> str:
        return response[::-1]


def mark(prompt: str, seed: int) -> str:
    """Each response occurs once; how good it is depends on the prompt too."""
    return f"{(seed // 7 + len(prompt)) % 10} of {seed}"


def embed(solutions: Sequence[str]) -> np.ndarray:
    """Position and size of a solution's digits: any two features do."""
    return np.array([[sum(map(ord, text)) % 97, len(text.splitlines())] for text in solutions], float)


def small(strategy: str) -> CurriculumConfig:
    """The strategy with a buffer that is large enough to select from after a few iterations, and never full."""
    return STRATEGIES[strategy].replace(min_buffer_size=30, buffer_size=4096)


async def ignore(groups: Sequence[ScoredGroup]) -> None:
    pass


def run(
    curriculum: ExIt,
    generator: Any,
    *,
    make_env: Callable[[], SelfImprovementEnv] = MarkEnv,
    update: Any = ignore,
    num_iterations: int = 12,
    after: Callable[[dict[str, float]], object] = lambda metrics: None,
    **options: Any,
) -> list[list[ScoredGroup]]:
    """Trains, and calls ``after`` after each iteration."""
    options = {
        "sampling": SamplingParams(max_tokens=32),
        "prompts_per_batch": 4,
        "rollouts_per_prompt": 4,
        "diversity": lambda texts: diversity_coefficients(embed(texts)),
        **options,
    }

    async def train() -> list[list[ScoredGroup]]:
        seen = []
        async for groups, metrics in exit_loop(
            curriculum, make_env, generator, generator.chat, update, num_iterations=num_iterations, **options
        ):
            seen.append(groups)
            after(metrics)
        return seen

    return asyncio.run(train())


def make_curriculum(config: CurriculumConfig, env: SelfImprovementEnv | None = None) -> ExIt:
    return ExIt(config, list((env or MarkEnv()).tasks), np.random.default_rng(0))


def identity(instance: TaskInstance) -> Identity:
    return instance.task_id, instance.history, instance.iterate


def prefixes(task_id: str, rollout: Rollout, self_iteration: bool) -> list[Identity]:
    """A history's partial histories, each with its last turn as the iterate; without self-iteration with none."""
    turns = rollout.turns
    return [(task_id, turns[:t], turns[t] if self_iteration else None) for t in range(len(turns))]


@STRATEGY
def test_it_does_what_section_4_says(strategy: str, tiny_model: str) -> None:
    config = small(strategy)
    curriculum = make_curriculum(config)
    buffers: list[dict[Identity, float]] = [{}]

    def snapshot(metrics: dict[str, float]) -> None:
        buffer = curriculum.buffer
        buffers.append(dict(zip(map(identity, buffer.instances), buffer.scores.tolist(), strict=True)))

    iterations = run(curriculum, ScriptedGenerator(tiny_model, mark, max_model_len=1024), after=snapshot)

    for groups, before, after in zip(iterations, buffers[:-1], buffers[1:], strict=True):
        new: dict[Identity, float] = {}
        for scored in groups:
            request, rollouts = scored.group.request, scored.group.rollouts
            instance = request.instance
            # Selection.
            if request.source is None:
                assert instance == TaskInstance(instance.task_id)
            else:
                assert identity(request.source) in before and len(before) >= config.min_buffer_size
                assert (instance.task_id, instance.history) == (request.source.task_id, request.source.history)
                assert instance.iterate == (request.source.iterate if config.self_iteration else None)
            # Expansion: the history up to turn t stands, its iterate is replaced.
            assert len(rollouts) == 4
            for rollout in rollouts:
                assert rollout.turns[: instance.starting_turn] == instance.history and len(rollout.turns) == 3
                assert rollout.turns[instance.starting_turn].depth == (instance.depth + 1 if instance.iterate else 0)
            # Equation 3, and the diversity bonus on what is new.
            returns_G = np.array([int(rollout.turns[-1].response[0]) / 9 for rollout in rollouts])
            np.testing.assert_array_equal(returns_G, scored.group.returns_G)
            expected_G = (returns_G - returns_G.mean()) / (returns_G.std() + 1e-4)
            if strategy == "exit":
                texts = ["\n".join(t.response[::-1] for t in r.turns[instance.starting_turn :]) for r in rollouts]
                distances_G = np.linalg.norm(embed(texts) - embed(texts).mean(axis=0), axis=1)
                if np.ptp(distances_G) > 1e-9:
                    expected_G = expected_G * (distances_G - distances_G.min()) / np.ptp(distances_G)
            np.testing.assert_allclose(scored.advantages_G, expected_G, atol=1e-9)
            # One of the group's valid histories enters the buffer, with all its partial histories.
            variance = float(np.var(returns_G))
            valid = [
                prefixes(instance.task_id, r, config.self_iteration) for r in rollouts if r.turns[-1].response[0] != "9"
            ]
            inserted = [history for history in valid if history[-1] in after]
            # Replays of the last turn share all that counts without self-iteration.
            shared = not config.self_iteration and instance.starting_turn == 2
            assert len(inserted) == (0 if strategy == "grpo" else len(valid) if shared else min(len(valid), 1))
            new.update({i: variance for history in inserted for i in history if i not in before})
            assert {i for history in inserted for i in history} <= set(after)
        assert set(after) == set(before) | set(new)
        assert {i: after[i] for i in new} == pytest.approx(new, abs=1e-12)
        # Section 4.1: what was selected has the score that was measured, whatever its descendants inherited.
        for scored in groups:
            source = scored.group.request.source
            others = [s for s in groups if s is not scored and s.group.request.source == source]
            if source and not others:
                assert after[identity(source)] == pytest.approx(np.var(scored.group.qualities_G), abs=1e-12)

    requests = [scored.group.request for groups in iterations for scored in groups]
    kinds = Counter(request.instance.kind for request in requests)
    assert set(kinds) == {
        "grpo": {"base"},
        "curriculum": {"base"},
        "improve": {"base", "improve"},
        "diverge": {"base", "improve", "diverge"},
        "exit": {"base", "improve", "diverge"},
    }[strategy]  # fmt: skip
    assert any(request.source for request in requests) == (strategy != "grpo")
    # Base tasks come without replacement, in epochs.
    base = [request.instance.task_id for request in requests if request.source is None]
    epochs = [base[i : i + NUM_TASKS] for i in range(0, len(base), NUM_TASKS)]
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)


def right_or_wrong(prompt: str, seed: int) -> str:
    """Of four answers, all are alike once in eight times."""
    return f"{8 * np.random.default_rng(seed).integers(2)} of {seed}"


def record(curriculum: ExIt) -> tuple[list[Sequence[RolloutRequest]], list[Sequence[RolloutGroup]]]:
    """What every selection from now on gives, and what every update gets."""
    requested: list[Sequence[RolloutRequest]] = []
    updated: list[Sequence[RolloutGroup]] = []
    fake, select, update = cast(Any, curriculum), curriculum.select, curriculum.update
    fake.select = lambda number: requested.append(select(number)) or requested[-1]
    fake.update = lambda groups: updated.append(groups) or update(groups)
    return requested, updated


@STRATEGY
def test_groups_without_a_signal_are_replaced_and_still_seen_by_the_curriculum(strategy: str, tiny_model: str) -> None:
    generator = ScriptedGenerator(tiny_model, right_or_wrong, max_model_len=1024)
    curriculum = make_curriculum(small(strategy))
    requested, updated = record(curriculum)
    trained: list[Sequence[ScoredGroup]] = []

    async def train(groups: Sequence[ScoredGroup]) -> None:
        trained.append(groups)

    assert run(curriculum, generator, update=train, num_iterations=10, refill_zero_variance=1) == trained
    rounds = iter(requested)
    refilled = 0
    for batch, groups in zip(trained, updated, strict=True):
        mixed = [np.ptp(group.returns_G) > 0 for group in groups]
        assert [scored.group for scored in batch] == [group for group, of in zip(groups, mixed, strict=True) if of]
        # As many as are missing, each time, until there are four, or eight were selected.
        seen = 0
        while missing := min(4 - sum(mixed[:seen]), 8 - seen):
            requests = next(rounds)
            assert requests == [group.request for group in groups[seen : seen + missing]]
            refilled += seen > 0
            seen += missing
        assert seen == len(groups) and next(rounds) == []
    assert refilled


class Bandit(ScriptedGenerator):
    """Its policy is a softmax over the ten marks, which learns by the policy gradient."""

    def __init__(self, model: str) -> None:
        super().__init__(model, self.answer, max_model_len=1024)
        self.logits = np.zeros(10)

    @property
    def probs(self) -> np.ndarray:
        return np.exp(self.logits) / np.exp(self.logits).sum()

    def answer(self, prompt: str, seed: int) -> str:
        return f"{np.random.default_rng(seed).choice(10, p=self.probs)} of {seed}"

    async def update(self, groups: Sequence[ScoredGroup]) -> None:
        gradient = np.zeros(10)
        for scored in groups:
            for rollout, advantage in zip(scored.group.rollouts, scored.advantages_G, strict=True):
                gradient += advantage * (np.eye(10)[int(rollout.turns[-1].response[0])] - self.probs)
        self.logits += 0.2 * gradient


@STRATEGY
def test_it_trains_a_policy(strategy: str, tiny_model: str) -> None:
    policy = Bandit(tiny_model)
    make_env = partial(MarkEnv, {"num_turns": 1})
    curriculum = make_curriculum(small(strategy))
    iterations = run(curriculum, policy, make_env=make_env, update=policy.update, num_iterations=25)
    returns = [np.mean([scored.group.returns_G for scored in groups]) for groups in iterations]
    assert np.mean(returns[:2]) < 0.65 and np.mean(returns[-5:]) > 0.95


def test_a_run_goes_on_from_the_curriculums_state(tiny_model: str) -> None:
    generator = ScriptedGenerator(tiny_model, mark, max_model_len=1024)
    curriculum = make_curriculum(small("exit"))
    states: list[Any] = []
    iterations = run(
        curriculum, generator, num_iterations=6, after=lambda metrics: states.append(curriculum.get_state())
    )
    resumed = make_curriculum(small("exit"))
    resumed.set_state(states[3])
    again = run(resumed, generator, num_iterations=2)
    assert [[s.group.request for s in groups] for groups in again] == [
        [s.group.request for s in groups] for groups in iterations[4:]
    ]
    assert repr(resumed.get_state()) == repr(curriculum.get_state())


def test_a_prompt_that_does_not_fit_is_left_out_and_training_goes_on(tiny_model: str) -> None:
    make_env = partial(MarkEnv, {"long_task": True})
    curriculum = make_curriculum(small("grpo"), make_env())
    generator = ScriptedGenerator(tiny_model, mark, max_model_len=1024)
    reported: list[dict[str, float]] = []
    [groups] = run(
        curriculum,
        generator,
        make_env=make_env,
        num_iterations=1,
        prompts_per_batch=NUM_TASKS + 1,
        after=reported.append,
    )
    assert sorted(s.group.request.instance.task_id for s in groups) == [f"t{i}" for i in range(NUM_TASKS)]
    assert reported[0]["skipped_fraction"] == pytest.approx(1 / (NUM_TASKS + 1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts_per_batch": 0}, ValueError, "prompts_per_batch is 0: use an integer of 1 or more"),
        ({"rollouts_per_prompt": 1}, ValueError, "rollouts_per_prompt is 1: use an integer of 2 or more"),
        (
            {"sampling": SamplingParams(max_tokens=2000)},
            PromptTooLongError,
            "max_model_len is 1024 and max_tokens 2000",
        ),
    ],
)
def test_settings_that_train_nothing_are_refused(
    options: dict[str, Any], error: type[Exception], message: str, tiny_model: str
) -> None:
    with pytest.raises(error, match=message):
        run(make_curriculum(small("exit")), ScriptedGenerator(tiny_model, mark, max_model_len=1024), **options)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("refill_zero_variance", [0, pytest.param(2, marks=pytest.mark.full)])
def test_the_distributed_algorithm_does_the_same(
    refill_zero_variance: int, tiny_model: str, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Selections, returns, advantages and buffer are equal, to the last bit."""
    from rllib_exit.rollout_log import LoggedRollouts
    from tests.grpo.test_algorithm import make_config, selections

    num_iterations = 5
    script = right_or_wrong if refill_zero_variance else mark
    config = make_config(tiny_model, max_model_len=1024, max_response_tokens=32, log_rollouts=True)
    config.environment(MarkEnv).training(refill_zero_variance=refill_zero_variance)
    config.generation(generator_class=partial(ScriptedGenerator, script=script))
    algo: Any = config.build_algo()
    try:
        selected = selections(algo, monkeypatch)
        dropped = sum(algo.train()["rollouts"]["dropped_groups"] for _ in range(num_iterations))
        state = algo.replay.curriculum.get_state()
        log = LoggedRollouts(Path(algo.logdir))
        logged = log.read()
        tokens = pq.read_table(log.files[1].with_name("tokens-000001.parquet")).to_pylist()
    finally:
        algo.stop()

    curriculum = ExIt(CurriculumConfig.of(config), list(MarkEnv().tasks), np.random.default_rng(config.seed))
    requested, _ = record(curriculum)
    iterations = run(
        curriculum,
        ScriptedGenerator(tiny_model, script, max_model_len=1024),
        num_iterations=num_iterations,
        prompts_per_batch=config.prompts_per_batch,
        rollouts_per_prompt=config.rollouts_per_prompt,
        refill_zero_variance=refill_zero_variance,
        diversity=edit_diversity_coefficients,
    )
    # Requests are equal if their instances, kinds, sources, seeds and group ids are.
    assert [requests for requests in requested if requests] == selected
    assert any(request.source for requests in selected for request in requests)
    trained = {scored.group.request.group_id for groups in iterations for scored in groups}
    assert dropped == sum(map(len, selected)) - len(trained) and (dropped > 0) == (refill_zero_variance > 0)
    expected = [
        (
            number,
            scored.group.request.group_id,
            g,
            [turn.response for turn in rollout.turns],
            rollout.return_,
            advantage,
        )
        for number, groups in enumerate(iterations, 1)
        for scored in groups
        for g, (rollout, advantage) in enumerate(zip(scored.group.rollouts, scored.advantages_G.tolist(), strict=True))
    ]
    assert expected == [
        (r["iteration"], r["group_id"], r["g"], [t["response"] for t in r["turns"]], r["return"], r["advantage"])
        for r in logged
        if r["group_id"] in trained
    ]
    assert any(advantage not in (0, 1) for *_, advantage in expected)
    # The engine knows every token that was generated; the learner those that it trains on.
    trains = {(r["group_id"], r["g"]): r["group_id"] in trained and (r["advantage"] or config.kl_coeff) for r in logged}
    for row in tokens:
        assert [value is not None for value in row["logprobs"]] == row["loss_mask"]
        known = [value is not None for value in row["learner_logprobs"]]
        assert known == [mask and trains[row["group_id"], row["g"]] != 0 for mask in row["loss_mask"]]
    assert repr(curriculum.get_state()) == repr(state)
