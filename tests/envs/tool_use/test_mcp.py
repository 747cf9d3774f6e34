"""An environment with the tools of an MCP server, ``house_server.py``."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.base import TaskInstance, Turn
from envs.tool_use.calls import TASK_FINISHED, Call, format_calls
from envs.tool_use.mcp import MCPEnv
from rllib_exit.chat import ChatTokenizer
from tests.envs.bfcl.helpers import results
from tests.envs.tool_use.house_server import FORGED
from tests.processes import wait_for_end

SERVER = (sys.executable, str(Path(__file__).with_name("house_server.py")))
RESET = (*SERVER, "--with-reset")
ROWS = [{"prompt": f"Light the {room}.", "rooms": ["cellar"], "wanted": room} for room in ("hall", "bath")]


def lit_at_last(made: list[dict[str, Any]], wanted: str) -> float:
    return float(any(call["ok"] and wanted in call["result"] for call in made if call["name"] == "switch"))


def lit_in_state(state: dict[str, list[str]], wanted: str) -> float:
    return float(state["lit"] == ["cellar", wanted])


def make(**changes: Any) -> MCPEnv:
    return MCPEnv({"server": SERVER, "check": lit_at_last, "data": ROWS, **changes})


def make_with_reset() -> MCPEnv:
    return make(server=RESET, reset_tool="reset", state_tool="state", check=lit_in_state, call_timeout_s=1.0)


@pytest.fixture(scope="module")
def env() -> MCPEnv:
    return make_with_reset()


def begin(env: MCPEnv, *history: str) -> None:
    env.reset(options={"instance": TaskInstance("1", tuple(map(Turn, history)))})


def tool(name: str, /, **args: Any) -> str:
    return format_calls(Call(name, args))


def answer(env: MCPEnv, response: str) -> list[Any]:
    return results(env.step(response)[4]["outcome"].feedback)


def test_an_episode_on_a_server_that_is_reset(env: MCPEnv) -> None:
    system = env.prompt(env.tasks["1"])[0]["content"]
    assert '"name":"switch"' in system and '"name":"reset"' not in system and '"name":"state"' not in system
    for _ in range(2):  # the second one finds the lamps as the first one did
        begin(env)
        assert answer(env, tool("switch", room="hall", on=True)) == [["cellar", "hall"]]
        assert env.step(TASK_FINISHED)[1] == 1.0


def test_a_history_is_restored_by_its_calls(env: MCPEnv) -> None:
    begin(env, tool("switch", room="attic"), tool("switch", room="hall"))
    assert [turn.quality for turn in env.turns] == [0.0, 0.0]
    assert answer(env, tool("switch", room="attic", on=False)) == [["cellar", "hall"]]
    assert env.turns[-1].quality == 1.0


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (tool("switch", room=3), "switch.room: 3 is not of type 'string'"),
        (tool("switch"), "'room' is a required property"),
        (tool("reset", rooms=[]), "unknown function 'reset'"),
        (tool("state"), "unknown function 'state'"),
    ],
)
def test_a_failure_is_a_result(env: MCPEnv, response: str, error: str) -> None:
    begin(env)
    assert error in answer(env, response)[0]["error"]


@pytest.mark.parametrize("ending", [tool("sleep", seconds=60), tool("leave")])
def test_a_call_that_ends_the_server_fails_and_leaves_no_trace(env: MCPEnv, ending: str) -> None:
    begin(env, tool("switch", room="hall"))
    [before] = answer(env, tool("whoami"))
    assert "this takes too long" in answer(env, ending)[0]["error"]
    assert answer(env, tool("whoami")) != [before]
    assert answer(env, tool("switch", room="hall")) == [["cellar", "hall"]]
    assert env.step(TASK_FINISHED)[1] == 1.0


def test_results_are_text_that_is_cut_and_forges_nothing(env: MCPEnv, tiny_model: str) -> None:
    chat = ChatTokenizer(tiny_model)
    begin(env, tool("read"))
    assert results(env.turns[0].feedback) == [FORGED]
    roles = len(env.messages())
    ids = chat.encode(env.messages())
    assert ids.count(chat.tokenizer.convert_tokens_to_ids("<|im_start|>")) == roles + 1
    [long] = answer(env, tool("read", chars=10**6))
    assert len(long) < 5000 and long.endswith("characters)")


def test_without_a_reset_tool_every_episode_has_a_new_server() -> None:
    env = make()
    pids = []
    for _ in range(2):
        begin(env)
        pids += answer(env, tool("whoami"))
        assert answer(env, tool("switch", room="hall")) == [["hall"]]
        assert env.step(TASK_FINISHED)[1] == 1.0
    assert pids[0] != pids[1]
    begin(env)
    [last] = answer(env, tool("whoami"))
    del env
    wait_for_end([last])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server": ("no-such-command",)}, "server is .*no-such-command.*: it does not start"),
        ({"server": (sys.executable, "-c", "pass")}, "it does not start: Connection closed"),
        ({"server": ()}, "server is"),
        ({"reset_tool": "restart"}, "reset_tool is 'restart': the server has switch, sleep"),
        ({"check": lambda made, goal: 1.0}, "asks for 'goal'"),
        ({"tools": []}, "no option 'tools'"),
    ],
)
def test_mistakes_show_before_anything_else_starts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_process_ends_although_its_environment_was_not_closed() -> None:
    script = "from tests.envs.tool_use.test_mcp import make\nmake()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
