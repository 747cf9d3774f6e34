import decimal
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mpmath
import pytest

from envs.bfcl import worker
from envs.bfcl.apis import API_CLASSES, functions, load, methods, same_state
from envs.bfcl.calls import Call
from envs.bfcl.worker import MAX_RESULT_CHARS, ApiWorkers, Result, WorkerError, call_method, shared_workers

ROOT = Path(__file__).parents[3]
SCENARIO: dict[str, Any] = {
    "classes": ["GorillaFileSystem", "MathAPI", "VehicleControlAPI"],
    "config": {"GorillaFileSystem": {"root": {"home": {"type": "directory", "contents": {}}}}},
}


def call(name: str, /, **args: Any) -> Call:
    return Call(name, args)


ADD = call("add", a=1, b=2)
FOR_EVER = call("power", base=9, exponent=10**9)
MKDIR = [call("mkdir", dir_name=name) for name in "abc"]
LS = call("ls", a=False)


@pytest.fixture(scope="module")
def workers() -> Iterator[ApiWorkers]:
    with ApiWorkers(workers=2) as workers:
        yield workers


def execute(workers: ApiWorkers, *calls: Call, replayed: tuple[Call, ...] = (), timeout_s: float = 5.0) -> list[Result]:
    return workers.execute(SCENARIO, replayed, calls, timeout_s)


def pids(workers: ApiWorkers) -> set[int]:
    return {worker.process.pid for worker in workers._slots.queue if worker is not None}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_calls_run_in_order_on_the_replayed_state(workers: ApiWorkers):
    results = execute(workers, MKDIR[1], LS, replayed=(MKDIR[0],))
    assert results == [Result(True, "null"), Result(True, '{"current_directory_content": ["a", "b"]}')]
    assert execute(workers, LS) == [Result(True, '{"current_directory_content": []}')]


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        (call("cd", folder="nowhere"), "cd: 'nowhere': No such file or directory"),  # the API's own
        (call("lockDoors", unlock=False, door=["trunk"]), "KeyError: 'trunk'"),
        (call("cd", folder=7), "AttributeError: 'int' object has no attribute 'rstrip'"),
        (call("power", base=9, exponent=10**5), "ValueError: Exceeds the limit"),
        (call("square_root", number=2, precision=10**10), "MemoryError: "),  # some 4 GiB
    ],
)
def test_the_first_failure_is_the_last_call(workers: ApiWorkers, failing: Call, error: str):
    first, second = execute(workers, MKDIR[0], failing, MKDIR[1])
    assert first.ok and not second.ok and second.finished
    assert json.loads(second.text)["error"].startswith(error)


def test_a_directory_within_itself_is_no_end(workers: ApiWorkers):
    looped = [MKDIR[0], call("cp", source="a", destination="a")]
    results = execute(workers, *looped, call("find", path=".", name=None))
    assert "RecursionError" in results[-1].text
    assert workers.compare(SCENARIO, [looped], [MKDIR[:1]], 5.0) == [False]
    assert workers.compare(SCENARIO, [looped], [looped], 5.0) == [False]
    assert not workers.official_verdict(SCENARIO, [looped], [MKDIR[:1]], 5.0)


def test_long_results_are_cut(workers: ApiWorkers):
    (result,) = execute(workers, call("echo", content="x" * 10_000, file_name=None))
    text = json.loads(result.text)
    assert text.startswith('{"terminal_output": "xxx') and text.endswith("… (cut, 10023 characters)")
    assert len(result.text) < MAX_RESULT_CHARS + 100


def test_every_process_says_the_same():
    # The API lists a set.
    updates = call("edit_ticket", ticket_id=1, updates=dict.fromkeys("abcdefgh", 1))
    scenario = {"classes": ["TicketAPI"], "config": {"TicketAPI": {"ticket_queue": [{"id": 1}]}}}

    def answer() -> str:
        with ApiWorkers(workers=1) as workers:
            return workers.execute(scenario, [], [updates], 5.0)[0].text

    first = answer()
    assert "Invalid fields for update: " in first and answer() == first


def test_lone_surrogates_do_not_come_back(workers: ApiWorkers):
    (result,) = execute(workers, call("echo", content="é \ud800", file_name=None))
    assert result.text == '{"terminal_output": "é ?"}'


@pytest.mark.parametrize(
    "endless",
    [
        FOR_EVER,
        call("logarithm", value=2, base=10, precision=10**8),
        call("square_root", number=2, precision=10**8),
        call("round_number", number=1, decimal_places=-(10**9)),
    ],
    ids=lambda endless: endless.name,
)
def test_the_deadline_is_hard(workers: ApiWorkers, endless: Call):
    execute(workers, ADD)
    before = pids(workers)
    start = time.monotonic()
    results = execute(workers, ADD, endless, ADD, timeout_s=1.0)
    assert time.monotonic() - start < 3.0
    assert results[0].ok
    assert results[1:] == [Result(False, '{"error": "stopped after 1 s: this takes too long"}', finished=False)]
    killed = before - pids(workers)
    assert len(killed) == 1 and not alive(killed.pop())
    assert execute(workers, ADD)[0].ok


def test_a_replay_past_the_deadline_fails_the_next_call(workers: ApiWorkers):
    (result,) = execute(workers, ADD, replayed=(FOR_EVER,), timeout_s=0.5)
    assert not result.ok and not result.finished
    assert workers.compare(SCENARIO, [MKDIR, [FOR_EVER]], [MKDIR, []], 1.0) == [True, False]
    assert workers.official_verdict(SCENARIO, [[FOR_EVER]], [[ADD]], 0.5) is False


def test_starting_up_does_not_count():
    with ApiWorkers(workers=1) as workers:
        assert execute(workers, ADD, timeout_s=0.2)[0].ok


def test_states_are_compared_after_each_request(workers: ApiWorkers):
    made = [[MKDIR[0]], [MKDIR[2]], [MKDIR[1]]]
    ground_truth = [[MKDIR[0]], [MKDIR[1]], [MKDIR[2]]]
    assert workers.compare(SCENARIO, made, ground_truth, 5.0) == [True, False, True]


def test_private_attributes_are_no_state():
    ours, theirs = load(SCENARIO["classes"], SCENARIO["config"]), load(SCENARIO["classes"], SCENARIO["config"])
    methods(ours)["mkdir"]("a")
    assert not same_state(ours, theirs)
    methods(theirs)["mkdir"]("a")
    methods(ours)["cd"]("a")
    methods(ours)["get_current_speed"]()
    assert same_state(ours, theirs)


def test_the_configuration_is_not_changed():
    config = {"TradingBot": {"watch_list": ["A"], "stocks": {"B": {"price": 1.0}}}}
    methods(load(["TradingBot"], config))["add_to_watchlist"]("B")
    assert config["TradingBot"]["watch_list"] == ["A"]


@pytest.mark.parametrize("api", API_CLASSES)
def test_only_documented_functions_can_be_called(api: str):
    reachable = methods(load([api], {}))
    assert reachable.keys() == {name for name, function in functions().items() if function.api == api}
    assert not any(name.startswith("_") for name in reachable)


def test_precision_is_not_kept():
    before = mpmath.mp.dps, decimal.getcontext().prec
    apis = methods(load(["MathAPI"], {}))
    assert call_method(apis["logarithm"], {"value": 2, "base": 10, "precision": 50})[1].startswith(
        '{"result": "0.3010299'
    )
    assert call_method(apis["square_root"], {"number": 2, "precision": 60})[0]
    assert not call_method(apis["square_root"], {"number": 2, "precision": -1})[0]
    assert (mpmath.mp.dps, decimal.getcontext().prec) == before


def test_many_threads_share_the_processes(workers: ApiWorkers):
    def added(i: int) -> str:
        return execute(workers, call("add", a=i, b=1))[0].text

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(added, range(64))) == [f'{{"result": {i + 1}}}' for i in range(64)]
    assert len(pids(workers)) <= 2


def test_a_dead_process_is_replaced(workers: ApiWorkers):
    execute(workers, ADD)
    for pid in pids(workers):
        os.kill(pid, signal.SIGKILL)
    assert execute(workers, MKDIR[1], LS, replayed=(MKDIR[0],))[1].text == '{"current_directory_content": ["a", "b"]}'


def test_a_process_that_dies_twice_is_an_error(workers: ApiWorkers, monkeypatch: pytest.MonkeyPatch):
    def dies(worker: worker._Worker, request: dict[str, Any], timeout_s: float) -> Iterator[Any]:
        raise EOFError
        yield

    with monkeypatch.context() as patch:
        patch.setattr(worker._Worker, "ask", dies)
        with pytest.raises(WorkerError, match=r"died twice, asked to execute .*\"add\""):
            execute(workers, ADD)
    assert execute(workers, ADD)[0].ok


def test_an_interrupted_request_leaves_no_answer_behind(workers: ApiWorkers, monkeypatch: pytest.MonkeyPatch):
    execute(workers, ADD)

    def interrupted(worker: worker._Worker, deadline: float) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker._Worker, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(workers, ADD)
    assert execute(workers, LS) == [Result(True, '{"current_directory_content": []}')]


def test_a_process_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with ApiWorkers(workers=1) as workers, pytest.raises(WorkerError, match=r"did not start .exit status"):
        execute(workers, ADD)


def test_close_ends_the_processes_and_the_pool_starts_again():
    workers = ApiWorkers(workers=1)
    execute(workers, ADD)
    (pid,) = pids(workers)
    workers.close()
    assert not alive(pid) and not pids(workers)
    assert execute(workers, ADD)[0].ok
    workers.close()


def test_the_shared_pool_is_one_and_a_fork_gets_its_own():
    before = shared_workers()
    assert shared_workers() is before
    pid = os.fork()
    if pid == 0:
        os._exit(0 if shared_workers() is not before and not pids(shared_workers()) else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("busy", [False, True])
def test_the_processes_die_with_their_parent(busy: bool, tmp_path: Path):
    # Without a module path of its own, and from another directory.
    last = "workers.execute(scenario, [], [Call('power', {'base': 9, 'exponent': 10**9})], 1.0)" if busy else ""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from envs.bfcl.worker import ApiWorkers, Call\n"
        "workers, scenario = ApiWorkers(workers=1), {'classes': ['MathAPI'], 'config': {}}\n"
        "workers.execute(scenario, [], [], 5.0); (worker,) = workers._slots.queue\n"
        f"print(worker.process.pid, flush=True); {last}\n"
        "input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout and parent.stdin
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)
