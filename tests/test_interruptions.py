"""What ``rllib train`` does when it is told to stop, and when a learner dies under it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rllib_exit import checkpoints
from tests.processes import children, wait_for_end, wait_until
from tests.test_end_to_end import CONFIG, RLLIB, environment, results

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Where the file `slow` lies beside the config, a response takes a minute, and `waiting` says so.
SLOW = (
    CONFIG
    + """
import asyncio
from functools import partial
from pathlib import Path

from tests.fakes import ScriptedGenerator


class SlowGenerator(ScriptedGenerator):
    async def generate(self, prompt_ids, sampling, seed):
        if Path({slow!r}).exists():
            Path({waiting!r}).touch()
            await asyncio.sleep(60)
        await asyncio.sleep(0.2)
        return await super().generate(prompt_ids, sampling, seed)


config.generation(generator_class=partial(SlowGenerator, script=lambda prompt, seed: str(seed % 10)))
"""
)


@pytest.fixture
def train(tiny_model: str, tmp_path: Path) -> list[str]:
    """The command; results go to ``results``."""
    file = tmp_path / "example.py"
    file.write_text(SLOW.format(model=tiny_model, slow=str(tmp_path / "slow"), waiting=str(tmp_path / "waiting")))
    options = ["--scale", "cpu", "--checkpoint-freq", "1", "--results-dir", str(tmp_path / "results")]
    return [*RLLIB, "train", "file", str(file), *options]


def wait_for_checkpoints(process: subprocess.Popen, directory: Path, number: int) -> None:
    def reached() -> bool:
        assert process.poll() is None
        return len(list(directory.rglob("manifest.json"))) >= number

    wait_until(reached, 300)


def test_sigterm_saves_what_is_under_way_at_once_and_it_can_be_resumed(train: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*train, "--stop-iters", "100"], env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for_checkpoints(process, tmp_path / "results", 1)
        (tmp_path / "slow").touch()
        wait_until((tmp_path / "waiting").exists)  # now an iteration waits for its rollouts
        below = children(process.pid, "ray::")
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        output, _ = process.communicate(timeout=60)
        seconds = time.monotonic() - start
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    print(f"SIGTERM to exit: {seconds:.1f} s")
    assert process.returncode == 128 + signal.SIGTERM and "stopped by SIGTERM" in output
    wait_for_end(below)

    checkpoint = checkpoints.newest(tmp_path / "results")
    assert str(checkpoint) in output.replace("\n", "")
    state = pickle.loads((checkpoint / "algorithm_state.pkl").read_bytes())
    assert [len(requests) for requests in state["selected_requests"]] == [4]
    (tmp_path / "slow").unlink()
    done = state["training_iteration"]
    resumed = subprocess.run(
        [*train, "--stop-iters", str(done + 2), "--resume", str(checkpoint)], env=environment(), timeout=300
    )
    assert resumed.returncode == 0
    versions = {iteration: result["policy_version"] for iteration, result in results(tmp_path / "results").items()}
    assert versions == {iteration: iteration for iteration in range(1, done + 3)}


def test_after_a_learners_death_training_goes_on_from_the_last_checkpoint(train: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*train, "--stop-iters", "12", "--set", "num_learners=1", "--set", "num_cpus_per_learner=1"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for_checkpoints(process, tmp_path / "results", 2)
        (learner,) = children(process.pid, "_WrappedExecutable")
        os.kill(learner, signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    assert output.count("a learner failed; going on after iteration") == 1
    versions = {iteration: result["policy_version"] for iteration, result in results(tmp_path / "results").items()}
    assert versions == {iteration: iteration for iteration in range(1, 13)}
