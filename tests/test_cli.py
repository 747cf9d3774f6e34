from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save
from typer.testing import CliRunner

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from rllib_exit import checkpoints, cli
from rllib_exit.cli import app, override
from rllib_exit.grpo.grpo_config import GRPOConfig
from rllib_exit.scale import SCALE_VARIABLE, current_scale, scale_and_reason
from tests.fakes import ScriptedGenerator


class DigitEnv(SelfImprovementEnv):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__([Task(f"t{i}", f"Digit {i}?") for i in range(config.get("num_tasks", 4))])

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "user", "content": task.prompt}]

    def respond(self, task: Task, response: str) -> Outcome:
        return Outcome(float(response.strip() == task.id[1:]))


def seven(prompt: str, seed: int) -> str:
    return "7"


def right_when_asked_to_improve(prompt: str, seed: int) -> str:
    return prompt.split("Digit ")[1][0] if prompt.count("assistant") > 1 else "7"


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch: pytest.MonkeyPatch):
    """The command line sets environment variables and import paths."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(SCALE_VARIABLE, raising=False)


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
    from ray import cloudpickle

    def dump(file: Path, value: Any) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cloudpickle.dumps(value))  # pyright: ignore[reportPrivateImportUsage]

    with checkpoints.atomic_checkpoint(path) as staging:
        dump(staging / "class_and_ctor_args.pkl", {"ctor_args_and_kwargs": ((config.get_state(),), {})})
        dump(staging / "algorithm_state.pkl", {"training_iteration": 3})
        module = staging / "learner_group/learner/rl_module/default_policy/module_state.pkl"
        dump(module, {"model": np.frombuffer(save(weights), np.uint8)})
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model: str) -> Path:
    weights = {name: w + 1 for name, w in load_file(f"{tiny_model}/model.safetensors").items()}
    config = make_config(tiny_model, right_when_asked_to_improve)
    return write_checkpoint(tmp_path / "run" / "trial" / "checkpoint_000000", config, weights)


@pytest.fixture
def file(tmp_path: Path, tiny_model: str) -> Path:
    path = tmp_path / "example.py"
    path.write_text(f"from tests.test_cli import make_config\nconfig = make_config({tiny_model!r})\n")
    return path


# Help.


def test_help_is_quick_and_lists_the_commands():
    heavy = "{'ray', 'torch', 'transformers', 'vllm', 'matplotlib', 'numpy'}"
    code = f"import sys, rllib_exit.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert all(command in run("--help").output for command in ("train", "evaluate", "export"))
    assert "--stop-iters" in run("train", "file", "--help").output


# Scale.


def test_scale_is_asked_for_or_found_out(monkeypatch: pytest.MonkeyPatch):
    import torch

    for gpus, scale in [(0, "cpu"), (2, "paper")]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        monkeypatch.delitem(sys.modules, "ray", raising=False)
        assert current_scale() == scale
        assert "GPU" in scale_and_reason()[1]
    for scale in ("cpu", "paper"):
        monkeypatch.setenv(SCALE_VARIABLE, scale)
        assert scale_and_reason() == (scale, "as asked")
    monkeypatch.setenv(SCALE_VARIABLE, "big")
    with pytest.raises(ValueError, match="'big'"):
        current_scale()


def test_the_clusters_gpus_count(monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    assert scale_and_reason() == ("paper", "the Ray cluster has 4 GPUs")


# --set.


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("lr=1e-4", "lr", 1e-4),
        ("prompts_per_batch=3", "prompts_per_batch", 3),
        ("kl_coeff=0", "kl_coeff", 0),
        ("overlong_filtering=true", "overlong_filtering", True),
        ("overlong_filtering=True", "overlong_filtering", True),
        ("mismatch_clip=null", "mismatch_clip", None),
        ("dtype=float32", "dtype", "float32"),
        ("model_name=org/name=x", "model_name", "org/name=x"),
        ("adam_betas=[0.9, 1e-1]", "adam_betas", [0.9, 0.1]),
        ("env_config={tasks: train}", "env_config", {"tasks": "train"}),
        ("env_config.limit=10", "env_config", {"limit": 10}),
        ("evaluation_config.env_config.limit=10", "evaluation_config", {"env_config": {"limit": 10}}),
    ],
)
def test_set_parses_literals(setting: str, name: str, value: Any):
    config = override(GRPOConfig(), [setting])
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


def test_set_leaves_the_files_config_alone():
    config = GRPOConfig().environment(env_config={"limit": 1, "tasks": "train"})
    changed = override(config, ["env_config.limit=2", "env_config.split=test"])
    assert changed.env_config == {"limit": 2, "tasks": "train", "split": "test"}
    assert config.env_config == {"limit": 1, "tasks": "train"}


def test_set_strategy_takes_its_preset_whatever_the_order():
    config = override(GRPOConfig(), ["self_iteration_prob=0.25", "strategy=improve"])
    assert (config.strategy, config.self_iteration_prob, config.diversity_bonus) == ("improve", 0.25, False)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("prompts_per_bach=3", "did you mean prompts_per_batch"),
        ("iteration_prob=1", "self_iteration_prob"),
        ("lr", "key=value"),
        ("lr.x=3", "no dict"),
        ("env_config={a: [", "no JSON or YAML literal"),
        ("strategy=exot", "use one of grpo"),
    ],
)
def test_set_explains_mistakes(setting: str, said: str):
    with pytest.raises(ValueError) as error:
        override(GRPOConfig(), [setting])
    assert said in str(error.value)


# rllib train file: what is found before Ray starts.


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--set", "prompt_per_batch=3"], "did you mean prompts_per_batch"),
        (["--set", "rollouts_per_prompt=1"], "rollouts_per_prompt is 1"),
        (["--set", "model_name=no-such-model"], "'no-such-model'"),
        (["--set", "env_config.num_tasks=0"], "no tasks"),
        (["--scale", "big"], "scale is 'big'"),
        (["--resume", "no/such/directory"], "no/such/directory"),
    ],
)
def test_train_explains_mistakes(file: Path, args: list[str], said: str):
    assert said in message(run("train", "file", file, *args))


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no `config`"),
        ("config = {'lr': 1}", "type dict"),
        ("from rllib_exit.grpo.grpo_config import GRPOConfig\nconfig, stop = GRPOConfig(), 3", "`stop` of type int"),
        ("from rllib_exit.scale import current_scale\nraise ValueError(current_scale())", "cpu"),
    ],
)
def test_train_explains_what_is_wrong_with_the_file(tmp_path: Path, content: str, said: str):
    path = tmp_path / "example.py"
    path.write_text(content)
    assert said in message(run("train", "file", path, "--scale", "cpu"))


def test_train_wants_a_file_that_exists(tmp_path: Path):
    assert "does not exist" in message(run("train", "file", tmp_path / "none.py"))


@pytest.mark.usefixtures("no_ray")
def test_a_resume_that_would_train_nothing_is_an_error(file: Path, checkpoint: Path):
    result = run("train", "file", file, "--resume", checkpoint.parent.parent, "--stop-iters", "3")
    assert "raise --stop-iters" in message(result)


def test_files_import_their_neighbours(tmp_path: Path, tiny_model: str):
    (tmp_path / "cli_neighbour.py").write_text("STOP = {'training_iteration': 2}")
    path = tmp_path / "example.py"
    path.write_text(
        "from cli_neighbour import STOP as stop\nfrom tests.test_cli import make_config\n"
        f"config = make_config({tiny_model!r})\n"
    )
    config, stop = cli.load_file(path)
    assert stop == {"training_iteration": 2}
    assert config.model_name == tiny_model


def test_stop_reaches_into_results():
    result = {"training_iteration": 4, "rollouts": {"return_mean": 0.5}}
    assert cli._reached({"training_iteration": 4}, result)
    assert cli._reached({"training_iteration": 9, "rollouts/return_mean": 0.4}, result)
    assert not cli._reached({"rollouts/return_mean": 0.6}, result)
    with pytest.raises(ValueError, match="rollouts/reward"):
        cli._reached({"rollouts/reward": 0.6}, result)


def test_messages_of_errors_in_workers():
    from ray.exceptions import RayTaskError

    from rllib_exit.grpo.grpo import RolloutError

    inner = RolloutError("an episode failed\n\nTraceback ...")
    wrapped = RayTaskError("train", "Traceback ...", inner).as_instanceof_cause()
    assert cli._message(wrapped) == "RolloutError: an episode failed"
    assert cli._message(ValueError("lr is -1")) == "lr is -1"


# rllib evaluate.


def test_evaluate_compares_with_the_baseline(checkpoint: Path):
    result = run("evaluate", checkpoint.parent.parent, "--baseline", "--steps", "1", "--limit", "3", "--seeds", "2")
    assert result.exit_code == 0, result.output
    output = checkpoint.parent / "evaluation" / checkpoint.name
    assert (output / "self_improvement.png").is_file()
    data = json.loads((output / "evaluation.json").read_text())
    assert data["iteration"] == 3
    assert list(data["results"]) == ["baseline", "trained"]
    trained = data["results"]["trained"]
    assert trained["accuracy"] == [0, 1]
    assert trained["net_corrections"] == [0, 3]
    assert trained["accuracy_standard_error"] == [0, 0]
    assert trained["qualities_by_seed"] == [{"t0": [0, 1], "t1": [0, 1], "t2": [0, 1]}] * 2
    assert "100.0" in result.output and "+3" in result.output


def test_evaluate_uses_the_evaluation_config(tmp_path: Path, tiny_model: str):
    config = make_config(tiny_model).evaluation(evaluation_config={"env_config": {"num_tasks": 9}, "temperature": 0.0})
    weights = load_file(f"{tiny_model}/model.safetensors")
    path = write_checkpoint(tmp_path / "checkpoint", config, weights)
    result = run("evaluate", path, "--output", tmp_path / "report")
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert len(data["results"]["trained"]["qualities_by_seed"][0]) == 9
    assert data["config"]["temperature"] == 0.0


def test_evaluate_loads_the_trained_weights_in_the_engines_dtype(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    updates = []

    async def update_weights(self: Any, weights: np.ndarray) -> None:
        updates.append(weights)

    monkeypatch.setattr(ScriptedGenerator, "update_weights", update_weights)
    assert run("evaluate", checkpoint).exit_code == 0
    (update,) = updates
    assert update.dtype == np.uint8
    assert update.tobytes() == cli.load_weights(checkpoint).tobytes()
    half = cli._cast(update, "bfloat16")
    assert 0.4 < len(half) / len(update) < 0.6


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_checkpoint_is_needed(command: str, tmp_path: Path, tiny_model: str):
    rest = [tmp_path / "model"] if command == "export" else []
    (tmp_path / "empty").mkdir()
    assert "no whole checkpoint" in message(run(command, tmp_path / "empty", *rest))
    assert "a model alone" in message(run(command, "org/name", *rest))
    assert "a model alone" in message(run(command, tiny_model, *rest))


def test_another_programs_checkpoint_is_refused(tmp_path: Path):
    with checkpoints.atomic_checkpoint(tmp_path / "other") as staging:
        (staging / "file").write_text("x")
    assert "no checkpoint of a training run" in message(run("evaluate", tmp_path / "other"))


# rllib export.


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_export_loads_with_transformers(checkpoint: Path, tmp_path: Path, tiny_model: str, dtype: str):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path / "model"
    result = run("export", checkpoint, directory, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == getattr(torch, dtype)
    before = load_file(f"{tiny_model}/model.safetensors")["model.norm.weight"]
    np.testing.assert_allclose(model.model.norm.weight.detach().float().numpy(), before + 1)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert [path.name for path in tmp_path.glob(".model*")] == []


def test_export_refuses_a_directory_with_files(checkpoint: Path, tmp_path: Path):
    (tmp_path / "model").mkdir()
    assert run("export", checkpoint, tmp_path / "model").exit_code == 0  # empty
    assert "not empty" in message(run("export", checkpoint, tmp_path / "model"))


def test_export_refuses_weights_of_another_model(tmp_path: Path, tiny_model: str):
    path = write_checkpoint(tmp_path / "checkpoint", make_config(tiny_model), {"odd": np.zeros(2, np.float32)})
    assert "another model" in message(run("export", path, tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_export_wants_a_known_dtype(checkpoint: Path, tmp_path: Path):
    assert "'int8'" in message(run("export", checkpoint, tmp_path / "model", "--dtype", "int8"))
