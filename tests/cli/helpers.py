"""What the commands' tests share: a domain, its config, a checkpoint of it, and how to run a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from typer.testing import CliRunner

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from rllib_exit import checkpoints
from rllib_exit.cli.main import app
from rllib_exit.grpo.config import GRPOConfig
from tests.fakes import ScriptedGenerator


class DigitEnv(SelfImprovementEnv):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__([Task(f"t{i}", f"Digit {i}?") for i in range(config.get("num_tasks", 4))])

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "user", "content": task.prompt}]

    def respond(self, task: Task, response: str) -> Outcome:
        return Outcome(float(response.strip() == task.id[1:]))


class OfficialDigitEnv(DigitEnv):
    """A benchmark with tools of its own."""

    def respond(self, task: Task, response: str) -> Outcome:
        outcome = super().respond(task, response)
        return replace(outcome, metrics={"official_accuracy": outcome.quality})

    def official_result(self, task: Task, responses: Sequence[str]) -> tuple[str, dict[str, Any]]:
        return "model/digits.json", {"id": task.id, "result": list(responses)}


def seven(prompt: str, seed: int) -> str:
    return "7"


def right_when_asked_to_improve(prompt: str, seed: int) -> str:
    return prompt.split("Digit ")[1][0] if prompt.count("assistant") > 1 else "7"


def run(*args: str | Path) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def message(result: Any) -> str:
    """The error, which has to be a message and not a traceback."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.stderr


def make_config(model: str, script: Any = seven) -> GRPOConfig:
    return (
        GRPOConfig()
        .environment(DigitEnv)
        .language_model(model, dtype="float32", max_model_len=512)
        .generation(max_response_tokens=8, generator_class=partial(ScriptedGenerator, script=script))
        .curriculum("exit", diversity_metric="edit_distance")
        .self_improvement(steps=2)
    )


def write_checkpoint(path: Path, config: GRPOConfig, weights: dict[str, np.ndarray]) -> Path:
    """A checkpoint with the files of RLlib's that the command line reads."""
    write_files(
        path,
        {
            "class_and_ctor_args.pkl": _dumps({"ctor_args_and_kwargs": ((config.get_state(),), {})}),
            "algorithm_state.pkl": _dumps({"training_iteration": 3}),
            "learners/policy/00000.00000.safetensors": save(weights),
        },
    )
    return path


def _dumps(value: Any) -> bytes:
    from ray import cloudpickle

    return cloudpickle.dumps(value)  # pyright: ignore[reportPrivateImportUsage]


def write_files(path: Path, files: dict[str, bytes]) -> None:
    """A checkpoint of some files."""
    place = checkpoints.Place.of(path)
    checkpoints.begin(place)
    checkpoints.finish(place, {name: place.write(name, content) for name, content in files.items()})


class SkillEnv(DigitEnv):
    """Every response has the quality that the config says: what a sweep finds out."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({})
        self.skill = config["skill"]

    def respond(self, task: Task, response: str) -> Outcome:
        return Outcome(self.skill)
