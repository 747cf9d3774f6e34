"""The trusted side of one run: starts the script in its sandbox, watches it, kills it, takes its files.

``run_script`` starts this module in an interpreter of its own, the *stub*, which forks the *guard*. The guard is
the subreaper of all that the script starts, so that no daemon leaves its tree. It kills the tree when the script
ends or breaks a limit, and when the stub or the caller dies. The stub only waits for the guard: it is the second
subreaper, which kills the tree if the guard dies. Whichever of the three is killed, another one cleans up.

Interpreter start-up is most of what a run costs, so this module does without ``signal``, ``json``,
``dataclasses`` and their like.
"""

from __future__ import annotations

import marshal
import os
import resource
import select
import stat
import sys
import time
from types import SimpleNamespace

from envs.sandbox import keeper, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envs.sandbox.job import Job

SCRIPT = "script.py"

_SIGKILL = 9
# The processes and the work directory are looked at this often, or less often if that would take more than a tenth of
# the time.
_TICK_S, _LOOK_SHARE = 0.05, 0.1
# The sandbox may take this long to be ready.
_SETUP_S = 60.0
# A file or directory counts at least this much, which bounds their number. A deeper tree counts as too large.
_MIN_FILE_BYTES, _MAX_DEPTH = 16 << 10, 64
# A run must leave this much free on the disk, whatever its own limit.
_DISK_RESERVE_BYTES, _INODE_RESERVE = 256 << 20, 1000
# Besides the script's processes there are two of the sandbox itself: bwrap and its init.
_OWN_PROCESSES = 2
# Where the kernel counts all processes of the user together, its bound is only a rough one. The guard counts exactly.
_USER_PROCESSES_SLACK = 1000
_PAGE_BYTES, _TICKS_PER_S = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class _InfrastructureError(Exception):
    """The run has no result, for a reason other than the script."""


def main() -> None:
    """The stub: takes a :class:`envs.sandbox.job.Job` from stdin, forks the guard and outlives it."""
    fields = marshal.load(sys.stdin.buffer)
    fields["limits"] = SimpleNamespace(**fields["limits"])
    job: Job = SimpleNamespace(**fields)  # pyright: ignore[reportAssignmentType]
    stub = os.getpid()
    kernel.become_subreaper()
    if os.getppid() != job.caller:
        return
    os.umask(0o022)
    os.mkdir(job.directory, 0o711)
    if os.fork() == 0:
        try:
            _answer(job, stub)
        finally:  # also where nobody is left to listen
            _remove(job.directory)
            os._exit(0)
    # The caller's pipes are the guard's alone: each sees the other's end.
    os.close(0)
    os.close(1)
    os.close(2)
    os.wait()
    _kill_tree()
    _remove(job.directory)
    os._exit(0)


def _answer(job: Job, stub: int) -> None:
    """The guard: answers the caller with the length of a marshalled result, the result, and the files' contents."""
    contents: list[tuple[int, int]] = []
    try:
        kernel.become_subreaper()
        result = _run(job, stub)
        result["files"] = []
        for name in job.files:
            if (fd := _open_regular(f"{job.directory}/work", name, job.limits.file_bytes)) >= 0:
                contents.append((fd, os.fstat(fd).st_size))
                result["files"].append((name, contents[-1][1]))
    except _InfrastructureError as error:
        result = {"error": str(error)}
    except Exception:
        import traceback

        result = {"error": traceback.format_exc()}
    header = marshal.dumps(result)
    with open(1, "wb", closefd=False) as answer:
        answer.write(len(header).to_bytes(8, "big") + header)
    for fd, size in contents:
        while size > 0:
            size -= os.sendfile(1, fd, None, size)


# The script.


def _run(job: Job, stub: int) -> dict:
    """Runs the script to its end or to a limit. None of its processes is left."""
    if not os.path.exists(f"/proc/{stub}/task/{stub}/children"):
        raise _InfrastructureError("the kernel does not list the children of processes (CONFIG_PROC_CHILDREN)")
    work = _make_work_directory(job)
    output, child_output = os.pipe()
    ready, child_ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _enter_sandbox(job, work, child_output, child_ready)
        except BaseException as error:
            os.write(child_ready, f"{type(error).__name__}: {error}".encode(errors="replace"))
        finally:
            os._exit(1)
    os.close(child_output)
    os.close(child_ready)
    os.set_blocking(output, False)
    os.set_blocking(ready, False)
    poll = select.poll()
    for fd in (0, output, ready):
        poll.register(fd, select.POLLIN)
    try:  # noqa: SIM105 (contextlib takes long to import)
        poll.register(os.pidfd_open(child), select.POLLIN)
    except OSError:  # before Linux 5.3; the end is then seen at the next tick
        pass

    begin, started = time.monotonic(), False
    watch = _Watch(job, work)
    kept = bytearray()
    failure = status = exit_code = None
    try:
        while failure is None and status is None and exit_code is None:
            ends = {fd for fd, _ in poll.poll(1000 * _TICK_S)}
            if 0 in ends or os.getppid() != stub or _parent(stub) != job.caller:
                failure = "the caller went away"
            if output in ends and not _read(output, kept, job.limits.output_bytes):
                poll.unregister(output)
            exit_code = _reap(child)
            if not started:
                message = bytearray()
                _read(ready, message, 1 << 16)
                if message == keeper.READY:
                    begin, started = time.monotonic(), True
                    poll.unregister(ready)
                elif message:
                    failure = message.decode(errors="replace")
                elif exit_code is not None or time.monotonic() > begin + _SETUP_S:
                    failure = "it ended before the script began" if exit_code is not None else "it hangs"
            elif exit_code is None:
                status = watch.look(begin)
        seconds = time.monotonic() - begin
    finally:
        _kill_tree()
    while _read(output, kept, job.limits.output_bytes):
        pass
    if failure is not None:
        raise _InfrastructureError(f"the sandbox failed: {failure}\n{kept.decode(errors='replace')}".strip())
    if status is None:
        # What the script wrote last may have gone unseen.
        status = watch.look_at_disk() or ("failed" if exit_code else "ok")
    return {"status": status, "exit_code": exit_code, "output": bytes(kept), "seconds": seconds}


def _make_work_directory(job: Job) -> str:
    work = f"{job.directory}/work"
    for directory in (work, f"{work}/tmp"):
        os.mkdir(directory, 0o700)
    with open(f"{work}/{SCRIPT}", "wb") as file:
        file.write(job.script)
    if job.data is not None:
        if job.bubblewrap:
            os.mkdir(f"{work}/data")  # to mount on
        else:
            os.symlink(job.data, f"{work}/data")
    if job.uid >= 0:
        for path in (work, f"{work}/tmp", f"{work}/{SCRIPT}"):
            os.chown(path, job.uid, job.uid)
    return work


def _enter_sandbox(job: Job, work: str, output: int, ready: int) -> None:
    """Becomes the script, or ``bwrap``, which becomes the keeper, which becomes the script."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(work)
    # Should the machine run out of memory, the script is the first to go.
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    limits = job.limits
    for which, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_NOFILE, 1024),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_CPU, int(job.cpu_s) + 2),  # of one process; the guard sums over all, and comes first
    ):
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))

    exact = job.uid >= 0 or job.bubblewrap
    processes = limits.processes + _OWN_PROCESSES if exact else _threads_here() + _USER_PROCESSES_SLACK
    if job.bubblewrap:
        with open(keeper.__file__) as file:
            text = file.read()
        own = [str(number) for number in (ready, job.uid, int(job.read_all), processes)]
        inside = [job.command[0], "-I", "-S", "-c", text, *own, *job.command]
        # On a file rather than the command line, which the script could read.
        options = [*job.bubblewrap_options, "--seccomp", str(_in_memory(job.seccomp))]
        fd = _in_memory(b"".join(os.fsencode(option) + b"\0" for option in options))
        os.set_inheritable(ready, True)
        os.execve(job.bubblewrap, [job.bubblewrap, "--args", str(fd), "--", *inside], job.environment)
    if job.landlock:
        rules = kernel.LandlockRules()
        for path in job.readable:
            rules.allow_reading(path, job.hidden)
        for path in _DEVICES:
            rules.allow(path, kernel.DEVICE)
        rules.allow(work, kernel.WRITE)
        keeper.give_up_privileges(job.uid, job.read_all)
        if job.uid >= 0 and not job.read_all:
            _check_reach(job)
        kernel.forbid_new_privileges()
        rules.apply()
        kernel.apply_seccomp(job.seccomp)
    keeper.run(job.command, job.environment, processes, ready)


def _check_reach(job: Job) -> None:
    """Whether the script's user may read what it is to read; else scripts would fail for no fault of their own."""
    paths = [job.command[0]]
    if job.data is not None:
        paths.append(job.data)
        if os.access(job.data, os.R_OK | os.X_OK):
            paths += [os.path.join(job.data, name) for name in os.listdir(job.data)]
    for path in paths:
        if not os.access(path, os.R_OK):
            raise PermissionError(f"{path} is closed to the user that scripts run as: chmod a+rX it and all above it")


def _in_memory(content: bytes) -> int:
    """A file descriptor that a program started from here can read the content from."""
    fd = os.memfd_create("sandbox", 0)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _read(fd: int, kept: bytearray, limit: int) -> bool:
    """Reads once without waiting, keeping the last ``limit`` bytes; False at the end or if there is nothing."""
    try:
        chunk = os.read(fd, 1 << 20)
    except BlockingIOError:
        return False
    kept += chunk
    if len(kept) > limit:
        del kept[:-limit]
    return bool(chunk)


# The processes of the run.


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def _threads_here() -> int:
    """The processes and threads of the machine, those of this user among them."""
    with open("/proc/loadavg") as file:
        return int(file.read().split()[3].partition("/")[2])


def _descendants() -> list[int]:
    found: list[int] = []
    pending = [os.getpid()]
    while pending:
        pid = pending.pop()
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except (FileNotFoundError, ProcessLookupError):
            continue
        for thread in threads:
            try:
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    children = [int(child) for child in file.read().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += children
            pending += children
    return found


def _reap(child: int) -> int | None:
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


def _kill_tree() -> None:
    """Kills all descendants; returns when the last has been collected."""
    while True:
        for pid in _descendants():
            try:  # noqa: SIM105
                os.kill(pid, _SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


class _Watch:
    """Sums up what the processes of a run use; the kernel bounds each of them only."""

    def __init__(self, job: Job, work: str) -> None:
        self.limits, self.cpu_s = job.limits, job.cpu_s
        self.processes = job.limits.processes + _OWN_PROCESSES
        self.work = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.due = {self.look_at_processes: 0.0, self.look_at_disk: 0.0}

    def look(self, begin: float) -> str | None:
        """The status of a run that has broken a limit."""
        if time.monotonic() > begin + self.limits.wall_s:
            return "timed_out"
        for look, due in self.due.items():
            if (start := time.monotonic()) >= due:
                status = look()
                end = time.monotonic()
                self.due[look] = end + max(_TICK_S, (end - start) / _LOOK_SHARE)
                if status is not None:
                    return status
        return None

    def look_at_processes(self) -> str | None:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s, threads, resident = usage.ru_utime + usage.ru_stime, 0, 0
        pids = _descendants()
        for pid in pids:
            try:
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
                # The times of the process and of the children it has collected: see proc(5), from field 3.
            cpu_s += sum(map(int, fields[11:15])) / _TICKS_PER_S
            threads += int(fields[17])
            resident += int(fields[21]) * _PAGE_BYTES
        if cpu_s > self.cpu_s:
            return "timed_out"
        if threads > self.processes:
            return "too_many_processes"
        # Shared pages count several times at first.
        if resident > self.limits.memory_bytes and sum(map(_memory, pids)) > self.limits.memory_bytes:
            return "out_of_memory"
        return None

    def look_at_disk(self) -> str | None:
        """Looks at the work directory; also called once after the script has ended.

        Raises:
            _InfrastructureError: If the disk is about to be full.
        """
        limit = self.limits.disk_bytes
        used = _disk_usage(self.work, limit)
        if used <= limit:
            used += sum(_unlinked_bytes(pid) for pid in _descendants())
        if used > limit:
            return "disk_full"
        disk = os.fstatvfs(self.work)
        if disk.f_bavail * disk.f_frsize < _DISK_RESERVE_BYTES or (disk.f_files > 0 and disk.f_favail < _INODE_RESERVE):
            raise _InfrastructureError("the disk of the temporary directory is almost full: free space, or set TMPDIR")
        return None


def _memory(pid: int) -> int:
    """The memory of a process in bytes. Shared memory counts in proportion, where the kernel tells it."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
    except PermissionError:
        pass
    except (FileNotFoundError, ProcessLookupError):
        return 0
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0


# The files of the run. While the script runs, it may change any of them between two calls. Links are never followed.


def _open_directory(name: str, parent: int) -> int:
    """Opens a directory, also one that its owner has closed to everyone."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except PermissionError:
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(fd)


def _disk_usage(directory: int, limit: int, depth: int = 0) -> int:
    """The bytes that the files of a directory take; more than the limit as soon as that is passed."""
    used = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                info = entry.stat(follow_symlinks=False)
                used += max(info.st_blocks * 512, _MIN_FILE_BYTES)
                if stat.S_ISDIR(info.st_mode) and used <= limit:
                    if depth == _MAX_DEPTH:
                        return limit + 1
                    fd = _open_directory(entry.name, directory)
                    try:
                        used += _disk_usage(fd, limit - used, depth + 1)
                    finally:
                        os.close(fd)
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone, or replaced
            if used > limit:
                break
    return used


def _unlinked_bytes(pid: int) -> int:
    """The bytes of the files that have no name any more but that the process still has open."""
    used = 0
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                info = os.stat(f"/proc/{pid}/fd/{fd}")
            except FileNotFoundError:
                continue
            if stat.S_ISREG(info.st_mode) and info.st_nlink == 0:
                used += info.st_blocks * 512
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        pass
    return used


def _open_regular(work: str, name: str, limit: int) -> int:
    """Opens a file of the work directory; -1 if it is no regular file of at most ``limit`` bytes."""
    *directories, last = name.split("/")
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for flags, part in [*((os.O_DIRECTORY, part) for part in directories), (os.O_NONBLOCK | os.O_NOCTTY, last)]:
            parent = fd
            try:
                fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=parent)
            finally:
                os.close(parent)
    except OSError:
        return -1
    info = os.fstat(fd)
    if stat.S_ISREG(info.st_mode) and info.st_size <= limit:
        return fd
    os.close(fd)
    return -1


def _remove(path: str) -> None:
    """Removes a tree of any depth, as :func:`shutil.rmtree` cannot: each directory is emptied at the top."""
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    moved = 0
    while names := os.listdir(top):
        for name in names:
            fd = _open_directory(name, top)
            os.fchmod(fd, 0o700)
            for entry in os.listdir(fd):
                try:
                    os.unlink(entry, dir_fd=fd)
                except IsADirectoryError:
                    os.chmod(entry, 0o700, dir_fd=fd)  # to be moved, a directory must be writable
                    os.rename(entry, f"{moved}", src_dir_fd=fd, dst_dir_fd=top)
                    moved += 1
            os.close(fd)
            os.rmdir(name, dir_fd=top)
    os.close(top)
    os.rmdir(path)
