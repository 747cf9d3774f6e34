from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.base import Message, Outcome, SelfImprovementEnv, Task, TaskInstance
from envs.bfcl.env import BFCLEnv
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.generator import SamplingParams
from rllib_exit.env_runners.player import Player
from rllib_exit.rollouts import Rollout
from rllib_exit.self_improvement.chain import (
    Chain,
    Play,
    self_improve,
)
from rllib_exit.self_improvement.curves import Curve
from tests.fakes import ScriptedGenerator, tool_user
from tests.tiny_models import make_tiny_model


class Echo(SelfImprovementEnv):
    """Keeps what was executed; right if every executed response is the number of the turn times ten plus ``wanted``."""

    executed: list[list[str]]

    def __init__(self, turns: int, wanted: int) -> None:
        super().__init__([Task("echo", "Go.")])
        self.num_turns, self.wanted = turns, wanted
        self.executed = []

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "user", "content": task.prompt}]

    def begin(self, task: Task) -> None:
        self.executed.append([])

    def respond(self, task: Task, response: str) -> Outcome:
        self.executed[-1].append(response)
        taken = len(self.executed[-1])
        right = all(r == str(10 * t + self.wanted) for t, r in enumerate(self.executed[-1]))
        done = taken == self.num_turns
        return Outcome(float(right), f"executed {response}", done, metrics={"turns": float(taken)})


def improving(prompt: str, seed: int) -> str:
    """Answers turn t with 10 t, and an iterate with the iterate plus 1."""
    last_assistant = prompt.split("assistant")
    if "Check it carefully" in last_assistant[-2]:
        return str(int("".join(c for c in last_assistant[-2].split("user")[0] if c.isdigit())) + 1)
    return str(10 * prompt.count("executed"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def run(
    model: str, env: SelfImprovementEnv, steps: int, script: Callable[[str, int], str] = improving, **kwargs: Any
) -> tuple[Chain | None, ScriptedGenerator]:
    generator = ScriptedGenerator(model, script, **kwargs)
    player = Player(lambda: env, generator=generator, chat=ChatTokenizer(model), sampling=SamplingParams(max_tokens=16))
    return asyncio.run(self_improve(env, "echo", steps, playing(player))), generator


def playing(player: Player, seed: int = 0) -> Play:
    def play(instance: TaskInstance, k: int) -> Awaitable[Rollout]:
        return player.play(instance, seed=seed + 10_000 * k, steps=k)

    return play


def test_one_turn_is_one_chain_of_iterates(model: str) -> None:
    env = Echo(turns=1, wanted=2)
    chain, generator = run(model, env, steps=3)
    assert chain is not None and env.executed == [["0"], ["1"], ["2"], ["3"]]
    assert chain.qualities == (0, 0, 1, 0)
    assert len(generator.prompts) == 4


def test_on_every_turn_k_steps_are_taken_and_only_the_last_iterate_is_executed(model: str) -> None:
    env = Echo(turns=3, wanted=2)
    chain, generator = run(model, env, steps=2)
    assert chain is not None
    assert env.executed == [["0", "10", "20"], ["1", "11", "21"], ["2", "12", "22"]]
    assert chain.qualities == (0, 0, 1)
    assert [[turn.response for turn in turns] for turns in chain.turns] == env.executed
    # The first turn's iterates are shared; episode k answers and improves the other two turns k times.
    assert len(generator.prompts) == 3 + 2 * (1 + 2 + 3)
    # A later turn's prompt shows the last iterates of the turns before, and no self-iteration prompt of theirs.
    last = generator.chat.tokenizer.decode(generator.prompts[-1])
    assert last.count("Check it carefully") == 1 and "executed 2" in last and "executed 12" in last


def test_tool_use_over_all_requests(tmp_path: Path) -> None:
    """An answer afresh may give up; one step on every turn follows the ground truth to the last of them."""
    model = make_tiny_model(tmp_path, max_positions=1 << 17)
    options = {"requests": "all", "schemas": "short"}
    env = BFCLEnv(options)
    task_ids = sorted(env.tasks, key=lambda task_id: len(env.demonstration(env.tasks[task_id])))[-4:]
    generator = ScriptedGenerator(model, functools.partial(tool_user, requests="all"), max_model_len=1 << 17)
    player = Player(
        lambda: BFCLEnv(options),
        4,
        generator=generator,
        chat=ChatTokenizer(model),
        sampling=SamplingParams(max_tokens=2048),
    )

    async def run_all() -> list[Chain | None]:
        plays = (playing(player, seed=1 + 20_000 * i) for i in range(len(task_ids)))
        return await asyncio.gather(*map(functools.partial(self_improve, env), task_ids, [1] * 4, plays))

    chains = [chain for chain in asyncio.run(run_all()) if chain is not None]
    assert [chain.task_id for chain in chains] == task_ids
    for chain in chains:
        assert chain.qualities == (0, 1)
        assert len(chain.turns[1]) == len(env.demonstration(env.tasks[chain.task_id])) > 10
    metrics = {name: values_SK[0] for name, values_SK in Curve.of([chains]).metrics_SK.items()}
    assert metrics["first_turn_accuracy"][1] == metrics["official_accuracy"][1] == 1
    assert metrics["requests_solved_fraction"][0] < 1 == metrics["requests_solved_fraction"][1]


def test_where_an_iterate_leaves_no_room_it_stands(model: str) -> None:
    prompt = len(ChatTokenizer(model).encode(Echo(1, 0).prompt(Task("echo", "Go."))))
    chain, _ = run(model, Echo(turns=1, wanted=0), steps=3, max_model_len=prompt + 20)
    assert chain is not None and chain.qualities == (1, 1, 1, 1) and len(chain.turns) == 4
    # With two turns the second turn has no room at all: the episode ends with the quality it has.
    chain, _ = run(model, Echo(turns=2, wanted=0), steps=1, max_model_len=prompt + 20)
    assert chain is not None and [len(turns) for turns in chain.turns] == [1, 1]


def test_a_chain_says_which_episodes_are_invalid_and_which_were_cut(model: str) -> None:
    class Picky(Echo):
        def respond(self, task: Task, response: str) -> Outcome:
            return replace(super().respond(task, response), valid=response != "1")

    chain, _ = run(model, Picky(turns=1, wanted=2), steps=2)
    assert chain is not None and [metrics["invalid_fraction"] for metrics in chain.metrics] == [0, 1, 0]
    assert [metrics["truncated_fraction"] for metrics in chain.metrics] == [0, 0, 0]
    by_step = Curve.of([[chain]]).to_metrics()
    assert by_step["invalid_fraction"] == {"step_0": 0.0, "step_1": 1.0, "step_2": 0.0}
    chain, _ = run(model, Echo(turns=1, wanted=0), steps=0, script=lambda prompt, seed: "1" * 40)
    assert chain is not None and chain.metrics[0]["truncated_fraction"] == 1
    assert "improvement" not in Curve.of([[chain]]).to_metrics()


def test_a_task_whose_prompt_does_not_fit_has_no_chain(model: str) -> None:
    chain, _ = run(model, Echo(turns=1, wanted=0), steps=1, max_model_len=17)
    assert chain is None
