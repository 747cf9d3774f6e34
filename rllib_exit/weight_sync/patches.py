"""Weights on their way, as safetensors files: full copies, and patches that hold only what changed.

After a step of AdamW at a learning rate of 1e-6 about 0.4 % of a model's bfloat16 weights differ from before. A patch
holds, for each tensor that changed, the places and the new values of what differs: patched weights are bit-equal to a
full copy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int16: "I16"}
# A tensor's entries in a patch: how far each place is from the one before, 16 bits without a sign, and the values.
_GAPS, _VALUES = ":gaps", ":values"
_MAX_GAP = 0xFFFF


def safetensors_file(tensors: Mapping[str, Tensor]) -> list[np.ndarray]:
    """A safetensors file in parts, (bytes,) uint8 each: its header, then one tensor after the other.

    Of tensors on the CPU nothing is copied.
    """
    header: dict[str, dict] = {}
    parts = []
    size = 0
    for name, tensor in tensors.items():
        parts.append(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy())
        end = size + parts[-1].nbytes
        dtype = _SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [size, end]}
        size = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8), *parts]


def make_patch(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """What makes old tensors, on the CPU, new ones of the same names, shapes and dtypes.

    Returns:
        The patch, without the tensors that did not change; how many elements changed.
    """
    patch: dict[str, Tensor] = {}
    num_changed = 0
    for name, tensor in new.items():
        values = tensor.detach().reshape(-1)
        # Bits: -0.0 is another weight than 0.0, and NaN the same as itself. Compared where the new ones are.
        changed = _bits(values) != _bits(old[name].view(-1).to(values.device))
        if number := int(changed.count_nonzero()):
            num_changed += number
            # An element that did not change now and then, so that every gap fits into 16 bits.
            changed[::_MAX_GAP] = True
            places = changed.nonzero().squeeze(1)
            gaps = torch.diff(places, prepend=places.new_zeros(1))
            patch[name + _GAPS] = gaps.to(torch.int16).cpu()
            patch[name + _VALUES] = values[places].cpu()
    return patch, num_changed


def read_patch(patch: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, places in the flattened tensor and their new values, for each tensor of a patch."""
    for key, gaps in patch.items():
        if key.endswith(_GAPS):
            name = key.removesuffix(_GAPS)
            yield name, (gaps.long() & _MAX_GAP).cumsum(0), patch[name + _VALUES]


def apply_patch(tensors: Mapping[str, Tensor], patch: Mapping[str, Tensor]) -> None:
    """Makes the tensors, which are contiguous, what :func:`make_patch` found them to be now."""
    for name, places, values in read_patch(patch):
        tensors[name].view(-1)[places] = values


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16 if tensor.itemsize == 2 else torch.int32)
