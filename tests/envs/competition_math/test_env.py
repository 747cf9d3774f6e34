import asyncio
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from envs.base import TaskInstance, Turn
from envs.competition_math.env import INSTRUCTION, CompetitionMathEnv
from envs.prompts import IMPROVE

DATA = Path(__file__).parents[2] / "data" / "math"
SEVEN_PLUS_FIVE = TaskInstance("arithmetic/add1/7+5")


class EnvContext(dict[str, Any]):
    """Like RLlib's: a dict with attributes of its own."""

    worker_index = 1


@pytest.mark.parametrize("config", [{"limit": 8}, {"tasks": "math500", "data_dir": str(DATA)}])
def test_gymnasium_accepts_it(config: dict[str, Any]):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*render modes.*")
        check_env(CompetitionMathEnv(EnvContext(config)))


@pytest.mark.parametrize(("response", "quality"), [("12", 1.0), ("7 + 5 = 12", 1.0), ("13", 0.0), ("7 + 5", 0.0)])
def test_an_arithmetic_episode(response: str, quality: float):
    env = CompetitionMathEnv()
    observation, _ = env.reset(options={"instance": SEVEN_PLUS_FIVE})
    assert observation == "What is 7 + 5? Answer with just the number."
    assert env.messages() == [{"role": "user", "content": observation}]
    _, reward, terminated, truncated, info = env.step(response)
    assert (reward, terminated, truncated) == (quality, True, False)
    assert info["outcome"].quality == quality
    assert info["outcome"].valid
    assert info["outcome"].metrics == {"grading_timeout": 0.0}


def test_an_arithmetic_answer_is_its_demonstration():
    env = CompetitionMathEnv()
    env.reset(options={"instance": SEVEN_PLUS_FIVE})
    [response] = env.demonstration(env.task)
    assert env.step(response)[1] == 1.0


def test_a_competition_problem_has_no_demonstration():
    env = CompetitionMathEnv({"tasks": "train", "data_dir": str(DATA)})
    with pytest.raises(NotImplementedError, match="CompetitionMathEnv has no demonstrations"):
        env.demonstration(env.tasks["train/1"])


def test_a_competition_episode():
    env = CompetitionMathEnv({"tasks": "train", "data_dir": str(DATA), "system_prompt": "You are a mathematician."})
    env.reset(options={"instance": TaskInstance("train/1")})
    system, user = env.messages()
    assert system == {"role": "system", "content": "You are a mathematician."}
    assert user["content"] == f"What is the positive root of $x^2 = 18$?\n\n{INSTRUCTION}"
    assert env.task.data["metrics"] == {"solution_steps": 1}
    assert env.step(r"It is $\boxed{\sqrt{18}}$.")[1] == 1.0


@pytest.mark.parametrize(("response", "reward"), [(r"\boxed{7 + 5}", 0.0), (r"\boxed{7 + 5}, so \boxed{12}", 1.0)])
def test_a_response_does_not_restate_the_problem(response: str, reward: float, tmp_path: Path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"problem": "Compute $7 + 5$.", "answer": "12"}))
    env = CompetitionMathEnv({"tasks": str(tasks)})
    env.reset()
    assert env.step(response)[1] == reward


@pytest.mark.parametrize(("response", "reward"), [("12", 1.0), ("13", 0.0)])
def test_an_improve_step_has_the_reward_of_an_answer(response: str, reward: float):
    env = CompetitionMathEnv()
    iterate = Turn("12", quality=1.0)
    env.reset(options={"instance": TaskInstance(SEVEN_PLUS_FIVE.task_id, (), iterate, "improve")})
    assert [message["content"] for message in env.messages()[1:]] == ["12", IMPROVE]
    assert env.step(response)[1] == reward


def test_an_answer_past_the_deadline_is_wrong_and_counted():
    env = CompetitionMathEnv({"tasks": "math500", "data_dir": str(DATA), "grading_timeout_s": 0.5})
    env.reset()
    _, reward, terminated, _, info = env.step("$9^{9^{9^9}}$")
    assert reward == 0.0 and terminated
    assert info["outcome"].metrics == {"grading_timeout": 1.0}


def test_many_envs_step_in_threads():
    async def episode(i: int) -> float:
        env = CompetitionMathEnv({"levels": ["add1"]})
        env.reset(options={"instance": SEVEN_PLUS_FIVE})
        return (await asyncio.to_thread(env.step, str(i)))[1]

    async def episodes() -> list[float]:
        return await asyncio.gather(*map(episode, range(32)))

    assert asyncio.run(episodes()) == [float(i == 12) for i in range(32)]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"levels": ["add1"], "limit": 5}, 5),
        ({"levels": ("add1", "mul1"), "split": "test"}, 46),
        ({"tasks": "aime25", "data_dir": str(DATA)}, 2),
        ({"tasks": "aime25", "data_dir": str(DATA), "limit": 1}, 1),
        ({"tasks": str(DATA / "minerva.jsonl")}, 2),
        ({"tasks": None, "levels": ["add1"], "limit": 3, "data_dir": None}, 3),
    ],
)
def test_the_task_set(config: dict[str, Any], count: int):
    assert len(CompetitionMathEnv(config).tasks) == count


def test_the_instruction_can_be_replaced_or_dropped():
    def prompt(instruction: str | None) -> str:
        env = CompetitionMathEnv({"tasks": "aime25", "data_dir": str(DATA), "instruction": instruction})
        env.reset(options={"instance": TaskInstance("aime25/0")})
        return env.messages()[0]["content"]

    assert prompt(None).endswith(f"\n\n{INSTRUCTION}")
    assert prompt("Be brief.").endswith("\n\nBe brief.")
    assert prompt("").endswith("of $60$.")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task": "train", "seed": 1}, r"no option 'task': use tasks, data_dir"),
        ({"limit": 0}, "limit is 0: it must be greater than 0"),
        ({"grading_timeout_s": -1}, "grading_timeout_s is -1"),
        ({"tasks": "train", "levels": ["add1"]}, "levels is .*'train', which has none: leave levels out"),
        ({"tasks": "train", "split": "test"}, "split is 'test' but tasks is 'train'"),
        ({"data_dir": "/data"}, "data_dir is '/data' but tasks is 'arithmetic'"),
        ({"levels": ["add9"]}, "'add9'"),
        ({"levels": []}, "no tasks"),
    ],
)
def test_options_that_cannot_be_used(config: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CompetitionMathEnv(config)


def test_the_env_needs_no_ray_no_torch_and_no_vllm():
    code = "import envs.competition_math.env, sys, json; print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(ran.stdout)}
    assert not loaded & {"ray", "torch", "vllm", "transformers", "rllib_exit", "datasets", "math_verify"}
