"""What lies outside of the sandbox while it is attacked, and how to see whether any of it was reached."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.sandbox import seccomp
from envs.sandbox.processes import descendants, read

_PR_SET_CHILD_SUBREAPER = 36
_PACKAGE = Path(__file__).parents[1]
# What bubblewrap shows of directories on the way to what it shows.
_SHOWN = ("alternatives", "fonts", "ld.so.cache", "localtime", "mime.types")


def adopt_orphans(adopt: bool) -> None:
    """Whether processes that outlive all of a run become children of this one, where they are seen."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


@dataclass(frozen=True)
class Surroundings:
    """Files, sockets and a process of this process' user, which no script may reach.

    Attributes:
        directory: Holds all of it: ``outside/secret.txt``, ``private/answers.csv``, the script's data in ``public``,
            and ``tmp``, which is empty between runs.
        victim: A process.
        listeners: Sockets that nobody may reach.
        secrets: Texts that must not come out: of the file, of the answers and of the environment.
        out: What attacks are told, see :data:`envs.sandbox.attacks.attack.PRELUDE`.
    """

    directory: Path
    victim: subprocess.Popen[bytes]
    listeners: tuple[socket.socket, ...]
    secrets: tuple[str, ...]
    out: dict[str, Any]

    @property
    def data(self) -> Path:
        """The data of the scripts."""
        return self.directory / "public"

    @property
    def temporary(self) -> Path:
        """Where runs have their directories."""
        return self.directory / "tmp"

    def state(self) -> list[object]:
        """What must stay the same."""
        pid = self.victim.pid
        files = [Path(path) for path in (*self.out["changed"], self.out["outside"], self.data, self.directory)]
        found: list[object] = [(i.st_mode, i.st_uid, i.st_size, i.st_mtime_ns) for i in (file.stat() for file in files)]
        found += [sorted(os.listdir(self.directory / name)) for name in ("outside", "public", "private")]
        found += [self.victim.poll(), os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid)]
        found += [
            os.sched_getscheduler(pid),
            read(f"/proc/{pid}/limits"),
            b"T (stopped)" in read(f"/proc/{pid}/status"),
        ]
        return found

    def reached(self) -> list[str]:
        """The listeners that were reached."""
        names = []
        for listener in self.listeners:
            with suppress(BlockingIOError):
                listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()
                names.append(f"{listener.getsockname()} was reached")
        return names

    def left(self, before: Collection[int]) -> list[str]:
        """What a run has left: processes that were not there before, files and mounts."""
        pids = set(descendants()) - set(before)
        found = [f"process {pid}: {read(f'/proc/{pid}/cmdline')!r}" for pid in pids]
        found += [f"file {name}" for name in os.listdir(self.temporary)]
        mounts = read("/proc/self/mountinfo").decode(errors="replace").splitlines()
        return found + [f"mount {line}" for line in mounts if str(self.temporary) in line]


@contextmanager
def surroundings() -> Iterator[Surroundings]:
    """Makes them, as this process' user. From then on, orphans of this process become its children."""
    with tempfile.TemporaryDirectory(prefix="attacks-", dir="/tmp", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o711)
        texts = [secrets.token_hex(16) for _ in range(3)]
        files = {
            "outside/secret.txt": texts[0],
            "private/answers.csv": texts[1],
            "public/train.csv": "id,target\n1,2\n",
        }
        for file, content in files.items():
            (directory / file).parent.mkdir()
            (directory / file).parent.chmod(0o777)
            (directory / file).write_text(content)
            (directory / file).chmod(0o666)
        (directory / "tmp").mkdir()
        (directory / "tmp").chmod(0o711)
        variable = f"ATTACKED_{directory.name}"
        os.environ[variable] = texts[2]
        adopt_orphans(True)
        # Nothing of it is below this process' own environment.
        victim = subprocess.Popen(["sleep", "100000"], env={variable: texts[2]})
        listeners = _listeners(directory / "outside")
        try:
            out = _told(directory, victim.pid, listeners)
            yield Surroundings(directory, victim, listeners, tuple(texts), out)
        finally:
            for listener in listeners:
                listener.close()
            victim.kill()
            victim.wait()
            del os.environ[variable]
            shutil.rmtree(directory / "tmp", ignore_errors=True)


def _listeners(outside: Path) -> tuple[socket.socket, ...]:
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    unix.bind(str(outside / "listener"))
    datagram.bind(str(outside / "datagram"))
    abstract.bind("\0" + secrets.token_hex(8))
    for name in ("listener", "datagram"):
        (outside / name).chmod(0o777)
    for listener in (unix, abstract):
        listener.listen()
    for listener in (tcp, udp, unix, datagram, abstract):
        listener.setblocking(False)
    return tcp, udp, unix, datagram, abstract


def _told(directory: Path, victim: int, listeners: tuple[socket.socket, ...]) -> dict[str, Any]:
    """What attacks are told of the outside."""
    tcp, udp, unix, datagram, abstract = listeners
    secret, answers = directory / "outside" / "secret.txt", directory / "private" / "answers.csv"
    own = str(_PACKAGE / "sandbox.py")
    files = [secret, answers, own, "/etc/passwd", "/etc/hostname", "/etc/machine-id", "/etc/shadow", "/root/.bashrc"]
    files += [f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/mem", f"/proc/{victim}/environ", "data/../../x"]
    outside = [directory / "outside", directory / "private", directory, _PACKAGE, Path.home()]
    outside += ["/home", "/root", "/tmp", "/var", "/etc", "/opt", "/run", "/sys/kernel", "/boot", "/mnt", "/srv"]
    closed = [
        directory / "outside",
        directory / "public",
        "data",
        os.path.dirname(os.__file__),
        "/",
        "/tmp",
        "/usr",
        "/dev",
    ]
    parts = {*Path(sys.prefix).parts, *Path(sys.base_prefix).parts, *Path(sys.executable).resolve().parts}
    return {
        "secret": str(secret),
        "answers": str(answers),
        "outside": str(directory / "outside"),
        "files": [str(file) for file in files],
        "directories": [str(path) for path in outside],
        "shown": [*_SHOWN, *parts],
        "changed": [str(path) for path in (secret, directory / "public" / "train.csv", "/etc/hosts", os.__file__)],
        "closed": [str(path) for path in closed],
        "caller": os.getpid(),
        "victim": victim,
        "tcp": tcp.getsockname()[1],
        "udp": udp.getsockname()[1],
        "unix": unix.getsockname(),
        "datagram": datagram.getsockname(),
        "abstract": abstract.getsockname()[1:].decode(),
        "calls": seccomp.numbers(),
        "refused": seccomp.refused(),
    }
