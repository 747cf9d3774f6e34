"""Gives odd inputs to everything that reads texts and files from elsewhere. No input may crash it, or take long.

    python -m tests.fuzz 10000

Each target makes its inputs out of pieces that mean something to it, and of noise, from a seed that names the input.
"""

from __future__ import annotations

import functools
import json
import math
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.bfcl import worker
from envs.bfcl.apis import functions
from envs.bfcl.calls import bind
from envs.competition_math.grading import Verdict
from envs.competition_math.grading import grade as grade_math
from envs.countdown.env import CountdownEnv
from envs.dataset.rewards import exact_match, json_schema, multiple_choice
from envs.mle_bench.competitions import load_competition
from envs.mle_bench.grading import SubmissionGrader
from envs.mle_bench.synthetic import generate
from envs.tool_use.calls import ActionKind, Call, parse_native, parse_response
from rllib_exit.chat import ChatTokenizer, replace_surrogates
from rllib_exit.checkpoints import MANIFEST, CheckpointError, Place, begin, finish, verify
from rllib_exit.report.report import write_report
from rllib_exit.report.results import find
from tests.report.runs_on_disk import evaluate, search, train
from tests.tiny_models import make_tokenizer

# No input may take longer, in seconds of the clock.
LIMIT_S = 5.0
Random = random.Random

NOISE = ["\0", "\ud800", "\U0010ffff", "\u202e", "\ufeff", "\r\n", "\x1b[31m", *"０−½é\u0301", " " * 99]


def words(of: str) -> list[str]:
    return of.split()


def text(rng: Random, pieces: list[str], most: int = 40) -> str:
    """Pieces in any order, with some noise, some of it cut off or repeated."""
    parts = rng.choices(pieces, k=rng.randrange(most))
    for _ in range(rng.randrange(3)):
        parts.insert(
            rng.randrange(len(parts) + 1), rng.choice([*NOISE, chr(rng.randrange(0x3000)), rng.choice(pieces) * 200])
        )
    joined = rng.choice(["", "", " "]).join(parts)
    return joined[: rng.randrange(len(joined) + 1)] if rng.random() < 0.3 else joined


NUMBERS = ["0", "1", "12", "-3", "1.5", ".5", "1e999", "9" * 400, "1/3", "1,000", "nan", "inf"]


def value(rng: Random, depth: int = 3) -> Any:
    """A JSON value."""
    kind = rng.randrange(9 if depth else 7)
    scalar = [None, True, rng.randrange(-9, 99), rng.random(), 10**40, -0.0, text(rng, ["a", "/", "..", "<b>", "$"], 6)]
    if kind < 7:
        return scalar[kind]
    children = [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return children if kind == 7 else {text(rng, ["name", "args", "a", " "], 3): child for child in children}


# Maths and arithmetic.

LATEX = words(r"""
\boxed{ \boxed \fbox{ } { \frac{1}{2} \frac \sqrt{ \sqrt[3]{8} \pi ^ _ $ \left( \right) \[ \] \text{m} \cdot \times
\infty \int_0^1 \sum_{i=1}^{9} \begin{pmatrix}1&2\\3&4\end{pmatrix} \begin{cases} \lim_{x\to0} \log_2 \sin \binom{5}{2}
x y = < \le \in \cup [1,2) \{1,2\} , ; ! % \% ^\circ + - 1 12 7+5 3.50 1/2 9^{9^9} 10^{100} final answer is \\ & | '
""")


def maths(rng: Random) -> None:
    answer = rng.choice(
        ["12", r"\frac{1}{2}", r"\{1, 2\}", "(0, 1]", "x^2 + 1", r"\begin{pmatrix}1\\2\end{pmatrix}", "75\\%"]
    )
    response = text(rng, LATEX)
    response = rng.choice([response, rf"\boxed{{{response}}}", f"The answer is ${response}$."])
    problem = rng.choice(["", "What is 7 + 5?", response])
    # The limit leaves a second of LIMIT_S to all else.
    assert grade_math(answer, response, LIMIT_S - 1, problem=problem) in Verdict


@functools.cache
def countdown_env(graded: bool) -> CountdownEnv:
    return CountdownEnv({"numbers": 4, "operators": "+-*/", "limit": 5, "graded": graded})


def countdown(rng: Random) -> None:
    env = countdown_env(rng.random() < 0.5)
    response = text(
        rng, [*"0123456789+-*/()= ", "(", "3", "<answer>", "</answer>", "**", "//", "1e9", "999999", "−", "÷"]
    )
    outcome = env.respond(next(iter(env.tasks.values())), response)
    assert 0 <= outcome.quality <= 1
    env.solution(response)


def rewards(rng: Random) -> None:
    response = text(
        rng, ["A", "B)", "(C)", "answer", "```json\n", "```", "{", "}", '"a"', ":", "1", "[", "]", ",", "null", "\\u00"]
    )
    assert exact_match(response, "a") in (0, 1) and multiple_choice(response, "A") in (0, 1)
    kinds = ["string", "integer", "object", "array", "null", 3]
    schema = {"type": rng.choice(kinds), rng.choice(["pattern", "minimum", "items", "required", "$ref"]): value(rng, 1)}
    try:
        quality, _ = json_schema(response, {"type": "object"} if rng.random() < 0.7 else schema)
    except ValueError as error:
        assert "the schema cannot be used" in str(error)
    else:
        assert 0 <= quality <= 1


# Submissions.


@functools.cache
def graders() -> list[SubmissionGrader]:
    generate(scratch() / "competitions")
    found = [SubmissionGrader(load_competition(path)) for path in sorted((scratch() / "competitions").iterdir())]
    assert all(math.isfinite(grader.gold_score) for grader in found)  # which starts them
    return found


def submission(rng: Random) -> None:
    grader = rng.choice(graders())
    gold = load_competition(grader.argument).gold.read_bytes()
    content = bytearray(gold)
    for _ in range(rng.randrange(1, 6)):
        at, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        new = [
            b"",
            b",",
            b"\n",
            b'"',
            b"\0",
            b"\xff\xfe",
            b"nan",
            b"1e999",
            b"-",
            b"a" * 9999,
            b",," * 999,
            b"\r",
            rng.choice(NUMBERS).encode(),
        ]
        content[at : min(end, at + rng.choice([0, 1, 9, 999]))] = rng.choice(
            [*new, rng.randbytes(20), bytes(content[:at])[:2000]]
        )
    if rng.random() < 0.1:
        content = bytearray(
            bytes(content).decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))
        )
    found = grader.grade(bytes(content))
    assert found.score is None or abs(found.score) < 1e300


# Tool calls.

TAGS = words("""
<tool> </tool> <TASK_FINISHED> <TASK_ERROR> [ ] {"name":"ls","args":{}} "name" : { } , "args" "a" 1 1e999 NaN \\u0000
\\ud800 null [[[[ <tool / \\ " ```
""")
NATIVE = TAGS + words("""
<tool_call> </tool_call> <|python_tag|> {"name":"ls","arguments":{}} {"name":"ls","parameters":{}} ; "arguments"
""")


def tags(rng: Random) -> None:
    action = parse_response(text(rng, TAGS))
    assert action.kind in ActionKind and all(isinstance(call.name, str) for call in action.calls)


def native(rng: Random) -> None:
    response = text(rng, NATIVE)
    action = parse_native(rng.choice(["", "{", '{"name": "a", "parameters": {}}']) + response)
    assert action.kind in ActionKind and all(isinstance(call.name, str) for call in action.calls)


SCENARIO: dict[str, Any] = {
    "classes": ["GorillaFileSystem", "MathAPI", "VehicleControlAPI"],
    "config": {
        "GorillaFileSystem": {
            "root": {"home": {"type": "directory", "contents": {"a": {"type": "file", "content": "x"}}}}
        }
    },
    "long_context": False,
}


def calls(rng: Random) -> None:
    offered = {name: of for name, of in functions().items() if of.api in SCENARIO["classes"]}
    made = []
    for name in rng.choices(sorted(offered), k=rng.randrange(1, 6)):
        parameters = [p for p in offered[name].signature.parameters if rng.random() < 0.95]
        odd = ["a", "..", "/", "", 0, -1, 2.5, [], ["a"], 10**30, True]
        args = {parameter: rng.choice([*odd, value(rng, 1)]) for parameter in parameters}
        try:
            made.append(bind(Call(name, args), offered[name].signature))
        except ValueError:
            continue
    found = worker.execute(SCENARIO, made[:1], made[1:], 2.0)
    assert all(json.loads(result.text) is None or result.text for result in found)


# Chats.

MARKERS = words("<|im_end|> <|im_start|> <|endoftext|> <think> </think> <tool_call> </tool_call> <|eot|>")


@functools.cache
def chat() -> ChatTokenizer:
    from transformers import PreTrainedTokenizerFast

    special = dict(zip(("eos_token", "bos_token", "pad_token"), MARKERS[:3], strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), **special)
    tokenizer.add_tokens(MARKERS[3:])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return ChatTokenizer(tokenizer)


def control_tokens(rng: Random) -> None:
    pieces = [
        *MARKERS,
        *(marker[:-1] for marker in MARKERS),
        "|>",
        "<",
        "\ue0000",
        "\u2003",
        "a",
        "\n",
        "assistant",
        " ",
    ]
    content = text(rng, pieces)
    roles = ["user", *rng.choices(["assistant", "user", "system"], k=rng.randrange(3))]
    ids = chat().encode([{"role": role, "content": content} for role in roles])
    plain = chat().encode([{"role": role, "content": "x"} for role in roles])
    control = {chat().tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS}
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    assert replace_surrogates(content) in chat().decode(ids) or "\ufffd" in chat().decode(ids)


# Checkpoints and reports.


def scratch() -> Path:
    """A directory for this process."""
    return Path(_scratch().name)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-")


def changed(rng: Random, content: Any) -> Any:
    """A JSON value of which a part is another one."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(sorted(content))
        return {**content, key: changed(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.9:
        at = rng.randrange(len(content))
        return [*content[:at], changed(rng, content[at]), *content[at + 1 :]]
    return value(rng)


def damaged(rng: Random, content: str) -> bytes:
    """A JSON text that was changed as a value, or byte by byte."""
    if rng.random() < 0.6:
        return json.dumps(changed(rng, json.loads(content))).encode()
    raw = bytearray(content.encode())
    for _ in range(rng.randrange(1, 5)):
        raw[rng.randrange(len(raw) + 1) : rng.randrange(len(raw) + 1)] = rng.choice(
            [b"", b"\0", b"\xff", b"[" * 5000, b'"', b"1e999"]
        )
    return bytes(raw)


@functools.cache
def checkpoint() -> tuple[Path, str]:
    begin(place := Place.of(scratch() / "checkpoint"))
    finish(place, {"deep/file": place.write("deep/file", b"state")})
    return scratch() / "checkpoint", (scratch() / "checkpoint" / MANIFEST).read_text()


def manifest(rng: Random) -> None:
    path, whole = checkpoint()
    content = damaged(rng, whole)
    (path / MANIFEST).write_bytes(content)
    try:
        verify(path)
    except CheckpointError:
        return
    assert json.loads(content)["files"] == json.loads(whole)["files"]


@functools.cache
def trial() -> Path:
    """A run, an evaluation and a search, beside which a copy with one bad file comes."""
    runs = scratch() / "runs"
    evaluate(train(runs / "good", "exit", 0, iterations=1), splits=["test"], steps=2)
    bad = train(runs / "bad", "grpo", 1, iterations=1)
    evaluate(bad, splits=["test"], steps=2)
    search(runs / "bad" / "search", "a", trial=bad, steps=2)
    return runs


def report(rng: Random) -> None:
    runs = trial()
    file = rng.choice(sorted(f for f in (runs / "bad").rglob("*") if f.suffix in (".json", ".jsonl")))
    whole = file.read_bytes()
    lines = whole.decode().splitlines() or ["{}"]
    at = rng.randrange(len(lines)) if file.suffix == ".jsonl" or file.name == "result.json" else None
    try:
        if at is None:
            file.write_bytes(damaged(rng, whole.decode()))
        else:
            parts = [line.encode() for line in lines]
            parts[at] = damaged(rng, lines[at])
            file.write_bytes(b"\n".join(parts) + b"\n")
        found = find([runs], scratch() / "report")
        assert found.runs
        if rng.random() < 0.05:
            assert "<b>$" not in write_report([runs / "bad"], scratch() / "report").read_text()
    finally:
        file.write_bytes(whole)


# The share of each in all inputs.
TARGETS: dict[Callable[[Random], None], float] = {
    maths: 0.2,
    countdown: 0.15,
    rewards: 0.05,
    submission: 0.08,
    tags: 0.12,
    native: 0.12,
    calls: 0.08,
    control_tokens: 0.1,
    manifest: 0.07,
    report: 0.03,
}


@dataclass
class Figures:
    """What became of a target's inputs."""

    inputs: int = 0
    slowest_s: float = 0.0
    slow: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)


def play(target: Callable[[Random], None], inputs: int) -> Figures:
    """Gives a target its inputs."""
    figures = Figures()
    with suppress(Exception):  # a crash comes again below; what is made once does not count
        target(Random("start-up"))
    for index in range(inputs):
        seed = f"{target.__name__} {index}"
        begin = time.monotonic()
        try:
            target(Random(seed))
        except Exception:
            figures.crashes.append(f"{seed}: {traceback.format_exc()[-1500:]}")
        seconds = time.monotonic() - begin
        figures.inputs += 1
        figures.slowest_s = max(figures.slowest_s, seconds)
        if seconds > LIMIT_S:
            figures.slow.append(f"{seed}: {seconds:.1f} s")
    return figures


def main(inputs: int) -> int:
    """Gives all targets their shares, prints figures, and returns the exit code."""
    print(f"{'target':16}{'inputs':>8}{'seconds':>9}{'slowest':>9}{f'over {LIMIT_S:g} s':>10}{'crashes':>9}")
    problems: list[str] = []
    for target, share in TARGETS.items():
        begin = time.monotonic()
        found = play(target, max(1, round(share * inputs)))
        seconds, slow, crashes = time.monotonic() - begin, len(found.slow), len(found.crashes)
        name = target.__name__
        print(f"{name:16}{found.inputs:8}{seconds:9.1f}{found.slowest_s:9.2f}{slow:10}{crashes:9}", flush=True)
        problems += found.slow + found.crashes
    for problem in problems[:20]:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
