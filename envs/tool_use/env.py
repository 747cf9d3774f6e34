"""What all multi-turn tool use has in common: responses that call functions until the user's requests are fulfilled."""

from __future__ import annotations

import difflib
import json
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from envs.base import Kind, Message, Outcome, SelfImprovementEnv, Task, Turn
from envs.options import Options
from envs.prompts import self_iteration_prompt
from envs.tool_use.calls import FORMATS, STOP, ActionKind, Call, Format
from envs.tool_use.prompt import NATIVE_INSTRUCTION, escaped, tool_response
from envs.tool_use.worker import Result

# The feedback quotes at most this much of a name that a response makes up, and of an error in its arguments.
MAX_NAME_CHARS, MAX_ERROR_CHARS = 64, 500


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A call that was executed to its end, with every argument, whether it succeeded, and its result as JSON text."""

    call: Call
    ok: bool
    text: str


class ToolUseOptions(Options):
    """The options that all tool use has."""

    tool_format: Literal["tags", "native"] = Field(
        "tags",
        description="How calls are written: `tags`, as the system message explains to any model, in `<tool>`, "
        "`<TASK_FINISHED>` and `<TASK_ERROR>`; or `native`, as the model's chat template has it, which also shows the "
        "functions. There a response without a call ends the request.",
    )
    max_unended: PositiveInt = Field(
        3,
        description="How many responses in a row may have no ending (`</tool>`, `<TASK_FINISHED>` or `<TASK_ERROR>`; "
        "with `native` any text is one): each is answered by an error, and the last of so many ends the episode.",
    )
    call_timeout_s: PositiveFloat = Field(5.0, description="The CPU seconds that a call may take.")


class ToolUseEnv(SelfImprovementEnv):
    """User requests, one after the other, each fulfilled by calling functions.

    A response makes calls, finishes the current request or gives up (see :data:`calls.FORMATS`). Calls run in order
    up to the first that fails; the feedback is a JSON list with a result or an error for each. A response without an
    ending is not valid. It is answered by an error that says what is expected, and the episode goes on, up to
    ``max_unended`` of them in a row.

    A subclass implements ``system_message`` and ``functions``, what the policy is told of them; ``bind``, which checks
    a call's arguments; ``run``, which makes calls; ``grade``; and ``next_request``, if a task has several. It sets
    ``max_turns``, and ``offered`` in ``begin``.

    Metrics: ``tool_calls``; ``failed_calls``; ``malformed_fraction``, the share of responses that got an error for
    their format.
    """

    stop: ClassVar[tuple[str, ...]] = STOP
    """The strings that end a response in the format ``tags``, for ``generation(stop=…)``."""

    options: ToolUseOptions
    max_turns: int
    offered: Collection[str]
    """The functions that may be called now."""

    @abstractmethod
    def system_message(self, task: Task) -> str:
        """The system message of the format ``tags``: the instruction and the functions."""

    @abstractmethod
    def functions(self, task: Task) -> Sequence[Mapping[str, Any]]:
        """What a chat template shows of the functions that are first offered: name, description and parameters."""

    @abstractmethod
    def bind(self, call: Call) -> Call:
        """The call with every argument: those that are given, and the defaults of the others.

        Raises:
            KeyError: If there is no such function.
            ValueError: If the arguments are wrong.
        """

    @abstractmethod
    def run(self, task: Task, calls: Sequence[Call]) -> list[Result]:
        """Makes calls in order, after those in ``_made``, up to the first that fails.

        Raises:
            InfrastructureError: If nothing is known about the calls.
        """

    @abstractmethod
    def grade(self, task: Task, response: str) -> tuple[float, Mapping[str, float]]:
        """The quality if the episode ended with this response, and metrics."""

    @property
    def format(self) -> Format:
        """How responses are written."""
        return FORMATS[self.options.tool_format]

    @property
    def _native(self) -> bool:
        return self.options.tool_format == "native"

    def next_request(self, task: Task, kind: ActionKind) -> str | None:
        """The text of the next request, or None if the episode ends.

        Args:
            task: The task.
            kind: How the response ended the current request: ``FINISHED`` or ``ERROR``.
        """
        return None

    def prompt(self, task: Task) -> list[Message]:
        system = NATIVE_INSTRUCTION if self._native else self.system_message(task)
        return [{"role": "system", "content": system}, {"role": "user", "content": task.prompt}]

    def tools(self, task: Task) -> Sequence[Mapping[str, Any]]:
        functions = self.functions(task) if self._native else ()
        return [{"type": "function", "function": function} for function in functions]

    def markers(self, response: str) -> tuple[str, ...]:
        markers = self.format.markers
        return markers if markers and self.format.parse(response).calls else ()

    def messages(self, iterate: Turn | None = None, kind: Kind | None = None) -> list[Message]:
        """The chat. In the format ``native`` each result of a call is a message of the role ``tool``."""
        chat = super().messages(iterate, kind)
        if not self._native:
            return chat
        first = len(self.prompt(self.task))
        shown = chat[:first]
        for i, turn in zip(range(first, len(chat), 2), self.turns, strict=False):
            shown.append(chat[i])
            answered = self.format.parse(turn.response).kind in (ActionKind.CALLS, ActionKind.MALFORMED)
            results = (turn.feedback or "").split("\n") if answered else ()
            shown += [Message(role="tool", content=result) for result in results] or [chat[i + 1]]
        return [*shown, *chat[first + 2 * len(self.turns) :]]

    def self_iteration_prompt(self, task: Task, iterate: Turn, kind: Kind) -> str:
        """The request to iterate. It shows no feedback: at test time iterates are not executed."""
        return self_iteration_prompt(kind)

    def solution(self, response: str) -> str:
        """The calls with every argument, or the ending, or what is wrong with the response's format.

        Their results need not be in it: they follow from the calls and the turns before.
        """
        action = self.format.parse(response)
        calls = [{"name": call.name, "args": self._all_arguments(call)} for call in action.calls]
        return json.dumps(calls, sort_keys=True) if calls else action.problem or action.kind.value

    def begin(self, task: Task) -> None:
        self._made: list[list[MadeCall]] = [[]]  # by request
        self._responses = 0
        self._tool_calls = 0
        self._failed_calls = 0
        self._malformed = 0
        self._unended = 0  # the responses without an ending since the last one that has one

    def respond(self, task: Task, response: str) -> Outcome:
        action = self.format.parse(response)
        unended = action.kind is ActionKind.UNENDED
        self._responses += 1
        self._malformed += bool(action.problem)
        self._unended = self._unended + 1 if unended else 0
        feedback, done = None, self._responses >= self.max_turns or self._unended == self.options.max_unended
        match action.kind:
            case ActionKind.CALLS:
                feedback = self._execute(task, action.calls)
            case ActionKind.MALFORMED | ActionKind.UNENDED:
                feedback = self._answer([json.dumps({"error": action.problem})])
            case ActionKind.FINISHED | ActionKind.ERROR:
                feedback = self.next_request(task, action.kind)
                done = done or feedback is None
        quality, metrics = self.grade(task, response)
        ours = {
            "tool_calls": float(self._tool_calls),
            "failed_calls": float(self._failed_calls),
            "malformed_fraction": self._malformed / self._responses,
        }
        return Outcome(quality, feedback, done, valid=not unended, metrics={**ours, **metrics})

    def _execute(self, task: Task, requested: Sequence[Call]) -> str:
        """Runs calls up to the first that fails; returns what the policy sees."""
        bound, error = [], ""
        for call in requested:
            try:
                bound.append(self._bind_offered(call))
            except ValueError as problem:
                error = json.dumps({"error": str(problem)[:MAX_ERROR_CHARS]})
                break
        results = self.run(task, bound) if bound else []
        self._made[-1] += [
            MadeCall(call, result.ok, result.text)
            for call, result in zip(bound, results, strict=False)
            if result.finished
        ]
        texts = [result.text for result in results]
        failed = bool(results) and not results[-1].ok
        if error and not failed:
            texts.append(error)
            failed = True
        self._tool_calls += len(texts)
        self._failed_calls += failed
        texts += ['{"error": "not run, as the call before it failed"}'] * (len(requested) - len(texts))
        return self._answer(texts)

    def _answer(self, results: Sequence[str]) -> str:
        """What the policy sees of results, each JSON and so without a line break."""
        return escaped("\n".join(results)) if self._native else tool_response(f"[{', '.join(results)}]")

    def _bind_offered(self, call: Call) -> Call:
        if call.name not in self.offered:
            name = call.name[:MAX_NAME_CHARS]
            close = difflib.get_close_matches(name, self.offered, n=1)
            raise ValueError(f"unknown function {name!r}" + (f", did you mean {close[0]!r}?" if close else ""))
        return self.bind(call)

    def _all_arguments(self, call: Call) -> Mapping[str, Any]:
        """The arguments, with the defaults of those that are left out if the function takes the others."""
        try:
            return self.bind(call).args
        except (KeyError, ValueError):
            return call.args
