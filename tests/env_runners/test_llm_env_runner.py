from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import pytest

from envs.base import TaskInstance
from rllib_exit.env_runners.generator import Generation
from rllib_exit.env_runners.llm_env_runner import LLMEnvRunner, env_runners_of_its_own, remote_call
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest
from rllib_exit.weight_sync.weight_store import StoredWeights
from tests.fakes import CounterEnv, ScriptedGenerator


class SlowGenerator(ScriptedGenerator):
    """Starts when it is let, and fails if it is told to."""

    def __init__(self, model: str, fails: bool, **kwargs: Any) -> None:
        super().__init__(model, lambda prompt, seed: "1", **kwargs)
        self.fails = fails
        self.begun, self.let = threading.Event(), threading.Event()

    def start(self) -> None:
        self.begun.set()
        assert self.let.wait(20)
        if self.fails:
            raise MemoryError("too small")


def make_runner(model: str, fails: bool = False, colocated: bool = False) -> tuple[LLMEnvRunner, SlowGenerator]:
    config = GRPOConfig().environment(CounterEnv).language_model(model, dtype="float32", max_model_len=512)
    generator = SlowGenerator(model, fails)
    config.generation(max_response_tokens=8, generator_class=lambda *args, **kwargs: generator)
    config.colocated = colocated
    return LLMEnvRunner(config=config), generator


def test_the_engine_starts_at_once_and_keeps_nobody_waiting_who_does_not_use_it(tiny_model: str) -> None:
    runner, generator = make_runner(tiny_model)
    assert generator.begun.wait(20)
    runner.get_spaces()
    generator.let.set()
    asyncio.run(runner.update_weights(StoredWeights.full(3, ())))
    assert len(generator.updates) == 1


def test_an_engine_that_cannot_start_says_so_to_who_uses_it(
    tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runner, generator = make_runner(tiny_model, fails=True)
    generator.let.set()
    for _ in range(2):
        with pytest.raises(MemoryError, match="too small"):
            asyncio.run(runner.update_weights(StoredWeights.full(0, ())))
    assert capsys.readouterr().err == ""


def test_a_colocated_engine_waits_for_its_first_use(tiny_model: str) -> None:
    runner, generator = make_runner(tiny_model, colocated=True)
    assert not generator.begun.wait(0.2)
    generator.let.set()
    asyncio.run(runner.update_weights(StoredWeights.full(0, ())))
    assert generator.begun.is_set()


class UpdatingGenerator(ScriptedGenerator):
    """Gets new weights while it answers."""

    runner: LLMEnvRunner

    async def generate(self, *args: Any) -> Generation:
        await self.runner.update_weights(StoredWeights.full(4, ()))
        return await super().generate(*args)


def test_a_group_has_the_version_of_the_oldest_weights_that_generated_it(tiny_model: str) -> None:
    config = GRPOConfig().environment(CounterEnv).language_model(tiny_model, dtype="float32", max_model_len=512)
    generator = UpdatingGenerator(tiny_model, lambda prompt, seed: "1")
    config.generation(max_response_tokens=8, generator_class=lambda *args, **kwargs: generator)
    runner = generator.runner = LLMEnvRunner(config=config)

    async def roll_out() -> list[RolloutGroup]:
        await runner.update_weights(StoredWeights.full(3, ()))
        return [await runner.roll_out(RolloutRequest(str(i), TaskInstance("count/1"))) for i in range(2)]

    assert [group.policy_version for group in asyncio.run(roll_out())] == [3, 4]


def test_episodes_of_evaluations_are_played_with_their_own_settings_and_splits(tiny_model: str) -> None:
    config = GRPOConfig().environment(CounterEnv, env_config={"turns": 2}).language_model(tiny_model, dtype="float32")
    generator = ScriptedGenerator(tiny_model, lambda prompt, seed: "1" * 30)
    config.generation(max_response_tokens=8, generator_class=lambda *args, **kwargs: generator)
    config.self_improvement(splits={"long": {"turns": 4}})
    config.evaluation(
        evaluation_config=GRPOConfig.overrides(env_config={"turns": 3}, max_response_tokens=5, temperature=0.0)
    )

    async def play(*args: Any) -> Rollout:
        return await runner.play(TaskInstance("count/1"), 0, 0, *args)

    runner = LLMEnvRunner(config=config)
    episode = asyncio.run(play())
    assert [turn.response for turn in episode.turns] == ["1" * 5] * 3
    assert not episode.segments and episode.truncated
    assert len(asyncio.run(play("long")).turns) == 4
    of_evaluation = config.get_evaluation_config_object()
    assert of_evaluation is not None
    runner = LLMEnvRunner(config=of_evaluation)
    assert len(asyncio.run(play()).turns) == 3


def test_an_env_runner_in_this_process_ends_its_engine(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    async def close(self: ScriptedGenerator) -> None:
        closed.append(self)

    monkeypatch.setattr(ScriptedGenerator, "close", close)
    config = GRPOConfig().environment(CounterEnv).language_model(tiny_model, dtype="float32")
    config.generation(generator_class=partial(ScriptedGenerator, script=lambda prompt, seed: "1"))
    config.num_env_runners = 0
    with pytest.raises(KeyError), env_runners_of_its_own(config) as env_runners:
        episode = env_runners.submit(remote_call("play", TaskInstance("count/1"), 0)).result(20)
        assert len(episode.turns) == 3 and not closed
        raise KeyError
    assert len(closed) == 1
