import json
import time
from typing import Annotated, Any, Literal

import pytest
from gymnasium.utils.env_checker import check_env
from pydantic import Field

from envs.base import Outcome, TaskInstance, Turn
from envs.tool_use import toolkit
from envs.tool_use.calls import TASK_ERROR, TASK_FINISHED, Call, format_calls
from envs.tool_use.own import ToolEnv
from tests.envs.bfcl.helpers import results


class Account:
    """Money that can be paid and got."""

    def __init__(self, balance: int, notes: list[str]) -> None:
        self.balance, self.notes = balance, notes

    def pay(self, amount: int, to: Literal["bob", "eve"] = "bob") -> int:
        """Pays from the account.

        Args:
            amount: How much.
            to: Whom.
        """
        if amount > self.balance:
            raise ValueError("the balance is too low")
        self.balance -= amount
        return self.balance

    def note(self, name: str, tags: list[str] | None = None) -> dict[str, Any]:
        """Writes a note."""
        self.notes.append(name)
        return {"notes": self.notes, "tags": tags}

    def spin(self) -> None:
        """Never ends."""
        while True:
            pass

    def _steal(self) -> None:
        """Not offered."""


class SavingsAccount(Account):
    def save(self, amount: int) -> int:
        """Puts money in."""
        self.balance += amount
        return self.balance


def at_target(account: Account, target: int) -> float:
    return float(account.balance == target)


ROWS = [
    {
        "prompt": f"Pay {i}.",
        "balance": 10,
        "notes": [],
        "target": 10 - i,
        "good": [{"name": "pay", "args": {"amount": i}}],
    }
    for i in range(1, 6)
]


def options(**changes: Any) -> dict[str, Any]:
    return {"tools": Account, "check": at_target, "data": ROWS, "demonstration": "good", **changes}


def make(**changes: Any) -> ToolEnv:
    return ToolEnv(options(**changes))


def begin(env: ToolEnv, *history: str, task: str = "2") -> None:
    env.reset(options={"instance": TaskInstance(task, tuple(map(Turn, history)))})


def tool(name: str, /, **args: Any) -> str:
    return format_calls(Call(name, args))


def answer(env: ToolEnv, response: str) -> list[Any]:
    return results(env.step(response)[4]["outcome"].feedback)


def test_the_gymnasium_contract():
    check_env(make(), skip_render_check=True)


def test_the_prompt_shows_what_hints_and_docstrings_say():
    system, user = make(system_prompt="You keep an account.").prompt(make().tasks["2"])
    assert system["content"].startswith("You keep an account.\n") and user == {"role": "user", "content": "Pay 2."}
    shown = {f["name"]: f for f in map(json.loads, system["content"].partition("Functions:\n")[2].splitlines())}
    assert list(shown) == ["pay", "note", "spin"]
    assert shown["pay"] == {
        "name": "pay",
        "description": "Pays from the account.",
        "parameters": {
            "type": "object",
            "properties": {
                "amount": {"type": "integer", "description": "How much."},
                "to": {"type": "string", "enum": ["bob", "eve"], "default": "bob", "description": "Whom."},
            },
            "required": ["amount"],
            "additionalProperties": False,
        },
    }


def test_the_methods_of_a_base_class_are_tools_too():
    env = make(tools=SavingsAccount)
    begin(env)
    assert answer(env, format_calls(Call("save", {"amount": 5}), Call("pay", {"amount": 1}))) == [15, 14]


def test_an_episode():
    env = make()
    begin(env)
    assert answer(env, tool("pay", amount=2)) == [8]
    _, reward, terminated, _, info = env.step(f"That is all. {TASK_FINISHED}")
    assert (reward, terminated) == (1.0, True)
    assert info["outcome"].metrics == {"tool_calls": 1.0, "failed_calls": 0.0, "malformed_fraction": 0.0}


def test_every_episode_has_a_state_of_its_own():
    env = make()
    for _ in range(2):
        begin(env)
        assert answer(env, tool("note", name="x")) == [{"notes": ["x"], "tags": None}]


def test_a_history_is_restored_by_its_calls():
    env = make()
    begin(env, tool("pay", amount=1), "no ending", tool("pay", amount=100), tool("note", name="x"))
    assert [turn.quality for turn in env.turns] == [0.0] * 4
    assert answer(env, format_calls(Call("pay", {"amount": 1}), Call("note", {"name": "y"}))) == [
        8,
        {"notes": ["x", "y"], "tags": None},
    ]
    assert env.step(TASK_FINISHED)[1] == 1.0


def test_a_demonstration_solves_its_task():
    env = make()
    for task_id, task in env.tasks.items():
        begin(env, task=task_id)
        rewards = [env.step(response)[1] for response in env.demonstration(task)]
        assert rewards == [0.0, 1.0]
    with pytest.raises(NotImplementedError):
        make(demonstration=None).demonstration(task)
    assert make(demonstration=None).gold(task) is None and make().gold(task) == "\n".join(make().demonstration(task))


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (tool("pay", amount=11), "ValueError: the balance is too low"),
        (tool("pay", amount="2"), "pay.amount: '2' is not of type 'integer'"),
        (tool("pay", amount=True), "pay.amount: True is not of type 'integer'"),
        (tool("pay", amount=2, to="me"), "pay.to: 'me' is not one of ['bob', 'eve']"),
        (tool("pay"), "pay: 'amount' is a required property"),
        (tool("pay", amount=2, self=1), "pay: Additional properties are not allowed ('self' was unexpected)"),
        (tool("note", name="a", tags=[1]), "note.tags"),
        (tool("note", name="x" * 10**5, tags="x" * 10**5), "note.tags"),
        (tool("pays", amount=2), "unknown function 'pays', did you mean 'pay'?"),
        (tool("_steal"), "unknown function '_steal'"),
        (tool("__init__", balance=1, notes=[]), "unknown function '__init__'"),
        ("<tool>[</tool>", "not valid JSON"),
        ("Which account?", "the response has no ending"),
    ],
)
def test_a_failure_is_a_result(response: str, error: str):
    env = make()
    begin(env)
    (result,) = answer(env, response)
    assert error in result["error"] and len(result["error"]) <= 600
    assert not env.turns[-1].quality and env.step(tool("pay", amount=2))[4]["outcome"].quality == 1.0


def test_a_call_that_does_not_end_fails_and_leaves_no_trace():
    env = make(call_timeout_s=0.3)
    begin(env)
    start = time.monotonic()
    assert answer(env, format_calls(Call("pay", {"amount": 2}), Call("spin", {}))) == [
        8,
        {"error": "stopped after 0.3 s: this takes too long"},
    ]
    assert time.monotonic() - start < 30
    assert env.step(TASK_FINISHED)[1] == 1.0


def test_a_pattern_that_takes_for_ever_ends_the_check_alone():
    def spell(word: Annotated[str, Field(pattern="^(a|a)*$")]) -> str:
        """Spells."""
        return word

    env = make(tools=[spell], check=lambda calls: 1.0, demonstration=None, call_timeout_s=0.5)
    begin(env)
    assert "spell: checking the arguments took more" in answer(env, tool("spell", word="a" * 40 + "b"))[0]["error"]
    assert answer(env, tool("spell", word="aa")) == ["aa"]


@pytest.mark.parametrize("schema", [{"pattern": "("}, {"$ref": "http://127.0.0.1/schema"}])
def test_a_schema_that_cannot_be_used_fails_the_call(schema: dict[str, Any]):
    """As one of an MCP server may be; nothing is fetched."""
    parameters = {"properties": {"a": schema}}
    assert "the arguments cannot be checked" in make()._toolkit.mismatch(parameters, {"a": "x"}, 5.0)


@pytest.mark.parametrize(
    ("response", "other", "same"),
    [
        (tool("pay", amount=2), "I pay. " + tool("pay", to="bob", amount=2), True),
        (tool("pay", amount=2), tool("pay", amount=2, to="eve"), False),
        (tool("pay", amount=2), tool("pay", amount=3), False),
        (tool("nothing", x=1, y=2), tool("nothing", y=2, x=1), True),
        (tool("pay", amount="2"), tool("pay", amount="3"), False),
        (f"Done. {TASK_FINISHED}", TASK_FINISHED, True),
        (TASK_FINISHED, TASK_ERROR, False),
    ],
)
def test_an_instance_is_known_by_its_calls(response: str, other: str, same: bool):
    env = make()
    assert (env.solution(response) == env.solution(other)) is same


def test_functions_without_a_state_and_a_check_of_the_transcript():
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    def check(made: list[dict[str, Any]], calls: list[dict[str, Any]], response: str, want: int) -> tuple[float, str]:
        assert made == calls
        return 0.5 * any(call["ok"] and call["result"] == want for call in calls) + 0.5 * (str(want) in response), "x"

    env = make(tools=[add], check=check, data=[{"prompt": "3 + 4?", "want": 7}], demonstration=None)
    begin(env, task="1")
    assert answer(env, tool("add", a=3, b=4)) == [7] and env.turns[-1].quality == 0.5
    assert env.step(f"It is 7. {TASK_FINISHED}")[1] == 1.0
    begin(env, task="1")
    assert env.step(f"It is 7. {TASK_FINISHED}")[1] == 0.5


def test_the_budget_of_turns():
    env = make(max_turns=2, max_unended=2)
    assert env.max_turns == 2
    begin(env, tool("pay", amount=1))
    outcome: Outcome = env.step(tool("pay", amount=1))[4]["outcome"]
    assert outcome.done and outcome.quality == 1.0
    begin(env, "Hm.")
    assert env.step("Hm.")[2]


def test_environments_of_one_definition_share_their_processes():
    assert make()._toolkit._workers is make(max_turns=3)._toolkit._workers


class Untold:
    def act(self) -> int:
        return 1


class Unhinted:
    def act(self, what) -> int:
        """Acts."""
        return 1


class Unknown:
    def act(self, what: "Nowhere") -> int:  # type: ignore[name-defined]  # noqa: F821
        """Acts."""
        return 1


class Empty:
    pass


def raises(account: Account) -> float:
    raise KeyError("target")


def two(account: Account) -> float:
    return 2.0


def asks_for_too_much(account: Account, goal: int) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tools": Untold}, "tool 'act' has no docstring: say in it what it does"),
        ({"tools": Unhinted}, "tool 'act': argument 'what' has no type hint: give it one"),
        ({"tools": Unknown}, "tool 'act': its type hints say nothing to pydantic .*Nowhere"),
        ({"tools": Empty}, "give a class with public methods, or a list of functions"),
        ({"tools": []}, "give a class with public methods, or a list of functions"),
        ({"tools": 3}, "tools.* is 3"),
        ({"tools": None}, "tools is missing: set it"),
        ({"check": raises}, "tools or check raised KeyError: 'target'"),
        ({"check": two}, "reward two gave 2.0: it must be a number from 0 to 1"),
        ({"check": asks_for_too_much}, "asks for 'goal': a row has"),
        ({"check": 3}, "is 3: use a function"),
        ({"data": [{"prompt": "Pay."}]}, "missing .* required positional arguments: 'balance' and 'notes'"),
        ({"data": [{"text": "Pay."}]}, "prompt is 'prompt': no such column in row 1"),
        ({"max_turns": 0}, "max_turns is 0"),
        ({"turns": 3}, "no option 'turns'"),
    ],
)
def test_mistakes_show_before_anything_else_starts(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_what_nobody_can_import_goes_by_value(tmp_path, monkeypatch):
    """As what `rllib train file` loads."""
    import importlib.util
    import sys

    file = tmp_path / "mine.py"
    file.write_text(
        "LIMIT = 3\n\n\nclass Tools:\n    def __init__(self):\n        self.n = 0\n\n"
        "    def count(self, by: int = LIMIT) -> int:\n        'Counts.'\n        self.n += min(by, LIMIT)\n"
        "        return self.n\n\n\ndef check(tools):\n    return float(tools.n == LIMIT)\n"
    )
    spec = importlib.util.spec_from_file_location("rllib_file_mine", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rllib_file_mine", module)
    spec.loader.exec_module(module)
    env = make(tools=module.Tools, check=module.check, data=[{"prompt": "Count."}])
    begin(env, task="1")
    assert answer(env, tool("count", by=7)) == [3] and env.turns[-1].quality == 1.0
    toolkit._pool.cache_clear()
