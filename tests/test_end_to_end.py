"""The commands as a user runs them, each in a process of its own, on a tiny random model."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rllib_exit import checkpoints
from tests.cli.test_rollouts import listed
from tests.processes import children, wait_for_end

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
RLLIB = [str(Path(sys.executable).parent / "rllib")]

CONFIG = """
from envs.competition_math.env import CompetitionMathEnv
from rllib_exit.grpo.config import GRPOConfig

config = (
    GRPOConfig()
    .environment(CompetitionMathEnv, env_config={{"tasks": "arithmetic", "levels": ["add1"]}})
    .language_model({model!r}, dtype="float32", max_model_len=512)
    .generation(max_response_tokens=8)
    .training(lr=1e-3, prompts_per_batch=4, rollouts_per_prompt=4, kl_coeff=0.001)
    .curriculum("exit", buffer_size=16, min_buffer_size=4, diversity_metric="edit_distance")
    .self_improvement(steps=1)
    .debugging(seed=1)
)
stop = {{"training_iteration": 2}}
"""

# The same with a generator whose responses are a function of prompt and seed, half of them right.
SCRIPTED = (
    CONFIG
    + """
from functools import partial

from tests.fakes import ScriptedGenerator


def script(prompt, seed):
    import re
    import time

    time.sleep(0.05)
    a, b = re.findall(r"What is (\\d+) \\+ (\\d+)", prompt)[0]
    return str(int(a) + int(b) + seed % 2)


config.generation(generator_class=partial(ScriptedGenerator, script=script))
"""
)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def rllib(*arguments: str | Path) -> str:
    command = [*RLLIB, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def results(directory: Path) -> dict[int, dict[str, Any]]:
    """The results by iteration; of an iteration run twice, the later ones."""
    files = sorted(directory.rglob("result.json"), key=lambda file: file.stat().st_mtime)
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {line["training_iteration"]: line for line in lines}


@pytest.mark.vllm
def test_train_rollouts_evaluate_and_export_with_a_real_engine(tiny_model: str, tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(CONFIG.format(model=tiny_model))
    rllib("train", "file", file, "--scale", "cpu", "--results-dir", tmp_path / "results", "--log-rollouts")
    assert list(results(tmp_path / "results")) == [1, 2]
    for result in results(tmp_path / "results").values():
        # Both run in fp32: the learner's and the engine's policy are the same one.
        assert 0 < result["learner"]["logprob_abs_diff_mean"] < 0.02
    assert list((tmp_path / "results").rglob("progress.csv"))
    assert list((tmp_path / "results").rglob("events.out.tfevents.*"))

    [rollouts] = tmp_path.glob("results/*/*/rollouts")
    assert (rollouts.parent / "progress.csv").is_file()
    assert listed(tmp_path / "results", "--iteration", "1") == [f"0000000{i}/{g}" for i in range(4) for g in range(4)]
    assert "response, depth 0" in rllib("rollouts", tmp_path / "results", "--show", "00000000/1")

    rllib("evaluate", tmp_path / "results", "--limit", "4", "--baseline", "--output", tmp_path / "evaluation")
    json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert (tmp_path / "evaluation" / "self_improvement.png").read_bytes().startswith(b"\x89PNG")

    rllib("export", tmp_path / "results", tmp_path / "exported")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "exported")("hello", return_tensors="pt")
    assert model(**tokens).logits.isfinite().all()


def test_a_killed_run_resumes_as_if_it_had_not_been(tiny_model: str, tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(SCRIPTED.format(model=tiny_model))
    train = ["train", "file", str(file), "--scale", "cpu", "--checkpoint-freq", "1"]
    rllib(*train, "--stop-iters", "5", "--results-dir", tmp_path / "whole")

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*RLLIB, *train, "--stop-iters", "50", "--results-dir", str(killed)], env=environment(), start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300
        while len(list(killed.rglob("manifest.json"))) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        below = children(process.pid, "ray")
        assert len(below) >= 4
        process.kill()
        process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    rllib(*train, "--stop-iters", "5", "--results-dir", killed, "--resume", killed)
    # Ray and its actors end with the driver; some of them notice only after a minute of looking for it.
    wait_for_end(below, timeout_s=120)

    whole, resumed = results(tmp_path / "whole"), results(killed)
    for iteration in range(3, 6):
        assert resumed[iteration]["curriculum"] == whole[iteration]["curriculum"]
        assert resumed[iteration]["rollouts"]["return_mean"] == whole[iteration]["rollouts"]["return_mean"]
        assert resumed[iteration]["policy_version"] == whole[iteration]["policy_version"] == iteration
    states = [
        pickle.loads((checkpoints.newest(directory) / "curriculum" / "state.pkl").read_bytes())
        for directory in (tmp_path / "whole", killed)
    ]
    assert repr(states[0]) == repr(states[1])
