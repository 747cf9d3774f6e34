"""Multi-turn tool use on BFCL as an environment (paper appendix A.3, which has the category ``base``)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from envs.base import Kind, Message, Outcome, SelfImprovementEnv, Task, Turn
from envs.bfcl import worker
from envs.bfcl.apis import STATELESS_CLASS, functions, offered
from envs.bfcl.calls import TASK_ERROR, TASK_FINISHED, ActionKind, Call, bind, format_calls, parse_response
from envs.bfcl.grading import contained
from envs.bfcl.prompt import Schemas, schema, system_prompt, tool_response
from envs.bfcl.tasks import Category, Requests, Split, not_offered, select_tasks
from envs.options import Options
from envs.prompts import self_iteration_prompt

MAX_TURNS = {"first": 10, "all": 60}
# The feedback quotes at most this much of a name that a response makes up, and of an error in its arguments.
MAX_NAME_CHARS, MAX_ERROR_CHARS = 64, 500


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A call that was executed to its end, with every argument, and whether it succeeded."""

    call: Call
    ok: bool


class BFCLOptions(Options):
    """The options of :class:`BFCLEnv`."""

    split: Split = Field("train", description="`train`, `test`, `val`, `train75` (`train` without `val`) or `all`.")
    category: Category = Field(
        "base",
        description="`base`; `miss_func`, where functions that a request needs are offered with the next one; "
        "`miss_param`, where the next one names a detail; or `long_context`, with much more data than is needed. The "
        "variants of a task are in the same split.",
    )
    classes: tuple[str, ...] | None = Field(
        None, description="Only tasks that involve no other API classes; by default all tasks."
    )
    limit: PositiveInt | None = Field(None, description="How many tasks are drawn; all by default.")
    seed: int = Field(0, description="The seed of that draw.")
    requests: Requests = Field(
        "first",
        description="`first`, as in training (in `miss_func` and `miss_param` up to the first that can be fulfilled), "
        "or `all` of the user's requests.",
    )
    max_turns: PositiveInt | None = Field(
        None, description="The most responses; by default 10 for `first` and 60 for `all` requests."
    )
    schemas: Schemas = Field(
        "call",
        description="What the prompt shows of each function: `call`, all that a call needs; `full`, also what it "
        "returns; or `short`, the first sentence and the names and types of the parameters, for small contexts.",
    )
    max_unended: PositiveInt = Field(
        3,
        description="How many responses in a row may have no ending (`</tool>`, `<TASK_FINISHED>` or `<TASK_ERROR>`): "
        "each is answered by an error, and the last of so many ends the episode.",
    )
    call_timeout_s: PositiveFloat = Field(
        5.0, description="The CPU seconds that the calls of one response may take together."
    )


class BFCLEnv(SelfImprovementEnv):
    """User requests, one after the other, each fulfilled by calling functions.

    A response makes calls, finishes the current request or gives up (see ``calls.parse_response``). Calls
    run in order up to the first that fails; the feedback is a JSON list with a result or an error for each.
    The quality is 1 if, for every request, the ground-truth calls are among the successful calls made for it
    and the API objects are in the state that the ground truth leaves; else 0. How the episode ends has no
    part in it. Where functions or details are missing, so that nothing fulfils a request, giving up is right: the
    next request follows, with the schemas of the functions that it brings. A response without an ending is not valid.
    It is answered by an error that says what is expected, and the episode goes on, up to ``max_unended`` of them in a
    row.

    Metrics: ``first_turn_accuracy``, whether the first user request (BFCL calls it a turn) is solved, that
    is, its calls are contained and the states are equal at its end; ``requests_solved_fraction``;
    ``tool_calls``; ``failed_calls``; ``malformed_fraction``, the share of responses that got an error for their format;
    ``official_accuracy``, the verdict of BFCL's own checker.

    Args:
        config: The options, see :class:`BFCLOptions`; also as RLlib's ``env_config``.

    Raises:
        ModuleNotFoundError: If ``bfcl-eval`` is not installed.
        ValueError: If an option is unknown or has an impossible value.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.options = options = BFCLOptions.parse(config)
        super().__init__(
            select_tasks(
                options.split, options.requests, options.classes, options.limit, options.seed, options.category
            )
        )
        self.max_turns: int = options.max_turns or MAX_TURNS[options.requests]

    def prompt(self, task: Task) -> list[Message]:
        system = system_prompt(task.data["classes"], not_offered(task, 0), self.options.schemas)
        return [{"role": "system", "content": system}, {"role": "user", "content": task.prompt}]

    def self_iteration_prompt(self, task: Task, iterate: Turn, kind: Kind) -> str:
        """The request to iterate. It shows no feedback: at test time iterates are not executed."""
        return self_iteration_prompt(kind)

    def solution(self, response: str) -> str:
        """The calls with every argument, or the ending, or what is wrong with the response's format.

        Their results need not be in it: they follow from the calls and the turns before.
        """
        action = parse_response(response)
        calls = [{"name": call.name, "args": _all_arguments(call)} for call in action.calls]
        return json.dumps(calls, sort_keys=True) if calls else action.problem or action.kind.value

    def demonstration(self, task: Task) -> Sequence[str]:
        """The responses of the ground truth: one call at a time, then the end of each request."""
        return [
            response
            for solution in task.data["ground_truth"]
            for response in (*map(format_calls, solution), TASK_FINISHED if solution else TASK_ERROR)
        ]

    def begin(self, task: Task) -> None:
        self._functions = offered(task.data["classes"], not_offered(task, 0))
        self._ground_truth = [
            [bind(call, functions()[call.name].signature) for call in solution]
            for solution in task.data["ground_truth"]
        ]
        self._made: list[list[MadeCall]] = [[] for _ in self._ground_truth]
        self._request = 0  # the index of the current one
        self._responses = 0
        self._tool_calls = 0
        self._failed_calls = 0
        self._malformed = 0
        self._unended = 0  # the responses without an ending since the last one that has one

    def respond(self, task: Task, response: str) -> Outcome:
        action = parse_response(response)
        unended = action.kind is ActionKind.UNENDED
        self._responses += 1
        self._malformed += bool(action.problem)
        self._unended = self._unended + 1 if unended else 0
        feedback, done = None, self._responses >= self.max_turns or self._unended == self.options.max_unended
        match action.kind:
            case ActionKind.CALLS:
                feedback = self._execute(task, action.calls)
            case ActionKind.MALFORMED | ActionKind.UNENDED:
                feedback = tool_response(json.dumps([{"error": action.problem}]))
            case ActionKind.ERROR if self._ground_truth[self._request]:
                done = True
            case ActionKind.FINISHED | ActionKind.ERROR:
                self._request += 1
                if self._request < len(self._ground_truth):
                    feedback = self._next_request(task)
                else:
                    done = True
        quality, metrics = self._grade(task)
        return Outcome(quality, feedback, done, valid=not unended, metrics=metrics)

    def _next_request(self, task: Task) -> str:
        """The text of the request that now begins, with the schemas of the functions that it brings."""
        self._functions = offered(task.data["classes"], not_offered(task, self._request))
        brought = [
            schema(self._functions[name].doc, self.options.schemas)
            for name in task.data["withheld"].get(self._request, ())
        ]
        return "\n".join([*brought, task.data["requests"][self._request]])

    def _execute(self, task: Task, requested: Sequence[Call]) -> str:
        """Runs calls up to the first that fails; returns what the policy sees."""
        bound, error = [], ""
        for call in requested:
            try:
                bound.append(self._bind(call))
            except ValueError as problem:
                error = json.dumps({"error": str(problem)[:MAX_ERROR_CHARS]})
                break
        made = [made.call for request in self._made for made in request]
        results = worker.execute(task.data, _stateful(made), bound, self.options.call_timeout_s) if bound else []
        self._made[self._request] += [
            MadeCall(call, result.ok) for call, result in zip(bound, results, strict=False) if result.finished
        ]
        texts = [result.text for result in results]
        failed = bool(results) and not results[-1].ok
        if error and not failed:
            texts.append(error)
            failed = True
        self._tool_calls += len(texts)
        self._failed_calls += failed
        texts += ['{"error": "not run, as the call before it failed"}'] * (len(requested) - len(texts))
        return tool_response(f"[{', '.join(texts)}]")

    def _bind(self, call: Call) -> Call:
        if call.name not in self._functions:
            name = call.name[:MAX_NAME_CHARS]
            close = difflib.get_close_matches(name, self._functions, n=1)
            raise ValueError(f"unknown function {name!r}" + (f", did you mean {close[0]!r}?" if close else ""))
        return bind(call, self._functions[call.name].signature)

    def _grade(self, task: Task) -> tuple[float, dict[str, float]]:
        """The quality and metrics if the episode ended here."""
        solved = [
            contained(solution, [made.call for made in request if made.ok])
            for solution, request in zip(self._ground_truth, self._made, strict=True)
        ]
        quality = all(solved)
        made = [[made.call for made in request] for request in self._made]
        if any(solved):
            pairs = ([*map(_stateful, made)], [*map(_stateful, self._ground_truth)])
            equal = worker.compare(task.data, *pairs, self.options.call_timeout_s)
            quality = quality and equal[-1]
            solved = [calls_made and same for calls_made, same in zip(solved, equal, strict=True)]
        # The context may end with any turn, so every turn has all metrics.
        verdict = worker.official_verdict(task.data, made, self._ground_truth, self.options.call_timeout_s)
        return float(quality), {
            "first_turn_accuracy": float(solved[0]),
            "requests_solved_fraction": sum(solved) / len(solved),
            "tool_calls": float(self._tool_calls),
            "failed_calls": float(self._failed_calls),
            "malformed_fraction": self._malformed / self._responses,
            "official_accuracy": float(verdict),
        }


def _all_arguments(call: Call) -> Mapping[str, Any]:
    """The arguments, with the defaults of those that are left out if the function takes the others."""
    try:
        return bind(call, functions()[call.name].signature).args if call.name in functions() else call.args
    except ValueError:
        return call.args


def _stateful(made: Sequence[Call]) -> list[Call]:
    """The calls that can change a state."""
    return [call for call in made if functions()[call.name].api != STATELESS_CLASS]
