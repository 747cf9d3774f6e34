import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rllib_exit.objective import packing
from rllib_exit.objective.loss import grpo_loss
from rllib_exit.objective.packing import BLOCK, Pack, Row, pack, split, unpack

VOCAB = 64


def make_rows(rng, num_groups=3, group_size=4, max_prompt=12, max_rest=14):
    """Groups that share a prompt, which begins like the others; the rests hold generated tokens and tool results.

    Some rests begin alike, are equal, or are the beginning of another.
    """
    rows = []
    instructions = rng.integers(0, VOCAB, rng.integers(1, max_prompt + 1))
    for _ in range(num_groups):
        prompt = np.concatenate([instructions, rng.integers(0, VOCAB, rng.integers(0, max_prompt + 1))])
        favourite = rng.integers(0, VOCAB, max_rest)
        for _ in range(rng.integers(1, group_size + 1)):
            rest = rng.integers(0, VOCAB, rng.integers(1, max_rest + 1))
            alike = rng.integers(0, len(rest) + 1) if rng.random() < 0.5 else 0
            rest[:alike] = favourite[:alike]
            mask = np.concatenate([np.zeros(len(prompt), bool), [True], rng.random(len(rest) - 1) < 0.7])
            tokens = np.concatenate([prompt, rest]).astype(np.int32)
            logprobs = np.where(mask, rng.normal(-1, 0.3, len(mask)), 0).astype(np.float32)
            rows.append(Row(tokens, mask, logprobs, float(rng.normal()), float(rng.random())))
    rng.shuffle(rows)  # type: ignore[arg-type]
    return rows


def spans(pack_: Pack):
    """For each row of a pack, the flat positions of its tokens."""
    for n, i in enumerate(dict.fromkeys(pack_.rows_N.tolist())):
        yield i, ((pack_.first_row_T <= n) & (n <= pack_.last_row_T)).nonzero()[:, 0]


def test_values_of_packs_go_back_to_the_tokens_of_their_rows():
    minibatches = [
        [
            dataclasses.replace(row, key=(f"minibatch {m}", i, 0))
            for i, row in enumerate(make_rows(np.random.default_rng(m)))
        ]
        for m in range(2)
    ]
    empty = pack([Row(np.zeros(2, np.int32), np.array([False, True]), np.zeros(2, np.float32), 0.0, 0.0)], 9)
    packs = [pack(minibatches[0], 40), [*empty, *pack(minibatches[1], 10**6)]]
    values = [pack_.rollout_logprobs_N for packed in packs for pack_ in packed]
    by_key = unpack(minibatches, packs, values)
    assert len(packs[0]) > 1 and by_key.keys() == {row.key for rows in minibatches for row in rows}
    for row in itertools.chain(*minibatches):
        assert by_key[row.key].dtype == np.float32
        np.testing.assert_array_equal(by_key[row.key], np.where(row.loss_mask, row.logprobs, np.nan).astype(np.float32))


layouts = (st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5), st.integers(1, 80), st.booleans())


@given(*layouts)
def test_every_row_sees_exactly_itself(seed, num_groups, group_size, max_tokens, share_prefixes):
    rows = make_rows(np.random.default_rng(seed), num_groups, group_size)
    packs = pack(rows, max_tokens, share_prefixes)
    seen = []
    for pack_ in packs:
        mask_TT = pack_.attention_mask()[0, 0]
        num_tokens = len(pack_.token_ids_T)
        assert mask_TT.shape == (num_tokens, num_tokens) and mask_TT.dtype == torch.bool
        assert not mask_TT.triu(1).any() and mask_TT.diagonal().all()
        in_pack = list(spans(pack_))
        assert num_tokens <= max_tokens or len(in_pack) == 1
        for i, span in in_pack:
            row = rows[i]
            seen.append(i)
            length = len(row.token_ids)
            assert pack_.token_ids_T[span].tolist() == row.token_ids.tolist()
            assert pack_.position_ids_T[span].tolist() == list(range(length))
            # Among its own tokens a row is causal; it sees no others.
            for nth, position in enumerate(span.tolist()):
                assert mask_TT[position].nonzero()[:, 0].tolist() == span[: nth + 1].tolist()
            mine = pack_.rows_N == i
            targets = np.flatnonzero(row.loss_mask)
            assert pack_.sources_N[mine].tolist() == span[targets - 1].tolist()
            assert pack_.targets_N[mine].tolist() == row.token_ids[targets].tolist()
            assert pack_.rollout_logprobs_N[mine].tolist() == row.logprobs[targets].tolist()
            assert set(pack_.advantages_N[mine].tolist()) == {float(np.float32(row.advantage))}
            assert set(pack_.weights_N[mine].tolist()) == {float(np.float32(row.loss_weight))}
    assert sorted(seen) == list(range(len(rows)))


def dense(mask: Any, size: int) -> Tensor:
    """(T, T) what a ``BlockMask`` lets a query see."""
    num_tokens = mask.seq_lengths[0]
    at_T = torch.arange(num_tokens)
    visible_TT = mask.mask_mod(torch.zeros(()), torch.zeros(()), at_T[:, None], at_T)
    seen_TT = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for counts, indices, whole in (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    ):
        for query, count in enumerate(counts[0, 0].tolist()):
            rows = slice(query * size, (query + 1) * size)
            for key in indices[0, 0, query, :count].tolist():
                columns = slice(key * size, (key + 1) * size)
                assert not seen_TT[rows, columns].any()  # no block is computed twice
                seen_TT[rows, columns] = whole or visible_TT[rows, columns]
    return seen_TT


@given(*layouts, st.integers(1, 9))
def test_the_mask_by_blocks_is_the_same(seed, num_groups, group_size, max_tokens, share_prefixes, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", size)
        for pack_ in pack(make_rows(np.random.default_rng(seed), num_groups, group_size), max_tokens, share_prefixes):
            mask_TT = pack_.attention_mask()[0, 0]
            assert torch.equal(dense(pack_.block_mask(), size), mask_TT)


def test_blocks_in_which_nothing_is_seen_are_passed_over():
    rows = [
        Row(np.full(BLOCK * 4, i, np.int32), np.arange(BLOCK * 4) > 0, np.zeros(BLOCK * 4, np.float32), 1.0, 1.0)
        for i in range(8)
    ]
    (pack_,) = pack(rows, 10**6)
    mask: Any = pack_.block_mask()
    # Of 32 × 32 blocks: in each row's triangle of 4 × 4, those below the diagonal are seen whole.
    assert mask.kv_num_blocks.sum() == 8 * 4 and mask.full_kv_num_blocks.sum() == 8 * 6


def test_a_group_pays_for_its_prompt_once():
    prompt = np.arange(10)
    rows = [
        Row(
            np.append(prompt, [20 + i, 30 + i]).astype(np.int32),
            np.arange(12) >= 10,
            np.zeros(12, np.float32),
            1.0,
            1.0,
        )
        for i in range(4)
    ]
    (shared,) = pack(rows, 100)
    assert len(shared.token_ids_T) == 10 + 4 * 2
    assert shared.sources_N.tolist()[::2] == [9] * 4  # the prompt's end predicts each rest's first token
    assert [len(p.token_ids_T) for p in pack(rows, 14)] == [14, 14]  # split, with the prompt in each
    assert [len(p.token_ids_T) for p in pack(rows, 100, share_prefixes=False)] == [48]
    assert [len(p.token_ids_T) for p in pack(rows, 5)] == [12] * 4  # too long for any pack


def test_packs_are_prefix_trees():
    def row(*tokens: int) -> Row:
        length = len(tokens)
        return Row(np.array(tokens, np.int32), np.arange(length) == length - 1, np.zeros(length, np.float32), 1.0, 1.0)

    rows = [row(1, 2, 3, 5), row(9, 8), row(1, 2, 3, 4, 7), row(1, 6), row(1, 2, 3, 5)]
    (pack_,) = pack(rows, 100)
    assert pack_.token_ids_T.tolist() == [1, 2, 3, 4, 7, 5, 6, 9, 8]
    assert pack_.position_ids_T.tolist() == [0, 1, 2, 3, 4, 3, 1, 0, 1]
    assert pack_.rows_N.tolist() == [2, 0, 4, 3, 1]
    assert pack_.sources_N.tolist() == [3, 2, 2, 0, 7]
    assert pack_.last_row_T.tolist() == [3, 2, 2, 0, 0, 2, 3, 4, 4]
    (whole,) = pack(rows, 100, share_prefixes=False)
    assert len(whole.token_ids_T) == sum(len(row.token_ids) for row in rows)


def test_rows_without_trained_tokens_are_dropped():
    row = Row(np.arange(4, dtype=np.int32), np.zeros(4, bool), np.zeros(4, np.float32), 1.0, 1.0)
    assert pack([row], 10) == [] == pack([], 10)
    trained = Row(row.token_ids, np.arange(4) == 3, row.logprobs, 1.0, 1.0)
    (pack_,) = pack([row, trained], 10)
    assert pack_.rows_N.tolist() == [1]


def test_rejects_a_trained_first_token_and_no_room():
    row = Row(np.arange(4, dtype=np.int32), np.ones(4, bool), np.zeros(4, np.float32), 1.0, 1.0)
    with pytest.raises(ValueError, match="row 0 trains its first token"):
        pack([row], 10)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        pack([], 0)


@given(*layouts[:3])
def test_packs_are_full(seed, num_groups, group_size):
    """No two packs that follow each other would fit into one."""
    rows = make_rows(np.random.default_rng(seed), num_groups, group_size)
    fills = [len(p.token_ids_T) for p in pack(rows, 60, share_prefixes=False)]
    assert all(a + b > 60 for a, b in itertools.pairwise(fills))


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 8), st.integers(1, 5))
def test_parts_hold_every_row_once_and_about_as_many_tokens(seed, num_groups, group_size, parts):
    rows = make_rows(np.random.default_rng(seed), num_groups, group_size)
    split_rows = split(rows, parts)
    assert len(split_rows) == parts
    assert sorted(id(row) for part in split_rows for row in part) == sorted(map(id, rows))
    whole = sum(len(pack_.token_ids_T) for pack_ in pack(rows, 10**6))
    longest = max(len(row.token_ids) for row in rows)
    for part in split_rows:
        # A row lies in the part of its middle; where a prefix is cut, both parts have it.
        assert sum(len(pack_.token_ids_T) for pack_ in pack(part, 10**6)) <= whole / parts + 2 * longest


def test_groups_are_cut_only_where_parts_meet():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, 50).astype(np.int32) for _ in range(8)]
    mask = np.arange(60) >= 50
    rows = [
        Row(np.concatenate([prompt, rng.integers(0, VOCAB, 10).astype(np.int32)]), mask, mask * 1.0, 1.0, 1.0)
        for _ in range(8)
        for prompt in prompts
    ]
    parts = [{row.token_ids[:50].tobytes() for row in part} for part in split(rows, 4)]
    assert [len(part) for part in parts] == [2, 2, 2, 2] and len(set().union(*parts)) == 8
    assert split([], 2) == [[], []] and sum(map(len, split(rows[:1] * 3, 2))) == 3


def test_a_shared_prefix_counts_once_where_rows_are_cut():
    def row(*tokens: int) -> Row:
        mask = np.arange(len(tokens)) > 0
        return Row(np.array(tokens, np.int32), mask, mask * 1.0, 1.0, 1.0)

    # The first four have 12 tokens in common, and together 16, as many as the last has.
    shared = range(1, 13)
    rows = [*(row(*shared, n) for n in range(1, 5)), row(*[20] * 16)]
    assert split(rows, 2) == [rows[:4], rows[4:]]
    # Of 10 tokens, the middle of the second row is at 4.5, then at 5.
    assert [len(part) for part in split([row(*[1] * 2), row(*[2] * 5), row(*[3] * 3)], 2)] == [2, 1]
    assert [len(part) for part in split([row(*[1] * 4), row(*[2] * 2), row(*[3] * 4)], 2)] == [1, 2]


def test_to_moves_every_tensor():
    (pack_, *_) = pack(make_rows(np.random.default_rng(0)), 1000)
    moved = pack_.to("meta")
    assert moved.token_ids_T.device.type == moved.rollout_logprobs_N.device.type == "meta"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=128,
        initializer_range=0.3,  # large, so that the log-probabilities depend on the context
    )
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config).float()


def packed_logprobs(model, pack_, mask=None):
    logits_NV = model(
        input_ids=pack_.token_ids_T[None],
        position_ids=pack_.position_ids_T[None],
        attention_mask=pack_.attention_mask() if mask is None else mask,
        logits_to_keep=pack_.sources_N,
        use_cache=False,
    ).logits[0]
    return logits_NV.log_softmax(-1).gather(-1, pack_.targets_N[:, None])[:, 0]


def row_logprobs(model, row):
    """The row alone, with neither mask nor positions given."""
    tokens_1T = torch.from_numpy(row.token_ids.astype(np.int64))[None]
    logprobs_TV = model(input_ids=tokens_1T, use_cache=False).logits[0].log_softmax(-1)
    targets = torch.from_numpy(np.flatnonzero(row.loss_mask))
    return logprobs_TV[targets - 1, tokens_1T[0, targets]]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("max_tokens", [1, 30, 60, 1000])
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_packed_rows_get_the_log_probabilities_and_gradients_that_they_get_alone(model, max_tokens, share_prefixes):
    rows = make_rows(np.random.default_rng(7), num_groups=4)
    alone = [row_logprobs(model, row) for row in rows]
    for pack_ in pack(rows, max_tokens, share_prefixes):
        logprobs_N = packed_logprobs(model, pack_)
        for i in pack_.rows_N.unique().tolist():
            torch.testing.assert_close(logprobs_N[pack_.rows_N == i], alone[i], atol=1e-5, rtol=1e-5)

    kwargs: Any = {"clip_param": 0.2, "kl_coeff": 0.1, "mismatch_clip": 2.0}
    expected = torch.zeros(())
    for row, logprobs in zip(rows, alone, strict=True):
        rollout = torch.from_numpy(row.logprobs[row.loss_mask])
        advantages, weights = (torch.full_like(rollout, x) for x in (row.advantage, row.loss_weight))
        expected = expected + grpo_loss(logprobs, logprobs.detach(), rollout, rollout, advantages, weights, **kwargs)[0]
    expected_grads = gradients(model, expected)

    total = torch.zeros(())
    for p in pack(rows, max_tokens, share_prefixes):
        logprobs = packed_logprobs(model, p)
        rollout = p.rollout_logprobs_N
        total = (
            total + grpo_loss(logprobs, logprobs.detach(), rollout, rollout, p.advantages_N, p.weights_N, **kwargs)[0]
        )
    assert total.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    for name, grad in gradients(model, total).items():
        scale = expected_grads[name].abs().max()
        torch.testing.assert_close(grad / scale, expected_grads[name] / scale, atol=1e-5, rtol=1e-5)


def test_the_boolean_mask_is_what_parts_the_rows(model):
    (pack_,) = pack(make_rows(np.random.default_rng(7)), 1000)
    causal = torch.ones_like(pack_.attention_mask()).tril()
    difference_N = (packed_logprobs(model, pack_) - packed_logprobs(model, pack_, causal)).abs()
    assert difference_N.max() > 0.1
