"""Whole updates against a slow loop over a plain Hugging Face model: one row at a time, and nothing of our code."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from envs.base import TaskInstance, Turn
from rllib_exit.learner.batch import make_batches
from rllib_exit.objective.scoring import score
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, Segment
from rllib_exit.settings import Loss, LossAggregation, TrainingSettings
from tests.learner.helpers import make_learner, update

TEMPERATURE = 0.9
MAX_ROLLOUT_TOKENS = 40
BETA_1, BETA_2 = 0.9, 0.95


def make_segment(rng: np.random.Generator, start: np.ndarray, num_responses: int) -> Segment:
    """A prompt, then responses with an answer of the environment between them."""
    ids, mask = [start], [np.zeros(len(start), bool)]
    for _ in range(num_responses):
        response, answer = (rng.integers(5, 200, rng.integers(1, 7)) for _ in range(2))
        ids += [response, answer]
        mask += [np.ones(len(response), bool), np.zeros(len(answer), bool)]
    token_ids, loss_mask = np.concatenate(ids).astype(np.int32), np.concatenate(mask)
    # About what a random model of 512 tokens gives: importance weights on both sides of their bound.
    logprobs = np.where(loss_mask, rng.normal(-7, 1, len(token_ids)), 0).astype(np.float32)
    return Segment(token_ids, loss_mask, logprobs)


def make_groups(seed: int) -> list[RolloutGroup]:
    """Ragged rollouts of one or two segments; one group has equal returns, two have an overlong response."""
    rng = np.random.default_rng(seed)
    instructions = rng.integers(5, 200, 6)
    groups = []
    for g in range(4):
        prompt = np.concatenate([instructions, rng.integers(5, 200, rng.integers(2, 9))])
        rollouts = []
        for i in range(4):
            segments = [make_segment(rng, prompt, int(rng.integers(1, 3))) for _ in range(rng.integers(1, 3))]
            if i == 3 and g % 2 == 0:  # the last response lacks an ending
                last = segments[-1]
                end = np.flatnonzero(last.loss_mask).max() + 1
                start = np.flatnonzero(~last.loss_mask[:end]).max() + 1
                segments[-1] = replace(last, ended_mask=last.loss_mask & (np.arange(len(last.loss_mask)) < start))
            return_ = 1.0 if g == 1 else float(rng.integers(0, 4)) / 3
            rollouts.append(Rollout(tuple(segments), (Turn(f"{g}.{i}"),), return_, return_))
        groups.append(RolloutGroup(RolloutRequest(str(g), TaskInstance("t")), tuple(rollouts)))
    assert any(s.ended_mask is not None for group in groups for r in group.rollouts for s in r.segments)
    return groups


def advantages(returns: Sequence[float], normalize_std: bool) -> list[float]:
    mean = sum(returns) / len(returns)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in returns) / len(returns))
    return [(r - mean) / (deviation + 1e-4) if normalize_std else r - mean for r in returns]


class SlowLearner:
    """GRPO as the papers write it."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.policy: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.initial, self.reference = copy.deepcopy(self.policy), copy.deepcopy(self.policy)
        self.options = options
        self.num_steps = 0
        self.first = {name: torch.zeros_like(p) for name, p in self.policy.named_parameters()}
        self.second = {name: torch.zeros_like(p) for name, p in self.policy.named_parameters()}

    def logprobs(self, model: Any, segment: Segment) -> Tensor:
        ids = torch.tensor(segment.token_ids.tolist())
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        return torch.stack(
            [torch.log_softmax(logits[t - 1] / TEMPERATURE, -1)[ids[t]] for t in np.flatnonzero(segment.loss_mask)]
        )

    def update(self, groups: Sequence[RolloutGroup]) -> None:
        o = self.options
        number = 1 if o["minibatch_size"] is None else sum(len(g.rollouts) for g in groups) // o["minibatch_size"]
        size = len(groups) // number
        with torch.no_grad():
            old = {s: self.logprobs(self.policy, s) for g in groups for r in g.rollouts for s in r.segments}
            ref = {s: self.logprobs(self.reference, s) for s in old}
        for _ in range(o["num_epochs"]):
            for start in range(0, len(groups), size):
                self.policy.zero_grad()
                self.loss(groups[start : start + size], old, ref).backward()
                self.step()
        with torch.no_grad():
            for mine, theirs in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
                mine.copy_((1 - o["ref_update_rate"]) * mine + o["ref_update_rate"] * theirs)

    def loss(self, groups: Sequence[RolloutGroup], old: dict[Segment, Tensor], ref: dict[Segment, Tensor]) -> Tensor:
        o = self.options
        losses: list[list[Tensor]] = []  # of each rollout, those of the tokens that are trained
        lengths = []
        for group in groups:
            returns = [rollout.return_ for rollout in group.rollouts]
            for rollout, a in zip(group.rollouts, advantages(returns, o["normalize_std"]), strict=True):
                losses.append([])
                lengths.append(rollout.num_response_tokens)
                for segment in rollout.segments:
                    trained = segment.loss_mask
                    if o["overlong_filtering"] and segment.ended_mask is not None:
                        trained = segment.ended_mask
                    keep = torch.tensor(trained[segment.loss_mask].tolist())
                    now = self.logprobs(self.policy, segment)[keep]
                    before, reference = old[segment][keep], ref[segment][keep]
                    for n, t in enumerate(np.flatnonzero(trained)):
                        ratio = torch.exp(now[n] - before[n])
                        if o["loss"] == "gspo":
                            ratio = torch.exp((now - before).mean())
                        clipped = torch.clamp(ratio, 1 - o["clip_param"], 1 + o["clip_param_high"])
                        surrogate = torch.minimum(ratio * a, clipped * a)
                        if o["loss"] == "cispo":
                            surrogate = min(ratio.item(), 1 + o["clip_param_high"]) * a * now[n]
                        mismatch = math.exp(before[n].item() - float(segment.logprobs[t]))
                        surrogate = surrogate * min(mismatch, o["mismatch_clip"])
                        d = reference[n] - now[n]
                        losses[-1].append(-surrogate + o["kl_coeff"] * (torch.exp(d) - d - 1))
        sums = [sum(tokens, torch.zeros(())) for tokens in losses]
        if o["loss_aggregation"] == "sequence_mean":
            return sum((s / n for s, n in zip(sums, lengths, strict=True)), torch.zeros(())) / len(losses)
        whole = sum(sums, torch.zeros(()))
        if o["loss_aggregation"] == "token_mean":
            return whole / sum(map(len, losses))
        return whole / (len(losses) * MAX_ROLLOUT_TOKENS)

    @torch.no_grad()
    def step(self) -> None:
        """Clips the gradient's norm; then AdamW (Loshchilov and Hutter, 2019)."""
        o = self.options
        norm = math.sqrt(sum((p.grad.double() ** 2).sum().item() for p in self.policy.parameters()))
        self.num_steps += 1
        for name, p in self.policy.named_parameters():
            g, m, v = p.grad * min(1.0, o["grad_clip"] / norm), self.first[name], self.second[name]
            m.copy_(BETA_1 * m + (1 - BETA_1) * g)
            v.copy_(BETA_2 * v + (1 - BETA_2) * g**2)
            m_hat, v_hat = m / (1 - BETA_1**self.num_steps), v / (1 - BETA_2**self.num_steps)
            p.copy_(p - o["lr"] * (m_hat / (v_hat.sqrt() + 1e-8) + o["weight_decay"] * p))


def full(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.full)


@pytest.mark.parametrize(
    ("num_epochs", "minibatch_size", "kl_coeff"),
    [(1, None, 0.1), (2, None, 0.0), (2, 8, 0.1), full(1, None, 0.0), full(2, None, 0.1), full(2, 8, 0.0)],
)
@pytest.mark.parametrize("aggregation", get_args(LossAggregation))
def test_two_updates_are_those_of_a_slow_loop(
    tiny_model: str, aggregation: LossAggregation, num_epochs: int, minibatch_size: int | None, kl_coeff: float
) -> None:
    compare(
        tiny_model,
        loss_aggregation=aggregation,
        num_epochs=num_epochs,
        minibatch_size=minibatch_size,
        kl_coeff=kl_coeff,
        normalize_std=aggregation != "constant",
        overlong_filtering=num_epochs == 2,
    )


@pytest.mark.parametrize("loss", ["gspo", "cispo"])
def test_so_are_those_of_other_losses(tiny_model: str, loss: Loss) -> None:
    compare(
        tiny_model,
        loss=loss,
        loss_aggregation="sequence_mean",
        num_epochs=2,
        minibatch_size=None,
        kl_coeff=0.1,
        normalize_std=True,
        overlong_filtering=True,
    )


def compare(model: str, **options: Any) -> None:
    """Two batches, with the same rollouts for both learners."""
    options = {
        "loss": "grpo",
        "clip_param": 0.003,
        "clip_param_high": 0.008,
        "mismatch_clip": 2.0,
        "grad_clip": 0.5,
        "weight_decay": 0.1,
        "adam_betas": (BETA_1, BETA_2),
        "lr": 5e-5,
        "ref_update_interval": 1,
        "ref_update_rate": 0.3,
        **options,
    }
    slow, learner = SlowLearner(model, options), make_learner(model, temperature=TEMPERATURE, **options)
    reported: dict[str, float] = {}
    for seed in range(2):
        groups = make_groups(seed)
        slow.update(groups)
        scored = [score(group, None, normalize_std=options["normalize_std"]) for group in groups]
        [batch] = make_batches(
            scored, TrainingSettings.of(learner.config), max_rollout_tokens=MAX_ROLLOUT_TOKENS, num_learners=1
        )
        reported = update(learner, batch)
    if options["num_epochs"] == 2:
        assert 0 < reported["clip_fraction"] < 1
    names = learner.model.trainable
    parameters = largest_difference(learner.model.gather("master", names), dict(slow.policy.named_parameters()))
    moved = largest_difference(dict(slow.policy.named_parameters()), dict(slow.initial.named_parameters()))
    # AdamW makes steps of about the learning rate of gradients that are little more than rounding errors.
    assert parameters < 1e-5 < moved / 10
    # The first moments are the gradients of all updates, as they are.
    moments = largest_difference(learner.model.gather("exp_avg", names), slow.first)
    scale = max(moment.abs().max().item() for moment in slow.first.values())
    assert moments < 2e-5 * scale


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)
