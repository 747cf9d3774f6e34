"""How a model is spread over the learners.

A learner is a process with one device. ``GRPOTorchLearner`` owns the training loop; a back end owns where
parameters, gradients and the optimizer's state lie. There are three:

- ``ddp.py``: every learner holds everything; gradients are summed. With one learner this is plain torch. Several
  learners share the reference policy, as by FSDP2.
- ``fsdp2.py``: torch's ``fully_shard``: every learner holds 1/N of each parameter, gradient and moment.
- ``deepspeed.py``: DeepSpeed's ZeRO stages 0 to 3, and the optimizer's state in host memory.

:class:`ShardedModel` is all that the loop knows of them::

    for pack in packs:  # as many on every learner
        model.backward(loss(model(**inputs)))
    norm = model.step(lr)

A full tensor, as it would be without sharding, has two ways in and out, a few names at a time so that no
learner ever holds a whole sharded model: :meth:`ShardedModel.gather` and :meth:`ShardedModel.scatter`. The
weights for the engine are gathered. For a checkpoint each learner gives its own :meth:`ShardedModel.shard`, without the
others: together they are the full tensors again, which are scattered into any back end and number of learners.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

Part = Literal["weights", "master", "exp_avg", "exp_avg_sq"]


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW's settings; the learning rate comes with each step.

    Attributes:
        betas: Decay rates of the moments.
        weight_decay: Decoupled.
        max_grad_norm: Gradients are scaled down to this norm, taken over all of them.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float = float("inf")


class ShardedModel(nn.Module, ABC):
    """A language model spread over the learners, with its gradients and its optimizer.

    All learners call every method in the same order with the same arguments, but for the inputs and the
    loss: behind most methods is a collective operation, which waits for all.

    Attributes:
        module: The model that is spread. Its parameters' names are those of the full tensors.
        shapes: The full shape of every parameter, by name.
        trainable: The names of the parameters that the optimizer changes.
        bucket_bytes: How much is gathered at once.
    """

    bucket_bytes = 1 << 28

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        # named_parameters names a tied output layer once.
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        self.trainable = [name for name, p in module.named_parameters() if p.requires_grad]

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def on_device(self) -> AbstractContextManager[None]:
        """Within it the model can be called; outside of it, one that is not trained may lie in host memory."""
        return nullcontext()

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of this learner's share of the loss; the loss is the sum over the learners."""

    @abstractmethod
    def step(self, lr: float, divisor: float = 1.0) -> float:
        """Applies the summed gradients, divided and clipped, and clears them.

        Args:
            lr: The learning rate.
            divisor: What the gradients are divided by before anything else.

        Returns:
            Their norm before clipping, the same on all learners. If it is not finite, nothing was applied.
        """

    @abstractmethod
    def gather(self, part: Part, names: Sequence[str]) -> dict[str, Tensor]:
        """Full tensors, on the device; they are only valid, and unchanged by the caller, until the next step.

        Args:
            part: ``"weights"``: any parameters, as the forward pass uses them. Of trainable parameters
                ``"master"``: the float32 values that the optimizer updates; ``"exp_avg"`` and
                ``"exp_avg_sq"``: AdamW's moments, float32.
            names: Which.
        """

    @abstractmethod
    def shard(self, part: Part, name: str) -> tuple[int, Tensor]:
        """This learner's share of a full tensor; the shares of all learners together are each element once.

        Not collective. It is only valid, and unchanged by the caller, until the next step.

        Args:
            part: As :meth:`gather`'s, but for ``"weights"``.
            name: Which.

        Returns:
            A range of the tensor's elements in their order: where it starts, and its elements, (E,), maybe none.
        """

    @abstractmethod
    def scatter(self, part: Part, tensors: Mapping[str, Tensor]) -> None:
        """Sets what :meth:`gather` gives, ``"weights"`` through ``"master"`` where parameters are trainable.

        Args:
            part: As there.
            tensors: Full tensors by name, the same on all learners, on any device.
        """

    @abstractmethod
    def set_step(self, step: int) -> None:
        """Sets the number of updates that AdamW's bias correction counts."""

    def buckets(self, names: Sequence[str]) -> list[list[str]]:
        """Names in groups of at most ``bucket_bytes`` of float32, or of one."""
        buckets: list[list[str]] = []
        free = 0
        for name in names:
            size = 4 * prod(self.shapes[name])
            if size > free or not buckets:
                buckets.append([])
                free = self.bucket_bytes
            buckets[-1].append(name)
            free -= size
        return buckets


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts parameters and leaves buffers, such as RoPE's float32 frequencies, as they are."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def make_adamw(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """The optimizer of every back end."""
    return torch.optim.AdamW(parameters, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def start_moments(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Makes the state that AdamW makes at its first step, so that it is there to be saved and restored."""
    for p in parameters:
        optimizer.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(p, requires_grad=False),
        }
