"""Hostile answers. Most are Python expressions, for graders that evaluate what they get."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from envs.reasoning_gym.worker import confined_score

FORGED = "__import__('struct').pack('d', 1.0)"


def expressions(directory: Path, secret: Path, port: int) -> dict[str, str]:
    """Expressions that leave a file in the directory, read the secret, connect, or stay or fall."""
    return {
        "shell": f"__import__('os').system('touch {directory}/shell')",
        "exec": f"__import__('os').execv('/usr/bin/touch', ['touch', '{directory}/exec'])",
        "subprocess": f"__import__('subprocess').run(['touch', '{directory}/subprocess'])",
        "write": f"open('{directory}/written', 'w').write('x')",
        "delete": f"__import__('os').unlink('{secret}')",
        "read": f"len(open('{secret}').read()) / 8",
        "environment": "len(open('/proc/self/environ').read()) > 0",
        "connect": f"__import__('socket').create_connection(('127.0.0.1', {port}))",
        "kill": "__import__('os').kill(__import__('os').getppid(), 9)",
        "fork bomb": "[__import__('os').fork() for _ in iter(int, 1)]",
        "thread": "__import__('_thread').start_new_thread(print, ())",
        "endless": "[0 for _ in iter(int, 1)]",
        "endless in C": "9**9**9**9",
        "sleep": "__import__('time').sleep(1000)",
        "lock": "[lock.acquire() for lock in [__import__('_thread').allocate_lock()] for _ in range(2)]",
        "unkillable": "[__import__('signal').signal(n, lambda *_: 0) for n in (14, 27)] and [0 for _ in iter(int, 1)]",
        "no timer": "__import__('signal').setitimer(2, 0) and [0 for _ in iter(int, 1)]",
        "memory": "bytearray(1 << 40)",
        "memory by and by": "[bytearray(1 << 24) for _ in iter(int, 1)]",
        "exit": "__import__('os')._exit(0)",
        "exception": "1/0",
        "print": "print('1.0')",
        "forged": f"[__import__('os').write(fd, {FORGED}) for fd in (0, 1, 2)]",
        "forged twice": f"[__import__('os').write(fd, {FORGED} * 2) for fd in OPEN]",
        "flood": "[__import__('os').write(fd, bytes(1 << 20)) for fd in OPEN]",
        "not a number": "float('nan')",
        "too much": "2.0",
        "negative": "-1.0",
    }


TEXTS = {
    "nested": "(" * 100_000 + ")" * 100_000,
    "nested list": "[" * 100_000 + "]" * 100_000,
    "nested object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "large": "a" * 1_000_000,
    "large number": "9" * 1_000_000,
    "nothing": "",
    "nul": "\0",
    "surrogate": "\ud800",
    "subclasses": "().__class__.__base__.__subclasses__()",
    "lambda": "(lambda: 24)()",
    "attribute": "sympify('24')",
}


def start(_: None) -> Callable[[Any], Iterator[float]]:
    """The worst grader: it evaluates the answer, whose value is the score."""

    def handle(request: tuple[str, float]) -> Iterator[float]:
        answer, timeout_s = request
        yield confined_score(lambda: eval(answer, {"OPEN": filter(_is_open, range(3, 100))}), timeout_s)

    return handle


def _is_open(fd: int) -> bool:
    try:
        return bool(os.fstat(fd))
    except OSError:
        return False
