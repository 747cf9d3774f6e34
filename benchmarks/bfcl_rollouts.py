"""What do BFCL's environments cost beside generation? Rolls out concurrent episodes and times the engine.

    python benchmarks/bfcl_rollouts.py --model results/bfcl_sft

Prints, and writes as JSON, two shares: of the episodes' time, what they spend outside the engine (environment, chat
template, tokenizer and waiting for the event loop), and of the wall time, that in which the engine had no open request.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from side_by_side import arguments, write

from envs.base import TaskInstance
from envs.bfcl.env import BFCLEnv
from envs.tool_use.calls import STOP
from rllib_exit.chat import ChatTokenizer
from rllib_exit.env_runners.generator import Generation, SamplingParams
from rllib_exit.env_runners.player import Player
from rllib_exit.env_runners.vllm_generator import VLLMGenerator
from rllib_exit.models import SMOLLM2, resolve_model
from rllib_exit.rollouts import Rollout, RolloutRequest
from rllib_exit.scale import cpu_dtype

ENV_CONFIG = {"split": "train", "schemas": "short"}


class TimedGenerator:
    """A generator that knows how long it had open requests."""

    def __init__(self, generator: VLLMGenerator) -> None:
        self.generator = generator
        self.reset()

    def reset(self) -> None:
        self.open, self.busy_s, self.since, self.tokens = 0, 0.0, 0.0, 0
        self.requests_s = 0.0  # of all requests together

    @property
    def max_model_len(self) -> int:
        return self.generator.max_model_len

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        start = time.perf_counter()
        if self.open == 0:
            self.since = start
        self.open += 1
        generation = await self.generator.generate(prompt_ids, sampling, seed)
        end = time.perf_counter()
        self.open -= 1
        self.requests_s += end - start
        if self.open == 0:
            self.busy_s += end - self.since
        self.tokens += len(generation.token_ids)
        return generation

    def start(self) -> None:
        self.generator.start()

    async def update_weights(self, files: Sequence[Sequence[np.ndarray]]) -> float:
        return await self.generator.update_weights(files)

    async def patch_weights(self, patches: Sequence[Sequence[Sequence[np.ndarray]]]) -> float:
        return await self.generator.patch_weights(patches)

    def read_stats(self) -> Mapping[str, float]:
        return self.generator.read_stats()

    async def checksums(self) -> dict[str, Any]:
        return await self.generator.checksums()

    async def sleep(self) -> None:
        await self.generator.sleep()

    async def close(self) -> None:
        await self.generator.close()


class TimedPlayer(Player):
    """A player that knows how long its episodes took together."""

    episodes_s = 0.0

    async def _attempt(self, *args: Any, **kwargs: Any) -> Rollout:
        start = time.perf_counter()
        try:
            return await super()._attempt(*args, **kwargs)
        finally:
            self.episodes_s += time.perf_counter() - start


async def run(args: argparse.Namespace) -> list[dict[str, float]]:
    model = resolve_model(args.model)
    generator = TimedGenerator(
        VLLMGenerator(model, dtype=cpu_dtype(), max_model_len=3072, engine_args={"max_num_seqs": args.concurrent})
    )
    task_ids = list(BFCLEnv({**ENV_CONFIG, "limit": 8}).tasks)
    player = TimedPlayer(
        lambda: BFCLEnv(ENV_CONFIG),
        args.concurrent,
        generator=generator,
        chat=ChatTokenizer(model),
        sampling=SamplingParams(max_tokens=96, stop=STOP),
    )
    rows = []
    for repeat in range(args.repeats + 1):
        generator.reset()
        player.episodes_s = 0.0
        start = time.perf_counter()
        groups = await asyncio.gather(
            *(
                player.roll_out(
                    RolloutRequest(f"{i}", TaskInstance(task), seed=10**6 * repeat + i),
                    args.concurrent // len(task_ids),
                )
                for i, task in enumerate(task_ids)
            )
        )
        wall = time.perf_counter() - start
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        row = {
            "episodes": len(rollouts),
            "turns": sum(len(rollout.turns) for rollout in rollouts),
            "tokens": generator.tokens,
            "wall_s": wall,
            "outside_engine_fraction": 1 - generator.requests_s / player.episodes_s,
            "engine_idle_fraction": 1 - generator.busy_s / wall,
        }
        if repeat:  # the first one warms up
            rows.append(row)
    await generator.close()
    return rows


def main() -> None:
    parser = arguments(__doc__, "bfcl_rollouts")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--concurrent", type=int, default=32)
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.concurrent = 1, 16
    rows = asyncio.run(run(args))
    medians = {name: float(np.median([row[name] for row in rows])) for name in rows[0] if name.endswith("_fraction")}
    write(args, rows, medians=medians)
    outside, idle = medians.values()
    print(f"medians: {100 * outside:.2f} % of the episodes' time outside the engine,", end=" ")
    print(f"{100 * idle:.2f} % of the wall time without an open request")


if __name__ == "__main__":
    main()
