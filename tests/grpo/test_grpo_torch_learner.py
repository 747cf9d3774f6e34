from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.learner.training_data import TrainingData

from envs.base import TaskInstance
from rllib_exit.grpo.batch import TrainBatch, make_batches
from rllib_exit.grpo.grpo_config import GRPOConfig
from rllib_exit.grpo.grpo_torch_learner import GRPOTorchLearner
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, Segment


def make_learner(model: str, **fields: Any) -> GRPOTorchLearner:
    config = (
        GRPOConfig()
        .language_model(model, dtype="float32", max_model_len=512)
        .training(lr=1e-3, learner_threads=1)
        .curriculum("grpo")
        .debugging(seed=0)
    )
    for name, value in fields.items():
        setattr(config, name, value)
    space = gym.spaces.Text(8)
    spec = config.get_multi_rl_module_spec(spaces={"default_policy": (space, space)})
    learner = GRPOTorchLearner(config=config, module_spec=spec)
    learner.build()
    return learner


def make_groups(rng: np.random.Generator, num_groups: int = 3, group_size: int = 4) -> list[RolloutGroup]:
    groups = []
    for g in range(num_groups):
        prompt = rng.integers(5, 200, rng.integers(3, 12))
        rollouts = []
        for _ in range(group_size):
            response = rng.integers(5, 200, rng.integers(1, 9))
            ids = np.concatenate([prompt, response]).astype(np.int32)
            mask = np.arange(len(ids)) >= len(prompt)
            logprobs = np.where(mask, rng.normal(-5, 1, len(ids)), 0).astype(np.float32)
            rollouts.append(Rollout((Segment(ids, mask, logprobs),), (), float(rng.random()), 0.5))
        groups.append(RolloutGroup(RolloutRequest(str(g), TaskInstance("t")), tuple(rollouts)))
    return groups


def batch(groups: list[RolloutGroup], num_learners: int = 1, **kwargs: Any) -> list[TrainBatch]:
    options: dict[str, Any] = {
        "minibatch_size": None,
        "loss_aggregation": "sequence_mean",
        "max_response_tokens": 16,
        "overlong_filtering": False,
        "skip_zero_advantage": False,
        **kwargs,
    }
    advantages = [group.returns_G - group.returns_G.mean() for group in groups]
    return make_batches(groups, advantages, num_learners=num_learners, **options)


def update(learner: GRPOTorchLearner, train_batch: TrainBatch) -> dict[str, float]:
    stats = learner.update(training_data=TrainingData(batch=train_batch))  # type: ignore[arg-type]
    return {name: float(value.peek()) for name, value in stats.items() if hasattr(value, "peek")}


def weights(learner: GRPOTorchLearner) -> np.ndarray:
    return torch.cat([p.detach().ravel() for p in learner.language_model.model.parameters()]).numpy()


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_an_update_does_not_depend_on_micro_batches(tiny_model: str, aggregation: str) -> None:
    groups = make_groups(np.random.default_rng(0))
    results = []
    for budget in (1, 30, 10_000):
        learner = make_learner(tiny_model, max_tokens_per_micro_batch=budget, grad_clip=None)
        stats = update(learner, batch(groups, loss_aggregation=aggregation)[0])
        gradient = torch.cat([p.grad.ravel() for p in learner.language_model.model.parameters() if p.grad is not None])
        results.append((stats["loss"], stats["grad_norm"], gradient))
    for loss, norm, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-6) and norm == pytest.approx(results[0][1], rel=1e-4)
        torch.testing.assert_close(gradient, results[0][2], atol=1e-6, rtol=1e-4)


def test_shards_of_a_batch_add_up_to_it(tiny_model: str) -> None:
    groups = make_groups(np.random.default_rng(1))
    whole = update(make_learner(tiny_model), batch(groups)[0])["loss"]
    shards = [update(make_learner(tiny_model), shard)["loss"] for shard in batch(groups, num_learners=2)]
    assert sum(shards) == pytest.approx(whole, abs=1e-6)


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


def test_several_epochs_and_minibatches_use_the_first_policy_as_the_old_one(tiny_model: str) -> None:
    learner = make_learner(tiny_model, num_epochs=2, lr=1e-2)
    train_batch = batch(make_groups(np.random.default_rng(5)), minibatch_size=4)[0]
    assert len(train_batch.minibatches) == 3
    assert update(learner, train_batch)["clip_fraction"] > 0  # the ratio left 1


def test_an_iteration_without_any_signal_is_no_error(tiny_model: str) -> None:
    learner = make_learner(tiny_model)
    before = weights(learner)
    assert update(learner, TrainBatch(((),)))["loss"] == 0
    np.testing.assert_array_equal(before, weights(learner))


def test_overlong_filtering_gives_no_loss_but_keeps_the_denominator() -> None:
    groups = make_groups(np.random.default_rng(6), num_groups=1)
    rollouts = groups[0].rollouts
    cut = Rollout(rollouts[0].segments, (), rollouts[0].return_, 0.5, truncated=True)
    group = RolloutGroup(groups[0].request, (cut, *rollouts[1:]))
    [full] = batch([group])[0].minibatches
    [filtered] = batch([group], overlong_filtering=True)[0].minibatches
    assert len(filtered) == 3 and len(full) == 4
    assert [row.loss_weight for row in filtered] == [row.loss_weight for row in full[1:]]
