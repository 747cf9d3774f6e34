from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.processes import alive, guards, wait_until

# Starts two processes that outlive it by themselves, and their guard.
OWNER = """
import subprocess, sys, time
from rllib_exit.env_runners.engine_guard import end_with_this_process

processes = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2)]
end_with_this_process([process.pid for process in processes])
print(*(process.pid for process in processes), flush=True)
time.sleep(float(sys.argv[1]))
"""


def start(seconds: float) -> tuple[subprocess.Popen, list[int]]:
    root = str(Path(__file__).parents[2])
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(seconds)], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": root}
    )
    assert owner.stdout is not None
    return owner, [int(pid) for pid in owner.stdout.readline().split()]


def test_processes_end_with_an_owner_that_is_killed() -> None:
    owner, processes = start(60)
    assert alive(processes) == processes and len(guards(owner.pid)) == 1
    assert not psutil.Process(owner.pid).children()[2:]  # the guard is no child of the owner
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    wait_until(lambda: not alive(processes) and not guards(owner.pid), 5)


def test_processes_end_with_an_owner_that_ends_by_itself() -> None:
    owner, processes = start(0.2)
    owner.wait()
    wait_until(lambda: not alive(processes) and not guards(owner.pid), 5)


def test_of_processes_that_end_before_it_the_guard_forgets_them_and_ends() -> None:
    owner, processes = start(60)
    os.kill(processes[0], signal.SIGKILL)
    time.sleep(0.2)
    assert alive(processes) == processes[1:] and len(guards(owner.pid)) == 1
    os.kill(processes[1], signal.SIGKILL)
    wait_until(lambda: not guards(owner.pid), 5)
    assert owner.poll() is None
    owner.kill()
    owner.wait()
