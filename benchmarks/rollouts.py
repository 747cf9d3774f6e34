"""Tokens per second through LLMEnvRunner beside bare vLLM, and how much of the prompts comes from the prefix cache.

    python benchmarks/rollouts.py

First the env runner rolls out; every request to the engine is recorded. Bare vLLM then gets the same requests, with
the same sampling and seeds, from the same engine: those of one episode one after the other, the episodes at once. No
environments, no chat template, no decoding, no rollouts. Both begin with an empty prefix cache and take turns.

Workloads: groups on arithmetic, K-step self-improvement on the same, groups of tool-use episodes (BFCL), and groups of
countdown's model of one million parameters, where the engine takes so little that all other work shows, with episodes
of one turn and of ten.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tuned_examples"))

import bfcl_common
import countdown_common
import math_common
from side_by_side import alternate, arguments, medians, write

from envs.base import Outcome, Task, TaskInstance
from envs.countdown.env import CountdownEnv
from rllib_exit.env_runners.environments import make_env
from rllib_exit.env_runners.generator import Generation, SamplingParams
from rllib_exit.env_runners.llm_env_runner import LLMEnvRunner
from rllib_exit.env_runners.vllm_generator import VLLMGenerator
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.rollouts import Rollout, RolloutRequest
from rllib_exit.self_improvement.chain import self_improve
from rllib_exit.self_improvement.evaluator import SEEDS_PER_EPISODE, chain_seed


class TurnsEnv(CountdownEnv):
    """Countdown that goes on, whatever the answers are."""

    max_turns = 10

    def respond(self, task: Task, response: str) -> Outcome:
        return Outcome(0.0, "improve", done=False)


class Recorder(VLLMGenerator):
    """A generator that keeps its requests."""

    requests: list[tuple[list[int], SamplingParams, int]]
    tokens = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        self.requests.append((list(prompt_ids), sampling, seed))
        generation = await super().generate(prompt_ids, sampling, seed)
        self.tokens += len(generation.token_ids)
        return generation

    async def reset(self) -> None:
        self.requests, self.tokens = [], 0
        self.start()
        await self._engine.reset_prefix_cache()

    async def bare(self, prompt_ids: list[int], sampling: SamplingParams, seed: int, request_id: str) -> Any:
        """VLLM's own answer, which nobody looks at."""
        from vllm import SamplingParams as VLLMSamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = VLLMSamplingParams(
            max_tokens=sampling.max_tokens, temperature=sampling.temperature, seed=seed, stop=list(sampling.stop),
            include_stop_str_in_output=True, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        async for output in self._engine.generate({"prompt_token_ids": prompt_ids}, params, request_id):
            return output


class Workload:
    """Something that an env runner does; ``seeds_per_episode`` tells which requests follow each other."""

    def __init__(
        self, config: GRPOConfig, work: Callable[[LLMEnvRunner], Sequence[Awaitable[Any]]], seeds_per_episode: int
    ) -> None:
        config.generation(generator_class=Recorder)
        self.runner = LLMEnvRunner(config=config)
        self.work = work
        self.seeds_per_episode = seeds_per_episode
        self.loop = asyncio.new_event_loop()
        self.cached: list[float] = []

    @property
    def recorder(self) -> Any:
        return self.runner._generator

    def through_env_runner(self) -> float:
        async def run() -> float:
            await self.recorder.reset()
            start = time.perf_counter()
            await asyncio.gather(*self.work(self.runner))
            return self.recorder.tokens / (time.perf_counter() - start)

        return self.loop.run_until_complete(run())

    def bare(self) -> float:
        async def episode(requests: list[tuple[list[int], SamplingParams, int]]) -> list[Any]:
            return [await self.recorder.bare(*request, f"bare-{request[2]}-{time.time_ns()}") for request in requests]

        async def run() -> float:
            episodes = defaultdict(list)
            for request in self.recorder.requests:
                episodes[request[2] // self.seeds_per_episode].append(request)
            await self.recorder.reset()
            start = time.perf_counter()
            outputs = list(itertools.chain.from_iterable(await asyncio.gather(*map(episode, episodes.values()))))
            took = time.perf_counter() - start
            self.cached.append(
                sum(o.num_cached_tokens or 0 for o in outputs) / sum(len(o.prompt_token_ids) for o in outputs)
            )
            return sum(len(o.outputs[0].token_ids) for o in outputs) / took

        return self.loop.run_until_complete(run())

    def close(self) -> None:
        self.loop.run_until_complete(self.runner.close())


def groups(config: GRPOConfig, num: int) -> Workload:
    tasks = list(make_env(config.env, config.env_config).tasks)[:num]
    requests = [RolloutRequest(str(i), TaskInstance(task), seed=1_000_000 * i) for i, task in enumerate(tasks)]
    return Workload(config, lambda runner: [runner.roll_out(request) for request in requests], 1000)


def chains(config: GRPOConfig, num: int) -> Workload:
    evaluation = config.get_evaluation_config_object()
    assert evaluation is not None
    env = make_env(evaluation.env, evaluation.env_config)
    steps = config.self_improvement_steps

    def chain(runner: LLMEnvRunner, task: str, seed: int) -> Awaitable[Any]:
        def play(instance: TaskInstance, k: int) -> Awaitable[Rollout]:
            return runner.play(instance, seed + SEEDS_PER_EPISODE * k, k)

        return self_improve(env, task, steps, play)

    work = [(task, chain_seed(0, i, steps)) for i, task in enumerate(list(env.tasks)[:num])]
    return Workload(config, lambda runner: [chain(runner, *w) for w in work], SEEDS_PER_EPISODE * (steps + 1))


def main() -> None:
    parser = arguments(__doc__, "rollouts")
    parser.add_argument(
        "--workloads", nargs="+", default=["groups", "K steps", "BFCL groups", "countdown", "ten turns"]
    )
    parser.add_argument("--model", help="for BFCL, a model that was warmed up (rllib sft); by default the bundled one")
    args = parser.parse_args()
    if args.quick:
        args.repeats = 1
    num_groups, num_chains, num_bfcl, num_countdown = (2, 2, 2, 4) if args.quick else (12, 6, 2, 64)
    make: dict[str, Callable[[], Workload]] = {
        "groups": lambda: groups(math_common.cpu("grpo")[0], num_groups),
        "K steps": lambda: chains(math_common.cpu("grpo")[0], num_chains),
        "BFCL groups": lambda: groups(
            bfcl_common.cpu("grpo")[0].language_model(**({"model": args.model} if args.model else {})),
            num_bfcl,
        ),
        "countdown": lambda: groups(countdown_common.cpu("grpo")[0], num_countdown),
        # Ten responses of at most six tokens fit into the model's context.
        "ten turns": lambda: groups(
            countdown_common.cpu("grpo")[0].environment(TurnsEnv).generation(max_response_tokens=6), num_countdown
        ),
    }
    table, runs = [], {}
    for name in args.workloads:
        workload = make[name]()
        # Alternating; the bare turn repeats the requests of the turn before it.
        figures = alternate({"LLMEnvRunner": workload.through_env_runner, "bare vLLM": workload.bare}, args.repeats)
        runs[name] = figures
        middle = medians(figures)
        ratio = statistics.median(a / b for a, b in zip(*figures.values(), strict=True))
        table.append(
            {
                "workload": name,
                "LLMEnvRunner tokens/s": middle["LLMEnvRunner"],
                "bare vLLM tokens/s": middle["bare vLLM"],
                "/ bare": ratio,
                "cached prompt tokens %": 100 * statistics.median(workload.cached),
            }
        )
        workload.close()
    write(args, table, tokens_per_s=runs)


if __name__ == "__main__":
    main()
