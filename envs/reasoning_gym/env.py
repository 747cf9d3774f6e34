"""The procedural tasks of the package ``reasoning-gym`` as a one-turn environment."""

from __future__ import annotations

import functools
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from envs.reasoning_gym.worker import MAX_SEED, MAX_SIZE, Source, grade, make

SYSTEM_PROMPT = (
    "Think step by step. Then give your final answer, without any explanation, in the format "
    "<answer>your answer</answer>. If the problem shows an example of an answer, follow its format exactly."
)

DEFAULTS: Mapping[str, Any] = {
    "dataset": None,
    "datasets": None,
    "params": {},
    "size": 500,
    "seed": 0,
    "system_prompt": SYSTEM_PROMPT,
    "grading_timeout_s": 2.0,
}


class ReasoningGymEnv(SelfImprovementEnv):
    """One problem, one response; the quality is the score that the data set's own grader gives the answer.

    The answer is what the response's last ``<answer>`` tag holds. No grader gives reasons, so the feedback is the
    score.

    Args:
        config: Options, also as RLlib's ``env_config``; None counts as absent.

            - ``dataset``: the name of a data set, such as ``countdown``;
            - ``datasets``: instead, a mixture: names with weights, such as ``{"countdown": 2, "sudoku": 1}``.
            - ``params``: the fields of the data set's configuration, such as ``{"min_numbers": 3}``; for a mixture,
              such fields by name.
            - ``size``: how many tasks there are.
            - ``seed``: 0 to 4095. Each seed gives other items, so a test split has another seed than the training
              split. Data sets with few possible questions repeat some of them.
            - ``system_prompt``: the system message; by default it asks for the tag.
            - ``grading_timeout_s``: an answer that takes more CPU time to grade is wrong.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        ValueError: If an option is unknown or has an impossible value.
    """

    max_turns = 1

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        for key in config or {}:
            if key not in DEFAULTS:
                raise ValueError(f"{type(self).__name__} has no option {key!r}: use {', '.join(DEFAULTS)}")
        options = {**DEFAULTS, **{key: value for key, value in (config or {}).items() if value is not None}}
        for key, low, high in (("size", 1, MAX_SIZE), ("seed", 0, MAX_SEED)):
            if not isinstance(options[key], int) or not low <= options[key] <= high:
                raise ValueError(f"{key} is {options[key]!r}: it must be a whole number from {low} to {high}")
        if not options["grading_timeout_s"] > 0:
            raise ValueError(f"grading_timeout_s is {options['grading_timeout_s']!r}: it must be positive")
        weights, params = _mixture(options["dataset"], options["datasets"], options["params"])
        super().__init__(_load(tuple(weights.items()), json.dumps(params), options["size"], options["seed"]))
        self.system_prompt: str = options["system_prompt"]
        self.grading_timeout_s: float = options["grading_timeout_s"]

    def prompt(self, task: Task) -> list[Message]:
        system: list[Message] = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": task.prompt}]

    def respond(self, task: Task, response: str) -> Outcome:
        answer = extract_answer(response)
        if answer is None:
            return Outcome(0.0, "no answer found: give it as <answer>your answer</answer>", metrics={"answered": 0.0})
        score = grade(task.data["source"], task.data["index"], answer, self.grading_timeout_s)
        return Outcome(score, f"score {score:.2g}", metrics={"answered": 1.0})

    def solution(self, response: str) -> str:
        """The answer; all of a response that has none."""
        answer = extract_answer(response)
        return response if answer is None else answer

    def demonstration(self, task: Task) -> Sequence[str]:
        """A right answer, without reasoning. The data sets ``boxnet`` and ``rush_hour`` know none."""
        answer = task.data["answer"]
        return super().demonstration(task) if answer is None else [f"<answer>{answer}</answer>"]


def extract_answer(response: str) -> str | None:
    """What the last closed tag holds, as reasoning-gym has it, but in time linear in the response's length."""
    for part in reversed(response.split("</answer>")[:-1]):
        _, tag, answer = part.partition("<answer>")
        if tag:
            return answer.strip()
    return None


def _mixture(
    dataset: str | None, datasets: Mapping[str, float] | None, params: Mapping[str, Any]
) -> tuple[Mapping[str, float], Mapping[str, Any]]:
    """The weight of each data set, and its parameters."""
    if (dataset is None) == (not datasets):
        raise ValueError(
            f"dataset is {dataset!r} and datasets is {datasets!r}: name one data set as 'dataset', or several with "
            "their weights as 'datasets'"
        )
    if dataset is not None or not datasets:
        return {str(dataset): 1.0}, {str(dataset): params}
    for name, weight in datasets.items():
        if not weight > 0:
            raise ValueError(f"datasets gives {name!r} the weight {weight!r}: it must be positive")
    if unknown := params.keys() - datasets.keys():
        raise ValueError(f"params names {sorted(unknown)}, but datasets has {sorted(datasets)}: name data sets of it")
    return datasets, params


@functools.lru_cache(maxsize=8)
def _load(weights: tuple[tuple[str, float], ...], params: str, size: int, seed: int) -> tuple[Task, ...]:
    names, shares = zip(*weights, strict=True)
    counts = Counter(random.Random(seed).choices(names, shares, k=size))
    tasks = []
    for name, count in counts.items():
        source = Source(name, count, seed, json.dumps(json.loads(params).get(name, {})))
        for index, (question, answer) in enumerate(make(source)):
            data = {"source": source, "index": index, "answer": answer}
            tasks.append(Task(f"{name}/{seed}/{index}", question, data))
    return tuple(tasks)
