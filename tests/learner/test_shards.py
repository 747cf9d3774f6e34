from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from rllib_exit.checkpoints import CheckpointError, Place
from rllib_exit.learner.sharding.ddp import DDPModel
from rllib_exit.learner.shards import ShardWriter, join


def part(start: int, values: list[float], shape: list[int]) -> bytes:
    return save({"w": torch.tensor(values)}, {"w": f'{{"start": {start}, "shape": {shape}}}'})


def test_ranges_of_several_learners_are_the_whole_tensor_again() -> None:
    files = [part(3, [3.0, 4.0], [3, 2]), part(0, [0.0, 1.0, 2.0], [3, 2]), part(5, [5.0], [3, 2])]
    whole = join([*files, save({"v": torch.ones(2, 2)})])
    np.testing.assert_array_equal(whole["w"], np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(whole["v"], np.ones((2, 2)))
    with pytest.raises(CheckpointError, match=r"only a part of the tensors \['w'\]"):
        join(files[:2])


def test_what_is_written_is_the_state_at_the_start_and_the_error_is_told(tmp_path: Path) -> None:
    model = DDPModel(torch.nn.Linear(2, 1, bias=False), torch.device("cpu"), None)
    before = model.module.weight.detach().clone()
    may_write = threading.Event()

    class SlowPlace(Place):
        def write(self, name: str, content: bytes) -> str:
            assert may_write.wait(10)
            return super().write(name, content)

    writer = ShardWriter()
    local: Any = Place.of(tmp_path)
    writer.start({"policy": (model, "master", ["weight"])}, SlowPlace(local.filesystem, local.path))
    assert writer.outcome() is None
    torch.nn.init.zeros_(model.module.weight)
    may_write.set()
    while (sums := writer.outcome()) is None:
        pass
    [name] = sums
    assert torch.equal(join([local.read(name)])["weight"], before)

    (tmp_path / "full").touch()
    writer.start({"policy": (model, "master", ["weight"])}, local / "full")
    while (error := writer.outcome()) is None:
        pass
    assert isinstance(error, OSError)
