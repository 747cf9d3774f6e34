"""Compacts a chat that has outgrown the context (the paper's section 7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envs.base import Message

MARK = "\n[… {count} characters left out …]\n"


def compactions(messages: Sequence[Message], keep_chars: int) -> Iterator[tuple[list[Message], frozenset[int]]]:
    """Ever shorter versions of a chat: in each of them one more old message is cut, the oldest first.

    A message that is cut keeps its first and its last characters, around a note of how much is left out. What stands
    before the first response is never cut, nor are the last two messages: the last response and what is asked now.

    Args:
        messages: The chat.
        keep_chars: How many characters stay of a message that is cut.

    Yields:
        The chat, and the indices of the messages that are cut in it.
    """
    shorter = list(messages)
    cut: frozenset[int] = frozenset()
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    for i in range(first, len(messages) - 2):
        content = messages[i]["content"]
        head = keep_chars // 2
        tail = len(content) - (keep_chars - head)
        text = content[:head] + MARK.format(count=tail - head) + content[tail:]
        if len(text) < len(content):
            shorter[i] = {**messages[i], "content": text}
            cut |= {i}
            yield list(shorter), cut
