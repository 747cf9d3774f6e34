"""Countdown: make a target from given numbers. One turn, exact feedback, and many answers that can be improved on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from envs.base import Kind, Message, Outcome, SelfImprovementEnv, Task, Turn
from envs.countdown.expressions import ExpressionError, parse
from envs.countdown.grading import CLOSE, OPEN, answer, grade, quality
from envs.countdown.tasks import Split, countdown_tasks
from envs.options import Options


def _ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError("give the least, then the greatest")
    return bounds


Count = Annotated[int, Field(ge=2, le=5)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(lambda value: (value,) if isinstance(value, int) else value)]
Range = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_ordered)]


class CountdownOptions(Options):
    """The options of :class:`CountdownEnv`."""

    split: Split = Field(
        "train",
        description="`train` (80 %), `validation` or `test`; disjoint by numbers and target, whatever else is set.",
    )
    numbers: Counts = Field((3,), description="How many numbers a task has, from 2 to 5, or a list of such counts.")
    number_range: Range = Field((1, 16), description="The least and the greatest number.")
    target_range: Range = Field((1, 99), description="The least and the greatest target.")
    operators: str = Field("+-*", pattern=r"^[-+*/]+$", description="What an answer may use of `+-*/`.")
    limit: PositiveInt | None = Field(
        None, description="How many tasks are drawn, each of other numbers where there are enough; all by default."
    )
    seed: int = Field(0, description="The seed of that draw.")
    graded: bool = Field(
        False,
        description="Whether an answer that misses the target has a quality, which halves with every 10 by which it "
        "misses.",
    )
    hidden_target: bool = Field(
        False,
        description="The prompt does not show the target, the feedback says how far off the value is. No first answer "
        "is right but by luck, so that only self-improvement can be learned.",
    )
    feedback: bool = Field(True, description="Whether a self-iteration step is told what the earlier answer is worth.")
    prompt: Literal["short", "prose"] = Field(
        "short", description="`short`, which a very small model can read, or `prose`, for any other."
    )


class CountdownEnv(SelfImprovementEnv):
    """Make a target from given numbers, each used exactly once; the response is an expression.

    The feedback says what the expression is worth and how that compares with the target, or what is wrong with it. The
    quality is 1 for the target, else 0.

    Args:
        config: The options, see :class:`CountdownOptions`; also as RLlib's ``env_config``.

    Raises:
        ValueError: If an option is unknown or has an impossible value, or there is no such task.
    """

    instant = True
    max_turns = 1

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.options = options = CountdownOptions.parse(config)
        tasks = countdown_tasks(
            options.split,
            options.numbers,
            options.number_range,
            options.target_range,
            options.operators,
            options.limit,
            options.seed,
        )
        super().__init__(tasks)
        self.prose = options.prompt == "prose"

    def prompt(self, task: Task) -> list[Message]:
        numbers, target = task.data["numbers"], "?" if self.options.hidden_target else task.data["target"]
        content = f"{' '.join(map(str, numbers))} make {target}"
        if self.prose:
            content = (
                f"Make {'a number that I keep secret' if self.options.hidden_target else target} from the numbers "
                f"{', '.join(map(str, numbers))}. Use each of them exactly once, with parentheses and the operators "
                f"{' '.join(self.options.operators)}. Give the expression between {OPEN} and {CLOSE}."
            )
        return [{"role": "user", "content": content}]

    def self_iteration_prompt(self, task: Task, iterate: Turn, kind: Kind) -> str:
        if self.prose:
            return super().self_iteration_prompt(task, iterate, kind)
        return f"{iterate.feedback} {kind}" if iterate.feedback else kind

    def respond(self, task: Task, response: str) -> Outcome:
        numbers, target, options = task.data["numbers"], task.data["target"], self.options
        verdict = grade(response, numbers, target, options.operators, hidden=options.hidden_target)
        return Outcome(
            quality=quality(verdict.distance, options.graded),
            feedback=verdict.feedback if options.feedback else None,
            valid=verdict.expression is not None,
            metrics={"well_formed": float(verdict.distance is not None), "right": float(verdict.distance == 0)},
        )

    def solution(self, response: str) -> str:
        """The expression in canonical form, in which a+b is b+a; what is no expression is itself."""
        text = answer(response)
        try:
            return parse(text, self.options.operators).text
        except ExpressionError:
            return text

    def demonstration(self, task: Task) -> Sequence[str]:
        """A shortest solution. There is none where the target is hidden."""
        if self.options.hidden_target:
            return super().demonstration(task)
        solution = task.data["solution"]
        return [f"{OPEN}{solution}{CLOSE}" if self.prose else solution]

    def gold(self, task: Task) -> str:
        """A shortest solution."""
        return task.data["solution"]
