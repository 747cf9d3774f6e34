"""How long does it take until an engine has the learner's weights, and how much is sent?

    python benchmarks/weight_sync.py

A learner in an actor of its own gives its weights to an env runner with a real vLLM engine, as after every update.
Transfer is the way from the learner's memory to a file that the engine's worker maps; the engine's own work follows:
pausing, repacking, resetting its cache. First all weights are sent. Beside it, in turns, the same bytes are copied once
through shared memory: one process writes them there, another one reads them into its own.

Then only what changed is sent, after steps of AdamW with each learning rate on the tasks' texts.
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
from rllib_exit.chat import ChatTokenizer
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.learner.module import LOGPROBS, PACK
from rllib_exit.models import SMOLLM2, resolve_model
from rllib_exit.objective.packing import Row
from rllib_exit.weight_sync.engine_loader import SHARED_MEMORY
from rllib_exit.weight_sync.weight_store import WeightStore

LEARNING_RATES = (1e-6, 5e-6, 5e-5)
NEVER = 1_000_000  # a full copy besides a patch
WARMUP_STEPS = 4  # until AdamW's moments are those of several batches
ROWS_PER_STEP = 8


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


def step(learner: Any, texts: list[list[int]], lr: float) -> None:
    """One step of AdamW towards more likely texts."""
    rows = []
    for ids in texts:
        mask = np.arange(len(ids)) > 0
        rows.append(Row(np.array(ids, np.int32), mask, np.zeros(len(ids), np.float32), 1.0, 1.0))
    for pack in learner._pack(tuple(rows)):
        learner.model.backward(-learner.language_model.forward_train({PACK: pack})[LOGPROBS].mean())
    learner.model.step(lr)


def full_copies(algo: Any, reader: Any, repeats: int) -> list[dict[str, float]]:
    algo.learner_group.foreach_learner(lambda learner: setattr(learner, "_store", WeightStore(1)))
    transferred = algo._weights(algo._env_runners)  # starts the engine
    blob = np.ones(transferred.num_bytes, np.uint8)
    rows = []
    for repeat in range(repeats + 1):
        row = algo._weights(algo._env_runners).metrics | {"copy_s": copy_once(blob, reader)}
        if repeat:  # the first one claims memory
            rows.append(row | {"of_copy": row["transfer_s"] / row["copy_s"]})
            show(rows[-1])
    return rows


def patches(algo: Any, texts: list[list[int]], lr: float, repeats: int) -> list[dict[str, float]]:
    algo.learner_group.foreach_learner(lambda learner: setattr(learner, "_store", WeightStore(NEVER)))
    rng = np.random.default_rng(0)
    rows = []
    for repeat in range(WARMUP_STEPS + repeats):
        drawn = [texts[i] for i in rng.choice(len(texts), ROWS_PER_STEP, replace=False)]
        algo.learner_group.foreach_learner(lambda learner, drawn=drawn: step(learner, drawn, lr))
        transferred = algo._weights(algo._env_runners)
        if repeat >= WARMUP_STEPS:
            rows.append({"lr": lr} | transferred.metrics)
            show(rows[-1])
    return rows


def show(row: dict[str, float]) -> None:
    print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--dtype", default="bfloat16", help="of the engine")
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
    tokenizer = ChatTokenizer(resolve_model(args.model)).tokenizer
    texts = [tokenizer.encode(task.prompt) for task in algo._env.tasks.values()]
    full = full_copies(algo, reader, args.repeats)
    by_lr = [patches(algo, texts, lr, args.repeats) for lr in LEARNING_RATES if args.dtype == "bfloat16"]
    algo.stop()
    ray.shutdown()
    all_bytes = full[0]["bytes"]
    result = {"full": medians(full), "patches": [medians(rows) for rows in by_lr]}
    for row in result["patches"]:
        row["of_full_bytes"] = row["bytes"] / all_bytes
    print("medians:")
    for row in [result["full"], *result["patches"]]:
        show(row)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    runs = [*full, *(row for rows in by_lr for row in rows)]
    args.output.write_text(
        json.dumps({"arguments": vars(args), "runs": runs, "medians": result}, indent=1, default=str) + "\n"
    )


if __name__ == "__main__":
    main()
