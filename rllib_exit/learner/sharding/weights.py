"""The policy's weights on their way out, gathered bucket by bucket."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rllib_exit.learner import lora
from rllib_exit.learner.sharding.collectives import rank
from rllib_exit.learner.sharding.sharded_model import ShardedModel
from rllib_exit.weight_sync.patches import safetensors_file


def weight_buckets(model: ShardedModel, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """The full weights by Hugging Face name, with adapters merged, in the order of ``sources``; on all learners.

    Collective: all learners go through all of it. A bucket is valid until the next one is asked for.
    """
    made_of = lora.sources(model.shapes)
    names = {parts[0]: name for name, parts in made_of.items()}
    scaling = lora.scaling_of(model.module)
    for bucket in model.buckets(list(names)):
        parts = {names[first]: made_of[names[first]] for first in bucket}
        tensors = model.gather("weights", [part for group in parts.values() for part in group])
        weights = {}
        for name, (base, *adapter) in parts.items():
            weight = tensors[base]
            if adapter:
                weight = lora.merge(weight, *(tensors[part] for part in adapter), scaling=scaling)
            weights[name] = weight.to(dtype)
        yield weights


def weight_shapes(model: ShardedModel) -> dict[str, tuple[int, ...]]:
    """The shapes of what :func:`weight_buckets` gives, by name and in its order."""
    return {name: tuple(model.shapes[base]) for name, (base, *_) in lora.sources(model.shapes).items()}


@torch.no_grad()
def collect_adapters(model: ShardedModel, dtype: torch.dtype) -> dict[str, Tensor] | None:
    """The LoRA adapters as peft saves them, on the CPU, on rank 0; None on the other learners. Collective."""
    adapters = {}
    for bucket in model.buckets(model.trainable):
        tensors = model.gather("weights", bucket)
        if rank() == 0:
            adapters.update({lora.saved_name(name): t.to("cpu", dtype, copy=True) for name, t in tensors.items()})
    return adapters if rank() == 0 else None


@torch.no_grad()
def collect_weights(model: ShardedModel, dtype: torch.dtype) -> np.ndarray | None:
    """The full weights as one safetensors file, (bytes,) uint8, on rank 0; None on the other learners. Collective."""
    weights = {}
    for bucket in weight_buckets(model, dtype):
        if rank() == 0:
            weights.update({name: tensor.to("cpu", copy=True) for name, tensor in bucket.items()})
    return np.concatenate(safetensors_file(weights)) if rank() == 0 else None
