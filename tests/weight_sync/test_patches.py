"""Patched weights have the bits of a full copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor

from rllib_exit.weight_sync.patches import apply_patch, make_patch, safetensors_file

DTYPES = st.sampled_from([torch.bfloat16, torch.float32])
SHAPES = st.lists(st.integers(0, 6), max_size=3)


def sent(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As they come out of a file."""
    return load(np.concatenate(safetensors_file(tensors)).tobytes())


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def random_bits(shape: list[int], dtype: torch.dtype, rng: np.random.Generator) -> Tensor:
    """Any values: NaNs of all kinds, infinities, both zeros."""
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.frombuffer(bytearray(rng.bytes(size) or b"0" * 4), dtype=dtype)[: size // dtype.itemsize].view(shape)


@settings(deadline=None)
@given(st.lists(st.tuples(DTYPES, SHAPES, st.sampled_from([0.0, 0.1, 0.6, 1.0])), max_size=4), st.integers(0, 2**32))
def test_a_patched_copy_has_the_new_bits(tensors: list[tuple[torch.dtype, list[int], float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    old = {str(i): random_bits(shape, dtype, rng) for i, (dtype, shape, _) in enumerate(tensors)}
    new = {}
    for (name, tensor), (dtype, shape, share) in zip(old.items(), tensors, strict=True):
        other = torch.tensor(rng.random(tensor.shape) < share)
        new[name] = torch.where(other, random_bits(shape, dtype, rng), tensor)
    before = {name: bits(tensor) for name, tensor in old.items()}
    patch, num_changed = make_patch(old, new)
    assert {name: bits(tensor) for name, tensor in old.items()} == before
    words = [zip(*(np.frombuffer(bits(t[n]), f"u{t[n].itemsize}") for t in (old, new)), strict=True) for n in old]
    assert num_changed == sum(a != b for pairs in words for a, b in pairs)
    apply_patch(old, sent(patch))
    assert {name: bits(tensor) for name, tensor in old.items()} == {name: bits(tensor) for name, tensor in new.items()}


@pytest.mark.parametrize("places", [[0], [65_534], [65_535], [65_536], [199_999], [3, 131_071, 131_072], []])
def test_places_that_lie_far_apart(places: list[int]) -> None:
    old = {"w": torch.zeros(400, 500, dtype=torch.bfloat16)}
    new = {"w": old["w"].clone()}
    new["w"].view(-1)[places] = 1.0
    patch, num_changed = make_patch(old, new)
    assert num_changed == len(places)
    assert sum(part.nbytes for part in safetensors_file(patch)) < 300
    apply_patch(old, sent(patch))
    assert torch.equal(old["w"], new["w"])


def test_another_zero_and_another_nan_are_changes() -> None:
    old = {"w": torch.tensor([0.0, float("nan"), float("nan")])}
    new = {"w": torch.tensor([-0.0, float("nan"), float("nan")])}
    new["w"].view(torch.int32)[2] += 1
    patch, num_changed = make_patch(old, new)
    assert num_changed == 2
    apply_patch(old, patch)
    assert bits(old["w"]) == bits(new["w"])


def test_new_tensors_may_be_views_in_another_order() -> None:
    base = torch.arange(6.0).view(2, 3).bfloat16()
    old = {"w": torch.zeros(3, 2, dtype=torch.bfloat16)}
    patch, _ = make_patch(old, {"w": base.T})
    apply_patch(old, patch)
    assert torch.equal(old["w"], base.T)
