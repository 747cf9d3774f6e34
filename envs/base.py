"""The self-improvement decision process (paper section 2.1) as a gymnasium environment.

A *turn* t is a timestep of a task's POMDP: one assistant response and the environment's answer. A *step* k is a
self-iteration on one turn's response. A *task instance* says where an episode starts: a task, the history of turns
before turn t, and, unless turn t is answered afresh, the iterate to improve on or to diverge from.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NotRequired, TypedDict, cast

import gymnasium as gym
import numpy as np

from envs.prompts import self_iteration_prompt

Kind = Literal["base", "improve", "diverge"]


class Message(TypedDict):
    """One chat message, as chat templates take it.

    ``markers`` are the strings in an assistant's content that may become control tokens, see
    :meth:`SelfImprovementEnv.markers`.
    """

    role: str
    content: str
    markers: NotRequired[tuple[str, ...]]


class InfrastructureError(RuntimeError):
    """The environment failed, not the response, of whose quality nothing is known.

    Raised by ``respond`` where a grader or a sandbox broke down. Such an episode is run once more, then left out.
    """


@dataclass(frozen=True, slots=True)
class Task:
    """One base problem of a domain.

    Attributes:
        id: Unique in its task set.
        prompt: The request that the policy sees.
        data: What the domain needs besides (the gold answer, say). Its numeric values under
            ``metrics`` are reported, averaged over the selected instances, as ``curriculum/<name>_mean``.
    """

    id: str
    prompt: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """The last iterate y_t^k of a turn, with the environment's answer to it.

    Two turns are equal if their solutions are: the rest follows from the solution and the turns before.

    Attributes:
        response: The text of the iterate.
        feedback: The environment's answer: tool results, an error, the next user request.
        quality: The quality of the trajectory up to this turn, in [0, 1].
        depth: k, the number of self-iteration steps behind the response.
        solution: What of the response counts as the solution, see :meth:`SelfImprovementEnv.solution`; by default all
            of it.
    """

    response: str = field(compare=False)
    feedback: str | None = field(default=None, compare=False)
    quality: float | None = field(default=None, compare=False)
    depth: int = field(default=0, compare=False)
    solution: str = cast(str, None)  # until __post_init__

    def __post_init__(self) -> None:
        if self.solution is None:
            object.__setattr__(self, "solution", self.response)


@dataclass(frozen=True, slots=True)
class TaskInstance:
    """A self-improvement task: where an episode starts and what its first response is to do.

    Attributes:
        task_id: The base task.
        history: h_{<t}, the last iterates of the turns before turn t.
        iterate: The current response to turn t, None for ``base``.
        kind: ``base`` answers turn t afresh, ``improve`` and ``diverge`` iterate on ``iterate``.
    """

    task_id: str
    history: tuple[Turn, ...] = ()
    iterate: Turn | None = None
    kind: Kind = "base"

    def __post_init__(self) -> None:
        if self.kind not in ("base", "improve", "diverge"):
            raise ValueError(f"kind is {self.kind!r}: use 'base', 'improve' or 'diverge'")
        if (self.iterate is None) != (self.kind == "base"):
            raise ValueError(
                f"kind {self.kind!r} with iterate {self.iterate!r}: "
                "'improve' and 'diverge' need an iterate, 'base' has none"
            )

    @property
    def digest(self) -> str:
        """64 bits, in hexadecimal, that name the task and the solutions that the episode starts from.

        They are the same in every process. The kind is no part of them: ``improve`` and ``diverge`` start from the same
        solutions, and so does a ``base`` instance whose history ends where theirs does.
        """
        turns = (*self.history, self.iterate) if self.iterate else self.history
        return prefix_digests(self.task_id, turns)[-1]

    @property
    def depth(self) -> int:
        """The number of self-iteration steps behind the iterate."""
        return self.iterate.depth if self.iterate else 0

    @property
    def starting_turn(self) -> int:
        """t, the index of the first turn that the episode answers."""
        return len(self.history)


def prefix_digests(task_id: str, turns: Iterable[Turn]) -> list[str]:
    """The digest of a task without any turn, then for every turn that of the instance which ends in it."""
    # JSON escapes lone surrogates, and its quotes tell two texts from one.
    digest = hashlib.blake2b(json.dumps(task_id).encode(), digest_size=8)
    digests = [digest.hexdigest()]
    for turn in turns:
        digest.update(json.dumps(turn.solution).encode())
        digests.append(digest.hexdigest())
    return digests


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the environment says of one response.

    Attributes:
        quality: The quality of the trajectory so far, in [0, 1]; the last one counts for the episode.
        feedback: The answer that the policy sees next (or, iterating, sees with its response).
        done: Whether the episode ends here.
        valid: False if the response lacks any valid ending: overlong filtering then leaves it out of the loss. The
            episode may go on, with an error as the feedback; only one that ends in such a response is not iterated on.
        metrics: Numbers of the domain to report, averaged over rollouts.
        files: What the response made, by name, if the environment was asked to keep it.
    """

    quality: float
    feedback: str | None = None
    done: bool = True
    valid: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


class UnicodeText(gym.spaces.Text):
    """Any Python string; ``gymnasium.spaces.Text`` accepts only an enumerated character set."""

    def __init__(self) -> None:
        super().__init__(max_length=1 << 20, min_length=0)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)


class SelfImprovementEnv(gym.Env[str, str], ABC):
    """A domain of self-improvement tasks.

    A domain implements ``prompt`` and ``respond``; ``begin``, if it keeps state between turns; ``reward``, if that
    is not the quality; ``solution``, if only a part of a response is one; ``next_iterate``, if a greedy search is to
    go on from another iterate than the last; ``demonstration``, if good responses are known; ``gold``, if the answer
    has another name. An episode starts from ``reset(options={"instance": TaskInstance})``; without the option, from a
    task drawn uniformly. The chat that the policy answers is ``messages()``; its last text is the observation.

    Args:
        tasks: The base tasks, with unique ids.

    Raises:
        ValueError: If there is no task, or two share an id.
    """

    metadata = {"render_modes": []}
    max_turns: int | None = None
    """The most turns of an episode, as far as the domain has a limit. Dr. GRPO's loss divides by what it allows."""

    instant: ClassVar[bool] = False
    """Whether ``reset`` and ``step`` always take well below a millisecond. Episodes then call them on the thread that
    serves all episodes, without a time-out; otherwise in a thread of their own, which costs more than such a call."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks: dict[str, Task] = {task.id: task for task in tasks}
        if not self.tasks:
            raise ValueError(f"{type(self).__name__} got no tasks")
        if len(self.tasks) != len(tasks):
            raise ValueError(
                f"{type(self).__name__} got {len(tasks)} tasks with {len(self.tasks)} ids: ids must be unique"
            )
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._instance: TaskInstance | None = None
        self._turns: list[Turn] = []

    # What a domain implements.

    @abstractmethod
    def prompt(self, task: Task) -> list[Message]:
        """The chat before the first response: system and user messages."""

    @abstractmethod
    def respond(self, task: Task, response: str) -> Outcome:
        """Answers the policy's response to the current turn.

        Raises:
            InfrastructureError: If it cannot, for no fault of the response.
        """

    def begin(self, task: Task) -> None:
        """Starts the task afresh. A history is restored by ``begin`` and one ``respond`` per turn."""

    def reward(self, quality: float, previous: float | None) -> float:
        """The return of an episode of the given final quality.

        Args:
            quality: The episode's final quality, in [0, 1].
            previous: The quality of the iterate that an ``improve`` step started from; None for
                ``base`` and ``diverge``.
        """
        return quality

    def solution(self, response: str) -> str:
        """What of a response makes it differ from others; by default all of it.

        The task buffer tells instances apart by it, and the diversity bonus compares it.
        """
        return response

    def next_iterate(self, iterates: Sequence[Turn]) -> Turn | None:
        """The iterate from which the next step of a greedy search starts; by default the last one.

        Args:
            iterates: The iterates of the first turn after the steps taken so far, in order; at least one.

        Returns:
            One of them, or None to answer the turn afresh.
        """
        return iterates[-1]

    def tools(self, task: Task) -> Sequence[Mapping[str, Any]]:
        """The functions that the chat template shows, as JSON schemas; none if the messages say all there is."""
        return ()

    def markers(self, response: str) -> tuple[str, ...]:
        """The strings in a response that its format has as control tokens, where the model has such tokens.

        A response that is shown again, or trained on as a demonstration, has the tokens of plain text but for these.
        """
        return ()

    def demonstration(self, task: Task) -> Sequence[str]:
        """The responses of one good episode of the task, in order; what ``rllib sft`` trains on.

        Raises:
            NotImplementedError: If the domain has none.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no demonstrations: implement demonstration(task), which returns the "
            "responses of one good episode"
        )

    def gold(self, task: Task) -> str | None:
        """The gold answer, for people who read the log of rollouts; by default ``data["answer"]``.

        None if there is none. The policy never sees it.
        """
        answer = task.data.get("answer")
        return None if answer is None else str(answer)

    # The environment.

    @property
    def task(self) -> Task:
        """The task of the current episode."""
        return self.tasks[self.instance.task_id]

    @property
    def instance(self) -> TaskInstance:
        """The instance that the current episode started from."""
        if self._instance is None:
            raise RuntimeError("call reset() first")
        return self._instance

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of the episode so far, those of the instance's history included."""
        return tuple(self._turns)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode from ``options["instance"]``.

        Raises:
            ValueError: If the instance's task is unknown, or its history runs past the episode's end.
        """
        super().reset(seed=seed)
        instance = (options or {}).get("instance")
        if instance is None:
            instance = TaskInstance(str(self.np_random.choice(np.array(list(self.tasks), dtype=object))))
        if instance.task_id not in self.tasks:
            raise ValueError(f"unknown task {instance.task_id!r}: {type(self).__name__} has {len(self.tasks)} tasks")
        self._instance, self._turns = instance, []
        self.begin(self.task)
        for turn in instance.history:
            outcome = self._respond(turn.response)
            if outcome.done:
                raise ValueError(f"task {instance.task_id!r}: turn {len(self._turns)} of the history ends the episode")
            self._turns.append(self._turn(turn.response, outcome, turn.depth))
        return self.messages()[-1]["content"], {}

    def messages(self, iterate: Turn | None = None, kind: Kind | None = None) -> list[Message]:
        """The chat that the policy answers now.

        Args:
            iterate: The response of the current turn to iterate on; by default the instance's, until
                the episode's first response.
            kind: What to do with it; by default what the instance says.
        """
        if iterate is None and len(self._turns) == self.instance.starting_turn:
            iterate, kind = self.instance.iterate, self.instance.kind
        chat = self.prompt(self.task)
        for turn in self._turns:
            chat.append(self._assistant(turn.response))
            chat.append({"role": "user", "content": turn.feedback or ""})
        if iterate is not None:
            chat.append(self._assistant(iterate.response))
            chat.append({"role": "user", "content": self.self_iteration_prompt(self.task, iterate, kind or "improve")})
        return chat

    def _assistant(self, response: str) -> Message:
        message = Message(role="assistant", content=response)
        if markers := self.markers(response):
            message["markers"] = markers
        return message

    def self_iteration_prompt(self, task: Task, iterate: Turn, kind: Kind) -> str:
        """The request to improve on, or diverge from, the iterate."""
        return self_iteration_prompt(kind, iterate.feedback)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes the policy's response to the current turn.

        Returns:
            Observation, reward, terminated, truncated and ``info``; ``info["outcome"]`` is the
            :class:`Outcome`. The reward is 0 before the end; the sum over an episode is its return.

        Raises:
            ValueError: If the domain's quality or reward is not finite, or the quality is outside [0, 1].
        """
        instance = self.instance
        first = len(self._turns) == instance.starting_turn
        outcome = self._respond(action)
        depth = instance.depth + 1 if first and instance.iterate else 0
        self._turns.append(self._turn(action, outcome, depth))
        reward = self.episode_return(outcome.quality) if outcome.done else 0.0
        observation = outcome.feedback or ""
        return observation, reward, outcome.done, False, {"outcome": outcome}

    def _turn(self, response: str, outcome: Outcome, depth: int) -> Turn:
        return Turn(response, outcome.feedback, outcome.quality, depth, self.solution(response))

    def episode_return(self, quality: float) -> float:
        """The return of the current episode if it ends with this quality.

        Raises:
            ValueError: If the domain's reward is not finite.
        """
        instance = self.instance
        previous = instance.iterate.quality if instance.iterate and instance.kind == "improve" else None
        reward = float(self.reward(quality, previous))
        if not math.isfinite(reward):
            name = f"task {instance.task_id!r}: {type(self).__name__}.reward"
            raise ValueError(f"{name} gave {reward}: it must be finite")
        return reward

    def _respond(self, response: str) -> Outcome:
        outcome = self.respond(self.task, response)
        if not isinstance(outcome, Outcome):
            raise TypeError(f"{type(self).__name__}.respond gave {outcome!r}: it must be an Outcome(quality, feedback)")
        if not 0.0 <= outcome.quality <= 1.0:  # NaN too
            name = f"task {self.instance.task_id!r}: {type(self).__name__}"
            raise ValueError(f"{name} gave quality {outcome.quality}: it must be in [0, 1]")
        return outcome
