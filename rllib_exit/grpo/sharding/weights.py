"""The policy's weights on their way out, gathered bucket by bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from torch import Tensor

from rllib_exit.grpo import lora
from rllib_exit.grpo.sharding.collectives import rank
from rllib_exit.grpo.sharding.sharded_model import ShardedModel

_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}


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


@torch.no_grad()
def collect_weights(model: ShardedModel, dtype: torch.dtype) -> np.ndarray | None:
    """The full weights as a safetensors file, (bytes,) uint8, on rank 0; None on the other learners.

    Collective.
    """
    header: dict[str, dict] = {}
    size = 0
    for name, parts in lora.sources(model.shapes).items():
        shape = model.shapes[parts[0]]
        end = size + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [size, end]}
        size = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    blob = None
    if rank() == 0:
        blob = np.empty(start + size, np.uint8)
        blob[:8] = np.frombuffer(len(text).to_bytes(8, "little"), np.uint8)
        blob[8:start] = np.frombuffer(text, np.uint8)
    for bucket in weight_buckets(model, dtype):
        if blob is not None:
            target = torch.from_numpy(blob)
            for name, tensor in bucket.items():
                begin, end = (start + offset for offset in header[name]["data_offsets"])
                target[begin:end].copy_(tensor.contiguous().view(-1).view(torch.uint8))
    return blob
