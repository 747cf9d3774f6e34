"""Training on an environment that runs scripts in the sandbox."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from envs.mle_bench.env import MLEBenchEnv
from envs.mle_bench.synthetic import generate
from rllib_exit.grpo.config import GRPOConfig
from tests.fakes import ScriptedGenerator
from tests.processes import wait_for_end, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Some scripts are better than others, and none is done at once.
SCRIPT = """
import time
time.sleep({seconds})
lines = open("data/test.csv").read().split()
with open("submission.csv", "w") as file:
    file.write("id,minutes\\n" + "".join(line.split(",")[0] + ",{minutes}\\n" for line in lines[1:]))
"""


def script(seconds: float, prompt: str, seed: int) -> str:
    return f"```python\n{SCRIPT.format(seconds=seconds, minutes=25 + seed % 30)}\n```"


def make_config(model: str, competition: Path, seconds: float, **env_config: Any) -> GRPOConfig:
    return (
        GRPOConfig()
        .environment(MLEBenchEnv, env_config={"competitions": str(competition), **env_config})
        .language_model(model, dtype="float32", max_model_len=4096)
        .generation(
            max_response_tokens=512, generator_class=partial(ScriptedGenerator, script=partial(script, seconds))
        )
        .training(lr=1e-3, prompts_per_batch=1, rollouts_per_prompt=4, learner_threads=1)
        .curriculum("exit", min_buffer_size=1, diversity_metric="edit_distance")
        .fault_tolerance(env_timeout_s=None)
        .debugging(seed=3)
    )


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("competitions"))[1]


def descendants(pid: int) -> dict[int, str]:
    """All processes below this one, with what they run."""
    found = {}
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            found[child.pid] = " ".join(child.cmdline())
    return found


def test_scripts_die_with_their_env_runner_and_training_goes_on(
    tiny_model: str, ray_session: None, competition: Path
) -> None:
    before = set(Path(tempfile.gettempdir()).glob("sandbox-????????????????"))
    algo: Any = make_config(tiny_model, competition, seconds=6, slots=4).build_algo()
    killed: dict[int, str] = {}

    def kill_while_scripts_run() -> None:
        actor = algo.env_runner_group._worker_manager.actors()[1]
        pid: Any = ray.get(actor.apply.remote(lambda self: os.getpid()))
        wait_until(lambda: sum("script.py" in run for run in descendants(pid).values()) >= 4, timeout_s=120)
        os.kill(pid, signal.SIGSTOP)  # it starts nothing more
        killed.update(descendants(pid) | {pid: "env runner"})
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        wait_for_end(list(killed))
        ended.append(time.monotonic() - begin)

    ended: list[float] = []
    killer = threading.Thread(target=kill_while_scripts_run)
    try:
        killer.start()
        result = algo.train()
        killer.join()
        assert sum("script.py" in run for run in killed.values()) >= 4
        assert ended[0] < 5  # before they would have ended by themselves
        assert result["rollouts"]["lost_env_runners"] == 1 and result["rollouts"]["dropped_episodes"] == 0
        assert result["rollouts"]["scored"] == 1 and result["curriculum"]["group_variance_mean"] > 0
        assert algo.train()["policy_version"] == 2
    finally:
        algo.stop()
    wait_until(lambda: set(Path(tempfile.gettempdir()).glob("sandbox-????????????????")) == before)


def test_the_nodes_sandbox_slots_bound_how_many_scripts_run_at_once(
    tiny_model: str, ray_session: None, competition: Path
) -> None:
    # The test session's node has two; two env runners share them.
    config = make_config(tiny_model, competition, seconds=0.5)
    config.training(prompts_per_batch=2).env_runners(num_env_runners=2)
    algo: Any = config.build_algo()
    try:
        actors = algo.env_runner_group._worker_manager.actors().values()
        pids: list[Any] = ray.get([actor.apply.remote(lambda self: os.getpid()) for actor in actors])
        assert ray.get([actor.apply.remote(lambda self: self.env.slots) for actor in actors]) == [2, 2]
        running, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                runs = [run for pid in pids for run in descendants(pid).values()]
                running.append(sum(run.endswith(" script.py") and "bwrap" not in run for run in runs))

        watcher = threading.Thread(target=watch)
        watcher.start()
        result = algo.train()
        done.set()
        watcher.join()
        assert result["rollouts"]["scored"] == 1 and max(running) == 2
    finally:
        algo.stop()
