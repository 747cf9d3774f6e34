"""Directories as training, evaluation and search leave them, of a policy that is made up; written by their writers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.base import Message, Outcome, SelfImprovementEnv, Task, TaskInstance, Turn
from envs.bfcl.env import BFCLEnv
from envs.competition_math.env import CompetitionMathEnv
from envs.mle_bench.env import MLEBenchEnv
from rllib_exit.curriculum.exit import STRATEGIES, CurriculumConfig, ExIt
from rllib_exit.objective.advantages import group_advantages
from rllib_exit.rollout_log import RolloutLog
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, ScoredGroup, Segment
from rllib_exit.self_improvement import results
from rllib_exit.self_improvement.chain import Chain
from rllib_exit.self_improvement.curves import Curve
from rllib_exit.self_improvement.greedy_search import SearchDirectory, Step

SEGMENT = Segment(np.arange(6, dtype=np.int32), np.array([0, 0, 1, 1, 1, 1], bool), np.zeros(6, np.float32))
ARITHMETIC = {"tasks": "arithmetic", "levels": ["add1", "sub"], "split": "train"}
TURNS = {CompetitionMathEnv: 1, BFCLEnv: 3, MLEBenchEnv: 1}
SKILL = {"grpo": 0.0, "curriculum": 0.02, "improve": 0.05, "diverge": 0.08, "exit": 0.1}


def train(
    experiment: Path,
    strategy: str,
    seed: int,
    *,
    iterations: int = 12,
    env: Any = CompetitionMathEnv,
    env_config: Mapping[str, Any] = ARITHMETIC,
    task_ids: Sequence[str] | None = None,
    log: bool = True,
    params: Mapping[str, Any] | None = None,
    trial: str | None = None,
    trial_id: str = "1a2b3_00000",
    first: int = 1,
) -> Path:
    """A trial's directory: params.json, result.json and the log of rollouts."""
    directory = experiment / (trial or f"GRPO_{env.__name__}_{strategy}_{seed}")
    directory.mkdir(parents=True)
    preset = STRATEGIES[strategy]
    config = {
        "env": str(env),
        "env_config": dict(env_config),
        "strategy": strategy,
        "seed": seed,
        "model_name": "bundled:smollm2-135m-instruct",
        "lr": 7e-5,
        "prompts_per_batch": 8,
        "rollouts_per_prompt": 4,
        "kl_coeff": 0.0,
        "buffer_size": 32,
        "min_buffer_size": 8,
        "self_iteration_prob": preset.self_iteration_prob,
        "divergence_prob": preset.divergence_prob,
        "diversity_bonus": preset.diversity_bonus,
        **(params or {}),
    }
    (directory / "params.json").write_text(json.dumps(config))
    task_ids = list(task_ids or env(dict(env_config)).tasks)
    rng = np.random.default_rng([seed, list(STRATEGIES).index(strategy)])
    curriculum = ExIt(
        CurriculumConfig(
            self_iteration_prob=preset.self_iteration_prob,
            divergence_prob=preset.divergence_prob,
            self_iteration=preset.self_iteration,
            buffer_size=32,
            min_buffer_size=8,
        ),
        task_ids,
        rng,
    )
    rollout_log = RolloutLog(directory / "rollouts", env=Prompts(task_ids)) if log else None
    lines = []
    for iteration in range(first, first + iterations):
        skill = min(0.95, 0.1 + 0.6 * iteration / 30 + SKILL[strategy])
        groups = [_group(request, skill, TURNS[env], rng) for request in curriculum.select(8)]
        metrics = curriculum.update(groups)
        if rollout_log is not None:
            rollout_log.write(iteration, [ScoredGroup(group, group_advantages(group.returns_G)) for group in groups])
        qualities = np.concatenate([group.qualities_G for group in groups])
        line: dict[str, Any] = {
            "training_iteration": iteration,
            "trial_id": trial_id,
            "time_this_iter_s": 30.0,
            "hostname": "a-machine",
            "node_ip": "192.0.2.1",
            "versions": {"python": "3.11.7", "rllib-exit": "0.1.0"},
            "rollouts": {
                "quality_mean": qualities.mean(),
                "return_mean": qualities.mean(),
                "response_tokens_mean": 9.0,
            },
            "curriculum": {**metrics, "solution_steps_mean": 1 + skill, "level_mean": 1.0},
            "config": config,
        }
        if iteration % 5 == 0:
            line["evaluation"] = {"accuracy": {f"step_{k}": skill + 0.02 * k for k in range(3)}}
        lines.append(json.dumps(line))
    (directory / "result.json").write_text("\n".join(lines) + "\n")
    return directory


class Prompts(SelfImprovementEnv):
    """Has the prompts of tasks and nothing else."""

    def __init__(self, task_ids: Sequence[str]) -> None:
        super().__init__([Task(task_id, f"The prompt of {task_id}") for task_id in task_ids])

    def prompt(self, task: Task) -> list[Message]:
        raise NotImplementedError

    def respond(self, task: Task, response: str) -> Outcome:
        raise NotImplementedError


def _group(request: RolloutRequest, skill: float, num_turns: int, rng: np.random.Generator) -> RolloutGroup:
    rollouts = []
    for g in range(4):
        quality = float(rng.random() < skill)
        rollouts.append(_rollout(request.instance, quality, num_turns, rng, g))
    return RolloutGroup(request, tuple(rollouts))


def _rollout(instance: TaskInstance, quality: float, num_turns: int, rng: np.random.Generator, g: int) -> Rollout:
    turns = list(instance.history)
    words = ["seven", "add", "the", "digits", "carry", "so", "is", "minus", "check", "again"]
    while len(turns) < num_turns:
        first = len(turns) == instance.starting_turn
        text = " ".join(rng.choice(words, size=rng.integers(2, 12))) + f" = {rng.integers(20)}"
        last = len(turns) == num_turns - 1
        depth = instance.depth + 1 if first and instance.iterate else 0
        turns.append(Turn(text, None if last else f"Request {len(turns) + 1}: go on.", quality if last else 0.0, depth))
    return Rollout((SEGMENT,), tuple(turns), return_=quality, quality=quality)


def evaluate(
    trial: Path,
    *,
    iteration: int = 12,
    splits: Sequence[str] = ("add1", "sub", "mul1"),
    steps: int = 4,
    seeds: int = 2,
    baseline: bool = True,
    metrics: bool = False,
    output: Path | None = None,
) -> Path:
    """An evaluation's directory."""
    params = json.loads((trial / "params.json").read_text())
    rng = np.random.default_rng([params["seed"], list(STRATEGIES).index(params["strategy"]), 1])

    def chains(skill: float, gain: float) -> list[list[Chain | None]]:
        by_seed: list[list[Chain | None]] = []
        for _ in range(seeds):
            of_seed: list[Chain | None] = []
            for i in range(20):
                right = np.cumsum(rng.random(steps + 1) < np.array([skill, *[gain] * steps])) > 0
                numbers = tuple({"first_turn_accuracy": float(r), "requests_solved_fraction": float(r)} for r in right)
                of_seed.append(
                    Chain(f"t{i}", tuple(map(float, right)), ((Turn("x"),),) * (steps + 1), numbers if metrics else ())
                )
            by_seed.append(of_seed)
        return by_seed

    skill = 0.45 + 2 * SKILL[params["strategy"]]
    by_split: dict[str, dict[str, Any]] = {}
    for number, split in enumerate(splits):
        by_split[split] = {"baseline": chains(0.2, 0.01)} if baseline else {}
        by_split[split]["trained"] = chains(skill - 0.1 * number, 0.3 * SKILL[params["strategy"]])
    evaluation = results.Evaluation(
        checkpoint=str(trial / f"checkpoint_{iteration:06d}"),
        iteration=iteration,
        run={
            **{name: params[name] for name in ("strategy", "seed", "env_config")},
            "model": params["model_name"],
            "env": params["env"].removesuffix("'>").rpartition(".")[2],
        },
        settings={"temperature": 0.7, "top_p": 1.0, "self_improvement_steps": steps, "seeds": seeds},
        env_configs={split: {"levels": [split]} for split in splits},
        curves={
            split: {policy: Curve.of(results.fitting(by_seed)) for policy, by_seed in policies.items()}
            for split, policies in by_split.items()
        },
        versions={"python": "3.11.7"},
    )
    output = output or trial / "evaluation" / f"checkpoint_{iteration:06d}"
    results.write(output, evaluation, by_split)
    return output


def search(
    directory: Path,
    competition: str,
    *,
    trial: Path | None = None,
    checkpoint: str = "checkpoint_000000",
    seed: int = 0,
    steps: int = 8,
    temperature: float = 1.0,
) -> None:
    """A greedy search's directory."""
    rng = np.random.default_rng([seed, len(competition), 0 if trial is None else len(trial.name)])
    settings = {
        "competition": competition,
        "model": "bundled:smollm2-135m-instruct",
        "checkpoint": None if trial is None else str(trial / checkpoint),
        "seed": seed,
        "temperature": temperature,
    }
    written = SearchDirectory(directory, settings)
    for index in range(steps):
        quality = float(np.clip(0.3 + 0.05 * index * rng.random() + (0.2 if trial else 0.0), 0, 1))
        failed = rng.random() < 0.25
        step = Step(
            index, None if index == 0 else index - 1, "…", "script_failed" if failed else "scored", "",
            None if failed else quality, 0.0 if failed else quality, index,
        )  # fmt: skip
        written.add(step, "print()", b"id\n1\n")
