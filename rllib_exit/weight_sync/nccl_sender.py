"""The learners' side of a broadcast of weights over NCCL, by vLLM's own weight-transfer engine.

Needs GPUs. The tests cover what surrounds it, see :class:`rllib_exit.weight_sync.transfers.NCCLTransfer`; this file,
and the engine's side in ``VLLMGenerator.join_transfer`` and ``receive_weights``, they cannot run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from rllib_exit.learner.sharding.collectives import rank
from rllib_exit.learner.sharding.sharded_model import ShardedModel
from rllib_exit.learner.sharding.weights import weight_buckets, weight_shapes


class NCCLSender:
    """A group of the first learner and the engines' workers, in which the policy's weights are broadcast.

    All learners make one together, and call its methods together.

    Args:
        model: The policy.
        dtype: The engine's.
        init_info: ``master_address``, ``master_port`` and ``world_size``: one for the first learner and one for
            each worker.
    """

    def __init__(self, model: ShardedModel, dtype: torch.dtype, init_info: dict[str, Any]) -> None:
        # Tensor by tensor: all on one stream, so that a bucket's memory is not reused before it was sent.
        info = NCCLTrainerInitInfo(**init_info, rank=rank(), packed=False)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=_Client(), source=_Source(model, dtype))

    def send(self) -> None:
        """Broadcasts the weights; returns when they are there."""
        self._engine.send_weights()

    def close(self) -> None:
        """Leaves the group."""
        self._engine.shutdown()


class _Client:
    """Does nothing: the trainer calls the env runners, whose engines know what to do then."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class _Source(WeightSource):
    """The policy's weights, gathered bucket by bucket."""

    def __init__(self, model: ShardedModel, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, self._dtype, shape) for name, shape in weight_shapes(self._model).items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in weight_buckets(self._model, self._dtype):
            yield from bucket.items()
