from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from envs.base import InfrastructureError, Outcome, TaskInstance, Turn
from envs.mle_bench import env as env_module
from envs.mle_bench import grading
from envs.mle_bench.competitions import load_competition
from envs.mle_bench.env import MLEBenchEnv, MLEBenchOptions, Result
from envs.mle_bench.prompts import GOALS, START_SCRIPT
from envs.sandbox.sandbox import Limits, Run, SandboxError, SandboxUnavailableError, Status
from envs.workers import WorkerError, usable_cpus

NAME = "courier-delivery-times"
BASE = TaskInstance(NAME)


@pytest.fixture(autouse=True, scope="module")
def graders_end() -> Iterator[None]:
    yield
    grading.shared_grader.cache_clear()


def fence(script: str) -> str:
    return f"Here it is.\n```python\n{script}\n```"


@pytest.fixture
def make(deliveries: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MLEBenchEnv]:
    """Makes an env in whose sandbox every script ends with a given run."""

    def make(run: Run | Exception | None = None, **config: Any) -> MLEBenchEnv:
        def run_script(script: str, **kwargs: Any) -> Run:
            calls.append((script, kwargs))
            if not isinstance(run, Run):
                raise run or AssertionError("no script was to be run")
            return run

        monkeypatch.setattr(env_module, "run_script", run_script)
        env = MLEBenchEnv({"competitions": str(deliveries), **config})
        env.reset(options={"instance": BASE})
        return env

    calls: list[tuple[str, dict[str, Any]]] = []
    make.calls = calls  # type: ignore[attr-defined]
    return make


def ran(
    status: Status = Status.OK, files: dict[str, bytes] | None = None, output: str = "", code: int | None = 0
) -> Run:
    return Run(status=status, exit_code=code, output=output, files=files or {}, seconds=2.0, tier="bubblewrap")


def constant(deliveries: Path, minutes: float) -> dict[str, bytes]:
    table = pd.read_csv(deliveries / "prepared/public/test.csv")[["id"]].assign(minutes=minutes)
    return {"submission.csv": table.to_csv(index=False).encode()}


def respond(env: MLEBenchEnv, response: str) -> tuple[Outcome, float]:
    _, reward, terminated, truncated, info = env.step(response)
    assert terminated and not truncated
    outcome = info["outcome"]
    # Every response has one result, and they are all reported.
    assert sorted(outcome.metrics[name] for name in list(Result)) == [0.0] * (len(Result) - 1) + [1.0]
    return outcome, reward


def test_gymnasium_accepts_it(make: Callable[..., MLEBenchEnv], deliveries: Path):
    check_env(make(ran()), skip_render_check=True)


def test_a_script_is_run_on_the_public_data_and_scored(make: Callable[..., MLEBenchEnv], deliveries: Path):
    env = make(
        ran(files=constant(deliveries, 40)), timeout_s=5, memory_bytes=1 << 30, disk_bytes=1 << 20, threads=2, slots=3
    )
    outcome, reward = respond(env, fence("x = 1"))
    ((script, kwargs),) = make.calls  # type: ignore[attr-defined]
    assert script == "x = 1\n"
    assert kwargs == {
        "data": deliveries / "prepared/public",
        "files": ["submission.csv"],
        "limits": Limits(wall_s=5, memory_bytes=1 << 30, disk_bytes=1 << 20, threads=2),
        "slots": 3,
        "python": None,
        "allow_unsandboxed": False,
    }
    score = outcome.metrics["score_courier-delivery-times"]
    assert 0.4 < score < 0.8 and outcome.quality == reward == 1 - score
    assert outcome.valid and outcome.metrics["scored"] == 1.0 and outcome.metrics["script_seconds"] == 2.0
    assert outcome.feedback == f"Score: {score:g} (rmsle; lower is better, the best is 0)."
    assert not outcome.files


def test_a_submission_is_kept_if_asked_for(make: Callable[..., MLEBenchEnv], deliveries: Path):
    env = make(ran(files=constant(deliveries, 40)), keep_submission=True)
    assert respond(env, fence("x = 1"))[0].files == constant(deliveries, 40)
    # Also one that nobody graded.
    env = make(ran(Status.TIMED_OUT, files=constant(deliveries, 40)), keep_submission=True)
    assert respond(env, fence("x = 1"))[0].files == constant(deliveries, 40)
    assert not respond(make(ran(), keep_submission=True), fence("x = 1"))[0].files


SYNTAX = '  File "/work/script.py", line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax\n'
TRACE = "Traceback (most recent call last):\n  File \"/work/script.py\", line 1\nNameError: name 'y' is not defined\n"


@pytest.mark.parametrize(
    ("run", "result", "feedback"),
    [
        (ran(Status.FAILED, output=SYNTAX, code=1), Result.SYNTAX_ERROR, "not valid Python. The end of its output:"),
        (ran(Status.FAILED, output=TRACE, code=1), Result.SCRIPT_FAILED, "(exit code 1). The end of its output:"),
        # A script that raises SyntaxError itself, or prints one, is valid Python.
        (ran(Status.FAILED, output=f"{TRACE}SyntaxError: x", code=1), Result.SCRIPT_FAILED, "exit code 1"),
        (ran(Status.FAILED, output=f"{SYNTAX}Killed", code=1), Result.SCRIPT_FAILED, "exit code 1"),
        (ran(Status.FAILED, code=3), Result.SCRIPT_FAILED, "The script failed (exit code 3)."),
        (ran(Status.TIMED_OUT, output="epoch 1", code=None), Result.TIMED_OUT, "stopped after 2 seconds. The end"),
        (ran(Status.OUT_OF_MEMORY, code=None), Result.OUT_OF_MEMORY, "too much memory"),
        (ran(Status.DISK_FULL, code=None), Result.DISK_FULL, "too much to the disk"),
        (ran(Status.TOO_MANY_PROCESSES, code=None), Result.TOO_MANY_PROCESSES, "too many processes"),
        (
            ran(output="done"),
            Result.NO_SUBMISSION,
            "ended without writing submission.csv. The end of its output:\n```\ndone",
        ),
        (
            ran(files={"submission.csv": b"id\n1\n"}),
            Result.INVALID_SUBMISSION,
            "not valid: there is no column 'minutes'",
        ),
        (ran(files={"submission.csv": b""}), Result.INVALID_SUBMISSION, "not valid: No columns to parse"),
    ],
)
def test_what_may_become_of_a_script(make: Callable[..., MLEBenchEnv], run: Run, result: Result, feedback: str):
    env = make(run)
    outcome, reward = respond(env, fence("x = 1"))
    assert outcome.metrics[result] == 1.0
    assert outcome.quality == reward == 0.0 and outcome.valid
    assert outcome.feedback and feedback in outcome.feedback


def test_a_submission_of_a_failed_script_is_not_graded(make: Callable[..., MLEBenchEnv], deliveries: Path):
    env = make(ran(Status.TIMED_OUT, files=constant(deliveries, 40)))
    assert respond(env, fence("x = 1"))[0].quality == 0.0


@pytest.mark.parametrize("response", ["", "x = 1", "```python\nx = 1", "```\n\n```"])
def test_a_response_without_a_script_is_not_valid(make: Callable[..., MLEBenchEnv], response: str):
    env = make()
    outcome, reward = respond(env, response)
    assert not outcome.valid and reward == 0.0 and outcome.metrics["no_script"] == 1.0
    assert "script_seconds" not in outcome.metrics


def test_long_output_is_cut_to_its_end(make: Callable[..., MLEBenchEnv]):
    output = "".join(f"line {i}\n" for i in range(10_000))
    outcome, _ = respond(make(ran(Status.FAILED, output=output, code=1), output_chars=50), fence("x"))
    assert outcome.feedback and len(outcome.feedback) < 150 and outcome.feedback.endswith("line 9999\n```")


@pytest.mark.parametrize("error", [SandboxError("no guard"), WorkerError("no grader")])
def test_a_failure_of_ours_is_no_reward(
    make: Callable[..., MLEBenchEnv], deliveries: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object) -> None:
        raise error

    env = make(error if isinstance(error, SandboxError) else ran(files=constant(deliveries, 40)))
    if isinstance(error, WorkerError):
        monkeypatch.setattr(grading.SubmissionGrader, "grade", fails)
    with pytest.raises(InfrastructureError, match="no g"):
        env.step(fence("x = 1"))


def test_a_machine_without_a_sandbox_is_no_passing_failure(make: Callable[..., MLEBenchEnv]):
    with pytest.raises(SandboxUnavailableError, match="install"):
        make(SandboxUnavailableError("install bubblewrap")).step(fence("x = 1"))


# The prompt.


def content(env: MLEBenchEnv, *args: Any) -> str:
    (message,) = env.messages(*args)
    assert message["role"] == "user"
    return message["content"]


def test_a_base_prompt_begins_from_the_empty_script(make: Callable[..., MLEBenchEnv]):
    text = content(make())
    assert text.startswith(GOALS["base"]) and START_SCRIPT in text and "Predict how many minutes" in text
    assert "`data/sample_submission.csv`, `data/test.csv` and `data/train.csv`" in text
    assert "300 seconds" in text and "private" not in text


@pytest.mark.parametrize(
    ("kind", "feedback", "goal"),
    [
        ("improve", "Score: 0.5 (rmsle; lower is better, the best is 0).", "improve"),
        ("improve", "The script failed (exit code 1). The end of its output:\n```\nNameError\n```", "debug"),
        ("improve", None, "debug"),
        ("diverge", "Score: 0.5 (rmsle; lower is better, the best is 0).", "diverge"),
        ("diverge", "The script failed (exit code 1).", "diverge"),
    ],
)
def test_a_self_iteration_prompt_has_the_script_and_its_feedback(
    make: Callable[..., MLEBenchEnv], kind: Any, feedback: str | None, goal: str
):
    env = make()
    iterate = Turn(f"I first tried this:\n{fence('x = 0')}\nthen\n{fence('x = 1')}", feedback, 0.5)
    observation, _ = env.reset(options={"instance": TaskInstance(NAME, (), iterate, kind)})
    text = content(env)
    assert observation == text == content(env, iterate, kind)
    assert text.startswith(GOALS[goal]) and START_SCRIPT not in text and "x = 0" not in text
    below = f"```python\nx = 1\n```\n\n{feedback}\n\nRespond" if feedback else "```python\nx = 1\n```\n\nRespond"
    assert below in text


def test_an_iterate_without_a_script_leaves_the_empty_one(make: Callable[..., MLEBenchEnv]):
    env = make()
    env.reset(
        options={"instance": TaskInstance(NAME, (), Turn("I do not know.", "The response has no script."), "improve")}
    )
    text = content(env)
    assert text.startswith(GOALS["debug"]) and START_SCRIPT in text and "The response has no script." in text


# The reward.


@pytest.mark.parametrize(
    ("quality", "previous", "reward"),
    [
        (0.5, None, 0.5),
        (0.5, 0.0, 0.5),
        (0.75, 0.5, 0.5),
        (1.0, 0.5, 1.0),
        (0.25, 0.5, -0.5),
        (0.0, 0.5, -1.0),
        (0.0, 0.9, -1.0),  # clipped
        (1.0, 1.0, 0.0),
        (0.9, 1.0, -1.0),
    ],
)
def test_an_improve_step_is_paid_for_its_gain(
    make: Callable[..., MLEBenchEnv], quality: float, previous: float | None, reward: float
):
    env = make()
    kind = "base" if previous is None else "improve"
    iterate = None if previous is None else Turn(fence("x"), quality=previous)
    env.reset(options={"instance": TaskInstance(NAME, (), iterate, kind)})
    assert env.episode_return(quality) == pytest.approx(reward)


def test_a_diverge_step_is_paid_for_its_quality(make: Callable[..., MLEBenchEnv]):
    env = make()
    env.reset(options={"instance": TaskInstance(NAME, (), Turn(fence("x"), quality=0.9), "diverge")})
    assert env.episode_return(0.25) == 0.25


@given(st.floats(0, 1), st.none() | st.floats(0, 1))
def test_the_reward_is_bounded(quality: float, previous: float | None):
    reward = MLEBenchEnv.reward(None, quality, previous)  # type: ignore[arg-type]
    assert math.isfinite(reward) and -1.0 <= reward <= 1.0
    assert previous is None or (reward > 0) <= (quality > previous)


def test_the_solution_is_the_script(make: Callable[..., MLEBenchEnv]):
    env = make()
    assert env.solution(f"I think.\n{fence('x = 0')}\nBetter:\n{fence('x = 1')}") == "x = 1\n"
    assert env.solution("I do not know.") == "I do not know."


# Competitions and options.


def test_several_competitions_are_tasks(competitions: Path):
    env = MLEBenchEnv({"competitions": sorted(competitions.iterdir())})
    assert list(env.tasks) == ["courier-delivery-times", "urgent-support-messages"]
    assert env.score_ranges["urgent-support-messages"].higher_is_better


def test_a_score_range_can_be_given(make: Callable[..., MLEBenchEnv], deliveries: Path):
    env = make(ran(files=constant(deliveries, 40)), score_ranges={NAME: {"worst": 2, "best": 0}})
    outcome, _ = respond(env, fence("x"))
    assert outcome.quality == pytest.approx(1 - outcome.metrics[f"score_{NAME}"] / 2)


def test_a_range_in_which_the_right_answers_are_worth_nothing_is_an_error(
    make: Callable[..., MLEBenchEnv], deliveries: Path
):
    env = make(ran(files=constant(deliveries, 40)), score_ranges={NAME: {"worst": 0, "best": 1}})
    with pytest.raises(
        ValueError, match=r"the right answers score 0.0, which is worth nothing from worst 0.0 to best 1.0"
    ):
        env.step(fence("x"))


def test_a_competition_without_a_range_is_an_error(deliveries: Path, tmp_path: Path):
    copy = Path(shutil.copytree(deliveries, tmp_path / NAME))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    del config["score_range"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        ValueError, match=r"has no score range: set the option score_ranges=.*, or the field score_range"
    ):
        MLEBenchEnv({"competitions": copy})
    MLEBenchEnv({"competitions": copy, "score_ranges": {NAME: {"worst": 1.0, "best": 0.0}}})


def test_a_demonstration_comes_with_the_competition(make: Callable[..., MLEBenchEnv], deliveries: Path, tmp_path: Path):
    env = make()
    (response,) = env.demonstration(env.task)
    assert env_module.extract_script(response)
    copy = Path(shutil.copytree(deliveries, tmp_path / NAME))
    (copy / "demonstration.md").unlink()
    env = MLEBenchEnv({"competitions": copy})
    with pytest.raises(NotImplementedError, match=r"no demonstration: .*demonstration\.md does not exist"):
        env.demonstration(env.tasks[NAME])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"competitions": None}, "competitions is missing"),
        ({"competitions": []}, "competitions is missing"),
        ({"competition": "x"}, "no option 'competition': use competitions, score_ranges"),
        ({"timeout_s": 0}, "timeout_s is 0: it must be greater than 0"),
        ({"threads": -1}, "threads is -1"),
        ({"slots": 0}, "slots is 0"),
        ({"score_ranges": {"other": {"worst": 0, "best": 1}}}, "score_ranges names 'other', which is not among"),
        ({"score_ranges": {NAME: {"worst": 0}}}, "score_ranges.courier-delivery-times.best is missing: set it"),
    ],
)
def test_options_that_cannot_be_used(deliveries: Path, config: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        MLEBenchEnv({"competitions": deliveries, **config})


def test_the_same_competition_twice_is_an_error(deliveries: Path):
    with pytest.raises(ValueError, match="ids must be unique"):
        MLEBenchEnv({"competitions": [deliveries, deliveries]})


def test_none_counts_as_absent(deliveries: Path):
    env = MLEBenchEnv({"competitions": deliveries, **dict.fromkeys(list(MLEBenchOptions.model_fields)[1:])})
    assert env.limits == Limits() and not env.options.allow_unsandboxed
    assert env.slots == usable_cpus() and MLEBenchEnv({"competitions": deliveries, "threads": 999}).slots == 1
    assert env.competitions[NAME] == load_competition(deliveries)


def test_the_environment_variable_says_how_many_scripts_run(deliveries: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SANDBOX_SLOTS", "7")
    assert MLEBenchEnv({"competitions": deliveries}).slots == 7
    assert MLEBenchEnv({"competitions": deliveries, "slots": 2}).slots == 2
    for wrong in ("0", "many"):
        monkeypatch.setenv("SANDBOX_SLOTS", wrong)
        with pytest.raises(ValueError, match=f"SANDBOX_SLOTS is '{wrong}': set a number"):
            MLEBenchEnv({"competitions": deliveries})
