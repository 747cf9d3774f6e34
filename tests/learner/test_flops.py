from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from rllib_exit.learner.flops import ModelFlops, peak
from rllib_exit.learner.lora import add_adapters
from rllib_exit.objective.packing import Pack, Row, pack

CONFIG = LlamaConfig(
    vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
)  # fmt: skip


def row(tokens: int, trained: int) -> Row:
    mask = np.arange(tokens) >= tokens - trained
    return Row(np.arange(tokens, dtype=np.int32), mask, np.zeros(tokens, np.float32), 1.0, 1.0)


def packed(*rows: Row) -> list[Pack]:
    return pack(rows, 10**6, share_prefixes=False)


def flops_of(model: Any, config: Any = CONFIG) -> ModelFlops | None:
    parameters = dict(model.named_parameters())
    trainable = [name for name, p in parameters.items() if p.requires_grad]
    return ModelFlops.of(config, {name: p.shape for name, p in parameters.items()}, trainable)


def counted(model: Any, pack: Pack) -> tuple[float, float]:
    """What torch counts, forward and backward, with all logits and no attention mask."""
    with FlopCounterMode(display=False) as forward:
        logits = model(input_ids=pack.token_ids_T[None], use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def make_model() -> Any:
    return AutoModelForCausalLM.from_config(CONFIG, attn_implementation="eager")


@pytest.mark.parametrize("adapters", [False, True])
def test_the_flops_are_those_that_torch_counts(adapters: bool) -> None:
    """Torch counts the pairs that the mask hides too, and our attention term has the others alone."""
    model = make_model()
    if adapters:
        model.enable_input_require_grads()  # else the first layer takes a little less than the others
        model = add_adapters(model, r=4, alpha=8, target_modules=["q_proj", "v_proj"])
    flops = flops_of(model)
    assert flops is not None
    tokens = 20
    [one] = packed(row(tokens, tokens - 1))
    forward, backward = counted(model, one)
    hidden = flops.attention * tokens * (tokens - 1) // 2
    unscored = flops.output  # the first token's logits, which nothing asks for
    assert flops.of_passes([one], forward=1, backward=0) == forward - hidden - 2 * unscored
    passes = 2 if adapters else 4  # the output layer is not trained with adapters
    assert flops.of_passes([one], forward=0, backward=1) == backward - 2 * hidden - passes * unscored


def test_a_shared_prefix_is_computed_once() -> None:
    flops = ModelFlops(weights=1, trained=1, output=0, output_trained=0, attention=0)
    rows = [row(10, 2), row(10, 2)]
    rows[1].token_ids[-1] = 77
    assert flops.of_passes(pack(rows, 10**6, False), forward=1, backward=1) == 6 * 20
    assert flops.of_passes(pack(rows, 10**6, True), forward=1, backward=1) == 6 * 11


def test_pairs_are_those_within_a_row() -> None:
    flops = ModelFlops(weights=0, trained=0, output=0, output_trained=0, attention=1)
    assert flops.of_passes(packed(row(3, 1), row(4, 1)), forward=1, backward=1) == 3 * (6 + 10)


def test_the_flops_of_experts_and_of_windows_are_not_known() -> None:
    layer = {"model.layers.0.mlp.experts.gate_up_proj": (8, 32, 32), "model.layers.0.self_attn.q_proj.weight": (32, 32)}
    assert ModelFlops.of(CONFIG, layer, list(layer)) is None
    windows = SimpleNamespace(**{**CONFIG.to_dict(), "layer_types": ["full_attention", "sliding_attention"]})
    assert flops_of(make_model(), windows) is None
    assert ModelFlops.of(CONFIG, {"transformer.h.0.attn.weight": (32, 32)}, []) is None


def test_the_peak_is_known_for_whole_gpus_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["NVIDIA H200", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "another GPU"])
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: next(names))
    gpu = torch.device("cuda")
    assert peak(gpu, torch.bfloat16) == 989e12
    assert all(math.isnan(peak(gpu, torch.bfloat16)) for _ in range(2))
    assert math.isnan(peak(gpu, torch.float32)) and math.isnan(peak(torch.device("cpu"), torch.bfloat16))
