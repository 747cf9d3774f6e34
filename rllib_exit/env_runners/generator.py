"""What an env runner needs of an inference engine: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rllib_exit.settings import WHOLE_DISTRIBUTION


class EngineError(RuntimeError):
    """The engine died, or hangs: nothing can be had of it any more."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample a response.

    Attributes:
        max_tokens: The most tokens of one response.
        temperature: 0 is greedy. Training samples from the tempered distribution and trains on it.
        top_p: Nucleus; below 1 only in evaluation, since a truncated distribution biases the ratio.
        top_k: 0 for all tokens; as top_p.
        min_p: The least probability, as a share of the likeliest token's; as top_p.
        repetition_penalty: What the scores of tokens that were there before are divided by; as top_p.
        stop: Strings that end a response; they stay part of it.
    """

    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: Any) -> SamplingParams:
        """The sampling that a GRPOConfig asks for."""
        names = ("temperature", *WHOLE_DISTRIBUTION)
        chosen = {name: getattr(config, name) for name in names}
        return cls(config.max_response_tokens, **chosen, stop=tuple(config.stop))


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One response.

    Attributes:
        token_ids: The generated tokens, the end-of-sequence token included.
        logprobs: (N,) float32, their log-probabilities under the sampling distribution.
        truncated: Whether the token limit ended it.
    """

    token_ids: tuple[int, ...]
    logprobs: np.ndarray
    truncated: bool = False


class Sampler(Protocol):
    """What an episode needs of an inference engine. Many ``generate`` calls run concurrently in one event loop."""

    @property
    def max_model_len(self) -> int:
        """The most tokens of prompt and response together."""
        ...

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        """Samples one response.

        Raises:
            EngineError: If the engine died.
        """
        ...


class Generator(Sampler, Protocol):
    """An inference engine."""

    def start(self) -> None:
        """Starts the engine, if it has not started; returns when it has. Any thread may call it.

        Raises:
            Exception: If it cannot start; from every call, without another try.
        """
        ...

    async def update_weights(self, files: Sequence[Sequence[np.ndarray]]) -> float:
        """Loads new weights in place and forgets what was cached under the old ones.

        Responses that are under way stop meanwhile, and go on under the new weights.

        Args:
            files: Safetensors files with Hugging Face names, which together hold all weights. Each comes in
                parts, (bytes,) uint8, that are its content one after the other.

        Returns:
            How many seconds the engine itself took.

        Raises:
            EngineError: If the engine died.
        """
        ...

    async def update_adapters(self, files: Sequence[Sequence[np.ndarray]]) -> float:
        """As :meth:`update_weights`, with new LoRA adapters on the weights that the engine started with.

        Only where a run has ``.lora(sync="adapters")``.

        Args:
            files: ``adapter_config.json`` and ``adapter_model.safetensors`` as peft saves them, in parts.

        Raises:
            EngineError: If the engine died.
        """
        ...

    async def patch_weights(self, patches: Sequence[Sequence[Sequence[np.ndarray]]]) -> float:
        """As :meth:`update_weights`, with what changed since; with nothing it only wakes the engine, if it sleeps.

        Args:
            patches: One after the other; each has a file, see :func:`make_patch`, for each of those that
                :meth:`update_weights` got before.

        Raises:
            EngineError: If the engine died.
        """
        ...

    def read_stats(self) -> Mapping[str, float]:
        """What the engine did since the last call, or its start: see :meth:`EngineStats.read`.

        An engine that does not count it returns nothing.
        """
        ...

    async def checksums(self) -> Mapping[str, Any]:
        """Checksums of the weights as the engine keeps them, or of some of them, by name.

        Raises:
            EngineError: If the engine died.
        """
        ...

    async def sleep(self) -> None:
        """Frees what memory it can until it gets new weights. Nothing may run.

        Raises:
            EngineError: If the engine died.
        """
        ...

    async def close(self) -> None:
        """Ends the engine."""
        ...
