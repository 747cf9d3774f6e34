"""Chats to token ids and back.

Two things must hold in training. Text that comes from data, tools or an old response never becomes a control
token: a tool's result that spells ``<|im_end|>`` does not end a turn. And what the engine generated is never
tokenised again: the prompt of the next turn begins with the very ids of this prompt and this response.
"""

from __future__ import annotations

import json
import re
import threading
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.base import Message
from rllib_exit.models import NO_TEMPLATE

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# Stands for the content of message i while the template is rendered. The em spaces show whether the template
# trims the content: a template that does takes them away.
_PAD = "\u2003"
# The quotation mark shows whether the template writes the content as a JSON string, with a backslash before it.
_PLACEHOLDER = re.compile(f'({_PAD}?)\ue000(\\d+)(\\\\?)"\ue001({_PAD}?)')
_SURROGATE = re.compile("[\ud800-\udfff]")


def replace_surrogates(text: str) -> str:
    """Replaces lone surrogates, which no tokenizer accepts, by U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a template puts a content: after these ids, trimmed or not, as the text of a JSON string or as it is."""

    before: array[int]
    lstrip: bool
    rstrip: bool
    as_json: bool


class ChatTokenizer:
    """Tokenises chats with a model's chat template.

    The template is rendered with placeholders for the contents. Its own text is tokenised with special tokens,
    each content by itself and as plain text. So a content never shapes the template: what some templates do with
    an old response's text (drop its reasoning, say) is not done, and the ids differ from those of
    ``apply_chat_template`` where a content begins with characters that merge with the template's text before it,
    a line break for example.

    Control tokens are all added tokens of the tokenizer, registered as special or not, such as ``<think>`` and
    ``<tool_call>``; only those of mere white space are text. A marker that a template writes as plain text
    (``### User:``) can be written by a content too.

    Thread-safe, and pickled as what it was built from.

    Args:
        tokenizer: A tokenizer, or the model directory to load it from.
        template_kwargs: Passed to the template, such as ``date_string`` or ``enable_thinking``. Give the date where
            a template writes today's date, or prompts change overnight. ``chat_template`` is another template.

    Raises:
        ValueError: If the tokenizer has no chat template, is not one of the library ``tokenizers``, or cannot encode a
            text in pieces.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | str | Path,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._source = tokenizer
        self._template_kwargs = dict(template_kwargs or {})
        self.tokenizer: Any = tokenizer
        if isinstance(tokenizer, str | Path):
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.name = str(self.tokenizer.name_or_path)
        self._plain, self._control_ids = _plain_tokenizer(self.tokenizer)
        # Transformers' tokenizers keep what a call asks for.
        self._lock = threading.Lock()
        # A group's rollouts share their prompt, and every turn encodes the turns before it again.
        self._template = lru_cache(maxsize=256)(self._render)
        self._content_ids = lru_cache(maxsize=512)(self._encode_content)

        if not (self.tokenizer.chat_template or self._template_kwargs.get("chat_template")):
            raise ValueError(NO_TEMPLATE.format(self.name))
        if self.decode([*self._encode_content("a"), *self._encode_content("a")]) != "aa":
            raise ValueError(
                f"the tokenizer of {self.name} puts a space before every text, so that a chat cannot be tokenised in "
                "pieces: use a model with a byte-level tokenizer (Llama 3, Qwen, SmolLM)"
            )
        self.eos_token_ids: tuple[int, ...] = self._eos_token_ids()
        self.vocab_size: int = len(self.tokenizer)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._source, self._template_kwargs)

    def encode(
        self,
        messages: Sequence[Message],
        generated: Mapping[int, Sequence[int]] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Tokenises a chat, up to and with the generation prompt.

        With ``p = encode(messages)`` and any ids ``g``, ``encode(messages + [assistant, user], {len(messages): g})``
        begins with ``p + g``, whatever the template makes of earlier turns.

        Args:
            messages: The chat.
            generated: The ids that the engine generated for an assistant message, by the message's index. They
                are taken as they are, after the prompt that they were generated from; the message's content is
                not looked at. An end-of-turn token that they end with is not doubled.
            tools: Functions for the template to show, as JSON schemas.

        Raises:
            ValueError: If the template refuses the order of roles, or drops, repeats or moves a content; if
                ``generated`` names something else than an assistant message; if the template does not show tools, or
                one of them spells a control token.
        """
        generated = generated or {}
        roles = tuple(message["role"] for message in messages)
        if not roles:
            raise ValueError("cannot encode a chat without messages")
        for index in generated:
            if not (0 <= index < len(roles) and roles[index] == "assistant"):
                raise ValueError(f"generated ids for message {index}, which is no assistant message of {list(roles)}")

        shown = json.dumps(tools, ensure_ascii=False) if tools else ""
        ids: list[int] = []
        begin = 0  # the first message that is not in ids yet
        response: list[int] = []  # what ids ends with, if it was generated
        # Up to each response the chat is rendered as the engine saw it, with the generation prompt: some templates
        # write a past response's header otherwise, or change earlier turns once later ones follow.
        for end in (*sorted(generated), len(roles)):
            slots, after = self._template(roles[:end], shown)
            if begin and slots[begin - 1] is None:
                raise self._dropped(begin - 1, roles[:end])
            for index in range(begin, end):
                slot, content = slots[index], messages[index]["content"]
                if slot is None:
                    if content.strip():
                        raise self._dropped(index, roles[:end])
                    continue
                ids += slot.before[_overlap(response, slot.before) :]
                response = []
                content = content.lstrip() if slot.lstrip else content
                content = content.rstrip() if slot.rstrip else content
                content = json.dumps(content, ensure_ascii=False)[1:-1] if slot.as_json else content
                ids += self._marked_ids(content, messages[index].get("markers", ()))
            ids += after[_overlap(response, after) :]
            if end < len(roles):
                response = [int(token) for token in generated[end]]
                ids += response
                begin = end + 1
        return ids

    def _marked_ids(self, text: str, markers: Sequence[str] = ()) -> list[int]:
        """Tokenises a content, as plain text but for the markers that the tokenizer has as tokens."""
        added = [m for m in markers if self.tokenizer.convert_tokens_to_ids(m) in self._control_ids]
        pieces = re.split(f"({'|'.join(map(re.escape, added))})", text) if added else [text]
        ids: list[int] = []
        for piece in pieces:
            ids += self._encode_template(piece) if piece in added else self._content_ids(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without special tokens."""
        with self._lock:
            return self.tokenizer.decode(
                [int(token) for token in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )

    def _dropped(self, index: int, roles: tuple[str, ...]) -> ValueError:
        return ValueError(
            f"the chat template of {self.name} drops the content of message {index} ({roles[index]}) of {list(roles)}"
        )

    def _eos_token_ids(self) -> tuple[int, ...]:
        ids = {self.tokenizer.eos_token_id}
        config = Path(self.name) / "generation_config.json"
        if config.is_file():
            eos = json.loads(config.read_text()).get("eos_token_id")
            ids.update(eos if isinstance(eos, list) else [eos])
        return tuple(sorted(ids - {None}))

    def _encode_template(self, text: str) -> array[int]:
        with self._lock:
            encoding = self.tokenizer(text, add_special_tokens=False, split_special_tokens=False, verbose=False)
        return array("i", encoding["input_ids"])

    def _encode_content(self, text: str) -> array[int]:
        text = replace_surrogates(text)
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):  # the model of some tokenizers has whole words, these among them
            letters = self._plain.encode_batch(list(text), add_special_tokens=False)
            ids = [token for letter in letters for token in letter.ids]
        return array("i", ids)

    def _render(self, roles: tuple[str, ...], tools: str) -> tuple[list[_Slot | None], array[int]]:
        """Tokenises the template's own text for a chat of these roles, with tools as JSON.

        Returns:
            For each content the place where it goes, None if it goes nowhere; and the ids after the last content.
        """
        from jinja2 import TemplateError

        chat = [{"role": role, "content": f'{_PAD}\ue000{index}"\ue001{_PAD}'} for index, role in enumerate(roles)]
        render = partial(
            self.tokenizer.apply_chat_template,
            chat,
            tokenize=False,
            add_generation_prompt=True,
            **self._template_kwargs,
        )
        try:
            text = render(tools=json.loads(tools)) if tools else render()
            if tools and text == render():
                raise ValueError(f"the chat template of {self.name} shows no tools: use tool_format='tags'")
        except TemplateError as error:
            raise ValueError(f"the chat template of {self.name} refuses the roles {list(roles)}: {error}") from error

        if not self._control_ids.isdisjoint(self._encode_template(tools)):
            raise ValueError(f"a tool's schema spells a control token of {self.name}: leave it out of {tools}")

        found = list(_PLACEHOLDER.finditer(text))
        order = [int(match[2]) for match in found]
        if order != sorted(set(order)):
            raise ValueError(
                f"the chat template of {self.name} repeats or moves a content of {list(roles)}: it writes them in the "
                f"order {order}"
            )
        slots: list[_Slot | None] = [None] * len(roles)
        position = 0
        for index, match in zip(order, found, strict=True):
            before = self._encode_template(text[position : match.start()])
            slots[index] = _Slot(before, lstrip=not match[1], rstrip=not match[4], as_json=bool(match[3]))
            position = match.end()
        return slots, self._encode_template(text[position:])


def _plain_tokenizer(tokenizer: Any) -> tuple[Tokenizer, frozenset[int]]:
    """A tokenizer to which control tokens are plain text, and the ids of these."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} is not one of the library tokenizers, so that text cannot be "
            "kept from becoming control tokens: use a model that has a tokenizer.json"
        )
    state = json.loads(backend.to_str())
    # Several white spaces in one token are how some models indent.
    control = [token for token in state["added_tokens"] if token["content"].strip()]
    for token in control:
        token["special"] = True
    plain = Tokenizer.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return plain, frozenset(token["id"] for token in control)


def _overlap(response: list[int], following: array[int]) -> int:
    """How many of the ids that follow a response it already ends with."""
    for count in range(min(len(response), len(following)), 0, -1):
        if response[-count:] == following[:count].tolist():
            return count
    return 0
