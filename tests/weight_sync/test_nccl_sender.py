"""Both ends of a broadcast, ours and vLLM's, over a wire of ours in place of NCCL."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_exit.learner.sharding.ddp import DDPModel
from rllib_exit.learner.sharding.sharded_model import OptimizerConfig
from rllib_exit.learner.torch_learner import GRPOTorchLearner

pytestmark = pytest.mark.slow  # importing vLLM takes 13 s

ENGINES, WORKERS = 2, 2


class Wire:
    """A communicator that broadcasts through the store in which its members meet."""

    def __init__(self, group: Any, device: Any) -> None:
        self.group, self.destroyed = group, False

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        sent = self.group.broadcast_obj(tensor if self.group.rank == src else None, src)
        assert (sent.shape, sent.dtype) == (tensor.shape, tensor.dtype)
        if self.group.rank != src:
            tensor.copy_(sent)

    def destroy(self) -> None:
        self.destroyed = True


class WorkersModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            self.loaded[name] = tensor.clone()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.device_communicators import pynccl

    monkeypatch.setattr(pynccl, "PyNcclCommunicator", Wire)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)


def make_learner() -> Any:
    """What a learner's end of a broadcast uses of a learner."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(300, 50), torch.nn.Linear(50, 7, bias=False))
    model = DDPModel(module, torch.device("cpu"), OptimizerConfig())
    model.bucket_bytes = 4 * 50 * 300  # the first weight is one bucket, the others are another
    learner = SimpleNamespace(model=model, language_model=SimpleNamespace(compute_dtype=torch.bfloat16), _sender=None)
    for name in ("describe_weights", "transfer_address", "open_transfer", "send_weights"):
        setattr(learner, name, getattr(GRPOTorchLearner, name).__get__(learner))
    return learner


def make_worker(rank: int) -> Any:
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    parallel = SimpleNamespace(data_parallel_index=0, world_size=WORKERS, rank=rank)
    config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
    return NCCLWeightTransferEngine(WeightTransferConfig(), config, torch.device("cpu"), WorkersModel())


def test_every_worker_gets_what_the_learner_says_that_it_sends(wire: None) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = {"master_address": "127.0.0.1", "master_port": s.getsockname()[1]}
    learner = make_learner()
    init_info = address | {"world_size": 1 + ENGINES * WORKERS}
    workers = [make_worker(rank) for _ in range(ENGINES) for rank in range(WORKERS)]
    with ThreadPoolExecutor(len(workers)) as threads:
        joined = [
            threads.submit(
                w.init_transfer_engine, w.parse_init_info(init_info | {"rank_offset": 1 + i // WORKERS * WORKERS})
            )
            for i, w in enumerate(workers)
        ]
        learner.open_transfer(init_info)
        for future in joined:
            future.result()
        for _ in range(2):
            update_info, num_bytes = learner.describe_weights()
            received = [threads.submit(w.receive_weights, w.parse_update_info(update_info)) for w in workers]
            learner.send_weights()
            for future in received:
                future.result()
            wanted = {name: p.detach().bfloat16() for name, p in learner.model.module.named_parameters()}
            assert num_bytes == sum(t.nbytes for t in wanted.values())
            for worker in workers:
                assert worker.model.loaded.keys() == wanted.keys()
                assert all(torch.equal(worker.model.loaded[name], tensor) for name, tensor in wanted.items())
            for parameter in learner.model.module.parameters():
                parameter.data += 1
    first = learner._sender._engine.model_update_group
    learner._sender.close()
    assert first.destroyed
