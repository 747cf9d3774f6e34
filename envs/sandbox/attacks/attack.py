"""What an attack is, and how to say what must hold of its run."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from envs.sandbox.job import Limits
from envs.sandbox.sandbox import Run, Status

Check = Callable[[Run], bool]

# What every attack begins with. ``OUT`` says where things outside are. What is printed as "escaped" is an escape.
PRELUDE = """
import ctypes, errno, json, mmap, os, random, resource, signal, socket, sys, threading, time
OUT = json.loads({out!r})
R = random.Random(OUT["seed"])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]

def attempt(function, *arguments, **keywords):
    "Says whether something that must be refused is, in one line."
    try:
        function(*arguments, **keywords)
    except BaseException as error:
        print(type(error).__name__)
    else:
        print("escaped")

def call(name, *arguments):
    "Makes a system call by its name, and says how it failed."
    result = libc.syscall(OUT["calls"][name], *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    print("escaped" if result != -1 else errno.errorcode[ctypes.get_errno()])

def reach(family, kind, address, pair=False):
    "Sends to an address."
    one = socket.socketpair(family, kind)[0] if pair else socket.socket(family, kind)
    one.settimeout(2)
    one.connect(address)
    one.send(b"hello")

def name(longest=255):
    "A name for a file or a process out of bytes that are hard to read."
    odd = b"\\n\\\\ ()\\x01\\x7f\\x80\\xc3\\xff" + bytes(range(160, 256))
    return bytes(R.choice(odd) for _ in range(R.randrange(1, longest + 1)))
"""

# What a script does that keeps what it has.
STAY = "\ntime.sleep(30)"
REFUSED = ("PermissionError", "FileNotFoundError")
DEFAULT = Limits(wall_s=20, memory_bytes=200 << 20, processes=20, disk_bytes=50 << 20, returned_bytes=1 << 20)


@dataclass(frozen=True, slots=True)
class Attack:
    """A script that tries something, and what must hold of its run.

    Of every run these hold too: there is a run, and no error of the sandbox; nothing is printed as ``escaped``; no
    secret comes out; nothing outside has changed or was reached; no process, file or mount is left; the wall-clock
    time and all bounds that are hard are kept.

    Attributes:
        name: In words, what it does.
        script: What follows :data:`PRELUDE`.
        holds: What else must hold.
        limits: What the script may use.
        files: What it hands over.
        seed: Of the script's random choices.
        slow: Whether it takes more than about a second.
    """

    name: str
    script: str
    holds: Check = lambda run: True
    limits: Limits = DEFAULT
    files: tuple[str, ...] = ()
    seed: int = 0
    slow: bool = False

    def source(self, out: Mapping[str, Any]) -> str:
        """The whole script, given what it is told of the outside."""
        return PRELUDE.format(out=json.dumps({**out, "seed": self.seed})) + textwrap.dedent(self.script)


def ends(*statuses: Status) -> Check:
    """It ends in one of these ways."""
    return lambda run: run.status in statuses


def grabs(name: str, script: str, status: Status, **limits: Any) -> Attack:
    """An attack that keeps what it has taken, and is to be stopped for it."""
    return Attack(name, textwrap.dedent(script) + STAY, ends(status), replace(DEFAULT, wall_s=60, **limits), slow=True)


def by_tier(bubblewrap: Check, landlock: Check) -> Check:
    """What must hold in each tier."""
    return lambda run: (bubblewrap if run.tier == "bubblewrap" else landlock)(run)


def prints(*lines: str) -> Check:
    """It comes to its end, having printed these lines."""
    return lambda run: run.status is Status.OK and tuple(run.output.splitlines()) == lines


def refused(count: int, *errors: str) -> Check:
    """It comes to its end, and every one of so many attempts was refused by one of these errors."""
    allowed = {*REFUSED, *errors}

    def holds(run: Run) -> bool:
        lines = run.output.split()
        return run.status is Status.OK and len(lines) == count and allowed.issuperset(lines)

    return holds


def hands_over(**sizes: int) -> Check:
    """The files that are returned have these sizes, and there are no others."""
    return lambda run: {name: len(content) for name, content in run.files.items()} == sizes


def ends_and_says(status: Status, *texts: str) -> Check:
    """It ends in this way, and its output has one of these texts."""
    return lambda run: run.status is status and any(text in run.output for text in texts)
