"""Does a run outlive its nodes? Trains on a simulated cluster while one of two nodes is removed and another is added.

    python benchmarks/two_nodes.py

The nodes are Ray's, on this machine; everything else is as in ``rllib train file tuned_examples/math_exit.py``: two env
runners with real engines, one on each node. The second node is killed in mid-iteration, and later one is added.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parent.parent


def results(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in directory.rglob("result.json") for line in file.read_text().splitlines()]


def wait_for(process: subprocess.Popen, directory: Path, iterations: int) -> None:
    while len(results(directory)) < iterations:
        if process.poll() is not None:
            raise SystemExit(f"training ended with {process.returncode}")
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("results/two_nodes"))
    args = parser.parse_args()

    # The algorithm takes two CPUs, each env runner one: the second node has room for one env runner alone.
    memory: dict[str, Any] = {"object_store_memory": 2 * 10**9}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, **memory})
    node = cluster.add_node(num_cpus=1, **memory)
    command = [str(Path(sys.executable).parent / "rllib"), "train", "file", str(ROOT / "tuned_examples/math_exit.py")]
    command += ["--scale", "cpu", "--stop-iters", str(args.iterations), "--results-dir", str(args.output)]
    settings = {"num_env_runners": 2, "num_cpus_for_main_process": 2, "prompts_per_batch": args.prompts}
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment)
    try:
        wait_for(process, args.output, 2)
        time.sleep(0.5)  # the third one rolls out
        print("removing a node", flush=True)
        cluster.remove_node(node, allow_graceful=False)
        wait_for(process, args.output, 3)
        print("adding a node", flush=True)
        cluster.add_node(num_cpus=1, **memory)
        code = process.wait()
    finally:
        process.kill()
        cluster.shutdown()
    print("iteration  seconds  groups  lost env runners  policy version  lag")
    for row in results(args.output):
        rollouts = row["rollouts"]
        print(
            f"{row['training_iteration']:9}  {row['time_this_iter_s']:7.1f}  {args.prompts:6}  "
            f"{rollouts['lost_env_runners']:16.0f}  {row['policy_version']:14.0f}  {row['policy_lag_max']:3.0f}"
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
