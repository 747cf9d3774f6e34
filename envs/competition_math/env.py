"""Competition math, and arithmetic for small models, as a one-turn environment (paper appendix A.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from envs.competition_math.arithmetic import arithmetic_tasks
from envs.competition_math.grading import Verdict, grade
from envs.competition_math.tasks import SPLITS, load_split, load_tasks
from envs.options import Options, PathText
from envs.sampling import subset

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


class CompetitionMathOptions(Options):
    """The options of :class:`CompetitionMathEnv`."""

    tasks: PathText = Field(
        "arithmetic",
        description="`arithmetic`; one of the paper's splits: `train`, `val_math100`, `math500`, `amc12`, `aime24`, "
        "`aime25`, `minerva`, `olympiadbench`; or a JSONL or Parquet file, a folder, or a Hub data set.",
    )
    data_dir: PathText | None = Field(
        None, description="For a split of the paper, the folder with its file; by default the split comes from the Hub."
    )
    levels: tuple[str, ...] | None = Field(
        None, description="For `arithmetic`, the names of the levels; all by default."
    )
    split: str | None = Field(
        None, description="For `arithmetic`, `train` (the default) or `test`; for a data set, its split."
    )
    limit: PositiveInt | None = Field(None, description="How many tasks are drawn; all by default.")
    seed: int = Field(0, description="The seed of that draw.")
    system_prompt: str | None = Field(None, description="The system message; none by default.")
    instruction: str | None = Field(
        None,
        description="What follows the problem in the prompt; by default a request to reason and to box the answer, for "
        "`arithmetic` nothing.",
    )
    grading_timeout_s: PositiveFloat = Field(
        5.0, description="The CPU seconds that grading an answer may take. An answer that takes more is wrong."
    )


class CompetitionMathEnv(SelfImprovementEnv):
    """One math problem, one response; the quality is 1 if math-verify accepts the answer, else 0.

    Args:
        config: The options, see :class:`CompetitionMathOptions`; also as RLlib's ``env_config``.

    Raises:
        ValueError: If an option is unknown, contradicts ``tasks`` or has an impossible value.
    """

    max_turns = 1

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.options = options = CompetitionMathOptions.parse(config)
        super().__init__(_load(options))
        self.arithmetic = options.tasks == "arithmetic"
        default = "" if self.arithmetic else INSTRUCTION
        self.instruction = default if options.instruction is None else options.instruction

    def prompt(self, task: Task) -> list[Message]:
        chat: list[Message] = []
        if self.options.system_prompt:
            chat.append({"role": "system", "content": self.options.system_prompt})
        content = f"{task.prompt}\n\n{self.instruction}" if self.instruction else task.prompt
        return [*chat, {"role": "user", "content": content}]

    def respond(self, task: Task, response: str) -> Outcome:
        answer, timeout_s = task.data["answer"], self.options.grading_timeout_s
        verdict = grade(answer, response, timeout_s, problem=task.prompt, literal=self.arithmetic)
        return Outcome(
            quality=float(verdict is Verdict.CORRECT),
            metrics={"grading_timeout": float(verdict is Verdict.TIMED_OUT)},
        )

    def demonstration(self, task: Task) -> Sequence[str]:
        """The answer of an arithmetic problem. Other problems have none, since they call for a worked solution."""
        if not self.arithmetic:
            return super().demonstration(task)
        return [task.data["answer"]]


def _load(options: CompetitionMathOptions) -> tuple[Task, ...]:
    tasks, split, limit, seed = options.tasks, options.split, options.limit, options.seed
    applicable = {"split", "levels"} if tasks == "arithmetic" else {"data_dir"} if tasks in SPLITS else {"split"}
    for key in {"data_dir", "levels", "split"} - applicable:
        if (value := getattr(options, key)) is not None:
            raise ValueError(f"{key} is {value!r} but tasks is {tasks!r}, which has none: leave {key} out")
    if tasks == "arithmetic":
        return arithmetic_tasks(options.levels, split or "train", limit, seed)
    loaded = load_split(tasks, options.data_dir) if tasks in SPLITS else load_tasks(tasks, split)
    return subset(loaded, limit, seed)
