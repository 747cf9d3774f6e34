"""A control group (cgroup v2) for each run, where the caller may make one: then the kernel bounds the whole run.

The caller may where a group above its own hands the controllers ``memory`` and ``pids`` down and is writable: as root
under systemd, and in ``systemd-run --user --scope`` as anybody.
"""

from __future__ import annotations

import os
import time

from envs.sandbox.processes import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envs.sandbox.job import Limits

ROOT = "/sys/fs/cgroup"
# A group can be removed a moment after its last process was collected.
_REMOVAL_S = 5.0


def parent(root: str = ROOT, own: str | None = None) -> str:
    """The nearest group above this process in which it may make bounded groups; empty if there is none.

    Args:
        root: Where cgroup v2 is mounted.
        own: This process' group, below the root; by default what ``/proc`` says.
    """
    if own is None:
        lines = read("/proc/self/cgroup").decode(errors="replace").splitlines()
        own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    parts = [part for part in own.split("/") if part]
    for length in range(len(parts), -1, -1):
        directory = "/".join([root, *parts[:length]])
        handed_down = read(f"{directory}/cgroup.subtree_control").split()
        if {b"memory", b"pids"} <= set(handed_down) and all(
            os.access(path, os.W_OK) for path in (directory, f"{directory}/cgroup.procs")
        ):
            return directory
    return ""


def make(group: str, limits: Limits, processes: int) -> None:
    """Makes a group with bounds.

    Raises:
        OSError: If the kernel refuses.
    """
    os.mkdir(group)
    _write(group, "memory.max", limits.memory_bytes)
    _write(group, "memory.oom.group", 1)  # all of the run dies together
    _write(group, "pids.max", processes)
    if os.path.exists(f"{group}/memory.swap.max"):
        _write(group, "memory.swap.max", 0)


def enter(group: str) -> None:
    """Moves this process into a group."""
    _write(group, "cgroup.procs", 0)


def usage(group: str) -> dict[str, float]:
    """What the group's processes have used, those that have ended among them: the most of memory and processes."""
    found = {"cpu_s": _number(group, "cpu.stat", b"usage_usec") / 1e6}
    # The peaks are of Linux 5.19 and 6.1.
    for name, kind in (("memory_bytes", "memory"), ("processes", "pids")):
        found[name] = float(read(f"{group}/{kind}.peak") or read(f"{group}/{kind}.current") or 0)
    return found


def out_of_memory(group: str) -> bool:
    """Whether the kernel has killed a process of the group for its memory."""
    return _number(group, "memory.events", b"oom_kill") > 0


def remove(group: str) -> None:
    """Kills what is in a group, if there is such a group, and removes it."""
    deadline = time.monotonic() + _REMOVAL_S
    while os.path.exists(group):
        try:
            if os.path.exists(f"{group}/cgroup.kill"):  # Linux 5.14
                _write(group, "cgroup.kill", 1)
            os.rmdir(group)
        except FileNotFoundError:  # the stub and the guard may both be at it
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def _write(group: str, file: str, value: int) -> None:
    with open(f"{group}/{file}", "w") as opened:
        opened.write(str(value))


def _number(group: str, file: str, key: bytes) -> int:
    for line in read(f"{group}/{file}").splitlines():
        name, _, value = line.partition(b" ")
        if name == key:
            return int(value)
    return 0
