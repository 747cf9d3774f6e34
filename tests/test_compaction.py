from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.base import Message
from rllib_exit.compaction import compactions


def chat(*contents: str, system: bool = False) -> list[Message]:
    """User and assistant in turn, after a system message if there is one."""
    roles = ["system"] * system + ["user", "assistant"] * len(contents)
    return [Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)]


@pytest.mark.parametrize("system", [False, True])
def test_cuts_one_more_old_message_at_a_time_the_oldest_first(system: bool) -> None:
    old = [f"{letter * 60}" for letter in "abcdefg"]
    messages = chat(*["system"] * system, *old, system=system)
    found = list(compactions(messages, 10))
    first = 1 + system  # the first response
    assert [sorted(cut) for _, cut in found] == [[first], [first, first + 1], [*range(first, first + 3)],
                                                 [*range(first, first + 4)]]  # fmt: skip
    for shorter, cut in found:
        for i, (message, before) in enumerate(zip(shorter, messages, strict=True)):
            assert message["role"] == before["role"]
            if i in cut:
                letter = before["content"][0]
                assert message["content"] == f"{letter * 5}\n[… 50 characters left out …]\n{letter * 5}"
            else:
                assert message == before


def test_the_chat_itself_stays_as_it_was() -> None:
    messages = chat(*["x" * 100] * 5)
    list(compactions(messages, 0))
    assert all(message["content"] == "x" * 100 for message in messages)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_what_is_asked_and_what_was_answered_last_are_never_cut(count: int) -> None:
    assert list(compactions(chat(*["x" * 100] * count), 10)) == []


@given(st.lists(st.text(max_size=80), max_size=9), st.integers(0, 30))
def test_every_version_is_shorter_than_the_last(contents: list[str], keep_chars: int) -> None:
    messages = chat(*contents)
    length = sum(len(message["content"]) for message in messages)
    for shorter, _ in compactions(messages, keep_chars):
        shorter_length = sum(len(message["content"]) for message in shorter)
        assert shorter_length < length
        length = shorter_length
