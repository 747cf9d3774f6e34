"""What a script may use, and what the guard is told to do with it."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass

SLOTS_VARIABLE = "SANDBOX_SLOTS"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a script may use.

    Attributes:
        wall_s: The seconds from its start.
        cpu_s: The CPU seconds of all its processes together; None for ``wall_s * threads``.
        memory_bytes: The memory of all its processes. A single process that asks for more gets a MemoryError.
        processes: The processes and threads that may live at one time.
        file_bytes: The size of the largest file that it may write.
        disk_bytes: The size of its work directory. A file or directory counts at least 16 KiB.
        returned_bytes: The size of all files that are returned, holes in them included. What goes beyond is left out.
        output_bytes: How much of the end of its output is kept. It may print more.
        threads: How many threads numerical libraries start, and how many CPUs process pools assume.

    Raises:
        ValueError: If one is not positive and finite.
    """

    wall_s: float = 300
    cpu_s: float | None = None
    memory_bytes: int = 8 << 30
    processes: int = 64
    file_bytes: int = 1 << 30
    disk_bytes: int = 2 << 30
    returned_bytes: int = 256 << 20
    output_bytes: int = 1 << 20
    threads: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{field.name} is {value!r}: it must be positive and finite")


@dataclass(frozen=True, slots=True)
class Job:
    """What :mod:`envs.sandbox.guard` is to do.

    It crosses a pipe with ``marshal``, so its fields have plain values, and the limits are sent as a dictionary.

    Attributes:
        caller: The process that waits for the result.
        directory: The guard makes it, with the work directory ``work`` in it, and removes it.
        script: The script's text.
        files: The files to return, relative to the work directory.
        command: The command that runs the script, in the work directory.
        environment: The script's environment.
        bubblewrap: The path of ``bwrap``, or empty in the other tiers.
        bubblewrap_options: The options of ``bwrap``, without the seccomp filter.
        landlock: Whether to use Landlock.
        readable: What the script may read under Landlock.
        hidden: What it may not read even if that lies below ``readable``.
        seccomp: The program of the seccomp filter; empty if there is none.
        data: The directory that the script sees as ``./data``; None for none.
        cgroup: The control group to make for the run; empty for none.
        uid: The user to become; -1 to stay the same user.
        read_all: Whether that user keeps CAP_DAC_READ_SEARCH.
        limits: What the script may use.
        cpu_s: The CPU seconds of all its processes, also where ``limits.cpu_s`` is None.
    """

    caller: int
    directory: str
    script: bytes
    files: list[str]
    command: list[str]
    environment: dict[str, str]
    bubblewrap: str
    bubblewrap_options: list[str]
    landlock: bool
    readable: list[str]
    hidden: str
    seccomp: bytes
    data: str | None
    cgroup: str
    uid: int
    read_all: bool
    limits: Limits
    cpu_s: float


def default_slots(threads: int) -> int:
    """How many scripts run at once on a machine: what SANDBOX_SLOTS says, else as many as have their CPUs.

    Args:
        threads: The CPUs of each script.

    Raises:
        ValueError: If SANDBOX_SLOTS is no number above 0.
    """
    given = os.environ.get(SLOTS_VARIABLE)
    if given is None:
        return max(1, len(os.sched_getaffinity(0)) // threads)
    if not given.isdecimal() or int(given) == 0:
        raise ValueError(f"{SLOTS_VARIABLE} is {given!r}: set a number of scripts, at least 1")
    return int(given)
