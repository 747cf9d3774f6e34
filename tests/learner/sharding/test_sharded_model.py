"""Every back end, with two learners, trains as one learner with plain torch does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from rllib_exit import checkpoints
from rllib_exit.checkpoints import Checkpoint, CheckpointError, Place
from rllib_exit.learner import lora
from rllib_exit.learner.batch import TrainBatch
from rllib_exit.learner.sharding.collectives import sum_gradients
from rllib_exit.learner.sharding.ddp import DDPModel
from rllib_exit.learner.sharding.sharded_model import ShardedModel
from rllib_exit.learner.sharding.weights import collect_adapters
from tests.learner.helpers import batch, make_groups
from tests.learner.sharding.learners import Learners, Processes, tensors, use_small_buckets
from tests.tiny_models import make_tiny_model

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]

BACK_ENDS = {
    "ddp": {"sharding": "ddp"},
    "fsdp2": {"sharding": "fsdp2"},
    **{f"zero{stage}": {"sharding": "deepspeed", "zero_stage": stage} for stage in range(4)},
}
SHARDED = ["fsdp2", "zero3"]


def only_in_full(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.full) for name in names]


# DeepSpeed's stages 0 and 1 share all our code, and most of its own, with stage 2.
EACH = ["ddp", "fsdp2", "zero2", "zero3", *only_in_full("zero0", "zero1")]
# A KL term, a reference policy that follows, clipped gradients, several packs in each update, and two updates
# in each iteration.
TRAINING: dict[str, Any] = {
    "kl_coeff": 0.1,
    "ref_update_interval": 2,
    "ref_update_rate": 0.5,
    "grad_clip": 0.05,
    "max_tokens_per_micro_batch": 40,
    "lr_warmup_steps": 3,
    "weight_decay": 0.01,
}


def batches(iteration: int, num_learners: int, **kwargs: Any) -> list[TrainBatch]:
    return batch(make_groups(np.random.default_rng(iteration)), num_learners, **{"minibatch_size": 8, **kwargs})


def saved(learners: Learners, path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by directory and name."""
    return tensors(learners.save(path))


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        error, norm = (tensor.double() - expected[name].double()).norm(), expected[name].double().norm()
        assert error <= rtol * norm, f"{name}: {error} of {norm}"


def of(kind: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(f"{kind}/")}


@pytest.fixture(autouse=True, scope="module")
def small_buckets() -> Iterator[None]:
    size = ShardedModel.bucket_bytes
    use_small_buckets()
    yield
    ShardedModel.bucket_bytes = size


@pytest.fixture(scope="module")
def pair() -> Iterator[Processes]:
    processes = Processes(2)
    yield processes
    processes.stop()


@pytest.fixture(scope="module")
def single(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Plain torch in one process: metrics and state after 3 iterations (6 updates), and after 4."""
    path = tmp_path_factory.mktemp("single")
    learners = Learners(tiny_model, **TRAINING)
    metrics = [learners(batches(i, 1))[0] for i in range(3)]
    state = saved(learners, path / "3")
    metrics.append(learners(batches(3, 1))[0])
    return {"metrics": metrics, 3: state, 4: saved(learners, path / "4"), "path": path / "3"}


def test_buckets_keep_the_order_and_hold_at_most_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"a": 3, "b": 4, "c": 20, "d": 1, "e": 9, "f": 1}
    module = torch.nn.ParameterDict({name: torch.zeros(size) for name, size in sizes.items()})
    model = DDPModel(module, torch.device("cpu"), None)
    monkeypatch.setattr(ShardedModel, "bucket_bytes", 40)
    assert model.buckets(list(sizes)) == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert model.buckets([]) == []


def test_gradients_are_summed_whatever_the_buckets(pair: Processes) -> None:
    def sums(rank: int, bucket_bytes: int) -> list[list[float]]:
        parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (1, 5, 2, 3)]
        for i, parameter in enumerate(parameters[:3]):
            parameter.grad = torch.arange(len(parameter)) + 10.0 * i + 100.0 * rank
        sum_gradients(parameters, bucket_bytes)
        return [p.grad.tolist() for p in parameters if p.grad is not None]

    expected = [[100.0], [120.0, 122.0, 124.0, 126.0, 128.0], [140.0, 142.0]]
    for bucket_bytes in (1, 24, 1 << 20):
        calls = [lambda held, rank=rank, size=bucket_bytes: sums(rank, size) for rank in range(2)]
        assert pair.run(calls) == [expected] * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_learners_that_hold_the_whole_policy_share_the_reference_policy(
    dtype: str, pair: Processes, tiny_model: str
) -> None:
    learners = Learners(tiny_model, pair, kl_coeff=0.1, lr=0.0, dtype=dtype)
    metrics = learners(batches(0, 2))
    # It rounds as the policy does.
    assert [of_rank["kl"] for of_rank in metrics] == pytest.approx([0, 0], abs=1e-6)
    assert all(of_rank["grad_norm"] > 0 for of_rank in metrics)

    def sizes(learner: Any) -> list[int]:
        module = learner.language_model
        policy = sum(p.numel() for p in module.model.parameters())
        return [policy, sum(p.to_local().numel() for p in module.reference.parameters())]

    (policy, *_), *_ = found = [result.get() for result in learners.foreach_learner(sizes)]
    assert sum(reference for _, reference in found) == policy
    assert all(reference < 0.6 * policy for _, reference in found)


@pytest.mark.parametrize("name", EACH)
def test_two_learners_train_as_one(
    name: str, pair: Processes, single: dict[Any, Any], tiny_model: str, tmp_path: Path
) -> None:
    learners = Learners(tiny_model, pair, **TRAINING, **BACK_ENDS[name])
    for i in range(3):
        metrics = learners(batches(i, 2))
        assert all(of_rank.keys() == single["metrics"][i].keys() for of_rank in metrics)
        for key in metrics[0].keys() - {"tokens_per_s", "bubble_s"}:
            # The same on both learners: RLlib reports their mean.
            values = [of_rank[key] for of_rank in metrics]
            assert values == pytest.approx([single["metrics"][i][key]] * 2, rel=1e-4, abs=1e-6), key
        assert metrics[0]["tokens_per_s"] == metrics[1]["tokens_per_s"] > 0
    state = saved(learners, tmp_path / "3")
    assert len(list((tmp_path / "3" / "learners" / "policy").iterdir())) > 3
    assert_close(of("policy", state), of("policy", single[3]), 1e-5)
    assert_close(of("reference", state), of("reference", single[3]), 1e-5)
    assert_close(state, single[3], 1e-4)  # the moments too

    # The weights for the engine are those of the checkpoint.
    weights = load(learners.collect_weights().tobytes())
    assert_close({f"policy/{name}": w for name, w in weights.items()}, of("policy", state), 0)

    # Whoever reads a checkpoint has, bit by bit, what was written: two learners, and one with plain torch.
    learners.restore(Checkpoint(tmp_path / "3"))
    assert_close(saved(learners, tmp_path / "again"), state, 0)
    alone = Learners(tiny_model, **TRAINING)
    alone.restore(Checkpoint(tmp_path / "3"))
    assert_close(saved(alone, tmp_path / "alone"), state, 0)

    if name in SHARDED:
        # One learner goes on from what two have written, with the same back end and with plain torch ...
        for fields in (BACK_ENDS[name], {}):
            alone = Learners(tiny_model, **TRAINING, **fields)
            alone.restore(Checkpoint(tmp_path / "3"))
            loss = alone(batches(3, 1))[0]["loss"]
            assert loss == pytest.approx(single["metrics"][3]["loss"], rel=1e-4, abs=1e-6)  # it is close to 0
            assert_close(of("policy", saved(alone, tmp_path / f"4{len(fields)}")), of("policy", single[4]), 1e-5)
        # ... and two from what one has written.
        learners.restore(Checkpoint(single["path"]))
        metrics = learners(batches(3, 2))
        assert metrics[0]["lr"] == single["metrics"][3]["lr"]
        assert_close(of("policy", saved(learners, tmp_path / "4")), of("policy", single[4]), 1e-5)
        progress = json.loads((tmp_path / "4" / "learners" / "progress.json").read_text())
        assert progress == {"policy_version": 4, "num_updates": 8, "num_batches": 4}


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_learners_train_on_a_batch_in_parts_as_on_the_whole(
    name: str, pair: Processes, tiny_model: str, tmp_path: Path
) -> None:
    fields = {**TRAINING, **BACK_ENDS[name]}
    groups = make_groups(np.random.default_rng(7), num_groups=4)
    learners = Learners(tiny_model, pair, **fields)
    expected = learners(batch(groups, 2))
    whole = saved(learners, tmp_path / "whole")
    learners = Learners(tiny_model, pair, **fields)
    learners.accumulate(batch([groups[2]], 2, part=True))
    learners.accumulate(batch([groups[3], groups[0]], 2, part=True))
    learners.forget()
    for part in ([groups[2]], [groups[3], groups[0]]):
        learners.accumulate(batch(part, 2, part=True))
    metrics = learners(batch([groups[1]], 2, part=True))
    for key in metrics[0].keys() - {"tokens_per_s", "bubble_s"}:
        assert metrics[0][key] == metrics[1][key] == pytest.approx(expected[0][key], rel=1e-4, abs=1e-6), key
    assert_close(of("policy", saved(learners, tmp_path / "parts")), of("policy", whole), 1e-6)


def test_deepspeed_takes_no_batch_in_parts(pair: Processes, tiny_model: str) -> None:
    learners = Learners(tiny_model, pair, **BACK_ENDS["zero2"])
    with pytest.raises(RuntimeError, match="cannot be divided"):
        learners(batch(make_groups(np.random.default_rng(0)), 2, part=True))


@pytest.mark.parametrize("name", EACH)
def test_a_non_finite_gradient_on_one_learner_skips_the_update_on_all(
    name: str, pair: Processes, tiny_model: str, tmp_path: Path
) -> None:
    learners = Learners(tiny_model, pair, **BACK_ENDS[name])
    before = saved(learners, tmp_path / "before")
    good, bad = batches(0, 2, minibatch_size=None)
    bad.minibatches[0][0].logprobs[:] = np.nan
    assert [metrics["skipped_updates"] for metrics in learners([good, bad])] == [1, 1]
    after = saved(learners, tmp_path / "after")
    assert_close(after, before, 0)
    assert [metrics["skipped_updates"] for metrics in learners(batches(1, 2, minibatch_size=None))] == [0, 0]
    assert any((w != before[name]).any() for name, w in of("policy", saved(learners, tmp_path / "updated")).items())


@pytest.mark.parametrize("name", EACH)
def test_a_learner_without_rows_waits_for_nobody(name: str, pair: Processes, tiny_model: str) -> None:
    learners = Learners(tiny_model, pair, max_tokens_per_micro_batch=30, **BACK_ENDS[name])
    [whole] = batches(0, 1)
    metrics = learners([whole, TrainBatch(((),) * len(whole.minibatches))])
    alone = Learners(tiny_model, max_tokens_per_micro_batch=30)([whole])
    for key in alone[0].keys() - {"tokens_per_s", "bubble_s"}:
        assert metrics[0][key] == metrics[1][key] == pytest.approx(alone[0][key], rel=1e-4, abs=1e-6), key
    # An update without any rows reports no loss: the name that the update before has made keeps no value.
    nothing = learners([TrainBatch(((),))] * 2)[0]
    assert np.isnan(nothing["loss"]) and nothing["skipped_updates"] == 0


@pytest.mark.parametrize("name", [*SHARDED, *only_in_full("ddp", "zero1", "zero2")])
def test_bfloat16_keeps_float32_masters_and_rope_frequencies(
    name: str, pair: Processes, tiny_model: str, tmp_path: Path
) -> None:
    fields = {**TRAINING, "dtype": "bfloat16"}
    learners = Learners(tiny_model, pair, **fields, **BACK_ENDS[name])
    plain = Learners(tiny_model, **fields)
    for i in range(2):
        [loss, _] = [metrics["loss"] for metrics in learners(batches(i, 2))]
        assert loss == pytest.approx(plain(batches(i, 1))[0]["loss"], abs=0.02)
    state = saved(learners, tmp_path / "state")
    assert {t.dtype for t in of("policy", state).values()} == {torch.float32}
    assert_close(of("policy", state), of("policy", saved(plain, tmp_path / "plain")), 0.02)
    weights = load(learners.collect_weights().tobytes())
    rounded = {n.removeprefix("policy/"): t.bfloat16() for n, t in of("policy", state).items()}
    assert weights.keys() == rounded.keys() and all(torch.equal(w, rounded[name]) for name, w in weights.items())

    def frequencies(learner: Any) -> list[np.ndarray]:
        models = (learner.language_model.model, learner.language_model.reference)
        buffers = [b for model in models for n, b in model.named_buffers() if n.endswith("inv_freq")]
        return [b.numpy() for b in buffers]  # numpy has no bfloat16

    results = [result.get() for group in (learners, plain) for result in group.foreach_learner(frequencies)]
    assert {len(result) for result in results} == {4}
    for result in results:
        for values in result:
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, 10000.0 ** (-np.arange(0, 32, 2) / 32), rtol=1e-6)


def test_offloading_the_optimizer_changes_nothing(
    pair: Processes, single: dict[Any, Any], tiny_model: str, tmp_path: Path
) -> None:
    learners = Learners(tiny_model, pair, **TRAINING, **BACK_ENDS["zero3"], offload_optimizer=True)
    learners.restore(Checkpoint(single["path"]))
    learners(batches(3, 2))
    assert_close(of("policy", saved(learners, tmp_path / "4")), of("policy", single[4]), 1e-5)


@pytest.mark.parametrize("name", SHARDED)
def test_an_untied_output_layer_and_gradient_checkpointing(name: str, pair: Processes, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "untied", tied=False)
    learners = Learners(model, pair, gradient_checkpointing=True, **BACK_ENDS[name])
    alone = Learners(model)
    for i in range(2):
        learners(batches(i, 2))
        alone(batches(i, 1))
    state, expected = saved(learners, tmp_path / "two"), saved(alone, tmp_path / "one")
    assert "policy/lm_head.weight" in state
    assert_close(of("policy", state), of("policy", expected), 1e-5)


@pytest.mark.parametrize("dtype", ["float32", *only_in_full("bfloat16")])
@pytest.mark.parametrize("name", ["ddp", *SHARDED, *only_in_full("zero1", "zero2")])
def test_adapters(name: str, dtype: str, pair: Processes, tiny_model: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {**TRAINING, "ref_update_rate": 0.0, "dtype": dtype, "lora_r": 4}
    learners, alone = Learners(tiny_model, pair, **fields, **BACK_ENDS[name]), Learners(tiny_model, **fields)
    # The adapters' first weights are random.
    learners.save(tmp_path / "start")
    alone.restore(Checkpoint(tmp_path / "start"))
    for i in range(2):
        metrics, expected = learners(batches(i, 2))[0], alone(batches(i, 1))[0]
        assert metrics["kl"] == pytest.approx(expected["kl"], rel=1e-3) if dtype == "float32" else metrics["kl"] > 0
    state, expected = saved(learners, tmp_path / "two"), saved(alone, tmp_path / "one")
    assert len(of("policy", state)) == 2 * 7 * 2 and not of("reference", state)
    # Half of the adapters' weights begin at 0: what they are after two updates is small beside their rounding.
    assert_close(of("policy", state), of("policy", expected), 3e-5 if dtype == "float32" else 0.05)
    merged = load(learners.collect_weights().tobytes())
    expected = load(alone.collect_weights().tobytes())
    assert_close(merged, expected, 1e-5 if dtype == "float32" else 0.01)

    def collect(learner: Any) -> Any:
        return collect_adapters(learner.model, torch.float32)

    sent, other = (result.get() for result in learners.foreach_learner(collect))
    assert other is None
    weights = {lora.saved_name(name.removeprefix("policy/")): w for name, w in of("policy", state).items()}
    assert_close(sent, weights, 1e-6 if dtype == "float32" else 0.01)


def test_a_checkpoint_of_another_model_is_refused(single: dict[Any, Any], tmp_path: Path) -> None:
    learners = Learners(make_tiny_model(tmp_path / "untied", tied=False), **TRAINING)
    with pytest.raises(CheckpointError, match=r"policy in .* is of another model.*'lm_head.weight'"):
        learners.restore(Checkpoint(single["path"]))
    place = Place.of(tmp_path / "other")
    checkpoints.finish(place, {"state.pkl": place.write("state.pkl", b"")})
    with pytest.raises(CheckpointError, match=r"no learners/progress\.json"):
        learners.restore(Checkpoint(place))
