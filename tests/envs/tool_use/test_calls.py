import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.tool_use.calls import MAX_CALLS, MAX_DEPTH, STOP, ActionKind, Call, format_calls, parse_response

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def tool(content: str) -> str:
    return f"<tool>{content}</tool>"


@pytest.mark.parametrize(
    "text",
    [
        tool('[{"name": "ls", "args": {}}, {"name": "cd", "args": {"folder": "a"}}]'),
        'First I look. <tool>\n[{"name":"ls","args":{}},\n{"args":{"folder":"a"},"name":"cd"}]\n</tool>',
        tool('[{"name": "ls", "args": {}}, {"name": "cd", "args": {"folder": "a"}}]') + "<TASK_FINISHED> and so on",
    ],
)
def test_calls(text: str):
    action = parse_response(text)
    assert action.kind is ActionKind.CALLS
    assert action.calls == (Call("ls", {}), Call("cd", {"folder": "a"}))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<TASK_FINISHED>", ActionKind.FINISHED),
        ("Done.\n<TASK_FINISHED>\n", ActionKind.FINISHED),
        ("<TASK_FINISHED><tool>[]</tool>", ActionKind.FINISHED),
        ("I give up <TASK_ERROR> <TASK_FINISHED>", ActionKind.ERROR),
        ("", ActionKind.UNENDED),
        ("I am done.", ActionKind.UNENDED),
        ("<task_finished>", ActionKind.UNENDED),
        ("<TASK_FINISHED", ActionKind.UNENDED),
        ('<tool>[{"name": "ls", "args": {}}]', ActionKind.UNENDED),
        ("<tool><tool><tool>", ActionKind.UNENDED),
    ],
)
def test_endings(text: str, kind: ActionKind):
    assert parse_response(text).kind is kind


@pytest.mark.parametrize("stop", STOP)
def test_an_ending_within_an_argument_is_malformed_never_an_ending(stop: str):
    # Generation stops there, so that this is all there is.
    action = parse_response('<tool>[{"name": "echo", "args": {"content": "' + stop)
    assert action.kind is ActionKind.MALFORMED


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "not valid JSON: Expecting value"),
        ("[{'name': 'ls'}]", "not valid JSON: Expecting property name"),
        ('[{"name": "ls", "args": {}}', "not valid JSON"),
        ('[{"name": "ls", "args": {"a": NaN}}]', "NaN is no JSON value"),
        ('[{"name": "ls", "args": {"a": ' + "9" * 5000 + "}}]", "not valid JSON: Exceeds the limit"),
        ("[" * 100_000, "nested deeper"),
        ('[{"name": "ls", "args": {"a": ' + "[" * 40 + "]" * 40 + "}}]", f"nested deeper than {MAX_DEPTH}"),
        ("[]", "not a JSON list of calls"),
        ('{"name": "ls", "args": {}}', "not a JSON list of calls"),
        ('"ls"', "not a JSON list of calls"),
        ('["ls"]', "call 1 is not an object"),
        ('[{"name": "ls"}]', 'call 1 is not an object with the keys "name" and "args"'),
        ('[{"name": "ls", "args": {}, "id": 1}]', "call 1 is not an object with the keys"),
        ('[{"name": "ls", "args": {}}, {"name": 1, "args": {}}]', 'call 2: "name" must be a string'),
        ('[{"name": "ls", "args": []}]', '"args" an object'),
        (json.dumps([{"name": "ls", "args": {}}] * (MAX_CALLS + 1)), f"at most {MAX_CALLS}"),
    ],
)
def test_malformed_calls_say_what_is_wrong(content: str, problem: str):
    action = parse_response(tool(content))
    assert action.kind is ActionKind.MALFORMED
    assert problem in action.problem and len(action.problem) < 200


def test_an_end_without_a_beginning_is_malformed():
    assert "</tool> without <tool>" in parse_response('[{"name": "ls", "args": {}}]</tool>').problem


@given(st.text() | st.lists(st.sampled_from(["<tool>", *STOP, "[", '{"name":', "}", "]", " "])).map("".join))
def test_any_text_is_parsed(text: str):
    action = parse_response(text)
    assert (action.kind is ActionKind.UNENDED) == (not any(stop in text for stop in STOP))
    assert bool(action.calls) == (action.kind is ActionKind.CALLS)
    assert bool(action.problem) == (action.kind in (ActionKind.MALFORMED, ActionKind.UNENDED))


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_a_formatted_call_is_parsed_back(args: dict[str, Any]):
    call = Call("f", args)
    text = format_calls(call, call)
    if sum(text.count(stop) for stop in STOP) == 1:
        assert parse_response(text).calls == (call, call)
