"""Padding-free packs, in which rows share the prefixes that they have in common.

The G rollouts of a group have one prompt, and prompts of one domain begin with the same instructions. Sorted
by their tokens, rows with a common prefix are neighbours: a pack lays out of each row only what the row before
it does not have, so that its tokens form a prefix tree. The attention mask lets a token see its ancestors in
the tree, and positions count along the branch, so that each row gets the log-probabilities that it gets alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from rllib_exit.rollouts import SegmentKey

BLOCK = 128  # queries and keys of a block, as flex_attention has them


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One segment of a rollout.

    Attributes:
        token_ids: (T,) int32.
        loss_mask: (T,) bool, True for the trained tokens; never the first.
        logprobs: (T,) float32, the engine's, where ``loss_mask`` is True.
        advantage: One for all tokens.
        loss_weight: One for all tokens; see ``loss_weights``.
        key: Names the segment.
    """

    token_ids: np.ndarray
    loss_mask: np.ndarray
    logprobs: np.ndarray
    advantage: float
    loss_weight: float
    key: SegmentKey = ("", 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Rows laid out in one sequence of T tokens, with N trained tokens.

    Attributes:
        token_ids_T: (T,) int64.
        position_ids_T: (T,) int64, each token's position in its rows.
        first_row_T: (T,) int64, the first of the pack's rows that a token belongs to, counted within the pack.
        last_row_T: (T,) int64, the last one: a token belongs to all rows from the first to the last.
        sources_N: (N,) int64, the flat position whose logits predict the trained token.
        targets_N: (N,) int64, the trained tokens.
        rows_N: (N,) int64, the index of the row that each belongs to, in ``pack``'s input.
        advantages_N: (N,) float32.
        weights_N: (N,) float32.
        rollout_logprobs_N: (N,) float32.
    """

    token_ids_T: Tensor
    position_ids_T: Tensor
    first_row_T: Tensor
    last_row_T: Tensor
    sources_N: Tensor
    targets_N: Tensor
    rows_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    rollout_logprobs_N: Tensor

    def mask_for(self, attn_implementation: str) -> Tensor | BlockMask | None:
        """The mask as one of Hugging Face's implementations of attention takes it."""
        if attn_implementation.startswith("flash"):
            return None  # it finds the rows by their positions, where each is whole
        return self.block_mask() if attn_implementation == "flex_attention" else self.attention_mask()

    def attention_mask(self) -> Tensor:
        """(1, 1, T, T) bool, True where query i may attend to key j: an ancestor of i, or i itself."""
        row_T1 = self.first_row_T[:, None]
        visible_TT = (self.first_row_T <= row_T1) & (row_T1 <= self.last_row_T)
        return visible_TT.logical_and_(self.position_ids_T <= self.position_ids_T[:, None])[None, None]

    def block_mask(self) -> BlockMask:
        """The same mask for ``flex_attention``, which passes over the blocks in which no query sees a key.

        It takes memory for (T / 128)² blocks, and none for T² pairs. A token's ancestors are the earlier ones
        that belong to its first row. So the least and the largest rows of a block of tokens tell whether the
        queries of another one see all of it, can see some, or see none.
        """
        first_row_T, last_row_T = self.first_row_T, self.last_row_T
        num_tokens, device = len(first_row_T), first_row_T.device

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            row = first_row_T[query]
            return (key <= query) & (first_row_T[key] <= row) & (row <= last_row_T[key])

        # The last block is filled up with the last token.
        tokens_BS = torch.arange(math.ceil(num_tokens / BLOCK) * BLOCK, device=device).view(-1, BLOCK)
        first_BS, last_BS = (rows_T[tokens_BS.clamp(max=num_tokens - 1)] for rows_T in (first_row_T, last_row_T))
        least_B1, largest_B1 = first_BS.amin(1, keepdim=True), first_BS.amax(1, keepdim=True)
        earlier_BB = torch.ones(len(tokens_BS), len(tokens_BS), dtype=torch.bool, device=device).tril()
        some_BB = earlier_BB & (largest_B1 >= least_B1.T) & (least_B1 <= last_BS.amax(1))
        all_BB = earlier_BB.tril(-1) & (least_B1 >= largest_B1.T) & (largest_B1 <= last_BS.amin(1))

        def listed(blocks_BB: Tensor) -> tuple[Tensor, Tensor]:
            """(1, 1, B) how many blocks of keys each block of queries has, and (1, 1, B, B) their indices first."""
            indices_BB = blocks_BB.int().argsort(dim=1, descending=True, stable=True)
            return blocks_BB.sum(1).int()[None, None], indices_BB.int()[None, None]

        return BlockMask.from_kv_blocks(
            *listed(some_BB & ~all_BB),
            *listed(all_BB),
            BLOCK_SIZE=BLOCK,
            mask_mod=visible,
            seq_lengths=(num_tokens, num_tokens),
        )

    def to(self, device: torch.device | str) -> Pack:
        """The same pack on another device."""
        return Pack(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def pack(rows: Sequence[Row], max_tokens: int, share_prefixes: bool = True) -> list[Pack]:
    """Packs rows in the order of their tokens, one pack after the other. Rows without trained tokens are dropped.

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
    trained.sort(key=lambda i: _sort_key(rows[i]))
    return [_build(rows, members) for members in _fill(rows, trained, max_tokens, share_prefixes)]


def unpack(
    rows: Sequence[Sequence[Row]], packs: Sequence[Sequence[Pack]], values: Sequence[Tensor]
) -> dict[SegmentKey, np.ndarray]:
    """What the trained tokens of packs have, by row: (T,) float32, NaN at a row's other tokens.

    Args:
        rows: The rows of each minibatch.
        packs: The packs of each minibatch. One without a weight stands for no row.
        values: For each pack, one minibatch after the other, (N,) the values of its trained tokens.
    """
    by_key: dict[SegmentKey, np.ndarray] = {}
    pairs = [(of, pack) for of, packed in zip(rows, packs, strict=True) for pack in packed]
    for (of, pack), values_N in zip(pairs, values, strict=True):
        if not pack.weights_N.any():
            continue
        numbers_N, numpy_N = pack.rows_N.cpu().numpy(), values_N.float().cpu().numpy()
        for i in np.unique(numbers_N):
            by_key[of[i].key] = np.full(len(of[i].token_ids), np.nan, np.float32)
            by_key[of[i].key][of[i].loss_mask] = numpy_N[numbers_N == i]
    return by_key


def split(rows: Sequence[Row], parts: int) -> list[list[Row]]:
    """Cuts rows, in the order that packs have them, into parts of about as many tokens after sharing prefixes.

    A common prefix is computed in each part that has a row of it: with the order kept, that is hardly ever more
    than one.
    """
    if parts == 1:
        return [list(rows)]
    rows = sorted(rows, key=_sort_key)
    shared = [0, *itertools.starmap(_common_prefix, itertools.pairwise(rows))]
    new = np.array([len(row.token_ids) - n for row, n in zip(rows, shared, strict=False)])
    # A row goes to the part in which its middle lies.
    middles = np.cumsum(new) - new / 2
    split: list[list[Row]] = [[] for _ in range(parts)]
    for row, middle in zip(rows, middles, strict=True):
        split[min(int(middle * parts / new.sum()), parts - 1)].append(row)
    return split


def _sort_key(row: Row) -> bytes:
    # Big-endian bytes sort as the token ids do.
    return row.token_ids.astype(">u4").tobytes()


def _fill(
    rows: Sequence[Row], order: Iterable[int], max_tokens: int, share_prefixes: bool
) -> Iterator[list[tuple[int, int]]]:
    """The rows of each pack, with how many tokens each shares with the row before it."""
    members: list[tuple[int, int]] = []
    num_tokens = 0
    for i in order:
        length = len(rows[i].token_ids)
        shared = _common_prefix(rows[members[-1][0]], rows[i]) if members and share_prefixes else 0
        if members and num_tokens + length - shared > max_tokens:
            yield members
            members, num_tokens, shared = [], 0, 0
        members.append((i, shared))
        num_tokens += length - shared
    if members:
        yield members


def _common_prefix(a: Row, b: Row) -> int:
    length = min(len(a.token_ids), len(b.token_ids))
    different = a.token_ids[:length] != b.token_ids[:length]
    return int(different.argmax()) if different.any() else length


def _build(rows: Sequence[Row], members: Sequence[tuple[int, int]]) -> Pack:
    num_tokens = sum(len(rows[i].token_ids) - shared for i, shared in members)
    token_ids_T, position_ids_T, first_row_T, last_row_T = np.empty((4, num_tokens), np.int64)
    sources: list[np.ndarray] = []
    branch = np.empty(0, np.int64)  # the flat positions of the current row's tokens
    end = 0
    for n, (i, shared) in enumerate(members):
        length = len(rows[i].token_ids)
        new = slice(end, end := end + length - shared)
        branch = np.concatenate([branch[:shared], np.arange(new.start, new.stop)])
        token_ids_T[new] = rows[i].token_ids[shared:]
        position_ids_T[new] = np.arange(shared, length)
        first_row_T[new] = n
        last_row_T[branch] = n
        # A token is predicted from the one before it in its row.
        sources.append(branch[np.flatnonzero(rows[i].loss_mask) - 1])

    order = [i for i, _ in members]
    packed = [rows[i] for i in order]
    counts = [len(positions) for positions in sources]

    def per_token(values: Iterable[float]) -> Tensor:
        return torch.from_numpy(np.repeat(np.fromiter(values, dtype=np.float32), counts))

    def trained(arrays: Iterable[np.ndarray], dtype: type) -> Tensor:
        pieces = [array[row.loss_mask] for array, row in zip(arrays, packed, strict=True)]
        return torch.from_numpy(np.concatenate(pieces).astype(dtype, copy=False))

    return Pack(
        token_ids_T=torch.from_numpy(token_ids_T),
        position_ids_T=torch.from_numpy(position_ids_T),
        first_row_T=torch.from_numpy(first_row_T),
        last_row_T=torch.from_numpy(last_row_T),
        sources_N=torch.from_numpy(np.concatenate(sources)),
        targets_N=trained((row.token_ids for row in packed), np.int64),
        rows_N=torch.from_numpy(np.repeat(np.array(order), counts)),
        advantages_N=per_token(row.advantage for row in packed),
        weights_N=per_token(row.loss_weight for row in packed),
        rollout_logprobs_N=trained((row.logprobs for row in packed), np.float32),
    )
