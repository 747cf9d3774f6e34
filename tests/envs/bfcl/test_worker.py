import decimal
import json
import time
from pathlib import Path
from typing import Any

import mpmath
import pytest

from envs.bfcl import worker
from envs.bfcl.apis import API_CLASSES, functions, load, methods, same_state
from envs.bfcl.calls import bind
from envs.bfcl.worker import MAX_RESULT_CHARS, Result, call_method
from envs.tool_use.calls import Call

ROOT = Path(__file__).parents[3]
SCENARIO: dict[str, Any] = {
    "classes": ["GorillaFileSystem", "MathAPI", "VehicleControlAPI"],
    "config": {"GorillaFileSystem": {"root": {"home": {"type": "directory", "contents": {}}}}},
    "long_context": False,
}


def call(name: str, /, **args: Any) -> Call:
    return Call(name, args)


ADD = call("add", a=1, b=2)
FOR_EVER = call("power", base=9, exponent=10**9)
MKDIR = [call("mkdir", dir_name=name) for name in "abc"]
LS = call("ls", a=False)


def execute(*calls: Call, replayed: tuple[Call, ...] = (), timeout_s: float = 5.0) -> list[Result]:
    return worker.execute(SCENARIO, replayed, calls, timeout_s)


def test_calls_run_in_order_on_the_replayed_state():
    results = execute(MKDIR[1], LS, replayed=(MKDIR[0],))
    assert results == [Result(True, "null"), Result(True, '{"current_directory_content": ["a", "b"]}')]
    assert execute(LS) == [Result(True, '{"current_directory_content": []}')]


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
def test_the_first_failure_is_the_last_call(failing: Call, error: str):
    first, second = execute(MKDIR[0], failing, MKDIR[1])
    assert first.ok and not second.ok and second.finished
    assert json.loads(second.text)["error"].startswith(error)


def test_a_directory_within_itself_is_no_end():
    looped = [MKDIR[0], call("cp", source="a", destination="a")]
    results = execute(*looped, call("find", path=".", name=None))
    assert "RecursionError" in results[-1].text
    assert worker.compare(SCENARIO, [looped], [MKDIR[:1]], 5.0) == [False]
    assert worker.compare(SCENARIO, [looped], [looped], 5.0) == [False]
    assert not worker.official_verdict(SCENARIO, [looped], [MKDIR[:1]], 5.0)


def test_long_results_are_cut():
    (result,) = execute(call("echo", content="x" * 10_000, file_name=None))
    text = json.loads(result.text)
    assert text.startswith('{"terminal_output": "xxx') and text.endswith("… (cut, 10023 characters)")
    assert len(result.text) < MAX_RESULT_CHARS + 100


def test_every_process_says_the_same():
    # The API lists a set.
    updates = call("edit_ticket", ticket_id=1, updates=dict.fromkeys("abcdefgh", 1))
    scenario = {"classes": ["TicketAPI"], "config": {"TicketAPI": {"ticket_queue": [{"id": 1}]}}, "long_context": False}
    first = worker.execute(scenario, [], [updates], 5.0)[0].text
    worker.workers.close()
    assert "Invalid fields for update: " in first and worker.execute(scenario, [], [updates], 5.0)[0].text == first


def test_lone_surrogates_do_not_come_back():
    (result,) = execute(call("echo", content="é \ud800", file_name=None))
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
def test_the_deadline_is_hard(endless: Call):
    execute(ADD)
    start = time.monotonic()
    results = execute(ADD, endless, ADD, timeout_s=0.2)
    assert time.monotonic() - start < 60  # it has 0.2 s of CPU time
    assert results[0].ok
    assert results[1:] == [Result(False, '{"error": "stopped after 0.2 s: this takes too long"}', finished=False)]
    assert execute(ADD)[0].ok


def test_a_call_that_took_too_long_is_not_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "_endless", {})
    first = execute(FOR_EVER, ADD, timeout_s=0.2)
    asked = []
    ask = worker._ask
    monkeypatch.setattr(worker, "_ask", lambda *args: asked.append(args[3]) or ask(*args))
    assert execute(FOR_EVER, timeout_s=0.2) == first and not first[0].finished
    assert [result.ok for result in execute(ADD, FOR_EVER, ADD, timeout_s=0.2)] == [True, False]
    assert [list(calls) for calls in asked] == [[ADD]]


def test_each_call_has_the_time_to_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "_endless", {})
    slow = call("round_number", number=1, decimal_places=-(10**6))
    (alone,) = execute(slow)  # some 0.15 s
    assert alone.finished
    # Together they take several times the limit.
    results = execute(slow, slow, replayed=(slow,) * 4, timeout_s=0.6)
    assert results == [alone] * len(results) and not worker._endless
    assert worker.compare(SCENARIO, [[slow] * 4], [[slow] * 4], 0.6) == [True]


def test_what_a_replay_used_up_is_not_held_against_the_new_call(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "_endless", {})
    execute(ADD, replayed=(FOR_EVER,), timeout_s=0.2)
    assert not worker._endless


def test_calls_share_no_argument():
    scenario = {"classes": ["TwitterAPI"], "config": {"TwitterAPI": {"authenticated": True}}, "long_context": False}
    post = bind(call("post_tweet", content="hello"), functions()["post_tweet"].signature)
    mention = bind(call("mention", tweet_id=0, mentioned_usernames=["@evil"]), functions()["mention"].signature)
    assert worker.compare(scenario, [[post, mention]], [[post]], 5.0) == [False]
    assert worker.compare(scenario, [[post, post, mention]], [[post, post, mention]], 5.0) == [True]


def test_a_replay_past_the_deadline_fails_the_next_call():
    (result,) = execute(ADD, replayed=(FOR_EVER,), timeout_s=0.2)
    assert not result.ok and not result.finished
    assert worker.compare(SCENARIO, [MKDIR, [FOR_EVER]], [MKDIR, []], 0.2) == [True, False]
    assert worker.official_verdict(SCENARIO, [[FOR_EVER]], [[ADD]], 0.2) is False


def test_states_are_compared_after_each_request():
    made = [[MKDIR[0]], [MKDIR[2]], [MKDIR[1]]]
    ground_truth = [[MKDIR[0]], [MKDIR[1]], [MKDIR[2]]]
    assert worker.compare(SCENARIO, made, ground_truth, 5.0) == [True, False, True]


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
