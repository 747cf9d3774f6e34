"""Greedy search over scripts with a language model (paper section 5.2, appendix C), written down.

A first response is step 0. Every further step is one response too: it improves on the best script so far or, if the
last script failed, debugs that one. A search writes down each step as it ends, so that it can be stopped and taken
up again.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.table import Table

from envs.base import SelfImprovementEnv, Turn
from envs.mle_bench.env import SUBMISSION, Result
from envs.mle_bench.prompts import extract_script
from rllib_exit.files import whole_lines, write_whole
from rllib_exit.rollouts import Rollout
from rllib_exit.self_improvement.chain import Play, take_steps
from rllib_exit.self_improvement.curves import figure_axes

LOG, BEST_SCRIPT, BEST_SUBMISSION, FIGURE = "search.jsonl", "best_script.py", "best_submission.csv", "search.png"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a search.

    Attributes:
        index: From 0.
        parent: The step whose script this one began from; None if it began from the empty script.
        response: The policy's text.
        result: What became of it, a :class:`envs.mle_bench.env.Result`.
        feedback: The environment's answer.
        score: The competition's score, None without one.
        quality: The normalised score, in [0, 1].
        depth: How many steps lie behind it.
    """

    index: int
    parent: int | None
    response: str
    result: str
    feedback: str
    score: float | None
    quality: float
    depth: int

    @classmethod
    def of(cls, index: int, parent: int | None, task_id: str, episode: Rollout) -> Step:
        """The step that played an episode of an MLE-bench environment."""
        [turn] = episode.turns
        return cls(
            index=index,
            parent=parent,
            response=turn.response,
            result=next(result.value for result in Result if episode.metrics[result]),
            feedback=turn.feedback or "",
            score=episode.metrics.get(f"score_{task_id}"),
            quality=episode.quality,
            depth=turn.depth,
        )

    @property
    def turn(self) -> Turn:
        """The iterate that the step made."""
        return Turn(self.response, self.feedback, self.quality, self.depth)


def best_step(steps: Sequence[Step]) -> Step | None:
    """The step of the highest quality, the first among equals; None while no script has a score."""
    return max((step for step in steps if step.score is not None), key=lambda step: step.quality, default=None)


class SearchDirectory:
    """What a search has written, and writes.

    ``search.jsonl`` holds the settings in its first line and a step in each further one; ``steps`` the script
    and the submission of each. ``best_script.py`` and ``best_submission.csv`` are those of the best step.

    Args:
        path: The directory; made if need be. If it holds a search, that one is taken up.
        settings: What a search depends on, as JSON: competition, model, sampling, seed.

    Raises:
        ValueError: If it holds a search with other settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.steps: list[Step] = []
        (self.path / "steps").mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        log = self.path / LOG
        lines = whole_lines(log)  # a search that was killed may have cut off the last one
        if not lines:
            log.write_text(json.dumps(settings) + "\n")
            return
        before = json.loads(lines[0])
        for name in before.keys() | settings.keys():
            if before.get(name) != settings.get(name):
                raise ValueError(
                    f"{self.path} holds a search with {name} {before.get(name)!r}, not {settings.get(name)!r}: "
                    "name another directory, or remove this one"
                )
        self.steps = [Step(**json.loads(line)) for line in lines[1:]]
        write_whole(log, "".join(f"{line}\n" for line in lines).encode())
        self._keep_best()

    def add(self, step: Step, script: str | None, submission: bytes | None) -> None:
        """Writes down a step; when this returns it is kept."""
        if script is not None:
            write_whole(self._step_file(step, ".py"), script.encode(errors="replace"))
        if submission is not None:
            write_whole(self._step_file(step, ".csv"), submission)
        with open(self.path / LOG, "a") as log:
            log.write(json.dumps(asdict(step)) + "\n")
            log.flush()
            os.fsync(log.fileno())
        self.steps.append(step)
        self._keep_best()

    def _keep_best(self) -> None:
        best = best_step(self.steps)
        if best is not None:
            write_whole(self.path / BEST_SCRIPT, self._step_file(best, ".py").read_bytes())
            write_whole(self.path / BEST_SUBMISSION, self._step_file(best, ".csv").read_bytes())

    def _step_file(self, step: Step, suffix: str) -> Path:
        return self.path / "steps" / f"{step.index:03}{suffix}"


async def greedy_search(
    env: SelfImprovementEnv, task_id: str, steps: int, play: Play, directory: SearchDirectory
) -> AsyncIterator[Step]:
    """Searches for a script that scores well; see :func:`take_steps`.

    Args:
        env: An MLE-bench environment.
        task_id: The competition.
        steps: How many steps follow the first response, those that ``directory`` holds already included.
        play: Plays an episode in an environment that keeps submissions. At temperature 0, a step that does not
            improve repeats itself to the end.
        directory: Keeps the steps.

    Yields:
        Every new step once it is kept.

    Raises:
        PromptTooLongError: If the context has no room for the first prompt.
    """
    taken = [step.turn for step in directory.steps]
    async for parent, episode in take_steps(env, task_id, steps, play, greedy=True, taken=taken):
        step = Step.of(len(directory.steps), parent, task_id, episode)
        directory.add(step, extract_script(step.response), episode.files.get(SUBMISSION))
        yield step


def table(steps: Sequence[Step], title: str | None = None) -> Table:
    """The steps so far: where each began, what became of it, its score and the best one yet."""
    result = Table(title=title, title_justify="left")
    for column in ("step", "from", "score", "normalised", "best"):
        result.add_column(column, justify="right")
    result.add_column("result")
    best = 0.0
    for step in steps:
        mark = " *" if step.quality > best else ""
        best = max(best, step.quality)
        result.add_row(
            str(step.index),
            "" if step.parent is None else str(step.parent),
            "" if step.score is None else f"{step.score:g}",
            f"{step.quality:.3f}",
            f"{best:.3f}{mark}",
            step.result.replace("_", " "),
        )
    return result


def plot(steps: Sequence[Step], path: str | Path, title: str | None = None) -> None:
    """Draws normalised scores by step, and the best one yet, into an image file."""
    scored = [step for step in steps if step.score is not None]
    failed = [step for step in steps if step.score is None]
    best = list(accumulate((step.quality for step in steps), max))
    with figure_axes(path, "search step", "normalised score", title) as axes:
        axes.plot([step.index for step in scored], [step.quality for step in scored], "o", label="scored")
        axes.plot([step.index for step in failed], [0.0] * len(failed), "x", color="tab:red", label="failed")
        axes.step(range(len(best)), best, where="post", color="tab:gray", label="best so far")
        axes.set_ylim(-0.03, 1.03)
