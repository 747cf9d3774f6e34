"""What is put into the object store, and what env runners make of it."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from rllib_exit.env_runners.llm_env_runner import LLMEnvRunner
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.weight_sync import weight_store
from rllib_exit.weight_sync.patches import apply_patch
from rllib_exit.weight_sync.weight_store import StoredWeights, WeightStore, put_adapters
from tests.fakes import CounterEnv, ScriptedGenerator

BYTES = 2 * (64 * 256 + 256 + 256 * 64 + 64)


class Engine(ScriptedGenerator):
    """Keeps the weights that it gets, and counts what it loads."""

    def __init__(self, model: str) -> None:
        super().__init__(model, lambda prompt, seed: "1")
        self.weights: list[dict[str, Tensor]] = []
        self.loads = self.patched = 0
        self.asleep = False

    async def update_weights(self, files: Sequence[Sequence[np.ndarray]]) -> float:
        self.weights = [opened(file) for file in files]
        self.loads += 1
        return 1.0

    async def update_adapters(self, files: Sequence[Sequence[np.ndarray]]) -> float:
        self.adapters = json.loads(np.concatenate(files[0]).tobytes()), opened(files[1])
        self.loads += 1
        return 1.0

    async def patch_weights(self, patches: Sequence[Sequence[Sequence[np.ndarray]]]) -> float:
        self.asleep = False
        for patch in patches:
            self.patched += 1
            for tensors, file in zip(self.weights, patch, strict=True):
                apply_patch(tensors, opened(file))
        return 0.125

    async def checksums(self) -> dict[str, Any]:
        return {name: t.view(torch.int16).sum().item() for tensors in self.weights for name, t in tensors.items()}


def opened(file: Sequence[np.ndarray]) -> dict[str, Tensor]:
    return load(np.concatenate(file).tobytes())


class Learner:
    """A model that AdamW trains on noise, in bfloat16 for the engines."""

    def __init__(self, full_interval: int = 1000, dtype: torch.dtype = torch.bfloat16) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.dtype, self.version = dtype, 0
        self.store = WeightStore(full_interval)

    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.version += 1

    def weights(self) -> Iterator[Mapping[str, Tensor]]:
        for i, layer in enumerate(self.model):
            yield {f"{i}.{name}": p.detach().to(self.dtype) for name, p in layer.named_parameters()}

    def put(self, lr: float | None = None) -> StoredWeights:
        if lr is not None:
            self.step(lr)
        return self.store.put(self.weights(), self.version)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put is copied, and its own reference."""
    monkeypatch.setattr(weight_store.ray, "put", copy.deepcopy)


def make_runner(model: str) -> tuple[LLMEnvRunner, Engine]:
    config = GRPOConfig().environment(CounterEnv).language_model(model, dtype="float32", max_model_len=512)
    engine = Engine(model)
    config.generation(max_response_tokens=8, generator_class=lambda *args, **kwargs: engine)
    return LLMEnvRunner(config=config), engine


def assert_equal(engine: Engine, learner: Learner) -> None:
    for has, wanted in zip(engine.weights, learner.weights(), strict=True):
        assert has.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(has[name].view(torch.int16), tensor.contiguous().view(torch.int16))


@pytest.mark.parametrize("lr", [1e-6, 5e-6, 5e-5, 1e-3])
def test_after_updates_patched_weights_are_bit_equal_to_a_full_copy(tiny_model: str, lr: float) -> None:
    learner = Learner()
    runner, engine = make_runner(tiny_model)
    for i in range(12):
        weights = learner.put(None if i == 0 else lr)
        asyncio.run(runner.update_weights(weights))
        assert_equal(engine, learner)
        assert runner._policy_version == learner.version == i
    assert engine.patched >= (10 if lr <= 5e-6 else 1 if lr <= 5e-5 else 0)


def test_a_patch_is_small_where_little_changed(tiny_model: str) -> None:
    learner = Learner()
    full = learner.put()
    assert full.num_bytes == pytest.approx(BYTES, rel=0.02) and full.changed_fraction == 1
    learner.put(1e-6)  # a patch and, for the check, a full copy
    patch = learner.put(1e-6)
    assert 0 < patch.changed_fraction < 0.02
    assert patch.num_bytes < 2 * patch.changed_fraction * BYTES + 1000
    assert len(patch.patches) == 1 and patch.base != full.base


def test_adapters_come_alone_and_again_only_where_they_are_new(tiny_model: str) -> None:
    runner, engine = make_runner(tiny_model)
    for version in (1, 2):
        adapters = {"layer.lora_A.weight": torch.full((4, 64), float(version))}
        stored = put_adapters({"r": 4}, adapters, version)
        assert stored.num_bytes == pytest.approx(4 * 64 * 4, abs=200) and stored.policy_version == version
        for _ in range(2):
            asyncio.run(runner.update_weights(stored))
        assert engine.adapters[0] == {"r": 4} and torch.equal(engine.adapters[1].popitem()[1], *adapters.values())
        assert runner._policy_version == engine.loads == version
    assert not engine.weights


def test_where_much_changed_all_is_sent() -> None:
    learner = Learner()
    first, second, third = learner.put(), learner.put(1e-3), learner.put(1e-3)
    assert len({first.base, second.base, third.base}) == 3
    assert second.patches == third.patches == () and second.as_patches is None
    assert third.changed_fraction > 0.5 and third.num_bytes == first.num_bytes


def test_patches_since_a_full_copy_stay_below_half_of_it() -> None:
    learner = Learner()
    stored = [learner.put(), *(learner.put(2e-5) for _ in range(30))]
    for now, then in zip(stored[2:], stored[1:], strict=False):
        if now.base == then.base:
            assert len(now.patches) == len(then.patches) + 1
        assert sum(part.nbytes for patch in now.patches for file in patch for part in file) <= BYTES / 2 + 2000
    assert 3 < len({weights.base for weights in stored}) < 20


def test_nothing_is_sent_where_nothing_changed(tiny_model: str) -> None:
    learner = Learner()
    runner, engine = make_runner(tiny_model)
    asyncio.run(runner.update_weights(learner.put()))
    learner.version = 7
    again = learner.put()
    assert (again.num_bytes, again.changed_fraction, again.policy_version) == (0, 0.0, 7)
    engine.asleep = True
    asyncio.run(runner.update_weights(again))
    assert not engine.asleep
    assert (engine.loads, engine.patched, runner._policy_version) == (1, 0, 7)


def test_float32_weights_are_sent_in_full_and_not_kept() -> None:
    learner = Learner(dtype=torch.float32)
    first, second = learner.put(), learner.put(1e-6)
    assert first.base != second.base and second.patches == () and second.num_bytes == first.num_bytes
    assert not learner.store._kept


def test_an_interval_of_1_sends_all() -> None:
    learner = Learner(full_interval=1)
    stored = [learner.put(), *(learner.put(1e-6) for _ in range(3))]
    assert len({weights.base for weights in stored}) == 4 and not learner.store._kept


def test_the_first_patch_and_every_so_many_are_checked_against_a_full_copy(tiny_model: str) -> None:
    learner = Learner(full_interval=3)
    runner, engine = make_runner(tiny_model)
    checked = []
    for i in range(9):
        weights = learner.put(1e-6)
        asyncio.run(runner.update_weights(weights))
        assert_equal(engine, learner)
        if weights.as_patches is not None:
            checked.append(i)
            assert weights.num_bytes > BYTES
    assert checked == [1, 4, 7] and (engine.loads, engine.patched) == (1 + 3, 8)


def test_an_engine_that_patches_led_astray_ends_training(tiny_model: str) -> None:
    learner = Learner(full_interval=3)
    runner, engine = make_runner(tiny_model)
    for _ in range(4):
        asyncio.run(runner.update_weights(learner.put(1e-6)))
    engine.weights[1]["1.bias"][5] += 1
    with pytest.raises(ValueError, match=r"1 tensors, 1\.bias the first; full_weights_interval is 20: set it to 1"):
        asyncio.run(runner.update_weights(learner.put(1e-6)))


def test_an_env_runner_gets_what_it_lacks(tiny_model: str) -> None:
    learner = Learner()
    steady, missing, restarted = (make_runner(tiny_model) for _ in range(3))
    for _ in range(2):
        weights = learner.put(1e-6)
        asyncio.run(steady[0].update_weights(weights))
        asyncio.run(missing[0].update_weights(weights))
    for _ in range(3):
        weights = learner.put(1e-6)
        asyncio.run(steady[0].update_weights(weights))
    asyncio.run(missing[0].update_weights(weights))
    asyncio.run(restarted[0].update_weights(weights))
    assert (steady[1].loads, steady[1].patched) == (2, 1 + 3)
    assert (missing[1].loads, missing[1].patched) == (2, 1 + 3)
    assert (restarted[1].loads, restarted[1].patched) == (1, 3)
    for _, engine in (steady, missing, restarted):
        assert_equal(engine, learner)


def test_after_a_failure_an_engine_gets_all_again(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner()
    runner, engine = make_runner(tiny_model)
    for _ in range(2):
        asyncio.run(runner.update_weights(learner.put(1e-6)))

    async def fail(patches: Any) -> float:
        engine.weights[0]["0.weight"].zero_()
        raise RuntimeError("half done")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "patch_weights", fail)
        with pytest.raises(RuntimeError, match="half done"):
            asyncio.run(runner.update_weights(learner.put(1e-6)))
    asyncio.run(runner.update_weights(learner.put(1e-6)))
    assert_equal(engine, learner)


def test_after_a_broadcast_of_another_kind_an_engine_gets_all(tiny_model: str) -> None:
    learner = Learner()
    runner, engine = make_runner(tiny_model)
    asyncio.run(runner.update_weights(learner.put()))

    async def received(update_info: Any) -> None:
        engine.weights[0]["0.weight"].zero_()

    engine.receive_weights = received  # type: ignore[attr-defined]
    asyncio.run(runner.receive_weights(1, {}))
    asyncio.run(runner.update_weights(learner.put()))
    assert_equal(engine, learner)
