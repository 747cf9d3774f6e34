from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rllib_exit.env_runners.generator import Generation, SamplingParams
from rllib_exit.grpo.algorithm import GRPO
from tests.fakes import ScriptedGenerator
from tests.grpo.test_algorithm import guess, make_config, record_updates

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class SlowGenerator(ScriptedGenerator):
    """Takes the longer the higher the task's digit is: 0.03 to 0.3 seconds."""

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        digit = int(self.chat.tokenizer.decode(prompt_ids).split("Digit ")[1][0])
        await asyncio.sleep(0.03 * (1 + digit))
        return await super().generate(prompt_ids, sampling, seed)


@pytest.fixture(scope="module")
def algo(tiny_model: str, ray_session: None) -> Iterator[Any]:
    config = make_config(tiny_model, num_env_runners=2, num_envs_per_env_runner=4, self_iteration_prob=0.3)
    config.asynchronous(max_policy_lag=1).generation(generator_class=partial(SlowGenerator, script=guess))
    algo: Any = config.build_algo()
    yield algo
    algo.stop()


def test_what_is_trained_on_is_what_was_selected_however_long_it_takes(
    algo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    selected: list[Any] = []
    select = algo.replay.curriculum.select
    monkeypatch.setattr(algo.replay.curriculum, "select", lambda n: selected.append(select(n)) or selected[-1])
    trained_on = record_updates(algo, monkeypatch)
    results = [algo.train() for _ in range(10)]

    # Selection runs one iteration ahead; what it selected is trained on in that order, and all of it.
    assert len(selected) == 11 and trained_on == selected[:10]
    # Of base tasks there are ten, with digits 0 to 9: each epoch has them all, the slow ones as often as the fast.
    base = [r.instance.task_id for requests in trained_on for r in requests if r.source is None]
    whole_epochs = len(base) // 10
    assert whole_epochs >= 3 and set(Counter(base[: 10 * whole_epochs]).values()) == {whole_epochs}
    # The first iteration's rollouts are on-policy; the others began before the last update.
    lags = [result["policy_lag_max"] for result in results]
    assert lags[0] == 0 and set(lags[1:]) <= {0, 1} and 1 in lags
    assert [result["policy_version"] for result in results] == list(range(1, 11))


def test_generation_goes_on_while_the_learner_updates(algo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    update = algo._update
    done: list[float] = []

    def slow_update(groups: Any) -> Any:
        futures = algo.rollouts._under_way.values()
        deadline = time.monotonic() + 60
        while not all(future.done() for future in futures) and time.monotonic() < deadline:
            time.sleep(0.05)
        done.append(sum(future.done() for future in futures) / len(futures))
        return update(groups)

    monkeypatch.setattr(algo, "_update", slow_update)
    for _ in range(2):
        algo.train()
    assert done == [1, 1]


def test_a_restored_run_trains_on_what_was_selected_ahead(
    algo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algo.train()
    checkpoint = algo.save_to_path(tmp_path / "checkpoint")
    version, ahead = algo.policy_version, [request for requests in algo.rollouts.selected for request in requests]
    assert len(ahead) == 6
    trained_on = record_updates(algo, monkeypatch)
    for _ in range(2):
        algo.train()
    state = algo.replay.get_state()
    assert trained_on[0] == ahead

    # In the run that goes on, whose engines are in the middle of something else.
    algo.restore_from_path(checkpoint)
    again = record_updates(algo, monkeypatch)
    results = [algo.train() for _ in range(2)]
    assert again == trained_on[:2] and repr(algo.replay.get_state()) == repr(state)
    assert [result["policy_version"] for result in results] == [version + 1, version + 2]
    # Begun again with the restored weights.
    assert results[0]["policy_lag_max"] == 0 and results[1]["policy_lag_max"] <= 1

    restored: Any = GRPO.from_checkpoint(checkpoint)
    try:
        anew = record_updates(restored, monkeypatch)
        for _ in range(2):
            restored.train()
        assert anew == trained_on[:2] and repr(restored.replay.get_state()) == repr(state)
    finally:
        restored.stop()
