"""Kills and stops the processes of a training run at random, again and again. Nothing may be lost by it.

    python -m tests.chaos --seed 0 --kills 30 --iterations 150

The command, Tune, the driver, two learners, two env runners and their engines are real processes; only the responses
are scripted, as a function of weights, prompt and seed. So the run must end as one that nobody disturbed, bit for bit:
parameters, moments, reference policy, curriculum, and every row of the log of rollouts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow.parquet as pq

from rllib_exit.checkpoints import MANIFEST, Checkpoint, newest
from rllib_exit.files import whole_lines
from rllib_exit.rollout_log import LoggedRollouts
from tests.learner.sharding.learners import tensors
from tests.processes import children, wait_for_end
from tests.test_end_to_end import RLLIB, environment
from tests.tiny_models import make_tiny_model

CONFIG = """
from functools import partial
from pathlib import Path

from rllib_exit import GRPOConfig
from tests.fakes import CounterEnv, EngineProcess

config = (
    GRPOConfig()
    .environment(CounterEnv, env_config={{"tasks": 8, "turns": 2}})
    .language_model({model!r}, dtype="float32", max_model_len=1024)
    .generation(max_response_tokens=8, generator_class=partial(EngineProcess, generating=Path({generating!r})))
    .training(lr=1e-3, prompts_per_batch=4, rollouts_per_prompt=4, learner_threads=1)
    .training(kl_coeff=0.01, ref_update_interval=20)
    .curriculum("exit", buffer_size=12, min_buffer_size=4, diversity_metric="edit_distance")
    .learners(num_learners=2, num_cpus_per_learner=1)
    .env_runners(num_env_runners=2, num_envs_per_env_runner=8)
    .fault_tolerance(learner_timeout_s=20, env_runner_timeout_s=20, generation_timeout_s=15)
    .debugging(seed=5)
)
"""
GENERATING = "generating"  # a directory, see EngineProcess
PAUSE_S = 3.0  # shorter than the time limits above
PATIENCE_S = 900.0  # training goes on by then, or never
# Metrics that tell of time and of faults.
OF_THE_COURSE = {"tokens_per_s", "bubble_s", "lost_env_runners", "retried_episodes"}


class Kind(NamedTuple):
    """A kind of fault."""

    victim: str  # a part of the command lines of the processes that it strikes
    signal: signal.Signals = signal.SIGKILL
    pause: bool = False  # they go on after a while
    every: bool = False  # it strikes all of them
    at: str = ""  # it comes in the middle of generating or saving
    anew: bool = False  # training goes on from a checkpoint, in other processes


COMMAND, DRIVER, LEARNER = "rllib", "ray::GRPO", "_WrappedExecutable"
RUNNER, ENGINE = "ray::LLMEnvRunner", "# scripted engine"
KINDS = {
    "env runner killed while it generates": Kind(RUNNER, at="generating"),
    "env runner stopped while it generates": Kind(RUNNER, signal.SIGSTOP, at="generating"),
    "env runner stopped for 3 s": Kind(RUNNER, signal.SIGSTOP, pause=True),
    "both env runners killed": Kind(RUNNER, every=True),
    "engine killed": Kind(ENGINE),
    "engine stopped": Kind(ENGINE, signal.SIGSTOP),
    "learner killed": Kind(LEARNER, anew=True),
    "learner stopped": Kind(LEARNER, signal.SIGSTOP, anew=True),
    "learner stopped for 3 s": Kind(LEARNER, signal.SIGSTOP, pause=True),
    "driver killed": Kind(DRIVER, anew=True),
    "driver killed while it saves": Kind(DRIVER, at="saving", anew=True),
    "driver stopped for 3 s": Kind(DRIVER, signal.SIGSTOP, pause=True),
    "command killed": Kind(COMMAND, anew=True),
    "command stopped for 3 s": Kind(COMMAND, signal.SIGSTOP, pause=True),
}


class Fault(NamedTuple):
    """A fault comes so many seconds after an iteration, and strikes one of several processes or the other."""

    iteration: int
    kind: str
    delay_s: float
    which: int


def schedule(seed: int, kills: int, iterations: int) -> list[Fault]:
    """Faults of all kinds, in random order at random times; half as often those after which all begins anew."""
    rng = random.Random(seed)
    once = [kind for kind in KINDS for _ in range(1 if KINDS[kind].anew else 2)]
    kinds = [kind for _ in range(0, kills, len(once)) for kind in rng.sample(once, len(once))]
    times = sorted(rng.sample(range(1, iterations - 4), kills))
    return [Fault(time, kind, rng.random(), rng.randrange(2)) for time, kind in zip(times, kinds, strict=False)]


def number(file: Path) -> int:
    """The iteration that a file of the log is of."""
    return int(file.stem.rpartition("-")[2])


class Run:
    """``rllib train``, which is called again, to go on from the newest checkpoint, when it was killed or failed."""

    def __init__(self, file: Path, directory: Path, iterations: int) -> None:
        self.directory = directory
        self._train = [*RLLIB, "train", "file", str(file), "--scale", "cpu", "--log-rollouts", "--verbose"]
        self._train += ["--results-dir", str(directory), "--stop-iters", str(iterations), "--checkpoint-freq", "3"]
        self._generating = file.parent / GENERATING
        self.seen: set[int] = set()
        self.calls = 0
        self._call()

    def _call(self) -> None:
        resume = ["--resume", str(self.directory)] if any(self.directory.rglob(MANIFEST)) else []
        with open(f"{self.directory}.txt", "a") as output:
            self._process = subprocess.Popen(
                [*self._train, *resume], env=environment(), stdout=output, stderr=output, start_new_session=True
            )
        self.calls += 1

    def logged(self) -> set[Path]:
        """The logs of all iterations that were trained on, those that were done again included."""
        return set(self.directory.glob("*/*/rollouts/iteration-*.parquet"))

    def half_saved(self) -> set[Path]:
        """The checkpoints that are not whole."""
        return {path for path in self.directory.glob("*/*/checkpoint_*") if not (path / MANIFEST).exists()}

    def finish(self) -> None:
        """Waits for the end."""
        self._wait(lambda: self._process.poll() == 0, 10 * PATIENCE_S)

    def play(self, fault: Fault) -> tuple[float, int]:
        """Waits for a fault's time, strikes, and waits until an iteration has ended that began after it.

        Returns:
            How many seconds that took, and how many iterations were done again.
        """
        kind, half_saved = KINDS[fault.kind], self.half_saved()
        self._wait(lambda: max(map(number, self.logged()), default=0) >= fault.iteration)
        time.sleep(fault.delay_s)
        if kind.at == "saving":
            self._wait(lambda: self.half_saved() - half_saved)
        for file in self._generating.iterdir():
            file.unlink()
        victims: list[int] = []

        def found() -> list[int]:
            generating = {int(file.name) for file in self._generating.iterdir()}
            victims[:] = [pid for pid in self._victims(kind) if kind.at != "generating" or pid in generating]
            return victims

        self._wait(found)
        if not kind.every:
            victims = [victims[fault.which % len(victims)]]
        for victim in victims:
            os.kill(victim, kind.signal)
        before, begin = self.logged(), time.monotonic()
        if kind.pause:
            time.sleep(PAUSE_S)
            os.kill(victims[0], signal.SIGCONT)
        trials = {file.parent for file in before}

        def new() -> set[Path]:
            return {file for file in self.logged() - before if not kind.anew or file.parent not in trials}

        self._wait(lambda: len(new()) > (not kind.anew))  # the first may have begun before the fault
        seconds, [first, *_] = time.monotonic() - begin, sorted(new())
        last = max(before, key=lambda file: file.stat().st_mtime_ns)
        return seconds, number(last) + 1 - number(first)

    def _wait(self, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
        """Returns when the condition holds.

        Raises:
            TimeoutError: If it does not in time, or if the command has come to its end before.
        """
        deadline = time.monotonic() + patience_s
        while not condition():
            code = self._process.poll()
            if code == 0 or time.monotonic() > deadline:
                raise TimeoutError(f"training has come to its end, or does not go on: see {self.directory}.txt")
            if code is not None:
                self._call()
            time.sleep(0.02)

    def _victims(self, kind: Kind) -> list[int]:
        with suppress(psutil.NoSuchProcess):  # some end meanwhile
            self.seen |= {self._process.pid, *children(self._process.pid, "")}
            return [self._process.pid] if kind.victim == COMMAND else sorted(children(self._process.pid, kind.victim))
        return []

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        """Ends what is left of it after an error."""
        for pid in (self._process.pid, *children(self._process.pid, "")) if self._process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def outcome(directory: Path) -> dict[str, str]:
    """What a run comes to, by what it is, exactly; of an iteration that was done again, all that came of it."""
    checkpoint = Checkpoint(newest(directory))
    state = pickle.loads(checkpoint.read("algorithm_state.pkl"))
    values: dict[str, Any] = {
        "iterations": state["training_iteration"],
        "what was selected ahead": state["selected_requests"],
        "curriculum": pickle.loads(checkpoint.read("curriculum/state.pkl")),
        "updates": checkpoint.read("learners/progress.json"),
        "iterations in the log": list(LoggedRollouts(directory).files),
    }
    values |= {name: tensor.numpy().tobytes() for name, tensor in tensors(checkpoint).items()}
    several: dict[str, set[str]] = defaultdict(set)
    for kind in ("iteration", "tokens", "buffer"):
        for file in directory.rglob(f"{kind}-*.parquet"):
            several[f"log: {file.stem}"].add(repr(pq.read_table(file).to_pylist()))
    for result in map(json.loads, itertools.chain(*map(whole_lines, directory.rglob("result.json")))):
        for part in ("curriculum", "rollouts", "learner"):
            numbers = {name: value for name, value in sorted(result[part].items()) if name not in OF_THE_COURSE}
            several[f"result: {part} of iteration {result['training_iteration']}"].add(repr(numbers))
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return {name: repr(value) for name, value in values.items()} | {
            name: " | ".join(sorted(found)) for name, found in several.items()
        }


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The names of what differs, or is in one alone."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def main(seed: int, kills: int, iterations: int, directory: Path) -> int:
    """Trains undisturbed and disturbed, prints what was done and what was lost, and returns the exit code."""
    file, model = directory / "train.py", make_tiny_model(directory / "model")
    (directory / GENERATING).mkdir()
    file.write_text(CONFIG.format(model=model, generating=str(directory / GENERATING)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # by way of what ends the processes
    print(f"{'after iteration':>15}  {'what':40}{'next iteration':>15}{'done again':>12}", flush=True)
    begin, run = time.monotonic(), Run(file, directory / "disturbed", iterations)
    with run:
        for fault in schedule(seed, kills, iterations):
            seconds, again = run.play(fault)
            print(f"{fault.iteration:15}  {fault.kind:40}{seconds:13.1f} s{again:12}", flush=True)
        run.finish()
        seconds, again = time.monotonic() - begin, len(run.logged()) - iterations
        wait_for_end(sorted(run.seen), timeout_s=120)
    print(f"\n{kills} faults, {iterations} iterations in {seconds:.0f} s, {again} iterations done again;", end=" ")
    print(f"the command was called {run.calls} times; {len(run.half_saved())} checkpoints were left half written")
    begin, undisturbed = time.monotonic(), Run(file, directory / "undisturbed", iterations)
    with undisturbed:
        undisturbed.finish()
    assert undisturbed.calls == 1, "the undisturbed run was disturbed"
    print(f"undisturbed: {iterations} iterations in {time.monotonic() - begin:.0f} s")
    one, other = outcome(undisturbed.directory), outcome(run.directory)
    # Tune copies result.json to the storage every ten seconds or more: a command that is killed cannot.
    uncopied = {name for name in one if name.startswith("result: ") and name not in other}
    lost = [name for name in differences(one, other) if name not in uncopied]
    if uncopied:
        print("lost from result.json, and nowhere else:", *sorted(uncopied), sep="\n  ")
    print(
        f"{len(one)} values compared, bit for bit; lost or different: {len(lost) or 'nothing'}", *lost[:20], sep="\n  "
    )
    return 1 if lost else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--directory", type=Path, help="where the runs are kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(given.seed, given.kills, given.iterations, given.directory or Path(temporary)))
