"""The learners' side of a broadcast of weights over NCCL, by vLLM's own weight-transfer engine.

Needs GPUs. The tests cover what surrounds it, see :class:`rllib_exit.weight_sync.transfers.NCCLTransfer`, and run this
file against vLLM's workers over a wire of their own. They cannot run ``VLLMGenerator.join_transfer`` and
``receive_weights``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo


class NCCLSender:
    """A group of the first learner and the engines' workers, in which the policy's weights are broadcast.

    All learners make one together, and call its methods together.

    Args:
        rank: The learner's rank.
        metadata: Name, dtype and shape of every weight, in the order in which they are sent.
        buckets: Gathers the weights, some at a time, on all learners. A bucket is valid until the next one is
            asked for.
        init_info: ``master_address``, ``master_port`` and ``world_size``: one for the first learner and one for
            each worker.
    """

    def __init__(
        self,
        rank: int,
        metadata: list[ParamMeta],
        buckets: Callable[[], Iterable[Mapping[str, Tensor]]],
        init_info: dict[str, Any],
    ) -> None:
        # Tensor by tensor: all on one stream, so that a bucket's memory is not reused before it was sent.
        info = NCCLTrainerInitInfo(**init_info, rank=rank, packed=False)
        source = _Source(metadata, buckets)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=_Client(), source=source)

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

    def __init__(self, metadata: list[ParamMeta], buckets: Callable[[], Iterable[Mapping[str, Tensor]]]) -> None:
        self._metadata, self._buckets = metadata, buckets

    def metadata(self) -> list[ParamMeta]:
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self._buckets():
            yield from bucket.items()
