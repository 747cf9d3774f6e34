"""Whole iterations of GRPO: TRL's GRPOTrainer beside ours.

    make .venv-trl/installed
    python benchmarks/vs_trl.py --trl-python .venv-trl/bin/python

Both train the bundled model on the same arithmetic problems, with float32 weights and the same ``--dtype`` of the
forward pass, as many prompts, rollouts and tokens of the longest response, one update for each iteration, no KL term.
Each is a process that makes one iteration whenever it is told to, so that they take turns while the other waits.

TRL's setting is the fastest that was found to work on a CPU: generation by transformers, since TRL 1.16 takes vLLM up
to 0.31 and none of its CPU builds; all prompts in one generation batch; micro-batches of ``--trl-batch`` rollouts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import alternate, arguments, write

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tuned_examples")]


def wait_for_turn() -> None:
    """Returns when the parent process wants another iteration; ends the process when it wants none."""
    if not sys.stdin.readline():
        raise SystemExit


def report(seconds: float, tokens: float, parts: dict[str, float]) -> None:
    print("TURN " + json.dumps({"seconds": seconds, "tokens": tokens, **parts}), flush=True)


def ours(args: argparse.Namespace) -> None:
    import math_common

    config = math_common.cpu("grpo")[0].language_model(dtype=args.dtype)
    config.training(prompts_per_batch=args.prompts, rollouts_per_prompt=args.group_size, lr=1e-6)
    config.generation(max_response_tokens=args.response).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    while True:
        wait_for_turn()
        start = time.perf_counter()
        result = algo.train()
        took = time.perf_counter() - start
        tokens = result["rollouts"]["response_tokens_mean"] * args.prompts * args.group_size
        timers = result["timers"]
        report(took, tokens, {"rollout": timers["rollout"], "rest": took - timers["rollout"]})


def trl(args: argparse.Namespace) -> None:
    import torch
    from datasets import Dataset
    from math_common import LEVELS
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    from envs.base import TaskInstance
    from envs.competition_math.env import CompetitionMathEnv
    from rllib_exit.memory import keep_freed_memory
    from rllib_exit.models import SMOLLM2, resolve_model

    keep_freed_memory()  # it is no merit of ours: TRL gets it too
    env = CompetitionMathEnv({"tasks": "arithmetic", "split": "train", "levels": LEVELS})
    rows = [{"prompt": env.prompt(task), "task_id": task.id} for task in env.tasks.values()]
    times: dict[str, float] = {}

    def reward(prompts: Any, completions: Any, task_id: list[str], **kwargs: Any) -> list[float]:
        qualities = []
        for completion, id_ in zip(completions, task_id, strict=True):
            env.reset(options={"instance": TaskInstance(id_)})
            qualities.append(float(env.step(completion[0]["content"])[4]["outcome"].quality))
        return qualities

    class Turns(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            took = time.perf_counter() - times["start"]
            report(took, times["tokens"], {"rollout": times["rollout"], "rest": took - times["rollout"]})
            wait_for_turn()
            times["start"] = time.perf_counter()

    class Trainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            start = time.perf_counter()
            outputs = super()._generate_and_score_completions(inputs)
            times["rollout"] = time.perf_counter() - start
            times["tokens"] = float(outputs["completion_mask"].sum())
            return outputs

    rollouts = args.prompts * args.group_size
    path = resolve_model(SMOLLM2)
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(path),
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            args=GRPOConfig(
                output_dir=output,
                use_cpu=True,
                bf16=args.dtype == "bfloat16",
                gradient_checkpointing=False,
                per_device_train_batch_size=args.trl_batch,
                gradient_accumulation_steps=rollouts // args.trl_batch,
                num_generations=args.group_size,
                max_completion_length=args.response,
                temperature=1.0,
                beta=0.0,
                learning_rate=1e-6,
                max_steps=10**6,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            callbacks=[Turns()],
        )
        wait_for_turn()
        times["start"] = time.perf_counter()
        trainer.train()


class Side:
    """One of the two processes."""

    def __init__(self, python: str, args: argparse.Namespace, name: str) -> None:
        command = [python, __file__, "--side", name]
        for option in ("prompts", "group_size", "response", "trl_batch", "dtype"):
            command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.turns: list[dict[str, float]] = []

    def iteration(self) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("TURN "):
                self.turns.append(json.loads(line.removeprefix("TURN ")))
                return self.turns[-1]["seconds"]
        raise RuntimeError(f"the process ended with {self.process.wait()}; its error is above")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.terminate()


def main() -> None:
    parser = arguments(__doc__, "vs_trl")
    parser.add_argument("--trl-python", default=".venv-trl/bin/python", help="an interpreter that has TRL")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--response", type=int, default=24)
    parser.add_argument("--trl-batch", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return {"ours": ours, "trl": trl}[args.side](args)
    if args.quick:
        args.repeats, args.prompts, args.group_size, args.response, args.trl_batch = 1, 2, 4, 8, 8
    sides = {"TRL": Side(args.trl_python, args, "trl"), "ours": Side(sys.executable, args, "ours")}
    try:
        figures = alternate({name: side.iteration for name, side in sides.items()}, args.repeats)
    finally:
        for side in sides.values():
            side.close()
    table = []
    for name, side in sides.items():
        turns = side.turns[1:]
        middle = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        table.append(
            {"side": name, "s / iteration": middle["seconds"], "rollout s": middle["rollout"], "rest s": middle["rest"]}
            | {"response tokens": middle["tokens"]}
            | {"ms / token": 1e3 * statistics.median(turn["seconds"] / turn["tokens"] for turn in turns)}
        )
    ratio = statistics.median(t / o for t, o in zip(figures["TRL"], figures["ours"], strict=True))
    per_token = table[0]["ms / token"] / table[1]["ms / token"]
    write(args, table, trl_over_ours=ratio, trl_over_ours_per_token=per_token)
    print(f"TRL / ours: {ratio:.2f} per iteration, {per_token:.2f} per generated token")


if __name__ == "__main__":
    main()
