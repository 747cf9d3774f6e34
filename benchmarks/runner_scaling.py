"""Does one driver keep many env runners busy? Rollouts per second with 1 to 64 simulated env runners.

    python benchmarks/runner_scaling.py

A simulated env runner takes a random time for an episode and computes nothing; it answers with groups of real size.
Calls, results and the dispatcher are real. Env runners are light: some share a process, since what is measured is the
driver. Every env runner gets the same number of groups, so that the time is the same where scaling is perfect.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from envs.base import TaskInstance, Turn
from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.env_runners.llm_env_runner import remote_call
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, Segment


class SimulatedEnvRunners:
    """Env runners of one process."""

    def __init__(self, slots: int, seconds: float, tokens: int) -> None:
        self.slots, self.seconds, self.tokens = slots, seconds, tokens
        self.semaphores: dict[int, asyncio.Semaphore] = {}

    async def roll_out(self, runner: int, request: RolloutRequest, group_size: int) -> RolloutGroup:
        semaphore = self.semaphores.setdefault(runner, asyncio.Semaphore(self.slots))
        rng = np.random.default_rng(request.seed)

        async def episode(seconds: float) -> Rollout:
            async with semaphore:
                await asyncio.sleep(seconds)
            mask = np.arange(self.tokens) >= self.tokens // 4
            segment = Segment(np.arange(self.tokens, dtype=np.int32), mask, -mask.astype(np.float32))
            return Rollout((segment,), (Turn("x" * 4 * self.tokens),), 1.0, 1.0)

        durations = self.seconds * rng.uniform(0.5, 1.5, group_size)
        return RolloutGroup(request, tuple(await asyncio.gather(*map(episode, durations))))


class Handle:
    """One simulated env runner, called as an actor's handle is."""

    def __init__(self, process: Any, runner: int) -> None:
        self.process, self.runner = process, runner
        self.roll_out = self

    def remote(self, *args: Any) -> Any:
        return self.process.roll_out.remote(self.runner, *args)


def measure(processes: list[Any], runners: int, args: argparse.Namespace) -> dict[str, float]:
    handles = [Handle(processes[i % len(processes)], i) for i in range(runners)]
    dispatcher = Dispatcher(handles, capacity=args.slots, is_lost=lambda error: False, revive=never, patience_s=None)
    requests = [RolloutRequest(f"{i}", TaskInstance("task"), seed=i) for i in range(runners * args.groups_per_runner)]
    wall, cpu = time.perf_counter(), time.process_time()
    futures = [
        dispatcher.submit(remote_call("roll_out", request, args.group_size), size=args.group_size)
        for request in requests
    ]
    groups = [future.result() for future in futures]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    dispatcher.stop()
    assert [group.request for group in groups] == requests
    return {
        "runners": runners,
        "rollouts_per_s": len(groups) * args.group_size / wall,
        "wall_s": wall,
        "driver_cpu_ms_per_group": 1000 * cpu / len(groups),
        "driver_cpu_share": cpu / wall,
    }


async def never(handle: Any, error: BaseException) -> None:
    raise AssertionError("no simulated env runner is lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--processes", type=int, default=4, help="that share the env runners")
    parser.add_argument("--slots", type=int, default=64, help="episodes at once of an env runner")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--groups-per-runner", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="mean time of an episode")
    parser.add_argument("--tokens", type=int, default=1024, help="of a rollout")
    parser.add_argument("--output", type=Path, default=Path("results/runner_scaling.json"))
    args = parser.parse_args()

    ray.init(num_cpus=args.processes, include_dashboard=False, log_to_driver=False)
    process_class: Any = ray.remote(SimulatedEnvRunners)
    options = {"num_cpus": 1, "max_concurrency": 100_000}
    processes = [
        process_class.options(**options).remote(args.slots, args.seconds, args.tokens) for _ in range(args.processes)
    ]
    for i, process in enumerate(processes):  # warm up
        ray.get(Handle(process, -1).remote(RolloutRequest("", TaskInstance("task"), seed=i), 1))
    rows = []
    print("runners  rollouts/s  of linear  wall s  driver CPU ms per group  driver CPU share")
    for runners in args.runners:
        row = measure(processes, runners, args)
        rows.append(row)
        row["of_linear"] = row["rollouts_per_s"] / runners / (rows[0]["rollouts_per_s"] / rows[0]["runners"])
        print(
            f"{runners:7}  {row['rollouts_per_s']:10.1f}  {100 * row['of_linear']:8.1f}%  {row['wall_s']:6.2f}  "
            f"{row['driver_cpu_ms_per_group']:23.2f}  {100 * row['driver_cpu_share']:15.1f}%",
            flush=True,
        )
    ray.shutdown()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"arguments": vars(args), "runs": rows}, indent=1, default=str))


if __name__ == "__main__":
    main()
