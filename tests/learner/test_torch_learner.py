from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from ray.rllib.core.learner.training_data import TrainingData
from safetensors.torch import load_file

from rllib_exit.learner.batch import TOKEN_LOGPROBS, TrainBatch
from rllib_exit.learner.torch_learner import Accumulated
from rllib_exit.objective.packing import pack
from rllib_exit.rollouts import Rollout, RolloutGroup
from rllib_exit.settings import LossAggregation, MismatchMode, TrainingSettings
from tests.learner.helpers import batch, make_groups, make_learner, update, weights
from tests.learner.sharding.learners import Learners, tensors
from tests.tiny_models import make_tiny_model


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_an_update_does_not_depend_on_micro_batches(tiny_model: str, aggregation: str) -> None:
    groups = make_groups(np.random.default_rng(0))
    results = []
    for budget in (1, 30, 10_000):
        learner = make_learner(tiny_model, max_tokens_per_micro_batch=budget, grad_clip=None)
        stats = update(learner, batch(groups, loss_aggregation=aggregation)[0])
        # The first moment is the gradient, but for a factor.
        moments = learner.model.gather("exp_avg", learner.model.trainable)
        beta, _ = TrainingSettings.of(learner.config).adam_betas
        gradient = torch.cat([moment.ravel() for moment in moments.values()]) / (1 - beta)
        results.append((stats["loss"], stats["grad_norm"], gradient))
    for loss, norm, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-6) and norm == pytest.approx(results[0][1], rel=1e-4)
        torch.testing.assert_close(gradient, results[0][2], atol=1e-6, rtol=1e-4)


def test_shards_of_a_batch_add_up_to_it(tiny_model: str) -> None:
    groups = make_groups(np.random.default_rng(1))
    whole = update(make_learner(tiny_model), batch(groups)[0])["loss"]
    shards = [update(make_learner(tiny_model), shard)["loss"] for shard in batch(groups, num_learners=2)]
    assert sum(shards) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("aggregation", get_args(LossAggregation))
def test_a_batch_in_parts_is_the_same_update(tiny_model: str, aggregation: LossAggregation) -> None:
    """Of groups of unequal numbers of tokens, one of which has no advantages, in another order, in uneven parts."""
    options: dict[str, Any] = {"loss_aggregation": aggregation, "kl_coeff": 0.1, "overlong_filtering": True}
    fields = {**options, "grad_clip": 0.01, "max_tokens_per_micro_batch": 40, "ref_update_rate": 0.5, "lr": 1e-4}
    groups = make_groups(np.random.default_rng(4), num_groups=5)
    groups[1] = replace(groups[1], rollouts=tuple(replace(r, return_=0.5) for r in groups[1].rollouts))
    whole, streamed = (make_learner(tiny_model, **fields) for _ in range(2))
    start = weights(whole)
    for order in ([3, 0, 4, 1, 2], [1, 2, 0, 4, 3]):
        expected = update(whole, batch(groups, **options)[0])
        for part in (order[:1], order[1:4]):
            streamed.accumulate(batch([groups[i] for i in part], part=True, **options)[0])
        metrics = update(streamed, batch([groups[i] for i in order[4:]], part=True, **options)[0])
        assert metrics.keys() == expected.keys() and metrics["tokens_per_s"] > 0
        for name in metrics.keys() - {"tokens_per_s", "bubble_s"}:
            assert metrics[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
        np.testing.assert_allclose(weights(streamed), weights(whole), atol=1e-6)
        change = np.linalg.norm(weights(whole) - start)
        assert np.linalg.norm(weights(streamed) - weights(whole)) < 1e-4 * change
    assert streamed.progress() == whole.progress() == {"policy_version": 2, "num_updates": 2, "num_batches": 2}


def test_parts_that_are_forgotten_leave_no_trace(tiny_model: str) -> None:
    groups = make_groups(np.random.default_rng(5))
    whole, streamed = make_learner(tiny_model, lr=1e-5), make_learner(tiny_model, lr=1e-5)
    streamed.accumulate(batch(groups[:2], part=True)[0])
    streamed.forget()
    streamed.accumulate(batch(groups, part=True)[0])
    metrics = update(streamed, batch([], part=True)[0])
    expected = update(whole, batch(groups)[0])
    assert metrics["loss"] == pytest.approx(expected["loss"], abs=1e-7)
    np.testing.assert_allclose(weights(streamed), weights(whole), atol=1e-6)


def test_a_non_finite_loss_changes_nothing_and_is_counted(tiny_model: str) -> None:
    learner = make_learner(tiny_model)
    before = weights(learner)
    groups = make_groups(np.random.default_rng(2))
    groups[0].rollouts[0].segments[0].logprobs[-1] = np.nan
    stats = update(learner, batch(groups)[0])
    assert stats["skipped_updates"] == 1
    np.testing.assert_array_equal(before, weights(learner))
    good = update(learner, batch(make_groups(np.random.default_rng(3)))[0])
    assert good["skipped_updates"] == 0 and np.abs(weights(learner) - before).max() > 0


def test_the_learning_rate_warms_up_and_the_reference_follows(tiny_model: str) -> None:
    learner = make_learner(tiny_model, lr_warmup_steps=4, ref_update_interval=2, ref_update_rate=0.5, kl_coeff=0.1)
    start = weights(learner)
    reference = learner.language_model.reference
    rng = np.random.default_rng(4)
    assert update(learner, batch(make_groups(rng))[0])["lr"] == pytest.approx(1e-3 / 4)
    flat = lambda m: torch.cat([p.detach().ravel() for p in m.parameters()]).numpy()  # noqa: E731
    np.testing.assert_array_equal(flat(reference), start)
    update(learner, batch(make_groups(rng))[0])
    np.testing.assert_allclose(flat(reference), (start + weights(learner)) / 2, atol=1e-7)


def test_the_learning_rate_falls_to_0_after_its_warm_up(tiny_model: str) -> None:
    learner = make_learner(tiny_model, lr_warmup_steps=2, lr_decay_steps=4)
    rng = np.random.default_rng(4)
    rates = [update(learner, batch(make_groups(rng))[0])["lr"] for _ in range(8)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4, 0, 0])


def test_several_epochs_and_minibatches_use_the_first_policy_as_the_old_one(tiny_model: str) -> None:
    learner = make_learner(tiny_model, num_epochs=2, lr=1e-2)
    train_batch = batch(make_groups(np.random.default_rng(5)), minibatch_size=4)[0]
    assert len(train_batch.minibatches) == 3
    assert update(learner, train_batch)["clip_fraction"] > 0  # the ratio left 1


def test_an_iteration_without_any_signal_is_no_error(tiny_model: str) -> None:
    learner = make_learner(tiny_model)
    before = weights(learner)
    reported = update(learner, TrainBatch(((),)))
    assert reported["skipped_updates"] == 0 and not {"loss", "kl", "entropy", "logprob_abs_diff_mean"} & set(reported)
    np.testing.assert_array_equal(before, weights(learner))


def test_overlong_filtering_gives_no_loss_but_keeps_the_denominator() -> None:
    groups = make_groups(np.random.default_rng(6), num_groups=1)
    whole, partial, *others = groups[0].rollouts

    def cut(rollout: Rollout, tokens: int) -> Rollout:
        """A rollout whose last tokens are a response without an end."""
        [segment] = rollout.segments
        ended = segment.loss_mask & (np.arange(len(segment.loss_mask)) < len(segment.loss_mask) - tokens)
        return replace(rollout, segments=(replace(segment, ended_mask=ended),), truncated=True)

    group = RolloutGroup(groups[0].request, (cut(whole, 10**6), cut(partial, 1), *others))
    [full] = batch([group])[0].minibatches
    [filtered] = batch([group], overlong_filtering=True)[0].minibatches
    assert len(filtered) == 3 and len(full) == 4
    assert [row.loss_weight for row in filtered] == [row.loss_weight for row in full[1:]]
    assert [full[i + 1].loss_mask.sum() - row.loss_mask.sum() for i, row in enumerate(filtered)] == [1, 0, 0]
    assert not filtered[0].loss_mask[-1]


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_rows_without_an_advantage_are_left_out_but_for_a_kl_term(aggregation: str) -> None:
    varied, equal = make_groups(np.random.default_rng(6), num_groups=2)
    equal = RolloutGroup(equal.request, tuple(replace(rollout, return_=0.5) for rollout in equal.rollouts))
    [without] = batch([varied, equal], kl_coeff=0.0, loss_aggregation=aggregation)[0].minibatches
    [with_kl] = batch([varied, equal], kl_coeff=0.1, loss_aggregation=aggregation)[0].minibatches
    assert len(without) == 4 and len(with_kl) == 8
    # They count in the denominators all the same.
    assert [row.loss_weight for row in without] == [row.loss_weight for row in with_kl[:4]]


def test_an_episode_that_outgrows_its_context_has_no_response_to_filter() -> None:
    [group] = make_groups(np.random.default_rng(6), num_groups=1)
    group = RolloutGroup(group.request, tuple(replace(rollout, truncated=True) for rollout in group.rollouts))
    assert len(batch([group], overlong_filtering=True)[0].minibatches[0]) == 4


@pytest.mark.parametrize(("num_epochs", "minibatch_size"), [(1, None), (2, 6)])
def test_an_update_tells_the_log_what_the_old_policy_says_of_each_trained_token(
    tiny_model: str, num_epochs: int, minibatch_size: int | None
) -> None:
    learner = make_learner(tiny_model, num_epochs=num_epochs, kl_coeff=0.0, log_rollouts=True)
    train_batch = batch(make_groups(np.random.default_rng(0)), minibatch_size=minibatch_size)[0]
    rows = [row for minibatch in train_batch.minibatches for row in minibatch]
    expected = {}
    for row in rows:
        [packed] = pack([row], 10**6)
        with torch.no_grad():
            expected[row.key] = learner.language_model.forward_train({"pack": packed})["logprobs"].numpy()
    result = learner.update(training_data=TrainingData(batch=train_batch))[TOKEN_LOGPROBS]  # type: ignore[arg-type]
    assert result.keys() == {row.key for row in rows} and len({row.key for row in rows}) == len(rows) == 12
    for row in rows:
        assert np.isnan(result[row.key][~row.loss_mask]).all() and not np.isnan(result[row.key][row.loss_mask]).any()
        np.testing.assert_allclose(result[row.key][row.loss_mask], expected[row.key], atol=1e-4)
    quiet = make_learner(tiny_model).update(training_data=TrainingData(batch=train_batch))  # type: ignore[arg-type]
    assert TOKEN_LOGPROBS not in quiet


def test_a_batch_in_parts_tells_the_log_the_same(tiny_model: str) -> None:
    groups = make_groups(np.random.default_rng(0))
    whole, streamed = (make_learner(tiny_model, log_rollouts=True) for _ in range(2))
    expected = whole.update(training_data=TrainingData(batch=batch(groups)[0]))[TOKEN_LOGPROBS]  # type: ignore[arg-type]
    streamed.accumulate(batch(groups[:1], part=True)[0])
    last = TrainingData(batch=batch(groups[1:], part=True)[0])  # type: ignore[arg-type]
    result = streamed.update(training_data=last)[TOKEN_LOGPROBS]
    assert result.keys() == expected.keys()
    for key, logprobs in expected.items():
        np.testing.assert_allclose(result[key], logprobs, atol=1e-5)


def test_the_mismatch_is_of_the_policy_before_the_update(tiny_model: str) -> None:
    learner = make_learner(tiny_model, num_epochs=4, kl_coeff=0.0)
    train_batch = batch(make_groups(np.random.default_rng(0)))[0]
    rows = train_batch.minibatches[0]
    for packed in pack(rows, 10**6):  # an engine that agrees with the learner
        with torch.no_grad():
            logprobs_N = learner.language_model.forward_train({"pack": packed})["logprobs"]
        for i in packed.rows_N.unique().tolist():
            rows[i].logprobs[rows[i].loss_mask] = logprobs_N[packed.rows_N == i].numpy()
    assert update(learner, train_batch)["logprob_abs_diff_max"] < 1e-5


def test_what_is_reported_is_of_all_tokens_and_of_all_updates(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(tiny_model, kl_coeff=0.1, lr=0.0, max_tokens_per_micro_batch=64)
    for parameter in learner.language_model.reference.module.parameters():
        parameter.data.mul_(1.1)
    whole = batch(make_groups(np.random.default_rng(0)), minibatch_size=4)[0]
    rows = [row for minibatch in whole.minibatches for row in minibatch]
    kl, mismatch, entropy = [], [], []
    for row in rows:
        packs = pack([row], 10**6)
        with torch.no_grad():
            fwd_out = learner.language_model.forward_train({"pack": packs[0]})
            logprobs_N = fwd_out["logprobs"]
            d = learner.language_model.reference_logprobs(packs)[0] - logprobs_N
        entropy.append(fwd_out["entropy"])
        kl.append(torch.exp(d) - d - 1)  # Schulman's k3
        mismatch.append((logprobs_N - packs[0].rollout_logprobs_N).abs())
    alone = [update(learner, TrainBatch((minibatch,))) for minibatch in whole.minibatches]

    seconds = iter([10.0, 12.0, 15.0, 16.0])
    monkeypatch.setattr("rllib_exit.learner.torch_learner.time.perf_counter", lambda: next(seconds))
    reported = update(learner, whole)
    assert update(learner, whole)["bubble_s"] == 3
    assert reported["kl"] == pytest.approx(float(torch.cat(kl).mean()), rel=1e-4) and reported["kl"] > 1e-4
    assert reported["logprob_abs_diff_mean"] == pytest.approx(float(torch.cat(mismatch).mean()), rel=1e-4)
    assert reported["logprob_abs_diff_max"] == pytest.approx(float(torch.cat(mismatch).max()), rel=1e-4)
    assert reported["entropy"] == pytest.approx(float(torch.cat(entropy).mean()), rel=1e-4)
    assert len(alone) == 3 and reported["grad_norm"] > 0
    assert reported["grad_norm"] == pytest.approx(np.mean([of["grad_norm"] for of in alone]), rel=1e-4)
    assert reported["tokens_per_s"] == sum(len(row.token_ids) for row in rows) / 2


def test_the_time_of_a_batch_in_parts_is_that_of_all_parts(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(tiny_model)
    groups = make_groups(np.random.default_rng(0))
    parts = [batch(groups[:1], part=True)[0], batch(groups[1:2], part=True)[0], batch(groups[2:], part=True)[0]]
    seconds = iter([10.0, 11.0, 20.0, 22.0, 30.0, 35.0, 40.0, 44.0])  # the last is the step
    monkeypatch.setattr("rllib_exit.learner.torch_learner.time.perf_counter", lambda: next(seconds))
    learner._idle_since = 3.0
    learner.accumulate(parts[0])
    learner.accumulate(parts[1])
    tokens = sum(len(row.token_ids) for part in parts for minibatch in part.minibatches for row in minibatch)
    reported = update(learner, parts[2])
    assert (reported["tokens_per_s"], reported["bubble_s"]) == (tokens / 12, 7 + 9 + 8 + 5)


@pytest.mark.parametrize(
    ("num_epochs", "minibatch_size", "kl_coeff", "passes"), [(1, None, 0.0, 3), (1, None, 0.1, 4), (2, 6, 0.1, 8)]
)
def test_mfu_counts_the_passes_of_the_epochs_the_old_policy_and_the_reference(
    tiny_model: str,
    monkeypatch: pytest.MonkeyPatch,
    num_epochs: int,
    minibatch_size: int | None,
    kl_coeff: float,
    passes: int,
) -> None:
    """A backward pass is two forward passes."""
    groups = make_groups(np.random.default_rng(0))
    learner = make_learner(tiny_model, num_epochs=num_epochs, kl_coeff=kl_coeff)
    assert not {"mfu", "gpu_memory_max"} & update(learner, batch(groups)[0]).keys()  # nobody knows a CPU's peak
    monkeypatch.setattr(learner, "_peak", 1e9)
    train_batch = batch(groups, minibatch_size=minibatch_size, kl_coeff=kl_coeff)[0]
    packs = [of for rows in train_batch.minibatches for of in pack(rows, 10**6)]
    assert learner._flops is not None
    once = learner._flops.of_passes(packs, forward=1, backward=0)
    seconds = iter([10.0, 12.0])
    monkeypatch.setattr("rllib_exit.learner.torch_learner.time.perf_counter", lambda: next(seconds))
    assert update(learner, train_batch)["mfu"] == pytest.approx(passes * once / (2 * 1e9))


def test_the_flops_of_a_batch_in_parts_are_those_of_the_batch(tiny_model: str) -> None:
    groups = make_groups(np.random.default_rng(0))
    learner = make_learner(tiny_model, kl_coeff=0.1, max_tokens_per_micro_batch=1)  # a pack for each row
    learner.accumulate(batch(groups[:1], part=True, kl_coeff=0.1)[0])
    learner.accumulate(batch(groups[1:], part=True, kl_coeff=0.1)[0])
    done = Accumulated()
    learner._train(batch(groups, kl_coeff=0.1)[0], done)
    assert learner._accumulated.flops == done.flops > 0


def test_an_update_that_is_skipped_has_no_part_in_the_gradients_norm(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    learner = make_learner(tiny_model)
    norms = iter([float("nan"), 2.0, 4.0])
    monkeypatch.setattr(learner.model, "step", lambda lr, divisor: next(norms))
    reported = update(learner, batch(make_groups(np.random.default_rng(5)), minibatch_size=4)[0])
    assert (reported["skipped_updates"], reported["grad_norm"]) == (1, 3.0)
    assert learner.progress()["num_updates"] == 2
    assert "skipped an update: gradient norm nan" in caplog.text


def test_a_single_update_passes_through_each_pack_once(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(tiny_model, kl_coeff=0.0, max_tokens_per_micro_batch=64)
    [rows] = batch(make_groups(np.random.default_rng(0)))[0].minibatches
    passes = []
    forward = learner.language_model.forward_train
    monkeypatch.setattr(learner.language_model, "forward_train", lambda b: (passes.append(b), forward(b))[1])
    update(learner, TrainBatch((rows,)))
    assert len(passes) == len(pack(rows, 64)) > 1


def test_how_a_mismatch_is_answered_is_a_setting(tiny_model: str) -> None:
    train_batch = batch(make_groups(np.random.default_rng(0)))[0]  # rollouts whose probabilities are made up
    modes = get_args(MismatchMode)
    losses = [update(make_learner(tiny_model, mismatch_mode=mode), train_batch)["loss"] for mode in modes]
    assert len(set(losses)) >= 3  # masks of tokens and of sequences may leave out the same


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_the_start_the_reference_is_the_policy(dtype: str, tiny_model: str) -> None:
    learner = make_learner(tiny_model, dtype=dtype, kl_coeff=0.1, lr=0.0)
    assert abs(update(learner, batch(make_groups(np.random.default_rng(0)))[0])["kl"]) < 1e-6


def test_the_moving_average_of_a_bfloat16_run_takes_small_steps(tiny_model: str) -> None:
    learner = make_learner(
        tiny_model, dtype="bfloat16", kl_coeff=0.1, ref_update_interval=1, ref_update_rate=1e-3, lr=0.0
    )
    parameter = next(iter(learner.language_model.reference.module.parameters()))
    with torch.no_grad():
        parameter.add_(1e-2)
    before = parameter.detach().clone()
    learner.language_model.update_reference(1e-3)
    torch.testing.assert_close(before - parameter.detach(), torch.full_like(before, 1e-5), rtol=1e-2, atol=1e-8)


def test_dropout_is_off(tmp_path: Path) -> None:
    model = Path(make_tiny_model(tmp_path))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    learner = make_learner(str(model), num_epochs=2, lr=0.0, kl_coeff=0.1)
    stats = update(learner, batch(make_groups(np.random.default_rng(0)))[0])
    assert stats["clip_fraction"] == 0 and abs(stats["kl"]) < 1e-6


@pytest.mark.parametrize(
    ("num_groups", "minibatch_size", "sizes"), [(5, 8, [12, 8]), (9, 8, [12, 8, 8, 8]), (3, 100, [12])]
)
def test_minibatches_are_about_equally_large(num_groups: int, minibatch_size: int, sizes: list[int]) -> None:
    groups = make_groups(np.random.default_rng(0), num_groups=num_groups)
    [train_batch] = batch(groups, minibatch_size=minibatch_size)
    assert sorted(map(len, train_batch.minibatches), reverse=True) == sizes


@pytest.mark.parametrize("tied", [True, False])
def test_a_loaded_model_is_the_policy_and_the_reference(tied: bool, tmp_path: Path) -> None:
    cold, warm = (make_tiny_model(tmp_path / name, seed=seed, tied=tied) for seed, name in enumerate(("cold", "warm")))
    learners = Learners(cold, kl_coeff=0.1)
    learners.load_model(Path(warm))
    wanted = load_file(Path(warm) / "model.safetensors")
    saved = tensors(learners.save(tmp_path / "saved"))
    for kind in ("policy", "reference"):
        held = {name.partition("/")[2]: tensor for name, tensor in saved.items() if name.startswith(f"{kind}/")}
        assert held.keys() == wanted.keys() and all(torch.equal(held[name], wanted[name]) for name in wanted)
