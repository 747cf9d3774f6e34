"""``rllib evaluate``: measures K-step self-improvement."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from rllib_exit.cli.config import Settings, override
from rllib_exit.cli.console import CommandError, Verbose, clear_errors, duration, out, quiet, say
from rllib_exit.cli.runs import cast, find_checkpoints, generation_settings, load_config, load_iteration, load_weights
from rllib_exit.versions import versions

if TYPE_CHECKING:
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
        jobs = [_Job.of(path, split, steps, limit, seeds, baseline, settings or []) for path in checkpoints]
        directories = _directories(checkpoints, output)
        _evaluate(jobs, directories)


@dataclass(frozen=True, eq=False)
class _Job:
    """What is asked of one checkpoint.

    Attributes:
        checkpoint: The checkpoint.
        config: The evaluation's, with what was overridden.
        splits: By name, the environment's options.
        run: Identifies what was trained.
        settings: What the numbers depend on besides.
    """

    checkpoint: Path
    config: Any
    splits: Mapping[str, Mapping[str, Any]]
    run: Mapping[str, Any]
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        checkpoint: Path,
        splits: Sequence[str] | None,
        steps: int | None,
        limit: int | None,
        seeds: int,
        baseline: bool,
        settings: Sequence[str],
    ) -> _Job:
        from rllib_exit.report.runs import env_name

        trained = load_config(checkpoint)
        config: Any = override(trained.get_evaluation_config_object(), settings)  # type: ignore[arg-type]
        if steps is not None:
            config.self_improvement_steps = steps
        config.copy(copy_frozen=False).validate()
        return cls(
            checkpoint,
            config,
            {name: {**config.env_config, **options} for name, options in _splits(config, splits).items()},
            run={
                "strategy": trained.strategy,
                "seed": trained.seed,
                "model": trained.model_name,
                "env": env_name(trained.env),
                "env_config": dict(trained.env_config),
            },
            settings={
                **generation_settings(config),
                **{name: getattr(config, name) for name in ("compact_history_chars", "chat_template_kwargs")},
                "engine_args": config.engine_args,
                "self_improvement_steps": config.self_improvement_steps,
                "greedy_search": config.greedy_search,
                "seeds": seeds,
                "limit": limit,
                "baseline": baseline,
            },
        )

    @property
    def engine(self) -> str:
        """The same for jobs that can share an engine."""
        config = self.config
        return repr([config.model_path, config.dtype, config.max_model_len, config.engine_args, config.generator_class])

    def task_ids(self, split: str) -> list[str]:
        from rllib_exit.env_runners.llm_env_runner import make_env

        return list(make_env(self.config.env, self.splits[split]).tasks)[: self.settings["limit"]]

    def evaluation(self, chains: Mapping[str, Any]) -> Evaluation:
        from rllib_exit.self_improvement.curves import Curve
        from rllib_exit.self_improvement.results import Evaluation, fitting

        return Evaluation(
            checkpoint=str(self.checkpoint.absolute()),
            iteration=load_iteration(self.checkpoint),
            run=self.run,
            settings=self.settings,
            env_configs=self.splits,
            curves={
                split: {policy: Curve.of(fitting(by_seed)) for policy, by_seed in policies.items()}
                for split, policies in chains.items()
            },
            versions=versions(),
        )


def _splits(config: Any, asked: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """By name, what the environment's options of the splits asked for have in place of the evaluation's."""
    if not asked:
        return {DEFAULT_SPLIT: {}}
    splits: dict[str, dict[str, Any]] = {}
    for name in asked:
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
    return splits


def _directories(checkpoints: Sequence[Path], output: Path | None) -> list[Path]:
    if output is None:
        return [checkpoint.parent / "evaluation" / checkpoint.name for checkpoint in checkpoints]
    if len(checkpoints) == 1:
        return [output]
    absolute = [checkpoint.absolute() for checkpoint in checkpoints]
    above = os.path.commonpath(absolute)
    return [output / checkpoint.relative_to(above) for checkpoint in absolute]


def _evaluate(jobs: Sequence[_Job], directories: Sequence[Path]) -> None:
    from rllib_exit.env_runners.episodes import EpisodeError
    from rllib_exit.env_runners.generator import EngineError
    from rllib_exit.self_improvement import results

    shown: dict[_Job, Evaluation] = {}
    to_do: list[tuple[_Job, Path]] = []
    for job, directory in zip(jobs, directories, strict=True):
        done = directory / results.JSON
        if (before := _evaluated_before(job, done)) is not None:
            say(f"{job.checkpoint}: evaluated before, see {done}; remove it to evaluate again")
            shown[job] = before
            continue
        tasks = " + ".join(f"{len(job.task_ids(split))}" for split in job.splits)
        seeds = job.settings["seeds"]
        say(f"{job.checkpoint}: {tasks} tasks, {job.config.self_improvement_steps} steps, {_count(seeds, 'seed')}")
        if seeds > 1 and job.config.temperature == 0:
            say("temperature is 0: all seeds give the same; use --set temperature=...")
        to_do.append((job, directory))

    try:
        for _, sharing in groupby(sorted(to_do, key=lambda pair: pair[0].engine), key=lambda pair: pair[0].engine):
            shown |= asyncio.run(_run(list(sharing)))
    except (EpisodeError, EngineError) as error:
        raise CommandError(f"{error}") from error
    _print([shown[job] for job in jobs])


def _evaluated_before(job: _Job, file: Path) -> Evaluation | None:
    from rllib_exit.self_improvement import results

    if not file.is_file():
        return None
    try:
        before = results.read(file)
    except ValueError:
        return None
    return before if before.same_work(job.evaluation({})) else None


def _print(evaluations: Sequence[Evaluation]) -> None:
    from rllib_exit.self_improvement import curves
    from rllib_exit.self_improvement.results import ALL

    for evaluation in evaluations:
        title = f"{evaluation.settings['self_improvement_steps']}-step self-improvement"
        if len(evaluations) > 1:
            title = f"{evaluation.run['strategy']}, seed {evaluation.run['seed']}: {title}"
        if len(evaluations) == 1 and len(evaluation.curves) == 1:
            out.print(curves.table(next(iter(evaluation.curves.values())), title=title))
            return
        together = {ALL: evaluation.pooled()} if len(evaluation.curves) > 1 else {}
        by_split = {**evaluation.curves, **together}
        rows = {(split, policy): curve for split in by_split for policy, curve in by_split[split].items()}
        out.print(curves.summary_table(rows, title=title))


async def _run(jobs: Sequence[tuple[_Job, Path]]) -> dict[_Job, Evaluation]:
    """Evaluates checkpoints on one engine, the model before training first; writes each as it is done."""
    from rllib_exit.self_improvement import results

    config = jobs[0][0].config
    generator = config.generator_class(
        config.model_path, dtype=config.dtype, max_model_len=config.max_model_len, engine_args=config.engine_args
    )
    evaluations: dict[_Job, Evaluation] = {}
    try:
        # Of runs that are evaluated alike, the model before training is evaluated once.
        baselines: dict[str, list[list[Chain | None]]] = {}
        for job, _ in jobs:
            for split in job.splits if job.settings["baseline"] else ():
                if (key := _baseline_key(job, split)) not in baselines:
                    baselines[key] = await _self_improve(job, split, results.BASELINE, generator)
        for job, directory in jobs:
            await generator.update_weights(cast(load_weights(job.checkpoint), job.config.dtype))
            chains: dict[str, dict[str, list[list[Chain | None]]]] = {}
            for split in job.splits:
                before = {results.BASELINE: baselines[_baseline_key(job, split)]} if job.settings["baseline"] else {}
                chains[split] = {**before, results.TRAINED: await _self_improve(job, split, results.TRAINED, generator)}
            evaluations[job] = _write(job, directory, chains)
    finally:
        await generator.close()
    return evaluations


def _baseline_key(job: _Job, split: str) -> str:
    from rllib_exit.report.runs import env_name

    return json.dumps([env_name(job.config.env), job.splits[split], job.settings], sort_keys=True, default=str)


async def _self_improve(job: _Job, split: str, policy: str, generator: Any) -> list[list[Chain | None]]:
    """The chains of every seed on a split's tasks."""
    from rllib_exit.chat import ChatTokenizer
    from rllib_exit.env_runners.llm_env_runner import make_env, sampling_params
    from rllib_exit.self_improvement.chain import run_chain, self_improve
    from rllib_exit.self_improvement.greedy_search import search_chain

    config, env_config = job.config, job.splits[split]
    seeds = job.settings["seeds"]
    chains_by_seed = []
    for seed in range(seeds):
        start = time.perf_counter()
        label = ", ".join([policy, *([split] if split != DEFAULT_SPLIT else []), f"seed {seed + 1} of {seeds}"])
        with out.status(label):
            chains = await self_improve(
                job.task_ids(split),
                config.self_improvement_steps,
                make_env=lambda: make_env(config.env, env_config),
                max_concurrent=config.num_envs_per_env_runner,
                generator=generator,
                chat=ChatTokenizer(config.model_path, template_kwargs=config.chat_template_kwargs),
                sampling=sampling_params(config),
                # Tasks and steps take consecutive seeds: leave room between.
                seed=seed * 10**9,
                env_timeout_s=config.env_timeout_s,
                generation_timeout_s=config.generation_timeout_s,
                compact_history_chars=config.compact_history_chars,
                run=search_chain if config.greedy_search else run_chain,
            )
        say(f"{label}: {duration(time.perf_counter() - start)}")
        chains_by_seed.append(chains)
    left_out = sum(chain is None for chain in chains_by_seed[0])
    if left_out == len(chains_by_seed[0]):
        raise ValueError("no task fits the context: max_model_len is too small")
    if left_out:
        say(f"{left_out} tasks are left out: their prompts do not fit max_model_len ({config.max_model_len})")
    return chains_by_seed


def _write(job: _Job, directory: Path, chains: Mapping[str, Mapping[str, list[list[Chain | None]]]]) -> Evaluation:
    from rllib_exit.self_improvement import curves, results

    evaluation = job.evaluation(chains)
    results.write(directory, evaluation, chains)
    pooled = evaluation.pooled()
    curves.plot(pooled, directory / results.FIGURE, title=f"{_count(pooled[results.TRAINED].num_tasks, 'task')}")
    say(f"written: {directory}/{results.JSON}, {results.PARQUET} and {results.FIGURE}")
    return evaluation


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
