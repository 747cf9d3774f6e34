"""Embeddings of solutions, for the diversity bonus (paper Eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from rllib_exit.chat import replace_surrogates
from rllib_exit.models import MINILM, resolve_model
from rllib_exit.objective.diversity import diversity_coefficients, edit_diversity_coefficients
from rllib_exit.objective.scoring import Diversity

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def make_diversity(config: Any) -> Diversity | None:
    """The diversity bonus that a GRPOConfig asks for, or None; an embedding model is loaded with the first group."""
    if not config.diversity_bonus:
        return None
    if config.diversity_metric == "edit_distance":
        return edit_diversity_coefficients
    model, number = config.embedding_model, num_embedders(config)
    embedder = Embedders(model, number, config.num_gpus_per_embedder) if number else Embedder(model)
    return lambda solutions: diversity_coefficients(embedder.embed(solutions))


def num_embedders(config: Any) -> int:
    """How many processes embed for a GRPOConfig's diversity bonus."""
    return config.num_embedders if config.diversity_bonus and config.diversity_metric == "embedding" else 0


class Embedder:
    """A sentence-transformers model, loaded when first used.

    A text longer than the model's window is cut to it (256 tokens for the bundled model): two solutions that
    differ only beyond the window have the same embedding.

    Args:
        model: A name that :func:`rllib_exit.models.resolve_model` takes.
        batch_size: The number of texts that are embedded together; those of like lengths.
        device: Where to, as torch names it.
    """

    def __init__(self, model: str = MINILM, *, batch_size: int = 32, device: str = "cpu") -> None:
        self.model = model
        self.batch_size = batch_size
        self.device = device

    @cached_property
    def _encoder(self) -> SentenceTransformer:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(resolve_model(self.model), device=self.device)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts; empty ones too.

        Returns:
            (N, E) float32, one row per text, the same for the same texts.
        """
        if not texts:  # the encoder would drop the second axis
            return np.zeros((0, self._encoder.get_embedding_dimension() or 0), np.float32)
        embeddings = self._encoder.encode(
            [replace_surrogates(text) for text in texts],
            batch_size=self.batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return embeddings.astype(np.float32, copy=False)


class Embedders:
    """Embedders in Ray actors, so that neither the trainer nor each other is kept waiting. Thread-safe.

    Args:
        model: As of :class:`Embedder`.
        number: How many.
        num_gpus: The GPUs of each, or its part of one; with 0 it computes on a CPU.
    """

    def __init__(self, model: str, number: int, num_gpus: float = 0) -> None:
        import ray

        # They hold nothing but the model: a lost one is made anew and asked again.
        actor = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=-1, max_task_retries=-1)(Embedder)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(number):
            self._idle.put(actor.remote(model, device="cuda" if num_gpus else "cpu"))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts as :meth:`Embedder.embed` does, by an actor that is idle, and waits for one if need be."""
        import ray

        actor = self._idle.get()
        try:
            return ray.get(actor.embed.remote(list(texts)))
        finally:
            self._idle.put(actor)
