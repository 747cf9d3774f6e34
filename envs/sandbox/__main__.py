"""Probes this machine: which tiers work, which bounds the kernel holds, and what becomes of scripts that overstep them.

    python -m envs.sandbox

The exit code is 0 if some tier works and all that was tried was held in every tier that works.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import get_args

from envs.sandbox import cgroup
from envs.sandbox.job import Limits
from envs.sandbox.sandbox import LACKS, SandboxError, SandboxUnavailableError, Status, Tier, run_script

LIMITS = Limits(wall_s=60, cpu_s=2, memory_bytes=200 << 20, processes=20, disk_bytes=50 << 20)
_STAY = "\nimport time; time.sleep(30)"
# Each oversteps a limit, or succeeds if it reaches something outside; and how it must end.
ATTEMPTS: dict[str, tuple[str, set[Status]]] = {
    "an ordinary script": ("open('result', 'w').write('1')", {Status.OK}),
    "reads /etc/passwd": ("open('/etc/passwd')", {Status.FAILED}),
    "writes outside": ("open('/usr/lib/new', 'w')", {Status.FAILED}),
    "opens an internet socket": ("import socket; socket.socket()", {Status.FAILED}),
    "memory of one process": ("x = bytearray(b'x' * (400 << 20))" + _STAY, {Status.FAILED, Status.OUT_OF_MEMORY}),
    "memory of many processes": (
        "import os\nos.fork(); os.fork(); os.fork()\nx = bytearray(b'x' * (60 << 20))" + _STAY,
        {Status.OUT_OF_MEMORY},
    ),
    "shared memory that is not mapped": (
        "import mmap\nkept = []\nfor _ in range(10):\n    kept.append(mmap.mmap(-1, 40 << 20))\n"
        "    kept[-1].write(b'x' * (40 << 20))\n    kept[-1].madvise(mmap.MADV_DONTNEED)" + _STAY,
        {Status.OUT_OF_MEMORY},
    ),
    "buffers of sockets": (
        "import os, socket\nos.fork(); os.fork(); os.fork()\nkept = []\nfor _ in range(400):\n"
        "    kept += socket.socketpair()\n    kept[-1].setblocking(False)\n"
        "    try:\n        while True: kept[-1].send(b'x' * 100_000)\n    except OSError: pass" + _STAY,
        {Status.OUT_OF_MEMORY},
    ),
    "processes": (
        "import os, time\nfor _ in range(100):\n    if os.fork() == 0: time.sleep(30)",
        {Status.FAILED, Status.TOO_MANY_PROCESSES},
    ),
    "CPU time of all processes": ("import os\nos.fork(); os.fork()\nwhile True: pass", {Status.TIMED_OUT}),
    "wall-clock time": ("import signal\nsignal.signal(15, signal.SIG_IGN)" + _STAY, {Status.TIMED_OUT}),
    "many files": ("for i in range(10_000): open(str(i), 'w')" + _STAY, {Status.DISK_FULL}),
    "deleted files": (
        "import tempfile\nkept = [tempfile.TemporaryFile() for _ in range(80)]\n"
        "for file in kept: file.write(b'x' * (1 << 20)); file.flush()" + _STAY,
        {Status.DISK_FULL},
    ),
}


def main() -> int:
    """Prints what holds; returns the exit code."""
    group = cgroup.parent()
    print(f"control groups: {f'made under {group}' if group else 'none can be made here, so a guard watches instead'}")
    worked, failures = 0, 0
    for tier in get_args(Tier):
        try:
            run = run_script("pass", tier=tier)
        except SandboxUnavailableError as error:
            print(f"\n{tier}: does not work here\n  {error}")
            continue
        worked += 1
        print(f"\n{tier}: works{LACKS[tier]}")
        print("  bounds of the whole run: " + ", ".join(f"{name} {bound}" for name, bound in run.bounds.items()))
        for name, (script, expected) in ATTEMPTS.items():
            try:
                limits = replace(LIMITS, wall_s=2) if name == "wall-clock time" else LIMITS
                run = run_script(script, tier=tier, limits=limits)
                ended, good = f"{run.status}, {run.seconds:.1f} s", run.status in expected
            except SandboxError as error:
                ended, good = f"the sandbox failed: {error}", False
            failures += not good
            print(f"  {'held' if good else 'NOT HELD'}: {name} ({ended})")
    return 0 if worked and not failures else 1


if __name__ == "__main__":
    sys.exit(main())
