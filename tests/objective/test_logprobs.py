from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rllib_exit.objective.logprobs import OutputLayer, score


def by_log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float) -> Tensor:
    logprobs_NV = (nn.functional.linear(hidden, weight, bias).float() / temperature).log_softmax(-1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return torch.stack([logprobs_NV.gather(-1, targets[:, None])[:, 0], entropy_N.detach()])


def inputs(tokens: int = 13, vocabulary: int = 101, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, 8), (vocabulary, 8), (vocabulary,)]
    tensors = [2 * torch.randn(shape, generator=generator) for shape in shapes]
    return [*(t.to(dtype).requires_grad_() for t in tensors), torch.randint(vocabulary, (tokens,), generator=generator)]


@pytest.mark.parametrize("block_size", [1, 13 * 7, 13 * 100, 13 * 101, 1 << 25])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_log_softmax(block_size: int, temperature: float, bias: bool) -> None:
    results = []
    for function, more in [(score, [block_size]), (by_log_softmax, [])]:
        hidden, weight, b, targets = inputs()
        scores = function(hidden, weight, b if bias else None, targets, temperature, *more)
        (scores[0] * torch.linspace(-1, 2, len(targets))).sum().backward()
        results.append([scores.detach(), hidden.grad, weight.grad, *([b.grad] if bias else [])])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_logits_far_from_0_do_not_overflow_or_cancel() -> None:
    hidden, weight, _, targets = inputs()
    scores = score(100 * hidden, weight, None, targets, 1.0, 13 * 7)
    torch.testing.assert_close(scores, by_log_softmax(100 * hidden, weight, None, targets, 1.0), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("block_size", [13 * 7, 1 << 25])
def test_products_in_bfloat16_are_those_of_autocast(block_size: int) -> None:
    results = []
    for function, more in [(score, [block_size]), (by_log_softmax, [])]:
        hidden, weight, _, targets = inputs()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = function(hidden, weight, None, targets, 1.0, *more)
        scores[0].sum().backward()
        assert hidden.grad is not None and weight.grad is not None
        assert hidden.grad.dtype == weight.grad.dtype == torch.float32
        results.append([scores.detach(), hidden.grad, weight.grad])
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    for ours, expected in zip(results[0][1:], results[1][1:], strict=True):
        assert (ours - expected).norm() < 1e-2 * expected.norm()


def test_gradients_of_bfloat16_are_summed_in_float32() -> None:
    """So most do not depend on the blocks: a sum in bfloat16 differs in half of them."""
    gradients = []
    for block_size in (64 * 20, 1 << 25):
        hidden, weight, _, targets = inputs(tokens=64, vocabulary=2000, dtype=torch.bfloat16)
        score(hidden, weight, None, targets, 1.0, block_size)[0].sum().backward()
        assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
        gradients.append(hidden.grad)
    assert (gradients[0] == gradients[1]).float().mean() > 0.65


def test_only_the_gradients_that_are_needed() -> None:
    hidden, weight, _, targets = inputs()
    score(hidden, weight.detach(), None, targets)[0].sum().backward()
    assert hidden.grad is not None and weight.grad is None
    assert not score(hidden.detach(), weight.detach(), None, targets).requires_grad


def test_no_tokens() -> None:
    hidden, weight, bias, targets = inputs(tokens=0)
    scores = score(hidden, weight, bias, targets)
    assert scores.shape == (2, 0)
    scores[0].sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_logits_are_never_whole() -> None:
    """Neither of the passes makes a tensor of more elements than a block has."""
    tokens, vocabulary, block_size = 64, 1000, 64 * 50
    hidden, weight, _, targets = inputs(tokens, vocabulary)
    largest = weight.numel()
    assert block_size < largest

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.found = max(self.found, result.numel())
            return result

    with Largest() as mode:
        score(hidden, weight, None, targets, 1.0, block_size)[0].sum().backward()
    assert mode.found == largest < tokens * vocabulary


def test_the_layer_scores_only_when_told_to_and_keeps_its_parameters() -> None:
    linear = nn.Linear(8, 101)
    layer = OutputLayer(linear)
    assert dict(layer.named_parameters()) == dict(linear.named_parameters())
    hidden, _, _, targets = inputs()
    with layer.scoring(targets, 0.7):
        scores = layer(hidden[None])
    assert layer.scores_at == scores.untyped_storage().data_ptr()
    torch.testing.assert_close(scores, by_log_softmax(hidden, linear.weight, linear.bias, targets, 0.7))
    torch.testing.assert_close(layer(hidden[None]), linear(hidden[None]))
