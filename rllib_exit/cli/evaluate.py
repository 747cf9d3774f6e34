"""``rllib evaluate``: measures K-step self-improvement."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rllib_exit.cli.console import Verbose, clear_errors, duration, out, quiet, say
from rllib_exit.cli.runs import cast, find_checkpoint, load_config, load_iteration, load_weights
from rllib_exit.versions import versions

if TYPE_CHECKING:
    import numpy as np

    from rllib_exit.evaluation.self_improvement import Chain


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a directory above some: the newest is taken.")],
    steps: Annotated[int | None, typer.Option(min=0, help="K, the self-improvement steps.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate on the first N tasks.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where to write; by default `evaluation/<name>` beside the checkpoint.")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Evaluate the model before training, too.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with N seeds, for standard errors.")] = 1,
    verbose: Verbose = False,
) -> None:
    """Measures K-step self-improvement: answer every task, then improve on the latest answer K times.

    Tasks and sampling are those of the run's evaluation_config. Writes evaluation.json and self_improvement.png.
    """
    with clear_errors(verbose):
        quiet(verbose)
        path = find_checkpoint(checkpoint)
        config: Any = load_config(path).get_evaluation_config_object()
        if steps is not None:
            config.self_improvement_steps = steps
        output = output or path.parent / "evaluation" / path.name
        _evaluate(path, config, limit, seeds, baseline, output)


def _evaluate(path: Path, config: Any, limit: int | None, seeds: int, baseline: bool, output: Path) -> None:
    from rllib_exit.env_runners.llm_env_runner import make_env
    from rllib_exit.evaluation import report

    task_ids = list(make_env(config.env, config.env_config).tasks)[:limit]
    weights = load_weights(path)
    say(f"{path}: {len(task_ids)} tasks, {config.self_improvement_steps} steps, {seeds} seed{'s' * (seeds > 1)}")
    if seeds > 1 and config.temperature == 0:
        say("temperature is 0: all seeds give the same; set it in the run's evaluation_config")
    runs = asyncio.run(_run_self_improvement(config, task_ids, weights, seeds, baseline))
    gc.collect()  # vLLM's engine prints a traceback if it is collected as late as at exit

    curves = {}
    for name, chains_by_seed in runs.items():
        fitting = [[chain for chain in chains if chain is not None] for chains in chains_by_seed]
        if not fitting[0]:
            raise ValueError("no task fits the context: max_model_len is too small")
        if left_out := len(task_ids) - len(fitting[0]):
            say(f"{left_out} tasks are left out: their prompts do not fit max_model_len ({config.max_model_len})")
        curves[name] = report.Curve.of(fitting)
    out.print(report.table(curves, title=f"{config.self_improvement_steps}-step self-improvement"))

    output.mkdir(parents=True, exist_ok=True)
    data = {
        "checkpoint": str(path.absolute()),
        "iteration": load_iteration(path),
        "config": {
            "model": config.model_name,
            "dtype": config.dtype,
            "max_model_len": config.max_model_len,
            "max_response_tokens": config.max_response_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "env": getattr(config.env, "__name__", str(config.env)),
            "env_config": dict(config.env_config),
            "self_improvement_steps": config.self_improvement_steps,
            "seeds": seeds,
        },
        "versions": versions(),
        "results": {
            name: {
                "accuracy": curve.accuracy.tolist(),
                "accuracy_standard_error": None if curve.accuracy_se is None else curve.accuracy_se.tolist(),
                "net_corrections": curve.net_corrections.tolist(),
                "accuracy_by_seed": curve.accuracy_SK.tolist(),
                "qualities_by_seed": [
                    {chain.task_id: list(chain.qualities) for chain in chains if chain is not None}
                    for chains in runs[name]
                ],
            }
            for name, curve in curves.items()
        },
    }
    (output / "evaluation.json").write_text(json.dumps(data, indent=1, default=str))
    report.plot(curves, output / "self_improvement.png", title=f"{len(task_ids)} tasks")
    say(f"written: {output}/evaluation.json and self_improvement.png")


async def _run_self_improvement(
    config: Any, task_ids: Sequence[str], weights: np.ndarray, seeds: int, baseline: bool
) -> dict[str, list[list[Chain | None]]]:
    """The chains of every seed, by policy: the baseline first."""
    from concurrent.futures import ThreadPoolExecutor

    from rllib_exit.chat import ChatTokenizer
    from rllib_exit.env_runners.llm_env_runner import make_env, sampling_params
    from rllib_exit.evaluation.self_improvement import self_improve

    # Environments block in threads: as many as may run at once.
    workers = config.num_envs_per_env_runner
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(workers, thread_name_prefix="env"))
    chat = ChatTokenizer(config.model_path, template_kwargs=config.chat_template_kwargs)
    generator = config.generator_class(
        config.model_path, dtype=config.dtype, max_model_len=config.max_model_len, engine_args=config.engine_args
    )
    runs: dict[str, list[list[Chain | None]]] = {}
    try:
        for name in ["baseline", "trained"] if baseline else ["trained"]:
            if name == "trained":
                await generator.update_weights(cast(weights, config.dtype))
            runs[name] = []
            for seed in range(seeds):
                start = time.perf_counter()
                label = f"{name}, seed {seed + 1} of {seeds}"
                with out.status(label):
                    chains = await self_improve(
                        task_ids,
                        config.self_improvement_steps,
                        make_env=lambda: make_env(config.env, config.env_config),
                        max_concurrent=workers,
                        generator=generator,
                        chat=chat,
                        sampling=sampling_params(config),
                        # Tasks and steps take consecutive seeds: leave room between.
                        seed=seed * 10**9,
                    )
                say(f"{label}: {duration(time.perf_counter() - start)}")
                runs[name].append(chains)
    finally:
        await generator.close()
    return runs
