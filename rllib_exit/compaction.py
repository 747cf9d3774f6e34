"""Compacts a chat that has outgrown the context (the paper's section 7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envs.base import Message

MARK = "\n[… {count} characters left out …]\n"


def compactions(messages: Sequence[Message], keep_chars: int) -> Iterator[tuple[list[Message], frozenset[int]]]:
    """Ever shorter versions of a chat: one more old message cut in each, the oldest first.

    Of a message that is cut, the first and the last characters stay, around a note of how much is left out. Never cut
    are the request, up to the first response, and the last two messages: what was answered last, and what is asked now.

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
