"""How long does training wait for a checkpoint?

    python benchmarks/checkpoint.py

Of one learner with weights, two moments and a reference policy, float32. The contenders:

- *temporary directory*: as RLlib and Tune save: tensor by tensor into a temporary directory, its sums taken, then
  copied to the trial's storage. Training waits for all of it.
- *in background*: training waits for the copy to host memory; a thread writes to the storage. *whole after* is the time
  until the manifest is there, with nothing else running.
- *host copy*: copying as many bytes once, into memory that has been used before, which is the least that can be.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from safetensors.torch import save_file
from side_by_side import alternate, arguments, medians, write

from rllib_exit import checkpoints
from rllib_exit.checkpoints import Place
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.learner.learner_group import LEARNERS, GRPOLearnerGroup
from rllib_exit.models import SMOLLM2


def make_learners(model: str) -> GRPOLearnerGroup:
    config = GRPOConfig().language_model(model, dtype="float32", max_model_len=512).curriculum("grpo")
    space = gym.spaces.Text(8)
    spec = config.get_multi_rl_module_spec(spaces={"default_policy": (space, space)})
    return GRPOLearnerGroup(config=config, module_spec=spec)


def through_a_temporary_directory(learners: Any, storage: Path) -> float:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as local:
        for kind, (model, part, names) in learners._learner._state().items():
            for i, bucket in enumerate(model.buckets(names)):
                file = Path(local) / f"{kind}-{i}.safetensors"
                save_file({name: t.contiguous() for name, t in model.gather(part, bucket).items()}, file)
        for file in Path(local).iterdir():
            with open(file, "rb") as stream:
                hashlib.file_digest(stream, "sha256")
        shutil.copytree(local, storage)
    return time.perf_counter() - start


def main() -> None:
    parser = arguments(__doc__, "checkpoint", repeats=3)
    parser.add_argument("--model", default=SMOLLM2)
    args = parser.parse_args()
    if args.quick:
        args.repeats = 1
    learners: Any = make_learners(args.model)
    tensors = [
        tensor
        for model, part, names in learners._learner._state().values()
        for bucket in model.buckets(names)
        for tensor in model.gather(part, bucket).values()
    ]
    copies = [torch.empty_like(tensor, device="cpu") for tensor in tensors]
    whole: list[float] = []

    def in_background(storage: Path) -> float:
        place = Place.of(storage)
        checkpoints.begin(place)
        start = time.perf_counter()
        wait = learners.start_saving(place / LEARNERS)
        blocked = time.perf_counter() - start
        checkpoints.finish(place, {f"{LEARNERS}/{name}": value for name, value in wait().items()})
        whole.append(time.perf_counter() - start)
        return blocked

    def host_copy(_: Path) -> float:
        start = time.perf_counter()
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_(tensor)
        return time.perf_counter() - start

    def run(contender: Any) -> float:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as storage:
            return contender(Path(storage) / "checkpoint")

    contenders = {
        "temporary directory": lambda: run(lambda storage: through_a_temporary_directory(learners, storage)),
        "in background": lambda: run(in_background),
        "host copy": lambda: run(host_copy),
    }
    blocked = medians(alternate(contenders, args.repeats))
    after = {**blocked, "in background": sorted(whole[1:])[len(whole[1:]) // 2]}
    size = sum(tensor.nbytes for tensor in tensors)
    rows = [
        {"contender": name, "GB": size / 1e9, "training waits s": blocked[name], "whole after s": after[name]}
        for name in contenders
    ]
    write(args, rows)


if __name__ == "__main__":
    main()
