"""What a run says of its bounds, and what is left of what cannot be counted."""

from __future__ import annotations

import os

import pytest

from envs.sandbox.sandbox import Limits, Status
from tests.envs.sandbox.conftest import Sandbox

pytestmark = pytest.mark.slow


def test_a_run_says_what_it_used_and_what_is_hard(sandbox: Sandbox):
    run = sandbox.run("x = bytearray(b'x' * (50 << 20))\nopen('f', 'wb').write(x)\nimport time; time.sleep(0.5)")
    assert 50 << 20 < run.peaks["memory_bytes"] < 120 << 20 and 1 <= run.peaks["processes"] <= 4
    assert 50 << 20 < run.peaks["disk_bytes"] < 60 << 20 and 0 < run.peaks["cpu_s"] < 5
    assert run.bounds.keys() == run.peaks.keys() and run.bounds["disk_bytes"] == "watched"
    exact = sandbox.tier == "bubblewrap" or sandbox.caller.uid == 0
    assert run.bounds["processes"] == ("hard" if exact else "watched") or run.bounds["memory_bytes"] == "hard"


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
