from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from rllib_exit.checkpoints import Place
from rllib_exit.cli import training
from rllib_exit.cli.console import CommandError
from rllib_exit.cli.training import reached, unknown_metrics
from tests.cli.helpers import make_config, message, run, write_checkpoint


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
        ("from rllib_exit.grpo.config import GRPOConfig\nconfig, stop = GRPOConfig(), 3", "`stop` of type int"),
        ("from rllib_exit.scale import current_scale\nraise ValueError(current_scale())", "cpu"),
    ],
)
def test_train_explains_what_is_wrong_with_the_file(tmp_path: Path, content: str, said: str):
    path = tmp_path / "example.py"
    path.write_text(content)
    assert said in message(run("train", "file", path, "--scale", "cpu"))


def test_train_wants_a_file_that_exists(tmp_path: Path):
    assert "does not exist" in message(run("train", "file", tmp_path / "none.py"))


def test_a_missing_word_is_suggested():
    for arguments, command in {
        ("x.py", "--stop-iters", "3"): "rllib train file x.py --stop-iters 3",
        ("x.jsonl",): "rllib train --dataset x.jsonl",
    }.items():
        result = run("train", *arguments)
        assert result.exit_code == 2 and command in " ".join(result.stderr.replace("│", " ").split())
    assert "No such command 'fiel'" in run("train", "fiel").stderr
    assert "--dataset" in run("train").output


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--dataset", "gone.jsonl"], "gone.jsonl does not exist"),
        (["--dataset", "DATA"], "--reward is missing"),
        (["--dataset", "DATA", "--reward", "math"], "--model is missing"),
        (["--dataset", "DATA", "--reward", "mth", "--model", "MODEL"], "reward is 'mth': use math, exact_match"),
        (["--dataset", "DATA", "--reward", "math", "--model", "MODEL"], "prompt is 'prompt': no such column in row 1"),
        (["--dataset", "DATA", "--reward", "math", "--model", "gone", "--prompt", "q", "--answer", "a"], "'gone'"),
        (["--dataset", "DATA", "--reward", "math", "--model", "MODEL", "--strategy", "ppo"], "strategy is 'ppo'"),
    ],
)
def test_training_on_a_data_set_explains_mistakes(tmp_path: Path, tiny_model: str, args: list[str], said: str):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"q": "What is {i} + 1?", "a": {i + 1}}}\n' for i in range(50)))
    words = {"DATA": str(tmp_path / "rows.jsonl"), "MODEL": tiny_model}
    assert said in message(run("train", *(words.get(arg, arg) for arg in args)))


@pytest.mark.usefixtures("no_ray")
def test_a_resume_that_would_train_nothing_is_an_error(file: Path, checkpoint: Path):
    result = run("train", "file", file, "--resume", checkpoint.parent.parent, "--stop-iters", "3")
    assert "raise --stop-iters" in message(result)


def test_stop_reaches_into_results():
    result = {"training_iteration": 4, "rollouts": {"return_mean": 0.5}}
    assert reached({"training_iteration": 4}, result)
    assert reached({"training_iteration": 9, "rollouts/return_mean": 0.4}, result)
    assert not reached({"rollouts/return_mean": 0.6, "rollouts/reward": 0}, result)


def test_a_metric_that_no_result_has_is_told_with_the_nearest():
    result = {"training_iteration": 4, "rollouts": {"return_mean": 0.5, "quality_mean": 0.5}}
    assert unknown_metrics({"training_iteration": 4, "rollouts/return_mean": 1}, result) == []
    [said] = unknown_metrics({"rollouts/reward_mean": 0.6}, result)
    assert "'rollouts/reward_mean', which no result has; the nearest are rollouts/return_mean" in said
    stop = {"evaluation/accuracy/step_9": 0.5}
    assert unknown_metrics(stop, result) == []  # the first evaluation may come later
    assert len(unknown_metrics(stop, {**result, "evaluation": {"accuracy": {"step_0": 0.1}}})) == 1


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("stop", "said"),
    [
        ({"training_iteration": "1"}, "stop has '1' for 'training_iteration': use a number"),
        ({"evaluation/accuracy/step_0": 0.5}, "'evaluation/accuracy/step_0', but evaluation_interval is None"),
    ],
)
def test_a_stop_that_cannot_be_is_refused(file: Path, stop: dict[str, object], said: str):
    file.write_text(f"{file.read_text()}\nstop = {stop!r}\n")
    assert said in message(run("train", "file", file, "--scale", "cpu"))


def test_trials_end_after_their_first_result_where_stop_has_an_unknown_metric(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
):
    results = [{"training_iteration": n, "rollouts": {"return_mean": 0.5}} for n in (1, 2, 3)]
    seen = []

    def tune_run(algorithm: Any, *, stop: Any, **options: Any) -> Any:
        for result in results:
            seen.append(result["training_iteration"])
            if stop("trial", result):
                break
        storage = SimpleNamespace(storage_filesystem=LocalFileSystem())
        return SimpleNamespace(trials=[SimpleNamespace(path=str(tmp_path), storage=storage)])

    monkeypatch.setattr(training.tune, "run", tune_run)
    checkpoint = write_checkpoint(tmp_path / "checkpoint_000000", make_config(tiny_model), {})
    asked = training.Training(make_config(tiny_model), {"training_iteration": 2}, tmp_path / "run", 1, False)
    training.run_trials(asked)
    assert seen == [1, 2]
    seen.clear()
    with pytest.raises(CommandError, match=r"'rollouts/reward', which no result has; the nearest are") as error:
        training.run_trials(replace(asked, stop={"rollouts/reward": 1}))
    assert seen == [1] and f"saved: {checkpoint}" in str(error.value)


def test_a_run_that_fails_before_its_first_checkpoint_names_the_one_that_it_began_from(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
):
    config = make_config(tiny_model)
    checkpoint = write_checkpoint(tmp_path / "old" / "checkpoint_000000", config, {})
    storage = SimpleNamespace(storage_filesystem=LocalFileSystem())
    failed = SimpleNamespace(
        path=str(tmp_path), storage=storage, status="ERROR", get_pickled_error=lambda: RuntimeError("the disk is full")
    )
    monkeypatch.setattr(training, "_newest", lambda trial: None)
    monkeypatch.setattr(training, "check", lambda config: None)
    monkeypatch.setattr(training, "reserve", lambda training: None)
    monkeypatch.setattr(training, "run_trials", lambda *arguments, **options: [failed])
    asked = training.Training(config, {"training_iteration": 1000}, tmp_path / "new", 1, False)
    with pytest.raises(CommandError, match="the disk is full") as error:
        training.train_run(asked, str(tmp_path / "old"))
    assert f"--resume {checkpoint}" in str(error.value)


def test_three_commands_say_how_to_go_on(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = make_config(tiny_model), tmp_path / "gone"
    asked = training.Training(config, {}, tmp_path / "my run", 1, False)
    commands = training.next_commands(asked, Place.of(checkpoint))
    assert commands == [
        f"rllib evaluate {checkpoint} --baseline",
        f"rllib report '{tmp_path}/my run' --output report",
        f"rllib export {checkpoint} my-model",
    ]
    for command in (commands[0], commands[2]):
        assert "gone is no checkpoint of a run" in message(run(*shlex.split(command)[1:]))
    config.reporting(log_rollouts=True)
    config.splits = {"test": {"num_tasks": 2}}
    evaluate, look, _ = training.next_commands(asked, Place.of(checkpoint))
    assert evaluate.endswith("--baseline --split test") and look == f"rllib rollouts '{tmp_path}/my run'"


PPO = """
from ray.rllib.algorithms.ppo import PPOConfig

config = (
    PPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=0)
    .training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1, gamma=0.9)
)
stop = {"env_runners/episode_return_mean": 1000, "training_iteration": 2}
"""


@pytest.mark.ray
@pytest.mark.slow
def test_another_algorithm_of_rllibs_is_trained_as_in_rllib(tmp_path: Path):
    file = tmp_path / "ppo.py"
    file.write_text(PPO)
    command = [sys.executable, "-c", "from rllib_exit.cli.main import main; main()", "train", "file", str(file)]
    options = ["--scale", "cpu", "--results-dir", str(tmp_path / "results"), "--set", "lr=0.001"]
    result = subprocess.run([*command, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "iteration 2/2" in result.stdout and "return" in result.stdout
    checkpoint = Path(result.stdout.rpartition("checkpoint: ")[2].strip())
    assert (checkpoint / "rllib_checkpoint.json").is_file()


@pytest.mark.usefixtures("no_ray")
def test_another_algorithms_sweeps_are_not_ours(tmp_path: Path):
    file = tmp_path / "ppo.py"
    file.write_text(PPO)
    assert "are for a GRPOConfig" in message(run("train", "file", file, "--scale", "cpu", "--scheduler", "asha"))
    assert "no field 'gama'; did you mean gamma" in message(run("train", "file", file, "--set", "gama=1"))
    assert "type PPOConfig" in message(run("sft", file, "--scale", "cpu", "--output", tmp_path / "out"))
