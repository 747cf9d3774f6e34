"""Fakes that several tests use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.base import Message, Outcome, SelfImprovementEnv, Task


class CounterEnv(SelfImprovementEnv):
    """Reach a target by adding the integers of the responses to a counter that starts at 0.

    An episode ends after ``turns`` responses. The quality is 1 at the target and falls with the distance.
    A response that is no integer adds nothing and is not valid.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        config = config or {}
        self.max_turns: int = config.get("turns", 3)
        targets = range(1, 1 + config.get("tasks", 4))
        super().__init__([Task(f"count/{n}", f"Count to {n}.", {"target": n}) for n in targets])
        self.count = 0
        self.responses = 0

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "system", "content": "You count."}, {"role": "user", "content": task.prompt}]

    def begin(self, task: Task) -> None:
        self.count = 0
        self.responses = 0

    def respond(self, task: Task, response: str) -> Outcome:
        self.responses += 1
        try:
            self.count += int(response)
            valid = True
        except ValueError:
            valid = False
        return Outcome(
            quality=1 / (1 + abs(task.data["target"] - self.count)),
            feedback=f"The counter is at {self.count}.",
            done=self.responses == self.max_turns,
            valid=valid,
            metrics={"count": float(self.count)},
        )
