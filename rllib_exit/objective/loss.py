"""The GRPO objective (paper section 2.2, Eq. 4 and 5), and others of its kind, as a weighted sum over tokens.

A sum whose weights are fixed for the whole batch does not depend on how the batch is cut into
micro-batches, shards or packs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rllib_exit.settings import Loss, LossAggregation, MismatchMode


def token_budget(max_turns: int | None, max_response_tokens: int, max_model_len: int) -> int:
    """The most tokens that a policy can generate in one episode, by which the aggregation ``constant`` divides.

    Every turn has a response, and all of an episode's responses have to fit the context.

    Args:
        max_turns: The most turns of an episode; None without a limit.
        max_response_tokens: The most tokens of a response.
        max_model_len: The most tokens of the context.
    """
    return max_model_len if max_turns is None else min(max_turns * max_response_tokens, max_model_len)


def loss_weights(
    num_tokens_R: ArrayLike,
    rollout_R: ArrayLike,
    num_trained_R: ArrayLike,
    *,
    aggregation: LossAggregation,
    num_rollouts: int,
    max_rollout_tokens: int,
) -> np.ndarray:
    """The weight of each token of a row, given all rows of a batch. A row is one segment of a rollout.

    - ``sequence_mean`` (GRPO): 1 / (rollouts · generated tokens of the row's rollout);
    - ``token_mean`` (DAPO): 1 / trained tokens of the batch;
    - ``constant`` (Dr. GRPO): 1 / (rollouts · ``max_rollout_tokens``). Liu et al. (2025b) divide by the generation
      budget, so that a token weighs the same in a long and a short rollout, in every batch.

    Args:
        num_tokens_R: (R,) generated tokens of each row.
        rollout_R: (R,) which rollout each row belongs to.
        num_trained_R: (R,) those of them that overlong filtering leaves in. A row without any has the weight 0.
        aggregation: How the token losses become one number.
        num_rollouts: The rollouts of the batch, those filtered out included.
        max_rollout_tokens: The most tokens that the policy can generate in a rollout, over all of its turns.

    Returns:
        (R,) float64.

    Raises:
        ValueError: If the aggregation is unknown.
    """
    num_tokens_R, num_trained_R = np.asarray(num_tokens_R), np.asarray(num_trained_R)
    if aggregation == "sequence_mean":
        _, rollout_R = np.unique(np.asarray(rollout_R), return_inverse=True)
        divisor_R = num_rollouts * np.bincount(rollout_R, weights=num_tokens_R)[rollout_R]
    elif aggregation == "token_mean":
        divisor_R = np.full(num_tokens_R.shape, num_trained_R.sum())
    elif aggregation == "constant":
        divisor_R = np.full(num_tokens_R.shape, float(num_rollouts * max_rollout_tokens))
    else:
        raise ValueError(f"loss_aggregation is {aggregation!r}: set 'sequence_mean', 'token_mean' or 'constant'")
    return np.divide(1.0, divisor_R, out=np.zeros(num_tokens_R.shape), where=num_trained_R > 0)


def batch_divisor(num_trained_R: ArrayLike, *, aggregation: LossAggregation, num_rollouts: int) -> float:
    """What :func:`loss_weights` divides the weights of all rows by, and what alone depends on the other rows.

    That of a batch is the sum of those of its parts, so that the parts' gradients can be added up before it is known.

    Args:
        num_trained_R: As there.
        aggregation: As there.
        num_rollouts: As there.
    """
    return float(np.sum(num_trained_R) if aggregation == "token_mean" else num_rollouts)


def grpo(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, rows_N: Tensor | None, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """min(ρ A, clip(ρ, 1-low, 1+high) A) with the token's ratio ρ = π_θ / π_old (Eq. 4 and 5)."""
    return _clipped(torch.exp(logprobs_N - old_logprobs_N), advantages_N, low, high)


def gspo(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, rows_N: Tensor | None, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The same with one ratio for a row, the geometric mean of its tokens' (Zheng et al., 2025, Eq. 7)."""
    sums_N, counts_N = _row_sums(logprobs_N - old_logprobs_N, rows_N)
    return _clipped(torch.exp(sums_N / counts_N), advantages_N, low, high)


def cispo(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, rows_N: Tensor | None, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """sg(min(ρ, 1+high)) A log π_θ (MiniMax-M1, 2025, Eq. 4): a clipped ratio keeps its gradient.

    As there, the ratio has no lower bound.
    """
    ratio_N = torch.exp(logprobs_N - old_logprobs_N).detach()
    return ratio_N.clamp(max=1 + high) * advantages_N * logprobs_N, ratio_N > 1 + high


# Each gives, of (N,) tokens, what is maximised, and whether its ratio was clipped.
LOSSES: Mapping[Loss, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"grpo": grpo, "gspo": gspo, "cispo": cispo}
)


def mismatch_weights(
    old_logprobs_N: Tensor, rollout_logprobs_N: Tensor, rows_N: Tensor | None, *, bound: float, mode: MismatchMode
) -> Tensor:
    """The importance weights π_old / π_rollout of tokens or, multiplied over its tokens, of a row.

    The engine that generated the tokens is numerically another policy than the learner's.

    Args:
        old_logprobs_N: (N,) log π_old.
        rollout_logprobs_N: (N,) log-probabilities as the engine gave them.
        rows_N: (N,) the row of each token; None if all are of one.
        bound: The largest weight.
        mode: Whose weight it is, and whether one above the bound is truncated to the bound, or becomes 0.

    Returns:
        (N,), without gradient.
    """
    level, what = mode.split("_")
    log_weights_N = (old_logprobs_N - rollout_logprobs_N).detach()
    if level == "sequence":
        log_weights_N, _ = _row_sums(log_weights_N, rows_N)
    weights_N = torch.exp(log_weights_N)
    return weights_N.clamp(max=bound) if what == "truncate" else weights_N.masked_fill(weights_N > bound, 0.0)


def grpo_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    rollout_logprobs_N: Tensor,
    ref_logprobs_N: Tensor | None,
    advantages_N: Tensor,
    weights_N: Tensor,
    rows_N: Tensor | None = None,
    *,
    loss: Loss = "grpo",
    clip_param: float,
    clip_param_high: float | None = None,
    kl_coeff: float,
    mismatch_clip: float | None = None,
    mismatch_mode: MismatchMode = "token_truncate",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 4, negated: Σ_n w_n (-c_n · J_n + β · KL_n).

    J is one of ``LOSSES``. KL is the k3 estimator exp(d) - d - 1 with d = log π_ref - log π_θ. c are the
    :func:`mismatch_weights`.

    Args:
        logprobs_N: (N,) log π_θ of the generated tokens, with gradient.
        old_logprobs_N: (N,) log π_old.
        rollout_logprobs_N: (N,) log-probabilities as the engine gave them.
        ref_logprobs_N: (N,) log π_ref; None only if ``kl_coeff`` is 0.
        advantages_N: (N,) the advantage of each token's rollout.
        weights_N: (N,) the ``loss_weights`` of each token's row.
        rows_N: (N,) the row of each token, all tokens of a row being there; None if all are of one.
        loss: The name of J.
        clip_param: ε.
        clip_param_high: ε above 1, by default the same.
        kl_coeff: β.
        mismatch_clip: The largest importance weight; None leaves the correction out.
        mismatch_mode: See :func:`mismatch_weights`.

    Returns:
        The loss, and detached statistics over the N tokens: the sums ``kl``, ``clipped`` and
        ``logprob_abs_diff`` (π_old, the learner's policy before the update, against the engine's),
        ``logprob_abs_diff_max``, and ``num_tokens``.

    Raises:
        ValueError: If ``kl_coeff`` is not 0 and there is no reference.
    """
    high = clip_param if clip_param_high is None else clip_param_high
    surrogate_N, clipped_N = LOSSES[loss](logprobs_N, old_logprobs_N, advantages_N, rows_N, clip_param, high)
    loss_N = -surrogate_N
    if mismatch_clip is not None:
        loss_N = loss_N * mismatch_weights(
            old_logprobs_N, rollout_logprobs_N, rows_N, bound=mismatch_clip, mode=mismatch_mode
        )
    if ref_logprobs_N is not None:
        d_N = ref_logprobs_N - logprobs_N
        kl_N = torch.expm1(d_N) - d_N
        if kl_coeff:  # 0 · ∞ is not 0
            loss_N = loss_N + kl_coeff * kl_N
    elif kl_coeff:
        raise ValueError(f"kl_coeff is {kl_coeff} without reference log-probabilities: give them, or set it to 0")
    else:
        kl_N = torch.zeros_like(loss_N)

    with torch.no_grad():
        diff_N = (old_logprobs_N - rollout_logprobs_N).abs()
        stats = {
            "kl": kl_N.detach().sum(),
            "clipped": clipped_N.sum(),
            "logprob_abs_diff": diff_N.sum(),
            "logprob_abs_diff_max": diff_N.max() if len(diff_N) else diff_N.sum(),
            "num_tokens": torch.tensor(len(diff_N), device=diff_N.device),
        }
    return (weights_N * loss_N).sum(), stats


def _clipped(ratio_N: Tensor, advantages_N: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    unclipped_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - low, 1 + high) * advantages_N
    return torch.minimum(unclipped_N, clipped_N), unclipped_N > clipped_N


def _row_sums(values_N: Tensor, rows_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each token the sum of the values of its row, and how many they are."""
    rows_N = torch.zeros_like(values_N) if rows_N is None else rows_N
    _, row_N, counts_R = torch.unique(rows_N, return_inverse=True, return_counts=True)
    sums_R = values_N.new_zeros(len(counts_R)).index_add(0, row_N, values_N)
    return sums_R[row_N], counts_R[row_N]
