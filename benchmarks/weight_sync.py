"""How long does it take until an engine has the learner's weights?

    python benchmarks/weight_sync.py

A learner in an actor of its own gives its weights to an env runner with a real vLLM engine, as after every update.
Transfer is the way from the learner's memory to a file that the engine's worker maps; the engine's own work follows:
pausing, repacking, resetting its cache. Beside it, in turns, the same bytes are copied once through shared memory:
one process writes them there, another one reads them into its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from envs.competition_math.env import CompetitionMathEnv
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.models import SMOLLM2
from rllib_exit.weight_sync.engine_loader import SHARED_MEMORY


class Reader:
    """Another process."""

    def read(self, path: str) -> None:
        np.fromfile(path, np.uint8)


def copy_once(blob: np.ndarray, reader: Any) -> float:
    start = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY) as file:
        file.write(blob.data)
        file.flush()
        ray.get(reader.read.remote(file.name))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--dtype", default="float32", help="of the engine")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("results/weight_sync.json"))
    args = parser.parse_args()

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    reader: Any = ray.remote(num_cpus=0)(Reader).remote()
    algo: Any = (
        GRPOConfig()
        .environment(CompetitionMathEnv, env_config={"tasks": "arithmetic"})
        .language_model(args.model, dtype=args.dtype, max_model_len=2048)
        .training(kl_coeff=0.0)
        .curriculum("grpo")
        .learners(num_learners=1, num_cpus_per_learner=1)
        .build_algo()
    )
    transfer = algo._weights
    transferred = transfer(algo._env_runners)  # starts the engine
    blob = np.ones(transferred.num_bytes, np.uint8)
    rows = []
    for repeat in range(args.repeats + 1):
        transferred = transfer(algo._env_runners)
        row = {
            "transfer_s": transferred.transfer_s,
            "load_s": transferred.load_s,
            "copy_s": copy_once(blob, reader),
        }
        if repeat:  # the first one claims memory
            rows.append(row | {"of_copy": row["transfer_s"] / row["copy_s"]})
            print("  ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()), flush=True)
    algo.stop()
    ray.shutdown()
    medians = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    print(f"{transferred.num_bytes / 1e6:.0f} MB, medians: " + "  ".join(f"{n} {v:.3f}" for n, v in medians.items()))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(
        json.dumps({"arguments": vars(args), "runs": rows, "medians": medians}, indent=1, default=str)
    )


if __name__ == "__main__":
    main()
