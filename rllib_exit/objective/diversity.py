"""The multiplicative diversity bonus (paper section 4.2): advantage ← D_i · A_i."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist


def diversity_coefficients(embeddings_GE: ArrayLike) -> np.ndarray:
    """Eq. 6: D_i = (d_i - min d) / (max d - min d), with d_i = ||e_i - mean e||.

    Args:
        embeddings_GE: (G, E) the embedding of each rollout's solution.

    Returns:
        (G,) float64 in [0, 1]; 1 for all where the distances are equal up to rounding.

    Raises:
        ValueError: If there is no embedding, or one is not finite.
    """
    embeddings_GE = np.asarray(embeddings_GE, dtype=np.float64)
    if embeddings_GE.ndim != 2 or not len(embeddings_GE):
        raise ValueError(f"embeddings have shape {embeddings_GE.shape}: give one vector per rollout of the group")
    if not np.isfinite(embeddings_GE).all():
        raise ValueError("embeddings are not all finite: mend the embedder")
    distances_G = np.linalg.norm(embeddings_GE - embeddings_GE.mean(axis=0), axis=1)
    # Embedders compute in float32: below that precision, distances are noise.
    return _normalize(distances_G, tolerance=1e-6 * np.linalg.norm(embeddings_GE, axis=1).max())


def edit_diversity_coefficients(texts: Sequence[str]) -> np.ndarray:
    """Eq. 6 without an embedder: d_i is the mean normalised edit distance to the other rollouts.

    Args:
        texts: G solutions.

    Returns:
        (G,) float64 in [0, 1]; 1 for all where the distances are equal.

    Raises:
        ValueError: If there is no text.
    """
    if not texts:
        raise ValueError("texts is empty: give one solution per rollout of the group")
    distances_GG = cdist(texts, texts, scorer=Levenshtein.normalized_distance, dtype=np.float64)
    return _normalize(distances_GG.sum(axis=1) / max(len(texts) - 1, 1), tolerance=1e-12)


def _normalize(distances_G: np.ndarray, tolerance: float) -> np.ndarray:
    low, high = distances_G.min(), distances_G.max()
    if high - low <= tolerance:
        return np.ones_like(distances_G)
    return (distances_G - low) / (high - low)
