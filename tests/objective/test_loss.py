import math
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rllib_exit.objective.loss import LOSSES, grpo_loss, loss_weights, mismatch_weights, token_budget
from rllib_exit.settings import LossAggregation, MismatchMode

AGGREGATIONS: list[LossAggregation] = ["sequence_mean", "token_mean", "constant"]


def random_batch(rng, num_rollouts, with_filtered=True):
    """Ragged rollouts of 1 to 3 segments; a segment is a dict of lists."""
    rollouts = []
    for _ in range(num_rollouts):
        segments = []
        for _ in range(rng.integers(1, 4)):
            n = int(rng.integers(1, 9))
            segments.append({k: rng.normal(-1, 0.5, n).tolist() for k in ("logprobs", "old", "rollout", "ref")})
        rollouts.append({"segments": segments, "advantage": rng.normal(), "trained": rng.random() < 0.8})
    if not any(r["trained"] for r in rollouts):
        rollouts[0]["trained"] = True
    return rollouts


def reference_loss(
    rollouts, aggregation, max_rollout_tokens, *, loss="grpo", low=0.2, high=0.2, beta=0.0, bound=None, mode=None
):
    """The loss as the papers write it, and its derivatives by each segment's log π_θ: one Python float per token."""
    per_rollout = []
    for rollout in rollouts:
        a, terms = rollout["advantage"], []
        for segment in rollout["segments"]:
            tokens = list(zip(*(segment[k] for k in ("logprobs", "old", "rollout", "ref")), strict=True))
            ratios = [math.exp(logp - old) for logp, old, _, _ in tokens]
            if loss == "gspo":
                ratios = [math.prod(ratios) ** (1 / len(tokens))] * len(tokens)
            engine = [math.exp(old - gen) for _, old, gen, _ in tokens]
            if mode in ("sequence_truncate", "sequence_mask"):
                engine = [math.prod(engine)] * len(tokens)
            if bound is None:
                engine = [1.0] * len(tokens)
            elif mode in ("token_mask", "sequence_mask"):
                engine = [c if c <= bound else 0.0 for c in engine]
            else:
                engine = [min(c, bound) for c in engine]
            of_segment = []
            for (logp, _, _, ref), rho, c in zip(tokens, ratios, engine, strict=True):
                if loss == "cispo":
                    slope = min(rho, 1 + high) * a
                    surrogate = slope * logp
                else:
                    bounded = min(max(rho, 1 - low), 1 + high)
                    surrogate = min(rho * a, bounded * a)
                    slope = rho * a if rho * a <= bounded * a else 0.0
                kl = math.exp(ref - logp) - (ref - logp) - 1
                # Every token of a sequence moves the ratio of all of them.
                weight = sum(engine) / len(engine) if loss == "gspo" else c
                of_segment.append((-(c * surrogate - beta * kl), -(weight * slope - beta * (1 - math.exp(ref - logp)))))
            terms.append(of_segment)
        per_rollout.append(terms)
    numbers = [sum(map(len, terms)) for terms in per_rollout]
    trained = sum(n for n, rollout in zip(numbers, rollouts, strict=True) if rollout["trained"])
    divisors = {
        "sequence_mean": [len(rollouts) * n for n in numbers],
        "token_mean": [trained] * len(rollouts),
        "constant": [len(rollouts) * max_rollout_tokens] * len(rollouts),
    }[aggregation]
    value, slopes = 0.0, []
    for rollout, terms, divisor in zip(rollouts, per_rollout, divisors, strict=True):
        for of_segment in terms:
            value += rollout["trained"] * sum(term for term, _ in of_segment) / divisor
            slopes.append([rollout["trained"] * slope / divisor for _, slope in of_segment])
    return value, slopes


def rows_of(rollouts, aggregation, max_rollout_tokens):
    """The batch's segments, each with its advantage and weight."""
    rows = [(i, r, s) for i, r in enumerate(rollouts) for s in r["segments"]]
    weights_R = loss_weights(
        np.array([len(s["old"]) for _, _, s in rows]),
        np.array([i for i, _, _ in rows]),
        np.array([r["trained"] * len(s["old"]) for _, r, s in rows]),
        aggregation=aggregation,
        num_rollouts=len(rollouts),
        max_rollout_tokens=max_rollout_tokens,
    )
    return [(s, r["advantage"], w) for (_, r, s), w in zip(rows, weights_R, strict=True)]


def loss_of(rows, **kwargs):
    """``grpo_loss`` of some rows in one go, with the gradient for each row's log-probabilities."""
    float64 = partial(torch.tensor, dtype=torch.float64)
    cat = {k: float64([x for s, _, _ in rows for x in s[k]]) for k in rows[0][0]}
    lengths = torch.tensor([len(s["old"]) for s, _, _ in rows])
    advantages_N, weights_N, rows_N = (
        torch.repeat_interleave(values_R, lengths)
        for values_R in (
            float64([a for _, a, _ in rows]),
            float64([w for _, _, w in rows]),
            torch.arange(len(rows)).flip(0) * 7,
        )
    )
    logprobs_N = cat["logprobs"].requires_grad_()
    loss, stats = grpo_loss(
        logprobs_N, cat["old"], cat["rollout"], cat["ref"], advantages_N, weights_N, rows_N, **kwargs
    )
    loss.backward()
    assert logprobs_N.grad is not None
    return loss.item(), stats, logprobs_N.grad.split(lengths.tolist())


@given(
    st.integers(0, 2**32),
    st.integers(1, 6),
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from([None, 0.28]),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([None, 1.5]),
    st.sampled_from(get_args(MismatchMode)),
)
def test_agrees_with_the_slow_reference_however_it_is_cut(
    seed, num_rollouts, loss, aggregation, high, beta, bound, mode
):
    rng = np.random.default_rng(seed)
    rollouts = random_batch(rng, num_rollouts)
    expected, slopes = reference_loss(
        rollouts, aggregation, 24, loss=loss, high=0.2 if high is None else high, beta=beta, bound=bound, mode=mode
    )
    rows = rows_of(rollouts, aggregation, 24)
    kwargs = {
        "loss": loss,
        "clip_param": 0.2,
        "clip_param_high": high,
        "kl_coeff": beta,
        "mismatch_clip": bound,
        "mismatch_mode": mode,
    }
    whole, stats, grads = loss_of(rows, **kwargs)
    assert whole == pytest.approx(expected, abs=1e-6)
    for grad, slope in zip(grads, slopes, strict=True):
        np.testing.assert_allclose(grad, slope, atol=1e-6)

    order = rng.permutation(len(rows))
    num_parts = int(rng.integers(1, len(rows) + 1))
    parts = [part.tolist() for part in np.array_split(order, num_parts)]
    results = [loss_of([rows[i] for i in part], **kwargs) for part in parts]
    assert sum(loss for loss, _, _ in results) == pytest.approx(expected, abs=1e-6)
    for part, (_, _, part_grads) in zip(parts, results, strict=True):
        for i, grad in zip(part, part_grads, strict=True):
            np.testing.assert_allclose(grad, slopes[i], atol=1e-6)
    for name, value in stats.items():
        combine = max if name.endswith("_max") else sum
        assert combine(float(s[name]) for _, s, _ in results) == pytest.approx(float(value), abs=1e-4)


def test_a_sequence_has_one_ratio_and_is_clipped_as_a_whole():
    # The ratios e and 1/e of one row cancel, those of the other do not.
    now = torch.tensor([-1.0, -3.0, -1.0, -1.5], dtype=torch.float64, requires_grad=True)
    old = torch.full_like(now, -2.0).detach()
    one, rows_N = torch.ones_like(old), torch.tensor([3, 3, 1, 1])
    kwargs = {"loss": "gspo", "clip_param": 0.2, "kl_coeff": 0.0}
    loss, stats = grpo_loss(now, old, old, None, one, one, rows_N, **kwargs)
    loss.backward()
    assert loss.item() == pytest.approx(-(2 * 1 + 2 * 1.2)) and stats["clipped"] == 2
    assert now.grad is not None and now.grad.tolist() == pytest.approx([-1, -1, 0, 0])
    # Without rows all tokens are of one.
    alone = grpo_loss(now[2:], old[2:], old[2:], None, one[2:], one[2:], **kwargs)[0]
    assert alone.item() == pytest.approx(-2.4)


def test_a_clipped_ratio_of_cispo_keeps_its_gradient():
    now = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    old, one = torch.tensor([-3.0, -0.5], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    loss, stats = grpo_loss(now, old, old, None, one, one, loss="cispo", clip_param=0.2, kl_coeff=0.0)
    loss.backward()
    # Only from above: e^2 is clipped to 1.2, e^-0.5 stays.
    assert now.grad is not None and now.grad.tolist() == pytest.approx([-1.2, -math.exp(-0.5)])
    assert stats["clipped"] == 1


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_truncate", [2.0, 0.5, 1.5, 1.6]),
        ("token_mask", [0.0, 0.5, 1.5, 1.6]),
        ("sequence_truncate", [2.0, 2.0, 2.0, 2.0]),
        ("sequence_mask", [2.0, 2.0, 0.0, 0.0]),
    ],
)
def test_mismatch_weights_of_tokens_and_sequences_are_truncated_or_masked(mode, expected):
    weights_N = torch.tensor([4.0, 0.5, 1.5, 1.6], dtype=torch.float64)
    rows_N = torch.tensor([0, 0, 1, 1])
    bound = 2.0 + 1e-9  # the first row's weight is 2 up to rounding
    found_N = mismatch_weights(weights_N.log(), torch.zeros_like(weights_N), rows_N, bound=bound, mode=mode)
    assert found_N.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_of_a_small_batch(aggregation):
    expected = {
        "sequence_mean": [1 / (3 * 6), 1 / (3 * 6), 0, 1 / (3 * 5)],
        "token_mean": [1 / 11, 1 / 11, 0, 1 / 11],
        "constant": [1 / 30, 1 / 30, 0, 1 / 30],
    }
    weights_R = loss_weights(
        [2, 4, 7, 5],
        [8, 8, 3, 5],
        [2, 4, 0, 5],
        aggregation=aggregation,
        num_rollouts=3,
        max_rollout_tokens=10,
    )
    np.testing.assert_allclose(weights_R, expected[aggregation])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_are_finite_where_nothing_is_trained(aggregation):
    kwargs = {"aggregation": aggregation, "num_rollouts": 2, "max_rollout_tokens": 10}
    assert loss_weights([3, 4], [0, 1], [0, 0], **kwargs).tolist() == [0, 0]
    assert np.isfinite(loss_weights([0, 4], [0, 1], [0, 4], **kwargs)).all()
    assert loss_weights([], [], [], **kwargs).shape == (0,)


def test_a_response_that_is_left_out_counts_in_the_length_of_its_rollout():
    weights = {
        aggregation: loss_weights(
            [6, 4], [0, 1], [2, 4], aggregation=aggregation, num_rollouts=2, max_rollout_tokens=10
        ).tolist()
        for aggregation in AGGREGATIONS
    }
    assert weights == {"sequence_mean": [1 / 12, 1 / 8], "token_mean": [1 / 6, 1 / 6], "constant": [1 / 20, 1 / 20]}


def test_constant_divides_by_what_a_rollout_may_have_over_all_of_its_turns():
    assert token_budget(1, 1024, 8192) == 1024  # Dr. GRPO's own case
    assert token_budget(3, 1024, 8192) == 3072
    assert token_budget(60, 1024, 8192) == token_budget(None, 1024, 8192) == 8192
    # The weights of a rollout of three responses, each as long as it may be, add up to its share of the batch.
    budget = token_budget(3, 10, 100)
    kwargs = {"aggregation": "constant", "num_rollouts": 2, "max_rollout_tokens": budget}
    weights_R = loss_weights([10, 20, 1], [0, 0, 1], [10, 20, 1], **kwargs)
    assert weights_R @ [10, 20, 0] == pytest.approx(1 / 2)


def test_rejects_unknown_aggregation():
    with pytest.raises(ValueError, match="loss_aggregation is 'mean'"):
        loss_weights([1], [0], [1], aggregation="mean", num_rollouts=1, max_rollout_tokens=1)  # type: ignore[arg-type]


def one_token(ratio, advantage, **kwargs):
    logprob = torch.tensor([-1.0 + math.log(ratio)], requires_grad=True)
    old = torch.tensor([-1.0])
    one = torch.ones(1)
    loss, stats = grpo_loss(
        logprob, old, kwargs.pop("rollout", old), None, advantage * one, one, clip_param=0.2, kl_coeff=0.0, **kwargs
    )
    loss.backward()
    assert logprob.grad is not None
    return loss.item(), logprob.grad.item(), int(stats["clipped"])


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [(1.3, 1, 1), (1.1, 1, 0), (0.7, 1, 0), (1.3, -1, 0), (0.9, -1, 0), (0.7, -1, 1), (1.3, 0, 0)],
)
def test_clips_only_against_the_advantage(ratio, advantage, clipped):
    loss, grad, num_clipped = one_token(ratio, advantage)
    assert num_clipped == clipped
    bound = 1.2 if ratio > 1 else 0.8
    assert loss == pytest.approx(-advantage * (bound if clipped else ratio), abs=1e-6)
    assert grad == pytest.approx(0 if clipped else -advantage * ratio, abs=1e-6)


def test_asymmetric_clipping():
    assert one_token(1.25, 1, clip_param_high=0.28)[2] == 0
    assert one_token(1.3, 1, clip_param_high=0.28)[2] == 1
    assert one_token(0.75, -1, clip_param_high=0.28)[2] == 1


def test_mismatch_weight_is_truncated_and_carries_no_gradient():
    # π_old / π_rollout is e.
    loss, grad, _ = one_token(1.0, 1, rollout=torch.tensor([-2.0]), mismatch_clip=2.0)
    assert (loss, grad) == pytest.approx((-2.0, -2.0))
    loss, grad, _ = one_token(1.0, 1, rollout=torch.tensor([-2.0]), mismatch_clip=5.0)
    assert (loss, grad) == pytest.approx((-math.e, -math.e))
    assert one_token(1.0, 1, rollout=torch.tensor([-2.0]))[0] == pytest.approx(-1)


@given(st.lists(st.tuples(st.floats(-20, 0, width=32), st.floats(-20, 0, width=32)), min_size=1, max_size=20))
def test_kl_is_not_negative_and_zero_at_the_reference(pairs):
    logprobs_N, ref_N = torch.tensor(pairs).T
    zero_N = torch.zeros_like(ref_N)

    def kl(ref_N):
        kwargs: Any = {"clip_param": 0.2, "kl_coeff": 1.0}
        return grpo_loss(logprobs_N, logprobs_N, logprobs_N, ref_N, zero_N, zero_N, **kwargs)[1]["kl"]

    assert kl(ref_N) >= 0
    assert kl(logprobs_N) == 0


def test_kl_without_reference_is_an_error():
    one = torch.ones(1)
    with pytest.raises(ValueError, match=r"kl_coeff is 0\.1"):
        grpo_loss(one, one, one, None, one, one, clip_param=0.2, kl_coeff=0.1)


def test_kl_is_reported_even_if_it_is_not_in_the_loss():
    zero, one = torch.zeros(1), torch.ones(1)
    loss, stats = grpo_loss(-one, -one, -one, -2 * one, zero, one, clip_param=0.2, kl_coeff=0.0)
    assert loss == 0 and stats["kl"] == pytest.approx(math.exp(-1))


def test_no_tokens():
    empty = torch.empty(0, requires_grad=True)
    loss, stats = grpo_loss(empty, empty, empty, empty, empty, empty, clip_param=0.2, kl_coeff=0.1, mismatch_clip=2.0)
    loss.backward()
    assert loss == 0 and all(value == 0 for value in stats.values())
    assert not any(value.requires_grad for value in stats.values())


def test_cispo_counts_the_ratios_above_its_bound_as_clipped_whatever_their_advantage() -> None:
    ratios = torch.tensor([0.3, 1.0, 1.19, 1.21, 2.1, 1.21], dtype=torch.float64)
    advantages = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    _, clipped = LOSSES["cispo"](ratios.log(), torch.zeros_like(ratios), advantages, None, 0.2, 0.2)
    assert clipped.tolist() == [False, False, False, True, True, True]
    _, clipped = LOSSES["cispo"](torch.zeros(1), torch.zeros(1), torch.ones(1), None, 0.0, 0.0)
    assert clipped.tolist() == [False]  # at the bound nothing is cut


def test_a_weight_at_the_bound_is_neither_cut_nor_masked() -> None:
    on_policy = torch.zeros(2)
    for mode in get_args(MismatchMode):
        assert mismatch_weights(on_policy, on_policy, None, bound=1.0, mode=mode).tolist() == [1, 1]


def test_statistics_are_of_all_tokens_whatever_the_tokens_weigh() -> None:
    old = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    now = (old + torch.tensor([0.5, 0.0, -0.5])).requires_grad_()  # the first ratio is clipped
    rollout, reference = old + torch.tensor([0.25, -0.5, 0.0]), now.detach() + torch.tensor([0.0, 1.0, -1.0])
    ones, weights = torch.ones_like(old), torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    _, stats = grpo_loss(now, old, rollout, reference, ones, weights, clip_param=0.2, kl_coeff=0.1)
    assert set(stats) == {"kl", "clipped", "logprob_abs_diff", "logprob_abs_diff_max", "num_tokens"}
    assert not any(value.requires_grad for value in stats.values())
    assert stats["kl"].item() == pytest.approx(math.e - 2 + 1 / math.e)
    assert (stats["clipped"], stats["num_tokens"]) == (1, 3)
    assert stats["logprob_abs_diff"].item() == 0.75 and stats["logprob_abs_diff_max"].item() == 0.5
    # The same loss without a reference has no KL.
    _, stats = grpo_loss(now, old, rollout, None, ones, weights, clip_param=0.2, kl_coeff=0.0)
    assert stats["kl"].item() == 0 and stats["num_tokens"] == 3
