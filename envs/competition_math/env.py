"""Competition math, and arithmetic for small models, as a one-turn environment (paper appendix A.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from envs.competition_math.arithmetic import arithmetic_tasks
from envs.competition_math.grading import Verdict, grade
from envs.competition_math.tasks import SPLITS, load_split, load_tasks, subset

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

DEFAULTS: Mapping[str, Any] = {
    "tasks": "arithmetic",
    "data_dir": None,
    "levels": None,
    "split": None,
    "limit": None,
    "seed": 0,
    "system_prompt": None,
    "instruction": None,
    "grading_timeout_s": 5.0,
}


class CompetitionMathEnv(SelfImprovementEnv):
    """One math problem, one response; quality 1 if math-verify accepts the answer, else 0.

    Args:
        config: Options, also as RLlib's ``env_config``; None counts as absent.

            - ``tasks``: ``arithmetic`` (default), one of the paper's splits (see ``SPLITS``), or a JSONL or
              Parquet file, a folder or a Hub data set (see ``load_tasks``).
            - ``data_dir``: for a split of the paper, the folder with its file; without it the Hub is asked.
            - ``levels``: for ``arithmetic``, the levels' names; all by default.
            - ``split``: for ``arithmetic``, ``train`` (default) or ``test``; for a data set, its split.
            - ``limit``, ``seed``: how many tasks are drawn, all by default, and the draw's seed.
            - ``system_prompt``: the system message; none by default.
            - ``instruction``: what follows the problem in the prompt; by default a request to reason and to
              box the answer, for ``arithmetic`` nothing.
            - ``grading_timeout_s``: an answer that takes more CPU time to grade is wrong.

    Raises:
        ValueError: If an option is unknown, contradicts ``tasks`` or has an impossible value.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        options = dict(DEFAULTS)
        for key, value in (config or {}).items():
            if key not in DEFAULTS:
                raise ValueError(f"{type(self).__name__} has no option {key!r}: use {', '.join(DEFAULTS)}")
            if value is not None:
                options[key] = value
        for key in ("limit", "grading_timeout_s"):
            if options[key] is not None and not options[key] > 0:
                raise ValueError(f"{key} is {options[key]!r}: it must be positive")
        super().__init__(_load(options))
        self.arithmetic = options["tasks"] == "arithmetic"
        self.system_prompt: str | None = options["system_prompt"]
        self.instruction: str = options["instruction"]
        if options["instruction"] is None:
            self.instruction = "" if self.arithmetic else INSTRUCTION
        self.grading_timeout_s: float = options["grading_timeout_s"]

    def prompt(self, task: Task) -> list[Message]:
        chat: list[Message] = []
        if self.system_prompt:
            chat.append({"role": "system", "content": self.system_prompt})
        content = f"{task.prompt}\n\n{self.instruction}" if self.instruction else task.prompt
        return [*chat, {"role": "user", "content": content}]

    def respond(self, task: Task, response: str) -> Outcome:
        # A problem that is nothing but an expression would be its own answer: see grading.grade.
        verdict = grade(task.data["answer"], response, self.grading_timeout_s, literal=self.arithmetic)
        return Outcome(
            quality=float(verdict is Verdict.CORRECT),
            metrics={"grading_timeout": float(verdict is Verdict.TIMED_OUT)},
        )

    def demonstration(self, task: Task) -> Sequence[str]:
        """The answer; of arithmetic alone, since other problems call for a worked solution."""
        if not self.arithmetic:
            return super().demonstration(task)
        return [task.data["answer"]]


def _load(options: Mapping[str, Any]) -> tuple[Task, ...]:
    tasks, levels, limit, seed = options["tasks"], options["levels"], options["limit"], options["seed"]
    applicable = {"split", "levels"} if tasks == "arithmetic" else {"data_dir"} if tasks in SPLITS else {"split"}
    for key in ("data_dir", "levels", "split"):
        if options[key] is not None and key not in applicable:
            raise ValueError(f"{key} is {options[key]!r} but tasks is {tasks!r}, which has none: leave {key} out")
    if tasks == "arithmetic":
        return arithmetic_tasks(None if levels is None else tuple(levels), options["split"] or "train", limit, seed)
    loaded = load_split(tasks, options["data_dir"]) if tasks in SPLITS else load_tasks(tasks, options["split"])
    return loaded if limit is None else subset(loaded, limit, seed)
