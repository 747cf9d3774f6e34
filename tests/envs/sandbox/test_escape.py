"""Scripts that try to get out, in every tier that works here, called by root and by a user without privileges.

Each attempt prints ``escaped`` where it succeeds and the refusal where it does not. After each, ``Caller.run``
checks that no process, mount or file is left.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from envs.sandbox import seccomp
from envs.sandbox.sandbox import Limits, Status
from tests.envs.sandbox.callers import ROOT, SECRET
from tests.envs.sandbox.conftest import Sandbox

pytestmark = pytest.mark.slow

# Prints how each attempt ends, one line each.
ATTEMPT = """
def attempt(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except Exception as error:
        print(type(error).__name__)
    else:
        print("escaped")
"""
REFUSED = {"PermissionError", "FileNotFoundError"}


def attempts(sandbox: Sandbox, script: str, **arguments: object) -> list[str]:
    run = sandbox.run(ATTEMPT + script, **arguments)
    assert run.status is Status.OK, run
    return run.output.split()


@contextmanager
def victim(sandbox: Sandbox) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the caller's user."""
    user = sandbox.caller.uid if os.geteuid() == 0 else None
    process = subprocess.Popen(["sleep", "100"], env={"VICTIM_SECRET": "x"}, user=user)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# Reading.


def test_files_outside_cannot_be_read(sandbox: Sandbox):
    paths = [
        sandbox.outside / "secret.txt",
        sandbox.data.parent / "private" / "answers.csv",
        ROOT / "envs" / "sandbox" / "sandbox.py",
        "/etc/passwd",
        "/etc/hostname",
        f"/proc/{sandbox.caller.pid}/environ",
        f"/proc/{sandbox.caller.pid}/cmdline",
        "./data/../../competition/private/answers.csv",
        "./data/../private/answers.csv",
    ]
    assert all(Path(path).exists() for path in paths[:4])
    outcomes = attempts(sandbox, f"for path in {list(map(str, paths))}: attempt(open, path)")
    assert len(outcomes) == len(paths) and set(outcomes) <= REFUSED


def test_directories_outside_cannot_be_listed(sandbox: Sandbox):
    paths = [sandbox.outside, sandbox.data.parent, ROOT, Path.home(), "/home", "/root", "/tmp", "/var", "/etc", "/opt"]
    script = f"import os\nfor path in {list(map(str, paths))}: attempt(lambda: 1 / bool(outside(os.listdir(path))))"
    # bubblewrap shows the parents of what it shows, with nothing else in them.
    shown = "def outside(names): return set(names) - {'alternatives', 'fonts', 'ld.so.cache', 'localtime', 'mime.types'"
    shown += f", {', '.join(repr(part) for part in Path(sys.prefix).parts + Path(sys.base_prefix).parts)}}}\n"
    outcomes = attempts(sandbox, shown + script)
    assert len(outcomes) == len(paths) and set(outcomes) <= {*REFUSED, "ZeroDivisionError"}


def test_the_callers_environment_is_not_inherited(sandbox: Sandbox):
    script = """
import glob, os
print(os.environ)
for path in glob.glob("/proc/*/environ"):
    try: print(open(path).read())
    except OSError: pass
"""
    run = sandbox.run(script)
    assert run.status is Status.OK and SECRET not in run.output and "PARENT_SECRET" not in run.output


def test_the_project_cannot_be_imported(sandbox: Sandbox):
    script = "for name in ('envs', 'envs.sandbox', 'rllib_exit', 'tests'): attempt(__import__, name)"
    outcomes = attempts(sandbox, script)
    # Under Landlock an editable install finds the files that it may not read.
    assert len(outcomes) == 4 and set(outcomes) <= {"ModuleNotFoundError", "PermissionError"}


def test_no_open_file_is_inherited(sandbox: Sandbox):
    script = """
import os
for fd in range(1024):
    try: info = os.fstat(fd)
    except OSError: continue
    print(fd)
"""
    assert attempts(sandbox, script) == ["0", "1", "2"]


# Writing.


def test_files_outside_cannot_be_changed(sandbox: Sandbox):
    secret, train, library = sandbox.outside / "secret.txt", sandbox.data / "train.csv", os.__file__
    before = [secret.stat(), train.stat(), os.stat(library)]
    script = f"""
import os
for path in {[str(secret), str(train), "data/train.csv", library]}:
    attempt(open, path, "a")
    attempt(os.truncate, path, 0)
    attempt(os.unlink, path)
    attempt(os.rename, path, "mine")
    attempt(os.link, path, "mine")
    attempt(os.symlink, "x", path + ".link")
for path in {[str(sandbox.outside), str(sandbox.data), "data", os.path.dirname(library), "/", "/tmp", "/usr", "/dev"]}:
    attempt(open, path + "/new", "w")
    attempt(os.mkdir, path + "/new.d")
attempt(os.rename, "script.py", {str(sandbox.outside / "script.py")!r})
"""
    outcomes = attempts(sandbox, script)
    assert len(outcomes) == 4 * 6 + 8 * 2 + 1 and set(outcomes) <= {*REFUSED, "OSError"}
    assert [secret.stat(), train.stat(), os.stat(library)] == before
    assert set(os.listdir(sandbox.outside)) == {"secret.txt"} and set(os.listdir(sandbox.data)) == {"train.csv"}


def test_metadata_outside_cannot_be_changed(sandbox: Sandbox):
    secret, train = sandbox.outside / "secret.txt", sandbox.data / "train.csv"
    before = [secret.stat(), train.stat()]
    script = f"""
import os
for path in {[str(secret), str(train), "data/train.csv"]}:
    for change in (lambda: os.chmod(path, 0), lambda: os.utime(path, (1, 1)), lambda: os.chown(path, 1, 1),
                   lambda: os.setxattr(path, "user.mark", b"1")):
        try: change()
        except OSError: pass
"""
    assert sandbox.run(script).status is Status.OK
    assert [secret.stat(), train.stat()] == before and not os.listxattr(secret)


# The network and other sockets.


def test_nothing_that_listens_is_reached(sandbox: Sandbox):
    path, name = str(sandbox.outside / "listener"), f"sandbox-{os.getpid()}-{sandbox.tier}-{sandbox.caller.uid}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(path)
        datagram.bind(path + ".datagram")
        for file in (path, path + ".datagram"):
            os.chmod(file, 0o777)
        abstract.bind("\0" + name)
        for listener in (unix, abstract):
            listener.listen()
        received = [tcp, udp, unix, datagram, abstract]
        for listener in received:
            listener.setblocking(False)
        script = f"""
import socket
def call(family, kind, address, pair=False):
    one = socket.socketpair(family, kind)[0] if pair else socket.socket(family, kind)
    one.settimeout(2)
    one.connect(address)
    one.send(b"hello")
def send(address):
    socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"hello", address)
attempt(call, socket.AF_INET, socket.SOCK_STREAM, {tcp.getsockname()})
attempt(call, socket.AF_INET, socket.SOCK_DGRAM, {udp.getsockname()})
attempt(call, socket.AF_INET6, socket.SOCK_STREAM, ("::1", {tcp.getsockname()[1]}))
attempt(call, socket.AF_UNIX, socket.SOCK_STREAM, {path!r})
attempt(call, socket.AF_UNIX, socket.SOCK_STREAM, "\\0" + {name!r})
attempt(call, socket.AF_UNIX, socket.SOCK_DGRAM, {path + ".datagram"!r})
attempt(call, socket.AF_UNIX, socket.SOCK_DGRAM, {path + ".datagram"!r}, pair=True)
attempt(send, {path + ".datagram"!r})
attempt(socket.socket, socket.AF_VSOCK, socket.SOCK_STREAM)
attempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)
attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
attempt(socket.socket, socket.AF_ALG, socket.SOCK_SEQPACKET)
attempt(socket.getaddrinfo, "example.org", 80)
"""
        outcomes = attempts(sandbox, script)
        for listener in received:
            with pytest.raises(BlockingIOError):
                listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()
    for file in (path, path + ".datagram"):
        os.unlink(file)
    assert len(outcomes) == 13 and set(outcomes) <= {*REFUSED, "ConnectionRefusedError", "gaierror"}


# Processes and the kernel.


def test_other_processes_are_out_of_reach(sandbox: Sandbox):
    with victim(sandbox) as process:
        before = os.getpriority(os.PRIO_PROCESS, process.pid)
        # The parent is the guard, or, under bubblewrap, an init of the script's own.
        parent = "os.getppid()" if sandbox.tier == "landlock" else process.pid
        script = f"""
import os, resource, signal
for pid in ({process.pid}, {sandbox.caller.pid}, {parent}):
    attempt(os.kill, pid, 0)
    attempt(os.kill, pid, signal.SIGTERM)
    attempt(resource.prlimit, pid, resource.RLIMIT_NOFILE, (1, 1))
    attempt(os.setpriority, os.PRIO_PROCESS, pid, 19)
    attempt(os.sched_setaffinity, pid, {{0}})
    attempt(open, f"/proc/{{pid}}/mem", "rb")
    attempt(open, f"/proc/{{pid}}/environ", "rb")
"""
        outcomes = attempts(sandbox, script)
        assert process.poll() is None
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == before
    assert len(outcomes) == 3 * 7 and set(outcomes) <= {*REFUSED, "ProcessLookupError"}


def test_forbidden_system_calls_fail(sandbox: Sandbox):
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    calls = {name: n[column] for name, n in {**seccomp._DENIED, **seccomp._ABSENT}.items() if n[column] is not None}
    script = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {calls}.items():
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    print(name, result, errno.errorcode.get(ctypes.get_errno()))
"""
    lines = [line.split() for line in sandbox.run(script).output.splitlines()]
    expected = {name: "ENOSYS" if name in seccomp._ABSENT else "EPERM" for name in calls}
    assert {name: code for name, result, code in lines if result == "-1"} == expected


def test_new_namespaces_are_refused(sandbox: Sandbox):
    script = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def unshare(flags):
    if libc.unshare(flags): raise PermissionError
for flags in (0x10000000, 0x20000, 0x40000000): attempt(unshare, flags)
number = 56 if os.uname().machine == "x86_64" else 220
for flags in (0x10000000, 0x20000, 0x40000000):
    pid = libc.syscall(number, flags | 17, 0, 0, 0, 0)
    if pid == 0: os._exit(0)
    print("PermissionError" if pid < 0 else "escaped")
"""
    assert attempts(sandbox, script) == ["PermissionError"] * 6


def test_root_cannot_be_regained(sandbox: Sandbox):
    script = """
import os
for change in (os.setuid, os.setgid, lambda root: os.setgroups([root]), lambda root: os.chroot("/")):
    attempt(change, 0)
print(os.getuid() == 0)
"""
    *outcomes, is_root = attempts(sandbox, script)
    assert len(outcomes) == 4 and set(outcomes) <= {"PermissionError", "OSError"} and is_root == "False"


def test_a_daemon_dies_with_the_script(sandbox: Sandbox):
    script = """
import os, time
def daemon():
    if os.fork(): return
    os.setsid()
    if os.fork(): os._exit(0)
    while True: time.sleep(0.01); open("beat", "a").write("x")
for _ in range(3): daemon()
while not os.path.exists("beat"): time.sleep(0.01)
print("alive")
"""
    run = sandbox.run(script)  # which checks that no process is left
    assert (run.status, run.output) == (Status.OK, "alive\n")


def test_signals_do_not_keep_a_script_alive(sandbox: Sandbox):
    script = """
import os, signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(number, signal.SIG_IGN)
os.fork()
print("immortal")
while True: time.sleep(100)
"""
    begin = time.monotonic()
    run = sandbox.run(script, limits=Limits(wall_s=0.7))
    assert run.status is Status.TIMED_OUT and run.exit_code is None and "immortal" in run.output
    assert 0.7 <= run.seconds < 2 and time.monotonic() - begin < 10


def test_a_stopped_script_times_out(sandbox: Sandbox):
    run = sandbox.run("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", limits=Limits(wall_s=0.5))
    assert run.status is Status.TIMED_OUT


# Exhaustion.


BOMB = """
import os, time
def bomb():
    while True:
        try: os.fork()
        except OSError: time.sleep(0.01)
bomb()
"""


def test_a_fork_bomb_is_bounded(sandbox: Sandbox):
    most, ended = 0, threading.Event()

    def count() -> None:
        nonlocal most
        while not ended.wait(0.02):
            with suppress(psutil.NoSuchProcess):
                most = max(most, len(psutil.Process(sandbox.caller.pid).children(recursive=True)))

    # Where the kernel counts all threads of the user, who may have all of the machine's, its bound is that much higher.
    others = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    counter = threading.Thread(target=count)
    counter.start()
    run = sandbox.run(BOMB, limits=Limits(wall_s=1, processes=20))
    ended.set()
    counter.join()
    assert run.status in (Status.TIMED_OUT, Status.TOO_MANY_PROCESSES)
    assert 0 < most < others + 1500


def test_the_number_of_processes_is_bounded(sandbox: Sandbox):
    script = """
import os, time
for count in range(200):
    try: pid = os.fork()
    except OSError: break
    if pid == 0: time.sleep(100)
print(count)
time.sleep(1)
"""
    run = sandbox.run(script, limits=Limits(processes=20))
    if run.status is Status.OK:
        assert 15 <= int(run.output) <= 22
    else:
        assert run.status is Status.TOO_MANY_PROCESSES


def test_one_process_gets_no_more_memory(sandbox: Sandbox):
    run = sandbox.run("x = bytearray(600 << 20)", limits=Limits(memory_bytes=512 << 20))
    assert run.status is Status.FAILED and run.output.splitlines()[-1] == "MemoryError"


def test_many_processes_get_no_more_memory(sandbox: Sandbox):
    script = """
import os, time
for _ in range(8):
    if os.fork() == 0: break
x = bytearray(b"x" * (40 << 20))
time.sleep(30)
"""
    run = sandbox.run(script, limits=Limits(memory_bytes=200 << 20))
    assert run.status is Status.OUT_OF_MEMORY and run.seconds < 20


def test_memory_that_is_shared_counts_once(sandbox: Sandbox):
    script = """
import os, time
x = bytearray(b"x" * (60 << 20))
for _ in range(5):
    if os.fork() == 0: break
time.sleep(0.5)
"""
    assert sandbox.run(script, limits=Limits(memory_bytes=200 << 20)).status is Status.OK


@pytest.mark.parametrize("kind", ["mmap", "shm"])
def test_shared_memory_is_bounded(sandbox: Sandbox, kind: str):
    script = {
        "mmap": "import mmap\nx = mmap.mmap(-1, 300 << 20)",
        "shm": "x = open('/dev/shm/x', 'wb')",
    }[kind]
    script += "\nfor _ in range(300): x.write(b'x' * (1 << 20))\nimport time; time.sleep(30)"
    run = sandbox.run(script, limits=Limits(memory_bytes=200 << 20, disk_bytes=200 << 20))
    refused = kind == "shm" and sandbox.tier == "landlock"
    assert run.status is Status.FAILED if refused else run.status in (Status.OUT_OF_MEMORY, Status.DISK_FULL)


def test_cpu_time_is_bounded_over_all_processes(sandbox: Sandbox):
    script = "import os\nos.fork()\nos.fork()\nwhile True: pass"
    run = sandbox.run(script, limits=Limits(wall_s=30, cpu_s=0.5))
    assert run.status is Status.TIMED_OUT and run.seconds < 10


def test_a_file_is_bounded(sandbox: Sandbox):
    script = """
with open("large", "wb") as file:
    for _ in range(10): file.write(b"x" * (1 << 20))
"""
    run = sandbox.run(script, limits=Limits(file_bytes=4 << 20), files=["large"])
    assert run.status is Status.FAILED and "File too large" in run.output
    assert len(run.files["large"]) == 4 << 20


@pytest.mark.parametrize(
    "script",
    [
        "for i in range(40): open(f'{i}', 'wb').write(b'x' * (1 << 20))",
        "import tempfile\nfor i in range(40): tempfile.NamedTemporaryFile(delete=False).write(b'x' * (1 << 20))",
        "import tempfile\nkept = [tempfile.TemporaryFile() for i in range(40)]\n"
        "for file in kept: file.write(b'x' * (1 << 20)); file.flush()",
        "for i in range(1500): open(f'{i}', 'w')",
        "import os\nfor i in range(1500): os.mkdir(f'{i}')",
        "import os\nfor i in range(1500): os.symlink('x', f'{i}')",
        "import os\nfor i in range(1500): os.mkdir('d'); os.chdir('d')",
        "import os\nos.mkdir('d')\nfor i in range(40): open(f'd/{i}', 'wb').write(b'x' * (1 << 20))\nos.chmod('d', 0)",
        "import os\nos.mkdir('d', 0o300)\nfor i in range(40): open(f'd/{i}', 'wb').write(b'x' * (1 << 20))",
    ],
    ids=["files", "tempfiles", "unlinked", "inodes", "directories", "links", "depth", "closed", "unreadable"],
)
def test_the_disk_is_bounded(sandbox: Sandbox, script: str):
    run = sandbox.run(f"{script}\nimport time; time.sleep(30)", limits=Limits(disk_bytes=10 << 20))
    assert run.status is Status.DISK_FULL and run.seconds < 20


def test_a_gigabyte_of_output_is_read_and_dropped(sandbox: Sandbox):
    script = "import os\nfor _ in range(1024): os.write(1, b'x' * (1 << 20))\nprint('end')"
    run = sandbox.run(script, limits=Limits(output_bytes=1000))
    assert run.status is Status.OK and run.output == "x" * 996 + "end\n"


# What is handed over.


@pytest.mark.parametrize(
    "script",
    [
        "os.symlink({secret!r}, 'submission.csv')",
        "os.symlink('data/train.csv', 'submission.csv')",
        "os.link({secret!r}, 'submission.csv')",
        "os.mkfifo('submission.csv')",
        "os.mkdir('submission.csv')",
        "import socket; socket.socket(socket.AF_UNIX).bind('submission.csv')",
        "os.mknod('submission.csv', 0o20666, os.makedev(1, 5))",
        "pass",
    ],
    ids=["link", "link-to-data", "hard-link", "fifo", "directory", "socket", "device", "missing"],
)
def test_only_a_regular_file_is_handed_over(sandbox: Sandbox, script: str):
    script = "import os\n" + script.format(secret=str(sandbox.outside / "secret.txt"))
    run = sandbox.run(script, files=["submission.csv"], limits=Limits(file_bytes=1 << 20))
    assert run.files == {}


def test_no_directory_on_the_way_is_a_link(sandbox: Sandbox):
    script = f"import os\nos.symlink({str(sandbox.outside)!r}, 'out')\nos.symlink('data', 'in')"
    run = sandbox.run(script, files=["out/secret.txt", "in/train.csv", "data/train.csv"])
    assert run.status is Status.OK and run.files == {}
