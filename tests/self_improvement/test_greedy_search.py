from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from envs.base import TaskInstance, Turn
from envs.mle_bench import env as env_module
from envs.mle_bench.env import DEBUG_STEPS, MLEBenchEnv
from envs.mle_bench.prompts import GOALS
from envs.mle_bench.synthetic import generate
from envs.sandbox.sandbox import Run, Status
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.generator import SamplingParams
from rllib_exit.env_runners.player import Player, PromptTooLongError
from rllib_exit.rollouts import Rollout
from rllib_exit.self_improvement.chain import Chain, Play, self_improve
from rllib_exit.self_improvement.greedy_search import SearchDirectory, Step, best_step, greedy_search, plot, table
from tests.fakes import ScriptedGenerator

NAME = "courier-delivery-times"
SETTINGS = {"competition": NAME, "seed": 0}


def grown(scores: Sequence[float | str | None]) -> list[Step]:
    """The steps of a search whose scripts have these scores; None for one that fails, "" for no script."""
    env, steps, iterates = MLEBenchEnv.__new__(MLEBenchEnv), list[Step](), list[Turn]()
    for index, value in enumerate(scores):
        iterate = env.next_iterate(iterates) if iterates else None
        parent = next((i for i, turn in enumerate(iterates) if turn is iterate), None)
        depth = iterate.depth + 1 if iterate else 0
        result = "script_failed" if value is None else "no_script" if value == "" else "scored"
        score = value if isinstance(value, float) else None
        response = "Hm." if value == "" else "```python\nx\n```"
        feedback = "The script failed." if score is None else f"Score: {score:g}"
        steps.append(Step(index, parent, response, result, feedback, score, score or 0.0, depth))
        iterates.append(steps[-1].turn)
    return steps


@pytest.mark.parametrize(
    ("scores", "parents"),
    [
        # The best is improved on, whatever came of it last.
        ([0.2, 0.5, 0.3, 0.4, 0.6, 0.1], [None, 0, 1, 1, 1, 4]),
        # Of equals the first. The worst score is a score.
        ([0.5, 0.5, 0.5], [None, 0, 0]),
        ([0.0, 0.0, 0.1], [None, 0, 0]),
        # A failing script is debugged, and then the best is improved on, be it the mended one or another.
        ([0.5, None, 0.6, 0.1], [None, 0, 1, 2]),
        ([0.5, None, 0.4, 0.1], [None, 0, 1, 0]),
        # Not for ever: three times, then back to the best.
        ([0.5, None, None, None, None, None, None], [None, 0, 1, 2, 3, 0, 5]),
        # Or to a fresh script, where there is none.
        ([None, None, None, None, None, 0.5, None], [None, 0, 1, 2, None, 4, 5]),
        # A response without a script leaves nothing to debug.
        (["", "", None, "", None, 0.5, None, ""], [None, None, None, 2, None, 4, 5, 6]),
        ([0.5, "", 0.4, None, "", 0.1], [None, 0, 0, 0, 3, 0]),
    ],
)
def test_where_a_step_begins(scores: list[float | str | None], parents: list[int | None]):
    assert [step.parent for step in grown(scores)] == parents


@given(st.lists(st.sampled_from([None, None, "", 0.0, 0.3, 0.6, 1.0]), max_size=20))
def test_a_step_begins_from_the_best_the_last_or_nothing(scores: list[float | str | None]):
    steps = grown(scores)
    for i, step in enumerate(steps):
        best = best_step(steps[:i])
        assert step.parent in (best.index if best else None, i - 1 if i else None)
    best = best_step(steps)
    assert (best.score if best else None) == max((score for score in scores if isinstance(score, float)), default=None)
    for step in steps:  # no script is debugged more often than that
        debugged = 0
        while step.parent is not None and steps[step.parent].score is None:
            debugged, step = debugged + 1, steps[step.parent]
        assert debugged <= DEBUG_STEPS


def test_a_script_begun_afresh_for_want_of_room_is_debugged_as_often_as_any_other():
    env = MLEBenchEnv.__new__(MLEBenchEnv)
    best = Turn("```python\nbest\n```", "Score: 1", 0.5, depth=3)
    fails = [Turn("```python\nx\n```", "The script failed.", 0.0, depth) for depth in (0, 1, 2, 3, 4)]
    assert env.next_iterate([best, *fails[:3]]) is fails[2]
    assert env.next_iterate([best, *fails[:4]]) is best
    # The next one improves on the best, which lies as deep as the last of those that failed.
    assert env.next_iterate([best, *fails]) is fails[4]


# With an environment in whose sandbox "minutes = 40" predicts 40 minutes for every delivery.


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("competitions")
    generate(directory)
    return directory / NAME


@pytest.fixture
def env(competition: Path, monkeypatch: pytest.MonkeyPatch) -> MLEBenchEnv:
    def run_script(script: str, **kwargs: Any) -> Run:
        if match := re.fullmatch(r"minutes = ([\d.]+)\n", script):
            test = pd.read_csv(competition / "prepared/public/test.csv")[["id"]].assign(minutes=float(match[1]))
            files = {"submission.csv": test.to_csv(index=False).encode()}
            return Run(Status.OK, 0, "", files, 0.1, "bubblewrap")
        return Run(Status.FAILED, 1, f"NameError: {script.strip()}", {}, 0.1, "bubblewrap")

    monkeypatch.setattr(env_module, "run_script", run_script)
    return MLEBenchEnv({"competitions": competition, "keep_submission": True})


def answers(*scripts: str | None) -> Callable[[str, int], str]:
    """The response of seed i holds script i; None is a response without one."""
    return lambda prompt, seed: "Hm." if scripts[seed] is None else f"So:\n```python\n{scripts[seed]}\n```"


def playing(
    env: MLEBenchEnv, model: str, script: Callable[[str, int], str], max_model_len: int
) -> tuple[Play, ScriptedGenerator]:
    """Plays episode k with seed k."""
    generator = ScriptedGenerator(model, script, max_model_len=max_model_len)
    player = Player(lambda: env, generator=generator, chat=ChatTokenizer(model), sampling=SamplingParams(max_tokens=64))

    def play(instance: TaskInstance, k: int) -> Awaitable[Rollout]:
        return player.play(instance, seed=k, steps=k)

    return play, generator


def search(
    env: MLEBenchEnv,
    model: str,
    script: Callable[[str, int], str],
    responses: int,
    path: Path,
    max_model_len: int = 8192,
) -> tuple[list[Step], list[str]]:
    """All the steps that the search's directory has in the end, and the prompts."""
    play, generator = playing(env, model, script, max_model_len)
    directory = SearchDirectory(path, SETTINGS)
    before = list(directory.steps)

    async def run() -> list[Step]:
        return [step async for step in greedy_search(env, NAME, responses - 1, play, directory)]

    assert before + asyncio.run(run()) == directory.steps
    return directory.steps, [generator.chat.tokenizer.decode(prompt) for prompt in generator.prompts]


IMPROVING = answers("minutes = 3", "minutes = 20", "minutes = 10", "boom", "minutes = 35", None, "minutes = 40")


def test_improving_scripts_are_kept(env: MLEBenchEnv, tiny_model: str, tmp_path: Path):
    steps, prompts = search(env, tiny_model, IMPROVING, 7, tmp_path)
    assert [step.parent for step in steps] == [None, 0, 1, 1, 3, 4, 4]
    assert [step.result for step in steps] == [*["scored"] * 3, "script_failed", "scored", "no_script", "scored"]
    assert [step.depth for step in steps] == [0, 1, 2, 2, 3, 4, 4]
    assert [best.index for i in range(7) if (best := best_step(steps[: i + 1]))] == [0, 1, 1, 1, 4, 4, 6]
    # A fresh script, then improvements on the best with its score, then a failure with its trace.
    for prompt, goal in zip(prompts, ["base", *["improve"] * 3, "debug", *["improve"] * 2], strict=True):
        assert GOALS[goal] in prompt
    assert all("minutes = 20" in prompt and f"Score: {steps[1].score:g}" in prompt for prompt in prompts[2:4])
    assert "NameError: boom" in prompts[4]
    assert (tmp_path / "best_script.py").read_text() == "minutes = 40\n"
    assert set(pd.read_csv(tmp_path / "best_submission.csv")["minutes"]) == {40}
    assert sorted(file.name for file in (tmp_path / "steps").iterdir()) == sorted(
        [f"{i:03}.py" for i in (0, 1, 2, 3, 4, 6)] + [f"{i:03}.csv" for i in (0, 1, 2, 4, 6)]
    )


@pytest.mark.parametrize("stopped_after", [0, 1, 4, 7])
def test_a_search_goes_on_where_it_stopped(env: MLEBenchEnv, tiny_model: str, tmp_path: Path, stopped_after: int):
    whole, _ = search(env, tiny_model, IMPROVING, 7, tmp_path / "whole")
    search(env, tiny_model, IMPROVING, stopped_after, tmp_path / "parts")
    # Killed after it had written a step's files and half of its line.
    (tmp_path / "parts" / "steps" / f"{stopped_after:03}.py").write_text("half")
    with open(tmp_path / "parts" / "search.jsonl", "a") as log:
        log.write('{"index": 9, "resp')
    (tmp_path / "parts" / "best_script.py").unlink(missing_ok=True)
    resumed, prompts = search(env, tiny_model, IMPROVING, 7, tmp_path / "parts")
    assert resumed == whole and len(prompts) == 7 - stopped_after
    for name in ("search.jsonl", "best_script.py", "best_submission.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_search_that_has_all_its_steps_asks_nothing(env: MLEBenchEnv, tiny_model: str, tmp_path: Path):
    search(env, tiny_model, IMPROVING, 3, tmp_path)
    steps, prompts = search(env, tiny_model, IMPROVING, 2, tmp_path)
    assert len(steps) == 3 and not prompts


def test_a_search_with_other_settings_is_refused(tmp_path: Path):
    SearchDirectory(tmp_path, {"seed": 0, "top_p": 0.5})
    assert SearchDirectory(tmp_path, {"top_p": 0.5, "seed": 0}).steps == []
    with pytest.raises(ValueError, match="holds a search with seed 0, not 1: name another directory"):
        SearchDirectory(tmp_path, {"seed": 1, "top_p": 0.5})
    with pytest.raises(ValueError, match=r"top_p 0\.5, not None"):
        SearchDirectory(tmp_path, {"seed": 0})


def test_any_response_survives_the_log(tmp_path: Path):
    directory = SearchDirectory(tmp_path, SETTINGS)
    odd = Step(0, None, '\ud800\u2028\n\x00"', "script_failed", "…\r", None, 0.0, 0)
    directory.add(odd, "x = '\ud800'", None)
    assert SearchDirectory(tmp_path, SETTINGS).steps == [odd]
    assert len((tmp_path / "search.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "search.jsonl").read_text().splitlines()[0]) == SETTINGS


def test_a_script_that_leaves_no_room_is_left(env: MLEBenchEnv, tiny_model: str, tmp_path: Path):
    prompt = len(ChatTokenizer(tiny_model).encode(env.prompt(env.tasks[NAME])))
    steps, _ = search(env, tiny_model, answers("x" * 40, "minutes = 20"), 2, tmp_path / "a", max_model_len=prompt + 64)
    assert [step.parent for step in steps] == [None, None]
    with pytest.raises(PromptTooLongError):
        search(env, tiny_model, IMPROVING, 1, tmp_path / "b", max_model_len=prompt + 63)


def evaluate(
    env: MLEBenchEnv, model: str, steps: int, max_model_len: int = 8192, greedy: bool = True
) -> tuple[Chain | None, list[str]]:
    play, generator = playing(env, model, IMPROVING, max_model_len)
    chain = asyncio.run(self_improve(env, NAME, steps, play, greedy=greedy))
    return chain, [generator.chat.tokenizer.decode(prompt) for prompt in generator.prompts]


def test_a_search_as_an_evaluation_takes_the_same_steps(env: MLEBenchEnv, tiny_model: str, tmp_path: Path):
    steps, prompts = search(env, tiny_model, IMPROVING, 7, tmp_path)
    chain, evaluated_prompts = evaluate(env, tiny_model, 6)
    assert chain is not None and evaluated_prompts == prompts
    assert list(chain.qualities) == [max(step.quality for step in steps[: k + 1]) for k in range(7)]
    assert chain.qualities[-1] > chain.qualities[0]
    assert [metrics["no_script"] for metrics in chain.metrics] == [0, 0, 0, 0, 0, 1, 0]


def test_without_greedy_search_every_step_improves_on_the_last(env: MLEBenchEnv, tiny_model: str):
    chain, prompts = evaluate(env, tiny_model, 4, greedy=False)
    assert chain is not None
    assert [turns[0].depth for turns in chain.turns] == [0, 1, 2, 3, 4]
    # What counts is the last one, be it worse.
    assert chain.qualities[4] > chain.qualities[1] > chain.qualities[2] == chain.qualities[3] == 0
    for script, prompt in zip(["minutes = 3", "minutes = 20", "minutes = 10", "boom"], prompts[1:], strict=True):
        assert script in prompt


def test_an_evaluation_that_does_not_fit_has_no_chain(env: MLEBenchEnv, tiny_model: str):
    assert evaluate(env, tiny_model, 2, max_model_len=80)[0] is None


def test_the_table_and_the_figure(tmp_path: Path):
    steps = grown([None, 0.5, 0.25, 0.75])
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table(steps, title="search"))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in capture.get().splitlines() if "│" in line]
    assert rows == [
        ["0", "", "", "0.000", "0.000", "script failed"],
        ["1", "0", "0.5", "0.500", "0.500 *", "scored"],
        ["2", "1", "0.25", "0.250", "0.500", "scored"],
        ["3", "1", "0.75", "0.750", "0.750 *", "scored"],
    ]
    for name, shown in (("some", steps), ("failed", steps[:1]), ("none", [])):
        plot(shown, tmp_path / f"{name}.png", title="search")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
