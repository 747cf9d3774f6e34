"""Your own tools, and those of an MCP server, through three iterations of training."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.tool_use.calls import TASK_ERROR, TASK_FINISHED, Call, format_calls
from rllib_exit import MCPEnv
from rllib_exit.cli.config import load_file
from tests.envs.tool_use.test_mcp import RESET, lit_in_state
from tests.fakes import ScriptedGenerator
from tests.tiny_models import make_tiny_model
from tests.tuned_examples.examples import EXAMPLES

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MCP_OPTIONS = {
    "server": RESET,
    "reset_tool": "reset",
    "state_tool": "state",
    "check": lit_in_state,
    "data": [
        {"prompt": f"Light the {room}.", "rooms": ["cellar"], "wanted": room} for room in ("hall", "bath", "yard")
    ],
}


def resident(prompt: str, seed: int) -> str:
    """Mostly lights the room that is asked for, or another one, and then says that it is done."""
    *before, last, _ = re.split(r"<\|im_start\|>assistant\n", prompt)
    [room] = re.findall(r"<\|im_start\|>user\nLight the (\w+)\.", [*before, last][0])
    if '<tool_response>[["' in last:
        return TASK_FINISHED
    choice = seed // 7 % 4
    if choice == 3:
        return TASK_ERROR
    return f"Attempt {seed}: " + format_calls(Call("switch", {"room": f"{room}s" if choice else room, "on": True}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), max_positions=4096)


@pytest.mark.parametrize("tools", ["python", "mcp"])
def test_three_iterations(tools: str, ray_session: None, model: str) -> None:
    config, _, _ = load_file(Path(EXAMPLES) / "own_tools.py")
    if tools == "mcp":
        config.environment(MCPEnv)
        config.env_config = MCP_OPTIONS
    config.language_model(model, max_model_len=4096)
    config.generation(generator_class=partial(ScriptedGenerator, script=resident), max_response_tokens=100)
    config.warm_start(epochs=0).training(lr=1e-3, learner_threads=1)
    config.curriculum("exit", buffer_size=16, min_buffer_size=2, diversity_metric="edit_distance")
    config.env_runners(num_envs_per_env_runner=2).debugging(seed=0)
    algo: Any = config.build_algo()
    try:
        results = [algo.train() for _ in range(3)]
    finally:
        algo.stop()
    for result in results:
        assert 0 < result["rollouts"]["return_mean"] < 1 and result["learner"]["grad_norm"] > 0
        assert result["curriculum"]["zero_variance_fraction"] < 1 and result["rollouts"]["truncated_fraction"] == 0
    assert results[-1]["policy_version"] == 3
    assert np.mean([result["curriculum"]["starting_turn_mean"] for result in results]) > 0
