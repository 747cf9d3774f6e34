"""``rllib evaluate``: measures K-step self-improvement."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from rllib_exit.cli.config import Settings, override
from rllib_exit.cli.console import Verbose, clear_errors, duration, out, quiet, say
from rllib_exit.cli.runs import (
    find_checkpoints,
    generation_settings,
    load_config,
    load_into,
    load_iteration,
    open_env_runners,
)
from rllib_exit.versions import versions

if TYPE_CHECKING:
    from envs.base import SelfImprovementEnv
    from rllib_exit.env_runners.dispatcher import Dispatcher
    from rllib_exit.grpo.config import GRPOConfig
    from rllib_exit.self_improvement import results
    from rllib_exit.self_improvement.chain import Chain
    from rllib_exit.self_improvement.results import Evaluation

# What the tasks of the run's evaluation_config are called.
DEFAULT_SPLIT = "evaluation"


def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Checkpoints, or directories above some: the newest of every run is taken."),
    ],
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME | all | NAME={...}",
            help="Evaluate on this one of the config's splits, on all of them, or on the tasks of these options of "
            "the environment. Repeatable; by default the tasks of the run's evaluation_config.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="K, the self-improvement steps.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate on the first N tasks of a split.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where to write; by default `evaluation/<name>` beside the checkpoint.")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Evaluate the model before training, too.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with N seeds, for standard errors.")] = 1,
    env_runners: Annotated[
        int,
        typer.Option(
            min=0,
            help="So many engines share the work, on the Ray cluster of RAY_ADDRESS or on this machine; "
            "by default one, without Ray.",
        ),
    ] = 0,
    official: Annotated[
        bool,
        typer.Option(
            "--official",
            help="Also write the first and the last answers as the benchmark's own tools read them, for BFCL.",
        ),
    ] = False,
    settings: Settings = None,
    verbose: Verbose = False,
) -> None:
    """Measures K-step self-improvement: answer every task, then improve on the latest answer K times.

    Tasks and sampling are those of the run's evaluation_config; --set changes them. Writes evaluation.json (the
    numbers), evaluation.parquet (every step with its responses) and self_improvement.png. What was evaluated before,
    with the same options, is not evaluated again.
    """
    with clear_errors(verbose):
        quiet(verbose)
        checkpoints = list(dict.fromkeys(checkpoint for path in paths for checkpoint in find_checkpoints(path)))
        asked = {"seeds": seeds, "limit": limit, "baseline": baseline}
        jobs = []
        for checkpoint, directory in zip(checkpoints, _directories(checkpoints, output), strict=True):
            trained = load_config(checkpoint)
            config = override(trained.get_evaluation_config_object(), settings or [])  # type: ignore[arg-type]
            config.num_env_runners = env_runners
            if steps is not None:
                config.self_improvement_steps = steps
            config.splits = _splits(config, split)
            config.copy(copy_frozen=False).validate()
            jobs.append(_Job(checkpoint, directory, config, _without_curves(checkpoint, trained, config, asked)))
        if official:
            for job in jobs:
                job.check_official()
        _evaluate(jobs)
        if official:
            for job in jobs:
                _write_official(job)


@dataclass(frozen=True, eq=False)
class _Job:
    """What is asked of one checkpoint.

    Attributes:
        checkpoint: The checkpoint.
        directory: Where to write.
        config: The evaluation's, with what was overridden. Its ``splits`` are those to evaluate on, each with all of
            the environment's options.
        evaluation: What is to be measured, without its curves.
    """

    checkpoint: Path
    directory: Path
    config: Any
    evaluation: Evaluation

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.evaluation.settings

    @property
    def measures(self) -> str:
        """The same for jobs that measure the same thing on different checkpoints of the same model."""
        names = ("model_path", "generator_class", "env", "splits", "num_envs_per_env_runner", "env_timeout_s")
        config = [getattr(self.config, name) for name in (*names, "generation_timeout_s")]
        return repr([config, sorted(self.settings.items())])

    @cached_property
    def envs(self) -> Mapping[str, SelfImprovementEnv]:
        """By split, an environment, for its tasks."""
        from rllib_exit.env_runners.environments import make_env

        return {split: make_env(self.config.env, options) for split, options in self.config.splits.items()}

    def check_official(self) -> None:
        """Raises ValueError if the benchmark has no tools of its own, or if they do not know such episodes."""
        from rllib_exit.self_improvement.results import HasOfficialFormat

        for split, env in self.envs.items():
            if not isinstance(env, HasOfficialFormat):
                raise ValueError(f"--official: {type(env).__name__} has no official format (split {split}); BFCL has")
            env.official_result(env.tasks[self.task_ids(split)[0]], [])

    def task_ids(self, split: str) -> list[str]:
        return list(self.envs[split].tasks)[: self.settings["limit"]]


def _without_curves(checkpoint: Path, trained: GRPOConfig, config: GRPOConfig, asked: Mapping[str, Any]) -> Evaluation:
    """The evaluation of a checkpoint before it is made."""
    from rllib_exit.run_identity import env_name
    from rllib_exit.self_improvement.results import Evaluation

    names = ("compact_history_chars", "chat_template_kwargs", "engine_args", "self_improvement_steps", "greedy_search")
    return Evaluation(
        checkpoint=str(checkpoint.absolute()),
        iteration=load_iteration(checkpoint),
        run={
            "strategy": trained.strategy,
            "seed": trained.seed,
            "model": trained.model_name,
            "env": env_name(trained.env),
            "env_config": dict(trained.env_config),
        },
        settings={**generation_settings(config), **{name: getattr(config, name) for name in names}, **asked},
        env_configs=config.splits,
        curves={},
        versions=versions(),
    )


def _splits(config: GRPOConfig, asked: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """By name, all of the environment's options of the splits asked for."""
    splits: dict[str, dict[str, Any]] = {} if asked else {DEFAULT_SPLIT: {}}
    for name in asked or ():
        name, equals, text = name.partition("=")
        if equals:
            options = yaml.safe_load(text)
            if not isinstance(options, dict):
                raise ValueError(f"--split {name}={text}: write the options as {{key: value, ...}}")
            splits[name] = options
        elif name == "all" and config.splits:
            splits |= config.splits
        elif name in config.splits:
            splits[name] = config.splits[name]
        else:
            there = f"use {', '.join(config.splits)} or all" if config.splits else "the run's config names no splits"
            raise ValueError(f"--split {name}: {there}; or give the environment's options, {name}={{key: value, ...}}")
    return {name: {**config.env_config, **options} for name, options in splits.items()}


def _directories(checkpoints: Sequence[Path], output: Path | None) -> list[Path]:
    if output is None:
        return [checkpoint.parent / "evaluation" / checkpoint.name for checkpoint in checkpoints]
    if len(checkpoints) == 1:
        return [output]
    absolute = [checkpoint.absolute() for checkpoint in checkpoints]
    above = os.path.commonpath(absolute)
    return [output / checkpoint.relative_to(above) for checkpoint in absolute]


def _evaluate(jobs: Sequence[_Job]) -> None:
    from rllib_exit.self_improvement import results

    shown: dict[_Job, Evaluation] = {}
    to_do: list[_Job] = []
    for job in jobs:
        if (before := _evaluated_before(job)) is not None:
            say(f"{job.checkpoint}: evaluated before, see {job.directory / results.JSON}; remove it to evaluate again")
            shown[job] = before
            continue
        tasks = " + ".join(f"{len(job.task_ids(split))}" for split in job.config.splits)
        seeds = job.settings["seeds"]
        say(f"{job.checkpoint}: {tasks} tasks, {job.config.self_improvement_steps} steps, {_count(seeds, 'seed')}")
        if seeds > 1 and job.config.temperature == 0:
            say("temperature is 0: all seeds give the same; use --set temperature=...")
        to_do.append(job)

    for _, alike in groupby(sorted(to_do, key=lambda job: job.measures), key=lambda job: job.measures):
        shown |= _run(list(alike))
    _print([shown[job] for job in jobs])


def _evaluated_before(job: _Job) -> Evaluation | None:
    from rllib_exit.self_improvement import results

    try:
        before = results.read(job.directory / results.JSON)
    except (FileNotFoundError, ValueError):
        return None
    return before if before.same_work(job.evaluation) else None


def _print(evaluations: Sequence[Evaluation]) -> None:
    from rllib_exit.self_improvement import curves
    from rllib_exit.self_improvement.results import ALL, BASELINE, TRAINED

    for evaluation in evaluations:
        title = f"{evaluation.settings['self_improvement_steps']}-step self-improvement"
        if len(evaluations) > 1:
            title = f"{evaluation.run['strategy']}, seed {evaluation.run['seed']}: {title}"
        if len(evaluations) == 1 and len(evaluation.curves) == 1:
            [by_policy] = evaluation.curves.values()
            out.print(curves.table(by_policy, title=title))
            # As the last line of the command, for those who read no table.
            policies = {BASELINE: "untrained", TRAINED: "trained"}
            ends = [
                f"{name} {100 * by_policy[policy].accuracy[0]:.1f} → {100 * by_policy[policy].accuracy[-1]:.1f} %"
                for policy, name in policies.items()
                if policy in by_policy
            ]
            say(f"K-step accuracy: {', '.join(ends)} (K = {evaluation.settings['self_improvement_steps']})")
            return
        together = {ALL: evaluation.pooled()} if len(evaluation.curves) > 1 else {}
        by_split = {**evaluation.curves, **together}
        rows = {(split, policy): curve for split in by_split for policy, curve in by_split[split].items()}
        out.print(curves.summary_table(rows, title=title))


def _run(jobs: Sequence[_Job]) -> dict[_Job, Evaluation]:
    """Evaluates checkpoints alike, the model before training first and once; writes each as it is done."""
    from rllib_exit.self_improvement import results

    evaluations: dict[_Job, Evaluation] = {}
    first = jobs[0]
    with open_env_runners(first.config) as env_runners:
        before: dict[str, list[list[Chain | None]]] = {}
        if first.settings["baseline"]:
            before = {split: _measure(first, split, results.BASELINE, env_runners) for split in first.envs}
        for job in jobs:
            load_into(env_runners, job.checkpoint, job.config)
            chains = {
                split: {
                    **({results.BASELINE: before[split]} if before else {}),
                    results.TRAINED: _measure(job, split, results.TRAINED, env_runners),
                }
                for split in job.envs
            }
            evaluations[job] = _write(job, chains)
    return evaluations


def _measure(job: _Job, split: str, policy: str, env_runners: Dispatcher) -> list[list[Chain | None]]:
    """The chains of every seed on a split's tasks."""
    from rllib_exit.self_improvement.evaluator import start_chains

    seeds = job.settings["seeds"]
    chains_by_seed = []
    for seed in range(seeds):
        start = time.perf_counter()
        label = ", ".join([policy, *([split] if split != DEFAULT_SPLIT else []), f"seed {seed + 1} of {seeds}"])
        with out.status(label):
            started = start_chains(
                env_runners, job.envs[split], job.task_ids(split), job.config, seed=seed, split=split
            )
            for chain in as_completed(started):
                chain.result()  # the first failure ends the evaluation, whichever task it is of
            chains_by_seed.append([chain.result() for chain in started])
        say(f"{label}: {duration(time.perf_counter() - start)}")
    left_out = sum(chain is None for chain in chains_by_seed[0])
    if left_out == len(chains_by_seed[0]):
        raise ValueError("no task fits the context: max_model_len is too small")
    if left_out:
        say(f"{left_out} tasks are left out: their prompts do not fit max_model_len ({job.config.max_model_len})")
    return chains_by_seed


def _write(job: _Job, chains: Mapping[str, results.Chains]) -> Evaluation:
    from rllib_exit.self_improvement import curves, results

    by_split = {
        split: {policy: curves.Curve.of(results.fitting(by_seed)) for policy, by_seed in policies.items()}
        for split, policies in chains.items()
    }
    evaluation = replace(job.evaluation, curves=by_split)
    results.write(job.directory, evaluation, chains)
    pooled = evaluation.pooled()
    curves.plot(pooled, job.directory / results.FIGURE, title=f"{_count(pooled[results.TRAINED].num_tasks, 'task')}")
    for split, policies in chains.items():
        _say_example(job.envs[split], results.fitting(policies[results.TRAINED])[0])
    say(f"written: {job.directory / results.JSON}, {results.PARQUET} and {results.FIGURE}")
    return evaluation


def _write_official(job: _Job) -> None:
    from rllib_exit.self_improvement import results

    directories = results.write_official(job.directory, job.envs)  # type: ignore[arg-type]
    for split, policies in results.read(job.directory / results.JSON).curves.items():
        for policy, curve in policies.items():
            percent = [100 * float(curve.metrics_SK["official_accuracy"][:, k].mean()) for k in (0, -1)]
            say(f"official accuracy, {split}, {policy}: {percent[0]:.1f} → {percent[1]:.1f} %")
    say(f"written for the benchmark's own tools: {', '.join(map(str, directories))}")


def _say_example(env: SelfImprovementEnv, chains: Sequence[Chain]) -> None:
    """Shows the first task that is wrong at first and right after some steps, with its iterates and their feedback."""
    corrected = (chain for chain in chains if chain.turns and chain.qualities[0] < 1 == max(chain.qualities))
    if (chain := next(corrected, None)) is None:
        return
    say(f"for example, {chain.task_id}: {_shortened(env.tasks[chain.task_id].prompt)}")
    for k, (turns, quality) in enumerate(zip(chain.turns, chain.qualities, strict=True)):
        verdict = "right" if quality == 1 else "wrong" if quality == 0 else f"quality {quality:.2f}"
        feedback = f": {_shortened(turns[0].feedback)}" if turns[0].feedback else ""
        say(f"  step {k}: {_shortened(turns[0].response)} ({verdict}{feedback})")
        if quality == 1:
            break


def _shortened(text: str, width: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
