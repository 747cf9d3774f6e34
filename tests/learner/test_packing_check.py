"""Models that do not score packs as they score rows alone are found before training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MistralConfig, MistralForCausalLM, PreTrainedModel

from rllib_exit.objective.packing import Pack
from tests.learner.helpers import make_learner

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}


def save(model: PreTrainedModel, tiny_model: str, path: Path) -> str:
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((Path(tiny_model) / name).read_bytes())
    return str(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_llama_shares_prefixes(dtype: str, tiny_model: str) -> None:
    assert make_learner(tiny_model, dtype=dtype)._share_prefixes


def test_a_window_shorter_than_the_context_is_refused(tiny_model: str, tmp_path: Path) -> None:
    mistral = save(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=256)), tiny_model, tmp_path / "mistral")
    with pytest.raises(ValueError, match=r"attends to the last 256 tokens only.*max_model_len of at most 256"):
        make_learner(mistral, max_model_len=512)
    assert make_learner(mistral, max_model_len=256)._share_prefixes
    config = Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=16)
    gemma = save(Gemma3ForCausalLM(config), tiny_model, tmp_path / "gemma")
    with pytest.raises(ValueError, match="attends to the last 16 tokens only"):
        make_learner(gemma)


def test_attention_that_takes_the_mask_for_numbers_is_refused(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'eager' scores packed rows otherwise than rows alone"):
        make_learner(tiny_model, attn_implementation="eager")


def test_layers_that_mix_neighbouring_tokens_are_refused(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward

    def mixing(self: Any, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x + 0.5 * x.roll(1, dims=1))

    monkeypatch.setattr(LlamaMLP, "forward", mixing)
    with pytest.raises(ValueError, match="scores packed rows otherwise than rows alone"):
        make_learner(tiny_model)


def test_a_model_that_cannot_share_prefixes_gets_packs_without(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mask = Pack.attention_mask

    def by_position(self: Pack) -> torch.Tensor:
        """Right where positions begin anew with each row, wrong where rows share some."""
        if (self.position_ids_T == 0).sum() == 6:
            return mask(self)
        return torch.ones_like(mask(self)).tril()

    monkeypatch.setattr(Pack, "attention_mask", by_position)
    with caplog.at_level(logging.WARNING):
        assert not make_learner(tiny_model)._share_prefixes
    assert "every rollout of a group repeats its prompt" in caplog.text
