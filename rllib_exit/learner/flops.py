"""How many floating-point operations an update takes, and how many a GPU does in a second: what MFU is made of."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rllib_exit.objective.packing import Pack

# FLOP/s of dense bfloat16 matrix products by NVIDIA's data sheets, by the name that CUDA gives the whole GPU.
PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a device; NaN if they are not known: of a CPU, of another GPU, of a part of one, of float32."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return math.nan
    return PEAKS.get(torch.cuda.get_device_name(device), math.nan)


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """FLOPs of passes through a dense transformer, as PaLM's appendix B counts them (Chowdhery et al. 2022).

    A weight of a matrix takes 2 FLOPs per token in a forward pass. In a backward pass it takes 2 for the gradient of
    its input and, if it is trained, 2 for its own: 6 in all. Attention takes 4·L·H·Q per pair of tokens that see each
    other, and twice that in a backward pass: 12·L·H·Q, with L layers of H heads of Q dimensions. Two things differ from
    PaLM. Pairs that the causal mask hides do not count, and the output layer counts only where its logits are computed.
    As there, embeddings, norms and what is computed again in the backward pass do not count.

    Attributes:
        weights: Of the matrices in the layers.
        trained: Those of them that are trained.
        output: Weights of the output layer.
        output_trained: As many if they are trained, else 0.
        attention: 4·L·H·Q.
    """

    weights: int
    trained: int
    output: int
    output_trained: int
    attention: int

    @classmethod
    def of(cls, config: Any, shapes: Mapping[str, Sequence[int]], trainable: Collection[str]) -> ModelFlops | None:
        """The FLOPs of a model; None if they do not follow from its matrices.

        That is so for mixtures of experts, and where not all layers have full attention.

        Args:
            config: The model's, of Hugging Face.
            shapes: Of its parameters, by name.
            trainable: The names of those that are trained.
        """
        matrices = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and "layers." in name}
        kinds = set(getattr(config, "layer_types", None) or ())
        if not matrices or any("expert" in name for name in shapes) or kinds - {"full_attention"}:
            return None
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        output = config.vocab_size, config.hidden_size
        output_trained = any(tuple(shapes[name]) == output for name in trainable)
        return cls(
            weights=sum(matrices.values()),
            trained=sum(count for name, count in matrices.items() if name in trainable),
            output=math.prod(output),
            output_trained=math.prod(output) * output_trained,
            attention=4 * config.num_hidden_layers * config.num_attention_heads * head_dim,
        )

    def of_passes(self, packs: Iterable[Pack], *, forward: int, backward: int) -> float:
        """FLOPs of so many forward and backward passes through each of the packs."""
        tokens = scored = pairs = 0
        for pack in packs:
            tokens += len(pack.token_ids_T)
            scored += len(pack.targets_N)
            pairs += int((pack.position_ids_T + 1).sum())  # a token sees itself and those before it in its row
        matrices = 2 * (self.weights * tokens + self.output * scored)
        gradients = 2 * (self.trained * tokens + self.output_trained * scored)
        attention = self.attention * pairs
        return float(forward * (matrices + attention) + backward * (matrices + gradients + 2 * attention))
