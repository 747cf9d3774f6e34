"""What a run needs of memory and disk, worked out from its settings and the shape of its model.

The figures are for planning. What training keeps is counted exactly; activations are counted as a Llama-like layer
keeps them, within 10 % of what torch saves (``tests/grpo/test_memory_plan.py``); vLLM's own needs are a guess.

P parameters, T tokens of a micro-batch, H the width of the residual stream, A of all heads together, I of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_exit.grpo.config import GRPOConfig

# vLLM's activations and CUDA graphs on one GPU, about.
ENGINE_OVERHEAD = 4e9
# Blocks of logits, see rllib_exit/objective/logprobs.py.
LOGITS = 0.5e9
# What an engine that sleeps leaves on its GPU, about: CUDA's context, graphs and buffers.
ASLEEP = 2e9
# Two checkpoints are kept while a third is written.
CHECKPOINTS = 3
# What a learner holds of a GPU only while it works.
PASSING = {
    "gradients",
    "weights cast by autocast",
    "gathered layers, with gradients",
    "activations",
    "attention mask",
    "logits",
    "sleeping engine, about",
}


@dataclass(frozen=True)
class ModelShape:
    """What a model's memory follows from.

    Attributes:
        parameters: P; a tied output layer counts once.
        outer_parameters: Those of embedding and output layer, which FSDP2 gathers together.
        linears: (in, out) features of every linear layer but the output layer: what ``all-linear`` adapters are of.
        layers: How many there are.
        hidden: H.
        attention: A.
        mlp: I.
        kv_width: Of all key and value heads of a layer together.
        norm_qk: Whether queries and keys are normalised.
    """

    parameters: int
    outer_parameters: int
    linears: tuple[tuple[int, int], ...]
    layers: int
    hidden: int
    attention: int
    mlp: int
    kv_width: int
    norm_qk: bool

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """The shape of a Hugging Face model with this config; it is made without memory for its weights."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        shapes = {name: p.shape for name, p in model.named_parameters()}
        output = model.get_output_embeddings()
        outer = {id(p): p.numel() for p in (*model.get_input_embeddings().parameters(), *output.parameters())}
        linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not output]
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return cls(
            parameters=sum(map(prod, shapes.values())),
            outer_parameters=sum(outer.values()),
            linears=tuple((linear.in_features, linear.out_features) for linear in linears),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            attention=head_dim * config.num_attention_heads,
            mlp=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            kv_width=2 * kv_heads * head_dim,
            norm_qk=any("q_norm" in name for name in shapes),
        )


def layer_bytes(shape: ModelShape, float32_stream: bool) -> float:
    """What a layer keeps of a token for its backward pass, in bytes, when it computes in bfloat16.

    The MLP keeps its input of the activation, the activation, the gate's partner and the product; norms and attention
    keep what they take and give. Under autocast the residual stream is float32.
    """
    stream, attention = (20, 16) if float32_stream else (12, 14)
    return 8 * shape.mlp + stream * shape.hidden + (attention + 12 * shape.norm_qk) * shape.attention


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """The parameters of LoRA's adapters on all linear layers."""
    return rank * sum(map(sum, shape.linears))


def learner(shape: ModelShape, config: GRPOConfig) -> dict[str, float]:
    """The bytes that a learner needs on its device, by what they are for, at the time when it needs most."""
    learners, backend, stage = max(1, config.num_learners), config.sharding, config.zero_stage
    fsdp, zero = backend == "fsdp2", backend == "deepspeed"
    half = config.dtype == "bfloat16"
    width = 2 if half else 4

    def share(of: int) -> int:  # among how many learners it is spread
        return learners if fsdp or (zero and stage >= of) else 1

    all_parameters, trained, frozen = shape.parameters, shape.parameters, 0.0
    if config.lora_r is not None:
        trained = adapter_parameters(shape, config.lora_r)
        frozen = width * all_parameters / share(3)
    moments = 0.0 if zero and config.offload_optimizer else 8 * trained / share(1)
    masters = 0.0 if zero and config.offload_optimizer else 4 * trained / (share(1) if zero else share(3))
    needs = {"weights, float32": masters, "frozen weights": frozen, "moments": moments}
    needs["gradients"] = (2 if zero and half else 4) * trained / share(2)
    if zero and half:
        needs["weights, bfloat16"] = 2 * trained / share(3)
    elif half and not fsdp:
        needs["weights cast by autocast"] = 2.0 * trained
    if fsdp or (zero and stage == 3):
        layer = (all_parameters - shape.outer_parameters) / shape.layers
        needs["gathered layers, with gradients"] = 2 * width * layer + (width + 4) * shape.outer_parameters
    if config.kl_coeff and config.lora_r is None and (backend != "ddp" or learners > 1):
        needs["reference policy, float32"] = 4 * all_parameters / learners
    needs |= activations(shape, config, float32_stream=not (fsdp or zero) or not half)
    needs["sleeping engine, about"] = ASLEEP if config.colocated else 0.0
    return {name: value for name, value in needs.items() if value}


def resting_learner(shape: ModelShape, config: GRPOConfig) -> dict[str, float]:
    """The bytes that a learner holds on its device between updates, while a colocated engine works."""
    # DeepSpeed keeps the gradients' buffers.
    passing = PASSING - ({"gradients"} if config.sharding == "deepspeed" else set())
    return {name: size for name, size in learner(shape, config).items() if name not in passing}


def activations(shape: ModelShape, config: GRPOConfig, float32_stream: bool) -> dict[str, float]:
    """The bytes of a forward and backward pass over a micro-batch."""
    tokens = config.max_tokens_per_micro_batch
    of_layer = tokens * layer_bytes(shape, float32_stream) * (1 if config.dtype == "bfloat16" else 2)
    kept = shape.layers * of_layer
    if config.gradient_checkpointing:
        kept = shape.layers * tokens * shape.hidden * (4 if float32_stream else 2) + of_layer
    # A boolean mask, and the form of it that is added to the scores.
    sparse = config.attn_implementation.startswith(("flash", "flex"))
    mask = 0 if sparse else 3 * tokens**2
    return {"activations": kept, "attention mask": mask, "logits": LOGITS}


def learner_host(shape: ModelShape, config: GRPOConfig) -> dict[str, float]:
    """The bytes of host memory that a learner on a GPU holds, while a checkpoint is written too."""
    needs = {"copy for a checkpoint": checkpoints(shape, config) / CHECKPOINTS / max(1, config.num_learners)}
    if config.kl_coeff and config.lora_r is None and config.sharding == "ddp" and config.num_learners <= 1:
        needs["reference policy, float32"] = 4.0 * shape.parameters
    if config.sharding == "deepspeed" and config.offload_optimizer:
        needs["optimizer's state"] = 12.0 * shape.parameters / max(1, config.num_learners)
    return needs


def engine(shape: ModelShape, config: GRPOConfig) -> dict[str, float]:
    """The bytes that an engine needs on each of its devices before it has any cache."""
    width = 2 if config.dtype == "bfloat16" else 4
    on_gpu = config.num_gpus_per_env_runner > 0
    return {
        "weights": width * shape.parameters / config.engine_size,
        "vLLM's own, about": ENGINE_OVERHEAD if on_gpu else 1e9,
    }


def engine_share(config: GRPOConfig) -> float:
    """The part of each of its GPUs that an engine takes while it works."""
    return config.engine_args.get("gpu_memory_utilization", 0.9)


def cache_tokens(shape: ModelShape, config: GRPOConfig, gpu: float) -> float:
    """How many tokens an engine has cache for, with GPUs of so many bytes; below 0 if not even its weights fit."""
    free = engine_share(config) * gpu - sum(engine(shape, config).values())
    return free / cache_bytes_per_token(shape, config)


def cache_bytes_per_token(shape: ModelShape, config: GRPOConfig) -> float:
    """The bytes of cache for a token, on each of an engine's devices."""
    width = 2 if config.dtype == "bfloat16" else 4
    return width * shape.layers * shape.kv_width / config.engine_size


def checkpoints(shape: ModelShape, config: GRPOConfig) -> float:
    """The bytes on disk of the checkpoints that are there at once: weights, moments and reference policy, float32."""
    if config.lora_r is not None:
        return CHECKPOINTS * 12.0 * adapter_parameters(shape, config.lora_r)
    return CHECKPOINTS * (12.0 + 4.0 * (config.kl_coeff > 0)) * shape.parameters
