"""Turns rollout groups into the learners' batches: advantages and loss weights, before any sharding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rllib_exit.objective.loss import batch_divisor, loss_weights
from rllib_exit.objective.packing import Row, split
from rllib_exit.rollouts import ScoredGroup
from rllib_exit.settings import TrainingSettings

# Of an update's result, where the log of rollouts asks for it: see :func:`rllib_exit.objective.packing.unpack`.
TOKEN_LOGPROBS = "token_logprobs"


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What one learner trains on.

    Attributes:
        minibatches: One update each per epoch; a row is one segment of a rollout. Every learner has the
            same number of them, and the loss of a minibatch is the sum over all learners' rows.
        divisor: Of a part of a batch, by which the weights of its rows are not yet divided: the gradient of all parts
            together is divided by the sum of their divisors, see :func:`rllib_exit.objective.loss.batch_divisor`. None
            for a whole batch.
    """

    minibatches: tuple[tuple[Row, ...], ...]
    divisor: float | None = None


def make_batches(
    groups: Sequence[ScoredGroup],
    settings: TrainingSettings,
    *,
    max_rollout_tokens: int,
    num_learners: int,
    part: bool = False,
) -> list[TrainBatch]:
    """Makes one batch for each learner.

    Minibatches hold whole groups and about as many rollouts each: a small one would have as large an optimizer step as
    the others. Their number is that for which they come closest to ``minibatch_size``. Without a KL term
    the gradient of a row whose advantage is 0 is 0: such rows are left out, but count in the loss's denominators.

    Args:
        groups: The groups, each with rollouts. Without any there is nothing to train on.
        settings: ``minibatch_size``, ``loss_aggregation``, ``overlong_filtering`` and ``kl_coeff``.
        max_rollout_tokens: The most tokens that the policy can generate in a rollout; see
            :func:`rllib_exit.objective.loss.token_budget`.
        num_learners: How many learners share the work.
        part: Whether the groups are a part of a batch, which then is one minibatch.
    """
    minibatches: list[list[Row]] = []
    divisor = None
    for chunk in _chunks(groups, settings.minibatch_size):
        rollouts = [
            (rollout, advantage, (of.group.request.group_id, g))
            for of in chunk
            for g, (rollout, advantage) in enumerate(zip(of.group.rollouts, of.advantages_G, strict=True))
        ]
        segments = [
            (i, s, segment) for i, (rollout, _, _) in enumerate(rollouts) for s, segment in enumerate(rollout.segments)
        ]
        masks = [
            segment.ended_mask if settings.overlong_filtering and segment.ended_mask is not None else segment.loss_mask
            for _, _, segment in segments
        ]
        num_trained_R = np.array([mask.sum() for mask in masks])
        of_all: Any = {"aggregation": settings.loss_aggregation, "num_rollouts": len(rollouts)}
        weights = loss_weights(
            np.array([segment.loss_mask.sum() for _, _, segment in segments]),
            np.array([i for i, _, _ in segments]),
            num_trained_R,
            **of_all,
            max_rollout_tokens=max_rollout_tokens,
        )
        if part:
            divisor = batch_divisor(num_trained_R, **of_all)
            weights = weights * divisor
        minibatches.append(
            [
                Row(
                    segment.token_ids,
                    mask,
                    segment.logprobs,
                    float(rollouts[i][1]),
                    float(weight),
                    (*rollouts[i][2], s),
                )
                for (i, s, segment), mask, weight in zip(segments, masks, weights, strict=True)
                if weight and (settings.kl_coeff or rollouts[i][1] != 0)
            ]
        )
    shards = [split(rows, num_learners) for rows in minibatches]
    return [TrainBatch(tuple(tuple(shard[i]) for shard in shards), divisor) for i in range(num_learners)]


def _chunks(groups: Sequence[ScoredGroup], minibatch_size: int | None) -> list[list[ScoredGroup]]:
    """The groups in their order, cut where the parts come closest to equal numbers of rollouts."""
    sizes = np.array([len(scored.group.rollouts) for scored in groups])
    total = sizes.sum()
    number = 1 if minibatch_size is None else max(1, min(round(total / minibatch_size), len(groups)))
    # A group goes to the part in which its middle lies.
    parts = ((np.cumsum(sizes) - sizes / 2) * number / max(total, 1)).astype(int)
    return [[scored for scored, part in zip(groups, parts, strict=True) if part == i] for i in range(number)]
