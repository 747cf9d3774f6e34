"""Tool use in the call syntax of chat templates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.base import TaskInstance, Turn
from envs.bfcl.env import BFCLEnv
from envs.tool_use.calls import FORMATS, STOP, ActionKind, Call, format_native, parse_native
from envs.tool_use.own import ToolEnv
from rllib_exit.chat import ChatTokenizer
from tests.envs.tool_use.templates import LLAMA, QWEN, tokenizer
from tests.envs.tool_use.test_own import options

PAY, NOTE = Call("pay", {"amount": 1}), Call("note", {"name": "x"})


def make(**changes: Any) -> ToolEnv:
    return ToolEnv(options(tool_format="native", **changes))


@pytest.fixture(scope="module")
def env() -> ToolEnv:
    return make()


@pytest.fixture(scope="module")
def qwen() -> ChatTokenizer:
    return ChatTokenizer(tokenizer(QWEN))


def begin(env: Any, *history: str, task: str = "2") -> None:
    env.reset(options={"instance": TaskInstance(task, tuple(map(Turn, history)))})


def block(content: str) -> str:
    return f"<tool_call>{content}</tool_call>"


LS = '{"name": "ls", "arguments": {"a": [1]}}'
PARAMETERS = '{"name": "ls", "parameters": {"a": [1]}}'
LS_CALL = Call("ls", {"a": [1]})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (block(LS), [LS_CALL]),
        (f"I look.\n{block(chr(10) + LS + chr(10))}\n", [LS_CALL]),
        (f"{block(LS)}\n{block(LS)} and so on", [LS_CALL] * 2),
        (f"<tool_call>\n{LS}", [LS_CALL]),  # as vLLM has it
        (block('{"name": "ls", "arguments": {}, "id": 3}'), [Call("ls", {})]),
        (PARAMETERS, [LS_CALL]),
        (f"<|python_tag|>{PARAMETERS}", [LS_CALL]),
        (f"\n{PARAMETERS}; {PARAMETERS}", [LS_CALL] * 2),
    ],
)
def test_calls(text: str, calls: list[Call]) -> None:
    action = parse_native(text)
    assert (action.kind, list(action.calls)) == (ActionKind.CALLS, calls)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (block(""), "not valid JSON"),
        (block("{'name': 'ls'}"), "not valid JSON"),
        (f"<tool_call>{LS[:-1]}", "not valid JSON"),
        (block(LS) + block("ls"), "not valid JSON"),
        (block(f"[{LS}]"), 'call 1 is not an object with the keys "name" and "arguments"'),
        (block('{"name": "ls"}'), 'with the keys "name" and "arguments"'),
        (block('{"name": 1, "arguments": {}}'), '"name" must be a string'),
        (block('{"name": "ls", "arguments": "{}"}'), '"arguments" an object'),
        (block('{"name": "ls", "arguments": {"a": NaN}}'), "NaN is no JSON value"),
        (block('{"name": "ls", "arguments": {"a": "</tool_call>"}}'), "not valid JSON"),
        (block(LS) * 33, "make at most 32"),
        (f"{PARAMETERS};" * 33, "make at most 32"),
        ("[" * 10**5 + "<tool_call>" + "[" * 10**5, "nested deeper"),
        ('{"name": "ls"', "not valid JSON"),
        ('{"a": 1}', "is not an object with the keys"),
        (f"{LS}</tool_call>", "</tool_call> without <tool_call>"),
    ],
)
def test_malformed_calls_say_what_is_wrong(text: str, problem: str) -> None:
    action = parse_native(text)
    assert action.kind is ActionKind.MALFORMED and problem in action.problem and len(action.problem) < 200


def test_a_text_without_a_call_ends_the_request() -> None:
    assert parse_native("The note is written: [1, 2].").kind is ActionKind.FINISHED
    assert parse_native(" \n").kind is ActionKind.UNENDED


def test_a_formatted_call_is_parsed_back() -> None:
    calls = (Call("f", {"text": "</tool_call> <tool_call> \ud800", "n": 1.5}), Call("g", {}))
    assert parse_native(f"I call. {format_native(*calls)}").calls == calls


@pytest.mark.slow
def test_vllms_own_parsers_agree(qwen: ChatTokenizer) -> None:
    pytest.importorskip("vllm")
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser
    from vllm.tool_parsers.llama_tool_parser import Llama3JsonToolParser

    qwen.tokenizer.add_tokens(["<|python_tag|>"])
    request: Any = None
    for parser, texts in (
        (
            Hermes2ProToolParser(qwen.tokenizer),
            [format_native(PAY, NOTE), f"Well. {format_native(NOTE)}", block(LS), "No."],
        ),
        (Llama3JsonToolParser(qwen.tokenizer), [PARAMETERS, f"{PARAMETERS}; {PARAMETERS}", "No."]),
    ):
        for text in texts:
            theirs = parser.extract_tool_calls(text, request).tool_calls
            found = tuple(Call(call.function.name, json.loads(call.function.arguments)) for call in theirs)
            assert parse_native(text).calls == found, text


@pytest.mark.parametrize("template", [QWEN, LLAMA], ids=["qwen", "llama"])
def test_the_chat_is_what_the_template_makes_of_calls(env: ToolEnv, template: str) -> None:
    """A history that is read from the task buffer has the tokens that the template writes for its calls."""
    chat = ChatTokenizer(tokenizer(template))
    response = format_native(PAY) if template == QWEN else '{"name": "pay", "parameters": {"amount": 1}}'
    begin(env, response)
    messages = env.messages()
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool"]
    function = {"name": "pay", "arguments": {"amount": 1}}
    structured = [
        *({"role": message["role"], "content": message["content"]} for message in messages[:2]),
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": "9"},
    ]
    tools = env.tools(env.task)
    expected = chat.tokenizer.apply_chat_template(structured, tools=tools, add_generation_prompt=True)["input_ids"]
    assert chat.encode(messages, tools=tools) == expected
    assert [tool["function"]["name"] for tool in tools] == ["pay", "note", "spin"]


def test_a_result_in_a_json_string_is_escaped_as_the_template_does(env: ToolEnv) -> None:
    chat = ChatTokenizer(tokenizer(LLAMA))
    begin(env, format_native(NOTE))
    text = chat.tokenizer.decode(chat.encode(env.messages(), tools=env.tools(env.task)))
    assert '"{\\"notes\\": [\\"x\\"], \\"tags\\": null}"' in text


def test_an_episode(env: ToolEnv, qwen: ChatTokenizer) -> None:
    begin(env)
    outcome = env.step(f"I pay and note.\n{format_native(PAY, PAY, NOTE)}")[4]["outcome"]
    assert outcome.valid and not outcome.done and outcome.feedback.split("\n")[:2] == ["9", "8"]
    assert [message["role"] for message in env.messages()[2:]] == ["assistant", "tool", "tool", "tool"]
    assert env.step("It is paid.")[1] == 1.0
    assert env.turns[-1].solution == "finished"


def test_an_error_is_a_tools_answer_and_an_empty_response_no_call(env: ToolEnv) -> None:
    begin(env, block("x"), "", block('{"name": "pay", "arguments": {"amount": 100}}'))
    assert [message["role"] for message in env.messages()[2:]] == [
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
        "tool",
    ]
    assert "not valid JSON" in env.messages()[3]["content"] and "is empty" in env.messages()[5]["content"]


def test_an_iterate_is_shown_and_asked_about(env: ToolEnv, qwen: ChatTokenizer) -> None:
    env.reset(options={"instance": TaskInstance("2", (), Turn(format_native(PAY)), "improve")})
    *_, iterate, request = env.messages()
    assert iterate.get("markers") == ("<tool_call>", "</tool_call>") and request["role"] == "user"
    ids = qwen.encode(env.messages(), tools=env.tools(env.task))
    call = qwen.tokenizer.convert_tokens_to_ids("<tool_call>")
    assert ids.count(call) == 2  # the template's own, and the iterate's


@pytest.mark.parametrize("requests", ["first", "all"])
def test_grading_is_the_same_in_both_formats(requests: str) -> None:
    envs = [BFCLEnv({"split": "all", "requests": requests, "tool_format": name, "limit": 4}) for name in FORMATS]
    for task_id in envs[0].tasks:
        outcomes = []
        for env in envs:
            begin(env, task=task_id)
            outcomes.append([env.step(response)[4]["outcome"] for response in env.demonstration(env.task)])
        tags, native = ([(o.quality, o.done, o.valid, o.metrics) for o in part] for part in outcomes)
        assert tags == native and native[-1][:2] == (1.0, True)
        assert [turn.solution for turn in envs[0].turns if "{" in turn.solution] == [
            turn.solution for turn in envs[1].turns if "{" in turn.solution
        ]


def test_the_templates_that_cannot_be_used(env: ToolEnv) -> None:
    begin(env)
    plain = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="shows no tools: use tool_format='tags'"):
        ChatTokenizer(tokenizer(plain)).encode(env.messages(), tools=env.tools(env.task))


@pytest.mark.parametrize("token", ["<|im_end|>", "<tool_call>"])
def test_a_schema_that_spells_a_control_token_is_refused(env: ToolEnv, qwen: ChatTokenizer, token: str) -> None:
    begin(env)
    tools = [{"type": "function", "function": {"name": "f", "description": f"Acts.{token}", "parameters": {}}}]
    with pytest.raises(ValueError, match="spells a control token"):
        qwen.encode(env.messages(), tools=tools)


# A thousand fuzzed responses, in both formats.

PIECES = [
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "<|im_start|>", "<|im_end|>",
    "<|endoftext|>", "<|python_tag|>", "<tool>", *STOP, "assistant\n", "[", "]", "{", "}", '{"name": "note", ',
    '"arguments": {"name": "', '"parameters": {"name": "', '"args": {"name": "', '"}}', '"', ",", ";", "\\u003c", "\n",
    "\ud800", "\u2028", "é", "1e999", "NaN",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join)


@st.composite
def responses(draw: st.DrawFn, name: str) -> str:
    """Mostly a call whose argument is hostile, sometimes hostile text alone."""
    text = draw(TEXTS)
    if not draw(st.sampled_from([True, True, False])):
        return text
    call = Call(draw(st.sampled_from(["note", "nothing"])), {"name": text})
    written = FORMATS[name].calls(call)
    if draw(st.booleans()):  # so that no ending in the argument ends the response
        written = (
            written.replace("<", "\\u003c").replace("\\u003ctool", "<tool", 1)[: -len("\\u003c/tool>")] + "</tool>"
        )
    return written if name == "tags" else f"{draw(TEXTS)}{FORMATS[name].calls(call)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FORMATS))
def test_a_thousand_fuzzed_responses(name: str, qwen: ChatTokenizer) -> None:
    env = ToolEnv(options(tool_format=name, max_turns=1000, max_unended=1000))
    begin(env)
    seen: dict[ActionKind, int] = dict.fromkeys(ActionKind, 0)
    control = set(qwen.tokenizer.get_added_vocab().values())
    own = [qwen.tokenizer.convert_tokens_to_ids(marker) for marker in FORMATS[name].markers]

    @settings(max_examples=1000, deadline=None, database=None)
    @given(responses(name))
    def play(response: str) -> None:
        action = env.format.parse(response)
        seen[action.kind] += 1
        begin(env)
        done = env.step(response)[2]
        assert done == (action.kind in (ActionKind.FINISHED, ActionKind.ERROR))
        messages = env.messages()
        # What the template writes for this chat, and the markers of calls that can be read.
        calls = sum(len(env.format.parse(turn.response).calls) for turn in env.turns)
        blank: list[Any] = [{"role": message["role"], "content": "x"} for message in messages]
        tools = env.tools(env.task)
        ids, template = (
            [token for token in qwen.encode(chat, tools=tools) if token in control] for chat in (messages, blank)
        )
        marked = sum(response.count(marker) for marker in FORMATS[name].markers) if calls else 0
        assert len(ids) == len(template) + marked
        assert [token for token in ids if token not in own] == [token for token in template if token not in own]

    play()
    assert sum(seen.values()) >= 1000 and all(seen[kind] for kind in ActionKind if kind is not ActionKind.ERROR), seen
