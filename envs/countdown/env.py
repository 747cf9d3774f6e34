"""Countdown: make a target from given numbers. One turn, exact feedback, and many answers that can be improved on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envs.base import Kind, Message, Outcome, SelfImprovementEnv, Task, Turn
from envs.countdown.expressions import ExpressionError, parse
from envs.countdown.grading import CLOSE, OPEN, answer, grade, quality
from envs.countdown.tasks import countdown_tasks

DEFAULTS: Mapping[str, Any] = {
    "split": "train",
    "numbers": 3,
    "number_range": (1, 16),
    "target_range": (1, 99),
    "operators": "+-*",
    "limit": None,
    "seed": 0,
    "graded": False,
    "hidden_target": False,
    "prompt": "short",
}


class CountdownEnv(SelfImprovementEnv):
    """Make a target from given numbers, each used exactly once; the response is an expression.

    The feedback says what the expression is worth and how that compares with the target, or what is wrong with it.

    Args:
        config: Options, also as RLlib's ``env_config``; None counts as absent.

            - ``split``: ``train`` (default), ``validation`` or ``test``; disjoint by numbers and target.
            - ``numbers``: how many numbers a task has, 3 by default, or a list of counts, from 2 to 5.
            - ``number_range``, ``target_range``: least and greatest, by default [1, 16] and [1, 99].
            - ``operators``: some of ``+-*/``, by default ``+-*``.
            - ``limit``, ``seed``: how many tasks are drawn, all by default, and the draw's seed.
            - ``graded``: whether an answer that misses the target has a quality, which halves with every 10 by which
              it misses; by default only the target counts.
            - ``hidden_target``: the prompt does not show the target, and the feedback says how far off the value is.
              No first answer can be good but by luck, so that only self-improvement can be learned.
            - ``prompt``: ``short`` (default), which a very small model can read, or ``prose`` for others.

    Raises:
        ValueError: If an option is unknown or has an impossible value.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        options = dict(DEFAULTS)
        for key, value in (config or {}).items():
            if key not in DEFAULTS:
                raise ValueError(f"{type(self).__name__} has no option {key!r}: use {', '.join(DEFAULTS)}")
            if value is not None:
                options[key] = value
        if options["limit"] is not None and not options["limit"] > 0:
            raise ValueError(f"limit is {options['limit']!r}: it must be positive")
        if options["prompt"] not in ("short", "prose"):
            raise ValueError(f"prompt is {options['prompt']!r}: use 'short' or 'prose'")
        counts = options["numbers"]
        tasks = countdown_tasks(
            options["split"],
            (counts,) if isinstance(counts, int) else tuple(counts),
            tuple(options["number_range"]),
            tuple(options["target_range"]),
            options["operators"],
            options["limit"],
            options["seed"],
        )
        super().__init__(tasks)
        self.operators: str = options["operators"]
        self.graded: bool = options["graded"]
        self.hidden_target: bool = options["hidden_target"]
        self.prose: bool = options["prompt"] == "prose"

    def prompt(self, task: Task) -> list[Message]:
        numbers, target = task.data["numbers"], "?" if self.hidden_target else task.data["target"]
        content = f"{' '.join(map(str, numbers))} make {target}"
        if self.prose:
            content = (
                f"Make {'a number that I keep secret' if self.hidden_target else target} from the numbers "
                f"{', '.join(map(str, numbers))}. Use each of them exactly once, with parentheses and the operators "
                f"{' '.join(self.operators)}. Give the expression between {OPEN} and {CLOSE}."
            )
        return [{"role": "user", "content": content}]

    def self_iteration_prompt(self, task: Task, iterate: Turn, kind: Kind) -> str:
        return super().self_iteration_prompt(task, iterate, kind) if self.prose else f"{iterate.feedback} {kind}"

    def respond(self, task: Task, response: str) -> Outcome:
        verdict = grade(response, task.data["numbers"], task.data["target"], self.operators, self.hidden_target)
        return Outcome(
            quality=quality(verdict.distance, self.graded),
            feedback=verdict.feedback,
            valid=verdict.expression is not None,
            metrics={"well_formed": float(verdict.distance is not None), "right": float(verdict.distance == 0)},
        )

    def solution(self, response: str) -> str:
        """The expression in canonical form, in which a+b is b+a; what is no expression is itself."""
        text = answer(response)
        try:
            return parse(text, self.operators).text
        except ExpressionError:
            return text

    def demonstration(self, task: Task) -> Sequence[str]:
        """A shortest solution. There is none where the target is hidden."""
        if self.hidden_target:
            return super().demonstration(task)
        solution = task.data["solution"]
        return [f"{OPEN}{solution}{CLOSE}" if self.prose else solution]
