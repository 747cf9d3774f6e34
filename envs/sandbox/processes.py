"""The processes below this one, and what ``/proc`` says of them.

A script chooses its process name, its threads and its moment to end, so everything is read as bytes, and whatever
cannot be read is passed over: no process can make a look at it fail.
"""

from __future__ import annotations

import math
import os
import time

_SIGKILL, _SIGSTOP = 9, 19
# How the kernel lists shared memory with a name, see PR_SET_VMA_ANON_NAME.
_NAMED_SHARED = b"[anon_shmem:"
_PAGE_BYTES, _TICKS_PER_S = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


def read(path: str, limit: int = -1) -> bytes:
    """A file of ``/proc`` or ``/sys``, or its beginning; empty if it cannot be read, as of a process that has ended."""
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except OSError:
        return b""


def stat_fields(pid: int) -> list[bytes]:
    """The fields of ``/proc/pid/stat`` after the name, from field 3 of proc(5) on; empty if the process is gone."""
    return read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def parent(pid: int) -> int:
    """The parent of a process; 0 if the process is gone."""
    fields = stat_fields(pid)
    return int(fields[1]) if fields else 0


def threads_here() -> int:
    """The processes and threads of the machine, those of this user among them."""
    return int(read("/proc/loadavg").split()[3].partition(b"/")[2])


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def descendants(most: float = math.inf) -> list[int]:
    """The processes that this one and its descendants have started, as far as they live.

    Args:
        most: Where there are more than so many, only some of them are found: those that multiply could keep us busy.
    """
    found: list[int] = []
    pending = [os.getpid()]
    while pending and len(found) <= most:
        pid = pending.pop()
        for thread in _names(f"/proc/{pid}/task"):
            children = [int(child) for child in read(f"/proc/{pid}/task/{thread}/children").split()]
            found += children
            pending += children
    return found


def reap(child: int) -> int | None:
    """Collects what has ended; the exit code of the child if it has, 128 + n for signal n."""
    exit_code = None
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
                exit_code = code if code >= 0 else 128 - code
    except ChildProcessError:
        pass
    return exit_code


def kill_tree() -> None:
    """Kills all descendants; returns when the last has been collected.

    They are stopped before any is killed: each that is killed makes room for another one, and of those that start as
    many as they can, a thousand start faster than they are killed one by one.
    """
    stopped: set[int] = set()
    while new := set(descendants()) - stopped:
        for pid in new:
            _signal(pid, _SIGSTOP)
        stopped |= new
    while True:
        for pid in descendants():
            _signal(pid, _SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def unix_sockets(pid: int) -> tuple[int, int] | None:
    """The Unix sockets in the network of a process: those for connections, and those that take single messages.

    Some of them are in no process: connections that nobody has accepted, and what is on its way through a socket.

    Returns:
        The two numbers; None if they cannot be read.
    """
    lines = read(f"/proc/{pid}/net/unix").splitlines()
    if not lines:
        return None
    kinds = [line.split(None, 5)[4:5] for line in lines[1:]]  # a name with a line break in it only adds to them
    messages = kinds.count([b"0002"])
    return len(kinds) - messages, messages


def _signal(pid: int, number: int) -> None:
    try:  # noqa: SIM105
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class Process:
    """A look at one process, through one of its threads that lives: the first may have ended, and then shows nothing.

    Attributes:
        alive: Whether it is there.
        cpu_s: The CPU seconds of the process and of the children that it has collected.
        threads: The number of its threads.
        memory_bytes: The pages that it has in memory or swapped out, the shared ones in full, and the kernel's tables
            of them.
    """

    def __init__(self, pid: int) -> None:
        self.pid, self.path = pid, f"/proc/{pid}"
        fields = stat_fields(pid)
        self.alive = bool(fields)
        self.cpu_s = sum(map(int, fields[11:15])) / _TICKS_PER_S
        self.threads = int(fields[17]) if fields else 0
        self.memory_bytes = self._memory()
        if self.memory_bytes == 0 and self.threads > 1:
            for thread in _names(f"/proc/{pid}/task"):
                self.path = f"/proc/{pid}/task/{thread}"
                self.memory_bytes = self._memory()
                if self.memory_bytes:
                    break

    def _memory(self) -> int:
        return _sum_of(read(f"{self.path}/status"), b"VmRSS:", b"VmSwap:", b"VmPTE:", b"HugetlbPages:")

    def proportional_memory(self) -> tuple[int, int]:
        """Its memory with each shared page divided by its users, and how much of that is shared memory, in bytes.

        Where the kernel does not tell it, shared pages count in full.
        """
        rollup = read(f"{self.path}/smaps_rollup")
        if not rollup:
            return self.memory_bytes, 0
        tables = _sum_of(read(f"{self.path}/status"), b"VmPTE:", b"HugetlbPages:")
        return _sum_of(rollup, b"Pss:", b"SwapPss:") + tables, _sum_of(rollup, b"Pss_Shmem:")

    def open_files(self) -> list[os.stat_result] | None:
        """What its descriptors lead to, and its program; None if that is hidden from us."""
        found = []
        try:
            for link in [*(f"fd/{fd}" for fd in os.listdir(f"{self.path}/fd")), "exe"]:
                try:
                    found.append(os.stat(f"{self.path}/{link}"))
                except OSError:  # closed meanwhile
                    continue
        except PermissionError:
            return None if self.memory_bytes else []  # one without memory has ended, and waits for its parent to see it
        except OSError:
            pass
        return found

    def mappings(self, limit: int) -> bytes:
        """What it has mapped, as the kernel lists it, or the beginning of it."""
        return read(f"{self.path}/maps", limit)

    def deleted_mappings(self, maps: bytes) -> list[tuple[bytes, tuple[int, int], int]]:
        """The files without a name that it has mapped: path, (device, inode), and bytes.

        The bytes are those that the file takes, if we may ask the kernel (root only), else those that are mapped.
        Memory that processes share, with no file behind it, is such a file of the path ``/dev/zero``; the kernel lists
        it by the name that the script gave to it, if it did.

        Args:
            maps: See :meth:`mappings`.
        """
        if b"(deleted)" not in maps and _NAMED_SHARED not in maps:
            return []
        found = []
        for line in maps.splitlines():
            if not line.endswith(b" (deleted)") and _NAMED_SHARED not in line:
                continue
            span, _, offset, device, inode, path = line.split(None, 5)
            if path.startswith(_NAMED_SHARED):
                path = b"/dev/zero"
            elif not path.endswith(b" (deleted)"):
                continue
            begin, end = (int(address, 16) for address in span.split(b"-"))
            major, minor = (int(number, 16) for number in device.split(b":"))
            try:
                used = os.stat(b"/proc/%d/map_files/%x-%x" % (self.pid, begin, end)).st_blocks * 512
            except OSError:
                used = int(offset, 16) + end - begin
            found.append((path.removesuffix(b" (deleted)"), (os.makedev(major, minor), int(inode)), used))
        return found


def _sum_of(text: bytes, *names: bytes) -> int:
    """Adds up the lines ``name: n kB``, in bytes."""
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(names))
