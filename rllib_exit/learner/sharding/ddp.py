"""Data parallelism: every learner holds the whole model. With one learner it is plain torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rllib_exit.learner.sharding.collectives import place, share, sum_gradients
from rllib_exit.learner.sharding.sharded_model import OptimizerConfig, Part, ShardedModel, make_adamw, start_moments


class DDPModel(ShardedModel):
    """The whole model on every learner.

    Gradients are summed once per step. That costs less than torch's DistributedDataParallel, which sums
    after every micro-batch, and needs no hooks.

    Args:
        module: The model; on learners other than the first its tensors may be on the ``meta`` device.
        device: The learner's.
        optimizer: None for a model that is not trained. On a GPU it lies in host memory while it is not used.
    """

    def __init__(self, module: nn.Module, device: torch.device, optimizer: OptimizerConfig | None) -> None:
        super().__init__(module)
        self._device = device
        self._distribute(device)
        self._parameters_by_name = dict(self.module.named_parameters())
        self._optimizer_config = optimizer
        if optimizer:
            self._trained = [self._parameters_by_name[name] for name in self.trainable]
            self._optimizer = make_adamw(self._trained, optimizer)
            start_moments(self._optimizer, self._trained)
        elif self._offloads:
            for parameter in self.module.parameters():
                parameter.data = parameter.data.cpu().pin_memory()

    @property
    def _offloads(self) -> bool:
        return self._optimizer_config is None and self._device.type == "cuda"

    @contextmanager
    def on_device(self) -> Iterator[None]:
        if not self._offloads:
            yield
            return
        in_host_memory = [(parameter, parameter.data) for parameter in self.module.parameters()]
        try:
            for parameter, data in in_host_memory:
                parameter.data = data.to(self._device, non_blocking=True)
            yield
        finally:
            for parameter, data in in_host_memory:
                parameter.data = data

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float, divisor: float = 1.0) -> float:
        assert self._optimizer_config
        self._finish_gradients()
        if divisor != 1.0:
            for parameter in self._trained:
                if parameter.grad is not None:
                    parameter.grad /= divisor
        norm = nn.utils.clip_grad_norm_(self._trained, self._optimizer_config.max_grad_norm)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        # One non-finite gradient makes the norm non-finite.
        if math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def gather(self, part: Part, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: self._full(self._part(part, name)) for name in names}

    def shard(self, part: Part, name: str) -> tuple[int, Tensor]:
        return self._share(self._part(part, name))

    @torch.no_grad()
    def scatter(self, part: Part, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._set(self._part(part, name), tensor)

    def set_step(self, step: int) -> None:
        for state in self._optimizer.state.values():
            state["step"].fill_(step)

    def _part(self, part: Part, name: str) -> Tensor:
        parameter = self._parameters_by_name[name]
        return parameter if part in ("weights", "master") else self._optimizer.state[parameter][part]

    # What FSDP2 does otherwise.

    def _distribute(self, device: torch.device) -> None:
        place(self.module, device)

    def _finish_gradients(self) -> None:
        sum_gradients(self._trained)

    def _full(self, tensor: Tensor) -> Tensor:
        return tensor.detach()

    def _share(self, tensor: Tensor) -> tuple[int, Tensor]:
        return share(tensor)

    def _set(self, tensor: Tensor, full: Tensor) -> None:
        tensor.copy_(full)
