"""What fails in mid-iteration costs no group, and none is trained on twice.

Generation is a function of prompt and seed, so that a run with a fault must end with the very task buffer of the run
without.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from envs.base import Outcome, Task
from rllib_exit.grpo.algorithm import RolloutError
from rllib_exit.grpo.config import vllm_generator
from rllib_exit.learner.learner_group import LearnerError
from tests.grpo.test_algorithm import GuessEnv, guess, make_config, record_updates
from tests.grpo.test_asynchronous import SlowGenerator
from tests.processes import alive, children, guards, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class FaultyEnv(GuessEnv):
    """Where a file named after a fault appears, it takes the file and has the fault, once."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.faults = Path(config["faults"])

    def respond(self, task: Task, response: str) -> Outcome:
        if self._takes("hang"):
            time.sleep(1000)
        if self._takes("raise"):
            raise ConnectionError("the grader went away")
        return super().respond(task, response)

    def _takes(self, fault: str) -> bool:
        try:
            (self.faults / fault).unlink()
        except FileNotFoundError:
            return False
        return True


def ask(actor: Any, question: Callable[[], Any]) -> Any:
    return ray.get(actor.apply.remote(lambda _: question()))


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


class Run:
    """A trainer of two env runners, one checkpoint of it, and what two iterations from there come to."""

    def __init__(self, algo: Any, directory: Path, faults: Path) -> None:
        self.algo, self.faults = algo, faults
        algo.train()
        self.checkpoint = algo.save_to_path(directory / "checkpoint")
        with pytest.MonkeyPatch.context() as patch:
            trained_on = record_updates(algo, patch)
            self.results = [algo.train() for _ in range(2)]
        self.trained_on, self.state = trained_on, repr(algo.replay.get_state())

    def again(self, fault: Callable[[], None]) -> list[dict[str, Any]]:
        """The same two iterations; the fault comes while the first is being rolled out."""
        self.algo.restore_from_path(self.checkpoint)
        with pytest.MonkeyPatch.context() as patch:
            trained_on = record_updates(self.algo, patch)
            timer = threading.Timer(0.4, fault)
            timer.start()
            results = [self.algo.train() for _ in range(2)]
            timer.join()
        assert trained_on == self.trained_on
        assert repr(self.algo.replay.get_state()) == self.state
        for result, before in zip(results, self.results, strict=True):
            assert result["policy_version"] == before["policy_version"]
            assert result["rollouts"]["return_mean"] == before["rollouts"]["return_mean"]
            assert result["policy_lag_max"] == 0
        return results

    def pids(self) -> list[int]:
        """Of the env runners."""
        return self.ask(os.getpid)

    def nodes(self) -> list[str]:
        """The env runners' nodes."""
        return self.ask(lambda: ray.get_runtime_context().get_node_id())

    def ask(self, question: Callable[[], Any]) -> list[Any]:
        """What every env runner answers."""
        return [ask(actor, question) for actor in self.algo.env_runner_group._worker_manager.actors().values()]


@pytest.fixture(scope="module")
def run(tiny_model: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    faults = tmp_path_factory.mktemp("faults")
    config = make_config(tiny_model, num_env_runners=2, num_envs_per_env_runner=4)
    config.environment(FaultyEnv, env_config={"faults": str(faults)})
    config.generation(generator_class=partial(SlowGenerator, script=guess)).fault_tolerance(
        env_timeout_s=2, env_runner_timeout_s=15
    )
    algo: Any = config.build_algo()
    yield Run(algo, tmp_path_factory.mktemp("run"), faults)
    algo.stop()


def test_an_env_runner_killed_while_generating(run: Run) -> None:
    victim = run.pids()[0]
    results = run.again(lambda: kill(victim))
    assert sum(result["rollouts"]["lost_env_runners"] for result in results) == 1
    # It comes back, with the current weights, which the policy lag of 0 says.
    wait_until(lambda: run.algo._env_runners.num_ready == 2)
    assert not alive([victim]) and len(set(run.pids())) == 2


def test_an_env_runner_stopped_while_generating(run: Run) -> None:
    victim = run.pids()[0]
    results = run.again(lambda: os.kill(victim, signal.SIGSTOP))
    assert sum(result["rollouts"]["lost_env_runners"] for result in results) == 1
    wait_until(lambda: run.algo._env_runners.num_ready == 2)
    assert not alive([victim])


def test_all_env_runners_killed_at_once(run: Run) -> None:
    victims = run.pids()
    results = run.again(lambda: kill(*victims))
    assert sum(result["rollouts"]["lost_env_runners"] for result in results) == 2


def test_an_env_that_hangs(run: Run) -> None:
    results = run.again(lambda: (run.faults / "hang").touch())
    assert [result["rollouts"]["retried_episodes"] for result in results] == [1, 0]
    assert sum(result["rollouts"]["lost_env_runners"] for result in results) == 0


def test_an_env_that_raises_once(run: Run) -> None:
    results = run.again(lambda: (run.faults / "raise").touch())
    assert [result["rollouts"]["retried_episodes"] for result in results] == [1, 0]


def test_env_runners_that_do_not_come_back_end_training_with_a_checkpoint_to_go_on_from(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.algo.restore_from_path(run.checkpoint)
    monkeypatch.setattr(run.algo._env_runners, "_patience_s", 0.1)
    victims = run.pids()
    threading.Timer(0.4, kill, victims).start()
    with pytest.raises(RolloutError, match=r"no env runner came back within 0\.1 s") as error:
        run.algo.train()
    checkpoint = str(error.value).rsplit(" ", 1)[-1]
    monkeypatch.undo()
    run.algo.restore_from_path(checkpoint)
    for _ in range(2):
        run.algo.train()
    assert repr(run.algo.replay.get_state()) == run.state


def test_a_learner_that_dies_ends_training_with_a_clear_message(
    tiny_model: str, ray_session: None, tmp_path: Path
) -> None:
    algo: Any = make_config(tiny_model, num_learners=1, num_cpus_per_learner=1).build_algo()
    try:
        algo.train()
        checkpoint = algo.save_to_path(tmp_path / "checkpoint")
        [learner] = algo.learner_group._workers
        kill(ask(learner, os.getpid))
        with pytest.raises(LearnerError, match=r"(?s)a learner failed.*go on from that one.*ActorDied") as error:
            algo.train()
        assert "IndexError" not in str(error.value)
    finally:
        algo.stop()
    again: Any = type(algo).from_checkpoint(checkpoint)
    try:
        assert again.train()["policy_version"] == 2
    finally:
        again.stop()


@pytest.mark.vllm
def test_an_engine_and_an_env_runner_with_one_killed(
    tiny_model: str, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tiny_model)
    config.environment(NumberEnv).generation(max_response_tokens=200, generator_class=vllm_generator)
    algo: Any = config.build_algo()
    trained_on = record_updates(algo, monkeypatch)
    try:
        algo.train()
        actor = algo.env_runner_group._worker_manager.actors()[1]
        killed = []
        for victim in ("EngineCore", "env runner"):
            pid = ask(actor, os.getpid)
            engine = children(pid, "VLLM")
            assert engine and guards(pid)
            killed += [pid, *engine]
            os.kill(engine[0], signal.SIGSTOP)  # so that it does not finish first
            timer = threading.Timer(0.5, kill, (engine[0] if victim == "EngineCore" else pid,))
            timer.start()
            result = algo.train()
            timer.join()
            assert result["rollouts"]["lost_env_runners"] == 1 and len(trained_on[-1]) == config.prompts_per_batch
            # Both run in fp32: the new engine has the learner's weights, not those that it started from.
            assert result["learner"]["logprob_abs_diff_mean"] < 1e-3
        wait_until(lambda: not any([alive(killed), *map(guards, killed)]))  # no orphan
    finally:
        pid = ask(actor, os.getpid)
        engine = children(pid, "VLLM")
        algo.stop()
    # Their guard sees their end, and ends too.
    wait_until(lambda: not alive([pid, *engine]) and not guards(pid))


class NumberEnv(GuessEnv):
    """Takes any text."""

    def respond(self, task: Task, response: str) -> Outcome:
        return Outcome(float(len(response) % 2))
