"""Does generation overlap with training? Time of an iteration, synchronous, asynchronous and streamed.

    python benchmarks/async_overlap.py

Generation is simulated: a response takes a given time, drawn between half of it and all of it, and computes nothing.
The learner is real, and so is all between the two. An iteration generates for G seconds and trains, which here means
all but waiting for rollouts, for T; synchronous it takes G + T, asynchronous it should take hardly more than the longer
one. T is measured in the very iterations that are judged, since a busy machine changes it from one to the next.

Streamed, the learner works on groups that are in while others are generated, see
:class:`rllib_exit.grpo.update.Update`. That takes an engine that gets a batch little by little: here it takes so many
``--rounds`` for it. G and T are those of a synchronous iteration with the same settings, just before.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from envs.base import Message, Outcome, SelfImprovementEnv, Task
from rllib_exit.env_runners.generator import Generation, SamplingParams
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.models import SMOLLM2

STREAMED_PROMPTS = 16  # of a batch that is streamed
PROMPT_TOKENS = 48  # at most


class HashEnv(SelfImprovementEnv):
    """Takes any response; its quality is as good as random."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__([Task(f"{i}", f"Say something about the number {i}.") for i in range(64)])

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "user", "content": task.prompt}]

    def respond(self, task: Task, response: str) -> Outcome:
        return Outcome(hashlib.sha256(response.encode()).digest()[0] / 255)


class SimulatedGenerator:
    """Random tokens, after the time that a file says."""

    def __init__(self, model: str, seconds: Path, *, max_model_len: int, **kwargs: Any) -> None:
        self.seconds = seconds
        self.max_model_len = max_model_len

    def start(self) -> None:
        pass

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        rng = np.random.default_rng(seed)
        await asyncio.sleep(float(self.seconds.read_text()) * rng.uniform(0.5, 1))
        ids = tuple(rng.integers(1000, 2000, sampling.max_tokens - 1).tolist())
        return Generation(ids, np.full(len(ids), -1.0, np.float32))

    async def update_weights(self, files: Sequence[Sequence[np.ndarray]]) -> float:
        return 0.0

    async def patch_weights(self, patches: Sequence[Sequence[Sequence[np.ndarray]]]) -> float:
        return 0.0

    def read_stats(self) -> dict[str, float]:
        return {}

    async def checksums(self) -> dict[str, int]:
        return {}

    async def sleep(self) -> None:
        pass

    async def close(self) -> None:
        pass


def build(args: argparse.Namespace, seconds: Path, max_policy_lag: int, rounds: int = 1, **training: Any) -> Any:
    """An algorithm whose engine has room for a batch in so many rounds."""
    return (
        GRPOConfig()
        .environment(HashEnv)
        .language_model(args.model, dtype="float32", max_model_len=512)
        # An engine with room for no more than one batch: the next one does not start for free.
        .env_runners(num_envs_per_env_runner=args.prompts * args.group_size // rounds)
        .generation(max_response_tokens=args.tokens, generator_class=partial(SimulatedGenerator, seconds=seconds))
        .training(
            lr=1e-6,
            prompts_per_batch=args.prompts,
            rollouts_per_prompt=args.group_size,
            kl_coeff=0.0,
            **{"max_tokens_per_micro_batch": 512, **training},
        )
        .curriculum("grpo")
        .asynchronous(max_policy_lag=max_policy_lag)
        .build_algo()
    )


def measure(algo: Any, seconds: Path, generate_s: float, iterations: int) -> list[dict[str, float]]:
    seconds.write_text(f"{generate_s}")
    rows = []
    for iteration in range(iterations + 2):
        start = time.perf_counter()
        result = algo.train()
        wall = time.perf_counter() - start
        if iteration >= 2:  # until what was begun before is through
            # The timer of rollouts is that of waiting for them.
            train_s = wall - result["timers"]["rollout"]
            longer = max(generate_s, train_s)
            rows.append({"generate_s": generate_s, "train_s": train_s, "iteration_s": wall, "of_longer": wall / longer})
    return rows


def measure_asynchronous(args: argparse.Namespace, seconds: Path) -> dict[str, list[dict[str, float]]]:
    """Synchronous iterations, and asynchronous ones for each ratio of generation to training."""
    synchronous = build(args, seconds, 0)
    train_s = float(np.median([row["train_s"] for row in measure(synchronous, seconds, 0.0, 3)]))
    rows = {"synchronous": measure(synchronous, seconds, train_s, 3)}
    synchronous.stop()
    asynchronous = build(args, seconds, 1)
    for ratio in args.ratios:
        rows[f"asynchronous {ratio:g}"] = measure(asynchronous, seconds, ratio * train_s, args.iterations)
    asynchronous.stop()
    return rows


def measure_streamed(args: argparse.Namespace, seconds: Path) -> list[dict[str, float]]:
    """Synchronous and streamed iterations by turns, generation being about as long as training."""
    args = argparse.Namespace(**{**vars(args), "prompts": STREAMED_PROMPTS})
    seconds.write_text("0")
    passes = {"max_tokens_per_micro_batch": args.group_size * args.tokens + PROMPT_TOKENS}  # one group each
    synchronous = build(args, seconds, 0, args.rounds, **passes)
    train_s = float(np.median([row["train_s"] for row in measure(synchronous, seconds, 0.0, 1)]))
    seconds.write_text(f"{train_s / (0.75 * args.rounds)}")
    streamed = build(args, seconds, 0, args.rounds, streamed_update=True, **passes)
    rows = []
    for iteration in range(args.iterations + 1):
        start = time.perf_counter()
        generate_s = synchronous.train()["timers"]["rollout"]
        train_s = time.perf_counter() - start - generate_s
        start = time.perf_counter()
        streamed.train()
        wall = time.perf_counter() - start
        if iteration:
            longer = max(generate_s, train_s)
            rows.append({"generate_s": generate_s, "train_s": train_s, "iteration_s": wall, "of_longer": wall / longer})
    synchronous.stop()
    streamed.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32, help="of a response")
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.5, 1.0, 2.0], help="G / T; none: streamed only")
    parser.add_argument("--rounds", type=int, default=16, help="in which the engine generates a batch that is streamed")
    parser.add_argument("--iterations", type=int, default=6, help="of each ratio")
    parser.add_argument("--output", type=Path, default=Path("results/async_overlap.json"))
    args = parser.parse_args()

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as directory:
        seconds = Path(directory) / "seconds"
        seconds.write_text("0")
        rows = measure_asynchronous(args, seconds) if args.ratios else {}
        rows["streamed"] = measure_streamed(args, seconds)
    ray.shutdown()
    print("medians           generate s  train s  iteration s  of the longer one")
    for name, measured in rows.items():
        g, t, wall, ratio = (float(np.median([row[key] for row in measured])) for key in measured[0])
        print(f"{name:16}  {g:10.2f}  {t:7.2f}  {wall:11.2f}  {ratio:17.2f}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"arguments": vars(args), "runs": rows}, indent=1, default=str))


if __name__ == "__main__":
    main()
