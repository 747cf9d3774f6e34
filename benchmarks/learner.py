"""The learner's update beside bare PyTorch over the same real tokens, without padding.

    python benchmarks/learner.py

Bare PyTorch is Hugging Face's model on packs of whole rows with a block-diagonal mask, the output layer at trained
positions only, cross-entropy, backward, clipping and AdamW. Contenders:

- ``bare``: that, on packs made beforehand;
- ``learner``: ``GRPOTorchLearner.update`` from rows to reported metrics, entropies and log-probabilities;
- ``learner, KL``: the same with a reference policy (``--kl``).

Two workloads: rows that have nothing in common, and groups of rollouts that share their prompts, which the learner
computes once and bare PyTorch once for each. Lengths are ragged: prompts of 30 to 90 tokens, responses of 4 to
``--response`` tokens. Tokens per second count every token of every row, shared or not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.learner.training_data import TrainingData
from side_by_side import alternate, arguments, medians, write
from transformers import AutoModelForCausalLM

from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.learner.batch import TrainBatch
from rllib_exit.learner.torch_learner import GRPOTorchLearner
from rllib_exit.models import SMOLLM2, resolve_model
from rllib_exit.objective.packing import Pack, Row, pack

WORKLOADS = {"distinct prompts": 1, "groups of 8": 8}


def make_rows(rng: np.random.Generator, num_rows: int, group_size: int, response: int) -> tuple[Row, ...]:
    rows = []
    for _ in range(num_rows // group_size):
        prompt = rng.integers(1000, 40_000, rng.integers(30, 91))
        for _ in range(group_size):
            answer = rng.integers(1000, 40_000, rng.integers(4, response + 1))
            ids = np.concatenate([prompt, answer]).astype(np.int32)
            mask = np.arange(len(ids)) >= len(prompt)
            logprobs = np.where(mask, -10, 0).astype(np.float32)
            rows.append(Row(ids, mask, logprobs, float(rng.normal()), 1 / (num_rows * len(answer))))
    return tuple(rows)


def make_learner(model: str, dtype: str, max_tokens: int, kl_coeff: float) -> GRPOTorchLearner:
    config = (
        GRPOConfig()
        .language_model(model, dtype=dtype)
        .training(lr=1e-6, max_tokens_per_micro_batch=max_tokens, kl_coeff=kl_coeff)
        .curriculum("grpo")
        .debugging(seed=0)
    )
    space = gym.spaces.Text(8)
    learner = GRPOTorchLearner(
        config=config, module_spec=config.get_multi_rl_module_spec(spaces={"default_policy": (space, space)})
    )
    learner.build()
    return learner


class Bare:
    """What one would write by hand for one update."""

    def __init__(self, path: str, dtype: str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.dtype = getattr(torch, dtype)

    def update(self, packs: Sequence[Pack]) -> None:
        for p in packs:
            with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
                logits = self.model(
                    input_ids=p.token_ids_T[None],
                    position_ids=p.position_ids_T[None],
                    attention_mask=p.attention_mask(),
                    logits_to_keep=p.sources_N,
                    use_cache=False,
                ).logits[0]
            loss = torch.nn.functional.cross_entropy(logits.float(), p.targets_N, reduction="none")
            (loss * p.weights_N).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def main() -> None:
    parser = arguments(__doc__, "learner")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--response", type=int, default=48, help="the most tokens of a response")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of a micro-batch")
    parser.add_argument("--kl", action="store_true", help="also with a reference policy")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.response, args.repeats = 8, 8, 1
    path = resolve_model(args.model)
    learners = {"learner": make_learner(path, args.dtype, args.max_tokens, 0.0)}
    if args.kl:
        learners["learner, KL"] = make_learner(path, args.dtype, args.max_tokens, 0.001)
    bare = Bare(path, args.dtype)
    table, runs = [], {}
    for workload, group_size in WORKLOADS.items():
        rows = make_rows(np.random.default_rng(0), args.rows, group_size, args.response)
        tokens = sum(len(row.token_ids) for row in rows)
        packs = pack(rows, args.max_tokens, share_prefixes=False)
        data: Any = TrainingData(batch=TrainBatch((rows,)))  # type: ignore[arg-type]

        def rate(update: Callable[[], object], tokens: int = tokens) -> float:
            start = time.perf_counter()
            update()
            return tokens / (time.perf_counter() - start)

        contenders: dict[str, Callable[[], float]] = {"bare": lambda packs=packs: rate(lambda: bare.update(packs))}
        for name, learner in learners.items():
            contenders[name] = lambda learner=learner, data=data: rate(lambda: learner.update(training_data=data))
        figures = alternate(contenders, args.repeats)
        runs[workload] = figures
        middle = medians(figures)
        for name in contenders:
            # Turns beside each other saw the same load.
            ratio = statistics.median(f / b for f, b in zip(figures[name], figures["bare"], strict=True))
            table.append(
                {"workload": workload, "tokens": tokens, "contender": name, "tokens/s": middle[name], "/ bare": ratio}
            )
    write(args, table, tokens_per_s=runs)


if __name__ == "__main__":
    main()
