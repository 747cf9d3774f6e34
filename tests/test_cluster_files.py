"""The files of docs/cluster.md ask for no more than they offer."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture
def needed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the example asks of the two nodes together."""
    from rllib_exit.grpo.algorithm import GRPO

    monkeypatch.syspath_prepend(str(ROOT / "tuned_examples"))
    config: Any = runpy.run_path(str(ROOT / "tuned_examples" / "bfcl_exit_cluster.py"))["config"]
    config.validate()
    return GRPO.default_resource_request(config.to_dict()).required_resources


def test_the_ray_cluster(needed: dict[str, float]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "docs" / "cluster" / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))
    offered: Counter[str] = Counter()
    for start in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        offered.update(json.loads(start.split("--resources='")[1].split("'")[0]))
        offered["GPU"] += int(start.split("--num-gpus=")[1].split()[0])
    assert offered == {name: needed[name] for name in ("learner", "rollout", "GPU")}


def test_the_ray_job(needed: dict[str, float]) -> None:
    job = yaml.safe_load((ROOT / "docs" / "cluster" / "rayjob.yaml").read_text())["spec"]
    cluster = job["rayClusterSpec"]
    offered: Counter[str] = Counter()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        # A string of JSON in quotes of its own: KubeRay makes a shell's command of it.
        offered.update(json.loads(json.loads(group["rayStartParams"]["resources"])))
        [container] = group["template"]["spec"]["containers"]
        offered["GPU"] += int(container["resources"]["limits"]["nvidia.com/gpu"])
        offered["CPU"] += int(container["resources"]["limits"]["cpu"])
    assert offered["CPU"] >= needed["CPU"]
    assert {name: offered[name] for name in ("learner", "rollout", "GPU")} == {
        name: needed[name] for name in ("learner", "rollout", "GPU")
    }
    _, script, example, _ = job["entrypoint"].split()
    assert (ROOT / script).is_file() and (ROOT / example).is_file()


def test_the_script_goes_on_where_there_is_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "rllib").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "rllib").chmod(0o755)
    results = tmp_path / "results"

    def run() -> list[str]:
        command = ["bash", str(ROOT / "docs" / "cluster" / "train.sh"), "example.py", str(results)]
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    first = ["train", "file", "example.py", "--results-dir", str(results), "--checkpoint-freq", "10"]
    assert run() == first
    (results / "trial" / "checkpoint_000001").mkdir(parents=True)
    (results / "trial" / "checkpoint_000001" / "manifest.json").touch()
    assert run() == [*first, "--resume", str(results)]
