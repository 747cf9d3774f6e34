from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rllib_exit.cli.sweeps import load_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
FILE = """
from ray import tune
from tests.cli.helpers import SkillEnv, make_config

config = (
    make_config({model!r})
    .environment(SkillEnv, env_config={{"skill": tune.grid_search([0.8, 0.2, 0.9, 0.4])}})
    .training(prompts_per_batch=2, rollouts_per_prompt=2, kl_coeff=0.0, learner_threads=1)
    .curriculum("grpo")
)
stop = {{"training_iteration": 3}}
tune_config = tune.TuneConfig(metric="rollouts/quality_mean", mode="max")
"""


def start(directory: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from rllib_exit.cli.main import main; main()", "train", "file", "sweep.py"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    env["TUNE_GLOBAL_CHECKPOINT_S"] = "1"  # so often Tune writes down where it is
    return subprocess.Popen(
        [*command, "--scheduler", "asha", "--checkpoint-freq", "1", *args],
        cwd=directory,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def iterations(directory: Path, trial_id: str = "") -> list[int]:
    """What every trial, or one, has written down, by result."""
    files = sorted(file for file in directory.glob("*/result.json") if trial_id in file.parent.name)
    return [json.loads(line)["training_iteration"] for file in files for line in file.read_text().splitlines()]


@pytest.mark.timeout(900)
def test_a_sweep_stops_poor_trials_survives_a_kill_and_names_the_best(tmp_path: Path, tiny_model: str):
    (tmp_path / "sweep.py").write_text(FILE.format(model=tiny_model))
    directory = tmp_path / "results" / "sweep"
    sweep = start(tmp_path)
    try:
        # The first trial has ended, the second was stopped, the third is under way.
        deadline = time.monotonic() + 400
        while len(iterations(directory)) < 5 or not any(directory.glob("experiment_state-*.json")):
            assert sweep.poll() is None, sweep.communicate()[0]
            assert time.monotonic() < deadline, "the sweep did not come so far"
            time.sleep(0.2)
    finally:
        sweep.kill()  # a SIGKILL
        sweep.communicate()
    resumed = start(tmp_path, "--resume", "results/sweep")
    said, _ = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, said
    rows, _ = load_rows(directory)
    assert [(row.values["env_config/skill"], row.iterations, row.state) for row in rows] == [
        (0.9, 3, "ended"),
        (0.8, 3, "ended"),
        (0.4, 1, "stopped early"),
        (0.2, 1, "stopped early"),
    ]
    assert "best: env_config/skill=0.9, rollouts/quality_mean 0.9 after iteration 3" in said
    done = {row.values["env_config/skill"]: iterations(directory, row.trial_id) for row in rows}
    # What had ended before the kill was not done again; of the third trial at most what Tune had not yet written down.
    third = done.pop(0.9)
    assert done == {0.8: [1, 2, 3], 0.2: [1], 0.4: [1]}
    assert set(third) == {1, 2, 3} and len(third) <= 5
    # Each has ended, and has kept its newest checkpoint alone.
    kept = sorted(path.parent for path in directory.glob("*/checkpoint_*"))
    assert kept == sorted(path.parent for path in directory.glob("*/result.json"))
