"""Log-probabilities and entropies from hidden states, a block of the vocabulary at a time.

For N tokens and a vocabulary of V, logits, log-probabilities, their gradient and the entropy's terms are four
tensors of N·V float32 numbers: more than all else of a small model. Here no more than a block of them is there at
once. The forward pass keeps the log-sum-exp of each token; the backward pass computes the logits again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Logits in a block; float32, 128 MiB. If a pack's logits are one block, they are kept for the backward pass.
BLOCK_SIZE = 1 << 25


class OutputLayer(nn.Module):
    """A language model's output layer that can also score tokens in place of giving logits.

    It takes the place of the model's own, with the same parameters under the same names. So it is the model's
    forward pass that calls it, which is when sharded parameters are whole.

    Args:
        linear: The layer whose place it takes.

    Attributes:
        scores_at: The address of what :func:`score` gave last. A model whose forward pass returns other memory did
            something with it, such as soft-capping what it takes for logits.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.scores_at = 0
        self._targets: tuple[Tensor, float] | None = None

    @contextmanager
    def scoring(self, targets_N: Tensor, temperature: float) -> Iterator[None]:
        """Within it, the layer takes (1, N, D) hidden states and gives the (2, N) of :func:`score`."""
        self._targets = targets_N, temperature
        try:
            yield
        finally:
            self._targets = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self._targets is None:
            return nn.functional.linear(hidden, self.weight, self.bias)
        scores_2N = score(hidden[0], self.weight, self.bias, *self._targets)
        self.scores_at = scores_2N.untyped_storage().data_ptr()
        return scores_2N


def score(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    temperature: float = 1.0,
    block_size: int = BLOCK_SIZE,
) -> Tensor:
    """What ``log_softmax(linear(hidden, weight, bias) / temperature)`` says of some tokens.

    Args:
        hidden_ND: (N, D) the hidden states before the output layer. Products are computed in their dtype, or in
            autocast's; everything after them in float32.
        weight_VD: (V, D).
        bias_V: (V,) or None.
        targets_N: (N,) int64, the tokens.
        temperature: Divides the logits.
        block_size: At most so many logits at once, or those of one token of the vocabulary.

    Returns:
        (2, N) float32: the log-probabilities of the tokens, with gradient, and the entropies of the distributions
        that they are from, without.
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
    with torch.autocast(device, enabled=False):
        scores: Any = _Score.apply(hidden_ND, weight_VD, bias_V, targets_N, temperature, dtype, block_size)
        return scores


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        temperature: float,
        dtype: torch.dtype,
        block_size: int,
    ) -> Tensor:
        ctx.args = temperature, dtype, _blocks(len(targets_N), len(weight_VD), block_size)
        hidden_cast_ND = hidden_ND.to(dtype)
        target_logits_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        logits_NB = None
        maxima, sums, products = [], [], []
        for block in ctx.args[2]:
            logits_NB = _logits(hidden_cast_ND, weight_VD, bias_V, block, temperature, dtype)
            inside_N, columns_N = _inside(targets_N, block)
            picked_N = logits_NB.gather(1, columns_N[:, None])[:, 0]
            target_logits_N = torch.where(inside_N, picked_N, target_logits_N)
            # Σ exp(l - m) and Σ exp(l - m) · (l - m), m the block's maximum.
            maxima.append(logits_NB.amax(1))
            exp_NB = logits_NB.sub_(maxima[-1][:, None]).exp()
            sums.append(exp_NB.sum(1))
            products.append(exp_NB.mul_(logits_NB).sum(1))
            del exp_NB
        max_KN, sum_KN, product_KN = torch.stack(maxima), torch.stack(sums), torch.stack(products)
        max_N = max_KN.amax(0)
        # Shifted from each block's maximum to that of all.
        below_KN = max_KN - max_N
        scale_KN = below_KN.exp()
        sum_N = (scale_KN * sum_KN).sum(0)
        product_N = (scale_KN * (product_KN + below_KN * sum_KN)).sum(0)
        logsumexp_N = max_N + sum_N.log()
        # A single block is kept, less its maximum.
        kept = (logits_NB, sum_N.log()) if len(ctx.args[2]) == 1 else (None, logsumexp_N)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, *kept)
        return torch.stack([target_logits_N - logsumexp_N, sum_N.log() - product_N / sum_N])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, kept_NV, logsumexp_N = ctx.saved_tensors
        temperature, dtype, blocks = ctx.args
        hidden_grad, weight_grad, bias_grad, *_ = ctx.needs_input_grad
        grad_N = grads[0][0] / temperature
        hidden_cast_ND = hidden_ND.to(dtype)
        d_hidden_ND = torch.zeros_like(hidden_ND, dtype=torch.float32) if hidden_grad else None
        d_weight_VD = torch.empty_like(weight_VD) if weight_grad else None
        d_bias_V = torch.empty_like(bias_V) if bias_grad else None
        for block in blocks:
            if kept_NV is None:
                d_logits_NB = _logits(hidden_cast_ND, weight_VD, bias_V, block, temperature, dtype)
                d_logits_NB.sub_(logsumexp_N[:, None])
            else:
                d_logits_NB = kept_NV - logsumexp_N[:, None]
            # ∂ log p(target) / ∂ logits = [target] - p
            d_logits_NB.exp_().mul_(-grad_N[:, None])
            inside_N, columns_N = _inside(targets_N, block)
            d_logits_NB.scatter_add_(1, columns_N[:, None], (grad_N * inside_N)[:, None])
            if d_bias_V is not None:
                d_bias_V[block] = d_logits_NB.sum(0)
            d_logits_NB = d_logits_NB.to(dtype)
            if d_hidden_ND is not None:
                d_hidden_ND += d_logits_NB @ weight_VD[block].to(dtype)
            if d_weight_VD is not None:
                d_weight_VD[block] = d_logits_NB.T @ hidden_cast_ND
        if d_hidden_ND is not None:
            d_hidden_ND = d_hidden_ND.to(hidden_ND.dtype)
        return d_hidden_ND, d_weight_VD, d_bias_V, None, None, None, None


def _blocks(num_tokens: int, vocabulary: int, block_size: int) -> list[slice]:
    width = max(1, block_size // max(1, num_tokens))
    return [slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]


def _logits(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, block: slice, temperature: float, dtype: torch.dtype
) -> Tensor:
    bias_B = None if bias_V is None else bias_V[block].to(dtype)
    return nn.functional.linear(hidden_ND, weight_VD[block].to(dtype), bias_B).float().div_(temperature)


def _inside(targets_N: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """(N,) whether a target is in the block, and its column there; 0 if it is not."""
    inside_N = (targets_N >= block.start) & (targets_N < block.stop)
    return inside_N, torch.where(inside_N, targets_N - block.start, 0)
