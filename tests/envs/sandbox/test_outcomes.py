"""Whatever a script does, the result is an outcome of that script: never an error of the sandbox."""

from __future__ import annotations

import random

import pytest

from envs.sandbox.sandbox import Limits, Status
from tests.envs.sandbox.conftest import Sandbox

pytestmark = pytest.mark.slow

# What a script may do to trip whoever looks at it. Each is one line, with R, a seeded random generator, at hand.
CHAOS = """
libc.prctl(15, name(15), 0, 0, 0)
libc.prctl(15, b") R 1 (\\n \\xff", 0, 0, 0)
libc.prctl(4, 0, 0, 0, 0)
open(name(), "wb").write(R.randbytes(R.randrange(5000)))
os.mkdir(name())
os.mkdir(name(), 0)
os.symlink(name(), name())
os.mkfifo(name())
os.truncate(os.open(name(), os.O_CREAT | os.O_WRONLY), R.randrange(1 << 29))
os.chmod(b".", R.choice([0, 0o100, 0o200, 0o400, 0o700]))
os.chmod(b"tmp", 0); os.rename(b"tmp", name())
os.unlink(b"script.py")
os.symlink(b"script.py", b"submission.csv")
os.mkdir(b"submission.csv", R.choice([0, 0o700]))
open(b"submission.csv", "wb").write(R.randbytes(99)); os.chmod(b"submission.csv", R.choice([0, 0o600]))
os.truncate(os.open(b"submission.csv", os.O_CREAT | os.O_WRONLY), 1 << R.randrange(40))
os.write(1, R.randbytes(R.randrange(100_000)))
os.write(1, b"ready")
os.close(1); os.close(2)
os.dup2(os.open("/dev/null", os.O_RDONLY), 1)
os.setsid()
os.fork()
os.fork() or os._exit(0)
os.fork() and libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
threading.Thread(target=time.sleep, args=(0.3,)).start()
threading.Thread(target=time.sleep, args=(0.3,)).start(); libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_NOFILE, (R.randrange(10), 1024))
resource.setrlimit(resource.RLIMIT_CPU, (0, 0))
resource.setrlimit(resource.RLIMIT_STACK, (4096, 4096))
[os.kill(pid, 9) for pid in (-1, 1, os.getppid())]
[open(f"/proc/{pid}/{what}", "wb").write(b"0") for pid in (1, "self") for what in ("mem", "fd/1", "comm")]
open("/proc/self/oom_score_adj", "w").write("0")
[socket.socketpair() for _ in range(100)]
pair = socket.socketpair(); socket.send_fds(pair[0], [b"x"], [os.open(b".", os.O_RDONLY)] * 50)
m = mmap.mmap(-1, 1 << 20); m.write(b"x"); m.madvise(mmap.MADV_DONTNEED)
os.execv("/bin/sh", [b"sh", b"-c", b"exit %d # " % R.randrange(256) + name()])
os.execv(sys.executable, [name(), b"-c", b"import time; time.sleep(0.2)"])
""".strip().splitlines()

ENDS = """
os._exit(R.randrange(256))
os.kill(os.getpid(), R.randrange(1, 65))
os.abort()
sys.exit(name())
raise SystemExit("\\udcff")
raise KeyboardInterrupt
time.sleep(100)
os.kill(os.getpid(), signal.SIGSTOP)
os.close(0); os.close(1); os.close(2); raise ValueError
pass
""".strip().splitlines()

START = """
import ctypes, mmap, os, random, resource, signal, socket, sys, threading, time
libc, R = ctypes.CDLL(None), random.Random({seed})
ODD = b"\\n\\\\ ()\\x01\\x7f\\x80\\xc3\\xff" + bytes(range(160, 256))
def name(longest=255): return bytes(R.choice(ODD) for _ in range(R.randrange(1, longest + 1)))
"""


def chaotic_script(seed: int) -> str:
    source = random.Random(seed)
    lines = [f"try: {line}\nexcept Exception as error: pass" for line in source.choices(CHAOS, k=12)]
    return "\n".join([START.format(seed=seed), *lines, "time.sleep(0.1)", source.choice(ENDS)])


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(n, marks=pytest.mark.full) for n in range(12, 150))])
def test_chaos_is_an_outcome(sandbox: Sandbox, seed: int):
    limits = Limits(wall_s=2, memory_bytes=1 << 30, disk_bytes=64 << 20, output_bytes=1000)
    run = sandbox.run(chaotic_script(seed), files=["submission.csv", "tmp/x"], limits=limits)
    assert run.status in Status and run.seconds < 10
    assert len(run.files.get("submission.csv", b"")) <= limits.returned_bytes


@pytest.mark.parametrize("line", [*CHAOS, *ENDS])
def test_each_line_of_chaos_is_an_outcome(sandbox: Sandbox, line: str):
    script = f"{START.format(seed=0)}\n{line}\ntime.sleep(0.12)"
    assert sandbox.run(script, files=["submission.csv"], limits=Limits(wall_s=0.7)).status in Status


@pytest.mark.parametrize("code", [0, 1, 2, 77, 126, 127, 128, 137, 255])
def test_exit_codes(sandbox: Sandbox, code: int):
    run = sandbox.run(f"import os; os._exit({code})")
    assert run.exit_code == code and run.status is (Status.FAILED if code else Status.OK)


def test_a_name_that_is_no_text_does_not_hide_a_process(sandbox: Sandbox):
    script = """
import ctypes
ctypes.CDLL(None).prctl(15, b"\\x80\\xff) R 1", 0, 0, 0)
while True: pass
"""
    run = sandbox.run(script, limits=Limits(wall_s=30, cpu_s=0.5))
    assert run.status is Status.TIMED_OUT and run.seconds < 10


def test_a_work_directory_that_is_closed_hides_nothing(sandbox: Sandbox):
    script = """
import os, time
here = os.open(".", os.O_RDONLY)
for i in range(40): open(f"{i}", "wb").write(b"x" * (1 << 20))
os.fchmod(here, 0)
time.sleep(30)
"""
    run = sandbox.run(script, limits=Limits(disk_bytes=10 << 20))
    assert run.status is Status.DISK_FULL and run.seconds < 20


def test_what_is_returned_is_bounded_holes_included(sandbox: Sandbox):
    script = """
import os
for name, size in (("a", 300), ("b", 1 << 29), ("c", 900)):
    open(name, "wb").close()
    os.truncate(name, size)
"""
    run = sandbox.run(script, files=["a", "b", "c"], limits=Limits(returned_bytes=1000))
    assert {name: len(content) for name, content in run.files.items()} == {"a": 300}
