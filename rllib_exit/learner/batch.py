"""Turns rollout groups into the learners' batches: advantages and loss weights, before any sharding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rllib_exit.objective.loss import loss_weights
from rllib_exit.objective.packing import Row, split
from rllib_exit.rollouts import ScoredGroup
from rllib_exit.settings import LossAggregation


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What one learner trains on.

    Attributes:
        minibatches: One update each per epoch; a row is one segment of a rollout. Every learner has the
            same number of them, and the loss of a minibatch is the sum over all learners' rows.
    """

    minibatches: tuple[tuple[Row, ...], ...]


def make_batches(
    groups: Sequence[ScoredGroup],
    *,
    num_learners: int,
    minibatch_size: int | None,
    loss_aggregation: LossAggregation,
    max_response_tokens: int,
    overlong_filtering: bool,
    skip_zero_advantage: bool,
) -> list[TrainBatch]:
    """Makes one batch per learner.

    Args:
        groups: The groups, none of them empty.
        num_learners: How many learners share the work.
        minibatch_size: Rollouts per update; None for all in one. A minibatch holds whole groups, so it
            may be larger by less than a group.
        loss_aggregation: See :func:`rllib_exit.objective.loss.loss_weights`.
        max_response_tokens: As there.
        overlong_filtering: Whether responses that lack a valid ending get no loss.
        skip_zero_advantage: Leave out rows whose advantage is 0. Their gradient is 0 if there is no KL
            term; they count in the loss's denominators all the same.
    """
    minibatches: list[list[Row]] = []
    for chunk in _chunks(groups, minibatch_size):
        rollouts = [pair for of in chunk for pair in zip(of.group.rollouts, of.advantages_G, strict=True)]
        segments = [(i, segment) for i, (rollout, _) in enumerate(rollouts) for segment in rollout.segments]
        masks = [
            segment.ended_mask if overlong_filtering and segment.ended_mask is not None else segment.loss_mask
            for _, segment in segments
        ]
        weights = loss_weights(
            np.array([segment.loss_mask.sum() for _, segment in segments]),
            np.array([i for i, _ in segments]),
            np.array([mask.sum() for mask in masks]),
            aggregation=loss_aggregation,
            num_rollouts=len(rollouts),
            max_response_tokens=max_response_tokens,
        )
        minibatches.append(
            [
                Row(segment.token_ids, mask, segment.logprobs, float(rollouts[i][1]), float(weight))
                for (i, segment), mask, weight in zip(segments, masks, weights, strict=True)
                if weight and not (skip_zero_advantage and rollouts[i][1] == 0)
            ]
        )
    shards = [split(rows, num_learners) for rows in minibatches]
    return [TrainBatch(tuple(tuple(shard[i]) for shard in shards)) for i in range(num_learners)]


def _chunks(groups: Sequence[ScoredGroup], minibatch_size: int | None) -> list[list[ScoredGroup]]:
    if minibatch_size is None:
        return [list(groups)]
    chunks: list[list[ScoredGroup]] = [[]]
    size = 0
    for scored in groups:
        if size >= minibatch_size:
            chunks.append([])
            size = 0
        chunks[-1].append(scored)
        size += len(scored.group.rollouts)
    return chunks
