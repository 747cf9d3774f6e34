from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from rllib_exit.env_runners.llm_env_runner import LLMEnvRunner
from rllib_exit.grpo.config import GRPOConfig
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
    asyncio.run(runner.update_weights(3))
    assert len(generator.updates) == 1


def test_an_engine_that_cannot_start_says_so_to_who_uses_it(
    tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runner, generator = make_runner(tiny_model, fails=True)
    generator.let.set()
    for _ in range(2):
        with pytest.raises(MemoryError, match="too small"):
            asyncio.run(runner.update_weights(0))
    assert capsys.readouterr().err == ""


def test_a_colocated_engine_waits_for_its_first_use(tiny_model: str) -> None:
    runner, generator = make_runner(tiny_model, colocated=True)
    assert not generator.begun.wait(0.2)
    generator.let.set()
    asyncio.run(runner.update_weights(0))
    assert generator.begun.is_set()
