"""Sums up what the processes of a run use; by itself the kernel bounds each of them only.

Where the run has a control group, the kernel bounds memory and processes of all together, and counts their CPU time.
Elsewhere the watch counts what it can see of them every 50 ms or so.
"""

from __future__ import annotations

import os
import resource
import stat
import time

from envs.sandbox import cgroup
from envs.sandbox.files import MIN_FILE_BYTES, disk_usage
from envs.sandbox.processes import Process, descendants, read, unix_sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from envs.sandbox.job import Job

# Processes and files are looked at this often, or less often if that would take more than a quarter of the time.
TICK_S, _LOOK_SHARE = 0.05, 0.25
# Besides the script's processes there are two of the sandbox itself: bwrap and its init.
OWN_PROCESSES = 2
OPEN_FILES = 1024
# A run must leave this much free on the disk, whatever its own limit.
_DISK_RESERVE_BYTES, _INODE_RESERVE = 256 << 20, 4000
# The memory behind the buffer of a socket, and the message that may exceed it. The filter keeps buffers at the default.
_SOCKET_BYTES = int(read("/proc/sys/net/core/wmem_default") or 212992) * 3 // 2
# A socket for single messages holds this many, each of another sender that may be gone.
_MESSAGES = 11
# The filter keeps pipes at this size.
_PIPE_BYTES = 64 << 10
# So much of the kernel's lists of mappings is read in one look. A mapping of a deleted file takes longer to look at,
# and counts this much more. A run that has more, at least some 10,000 mappings, has memory that cannot be counted.
_MAPPINGS_BYTES, _DELETED_MAPPING_BYTES = 20 << 20, 1000
# Space comes back a moment after the last process that holds a deleted file.
_SPACE_BACK_S = 1.0


class DiskSpaceError(Exception):
    """The disk of the temporary directory is almost full, and not through this run."""

    def __str__(self) -> str:
        return "the disk of the temporary directory is almost full: free space, set TMPDIR, or lower disk_bytes"


class Watch:
    """What a run uses, and which limit it has broken.

    Attributes:
        peaks: The most that was seen of each: memory_bytes, processes, cpu_s, disk_bytes.

    Raises:
        DiskSpaceError: If the disk has no room for what the run may write.
    """

    def __init__(self, job: Job, work: str) -> None:
        self.limits, self.cpu_s, self.group = job.limits, job.cpu_s, job.cgroup
        # With bubblewrap, the script has a network of its own, in which there are its sockets alone.
        self.own_network = bool(job.bubblewrap)
        self.processes = job.limits.processes + OWN_PROCESSES
        self.peaks: dict[str, float] = dict.fromkeys(("memory_bytes", "processes", "cpu_s", "disk_bytes"), 0.0)
        self.work = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.due = {self.look_at_space: 0.0, self.look_at_processes: 0.0, self.look_at_files: 0.0}
        # What no process shows of its memory: buffers of sockets and pipes, and memory shared with no file behind it.
        self.buffers_bytes = self.shared_bytes = 0
        self.lost_cpu_s = self.seen_cpu_s = 0.0
        # On the disk, now and when the files were looked at.
        self.free_bytes = self.free_before_bytes = 0
        if self._is_short_of_space(self.limits.disk_bytes):
            raise DiskSpaceError

    def look(self, begin: float) -> str | None:
        """The status of a run that has broken a limit."""
        if time.monotonic() > begin + self.limits.wall_s:
            return "timed_out"
        for look, due in self.due.items():
            if (start := time.monotonic()) >= due:
                status = look()
                end = time.monotonic()
                self.due[look] = end + max(TICK_S, (end - start) / _LOOK_SHARE)
                if status is not None:
                    return status
        return None

    def after_the_end(self, status: str | None) -> str | None:
        """The status of a run whose processes have all ended, given that for which it was stopped, if it was.

        What the script did last may have gone unseen.

        Raises:
            DiskSpaceError: If the run was stopped because the disk was almost full, but not through the run.
        """
        if self.group:
            self._note(cgroup.usage(self.group))
            if cgroup.out_of_memory(self.group):
                return "out_of_memory"
        if status == "no_space":
            return self._judge_space()
        used = self._disk_usage()
        self._note({"disk_bytes": used})
        return status or ("disk_full" if used > self.limits.disk_bytes else None)

    def look_at_processes(self) -> str | None:
        """Looks at memory, CPU time and the number of processes and threads."""
        if self.group:
            used = cgroup.usage(self.group)
            self._note(used)
            if cgroup.out_of_memory(self.group):
                return "out_of_memory"
            return "timed_out" if used["cpu_s"] > self.cpu_s else None
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        processes = [process for process in map(Process, descendants(self.processes)) if process.alive]
        cpu_s = own.ru_utime + own.ru_stime + sum(process.cpu_s for process in processes)
        # The time of a process that ends passes to its parent, unless the parent ignores its end.
        self.lost_cpu_s = max(self.lost_cpu_s, self.seen_cpu_s - cpu_s)
        self.seen_cpu_s = cpu_s + self.lost_cpu_s
        threads = sum(process.threads for process in processes)
        memory = sum(process.memory_bytes for process in processes) + self.shared_bytes + self.buffers_bytes
        if memory > self.limits.memory_bytes:  # in which shared pages count several times
            proportional = [process.proportional_memory() for process in processes]
            memory = sum(bytes_ for bytes_, _ in proportional) + self.buffers_bytes
            memory += max(0, self.shared_bytes - sum(shared for _, shared in proportional))
        self._note({"memory_bytes": memory, "processes": threads, "cpu_s": self.seen_cpu_s})
        if self.seen_cpu_s > self.cpu_s:
            return "timed_out"
        if threads > self.processes:
            return "too_many_processes"
        return "out_of_memory" if memory > self.limits.memory_bytes else None

    def look_at_files(self) -> str | None:
        """Looks at the work directory, and at what the processes hold open."""
        self.free_before_bytes = self.free_bytes
        used = self._disk_usage()
        if used <= self.limits.disk_bytes:
            held = self._look_at_held_files()
            if held is None:
                return "out_of_memory"
            used += held
        self._note({"disk_bytes": used})
        return "disk_full" if used > self.limits.disk_bytes else None

    def look_at_space(self) -> str | None:
        """Looks at the room on the disk, which takes no time."""
        if self._is_short_of_space(0):
            return "no_space"
        if self.free_before_bytes - self.free_bytes > self.limits.disk_bytes / 5:  # by the run, it may be
            self.due[self.look_at_files] = 0.0
        return None

    def _look_at_held_files(self) -> int | None:
        """Notes the buffers of sockets and pipes, and shared memory.

        Returns:
            The bytes of files without a name that are still in use; None if there is more to look at than time.
        """
        sockets: set[int] = set()
        pipes: set[tuple[int, int]] = set()
        unnamed: dict[tuple[int, int], int] = {}
        shared: dict[tuple[int, int], int] = {}
        hidden, room = 0, _MAPPINGS_BYTES
        pids = descendants(self.processes)
        for process in map(Process, pids):
            files = process.open_files()
            hidden += files is None
            for info in files or ():
                if stat.S_ISSOCK(info.st_mode):
                    sockets.add(info.st_ino)
                elif stat.S_ISFIFO(info.st_mode):
                    pipes.add((info.st_dev, info.st_ino))
                elif stat.S_ISREG(info.st_mode) and info.st_nlink == 0:
                    unnamed[info.st_dev, info.st_ino] = max(info.st_blocks * 512, MIN_FILE_BYTES)
            maps = process.mappings(room)
            room -= len(maps) + maps.count(b" (deleted)\n") * _DELETED_MAPPING_BYTES
            if room <= 0:
                return None
            for path, key, used in process.deleted_mappings(maps):
                kind = shared if path == b"/dev/zero" else unnamed
                kind.setdefault(key, used)
        # With bwrap, which is the first process, sockets are listed that are in no process too. Elsewhere a process
        # that hides its files counts as if they all were sockets.
        listed = unix_sockets(pids[-1]) if self.own_network and len(pids) > 1 else None
        connected, messages = listed or (len(sockets) + hidden * OPEN_FILES, 0)
        self.buffers_bytes = (connected + messages * _MESSAGES) * _SOCKET_BYTES
        self.buffers_bytes += (len(pipes) + hidden * OPEN_FILES) * _PIPE_BYTES
        self.shared_bytes = sum(shared.values())
        return sum(unnamed.values())

    def _disk_usage(self) -> int:
        if os.fstat(self.work).st_mode & 0o700 != 0o700:  # its owner may be the script's user
            os.fchmod(self.work, 0o700)
        return disk_usage(self.work, self.limits.disk_bytes)

    def _is_short_of_space(self, wanted: int) -> bool:
        disk = os.fstatvfs(self.work)
        self.free_bytes = disk.f_bavail * disk.f_frsize
        inodes = disk.f_files > 0 and disk.f_favail < _INODE_RESERVE + wanted // MIN_FILE_BYTES
        return inodes or self.free_bytes < _DISK_RESERVE_BYTES + wanted

    def _judge_space(self) -> str:
        """Whether a run that was stopped because the disk was almost full has held more than it might, out of sight."""
        before, deadline = self.free_bytes, time.monotonic() + _SPACE_BACK_S
        while time.monotonic() < deadline:
            self._is_short_of_space(0)
            if self._disk_usage() + self.free_bytes - before > self.limits.disk_bytes:
                return "disk_full"
            time.sleep(TICK_S)
        raise DiskSpaceError

    def _note(self, used: Mapping[str, float]) -> None:
        for name, value in used.items():
            self.peaks[name] = max(self.peaks[name], value)
