from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "envs.bfcl.env",
        "envs.competition_math.env",
        "envs.mle_bench.env",
        "envs.sandbox.sandbox",
        "rllib_exit.curriculum.exit",
        "rllib_exit.objective.advantages",
        "rllib_exit.rollouts",
    ],
)
def test_pure_modules_load_neither_ray_nor_torch_nor_vllm(module: str) -> None:
    script = f"import sys, {module}\nprint(*{{'ray', 'torch', 'vllm', 'transformers'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
