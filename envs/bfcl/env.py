"""Multi-turn tool use on BFCL as an environment (paper appendix A.3, which has the category ``base``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, PositiveInt

from envs.base import Task
from envs.bfcl import official, worker
from envs.bfcl.apis import STATELESS_CLASS, functions, offered
from envs.bfcl.calls import bind
from envs.bfcl.grading import contained
from envs.bfcl.prompt import Schemas, described, schema, system_prompt
from envs.bfcl.tasks import Category, Requests, Split, not_offered, select_tasks
from envs.tool_use.calls import ActionKind, Call
from envs.tool_use.env import MadeCall, ToolUseEnv, ToolUseOptions
from envs.tool_use.worker import Result

MAX_TURNS = {"first": 10, "all": 60}


class BFCLOptions(ToolUseOptions):
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


class BFCLEnv(ToolUseEnv):
    """BFCL's tasks, see :class:`ToolUseEnv`.

    The quality is 1 if, for every request, the ground-truth calls are among the successful calls made for it
    and the API objects are in the state that the ground truth leaves; else 0. How the episode ends has no
    part in it. Where functions or details are missing, so that nothing fulfils a request, giving up is right: the
    next request follows, with the schemas of the functions that it brings.

    Metrics: ``first_turn_accuracy``, whether the first user request (BFCL calls it a turn) is solved, that
    is, its calls are contained and the states are equal at its end; ``requests_solved_fraction``;
    ``official_accuracy``, the verdict of BFCL's own checker; and those of all tool use.

    Args:
        config: The options, see :class:`BFCLOptions`; also as RLlib's ``env_config``.

    Raises:
        ModuleNotFoundError: If ``bfcl-eval`` is not installed.
        ValueError: If an option is unknown or has an impossible value.
    """

    options: BFCLOptions

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.options = options = BFCLOptions.parse(config)
        super().__init__(
            select_tasks(
                options.split, options.requests, options.classes, options.limit, options.seed, options.category
            )
        )
        self.max_turns: int = options.max_turns or MAX_TURNS[options.requests]

    def system_message(self, task: Task) -> str:
        return system_prompt(task.data["classes"], not_offered(task, 0), self.options.schemas)

    def functions(self, task: Task) -> Sequence[Mapping[str, Any]]:
        return described(task.data["classes"], not_offered(task, 0), self.options.schemas)

    def demonstration(self, task: Task) -> Sequence[str]:
        """The responses of the ground truth: one call at a time, then the end of each request."""
        return [
            response
            for solution in task.data["ground_truth"]
            for response in (
                *map(self.format.calls, solution),
                self.format.finished if solution else self.format.error,
            )
        ]

    def gold(self, task: Task) -> str:
        """The same, a line each."""
        return "\n".join(self.demonstration(task))

    def begin(self, task: Task) -> None:
        super().begin(task)
        self.offered = offered(task.data["classes"], not_offered(task, 0))
        self._ground_truth = [list(map(self.bind, solution)) for solution in task.data["ground_truth"]]

    def bind(self, call: Call) -> Call:
        return bind(call, functions()[call.name].signature)

    def next_request(self, task: Task, kind: ActionKind) -> str | None:
        """The text of the request that now begins, with the schemas of the functions that it brings."""
        request = len(self._made)
        if request == len(self._ground_truth) or (kind is ActionKind.ERROR and self._ground_truth[request - 1]):
            return None
        self._made.append([])
        self.offered = offered(task.data["classes"], not_offered(task, request))
        brought = [
            schema(functions()[name].doc, self.options.schemas) for name in task.data["withheld"].get(request, ())
        ]
        return "\n".join([*brought, task.data["requests"][request]])

    def run(self, task: Task, calls: Sequence[Call]) -> list[Result]:
        made = [made.call for request in self._made for made in request]
        return worker.execute(task.data, _stateful(made), calls, self.options.call_timeout_s)

    def grade(self, task: Task, response: str) -> tuple[float, dict[str, float]]:
        later: list[list[MadeCall]] = [[]] * (len(self._ground_truth) - len(self._made))
        by_request = [*self._made, *later]
        solved = [
            contained(solution, [made.call for made in request if made.ok])
            for solution, request in zip(self._ground_truth, by_request, strict=True)
        ]
        quality = all(solved)
        made = [[made.call for made in request] for request in by_request]
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
            "official_accuracy": float(verdict),
        }

    def official_result(self, task: Task, responses: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """An episode as BFCL's own ``bfcl evaluate`` reads it: the file's name in its ``--result-dir``, and the row.

        Requests that the episode did not come to have no calls.

        Raises:
            ValueError: If the episodes are not on ``all`` requests.
        """
        if self.options.requests != "all":
            raise ValueError("BFCL's own checker needs the calls for all requests: set env_config.requests=all")
        self.begin(task)
        made: list[list[list[Call]]] = [[]]
        for response in responses:
            action = self.format.parse(response)
            if action.calls:
                before = len(self._made[-1])
                self._execute(task, action.calls)
                made[-1].append([one.call for one in self._made[-1][before:]])
            elif action.kind in (ActionKind.FINISHED, ActionKind.ERROR):
                if self.next_request(task, action.kind) is None:
                    break
                made.append([])
        made += [[]] * (len(self._ground_truth) - len(made))
        return official.file_name(self.options.category), official.row(task.id, made)


def _stateful(made: Sequence[Call]) -> list[Call]:
    """The calls that can change a state."""
    return [call for call in made if functions()[call.name].api != STATELESS_CLASS]
