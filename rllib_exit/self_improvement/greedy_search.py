"""Greedy search over scripts with a language model (paper section 5.2, appendix C).

A first response is step 0. Every further step is one response too: it improves on the best script so far or, if the
last script failed, debugs that one. A search writes down each step as it ends, so that it can be stopped and taken
up again.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from envs.base import TaskInstance, Turn
from envs.mle_bench.env import MLEBenchEnv, Result
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.episodes import EnvPool, PromptTooLongError, run_episode
from rllib_exit.env_runners.generator import Generator, SamplingParams
from rllib_exit.rollouts import Rollout
from rllib_exit.self_improvement.chain import SEEDS_PER_EPISODE, Chain

# So often a failing script is debugged before the search goes back to the best one.
DEBUG_STEPS = 3

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


def best_step(steps: Sequence[Step]) -> Step | None:
    """The step of the highest quality, the first among equals; None while no script has a score."""
    return max((step for step in steps if step.score is not None), key=lambda step: step.quality, default=None)


def next_parent(steps: Sequence[Step]) -> Step | None:
    """The step to go on from: the last one if its script fails, else the best; None for the empty script."""
    if steps and steps[-1].result != Result.NO_SCRIPT:
        failures, step = 0, steps[-1]
        while step.score is None:
            failures += 1
            if step.parent is None:
                break
            step = steps[step.parent]
        if 0 < failures <= DEBUG_STEPS:
            return steps[-1]
    return best_step(steps)


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
        # A last line without its end is of a search that was killed while it wrote.
        log = self.path / LOG
        text = log.read_text() if log.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
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
        _write(log, "".join(f"{line}\n" for line in lines).encode())
        self._keep_best()

    def add(self, step: Step, script: str | None, submission: bytes | None) -> None:
        """Writes down a step; when this returns it is kept."""
        if script is not None:
            _write(self._step_file(step, ".py"), script.encode(errors="replace"))
        if submission is not None:
            _write(self._step_file(step, ".csv"), submission)
        with open(self.path / LOG, "a") as log:
            log.write(json.dumps(asdict(step)) + "\n")
            log.flush()
            os.fsync(log.fileno())
        self.steps.append(step)
        self._keep_best()

    def _keep_best(self) -> None:
        best = best_step(self.steps)
        if best is not None:
            _write(self.path / BEST_SCRIPT, self._step_file(best, ".py").read_bytes())
            _write(self.path / BEST_SUBMISSION, self._step_file(best, ".csv").read_bytes())

    def _step_file(self, step: Step, suffix: str) -> Path:
        return self.path / "steps" / f"{step.index:03}{suffix}"


def _write(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file)


async def greedy_search(
    env: MLEBenchEnv,
    task_id: str,
    steps: int,
    *,
    directory: SearchDirectory,
    generator: Generator,
    chat: ChatTokenizer,
    sampling: SamplingParams,
    seed: int = 0,
) -> AsyncIterator[Step]:
    """Searches for a script that scores well.

    Args:
        env: The environment, used by this search alone.
        task_id: The competition.
        steps: How many steps follow the first response, those that ``directory`` holds already included.
        directory: Keeps the steps.
        generator: The engine.
        chat: The model's tokenizer.
        sampling: How to sample. At temperature 0, a step that does not improve repeats itself to the end.
        seed: Of the first step; every further one takes the next.

    Yields:
        Every step once it is kept, first those that were kept before.

    Raises:
        PromptTooLongError: If the context has no room for the first prompt. A step whose parent's script and
            feedback do not fit begins from the empty script.
    """

    async def answer(index: int, parent: Step | None) -> Turn:
        instance = _instance(task_id, parent)
        rollout = await run_episode(env, instance, generator=generator, chat=chat, sampling=sampling, seed=seed + index)
        return rollout.turns[-1]

    for step in list(directory.steps):
        yield step
    for index in range(len(directory.steps), steps + 1):
        parent = next_parent(directory.steps)
        try:
            turn = await answer(index, parent)
        except PromptTooLongError:
            if parent is None:
                raise
            parent = None
            turn = await answer(index, parent)
        attempt = env.attempt
        assert attempt is not None and turn.quality is not None
        step = Step(
            index=index,
            parent=None if parent is None else parent.index,
            response=turn.response,
            result=attempt.result.value,
            feedback=attempt.message,
            score=attempt.score,
            quality=turn.quality,
            depth=turn.depth,
        )
        directory.add(step, attempt.script, attempt.submission)
        yield step


def _instance(task_id: str, parent: Step | None) -> TaskInstance:
    """Where a step starts that goes on from another one; None for the empty script."""
    if parent is None:
        return TaskInstance(task_id)
    iterate = Turn(parent.response, parent.feedback, parent.quality, parent.depth)
    return TaskInstance(task_id, iterate=iterate, kind="improve")


async def search_chain(task_id: str, steps: int, *, envs: EnvPool, seed: int) -> Chain | None:
    """A greedy search on one task as an evaluation: nothing is written down.

    Args:
        task_id: The competition.
        steps: How many steps follow the first response.
        envs: MLE-bench environments.
        seed: Of the first response.

    Returns:
        The quality of the best script after each step; None where the first prompt does not fit the context.
    """
    taken: list[Step] = []
    rollouts: list[Rollout] = []
    for index in range(steps + 1):
        parent, step_seed = next_parent(taken), seed + SEEDS_PER_EPISODE * index
        try:
            rollout = await envs.run(_instance(task_id, parent), seed=step_seed)
        except PromptTooLongError:
            if parent is None:
                return None
            parent = None
            rollout = await envs.run(_instance(task_id, None), seed=step_seed)
        turn = rollout.turns[-1]
        rollouts.append(rollout)
        taken.append(
            Step(
                index=index,
                parent=None if parent is None else parent.index,
                response=turn.response,
                result=next(result.value for result in Result if rollout.metrics[result.value]),
                feedback=turn.feedback or "",
                score=rollout.metrics.get(f"score_{task_id}"),
                quality=rollout.quality,
                depth=turn.depth,
            )
        )
    best = [max(step.quality for step in taken[: k + 1]) for k in range(len(taken))]
    return Chain(task_id, tuple(best), tuple(r.turns for r in rollouts), tuple(r.metrics for r in rollouts))


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
    # Without pyplot there is no global state, and no display is looked for.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    scored = [step for step in steps if step.score is not None]
    failed = [step for step in steps if step.score is None]
    axes.plot([step.index for step in scored], [step.quality for step in scored], "o", label="scored")
    axes.plot([step.index for step in failed], [0.0] * len(failed), "x", color="tab:red", label="failed")
    best = [max(step.quality for step in steps[: i + 1]) for i in range(len(steps))]
    axes.step(range(len(best)), best, where="post", color="tab:gray", label="best so far")
    axes.set_xlabel("search step")
    axes.set_ylabel("normalised score")
    axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    if title:
        axes.set_title(title, parse_math=False)
    figure.savefig(path, dpi=150)
