"""``rllib search``: greedy search for a script that scores well in an MLE-bench competition."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live

from rllib_exit.cli.config import Settings, check, override
from rllib_exit.cli.console import Verbose, clear_errors, out, quiet, say
from rllib_exit.cli.runs import find_checkpoint, generation_settings, load_config, load_into, open_env_runners

if TYPE_CHECKING:
    from rllib_exit.self_improvement.chain import Play
    from rllib_exit.self_improvement.greedy_search import SearchDirectory, Step


def search(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, or a directory above some: the newest is taken. Or a model, as in a config."
        ),
    ],
    competition: Annotated[Path, typer.Option(help="The competition's directory, in mle-bench's layout.")],
    steps: Annotated[int, typer.Option(min=0, help="Steps that follow the first response, each one response.")] = 16,
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write; by default under `search`, beside the checkpoint or in `results`."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    settings: Settings = None,
    verbose: Verbose = False,
) -> None:
    """Improves a script step by step: the best one so far, or the last one if it failed.

    Sampling and the scripts' limits are those of the run's evaluation_config, for a model alone the defaults of
    GRPOConfig and MLEBenchEnv; --set changes them. Keeps the best script, its submission and search.png after every
    step. The same command goes on where the last one stopped.
    """
    with clear_errors(verbose):
        quiet(verbose)
        from envs.mle_bench.competitions import load_competition

        config, checkpoint = _load_config(model)
        config = override(config, settings or [])
        name = load_competition(competition).id
        ranges = config.env_config.get("score_ranges") or {}
        ranges = {name: ranges[name]} if name in ranges else {}
        config.env_config = {
            **config.env_config,
            "competitions": str(competition),
            "score_ranges": ranges,
            "keep_submission": True,
        }
        config.num_env_runners = 0  # of one chain each step waits for the one before
        check(config)
        if output is None:
            above = checkpoint.parent if checkpoint else Path("results")
            output = above / "search" / (checkpoint.name if checkpoint else Path(model).name) / name
        _search(config, checkpoint, name, steps, output, seed)


def _load_config(model: str) -> tuple[Any, Path | None]:
    """The evaluation's config on MLE-bench, and the checkpoint; None for a model alone."""
    from envs.mle_bench.env import MLEBenchEnv
    from rllib_exit.grpo.config import GRPOConfig

    path, checkpoint = Path(model).expanduser(), None
    if path.is_dir() and not (path / "config.json").is_file():
        checkpoint = find_checkpoint(path)
        config: Any = load_config(checkpoint).get_evaluation_config_object()
    else:
        config = GRPOConfig().language_model(model).curriculum("grpo").get_evaluation_config_object()
    if not (isinstance(config.env, type) and issubclass(config.env, MLEBenchEnv)):
        config.env, config.env_config = MLEBenchEnv, {}  # another domain's options mean nothing here
    return config, checkpoint


def _search(config: Any, checkpoint: Path | None, name: str, steps: int, output: Path, seed: int) -> None:
    from rllib_exit.self_improvement import greedy_search as search

    directory = search.SearchDirectory(
        output,
        {
            "competition": name,
            "model": config.model_name,
            "checkpoint": str(checkpoint.absolute()) if checkpoint else None,
            "seed": seed,
            **generation_settings(config),
        },
    )
    done = f"{len(directory.steps)} of these {steps + 1} done before"
    say(f"{name}: {steps} steps after the first response, {done}; written to {output}")
    if config.temperature == 0:
        say("temperature is 0: a step that does not improve is repeated to the end")
    if len(directory.steps) <= steps:
        _run(config, checkpoint, name, steps, directory, seed)
    out.print(search.table(directory.steps))
    best = search.best_step(directory.steps)
    say(
        "no script got a score"
        if best is None
        else f"best: step {best.index}, score {best.score:g}: {output / search.BEST_SCRIPT}"
    )


def _run(config: Any, checkpoint: Path | None, name: str, steps: int, directory: SearchDirectory, seed: int) -> None:
    from rllib_exit.env_runners.environments import make_env
    from rllib_exit.self_improvement import greedy_search as search
    from rllib_exit.self_improvement.evaluator import play_on

    def tell(step: Step) -> None:
        score = "no score" if step.score is None else f"score {step.score:g}"
        say(f"step {step.index}/{steps}  {step.result.replace('_', ' ')}, {score}")

    async def show_steps(play: Play) -> None:
        env = make_env(config.env, config.env_config)
        live = Live(search.table(directory.steps), console=out, transient=True) if out.is_terminal else None
        with live or contextlib.nullcontext():
            for step in directory.steps if live is None else ():
                tell(step)
            async for step in search.greedy_search(env, name, steps, play, directory):
                search.plot(directory.steps, directory.path / search.FIGURE, title=name)
                if live is None:
                    tell(step)
                else:
                    live.update(search.table(directory.steps))

    with open_env_runners(config) as env_runners:
        if checkpoint is not None:
            load_into(env_runners, checkpoint, config)
        asyncio.run(show_steps(play_on(env_runners, seed=seed, seeds_per_episode=1)))
