from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from rllib_exit.env_runners.generator import EngineError, Generation, SamplingParams
from rllib_exit.env_runners.llm_env_runner import env_runners_of_its_own
from rllib_exit.env_runners.player import EpisodeError
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.self_improvement.evaluator import SEEDS_PER_EPISODE, SEEDS_PER_EVALUATION, start_chains, steps_after
from tests.fakes import CounterEnv, ScriptedGenerator


def make_config(model: str, generator: Any) -> GRPOConfig:
    config = GRPOConfig().environment(CounterEnv, env_config={"turns": 1}).language_model(model, dtype="float32")
    config.generation(max_response_tokens=8, generator_class=generator).self_improvement(steps=2)
    config.num_env_runners = 0
    return config


def test_every_task_has_a_chain_with_seeds_of_its_own(tiny_model: str) -> None:
    asked: list[int] = []

    def script(prompt: str, seed: int) -> str:
        asked.append(seed)
        return str(seed // SEEDS_PER_EPISODE % 3)  # the step

    config = make_config(tiny_model, partial(ScriptedGenerator, script=script))
    env, tasks = CounterEnv(config.env_config), ["count/1", "count/2"]
    with env_runners_of_its_own(config) as env_runners:
        futures = start_chains(env_runners, env, tasks, config, seed=3)
        chains = [chain for future in futures if (chain := future.result(20))]
    assert [chain.task_id for chain in chains] == tasks
    # The first task is solved by a count of 1, the second by one of 2.
    assert [chain.qualities for chain in chains] == [(1 / 2, 1, 1 / 2), (1 / 3, 1 / 2, 1)]
    assert [[turns[0].depth for turns in chain.turns] for chain in chains] == [[0, 1, 2]] * 2
    assert sorted(asked) == [3 * SEEDS_PER_EVALUATION + SEEDS_PER_EPISODE * episode for episode in range(6)]


def test_a_task_that_does_not_fit_has_no_chain(tiny_model: str) -> None:
    config = make_config(tiny_model, partial(ScriptedGenerator, script=lambda prompt, seed: "1"))
    config.max_model_len = 9
    with env_runners_of_its_own(config) as env_runners:
        [future] = start_chains(env_runners, CounterEnv(), ["count/1"], config)
        assert future.result(20) is None


def test_what_ends_an_episode_ends_its_chain(tiny_model: str) -> None:
    class Dying(ScriptedGenerator):
        async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
            raise EngineError("it died")

    class FailingEnv(CounterEnv):
        def respond(self, task: Any, response: str) -> Any:
            raise ZeroDivisionError("a bug")

    script = lambda prompt, seed: "1"  # noqa: E731
    for generator, env, error in (
        (Dying, CounterEnv, EngineError("it died")),
        (ScriptedGenerator, FailingEnv, EpisodeError("a bug")),
    ):
        config = make_config(tiny_model, partial(generator, script=script)).environment(env)
        with env_runners_of_its_own(config) as env_runners:
            [future] = start_chains(env_runners, env({}), ["count/1"], config)
            with pytest.raises(type(error), match=str(error)):
                future.result(20)


def test_every_so_many_th_evaluation_of_training_takes_all_steps() -> None:
    config = GRPOConfig().self_improvement(steps=16, interval=3).evaluation(evaluation_interval=50)
    assert [steps_after(iteration, config) for iteration in range(50, 301, 50)] == [0, 0, 16, 0, 0, 16]
    assert steps_after(50, config.copy().self_improvement(interval=1)) == 16
