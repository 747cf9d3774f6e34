from __future__ import annotations

import itertools
import os
import signal

import pytest

from envs.sandbox import processes


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError])
def test_a_process_that_ends_while_it_is_looked_at_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError]
):
    child = os.fork()
    if child == 0:
        os.execlp("sleep", "sleep", "60")
    listdir = os.listdir

    def ended(path: str) -> list[str]:
        if path == f"/proc/{child}/task":
            raise error(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", ended)
    try:
        assert child in processes.descendants()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_all_are_stopped_before_one_is_killed(monkeypatch: pytest.MonkeyPatch):
    """Those that multiply would else be as many again."""
    alive, made = {1: "running", 2: "running"}, itertools.count(3)
    sent: list[tuple[int, int]] = []

    def descendants() -> list[int]:
        if any(state == "running" for state in alive.values()):
            alive[next(made)] = "running"
        return list(alive)

    def kill(pid: int, number: int) -> None:
        sent.append((pid, number))
        if number == signal.SIGKILL:
            del alive[pid]
        else:
            alive[pid] = "stopped"

    def wait(*_: object) -> tuple[int, int]:
        if alive:
            return 0, 0
        raise ChildProcessError

    monkeypatch.setattr(processes, "descendants", descendants)
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(os, "waitpid", wait)
    processes.kill_tree()
    numbers = [number for _, number in sent]
    assert not alive and numbers == [signal.SIGSTOP] * 3 + [signal.SIGKILL] * 3


MAPS = b"""\
7f00-7f10 r--p 00000000 08:01 11                         /usr/lib/libc.so
7f10-7f30 rw-s 00001000 00:01 12                         /dev/zero (deleted)
7f30-7f40 rw-s 00000000 00:01 13                         [anon_shmem:heap]
7f40-7f50 rw-p 00000000 00:00 0                          [anon:[anon_shmem:heap]]
7f50-7f60 r--s 00000000 08:01 14                         /work/a b (deleted)
7f60-7f70 r--s 00000000 08:01 15                         /work/[anon_shmem:x]
"""


def test_shared_memory_is_found_under_any_name():
    found = processes.Process(os.getpid()).deleted_mappings(MAPS)
    zero, work = os.makedev(0, 1), os.makedev(8, 1)
    assert found == [
        (b"/dev/zero", (zero, 12), 0x1020),
        (b"/dev/zero", (zero, 13), 0x10),
        (b"/work/a b", (work, 14), 0x10),
    ]


def test_a_name_with_line_breaks_hides_no_socket(monkeypatch: pytest.MonkeyPatch):
    header = b"Num       RefCount Protocol Flags    Type St Inode Path\n"
    lines = (
        b"0000000000000000: 00000002 00000000 00010000 0001 01 10 /work/a\nb\n"
        b"0000000000000000: 00000003 00000000 00000000 0001 03 11\n"
        b"0000000000000000: 00000002 00000000 00000000 0002 01 12 @x\n"
    )
    monkeypatch.setattr(processes, "read", lambda path: header + lines)
    assert processes.unix_sockets(1) == (3, 1)
    monkeypatch.setattr(processes, "read", lambda path: b"")
    assert processes.unix_sockets(1) is None
