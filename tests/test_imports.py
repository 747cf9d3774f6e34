from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rllib_exit
from envs.base import Task
from rllib_exit.grpo.config import GRPOConfig

ROOT = Path(__file__).parent.parent
PURE = [
    "rllib_exit",
    "envs.bfcl.env",
    "envs.bridges.gymnasium_env",
    "envs.bridges.openenv_env",
    "envs.bridges.verifiers_env",
    "envs.competition_math.env",
    "envs.countdown.env",
    "envs.mle_bench.env",
    "envs.reasoning_gym.env",
    "envs.sandbox.sandbox",
    "envs.tool_use.mcp",
    "envs.tool_use.own",
    "rllib_exit.curriculum.exit",
    "rllib_exit.env_runners.player",
    "rllib_exit.exit_loop",
    "rllib_exit.objective.advantages",
    "rllib_exit.rollout_log",
    "rllib_exit.rollouts",
    "rllib_exit.settings",
    "rllib_exit.settings_group",
    "rllib_exit.self_improvement.chain",
    "rllib_exit.self_improvement.curves",
    "rllib_exit.self_improvement.greedy_search",
    "rllib_exit.self_improvement.results",
    "rllib_exit.view.server",
]
SCRIPT = """
import importlib, json, sys
loaded, by_module = set(), {}
for module in sys.argv[1:]:
    importlib.import_module(module)
    by_module[module] = sorted({"ray", "torch", "vllm", "transformers"} & set(sys.modules) - loaded)
    loaded.update(by_module[module])
print(json.dumps(by_module))
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """What the pure modules load, one after the other in one process: each what none before it has loaded."""
    result = subprocess.run([sys.executable, "-c", SCRIPT, *PURE], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_load_neither_ray_nor_torch_nor_vllm(loaded: dict[str, list[str]], module: str) -> None:
    assert loaded[module] == []


def test_the_package_has_the_names_that_a_training_file_needs() -> None:
    assert rllib_exit.GRPOConfig is GRPOConfig and rllib_exit.Task is Task
    for name in rllib_exit.__all__:
        assert getattr(rllib_exit, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'GRPOconfig'; it has GRPO, GRPOConfig"):
        rllib_exit.GRPOconfig  # noqa: B018


@pytest.mark.parametrize("own", ["envs/__init__.py", "envs/base.py", "envs.py"])
def test_a_folder_that_hides_our_envs_is_named(own: str, tmp_path: Path) -> None:
    file = tmp_path / own
    file.parent.mkdir(exist_ok=True)
    file.touch()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-P", "-c", "import rllib_exit"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    if own == "envs/base.py":  # without __init__.py it is no package, and ours is found
        assert result.returncode == 0, result.stderr
    else:
        said = f"ImportError: {tmp_path / own.split('/')[0]} hides the package `envs` of rllib-exit: rename it"
        assert said in result.stderr


def test_learners_do_not_load_the_algorithm_or_its_config() -> None:
    script = "import sys, rllib_exit.learner.torch_learner\nprint('rllib_exit.grpo' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
