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
import sys
import time
from types import SimpleNamespace

from envs.sandbox import cgroup, keeper, kernel
from envs.sandbox.files import open_regular, remove
from envs.sandbox.processes import kill_tree, parent, reap, threads_here
from envs.sandbox.watch import OPEN_FILES, OWN_PROCESSES, TICK_S, DiskSpaceError, Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envs.sandbox.job import Job

SCRIPT = "script.py"

# The sandbox may take this long to be ready.
_SETUP_S = 60.0
# Where the kernel counts all processes of the user together, its bound is only a rough one. The guard counts exactly.
_USER_PROCESSES_SLACK = 300
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
            _clean_up(job)
            os._exit(0)
    # The caller's pipes are the guard's alone: each sees the other's end.
    os.close(0)
    os.close(1)
    os.close(2)
    os.wait()
    kill_tree()
    _clean_up(job)
    os._exit(0)


def _clean_up(job: Job) -> None:
    if job.cgroup:
        cgroup.remove(job.cgroup)
    remove(job.directory)


def _answer(job: Job, stub: int) -> None:
    """The guard: answers the caller with the length of a marshalled result, the result, and the files' contents."""
    contents: list[tuple[int, int]] = []
    try:
        kernel.become_subreaper()
        result = _run(job, stub)
        result["files"] = []
        room = job.limits.returned_bytes
        for name in job.files:
            if (fd := open_regular(f"{job.directory}/work", name, room)) >= 0:
                size = os.fstat(fd).st_size
                room -= size
                contents.append((fd, size))
                result["files"].append((name, size))
    except (_InfrastructureError, DiskSpaceError) as error:
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
    watch = Watch(job, work)
    if job.cgroup:
        cgroup.make(job.cgroup, job.limits, job.limits.processes + OWN_PROCESSES)
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
    kept = bytearray()
    failure = status = exit_code = None
    try:
        while failure is None and status is None and exit_code is None:
            ends = {fd for fd, _ in poll.poll(1000 * TICK_S)}
            if 0 in ends or os.getppid() != stub or parent(stub) != job.caller:
                failure = "the caller went away"
            if output in ends and not _read(output, kept, job.limits.output_bytes):
                poll.unregister(output)
            exit_code = reap(child)
            if not started:
                message = bytearray()
                _read(ready, message, 1 << 16)
                # Under bubblewrap the script might reach the pipe and add to it.
                if message == keeper.READY or (job.bubblewrap and message.startswith(keeper.READY)):
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
        kill_tree()
    while _read(output, kept, job.limits.output_bytes):
        pass
    if failure is not None:
        raise _InfrastructureError(f"the sandbox failed: {failure}\n{kept.decode(errors='replace')}".strip())
    status = watch.after_the_end(status) or ("failed" if exit_code else "ok")
    if status not in ("failed", "ok"):
        exit_code = None
    return {
        "status": status,
        "exit_code": exit_code,
        "output": bytes(kept),
        "seconds": seconds,
        "peaks": watch.peaks,
        "hard": _hard_bounds(job),
    }


def _hard_bounds(job: Job) -> list[str]:
    """What the kernel bounds over the whole run. CPU time it only counts, and the guard ends the run in time."""
    if job.cgroup:
        return ["memory_bytes", "processes", "cpu_s"]
    return ["processes"] if _counts_processes_exactly(job) else []


def _counts_processes_exactly(job: Job) -> bool:
    """Whether the kernel counts the processes of this run alone: the user, or its namespace, belongs to it."""
    return job.uid >= 0 or bool(job.bubblewrap)


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
    if job.cgroup:
        cgroup.enter(job.cgroup)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(work)
    # Should the machine run out of memory, the script is the first to go.
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    limits = job.limits
    for which, value in (
        (resource.RLIMIT_CORE, 1),  # with 0 the kernel still hands a core to the program that collects them
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_CPU, int(job.cpu_s) + 2),  # of one process; the guard sums over all, and comes first
    ):
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))

    exact = _counts_processes_exactly(job)
    processes = limits.processes + OWN_PROCESSES if exact else threads_here() + _USER_PROCESSES_SLACK
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
