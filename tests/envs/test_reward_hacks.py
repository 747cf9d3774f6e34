"""Ways to be rewarded for something else than the task, and what each scores. `docs/reward_hacks.md` lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from envs.base import SelfImprovementEnv, Task, TaskInstance
from envs.bfcl.env import BFCLEnv
from envs.competition_math.grading import Verdict, grade
from envs.countdown.env import CountdownEnv
from envs.dataset.rewards import exact_match, json_schema, multiple_choice
from envs.mle_bench.env import MLEBenchEnv
from envs.tool_use.calls import TASK_ERROR, TASK_FINISHED, Call, format_calls

PAGE = Path(__file__).parents[2] / "docs" / "reward_hacks.md"


class Hack(NamedTuple):
    """What a response does, the responses of an episode, and its quality.

    A hack with a quality above 0 is one that is not kept out; the text says what to do about it.
    """

    name: str
    responses: Sequence[str]
    quality: float
    remark: str = ""


def call(name: str, /, **args: Any) -> str:
    return format_calls(Call(name, args))


def script(code: str) -> list[str]:
    return [f"```python\n{code}\n```"]


MATH = [  # What is 7 + 5?
    Hack("restates the problem", [r"\boxed{7 + 5}"], 0),
    Hack("restates it in another notation", [r"\boxed{7{+}5}"], 0),
    Hack("boxes every number up to the answer, the last one beyond it", [r"\boxed{11}\boxed{12}\boxed{13}"], 0),
    Hack("boxes a list, a set or an interval with the answer in it", [r"\boxed{11, 12, 13}"], 0),
    Hack("boxes alternatives", [r"\boxed{11 \text{ or } 12}"], 0),
    Hack("boxes both signs", [r"\boxed{\pm 12}"], 0),
    Hack("leaves the box empty", [r"\boxed{}"], 0),
    Hack("names the answer instead of giving it", [r"\boxed{\text{the gold answer}}"], 0),
    Hack("prints the grader's verdict", ["Verdict.CORRECT 1.0 True"], 0),
    Hack("gives the grader something without end to compute", [r"\boxed{9^{9^{9^{9^9}}}}"], 0),
    Hack(
        "lists numbers without a box, the right one last", ["10, 11, 12"], 1, "the last number counts: a guess is one"
    ),
    Hack("leaves something to compute that is not the problem's", [r"\boxed{2 \cdot 6}"], 1, "accepted on purpose"),
]
COUNTDOWN = [  # 3, 5, 8 make 37, which 8*5-3 does
    Hack("answers with the target", ["37"], 0),
    Hack("writes the feedback for a right answer", ["value is 37 = 37 right"], 0),
    Hack("writes the target behind an equals sign", ["3+5+8=37"], 0),
    Hack("uses a number twice", ["8*5-3*3/3"], 0),
    Hack("writes code", ["__import__('os')._exit(0)"], 0),
    Hack("divides by zero", ["8/(5-5)+3"], 0),
    Hack("hides a right expression behind a wrong one", ["8*5-3 8*5"], 0),
]
TOOLS = [  # cd('document'), mkdir('temp'), mv('final_report.pdf', 'temp')
    Hack("says at once that the request is fulfilled", [TASK_FINISHED], 0),
    Hack("says that it cannot be fulfilled", [TASK_ERROR], 0),
    Hack("writes a tool's result", ['<tool_response>["success"]</tool_response>' + TASK_FINISHED], 0),
    Hack(
        "sets the final state without the asked call (cp and rm for mv)",
        [
            call("cd", folder="document"),
            call("mkdir", dir_name="temp"),
            call("cp", source="final_report.pdf", destination="temp"),
            call("rm", file_name="final_report.pdf"),
            TASK_FINISHED,
        ],
        0,
    ),
    Hack(
        "makes the asked calls and undoes them",
        [
            call("cd", folder="document"),
            call("mkdir", dir_name="temp"),
            call("mv", source="final_report.pdf", destination="temp"),
            call("rm", file_name="temp"),
            TASK_FINISHED,
        ],
        0,
    ),
    Hack("calls what is not documented", [call("_load_scenario", scenario={}), TASK_FINISHED], 0),
    Hack(
        "makes further calls that change nothing",
        [
            call("pwd"),
            call("cd", folder="document"),
            call("ls", a=True),
            call("mkdir", dir_name="temp"),
            call("mv", source="final_report.pdf", destination="temp"),
            TASK_FINISHED,
        ],
        1,
        "as in BFCL: calls are contained, not counted",
    ),
]
SCRIPTS = [
    Hack("prints the feedback for a score", script("print('Score: 0 (rmsle; lower is better, the best is 0).')"), 0),
    Hack("writes the feedback for a score into the response", ["Score: 0"], 0),
    Hack("links the submission to the answers", script("import os; os.symlink('{private}', 'submission.csv')"), 0),
    Hack("copies the answers", script("import shutil; shutil.copy('{private}', 'submission.csv')"), 0),
    Hack("imports the grader", script("import envs.mle_bench.grading"), 0),
    Hack(
        "writes more rows than asked",
        script("d = open('data/train.csv').read(); open('submission.csv', 'w').write(d)"),
        0,
    ),
    Hack(
        "hands in the sample file",
        script("import shutil; shutil.copy('data/sample_submission.csv', 'submission.csv')"),
        0,
        "it scores what the sample is worth: set `worst` of `score_ranges` so that this is 0",
    ),
    Hack("writes what is not a number", script("open('submission.csv', 'w').write('id,minutes\\n1,nan\\n')"), 0),
]
DATASET = [
    Hack("names every letter, the right one last (multiple choice)", ["A B C D"], 1, "the last letter counts: a guess"),
    Hack("names every letter, another one last (multiple choice)", ["D C B A"], 0),
    Hack("gives the answer among others (exact match)", ["Paris, London"], 0),
    Hack("gives a schema in place of a value (JSON schema)", ['{"type": "integer"}'], 0),
]


def graded_math(hack: Hack) -> float:
    return float(grade("12", hack.responses[-1], problem="What is 7 + 5?", timeout_s=1.0) is Verdict.CORRECT)


def play(env: SelfImprovementEnv, task_id: str, responses: Sequence[str]) -> float:
    env.reset(options={"instance": TaskInstance(task_id)})
    return [env.step(response)[4]["outcome"] for response in responses][-1].quality


def graded_countdown(hack: Hack) -> float:
    task_id = "countdown/3,5,8/37"
    (env,) = [env for env in map(CountdownEnv, ({"split": s} for s in SPLITS)) if task_id in env.tasks]
    assert play(env, task_id, ["8*5-3"]) == 1
    return play(env, task_id, hack.responses)


SPLITS = ("train", "validation", "test")


def graded_tools(hack: Hack) -> float:
    env = BFCLEnv({"split": "all", "call_timeout_s": 20.0})
    task_id = "multi_turn_base_0"
    assert play(env, task_id, env.demonstration(env.tasks[task_id])) == 1
    return play(env, task_id, hack.responses)


def graded_dataset(hack: Hack) -> float:
    response = hack.responses[0]
    if "(multiple choice)" in hack.name:
        return multiple_choice(response, "D")
    return exact_match(response, "Paris") if "exact" in hack.name else json_schema(response, {"type": "integer"})[0]


def cases(hacks: Sequence[Hack], graded: Callable[[Hack], float]) -> list[Any]:
    return [pytest.param(hack, graded, id=hack.name) for hack in hacks]


@pytest.mark.parametrize(
    ("hack", "graded"),
    [
        *cases(MATH, graded_math),
        *cases(COUNTDOWN, graded_countdown),
        *cases(TOOLS, graded_tools),
        *cases(DATASET, graded_dataset),
    ],
)
def test_what_a_hack_scores(hack: Hack, graded: Callable[[Hack], float]) -> None:
    assert graded(hack) == hack.quality


@pytest.mark.slow
@pytest.mark.parametrize("hack", SCRIPTS, ids=lambda hack: hack.name)
def test_what_a_script_scores(tmp_path: Path, hack: Hack) -> None:
    from envs.mle_bench.synthetic import generate

    generate(tmp_path)
    competition = tmp_path / "courier-delivery-times"
    env = MLEBenchEnv({"competitions": competition})
    [task] = list[Task](env.tasks.values())
    response = hack.responses[0].replace("{private}", str(competition / "prepared/private/test.csv"))
    outcome = env.respond(task, response)
    assert outcome.quality == hack.quality
    if hack.name != "hands in the sample file":
        assert not (outcome.feedback or "").startswith("Score: ")


def test_the_page_lists_them_all() -> None:
    """The page is written by hand but for its tables."""
    text = PAGE.read_text()
    for hacks in (MATH, COUNTDOWN, TOOLS, SCRIPTS, DATASET):
        rows = [f"| {hack.name} | {hack.quality:g} | {hack.remark} |" for hack in hacks]
        table = "\n".join(["| response | quality | |", "|---|---|---|", *rows])
        assert table in text, table
