"""Runs the API classes in processes that a hard limit of CPU time can kill.

``power(9, 10**9)`` keeps Python busy for hours inside one operation, which no thread or signal handler can
interrupt. A process keeps nothing between requests: every request brings the initial configuration and the calls
so far, which are replayed on new objects; that takes less than a millisecond. So a few processes serve any number
of episodes, a killed one takes no state with it, and a restored episode is not a special case.

Calls come with every argument (see :func:`envs.bfcl.calls.bind`), and each gets copies of its own: some methods keep
and change what they are given, as the lists that are their defaults.
"""

from __future__ import annotations

import contextlib
import copy
import decimal
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mpmath

from envs.bfcl.apis import STATELESS_CLASS, functions, load, methods, same_state
from envs.tool_use import worker as tool_use
from envs.tool_use.calls import Call
from envs.tool_use.worker import MAX_RESULT_CHARS, Result, results, run_calls
from envs.workers import Handler, Workers

# With a long context the longest result of a ground-truth call has 31,706 characters.
MAX_LONG_RESULT_CHARS = 40_000

Scenario = Mapping[str, Any]  # what load() takes; a task's data has it, and more

# There are more processes than CPUs, so that one that computes for seconds keeps nobody else waiting.
workers = Workers("envs.bfcl.worker:start", workers=8, memory_bytes=1 << 30)

# These calls used up their time, and would do so again: a policy that likes one may make it in every episode.
_endless: dict[str, None] = {}
MAX_ENDLESS = 1000


def execute(scenario: Scenario, replayed: Sequence[Call], calls: Sequence[Call], timeout_s: float) -> list[Result]:
    """Runs calls in order, up to the first that fails.

    Args:
        scenario: The task's ``classes``, ``config`` and ``long_context``.
        replayed: The calls made before, also those that failed, but not those that were unfinished.
        calls: The new calls.
        timeout_s: The CPU time for each call, replayed or new. The call that it stops has failed.

    Returns:
        The results of the calls that were run.

    Raises:
        WorkerError: If nothing is known about the calls.
    """
    first_endless = next((i for i, call in enumerate(calls) if _key(call, timeout_s) in _endless), len(calls))
    wanted = calls[:first_endless]
    answers, in_time = _ask(_execute, scenario, replayed, wanted, timeout_s) if wanted else ([], True)
    new = answers[len(replayed) :]
    if not in_time and len(answers) >= len(replayed):
        stopped = calls[len(new)]
        if functions()[stopped.name].api == STATELESS_CLASS:
            _endless[_key(stopped, timeout_s)] = None
            if len(_endless) > MAX_ENDLESS:
                del _endless[next(iter(_endless))]
    return results(new, calls, timeout_s)


def _key(call: Call, timeout_s: float) -> str:
    return json.dumps([call.name, call.args, timeout_s], sort_keys=True)


def compare(
    scenario: Scenario, made: Sequence[Sequence[Call]], ground_truth: Sequence[Sequence[Call]], timeout_s: float
) -> list[bool]:
    """Whether the states are equal after each user request.

    Args:
        scenario: The task's ``classes``, ``config`` and ``long_context``.
        made: The calls made for each request, also those that failed.
        ground_truth: The calls that fulfil each request.
        timeout_s: The CPU time for each call. States that it leaves uncompared count as different.

    Raises:
        WorkerError: If nothing is known about the states.
    """
    answers, _ = _ask(_compare, scenario, made, ground_truth, timeout_s)
    equal = [answer for answer in answers if answer is not None]
    return equal + [False] * (len(ground_truth) - len(equal))


def official_verdict(
    scenario: Scenario, made: Sequence[Sequence[Call]], ground_truth: Sequence[Sequence[Call]], timeout_s: float
) -> bool:
    """What the package's own checker says of the calls; the arguments are those of :func:`compare`.

    It is False if the CPU time runs out.

    Raises:
        WorkerError: If the checker gave no answer.
    """
    return any(_ask(_official_verdict, scenario, made, ground_truth, timeout_s)[0])


def _ask(
    operation: Callable[..., Any], scenario: Scenario, before: Sequence[Any], after: Sequence[Any], timeout_s: float
) -> tuple[list[Any], bool]:
    loaded = {name: scenario[name] for name in ("classes", "config", "long_context")}
    return workers.ask((operation, loaded, before, after), timeout_s)


# What follows runs in the processes, request by request.


def start(_: None) -> Handler:
    """Loads the APIs."""
    functions()
    return lambda request: request[0](*request[1:])


def _execute(scenario: Scenario, replayed: Sequence[Call], calls: Sequence[Call]) -> Iterator[tuple[bool, str] | None]:
    """Gives an answer for each call, None for a replayed one: with an answer, the time for the next call begins."""
    bound = methods(load(**scenario))
    max_chars = MAX_LONG_RESULT_CHARS if scenario["long_context"] else MAX_RESULT_CHARS
    return run_calls(lambda call: call_method(bound[call.name], call.args, max_chars), replayed, calls)


def _compare(scenario: Scenario, made: Sequence[Any], ground_truth: Sequence[Any]) -> Iterator[bool | None]:
    """Gives None for each call, and an answer after each user request."""
    ours, theirs = load(**scenario), load(**scenario)
    our_methods, their_methods = methods(ours), methods(theirs)
    for our_calls, their_calls in zip(made, ground_truth, strict=True):
        for bound, calls in ((our_methods, our_calls), (their_methods, their_calls)):
            for call in calls:
                call_method(bound[call.name], call.args)
                yield None
        try:
            yield same_state(ours, theirs)
        except (RecursionError, MemoryError):  # a directory moved into itself, for one
            yield False


def _official_verdict(scenario: Scenario, made: Sequence[Any], ground_truth: Sequence[Any]) -> Iterator[bool]:
    """The official checker, but for its executor, which evaluates the text of calls and never frees its objects."""
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker as official

    apis: dict[str, dict[str, Any]] = {}

    def execute_calls(func_call_list: list[Any], model_name: str, **_: Any) -> tuple[list[str], dict[str, Any]]:
        if model_name not in apis:
            apis[model_name] = load(**scenario)
        bound = methods(apis[model_name])
        return [_official_text(bound[call.name], call.args) for call in func_call_list], apis[model_name]

    official.execute_multi_turn_func_call = execute_calls
    steps = [[calls] if calls else [] for calls in made]
    # The checker reads the category in the id. To it they differ in the long context only, which load() knows of.
    entry = {"id": "multi_turn_base_0", "initial_config": scenario["config"], "involved_classes": scenario["classes"]}
    try:
        yield official.multi_turn_checker(steps, [*ground_truth], entry, "multi_turn_base", "policy")["valid"]
    except (RecursionError, MemoryError):
        yield False


def call_method(
    method: Callable[..., Any], args: Mapping[str, Any], max_chars: int = MAX_RESULT_CHARS
) -> tuple[bool, str]:
    """As :func:`envs.tool_use.worker.call_method`; the precision of numbers stays as it is."""
    with _precision_kept():
        return tool_use.call_method(method, args, max_chars)


@contextlib.contextmanager
def _precision_kept() -> Iterator[None]:
    """Some functions set the precision of all later computations."""
    with mpmath.workdps(mpmath.mp.dps), decimal.localcontext():
        yield


def _official_text(method: Callable[..., Any], args: Mapping[str, Any]) -> str:
    """A result as the official executor renders it."""
    try:
        with _precision_kept():
            result = method(**copy.deepcopy(dict(args)))
            if isinstance(result, dict):
                with contextlib.suppress(Exception):
                    return json.dumps(result)
            return str(result)
    except Exception as error:
        return f"Error during execution: {error}"
