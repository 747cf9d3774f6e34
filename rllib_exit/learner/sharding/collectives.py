"""What all learners do together. Without a process group there is one learner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def rank() -> int:
    """This learner's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many learners there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def start_process_group(device: torch.device) -> None:
    """Makes a process group of this process alone, where RLlib made none (``num_learners=0``)."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def all_reduce(values: Sequence[float], device: torch.device, op: dist.ReduceOp.RedOpType) -> list[float]:
    """Numbers combined over the learners."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op)
    return tensor.tolist()


def sum_gradients(parameters: Sequence[nn.Parameter], bucket_bytes: int = 1 << 26) -> None:
    """Sums gradients over the learners, in place, many in one operation."""
    if world_size() == 1:
        return
    for bucket in _by_bytes([p.grad for p in parameters if p.grad is not None], bucket_bytes):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(total.view_as(gradient))


def share(tensor: Tensor) -> tuple[int, Tensor]:
    """This learner's share of a tensor that all learners hold: where it starts, and its elements."""
    start, end = (tensor.numel() * number // world_size() for number in (rank(), rank() + 1))
    return start, tensor.detach().reshape(-1)[start:end]


def _by_bytes(tensors: Sequence[Tensor], max_bytes: int) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > max_bytes or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def place(
    module: nn.Module, device: torch.device, *, recurse: bool = True, placed: dict[Tensor, Tensor] | None = None
) -> None:
    """Moves a module to the device, with rank 0's values on every learner.

    Only rank 0 reads a model's files; on the others its tensors are on the ``meta`` device, without memory.

    Args:
        module: The module; what of it is sharded already stays as it is.
        device: Where its parameters and buffers go.
        recurse: Whether its children go too.
        placed: Passed to the calls for the parts of one model, it keeps tied parameters tied.
    """
    placed = {} if placed is None else placed
    for owner in module.modules() if recurse else [module]:
        for tensors in cast(list[dict[str, Tensor | None]], [owner._parameters, owner._buffers]):
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, DTensor):
                    continue
                if tensor not in placed:
                    placed[tensor] = _from_rank_0(tensor, device)
                tensors[name] = placed[tensor]


@torch.no_grad()
def _from_rank_0(tensor: Tensor, device: torch.device) -> Tensor:
    new = tensor.to(device) if rank() == 0 else torch.empty_like(tensor, device=device)
    if world_size() > 1:
        dist.broadcast(new, src=0)
    if new is not tensor and isinstance(tensor, nn.Parameter):
        return nn.Parameter(new, tensor.requires_grad)
    return new
