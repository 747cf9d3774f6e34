from typing import Any

import pytest

from envs.dataset import rewards
from envs.dataset.rewards import REWARDS, Reward, exact_match, json_schema, math_reward, multiple_choice


@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [("Paris", "paris", 1), (" New\n York. ", "New York", 1), ("It is Paris", "Paris", 0), ("", "Paris", 0)],
)
def test_exact_match(response: str, answer: str, value: float) -> None:
    assert exact_match(response, answer) == value


@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [
        ("B", "B", 1),
        ("The answer is (B).", "b", 1),
        ("A is wrong, so B", "B", 1),
        ("B, not C", "B", 0),  # the last one counts
        ("B. I'm sure", "B", 1),
        ("Because", "B", 0),
        ("1B", "B", 0),
        ("", "B", 0),
        ("Answer: **D**", "(D)", 1),
    ],
)
def test_multiple_choice(response: str, answer: str, value: float) -> None:
    assert multiple_choice(response, answer) == value


def test_math_reward() -> None:
    assert math_reward(r"So \boxed{\frac{1}{2}}", "0.5") == 1
    assert math_reward("7 + 5", "12", prompt="What is 7 + 5?") == 0


SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("response", "value", "feedback"),
    [
        ('{"a": 1}', 1, "fits"),
        ('Here:\n```json\n{"a": 1}\n```', 1, "fits"),
        ('{"a": "x"}', 0, r"At $.a: 'x' is not of type 'integer'"),
        ("{}", 0, "At $: 'a' is a required property"),
        ("no", 0, "This is not JSON"),
        ("[" * 100_000, 0, "This is not JSON"),
    ],
)
def test_json_schema(response: str, value: float, feedback: str) -> None:
    for schema in (SCHEMA, '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}'):
        got, said = json_schema(response, schema)
        assert got == value and feedback in said


def shorter(response: str, limit: int = 3) -> tuple[float, str]:
    return float(len(response) <= limit), "Be brief."


def test_a_reward_gets_what_it_asks_for() -> None:
    row = {"answer": "x", "prompt": "p", "limit": 1, "response": "a column of this name"}
    assert Reward.of(exact_match).resolve()("x", row) == (1.0, None)
    assert Reward.of(shorter).resolve()("xx", row) == (0.0, "Be brief.")

    def everything(response: str, **others: Any) -> float:
        assert others == {"answer": "x", "prompt": "p", "limit": 1}
        return 1.0

    assert Reward.of(everything).resolve()("xx", row) == (1.0, None)
    named = Reward.of(("envs.dataset.rewards:exact_match", 2))
    assert named.resolve()("x", row) == (1.0, None) and named.weight == 2


def test_its_text_is_the_same_in_every_process() -> None:
    assert repr([Reward.of(shorter), Reward.of((exact_match, 0.5))]) == "[shorter, (exact_match, 0.5)]"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "reward is 3: use a function"),
        ("exact", "reward is 'exact': use math, exact_match, .*or one of yours: 'module:function'"),
        ((exact_match, 0), "the weight of reward exact_match is 0: use a number above 0"),
        ((exact_match, "a"), "the weight of reward exact_match is 'a'"),
    ],
)
def test_what_is_no_reward(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reward.of(given)


def test_own_rewards_have_short_names() -> None:
    assert Reward.of("math") == Reward.of(math_reward) and Reward.of(("exact_match", 2)).function is exact_match
    assert set(REWARDS) == {"math", "exact_match", "multiple_choice", "json_schema", "code"}


def test_rewards_that_cannot_be_used() -> None:
    for name in ("gone:f", "envs.dataset.rewards:gone"):
        with pytest.raises(ValueError, match=f"reward is '{name}': .*use 'module:function'"):
            Reward.of(name).resolve()
    with pytest.raises(ValueError, match="reward json_schema asks for 'schema': a row has prompt, answer"):
        Reward.of(json_schema).resolve()("{}", {"prompt": "p", "answer": "a"})
    with pytest.raises(ValueError, match="reward <lambda> takes no response"):
        Reward.of(lambda: 1.0).resolve()
    for value in (2, -1, float("nan"), None, "1"):
        with pytest.raises(ValueError, match=r"reward <lambda> gave .*: it must be a number from 0 to 1"):
            Reward.of(lambda response, value=value: value).resolve()("x", {})


def test_a_schema_that_cannot_be_checked_is_named() -> None:
    for schema in ("{", {"type": 3}, {"$ref": "file:///etc/passwd"}, {"$ref": "#/none"}, {"pattern": "("}):
        with pytest.raises(ValueError, match="the schema cannot be used"):
            json_schema('"a"', schema)


def test_checking_is_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "CHECK_TIMEOUT_S", 0.3)
    value, said = json_schema('"' + "a" * 40 + '!"', {"pattern": "^(a+)+$"})
    assert value == 0 and "more than 0.3 s" in said


@pytest.mark.parametrize("response", ["1e999", "1" * 4000, "NaN", '{"a": ' * 500, '"' + "x" * (1 << 20) + '"'])
def test_any_json_is_judged(response: str) -> None:
    value, said = json_schema(response, {"type": "integer", "multipleOf": 0.1, "maximum": 1e3})
    assert value in (0, 1) and len(said) <= 1000
