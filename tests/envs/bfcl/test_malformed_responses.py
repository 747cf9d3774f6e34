"""What the environment answers to sixty responses that are not quite a call or an end."""

import json
from typing import Any

import pytest

from envs.base import TaskInstance
from envs.bfcl.env import BFCLEnv
from envs.tool_use.calls import NO_ENDING, TASK_FINISHED
from tests.envs.bfcl.helpers import results

LS = '{"name": "ls", "args": {}}'
FENCE = "```"

# Without an ending: not valid, no loss with overlong filtering, answered by what is expected.
UNENDED = [
    "",
    " \n",
    "Which folder do you mean?",
    "Could you tell me the name of the file?",
    "I have moved the file.",
    "Sure! I will list the files first.",
    "Done.",
    "Ich verstehe die Frage nicht.",
    "完成了",
    "ls",
    "ls(a=True)",
    "[ls(a=True)]",
    LS,
    f"[{LS}]",
    f"{FENCE}json\n[{LS}]\n{FENCE}",
    f"{FENCE}\n{LS}\n{FENCE}",
    f"{FENCE}python\nls()\n{FENCE}",
    f"<tool>[{LS}]",
    f"<tool>{LS}",
    "<tool>",
    "<tool><tool>",
    f"<tool>[{LS}]<tool>",
    f"<tool>[{LS}]</tool",
    f"<tool>[{LS}]</ tool>",
    f"<tool>[{LS}]</TOOL>",
    f"<tools>[{LS}]</tools>",
    '<tool_call>\n{"name": "ls", "arguments": {}}\n</tool_call>',
    f'<tool_call>{{"name": "ls", "arguments": {{}}}}</tool_call>{FENCE}',
    '<|python_tag|>{"name": "ls", "parameters": {}}',
    "<function=ls>{}</function>",
    "<function_calls><invoke name='ls'></invoke></function_calls>",
    "[TOOL_CALLS] [{'name': 'ls', 'arguments': {}}]",
    "Action: ls\nAction Input: {}",
    "<task_finished>",
    "<TASK FINISHED>",
    "<TASK_FINISHED",
    "TASK_FINISHED",
    "<TASK_FAILED>",
    "<think>I should list the files</think>",
    "<tool_response>[null]</tool_response>",
]

# With an ending, and calls that cannot be read.
MALFORMED = [
    ("<tool></tool>", "not valid JSON"),
    ("<tool>ls()</tool>", "not valid JSON"),
    (f"<tool>{FENCE}json\n[{LS}]\n{FENCE}</tool>", "not valid JSON"),
    ("<tool>[{'name': 'ls', 'args': {}}]</tool>", "not valid JSON"),
    (f"<tool>[{LS},]</tool>", "not valid JSON"),
    (f"<tool>[{LS}</tool>", "not valid JSON"),
    (f"<tool>[{LS}]]</tool>", "not valid JSON"),
    (f"<tool>[{LS}] [{LS}]</tool>", "not valid JSON"),
    (f"<tool>{LS}</tool>", "not a JSON list of calls"),
    ("<tool>[]</tool>", "not a JSON list of calls"),
    ('<tool>["ls"]</tool>', "call 1 is not an object"),
    ('<tool>[{"name": "ls"}]</tool>', 'the keys "name" and "args"'),
    ('<tool>[{"name": "ls", "arguments": {}}]</tool>', 'the keys "name" and "args"'),
    ('<tool>[{"name": "ls", "parameters": {}}]</tool>', 'the keys "name" and "args"'),
    ('<tool>[{"name": "ls", "args": "{}"}]</tool>', '"args" an object'),
    ('<tool>[{"name": "ls", "args": []}]</tool>', '"args" an object'),
    ('<tool>[{"name": ["ls"], "args": {}}]</tool>', '"name" must be a string'),
    (f"[{LS}]</tool>", "</tool> without <tool>"),
    (f"<tool>[{LS}]<TASK_FINISHED>", "<tool> was not closed by </tool> before <TASK_FINISHED>"),
    ('<tool>[{"name": "echo", "args": {"content": "<TASK_ERROR>', "<tool> was not closed by </tool>"),
]

RESPONSES = [(response, NO_ENDING, False) for response in UNENDED] + [(*pair, True) for pair in MALFORMED]


def make_env(**options: Any) -> BFCLEnv:
    env = BFCLEnv({"split": "all", **options})
    env.reset(options={"instance": TaskInstance("multi_turn_base_0")})
    return env


def test_there_are_sixty() -> None:
    assert len({response for response, *_ in RESPONSES}) == 60


@pytest.mark.parametrize(("response", "error", "valid"), RESPONSES)
def test_it_is_answered_by_an_error_and_the_episode_goes_on(response: str, error: str, valid: bool) -> None:
    env = make_env()
    observation, reward, terminated, _, info = env.step(response)
    [answer] = results(observation)
    assert error in answer["error"] and len(observation) < 400
    assert (reward, terminated, info["outcome"].valid) == (0.0, False, valid)
    assert info["outcome"].metrics["malformed_fraction"] == 1.0
    # The error is in the chat, and the task can still be solved.
    assert env.messages()[-2:] == [{"role": "assistant", "content": response}, {"role": "user", "content": observation}]
    for right in env.demonstration(env.task):
        _, reward, terminated, _, info = env.step(right)
    assert (reward, terminated, info["outcome"].valid) == (1.0, True, True)


@pytest.mark.parametrize("bound", [1, 3])
def test_so_many_without_an_ending_in_a_row_end_the_episode(bound: int) -> None:
    env = make_env(max_unended=bound, max_turns=100)
    malformed, question = MALFORMED[0][0], UNENDED[2]
    for _ in range(bound - 1):
        assert not env.step(question)[2]
    if bound > 1:  # an ending begins the count anew
        for response in (malformed, *[question] * (bound - 1)):
            assert not env.step(response)[2]
    _, _, terminated, _, info = env.step(question)
    assert terminated and not info["outcome"].valid


def test_the_count_is_restored_with_a_history() -> None:
    env = make_env(max_unended=2)
    env.step("What?")
    env.reset(options={"instance": TaskInstance("multi_turn_base_0", env.turns)})
    assert env.step("What?")[2]


def test_the_error_names_every_ending() -> None:
    feedback = make_env().step("What?")[0]
    assert all(ending in json.loads(json.dumps(results(feedback)))[0]["error"] for ending in ("</tool>", TASK_FINISHED))
