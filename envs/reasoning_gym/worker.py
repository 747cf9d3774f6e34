"""Makes the items of reasoning-gym's data sets and grades answers, in processes of their own.

Items are made there because some depend on Python's hash seed, which is fixed in them: the same task is the same in
every process of a run. So only questions and answers travel, and a grader makes its item again.

Answers are graded there because some graders evaluate them as Python, themselves or through SymPy's parser. Three
things stand against hostile text:

1. What graders evaluate with is replaced by functions that accept literals, or arithmetic, and nothing else.
2. Each answer is graded in a child of its own, forked when all it needs is loaded. Before the child sees the answer
   it closes every file but one end of a pipe, and enters a seccomp filter that leaves it memory, the clock and its
   end. It cannot open, connect, start or signal anything. Nothing that it changes outlives it.
3. The kernel limits its CPU time, its time on the clock and its memory. All that it can say is one number, which must
   be in [0, 1].
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
import json
import os
import re
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from envs.sandbox import kernel, seccomp
from envs.workers import STALL_FACTOR, WorkerError, Workers

# Item i of a data set with seed s is made from s + i, so data sets with close seeds share items. Ours are so far apart
# that they share none. NumPy, which some data sets use, takes seeds below 2^32.
MAX_SIZE, MAX_SEED = 1 << 20, (1 << 12) - 1

# CPU time for making all items, and for making one again.
_MAKE_S, _REMAKE_S = 3600.0, 60.0
_READY, _SCORE = b"\0", struct.Struct("d")
# The names in an expression that are not variables.
_FUNCTIONS = re.compile(r"Abs|E|I|a?(cos|sin|tan|cot|sec|csc)h?|erf|exp|ln|log|pi|sqrt")
_ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Load)
# To grade these loads all modules that grading ever loads.
_WARM_UP = ("0", "x", "sin(x)**2*exp(x)", "sin(x)**2 + cos(x)**2")

workers = Workers("envs.reasoning_gym.worker:start", memory_bytes=1 << 30)


@dataclass(frozen=True, slots=True)
class Source:
    """A data set of the package, made in a certain way.

    Attributes:
        name: Its name.
        size: How many items it has, up to ``MAX_SIZE``.
        seed: 0 to ``MAX_SEED``.
        params: The other fields of its configuration, as a JSON object.
    """

    name: str
    size: int
    seed: int = 0
    params: str = "{}"


def make(source: Source) -> list[tuple[str, str | None]]:
    """The questions of a data set with a right answer to each, None where the data set knows none.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        ValueError: If there is no such data set, or it does not take the parameters.
        WorkerError: If the items could not be made.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ModuleNotFoundError("the package reasoning-gym is missing: pip install 'rllib-exit[reasoning-gym]'")
    items, in_time = workers.ask((source,), _MAKE_S)
    if items and "error" in items[-1]:
        raise ValueError(items[-1]["error"])
    if not in_time:
        raise WorkerError(f"{source} made {len(items)} items in {_MAKE_S:g} s of CPU time: give it a smaller size")
    return [(item["question"], item["answer"]) for item in items]


def grade(source: Source, index: int, answer: str, timeout_s: float) -> float:
    """The score of an answer to an item, in [0, 1]. Safe to call from many threads.

    Args:
        source: The item's data set.
        index: Its index there.
        answer: The answer, without tags.
        timeout_s: The CPU time for grading; on the clock it may take ``STALL_FACTOR`` times as long. The answer is
            wrong if that is not enough, or if the grader fails.

    Raises:
        WorkerError: If nothing is known about the answer, or the machine cannot confine graders.
    """
    scores, _ = workers.ask((source, index, answer, timeout_s), _REMAKE_S)
    if not scores:
        raise WorkerError(f"item {index} of {source} took more than {_REMAKE_S:g} s of CPU time to make")
    return scores[0]


# What runs in the process.


def start(_: None) -> Callable[[tuple[Any, ...]], Iterator[Any]]:
    """Loads the package, and makes sure that graders can be confined."""
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some data sets print
    _replace_evaluators()
    confined_score(lambda: 1.0, 1.0)

    def handle(request: tuple[Any, ...]) -> Iterator[Any]:
        match request:
            case (source,):
                yield from _make(source)
            case (source, index, answer, timeout_s):
                grader, entry = _grader(source), _item(source, index)
                yield confined_score(lambda: grader(answer, entry), timeout_s)

    return handle


def _make(source: Source) -> Iterator[dict[str, Any]]:
    try:
        _dataset(source)
    except (AssertionError, TypeError, ValueError) as error:
        yield {"error": f"{source}: {error}"}
        return
    for index in range(source.size):
        entry = _item(source, index)
        examples = ("possible_answer", "example_answer", "example_correct_answer")
        answers = [entry["answer"], *map(entry["metadata"].get, examples)]
        answer = next((answer for answer in answers if answer is not None), None)
        text = answer if answer is None or isinstance(answer, str) else json.dumps(answer)
        yield {"question": entry["question"], "answer": text}


@functools.cache
def _dataset(source: Source) -> Any:
    from reasoning_gym import factory

    names = sorted(factory.DATASETS.keys() - {"composite"})
    if source.name not in names:
        raise ValueError(f"reasoning-gym has only {', '.join(names)}")
    params = json.loads(source.params)
    return factory.create_dataset(source.name, **params, size=source.size, seed=source.seed * MAX_SIZE)


@functools.lru_cache(maxsize=1024)
def _item(source: Source, index: int) -> dict[str, Any]:
    return _dataset(source)[index]


@functools.cache
def _grader(source: Source) -> Callable[[str, Mapping[str, Any]], float]:
    """A grader that will load nothing any more: it has graded what can be trusted."""
    grader, entry = _dataset(source).score_answer, _item(source, 0)
    for answer in (entry["answer"], *_WARM_UP):
        try:
            grader(answer, entry)
        except Exception:  # some raise on what they do not understand
            continue
    return grader


def confined_score(grader: Callable[[], float], timeout_s: float) -> float:
    """What a grader says in a confined child; 0 if that is anything but one number in [0, 1].

    Args:
        grader: It may turn out to be hostile.
        timeout_s: Its CPU time; it may take ``STALL_FACTOR`` times as long on the clock.

    Raises:
        OSError: If the child could not be confined.
    """
    end, reply = os.pipe()
    child = os.fork()
    if child == 0:
        _become_grader(grader, timeout_s, reply)
    os.close(reply)
    with open(end, "rb") as pipe:
        said = pipe.read(4096)  # to the end, if it is honest
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not said.startswith(_READY):
        raise OSError(f"graders cannot be confined here: {said.decode(errors='replace') or 'the child was killed'}")
    if len(said) != len(_READY) + _SCORE.size:
        return 0.0
    [score] = _SCORE.unpack_from(said, len(_READY))
    return score if 0.0 <= score <= 1.0 else 0.0  # NaN too


def _become_grader(grader: Callable[[], float], timeout_s: float, reply: int) -> None:
    try:
        program = seccomp.computing_program()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.closerange(3, reply)
        os.closerange(reply + 1, os.sysconf("SC_OPEN_MAX"))
        # By default these signals kill, and behind the filter neither that nor the timers can be changed.
        signal.setitimer(signal.ITIMER_PROF, timeout_s)
        signal.setitimer(signal.ITIMER_REAL, STALL_FACTOR * timeout_s)
        kernel.forbid_new_privileges()
        kernel.apply_seccomp(program)
    except BaseException as error:
        os.write(reply, str(error).encode())
        os._exit(1)
    try:
        os.write(reply, _READY)
        os.write(reply, _SCORE.pack(float(grader())))
    finally:
        os._exit(0)  # whatever was raised


# What answers are evaluated with.


def _replace_evaluators() -> None:
    for name in ("algorithmic.binary_matrix", "algorithmic.spiral_matrix", "algorithmic.string_insertion"):
        vars(importlib.import_module(f"reasoning_gym.{name}"))["eval"] = ast.literal_eval
    vars(importlib.import_module("reasoning_gym.games.n_queens"))["eval"] = ast.literal_eval
    # Its grader asks only whether a text is empty: any other text would be right.
    verdicts = {"true": True, "false": False}
    halting = importlib.import_module("reasoning_gym.algorithmic.game_of_life_halting")
    vars(halting)["bool"] = lambda text: verdicts.get(text.strip().lower())
    for name in ("sympy", "reasoning_gym.games.countdown", "reasoning_gym.games.puzzle24"):
        vars(importlib.import_module(name))["parse_expr"] = parse_arithmetic


def parse_arithmetic(text: str, local_dict: dict[str, Any] | None = None) -> Any:
    """What SymPy's ``parse_expr`` makes of an expression of numbers, variables and mathematical functions.

    Raises:
        ValueError, SyntaxError: If the text is anything else.
    """
    import sympy
    from sympy.parsing.sympy_parser import parse_expr

    for node in ast.walk(ast.parse(text.strip(), mode="eval")):
        match node:
            case ast.Constant(value=value):
                allowed = type(value) in (int, float)
            case ast.Name(id=name):
                known = hasattr(sympy, name) or hasattr(builtins, name)
                allowed = bool(_FUNCTIONS.fullmatch(name)) or not known  # the unknown becomes a variable
            case ast.Call(func=ast.Name(id=name), keywords=[]):
                allowed = bool(_FUNCTIONS.fullmatch(name))
            case _:
                allowed = isinstance(node, _ARITHMETIC)
        if not allowed:
            raise ValueError(f"{type(node).__name__} has no place in arithmetic")
    return parse_expr(text, local_dict=local_dict)
