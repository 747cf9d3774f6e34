from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.base import Task
from rllib_exit.chat import ChatTokenizer
from rllib_exit.grpo.config import GRPOConfig
from tests.cli.helpers import DigitEnv, make_config, message, run


class DemonstratedDigitEnv(DigitEnv):
    """Task 3 has no demonstration."""

    def demonstration(self, task: Task) -> Sequence[str]:
        return [task.id[1:]] if task.id != "t3" else super().demonstration(task)


def make_demonstrated_config(model: str) -> GRPOConfig:
    return make_config(model).environment(DemonstratedDigitEnv)


@pytest.fixture
def demonstrated(tmp_path: Path, tiny_model: str) -> Path:
    path = tmp_path / "example.py"
    path.write_text(
        f"from tests.cli.test_sft import make_demonstrated_config\nconfig = make_demonstrated_config({tiny_model!r})\n"
    )
    return path


def test_sft_writes_a_model_that_gives_the_demonstrated_answers(demonstrated: Path, tmp_path: Path, tiny_model: str):
    output = tmp_path / "model"
    args = ["--output", output, "--epochs", "30", "--lr", "3e-3", "--batch-size", "2", "--threads", "1"]
    result = run("sft", demonstrated, *args)
    assert result.exit_code == 0, result.output
    assert "3 demonstrations, 6 tokens to learn, mean quality 1.000" in result.output
    assert "t3: NotImplementedError: DemonstratedDigitEnv has no demonstrations" in result.output
    assert "epoch 30/30  update 60/60  loss" in result.output
    assert f"rllib train file {demonstrated} --set model_name={output}" in result.output

    model: Any = AutoModelForCausalLM.from_pretrained(output)
    assert model.dtype == torch.float32 and model.config.use_cache
    chat = ChatTokenizer(str(output))
    for digit in "012":
        ids = torch.tensor([chat.encode([{"role": "user", "content": f"Digit {digit}?"}])])
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        assert chat.decode(answer[0, ids.shape[1] :].tolist()) == digit
        assert int(answer[0, -1]) in chat.eos_token_ids

    record = json.loads((output / "sft.json").read_text())
    assert record["model"] == tiny_model and record["demonstrations"] == 3 and list(record["skipped"]) == ["t3"]
    assert record["options"] == {"epochs": 30, "lr": 3e-3, "batch_size": 2, "seed": 0, "limit": None}
    assert len(record["loss_by_epoch"]) == 30
    assert record["loss_by_epoch"][-1] < 0.1 < record["loss_by_epoch"][0]
    assert record["versions"]["torch"] == torch.__version__
    assert [path.name for path in tmp_path.glob(".model*")] == []

    assert "not empty" in message(run("sft", demonstrated, "--output", output))


def test_sft_takes_limit_and_settings(demonstrated: Path, tmp_path: Path):
    output = tmp_path / "model"
    args = ["--limit", "3", "--epochs", "1", "--threads", "1"]
    result = run(
        "sft", demonstrated, "--output", output, *args, "--set", "env_config.num_tasks=2", "--set", "dtype=bfloat16"
    )
    assert result.exit_code == 0, result.output
    assert "2 demonstrations" in result.output and "skipped" not in result.output
    assert AutoModelForCausalLM.from_pretrained(output).dtype == torch.bfloat16


def test_sft_shows_some_of_many_skipped_demonstrations(demonstrated: Path, tmp_path: Path):
    settings = ["--set", "env_config.num_tasks=20", "--set", "max_response_tokens=2"]
    result = run("sft", demonstrated, "--output", tmp_path / "model", "--epochs", "1", "--threads", "1", *settings)
    assert result.exit_code == 0, result.output
    assert "11 demonstrations skipped:" in result.output
    assert "t10: response 1 has 3 tokens" in result.output
    assert "and 1 more; sft.json names them all" in result.output


def test_sft_needs_demonstrations(file: Path, tmp_path: Path):
    said = message(run("sft", file, "--output", tmp_path / "model"))
    assert "none of 4 demonstrations can be used" in said and "implement demonstration(task)" in said
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--lr", "0"], "lr is 0.0"),
        (["--set", "dtipe=float32"], "did you mean dtype"),
        (["--set", "model_name=no-such-model"], "'no-such-model'"),
        (["--scale", "big"], "scale is 'big'"),
    ],
)
def test_sft_explains_mistakes(demonstrated: Path, tmp_path: Path, args: list[str], said: str):
    assert said in message(run("sft", demonstrated, "--output", tmp_path / "model", *args))
    assert not (tmp_path / "model").exists()
