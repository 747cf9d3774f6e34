"""The memory plan is compared with what torch keeps, and with sums worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from rllib_exit.grpo import memory_plan
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.grpo.memory_plan import ModelShape

TOKENS = 256


def tiny(cls: Any, layers: int = 2, **changes: Any) -> Any:
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    return cls(**sizes | {"head_dim": 32, "num_hidden_layers": layers, "vocab_size": 100} | changes)


def kept_bytes(config: Any, autocast: bool) -> float:
    """What torch keeps of a forward pass for the backward pass, besides parameters."""
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    if not autocast:
        model = model.to(torch.bfloat16)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in parameters:
            kept[address] = tensor
        return tensor

    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        model(input_ids=ids, position_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("mlp", [256, 1024])
@pytest.mark.parametrize("cls", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_what_a_layer_keeps_is_what_torch_saves(cls: Any, mlp: int, autocast: bool):
    kept = [kept_bytes(tiny(cls, layers, intermediate_size=mlp), autocast) for layers in (2, 4)]
    shape = ModelShape.of(tiny(cls, intermediate_size=mlp))
    # Under autocast the bfloat16 copies of the weights are kept too; the plan counts them by themselves.
    cast = 2 * sum(a * b for a, b in shape.linears) / shape.layers if autocast else 0
    measured = ((kept[1] - kept[0]) / 2 - cast) / TOKENS
    assert memory_plan.layer_bytes(shape, float32_stream=autocast) == pytest.approx(measured, rel=0.1)


def test_the_shape_counts_a_tied_output_layer_once():
    tied, untied = (ModelShape.of(tiny(LlamaConfig, tie_word_embeddings=tie)) for tie in (True, False))
    assert (tied.outer_parameters, untied.outer_parameters) == (12_800, 25_600)
    assert untied.parameters - tied.parameters == 12_800
    assert len(tied.linears) == 2 * 7 and tied.kv_width == 2 * 2 * 32
    assert not tied.norm_qk and ModelShape.of(tiny(Qwen3Config)).norm_qk


def make_config() -> GRPOConfig:
    return GRPOConfig().language_model("model").training(kl_coeff=0.1)


@pytest.mark.parametrize(
    ("shard", "kept"),
    [
        # Weights, gradients and two moments are 16 bytes a parameter; a reference policy is 4 more.
        (lambda config: config, 16 + 2),  # and autocast's copies; the reference policy is in host memory
        (lambda config: config.learners(num_learners=4), 16 + 2 + 4 / 4),
        (lambda config: config.learners(num_learners=4).fsdp2(), (16 + 4) / 4),
        # DeepSpeed: bfloat16 weights and gradients, 2 bytes each, and masters and moments, 12.
        (lambda config: config.learners(num_learners=4).deepspeed(zero_stage=1), 2 + 2 + 12 / 4 + 4 / 4),
        (lambda config: config.learners(num_learners=4).deepspeed(zero_stage=2), 2 + 2 / 4 + 12 / 4 + 4 / 4),
        (lambda config: config.learners(num_learners=4).deepspeed(zero_stage=3), (2 + 2 + 12 + 4) / 4),
        (
            lambda config: config.learners(num_learners=4).deepspeed(zero_stage=3, offload_optimizer=True),
            (2 + 2 + 4) / 4,
        ),
    ],
)
def test_what_a_learner_keeps_of_a_parameter(shard: Any, kept: float):
    shape = ModelShape.of(tiny(LlamaConfig))
    needs = memory_plan.learner(shape, shard(make_config()))
    passing = ("activations", "attention mask", "logits", "gathered layers, with gradients")
    assert sum(size for name, size in needs.items() if name not in passing) == pytest.approx(kept * shape.parameters)


def test_adapters_are_all_that_is_trained():
    shape, config = ModelShape.of(tiny(LlamaConfig)), make_config().lora(r=4)
    adapters = 4 * sum(a + b for a, b in shape.linears)
    needs = memory_plan.learner(shape, config)
    assert needs["moments"] == 8 * adapters and needs["frozen weights"] == 2 * shape.parameters
    assert "reference policy, float32" not in needs
    assert memory_plan.checkpoints(shape, config) == 3 * 12 * adapters


@pytest.mark.parametrize(
    ("shard", "kept"),
    [
        # Float32 weights and moments stay; gradients and what a pass makes go.
        (lambda config: config, 4 + 8 + 4 / 2),
        (lambda config: config.fsdp2(), (4 + 8 + 4) / 2),
        (lambda config: config.deepspeed(zero_stage=2), 2 + (2 + 12 + 4) / 2),
    ],
)
def test_what_a_learner_keeps_while_an_engine_on_its_gpu_works(shard: Any, kept: float):
    shape, config = ModelShape.of(tiny(LlamaConfig)), shard(make_config().learners(num_learners=2)).colocate()
    assert sum(memory_plan.resting_learner(shape, config).values()) == pytest.approx(kept * shape.parameters)
    assert memory_plan.learner(shape, config)["sleeping engine, about"] == memory_plan.ASLEEP


def test_checkpointed_activations_keep_a_layers_input_and_one_layer():
    shape, config = ModelShape.of(tiny(LlamaConfig, layers=10)), make_config()
    whole = memory_plan.learner(shape, config)["activations"]
    config.language_model(gradient_checkpointing=True)
    tokens = config.max_tokens_per_micro_batch
    assert memory_plan.learner(shape, config)["activations"] == pytest.approx(whole / 10 + 10 * tokens * 128 * 4)


def test_an_engines_cache():
    shape, config = ModelShape.of(tiny(LlamaConfig)), make_config()
    assert memory_plan.cache_bytes_per_token(shape, config) == 2 * 2 * (2 * 2 * 32)  # layers, bytes, keys and values
    config.generation(engine_args={"tensor_parallel_size": 2})
    assert memory_plan.cache_bytes_per_token(shape, config) == 2 * (2 * 2 * 32)
    assert memory_plan.engine(shape, config)["weights"] == shape.parameters
    config.generation(engine_args={"gpu_memory_utilization": 0.5})
    config.env_runners(num_gpus_per_env_runner=1)
    free = 5e9 - 2 * shape.parameters - memory_plan.ENGINE_OVERHEAD
    assert memory_plan.cache_tokens(shape, config, 10e9) == free / memory_plan.cache_bytes_per_token(shape, config)
