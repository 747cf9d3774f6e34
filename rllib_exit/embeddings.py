"""Embeddings of solutions, for the diversity bonus (paper Eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
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
    embedder = Embedder(config.embedding_model)
    return lambda solutions: diversity_coefficients(embedder.embed(solutions))


class Embedder:
    """A sentence-transformers model, loaded when first used.

    A text longer than the model's window is cut to it (256 tokens for the bundled model): two solutions that
    differ only beyond the window have the same embedding.

    Args:
        model: A name that :func:`rllib_exit.models.resolve_model` takes.
        batch_size: The number of texts that are embedded together.
    """

    def __init__(self, model: str = MINILM, *, batch_size: int = 32) -> None:
        self.model = model
        self.batch_size = batch_size

    @cached_property
    def _encoder(self) -> SentenceTransformer:
        from sentence_transformers import SentenceTransformer

        # The GPUs are left to generation and training.
        return SentenceTransformer(resolve_model(self.model), device="cpu")

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
