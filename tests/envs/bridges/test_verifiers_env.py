"""Needs the package verifiers, which `make bridges` installs in an environment of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from envs.base import InfrastructureError, TaskInstance
from envs.bridges.verifiers_env import VerifiersEnv

vf = pytest.importorskip("verifiers.v1", reason="make bridges runs it")


class Sum(vf.TaskData):
    answer: str


class SumTask(vf.Task[Sum]):
    @vf.reward
    async def right(self, task: Sum, trace: Any) -> float:
        return float(trace.last_reply == task.answer)

    @vf.reward(weight=0.5)
    async def short(self, trace: Any) -> float:
        return float(len(trace.last_reply) < 5)

    @vf.metric
    async def messages(self, trace: Any) -> float:
        return float(len(trace.messages))


class Sums(vf.Taskset[SumTask, vf.TasksetConfig]):
    task_class: type[Any] = SumTask
    fields: dict[str, Any] = {}

    def load(self) -> Iterable[SumTask]:
        for n in range(3):
            yield self.task_class(
                Sum(**{"prompt": f"{n}+1=", "answer": str(n + 1), "system_prompt": "Add."} | self.fields)
            )


def env_of(task_class: type[Any] = SumTask, fields: dict[str, Any] | None = None, **options: Any) -> VerifiersEnv:
    taskset = Sums(vf.TasksetConfig())
    taskset.task_class, taskset.fields = task_class, fields or {}
    return VerifiersEnv({"taskset": taskset, "reward_range": (0, 1.5), **options})


def test_gymnasium_accepts_it() -> None:
    check_env(env_of(), skip_render_check=True)


def test_rows_are_tasks_and_rewards_are_the_quality() -> None:
    env = env_of(limit=2)
    assert len(env.tasks) == 2
    for n, id_ in enumerate(env.tasks):
        env.reset(options={"instance": TaskInstance(id_)})
        assert env.messages() == [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{n}+1="}]
        assert env.gold(env.task) == str(n + 1)
        _, reward, terminated, _, info = env.step(str(n + 1))
        assert (reward, terminated) == (1.0, True)
        assert info["outcome"].metrics == {"right": 1.0, "short": 1.0, "messages": 3.0}
    env.reset()
    assert env.step("99")[1] == pytest.approx(1 / 3)
    env.reset()
    assert env.step("far too long")[1] == 0.0


def test_a_prompt_of_several_messages() -> None:
    chat = [
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "+1="},
    ]
    env = env_of(fields={"prompt": chat}, limit=1)
    env.reset()
    assert env.messages() == [{"role": "system", "content": "Add."}, *chat]
    assert env.step("x")[4]["outcome"].metrics["messages"] == 5.0


def test_an_installed_taskset_is_found_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo_v1.py").write_text(
        "import verifiers.v1 as vf\n"
        "__all__ = ['Echo']\n"
        "class Config(vf.TasksetConfig):\n"
        "    words: list[str] = ['a']\n"
        "class EchoTask(vf.Task):\n"
        "    @vf.reward\n"
        "    async def same(self, task, trace) -> float:\n"
        "        return float(trace.last_reply == task.prompt)\n"
        "class Echo(vf.Taskset[EchoTask, Config]):\n"
        "    def load(self):\n"
        "        for word in self.config.words:\n"
        "            yield EchoTask(vf.TaskData(prompt=word))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = VerifiersEnv({"taskset": "echo-v1", "taskset_config": {"words": ["x", "y"]}})
    assert [task.prompt for task in env.tasks.values()] == ["x", "y"]
    observation, _ = env.reset()
    assert env.step(observation)[1] == 1.0
    with pytest.raises(ModuleNotFoundError, match="'no-such' not found"):
        VerifiersEnv({"taskset": "no-such"})


class Failing(SumTask):
    @vf.reward
    async def right(self) -> float:
        raise RuntimeError("the grader is ill")


class Waiting(SumTask):
    @vf.reward
    async def right(self) -> float:
        await asyncio.Event().wait()
        return 1.0


@pytest.mark.parametrize(("task_class", "message"), [(Failing, "the grader is ill"), (Waiting, "TimeoutError")])
def test_rewards_that_fail_or_hang_are_no_fault_of_the_response(task_class: type[Any], message: str) -> None:
    env = env_of(task_class, scoring_timeout_s=0.2)
    env.reset()
    with pytest.raises(InfrastructureError, match=message):
        env.step("1")


class Prepared(SumTask):
    async def setup(self, trace: Any, runtime: Any) -> None: ...


class Inspected(SumTask):
    @vf.reward
    async def right(self, runtime: Any) -> float:
        return 1.0


class Contained(SumTask):
    NEEDS_CONTAINER = True


@pytest.mark.parametrize(
    ("task_class", "fields", "message"),
    [
        (Prepared, {}, "needs a runtime to prepare"),
        (Inspected, {}, "needs a runtime to score"),
        (Contained, {}, "needs a container"),
        (SumTask, {"image": "debian"}, "needs a container"),
        (SumTask, {"prompt": None}, "needs someone who begins"),
        (SumTask, {"prompt": [{"role": "system", "content": "x"}]}, "does not end with a message of the user"),
        (
            SumTask,
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            "a message of user that is no plain text",
        ),
    ],
)
def test_what_an_answer_alone_cannot_be_scored_for_is_refused(
    task_class: type[Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        env_of(task_class, fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taskset": 3}, "taskset is 3: it must be an id"),
        ({"reward_range": (1, 0)}, "reward_range is"),
        ({"tasksets": "x"}, "no option 'tasksets'"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env_of(**options)


def test_a_taskset_without_end_needs_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "INFINITE", True)
    with pytest.raises(ValueError, match="limit is None"):
        env_of()
    assert len(env_of(limit=1).tasks) == 1


def test_rewards_outside_of_their_range_are_named() -> None:
    env = env_of(reward_range=(0, 1))
    env.reset(options={"instance": TaskInstance(next(iter(env.tasks)))})
    with pytest.raises(ValueError, match=r"the sum of its rewards is 1\.5, outside of reward_range"):
        env.step("1")


def test_the_module_loads_neither_torch_nor_ray() -> None:
    script = "import sys, envs.bridges.verifiers_env\nprint({'ray', 'torch', 'verifiers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
