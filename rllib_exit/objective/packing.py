"""Padding-free packs, in which rows with the same prompt share it.

The G rollouts of a group have one prompt. A pack lays it out once, before what follows it in each row:
``[prompt][rest of row 1][rest of row 2]…``. The attention mask lets a rest see its prompt and itself, and
positions go on from the prompt in every rest, so that each row gets the log-probabilities that it gets alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One segment of a rollout.

    Attributes:
        token_ids: (T,) int32.
        loss_mask: (T,) bool, True for the trained tokens; never the first.
        logprobs: (T,) float32, the engine's, where ``loss_mask`` is True.
        advantage: One for all tokens.
        loss_weight: One for all tokens; see ``loss_weights``.
    """

    token_ids: np.ndarray
    loss_mask: np.ndarray
    logprobs: np.ndarray
    advantage: float
    loss_weight: float

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens before the first trained one."""
        return int(np.argmax(self.loss_mask))


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Rows laid out in one sequence of T tokens, of which N are trained.

    Attributes:
        token_ids_T: (T,) int64.
        position_ids_T: (T,) int64, each token's position in its row.
        document_T: (T,) int64, which document a token belongs to: a prompt, a rest, or a whole row.
        parent_T: (T,) int64, the document that it may see besides: its prompt's, or its own.
        sources_N: (N,) int64, the flat position whose logits predict the trained token.
        targets_N: (N,) int64, the trained tokens.
        rows_N: (N,) int64, the index of the row that each belongs to, in ``pack``'s input.
        advantages_N: (N,) float32.
        weights_N: (N,) float32.
        rollout_logprobs_N: (N,) float32.
    """

    token_ids_T: Tensor
    position_ids_T: Tensor
    document_T: Tensor
    parent_T: Tensor
    sources_N: Tensor
    targets_N: Tensor
    rows_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    rollout_logprobs_N: Tensor

    def attention_mask(self) -> Tensor:
        """(1, 1, T, T) bool, True where query i may attend to key j: none after it, of its documents."""
        key_document_1T = self.document_T[None, :]
        visible_TT = (key_document_1T == self.document_T[:, None]) | (key_document_1T == self.parent_T[:, None])
        return visible_TT.tril_()[None, None]

    def to(self, device: torch.device | str) -> Pack:
        """The same pack on another device."""
        return Pack(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def pack(rows: Sequence[Row], max_tokens: int, share_prefixes: bool = True) -> list[Pack]:
    """Packs rows by first-fit decreasing. Rows without trained tokens are dropped.

    Rows that share a prompt stay together where they fit; else the prompt is repeated in several packs.

    Args:
        rows: What to pack.
        max_tokens: The most tokens of a pack; a longer row gets a pack of its own.
        share_prefixes: False keeps every row whole and independent.

    Raises:
        ValueError: If ``max_tokens`` is not positive, or the first token of a row is trained.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}: it must be at least 1")
    trained = [i for i, row in enumerate(rows) if row.loss_mask.any()]
    for i in trained:
        if rows[i].loss_mask[0]:
            raise ValueError(f"row {i} trains its first token, which nothing predicts: give it a prompt")

    groups: dict[object, list[int]] = {}
    for i in trained:
        row = rows[i]
        groups.setdefault(row.token_ids[: row.prompt_tokens].tobytes() if share_prefixes else i, []).append(i)
    units: list[list[int]] = []  # each: the rows that share one copy of their prompt
    for group in groups.values():
        prompt = rows[group[0]].prompt_tokens
        rests = [len(rows[i].token_ids) - prompt for i in group]
        units += [[group[j] for j in members] for members in _first_fit_decreasing(rests, max_tokens - prompt)]
    sizes = [_num_tokens([rows[i] for i in unit]) for unit in units]
    return [_build(rows, [units[u] for u in members]) for members in _first_fit_decreasing(sizes, max_tokens)]


def _num_tokens(unit: Sequence[Row]) -> int:
    """Of one prompt and the rests of the rows."""
    return sum(len(row.token_ids) for row in unit) - (len(unit) - 1) * unit[0].prompt_tokens


def _first_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of ``sizes`` by bin; a size above the capacity has a bin of its own."""
    bins: list[list[int]] = []
    free = np.empty(len(sizes), dtype=np.int64)  # of each bin
    for i in np.argsort(-np.asarray(sizes, dtype=np.int64), kind="stable").tolist():
        fits = free[: len(bins)] >= sizes[i]
        b = int(np.argmax(fits)) if fits.any() else len(bins)
        if b == len(bins):
            bins.append([])
            free[b] = capacity
        bins[b].append(i)
        free[b] -= sizes[i]
    return bins


def _build(rows: Sequence[Row], units: Sequence[Sequence[int]]) -> Pack:
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    documents: list[tuple[int, int, int]] = []  # document, parent, length
    sources: list[np.ndarray] = []
    order: list[int] = []
    num_tokens = num_documents = 0
    for unit in units:
        prompt, prompt_start, prompt_document = rows[unit[0]].prompt_tokens, num_tokens, num_documents
        tokens.append(rows[unit[0]].token_ids[:prompt])
        positions.append(np.arange(prompt))
        documents.append((prompt_document, prompt_document, prompt))
        num_tokens += prompt
        for nth, i in enumerate(unit, start=1):
            row = rows[i]
            length = len(row.token_ids)
            # A row that shares its prompt with no other is one document, as it is without sharing.
            document = prompt_document + (nth if len(unit) > 1 else 0)
            tokens.append(row.token_ids[prompt:])
            positions.append(np.arange(prompt, length))
            documents.append((document, prompt_document, length - prompt))
            # A token is predicted from the one before it in its row; before a rest, that ends the prompt.
            previous = np.flatnonzero(row.loss_mask) - 1
            sources.append(previous + np.where(previous < prompt, prompt_start, num_tokens - prompt))
            order.append(i)
            num_tokens += length - prompt
            num_documents = document + 1

    packed = [rows[i] for i in order]
    document_D, parent_D, length_D = np.array(documents).T
    counts = [int(row.loss_mask.sum()) for row in packed]

    def per_token(values: Iterable[float]) -> Tensor:
        return torch.from_numpy(np.repeat(np.fromiter(values, dtype=np.float32), counts))

    def masked(arrays: Iterable[np.ndarray], dtype: type) -> Tensor:
        pieces = [array[row.loss_mask] for array, row in zip(arrays, packed, strict=True)]
        return torch.from_numpy(np.concatenate(pieces).astype(dtype, copy=False))

    return Pack(
        token_ids_T=torch.from_numpy(np.concatenate(tokens).astype(np.int64, copy=False)),
        position_ids_T=torch.from_numpy(np.concatenate(positions)),
        document_T=torch.from_numpy(np.repeat(document_D, length_D)),
        parent_T=torch.from_numpy(np.repeat(parent_D, length_D)),
        sources_N=torch.from_numpy(np.concatenate(sources)),
        targets_N=masked((row.token_ids for row in packed), np.int64),
        rows_N=torch.from_numpy(np.repeat(np.array(order), counts)),
        advantages_N=per_token(row.advantage for row in packed),
        weights_N=per_token(row.loss_weight for row in packed),
        rollout_logprobs_N=masked((row.logprobs for row in packed), np.float32),
    )
