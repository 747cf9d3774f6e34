from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.fs import LocalFileSystem
from safetensors.torch import save

from rllib_exit.checkpoints import Checkpoint, CheckpointError, Place, newest
from rllib_exit.learner.sharding.ddp import DDPModel
from rllib_exit.learner.shards import ShardWriter, State, join
from tests.learner.sharding.learners import Learners, tensors


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
    linear = torch.nn.Linear(2, 1, bias=False)
    model = DDPModel(linear, torch.device("cpu"), None)
    before = linear.weight.detach().clone()
    may_write = threading.Event()

    class SlowPlace(Place):
        def write(self, name: str, content: bytes) -> str:
            assert may_write.wait(10)
            return super().write(name, content)

    writer = ShardWriter()
    local: Any = Place.of(tmp_path)
    writer.start({"policy": (model, "master", ["weight"])}, SlowPlace(local.filesystem, local.path))
    assert writer.outcome() is None
    torch.nn.init.zeros_(linear.weight)
    may_write.set()
    while (sums := writer.outcome()) is None:
        pass
    assert isinstance(sums, dict)
    [name] = sums
    assert torch.equal(join([local.read(name)])["weight"], before)

    (tmp_path / "full").touch()
    writer.start({"policy": (model, "master", ["weight"])}, local / "full")
    while (error := writer.outcome()) is None:
        pass
    assert isinstance(error, OSError)


def test_a_checkpoint_leaves_the_one_that_is_still_being_written_as_it_is() -> None:
    linear = torch.nn.Linear(2, 1, bias=False)
    model = DDPModel(linear, torch.device("cpu"), None)
    second_is_asked_for = threading.Event()
    written: dict[str, list[float]] = {}

    class SlowPlace(Place):
        def write(self, name: str, content: bytes) -> str:
            assert second_is_asked_for.wait(10)
            time.sleep(0.05)  # a copy that does not wait is made by now, before the next file's content is taken
            written[f"{self.path}/{name}"] = join([content])["weight"].flatten().tolist()
            return name

    writer = ShardWriter()
    for number in (1, 2):
        linear.weight.data.fill_(number)
        if number == 2:
            second_is_asked_for.set()
        state: State = {kind: (model, "master", ["weight"]) for kind in ("policy", "reference")}
        writer.start(state, SlowPlace(LocalFileSystem(), f"{number}"))
    while writer.outcome() is None:
        pass
    assert written == {
        f"{number}/{kind}/00000.00000.safetensors": [number, number]
        for number in (1, 2)
        for kind in ("policy", "reference")
    }


SAVING = """
import sys, time
from pathlib import Path
from rllib_exit import checkpoints
from rllib_exit.checkpoints import Place
from rllib_exit.learner.sharding.sharded_model import ShardedModel
from tests.learner.sharding.learners import Learners

class SlowPlace(Place):
    def write(self, name, content):
        print(f"writing {name}\\n", end="", flush=True)  # in one piece: other threads write too
        time.sleep(0.2)
        return super().write(name, content)

ShardedModel.bucket_bytes = 1 << 18
learners = Learners(sys.argv[1])
for parameter in learners._learner.language_model.model.parameters():
    parameter.data.add_(1)
learners.save(Path(sys.argv[2]) / "1")
print("whole", flush=True)
local = Place.of(Path(sys.argv[2]) / "2")
learners.start_saving(SlowPlace(local.filesystem, f"{local.path}/learners"))()
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_checkpoint_leaves_the_one_before_it(tiny_model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVING, tiny_model, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    lines = iter(process.stdout.readline, "")
    assert "whole\n" in lines
    for _ in range(4):  # some of its files are there
        assert next(lines).startswith("writing")
    process.kill()
    process.wait()
    assert list((tmp_path / "2").rglob("*.safetensors"))
    assert newest(tmp_path) == tmp_path / "1"
    again = Learners(tiny_model)
    again.restore(Checkpoint(newest(tmp_path)))
    assert all((p.data > 0.5).all() for p in again._learner.language_model.model.parameters())
    written, restored = tensors(Checkpoint(tmp_path / "1")), tensors(again.save(tmp_path / "3"))
    assert written.keys() == restored.keys()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in written.items())
