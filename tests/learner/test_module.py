from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from rllib_exit.objective import logprobs, packing
from rllib_exit.objective.packing import Pack, pack
from tests.learner.helpers import batch, make_groups, make_learner, weights
from tests.tiny_models import make_tiny_model


def make_pack() -> Pack:
    [packed] = pack(batch(make_groups(np.random.default_rng(9)))[0].minibatches[0], 4096)
    return packed


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_and_gradients_are_those_of_the_models_logits(
    tied: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK_SIZE", 1000)  # many blocks
    monkeypatch.setattr(logprobs.score, "__defaults__", (1.0, 1000))
    packed = make_pack()
    learner = make_learner(make_tiny_model(tmp_path, tied=tied), dtype=dtype, temperature=0.7)
    module, model = learner.language_model, learner.language_model.model
    scores = module.forward_train({"pack": packed})
    scores["logprobs"].sum().backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = model(
            input_ids=packed.token_ids_T[None],
            position_ids=packed.position_ids_T[None],
            attention_mask=packed.attention_mask(),
        ).logits[0, packed.sources_N]
    logprobs_NV = (logits.float() / 0.7).log_softmax(-1)
    expected_N = logprobs_NV.gather(-1, packed.targets_N[:, None])[:, 0]
    expected_N.sum().backward()
    exact = dtype == "float32"
    torch.testing.assert_close(scores["logprobs"], expected_N, atol=1e-5 if exact else 0.03, rtol=0)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    assert not scores["entropy"].requires_grad
    torch.testing.assert_close(scores["entropy"], entropy_N.detach(), atol=1e-5 if exact else 0.01, rtol=0)
    for name, p in model.named_parameters():
        gradient = ours[name]
        assert gradient is not None and p.grad is not None
        assert (gradient - p.grad).norm() < (1e-5 if exact else 0.02) * p.grad.norm(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flex_attention_gives_the_scores_and_gradients_of_sdpa(
    dtype: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its reference implementation, as there is no backward pass on CPU; a learner on CPU refuses it."""
    monkeypatch.setattr(packing, "BLOCK", 16)  # so that there are many blocks
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    compiled = "transformers.integrations.flex_attention.WrappedFlexAttention.__call__"
    monkeypatch.setattr(compiled, lambda self: flex_attention.flex_attention)
    packed = make_pack()
    found = []
    for implementation in ("sdpa", "flex_attention"):
        learner = make_learner(tiny_model, dtype=dtype, attn_implementation=implementation)
        assert learner._share_prefixes
        logprobs_N = learner.language_model.forward_train({"pack": packed})["logprobs"]
        logprobs_N.sum().backward()
        found.append((logprobs_N, {n: p.grad for n, p in learner.language_model.model.named_parameters()}))
    (expected_N, expected), (logprobs_N, gradients) = found
    exact = dtype == "float32"
    assert not torch.equal(logprobs_N, expected_N)  # it is another implementation
    torch.testing.assert_close(logprobs_N, expected_N, atol=1e-5 if exact else 0.03, rtol=0)
    for name, gradient in gradients.items():
        assert gradient is not None and expected[name] is not None
        assert (gradient - expected[name]).norm() < (1e-5 if exact else 0.03) * expected[name].norm(), name


def save(model: PreTrainedModel, tiny_model: str, path: Path) -> str:
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((Path(tiny_model) / name).read_bytes())
    return str(path)


@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_model_that_changes_its_logits_is_refused(cap: float | None, tiny_model: str, tmp_path: Path) -> None:
    config = Gemma2Config(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=cap,
    )
    path = save(Gemma2ForCausalLM(config), tiny_model, tmp_path)
    if cap is None:
        assert len(weights(make_learner(path)))
    else:
        with pytest.raises(ValueError, match=r"changes the logits of its output layer.*soft cap"):
            make_learner(path)
