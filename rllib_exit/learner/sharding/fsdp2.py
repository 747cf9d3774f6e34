"""torch's fully_shard (FSDP2): every learner holds 1/N of each parameter, gradient and moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from rllib_exit.learner.sharding.collectives import place, world_size
from rllib_exit.learner.sharding.ddp import DDPModel
from rllib_exit.learner.sharding.sharded_model import OptimizerConfig, Part


class FSDP2Model(DDPModel):
    """A model whose layers are gathered one after the other, when they are used.

    Forward and backward passes are collective: every learner makes as many of them, in the same order.

    Args:
        module: As :class:`DDPModel`'s.
        device: The learner's.
        optimizer: None for a model that is not trained.
        compute_dtype: What the layers are gathered and computed in; the shards stay as they are.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, optimizer: OptimizerConfig | None, compute_dtype: torch.dtype
    ) -> None:
        self._compute_dtype = compute_dtype
        super().__init__(module, device, optimizer)

    @property
    def _offloads(self) -> bool:
        return False  # a share of it is small

    @contextmanager
    def on_device(self) -> Iterator[None]:
        yield
        # Without a backward pass, the outermost parameters would stay gathered.
        cast(FSDPModule, self.module).reshard()

    def backward(self, loss: Tensor) -> None:
        # FSDP averages.
        super().backward(loss * world_size())

    @torch.no_grad()
    def gather(self, part: Part, names: Sequence[str]) -> dict[str, Tensor]:
        if part != "weights":
            return super().gather(part, names)
        # Cast first: half the bytes to send.
        return {name: self._full(self._parameters_by_name[name].to(self._compute_dtype)) for name in names}

    def scatter(self, part: Part, tensors: Mapping[str, Tensor]) -> None:
        # After a forward pass without a backward pass the outermost parameters are still gathered: those would be
        # used in the next pass, not what is set here.
        cast(FSDPModule, self.module).reshard()
        super().scatter(part, tensors)

    def _distribute(self, device: torch.device) -> None:
        mesh = init_device_mesh(device.type, (world_size(),))
        policy = MixedPrecisionPolicy(param_dtype=self._compute_dtype, reduce_dtype=torch.float32)
        # Layer by layer, so that no learner but the first ever holds more than one of them whole.
        for layer in transformer_layers(self.module):
            place(layer, device)
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        place(self.module, device)
        fully_shard(self.module, mesh=mesh, mp_policy=policy)

    def _finish_gradients(self) -> None:
        """They were summed during the backward passes."""

    def _full(self, tensor: Tensor) -> Tensor:
        assert isinstance(tensor, DTensor)
        return tensor.full_tensor()

    def _share(self, tensor: Tensor) -> tuple[int, Tensor]:
        assert isinstance(tensor, DTensor)
        local: Tensor = DTensor.to_local(tensor.detach())  # pyright: ignore[reportArgumentType]
        # Sharded by its first dimension, which is a range of its elements.
        _, (row, *_) = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return row * prod(tensor.shape[1:]), local.reshape(-1)

    def _set(self, tensor: Tensor, full: Tensor) -> None:
        assert isinstance(tensor, DTensor)
        full = full.to(device=tensor.device, dtype=tensor.dtype)
        # Every learner has the full tensor and takes its part of it.
        tensor.copy_(distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None))


def transformer_layers(module: nn.Module) -> list[nn.Module]:
    """The layers that are used one after the other, as the model's class names them."""
    names = set[str]().union(*(getattr(m, "_no_split_modules", None) or () for m in module.modules()))
    return [m for m in module.modules() if type(m).__name__ in names]
