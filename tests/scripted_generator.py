"""A Generator that says what a script says; for tests without an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.generator import Generation, SamplingParams


class ScriptedGenerator:
    """Answers with ``script(prompt_text, seed)``, encoded, and a log-probability of -1 for every token."""

    def __init__(
        self,
        model: str,
        script: Callable[[str, int], str],
        *,
        dtype: str = "float32",
        max_model_len: int = 512,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        self.chat = ChatTokenizer(model)
        self.script = script
        self.prompts: list[list[int]] = []
        self.updates: list[np.ndarray] = []
        self._max_model_len = max_model_len

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        await asyncio.sleep(0)
        self.prompts.append(list(prompt_ids))
        text = self.script(self.chat.tokenizer.decode(prompt_ids), seed)
        ids = self.chat.tokenizer.encode(text, add_special_tokens=False)
        truncated = len(ids) >= sampling.max_tokens
        ids = ids[: sampling.max_tokens] if truncated else [*ids, self.chat.eos_token_ids[0]]
        return Generation(tuple(ids), np.full(len(ids), -1.0, np.float32), truncated)

    async def update_weights(self, weights: np.ndarray) -> None:
        self.updates.append(weights)

    async def close(self) -> None:
        pass
