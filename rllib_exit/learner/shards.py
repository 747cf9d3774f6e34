"""The learners' part of a checkpoint: each writes what it holds, and any number of them can read it.

A checkpoint has a directory for each kind of tensors. Its file ``00002.00001.safetensors`` has what the learner of rank
1 holds of the tensors of bucket 2. A tensor that is spread over learners is a range of its elements in each one's file,
and the file's metadata says which. A tensor of one learner alone is simply there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from math import prod
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from rllib_exit.checkpoints import Checkpoint, CheckpointError, Place
from rllib_exit.learner.sharding.collectives import rank
from rllib_exit.learner.sharding.sharded_model import Part, ShardedModel

# For each kind of tensors: the model, which part of it they are, and their names.
State = Mapping[str, tuple[ShardedModel, Part, list[str]]]
# Of each file: its name, its tensors and its metadata.
Shards = list[tuple[str, dict[str, Tensor], dict[str, str]]]


class ShardWriter:
    """Writes a learner's part of a checkpoint while the learner goes on.

    The copy in host memory is kept for the next checkpoint: memory that is new costs more time than the copy itself.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._sums: Future[dict[str, str]] | None = None
        self._copies: dict[tuple[str, str], Tensor] = {}

    def start(self, state: State, place: Place) -> None:
        """Begins to write the state as it is now; returns as soon as it is copied to host memory.

        If the checkpoint before is still being written, that is waited for first.
        """
        if self._sums is not None:
            wait([self._sums])
        self._sums = self._executor.submit(_write, _copy(state, self._copies), place)

    def outcome(self) -> dict[str, str] | Exception | None:
        """The SHA-256 sums of the files, or what went wrong; None as long as they are being written."""
        assert self._sums is not None, "start comes first"
        if not self._sums.done():
            return None
        error = self._sums.exception()
        return error if isinstance(error, Exception) else self._sums.result()


@torch.no_grad()
def _copy(state: State, copies: dict[tuple[str, str], Tensor]) -> Shards:
    shards: Shards = []
    for kind, (model, part, names) in state.items():
        for number, bucket in enumerate(model.buckets(names)):
            tensors, metadata = {}, {}
            for name in bucket:
                start, elements = model.shard(part, name)
                shape = model.shapes[name]
                if (kind, name) not in copies:
                    copies[kind, name] = torch.empty_like(elements, device="cpu")
                copied = copies[kind, name].copy_(elements)
                if len(elements) == prod(shape):
                    tensors[name] = copied.view(shape)
                elif len(elements):
                    tensors[name] = copied
                    metadata[name] = json.dumps({"start": start, "shape": list(shape)})
            if tensors:
                shards.append((f"{kind}/{number:05}.{rank():05}.safetensors", tensors, metadata))
    return shards


def _write(shards: Shards, place: Place) -> dict[str, str]:
    return {name: place.write(name, save(tensors, metadata)) for name, tensors, metadata in shards}


def buckets(checkpoint: Checkpoint, directory: str) -> list[list[str]]:
    """The files in a directory of a checkpoint, those of one bucket together."""
    by_number: dict[str, list[str]] = {}
    for name in checkpoint.names:
        if name.startswith(f"{directory}/") and name.endswith(".safetensors"):
            by_number.setdefault(name.removeprefix(f"{directory}/").partition(".")[0], []).append(name)
    return list(by_number.values())


def names(checkpoint: Checkpoint, directory: str) -> Iterator[str]:
    """The tensors in a directory of a checkpoint, by the headers of its files, which are not verified."""
    for files in buckets(checkpoint, directory):
        for file in files:
            with checkpoint.place.filesystem.open_input_file(f"{checkpoint.place.path}/{file}") as stream:
                yield from _header(stream.read(8), stream.read).keys() - {"__metadata__"}


def join(files: Iterable[bytes]) -> dict[str, Tensor]:
    """The whole tensors of a bucket.

    Args:
        files: Its files.

    Raises:
        CheckpointError: If some elements are in none of them.
    """
    tensors: dict[str, Tensor] = {}
    missing: dict[str, int] = {}
    for file in files:
        metadata = _header(file[:8], lambda size, file=file: file[8 : 8 + size]).get("__metadata__", {})
        for name, elements in load(file).items():
            if name not in metadata:
                tensors[name] = elements
                continue
            of = json.loads(metadata[name])
            if name not in tensors:
                tensors[name] = torch.empty(of["shape"], dtype=elements.dtype)
                missing[name] = tensors[name].numel()
            tensors[name].view(-1)[of["start"] :][: len(elements)] = elements
            missing[name] -= len(elements)
    if incomplete := [name for name, number in missing.items() if number]:
        raise CheckpointError(f"a checkpoint has only a part of the tensors {incomplete[:3]}: use an earlier one")
    return tensors


def _header(size: bytes, read: Any) -> dict[str, Any]:
    return json.loads(read(int.from_bytes(size, "little")))
