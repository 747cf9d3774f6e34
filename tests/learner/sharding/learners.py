"""Learners in plain processes: what a LearnerGroup does with them, without Ray."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from ray import cloudpickle
from ray.rllib.utils.actor_manager import ResultOrError

from rllib_exit import checkpoints
from rllib_exit.checkpoints import Checkpoint, Place
from rllib_exit.learner import shards
from rllib_exit.learner.batch import TrainBatch
from rllib_exit.learner.learner_group import LEARNERS, GRPOLearnerGroup
from rllib_exit.learner.sharding.sharded_model import ShardedModel
from tests.learner.helpers import make_learner, update


def use_small_buckets() -> None:
    """Several buckets for a tiny model too."""
    ShardedModel.bucket_bytes = 1 << 18


class Processes:
    """Processes in one gloo group, each of which holds one learner at a time."""

    def __init__(self, number: int) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, rank, number, port), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, calls: Sequence[Callable[[dict[str, Any]], Any]]) -> list[Any]:
        """Runs one call in each process, all at once."""
        for pipe, call in zip(self._pipes, calls, strict=True):
            pipe.send_bytes(cloudpickle.dumps(call))  # pyright: ignore[reportPrivateImportUsage]
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(120):
                raise TimeoutError("a learner process does not answer: is a collective waiting for another?")
            answers.append(pipe.recv())
        if errors := [error for ok, error in answers if not ok]:
            raise RuntimeError(errors[0])
        return [result for _, result in answers]

    def stop(self) -> None:
        for process in self._processes:
            process.kill()


def _work(pipe: Connection, rank: int, number: int, port: int) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), HF_HUB_OFFLINE="1")
    torch.set_num_threads(1)
    use_small_buckets()
    dist.init_process_group("gloo", rank=rank, world_size=number)
    held: dict[str, Any] = {}
    while True:
        call = cloudpickle.loads(pipe.recv_bytes())  # pyright: ignore[reportPrivateImportUsage]
        try:
            pipe.send((True, call(held)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


class Learners(GRPOLearnerGroup):
    """One learner in this process, or one in each of several."""

    def __init__(self, model: str, processes: Processes | None = None, **fields: Any) -> None:
        self._processes = processes
        self._is_shut_down = True
        self._calling = threading.Lock()
        if processes is None:
            self._learner = make_learner(model, **fields)
        else:
            processes.run([lambda held: held.update(learner=make_learner(model, **fields))] * len(processes._pipes))

    @property
    def is_local(self) -> bool:
        return True  # there is no object store

    def __call__(self, batches: Sequence[TrainBatch]) -> list[dict[str, float]]:
        """One update; each learner's metrics."""
        if self._processes is None:
            return [update(self._learner, batches[0])]
        return self._processes.run([lambda held, b=b: update(held["learner"], b) for b in batches])

    def save(self, path: Path) -> Checkpoint:
        """A checkpoint of the learners alone."""
        place = Place.of(path)
        checkpoints.begin(place)
        sums = self.start_saving(place / LEARNERS)()
        checkpoints.finish(place, {f"{LEARNERS}/{name}": value for name, value in sums.items()})
        return Checkpoint(place)

    def foreach_learner(self, func: Callable[[Any], Any], **kwargs: Any) -> Any:
        if self._processes is None:
            return [ResultOrError(result=func(self._learner))]
        calls = [lambda held: func(held["learner"])] * len(self._processes._pipes)
        return [ResultOrError(result=result) for result in self._processes.run(calls)]


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole, by directory and name."""
    kinds = {name.split("/")[1] for name in checkpoint.names if name.endswith(".safetensors")}
    return {
        f"{kind}/{name}": tensor
        for kind in sorted(kinds)
        for files in shards.buckets(checkpoint, f"{LEARNERS}/{kind}")
        for name, tensor in shards.join(map(checkpoint.read, files)).items()
    }
