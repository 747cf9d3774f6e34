"""The files of docs/cluster.md ask for no more than they offer."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "docs" / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USER = 1000  # of the image


def needs(example: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What an example asks of all nodes together."""
    from rllib_exit.grpo.algorithm import GRPO

    monkeypatch.syspath_prepend(str(ROOT / "tuned_examples"))
    config: Any = runpy.run_path(str(ROOT / "tuned_examples" / f"{example}.py"))["config"]
    config.validate()
    return GRPO.default_resource_request(config.to_dict()).required_resources


@pytest.fixture
def needed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the example asks of the two nodes together."""
    return needs("bfcl_exit_cluster", monkeypatch)


def test_the_ray_cluster(needed: dict[str, float]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))
    offered: Counter[str] = Counter()
    for start in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        offered.update(json.loads(start.split("--resources='")[1].split("'")[0]))
        offered["GPU"] += int(start.split("--num-gpus=")[1].split()[0])
    assert offered == {name: needed[name] for name in ("learner", "rollout", "GPU")}


def test_the_ray_job(needed: dict[str, float]) -> None:
    resource = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", "RayJob") and resource["metadata"]["name"]
    job = resource["spec"]
    cluster = job["rayClusterSpec"]
    assert f"ray[rllib,default]=={cluster['rayVersion']}" in PROJECT["dependencies"]
    offered: Counter[str] = Counter()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        # A string of JSON in quotes of its own: KubeRay makes a shell's command of it.
        offered.update(json.loads(json.loads(group["rayStartParams"]["resources"])))
        # KubeRay's schema has all values of rayStartParams as strings.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == USER
        [container] = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]} and "/dev/shm" in mounts.values()
        assert container["resources"]["limits"] == container["resources"]["requests"]
        offered["GPU"] += int(container["resources"]["limits"]["nvidia.com/gpu"])
        offered["CPU"] += int(container["resources"]["limits"]["cpu"])
    assert offered["CPU"] >= needed["CPU"]
    assert {name: offered[name] for name in ("learner", "rollout", "GPU")} == {
        name: needed[name] for name in ("learner", "rollout", "GPU")
    }
    _, script, example, results = job["entrypoint"].split()
    assert (ROOT / script).is_file() and (ROOT / example).is_file() and results in mounts.values()


def test_the_script_goes_on_where_there_is_a_checkpoint(tmp_path: Path) -> None:
    fake(tmp_path, "rllib", 'echo "$@"')
    results = tmp_path / "results"

    def run() -> list[str]:
        command = ["bash", str(CLUSTER / "train.sh"), "example.py", str(results)]
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    first = ["train", "file", "example.py", "--results-dir", str(results), "--checkpoint-freq", "10"]
    assert run() == first
    (results / "trial" / "checkpoint_000001").mkdir(parents=True)
    (results / "trial" / "checkpoint_000001" / "manifest.json").touch()
    assert run() == [*first, "--resume", str(results)]


def test_the_image_is_of_one_cuda_version_and_has_no_root() -> None:
    text = re.sub(r"\\\n\s*", "", (CLUSTER / "Dockerfile").read_text())
    steps = [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line and not line.startswith("#")]
    assert {name for name, _ in steps} <= {"FROM", "RUN", "USER", "WORKDIR", "ENV", "COPY"}
    [base] = [value for name, value in steps if name == "FROM"]
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-cudnn-devel-ubuntu\d+\.\d+", base)
    assert [value for name, value in steps if name == "USER"] == [str(USER)]  # from there on, to the end
    for name, value in steps:
        if name == "COPY":
            owner, *sources, _ = value.split()
            assert owner == f"--chown={USER}" and all((ROOT / source).exists() for source in sources)


def test_the_image_has_the_versions_that_are_tested(tmp_path: Path) -> None:
    [install] = re.findall(
        r"^RUN python3 -m venv.*?[^\\]$", (CLUSTER / "Dockerfile").read_text(), re.DOTALL | re.MULTILINE
    )
    [extras] = re.findall(r"'\.\[(.+)\]'", install)
    assert "gpu" in extras.split(",") and set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    (tmp_path / "bin").mkdir()
    for name in ("python3", "pip"):
        fake(tmp_path / "bin", name, f'echo {name} "$@"')
    run = install.removeprefix("RUN ").replace("/tmp/", f"{tmp_path}/")
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", run], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    _, project, alone = done.stdout.splitlines()
    assert project.endswith(f"-e .[{extras}]") and re.search(r"--no-deps bfcl-eval==[\d.]+$", alone)
    versions = (tmp_path / "versions.txt").read_text().splitlines()
    assert (
        "ray==2.60.0" in versions
        and len(versions) > 200
        and not [v for v in versions if v.startswith(("vllm", "triton"))]
    )


@pytest.mark.parametrize(("nodes", "example"), [(1, "bfcl_exit_8x80gb"), (2, "bfcl_exit_cluster")])
def test_the_slurm_script(nodes: int, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", (CLUSTER / "slurm.sh").read_text(), re.MULTILINE))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "cluster").symlink_to(CLUSTER)
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name in ("ray", "srun", "python", "rllib"):
        fake(commands, name, f'echo {name} "$@" >> {tmp_path}/{name}')
    environment = {
        **{"PATH": os.environ["PATH"], "SLURMD_NODENAME": "node1", "SLURM_NNODES": str(nodes)},
        **{"SLURM_GPUS_ON_NODE": asked["gpus-per-node"], "SLURM_CPUS_PER_TASK": asked["cpus-per-task"]},
    }
    subprocess.run(
        ["bash", str(CLUSTER / "slurm.sh"), f"tuned_examples/{example}.py", "results"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,  # ends with the srun in the background
    )
    starts = [(tmp_path / "ray").read_text()]
    assert starts[0].startswith("ray start --head --port=6379 ")
    if nodes > 1:
        [worker] = (tmp_path / "srun").read_text().splitlines()
        assert worker.startswith("srun --nodes=1 --ntasks=1 --cpus-per-task=96 --exclude=node1 ray start ")
        assert "--address=node1:6379 --block" in worker
        starts.append(worker)
    assert f"< {nodes}:" in (tmp_path / "python").read_text()
    train = f"rllib train file tuned_examples/{example}.py --results-dir results --checkpoint-freq 10\n"
    assert (tmp_path / "rllib").read_text() == train
    offered: Counter[str] = Counter()
    for start in starts:
        offered.update(json.loads(start.split("--resources=")[1]))
        offered["GPU"] += int(start.split("--num-gpus=")[1].split()[0])
        offered["CPU"] += int(start.split("--num-cpus=")[1].split()[0])
    wanted = needs(example, monkeypatch)
    assert wanted["GPU"] == offered["GPU"] and all(offered[name] >= amount for name, amount in wanted.items())


def fake(folder: Path, name: str, line: str) -> None:
    """A command that does nothing but this line."""
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)
