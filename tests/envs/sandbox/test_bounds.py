"""Ways to use more than the limits allow, out of sight of who adds up what processes show."""

from __future__ import annotations

import os
from typing import Any

import pytest

from envs.sandbox.sandbox import Limits, Run, Status
from tests.envs.sandbox.conftest import Sandbox

pytestmark = pytest.mark.slow

MEMORY = 200 << 20


def bounded(sandbox: Sandbox, script: str, **limits: Any) -> Run:
    run = sandbox.run(f"{script}\nimport time; time.sleep(30)", limits=Limits(memory_bytes=MEMORY, **limits))
    assert run.seconds < 20
    return run


def test_a_run_says_what_it_used_and_what_is_hard(sandbox: Sandbox):
    run = sandbox.run("x = bytearray(b'x' * (50 << 20))\nopen('f', 'wb').write(x)\nimport time; time.sleep(0.5)")
    assert 50 << 20 < run.peaks["memory_bytes"] < 120 << 20 and 1 <= run.peaks["processes"] <= 4
    assert 50 << 20 < run.peaks["disk_bytes"] < 60 << 20 and 0 < run.peaks["cpu_s"] < 5
    assert run.bounds.keys() == run.peaks.keys() and run.bounds["disk_bytes"] == "watched"
    exact = sandbox.tier == "bubblewrap" or sandbox.caller.uid == 0
    assert run.bounds["processes"] == ("hard" if exact else "watched") or run.bounds["memory_bytes"] == "hard"


def test_buffers_of_sockets_are_memory(sandbox: Sandbox):
    run = bounded(
        sandbox,
        """
import os, socket
for _ in range(8):
    if os.fork() == 0: break
kept = []
for _ in range(500):
    one, two = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
    one.setblocking(False)
    kept += [one, two]
    try:
        while True: one.send(b"x" * 100_000)
    except OSError: pass
""",
    )
    assert run.status is Status.OUT_OF_MEMORY


def test_the_buffer_of_a_socket_stays_small(sandbox: Sandbox):
    script = """
import socket
one, two = socket.socketpair()
one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
one.setblocking(False)
sent = 0
try:
    while True: sent += one.send(b"x" * 1000)
except BlockingIOError: print(sent)
"""
    assert 0 < int(sandbox.run(script).output) < 320_000


# As root, the guard asks the kernel how much there is; another user's guard sees the part that is mapped.
SHARED = {
    "dropped": "m.madvise(mmap.MADV_DONTNEED)",
    "kept": "pass",
}


@pytest.mark.parametrize("then", SHARED)
def test_memory_that_is_shared_and_not_mapped_by_pages_is_memory(sandbox: Sandbox, then: str):
    run = bounded(
        sandbox,
        f"""
import mmap, os
kept = []
for _ in range(10):
    m = mmap.mmap(-1, 40 << 20)
    for _ in range(40): m.write(b"x" * (1 << 20))
    {SHARED[then]}
    kept.append(m)
""",
    )
    assert run.status is Status.OUT_OF_MEMORY


def test_a_process_whose_first_thread_has_ended_shows(sandbox: Sandbox):
    number = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    script = f"""
import ctypes, os, threading, time
for _ in range(5):
    if os.fork() == 0: break
def fill():
    time.sleep(0.2)
    x = bytearray(b"x" * (80 << 20))
    time.sleep(30)
threading.Thread(target=fill).start()
ctypes.CDLL(None).syscall({number}, 0)
"""
    assert bounded(sandbox, script).status is Status.OUT_OF_MEMORY


def test_tables_of_pages_are_memory(sandbox: Sandbox):
    script = """
import ctypes, mmap
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
size = 1 << 40
at = libc.mmap(None, ctypes.c_size_t(size), 1, 0x4022, -1, 0)  # read only, private, no reserve
for offset in range(0, size, 2 << 20): ctypes.string_at(at + offset, 1)
"""
    assert bounded(sandbox, script).status is Status.OUT_OF_MEMORY


def test_what_would_hide_memory_or_files_is_refused(sandbox: Sandbox):
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    vmsplice, close_range, clone, inotify = (
        numbers[column] for numbers in ((278, 75), (436, 436), (56, 220), (294, 26))
    )
    script = f"""
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    result = libc.syscall(*arguments)
    print(result if result >= 0 else errno.errorcode[ctypes.get_errno()])
call({vmsplice}, 1, 0, 0, 0)
call({inotify}, 0)
call({close_range}, 1000, 1001, 2)
call({close_range}, 1000, 1001, 0)
call({clone}, 0x10000 | 0x100 | 0x800, 0, 0, 0, 0)  # a thread with open files of its own
try: os.setxattr("script.py", "user.a", b"1")
except OSError as error: print(errno.errorcode[error.errno])
try: open("/proc/self/oom_score_adj", "w").write("0"); print("spared")
except OSError: print("refused")
"""
    assert sandbox.run(script).output.split() == ["ENOSYS", "ENOSYS", "EPERM", "0", "EPERM", "ENOTSUP", "refused"]


def test_time_of_children_whose_end_is_ignored_counts(sandbox: Sandbox):
    script = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.3
        while time.process_time() < end: pass
        os._exit(0)
    try: os.wait()
    except ChildProcessError: pass
"""
    run = sandbox.run(script, limits=Limits(wall_s=60, cpu_s=1.5))
    assert run.status is Status.TIMED_OUT and run.seconds < 30


def test_a_deleted_file_that_is_mapped_takes_disk(sandbox: Sandbox):
    script = """
import mmap, os
kept = []
for i in range(40):
    with open("f", "w+b") as file:
        file.write(b"x" * (1 << 20))
        file.flush()
        kept.append(mmap.mmap(file.fileno(), 0))
    os.unlink("f")
"""
    assert bounded(sandbox, script, disk_bytes=10 << 20).status is Status.DISK_FULL


def test_files_that_are_on_their_way_through_a_socket_are_let_go_in_the_end(sandbox: Sandbox):
    """They are in no process: what they may take is bounded by the free disk. Nothing of them outlives the run."""
    before = os.statvfs(sandbox.caller.temporary)
    script = """
import os, socket
one, two = socket.socketpair()
for i in range(20):
    with open("f", "wb") as file:
        os.unlink("f")
        file.write(b"x" * (1 << 20))
        file.flush()
        socket.send_fds(one, [b"x"], [file.fileno()])
print("sent")
"""
    run = sandbox.run(script, limits=Limits(disk_bytes=10 << 20))
    assert run.status in (Status.OK, Status.DISK_FULL)
    after = os.statvfs(sandbox.caller.temporary)
    assert (before.f_bavail - after.f_bavail) * after.f_frsize < 64 << 20
