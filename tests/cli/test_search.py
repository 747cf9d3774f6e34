from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.mle_bench.synthetic import generate
from rllib_exit.cli.runs import load_weights
from rllib_exit.grpo import config as grpo_config
from tests.cli.helpers import message, run
from tests.fakes import ScriptedGenerator

# Each script predicts more, up to what is right.
SCRIPT = """
lines = open("data/test.csv").read().split()
with open("submission.csv", "w") as file:
    file.write("id,minutes\\n" + "".join(line.split(",")[0] + ",{minutes}\\n" for line in lines[1:]))
"""
ROOM = ["--set", "max_model_len=8192", "--set", "max_response_tokens=512"]


def improving(prompt: str, seed: int) -> str:
    return f"```python\n{SCRIPT.format(minutes=12 + 6 * seed)}\n```"


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("competitions"))[1]


class Engines:
    """What all scripted engines got."""

    def __init__(self) -> None:
        self.weights: list[bytes] = []
        self.prompts: list[str] = []


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    """Every engine is scripted."""
    engines, generate = Engines(), ScriptedGenerator.generate

    async def recorded(self: ScriptedGenerator, prompt_ids: Sequence[int], *args: Any) -> Any:
        engines.prompts.append(self.chat.tokenizer.decode(prompt_ids))
        return await generate(self, prompt_ids, *args)

    async def update_weights(self: ScriptedGenerator, files: list[list[np.ndarray]]) -> float:
        [[weights]] = files
        engines.weights.append(weights.tobytes())
        return 0.0

    monkeypatch.setattr(ScriptedGenerator, "generate", recorded)
    monkeypatch.setattr(ScriptedGenerator, "update_weights", update_weights)
    monkeypatch.setattr(grpo_config, "vllm_generator", partial(ScriptedGenerator, script=improving))
    return engines


def test_search_with_a_model_reaches_the_best_and_goes_on(
    tiny_model: str, competition: Path, tmp_path: Path, engines: Engines
):
    output = tmp_path / "search"
    arguments = ["search", tiny_model, "--competition", competition, "--output", output, *ROOM]
    result = run(*arguments, "--steps", "2")
    assert result.exit_code == 0, result.output
    assert "step 2/2  scored, score" in result.output and not engines.weights
    result = run(*arguments, "--steps", "4")
    assert result.exit_code == 0, result.output
    assert "4 steps after the first response, 3 of these 5 done before" in result.output
    assert "best: step 4, score" in result.output
    assert ",36" in (output / "best_script.py").read_text()
    assert {line.split(",")[1] for line in (output / "best_submission.csv").read_text().split()[1:]} == {"36"}
    assert (output / "search.png").read_bytes().startswith(b"\x89PNG")
    steps = [json.loads(line) for line in (output / "search.jsonl").read_text().splitlines()[1:]]
    assert [step["parent"] for step in steps] == [None, 0, 1, 2, 3]
    again = run(*arguments, "--steps", "4")
    assert again.exit_code == 0 and "5 of these 5 done before" in again.output and len(engines.prompts) == 5


def test_search_with_a_checkpoint_of_another_domain(checkpoint: Path, competition: Path, engines: Engines):
    # The checkpoint's own engine answers "7", which is no script.
    arguments = ["search", checkpoint.parent.parent, "--competition", competition, "--steps", "1", *ROOM]
    result = run(*arguments, "--set", "env_config.timeout_s=7")
    assert result.exit_code == 0, result.output
    assert "no script" in result.output and "no script got a score" in result.output
    assert engines.weights == [load_weights(checkpoint).tobytes()]
    assert len(engines.prompts) == 2 and "has 7 seconds" in engines.prompts[0]
    output = checkpoint.parent / "search" / checkpoint.name / competition.name
    assert sorted(file.name for file in output.iterdir()) == ["search.jsonl", "search.png", "steps"]


def test_search_errors_are_messages(tiny_model: str, competition: Path, tmp_path: Path, engines: Engines):
    assert "prepared/public does not exist" in message(run("search", tiny_model, "--competition", tmp_path))
    at = ["--competition", competition, "--output", tmp_path / "out"]
    assert "neither a directory nor a hub id" in message(run("search", "nothing", *at))
    wrong = run("search", tiny_model, *at, "--set", "env_config.timeout=7")
    assert "no option 'timeout'" in message(wrong)
    assert run("search", tiny_model, *at, *ROOM, "--steps", "0").exit_code == 0
    other = run("search", tiny_model, *at, *ROOM, "--steps", "0", "--seed", "5")
    assert "holds a search with seed 0, not 5" in message(other)
