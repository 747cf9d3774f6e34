from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "envs.bfcl.env",
        "envs.competition_math.env",
        "envs.countdown.env",
        "envs.mle_bench.env",
        "envs.reasoning_gym.env",
        "envs.sandbox.sandbox",
        "rllib_exit.curriculum.exit",
        "rllib_exit.env_runners.player",
        "rllib_exit.exit_loop",
        "rllib_exit.objective.advantages",
        "rllib_exit.rollouts",
        "rllib_exit.settings",
        "rllib_exit.self_improvement.chain",
        "rllib_exit.self_improvement.curves",
        "rllib_exit.self_improvement.greedy_search",
        "rllib_exit.self_improvement.results",
    ],
)
def test_pure_modules_load_neither_ray_nor_torch_nor_vllm(module: str) -> None:
    script = f"import sys, {module}\nprint(*{{'ray', 'torch', 'vllm', 'transformers'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_learners_do_not_load_the_algorithm_or_its_config() -> None:
    script = "import sys, rllib_exit.learner.torch_learner\nprint('rllib_exit.grpo' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
