"""Weights in Ray's object store: a full copy, and what changed since.

Ray carries a full copy once to every other node, where the engines share it; from then on patches alone pass the
network.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import ray
from torch import Tensor

from rllib_exit.weight_sync.patches import apply_patch, make_patch, safetensors_file

# References to files; each file comes in parts, see :func:`safetensors_file`. Without Ray the files themselves.
Files = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A version of the policy's weights.

    Attributes:
        policy_version: The version.
        base: Names the full copy; no two have the same name.
        files: The full copy.
        patches: What makes it the version, one after the other; each with a file for each of the full copy's.
        num_bytes: The size of what engines that have the last version get.
        changed_fraction: How many of the weights differ from the last version's; 1 where they were not compared.
        as_patches: The same weights, by a patch of the last version: an engine must have the same from both.
        are_adapters: Whether the full copy is LoRA adapters alone, see :meth:`Generator.update_adapters`.
    """

    policy_version: int
    base: str
    files: Files
    patches: tuple[Files, ...] = ()
    num_bytes: int = 0
    changed_fraction: float = 1.0
    as_patches: StoredWeights | None = None
    are_adapters: bool = False

    @classmethod
    def full(cls, policy_version: int, files: Iterable[Any], **kwargs: Any) -> Self:
        """A full copy."""
        return cls(policy_version, uuid.uuid4().hex, tuple(files), **kwargs)


def put_adapters(config: Mapping[str, Any], adapters: Mapping[str, Tensor], policy_version: int) -> StoredWeights:
    """Puts a version of LoRA adapters into the object store, as peft saves them.

    Args:
        config: The content of ``adapter_config.json``.
        adapters: That of ``adapter_model.safetensors``.
        policy_version: The version.
    """
    files = [[np.frombuffer(json.dumps(config).encode(), np.uint8)], safetensors_file(adapters)]
    num_bytes = sum(map(_size, files))
    return StoredWeights.full(policy_version, map(ray.put, files), num_bytes=num_bytes, are_adapters=True)


class WeightStore:
    """The learners' end: puts weights into the object store, and keeps them, to find out what changed.

    It puts a patch of what it put before, or where the patches since the last full copy would together be larger than
    half of it, another full copy. The first time, and then from time to time, it puts both, for a check.

    Args:
        full_interval: Every how many patches it puts both. With 1 it puts full copies alone, and keeps nothing.
    """

    def __init__(self, full_interval: int) -> None:
        self._full_interval = full_interval
        self._num_patches = 0
        self._kept: list[dict[str, Tensor]] = []
        self._last = StoredWeights.full(0, ())
        self._full_bytes = self._patch_bytes = 0

    def put(self, buckets: Iterable[Mapping[str, Tensor]], policy_version: int) -> StoredWeights:
        """Puts a version of the weights there.

        Args:
            buckets: All of them by name, some at a time; the same ones in each call.
            policy_version: The version.
        """
        if not self._kept:
            self._last = self._put_first(buckets, policy_version)
            return self._last
        patch, num_bytes, num_changed, num_weights = [], 0, 0, 0
        for kept, bucket in zip(self._kept, buckets, strict=True):
            changes, changed = make_patch(kept, bucket)
            apply_patch(kept, changes)  # as the engines do
            num_changed, num_weights = num_changed + changed, num_weights + sum(t.numel() for t in kept.values())
            file = safetensors_file(changes)
            num_bytes += _size(file)
            if self._is_small(num_bytes):
                patch.append(ray.put(file))
        version: dict[str, Any] = {"policy_version": policy_version, "changed_fraction": num_changed / num_weights}
        if not num_changed:
            return replace(self._last, num_bytes=0, **version)
        if not self._is_small(num_bytes):
            self._last = self._put_kept(**version)
            return self._last
        patched = replace(self._last, patches=(*self._last.patches, tuple(patch)), num_bytes=num_bytes, **version)
        self._num_patches += 1
        if self._num_patches % self._full_interval == 1:
            self._last = self._put_kept(**version)
            return replace(self._last, num_bytes=num_bytes + self._full_bytes, as_patches=patched)
        self._patch_bytes += num_bytes
        self._last = patched
        return patched

    def _put_first(self, buckets: Iterable[Mapping[str, Tensor]], policy_version: int) -> StoredWeights:
        files, self._full_bytes = [], 0
        for bucket in buckets:
            # In float32 every weight changes with every update.
            if self._full_interval > 1 and all(tensor.itemsize == 2 for tensor in bucket.values()):
                bucket = {name: _copy(tensor) for name, tensor in bucket.items()}
                self._kept.append(bucket)
            file = safetensors_file(bucket)
            files.append(ray.put(file))
            self._full_bytes += _size(file)
        return StoredWeights.full(policy_version, files, num_bytes=self._full_bytes)

    def _put_kept(self, **version: Any) -> StoredWeights:
        self._patch_bytes = 0
        files = [ray.put(safetensors_file(kept)) for kept in self._kept]
        return StoredWeights.full(files=files, num_bytes=self._full_bytes, **version)

    def _is_small(self, num_bytes: int) -> bool:
        return self._patch_bytes + num_bytes <= self._full_bytes / 2


def _copy(tensor: Tensor) -> Tensor:
    """In host memory, which a GPU reads quickly."""
    copy = tensor.detach().to("cpu", copy=True).contiguous()
    return copy.pin_memory() if tensor.is_cuda else copy


def _size(file: Iterable[np.ndarray]) -> int:
    return sum(part.nbytes for part in file)
