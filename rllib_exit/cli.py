"""The command line: ``rllib train file``, ``rllib evaluate`` and ``rllib export``.

Ray, torch and their like are imported inside the commands, so that ``rllib --help`` answers at once.
"""

from __future__ import annotations

import asyncio
import difflib
import gc
import importlib.util
import json
import logging
import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from rllib_exit import checkpoints
from rllib_exit.files import atomic_directory
from rllib_exit.scale import SCALE_VARIABLE, scale_and_reason

if TYPE_CHECKING:
    import numpy as np

    from rllib_exit.evaluation.self_improvement import Chain
    from rllib_exit.grpo.grpo_config import GRPOConfig

app = typer.Typer(
    help="Fine-tunes language models with GRPO and Exploratory Iteration on Ray RLlib.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
train_app = typer.Typer(help="Trains.", no_args_is_help=True)
app.add_typer(train_app, name="train")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Verbose = Annotated[bool, typer.Option("--verbose", help="Show the workers' logs, and tracebacks of errors.")]


def main() -> None:
    """The console script ``rllib``."""
    app()


class TrainingError(RuntimeError):
    """Training failed; the message tells what was saved."""


@train_app.callback()
def _train() -> None:
    # A group of one command would become that command.
    pass


@train_app.command("file")
def train_file(
    file: Annotated[Path, typer.Argument(help="Python file with `config`, a GRPOConfig, and maybe `stop`, a dict.")],
    stop_iters: Annotated[int | None, typer.Option(min=1, help="Stop after this many iterations in all.")] = None,
    scale: Annotated[
        str, typer.Option(help="Which config the file makes: auto, cpu or paper. auto: paper where there are GPUs.")
    ] = "auto",
    results_dir: Annotated[Path, typer.Option(help="Where results and checkpoints go.")] = Path("results"),
    resume: Annotated[
        Path | None, typer.Option(help="Go on from a checkpoint, or from the newest whole one under a directory.")
    ] = None,
    checkpoint_freq: Annotated[
        int, typer.Option(min=0, help="Iterations between checkpoints; 0: only at the end.")
    ] = 10,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a field: lr=1e-6, env_config.limit=10. Repeatable."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Trains what a Python file configures.

    Runs on this machine, or on the Ray cluster that RAY_ADDRESS names ("auto": the one this machine is part of).
    result.json, progress.csv and TensorBoard's events appear under --results-dir, beside the checkpoints. Ctrl-C
    stops after the current iteration and saves; a second one stops at once.
    """
    with _clear_errors(verbose):
        os.environ[SCALE_VARIABLE] = scale
        _quiet(verbose)
        cluster = "RAY_ADDRESS" in os.environ
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist")
        checkpoint = checkpoints.newest(resume) if resume else None
        try:
            if cluster:
                _init_ray(verbose)
            taken, reason = scale_and_reason()
            _say(f"scale: {taken} ({reason})")
            config, stop = load_file(file)
            config = override(config, settings or [])
            if stop_iters is not None:
                stop = {**stop, "training_iteration": stop_iters}
            if checkpoint is not None:
                done = _iteration(checkpoint)
                if done >= stop.get("training_iteration", float("inf")):
                    raise ValueError(
                        f"{checkpoint} has {done} iterations done and training stops at "
                        f"{stop['training_iteration']}: raise --stop-iters"
                    )
                _say(f"resuming after iteration {done}, from {checkpoint}")
            check(config)
            _train_with_tune(config, stop, file, results_dir.absolute(), checkpoint, checkpoint_freq, cluster, verbose)
        finally:
            # Not `import ray` at the top: errors above may come before Ray is loaded.
            if (ray := sys.modules.get("ray")) is not None:
                ray.shutdown()


@app.command()
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
    with _clear_errors(verbose):
        _quiet(verbose)
        path = _find_checkpoint(checkpoint)
        config: Any = load_config(path).get_evaluation_config_object()
        if steps is not None:
            config.self_improvement_steps = steps
        output = output or path.parent / "evaluation" / path.name
        _evaluate(path, config, limit, seeds, baseline, output)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a directory above some: the newest is taken.")],
    directory: Annotated[Path, typer.Argument(help="New or empty directory for the model.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    verbose: Verbose = False,
) -> None:
    """Writes a trained model in Hugging Face format, for transformers, vLLM and the like."""
    with _clear_errors(verbose):
        if dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"dtype is {dtype!r}: use bfloat16, float16 or float32")
        directory = directory.absolute()
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise FileExistsError(f"{directory} is not empty: export into a new directory")
        _quiet(verbose)
        path = _find_checkpoint(checkpoint)
        model_path = load_config(path).model_path

        import torch
        from safetensors.torch import load
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        weights = load(load_weights(path).tobytes())
        parameters = dict(model.named_parameters())
        if weights.keys() != parameters.keys():
            odd = sorted(weights.keys() ^ parameters.keys())
            raise ValueError(f"{path} was trained on another model than {model_path}: {odd[:3]} are not in both")
        model.load_state_dict(weights, strict=False)
        with atomic_directory(directory) as staging:
            model.to(getattr(torch, dtype)).save_pretrained(staging)
            AutoTokenizer.from_pretrained(model_path).save_pretrained(staging)
        _say(f"exported {path} to {directory}")


# Configs.


def load_file(file: Path) -> tuple[GRPOConfig, dict[str, Any]]:
    """Runs a Python file and takes its ``config`` and ``stop``.

    Raises:
        ValueError: If it has no usable ``config`` or ``stop``.
    """
    import ray.cloudpickle

    from rllib_exit.grpo.grpo_config import GRPOConfig

    # Modules beside the file can be imported, as from a script.
    sys.path.insert(0, str(file.parent.absolute()))
    spec = importlib.util.spec_from_file_location(f"rllib_file_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    # The workers cannot import the file: what it defines, its env for one, goes to them by value.
    ray.cloudpickle.register_pickle_by_value(module)

    config, stop = getattr(module, "config", None), getattr(module, "stop", {})
    if not isinstance(config, GRPOConfig):
        has = "no `config`" if config is None else f"a `config` of type {type(config).__name__}"
        raise ValueError(f"{file} has {has}: set `config = GRPOConfig()...` in it")
    if not isinstance(stop, Mapping):
        raise ValueError(
            f"{file} has a `stop` of type {type(stop).__name__}: use a dict like {{'training_iteration': 10}}"
        )
    return config, dict(stop)


def override(config: GRPOConfig, settings: Sequence[str]) -> GRPOConfig:
    """A copy of the config with ``--set``'s settings.

    Args:
        config: The config.
        settings: ``key=value`` each; a value is a JSON or YAML literal.

    Raises:
        ValueError: If a setting is malformed or names no field.
    """
    config = config.copy(copy_frozen=False)
    pairs = [_parse_setting(setting) for setting in settings]
    # A strategy sets other fields to its preset: what was asked for besides comes after it.
    for key, value in sorted(pairs, key=lambda pair: pair[0] != "strategy"):
        name, *path = key.split(".")
        names = [name for name in vars(config) if not name.startswith("_")]
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3) or [other for other in names if name in other][:3]
            mend = f"did you mean {' or '.join(close)}?" if close else "see GRPOConfig for the fields there are"
            raise ValueError(f"--set {key}: the config has no field {name!r}; {mend}")
        if name == "strategy" and not path:
            config.curriculum(value)
        elif path:
            setattr(config, name, _replaced(getattr(config, name), path, value, key))
        else:
            setattr(config, name, value)
    return config


def _parse_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {setting}: write it as key=value")
    try:
        return key, json.loads(text)  # YAML takes 1e-6 for a string
    except json.JSONDecodeError:
        pass
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {setting}: the value is no JSON or YAML literal ({error})") from error


def _replaced(old: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """A copy of a nested dict with the value at the path."""
    if not path:
        return value
    if old is None:
        old = {}
    if not isinstance(old, Mapping):
        raise ValueError(f"--set {key}: it reaches into {old!r}, which is no dict")
    return {**old, path[0]: _replaced(old.get(path[0]), path[1:], value, key)}


def check(config: GRPOConfig) -> None:
    """Finds a config's mistakes before any actor is started; makes its model's path absolute.

    Raises:
        ValueError: If a field is wrong, or the model is not to be had.
    """
    from rllib_exit.env_runners.llm_env_runner import make_env
    from rllib_exit.models import resolve_model

    config.copy(copy_frozen=False).validate()
    make_env(config.env, config.env_config)
    if config.evaluation_interval:
        evaluation: Any = config.get_evaluation_config_object()
        make_env(evaluation.env, evaluation.env_config)
    for name in ("model_name", "embedding_model"):
        model = getattr(config, name)
        if model is not None:
            path = resolve_model(model)
            if Path(model).expanduser().is_dir():
                setattr(config, name, path)


# Training.


def _train_with_tune(
    config: GRPOConfig,
    stop: dict[str, Any],
    file: Path,
    results_dir: Path,
    checkpoint: Path | None,
    checkpoint_freq: int,
    cluster: bool,
    verbose: bool,
) -> None:
    from ray import tune

    needed = _needed_resources(config)
    if not cluster:
        # Logical CPUs: one for the algorithm and one for each actor, which take turns on the cores there are.
        _init_ray(verbose, num_cpus=max(os.cpu_count() or 1, int(needed.get("CPU", 0))))
    _check_resources(needed)

    _say(f"results: {results_dir / file.stem}")
    progress = _Progress(total=stop.get("training_iteration"))
    # tune.run, not Tuner.fit: it alone can begin a trial from a checkpoint.
    with progress, _stop_on_interrupt(progress) as interrupted:
        analysis = tune.run(
            _algorithm(config),
            name=file.stem,
            storage_path=str(results_dir),
            config=config.to_dict(),
            restore=str(checkpoint) if checkpoint else None,
            stop=lambda trial_id, result: bool(interrupted) or _reached(stop, result),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=2, checkpoint_frequency=checkpoint_freq, checkpoint_at_end=True
            ),
            callbacks=[_tune_callback(progress)],
            verbose=0,
            raise_on_failed_trial=False,
        )
    (trial,) = analysis.trials
    directory = Path(str(trial.path))
    if trial.status != "TERMINATED":
        _raise_trial_error(trial, directory, verbose)
    _say_summary(progress, directory)


def _needed_resources(config: GRPOConfig) -> dict[str, float]:
    return _algorithm(config).default_resource_request(config.to_dict()).required_resources


def _algorithm(config: GRPOConfig) -> Any:
    return config.algo_class


def _init_ray(verbose: bool, **kwargs: Any) -> None:
    import ray

    # The environment variable is Ray's own way to a cluster; without it, never join one by chance.
    address = None if "RAY_ADDRESS" in os.environ else "local"
    level = logging.INFO if verbose else logging.ERROR
    context = ray.init(address=address, log_to_driver=verbose, logging_level=level, **kwargs)
    if url := context.dashboard_url:
        _say(f"Ray dashboard: http://{url}")


def _check_resources(needed: dict[str, float]) -> None:
    # Without this, Tune waits for what never comes.
    import ray

    there = ray.cluster_resources()
    for name, amount in needed.items():
        if amount > there.get(name, 0):
            raise ValueError(
                f"the run needs {amount:g} {name} and Ray has {there.get(name, 0):g}: lower num_env_runners, "
                f"num_learners or their num_gpus_..., or start Ray on more nodes and set RAY_ADDRESS"
            )


def _reached(stop: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    for key, limit in stop.items():
        value: Any = result
        for part in key.split("/"):
            if not isinstance(value, Mapping) or part not in value:
                raise ValueError(f"stop has {key!r}, which is not in the results")
            value = value[part]
        if value >= limit:
            return True
    return False


@contextmanager
def _stop_on_interrupt(progress: _Progress) -> Iterator[list[bool]]:
    """The list is empty until the first Ctrl-C; the second one raises KeyboardInterrupt."""
    interrupted: list[bool] = []
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(*_: Any) -> None:
        interrupted.append(True)
        signal.signal(signal.SIGINT, before)
        progress.say("stopping after this iteration; Ctrl-C again stops at once")

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _Progress:
    """Shows a run's iterations: a live line in a terminal, else one line each."""

    total: int | None
    results: list[dict[str, float]] = field(default_factory=list)

    def __enter__(self) -> _Progress:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=out,
            disable=not out.is_terminal,
        )
        self._task = self._bar.add_task("loading models, first iteration", total=self.total, numbers="")
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def add(self, result: Mapping[str, Any]) -> None:
        """Shows one more iteration's result."""
        rollouts, curriculum = result.get("rollouts", {}), result.get("curriculum", {})
        values = {
            "iteration": result["training_iteration"],
            "seconds": result["time_this_iter_s"],
            "return": rollouts.get("return_mean"),
            "buffer": curriculum.get("buffer_size"),
            "tokens/s": rollouts.get("tokens_per_s"),
        }
        for k, accuracy in result.get("evaluation", {}).get("accuracy", {}).items():
            values[f"evaluation {k}"] = accuracy
        self.results.append({name: float(value) for name, value in values.items() if value is not None})
        numbers = self._numbers(self.results[-1])
        iteration = result["training_iteration"]
        self._bar.update(self._task, description="iteration", completed=iteration, numbers=numbers)
        if self._bar.disable:
            of = f"/{self.total}" if self.total else ""
            self.say(f"iteration {iteration}{of}  {numbers}")

    def _numbers(self, values: Mapping[str, float]) -> str:
        parts = []
        if "return" in values:
            parts.append(f"return {values['return']:.3f}")
        if "buffer" in values:
            parts.append(f"buffer {values['buffer']:.0f}")
        if "tokens/s" in values:
            parts.append(f"{values['tokens/s']:.0f} tokens/s")
        if accuracies := [values[name] for name in values if name.startswith("evaluation ")]:
            parts.append(f"evaluation {accuracies[0]:.3f} → {accuracies[-1]:.3f}")
        if self.total:
            recent = [result["seconds"] for result in self.results[-5:]]
            left = (self.total - values["iteration"]) * sum(recent) / len(recent)
            parts.append(f"{_duration(left)} left")
        return "  ".join(parts)


def _tune_callback(progress: _Progress) -> Any:
    from ray import tune

    class ProgressCallback(tune.Callback):
        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            progress.add(result)

    return ProgressCallback()


def _say_summary(progress: _Progress, directory: Path) -> None:
    results = progress.results
    table = Table(title="Training", title_justify="left", show_header=True)
    for column in ("", "first", "last", "best", "at iteration"):
        table.add_column(column, justify="left" if not column else "right")
    names = list(dict.fromkeys(name for result in results for name in result))
    for name in names:
        if name in ("iteration", "seconds", "buffer", "tokens/s"):
            continue
        rows = [result for result in results if name in result]
        best = max(rows, key=lambda row: row[name])
        values = [f"{row[name]:.4g}" for row in (rows[0], rows[-1], best)]
        table.add_row(name, *values, f"{best['iteration']:.0f}")
    out.print(table)
    seconds = sum(result["seconds"] for result in results)
    last = results[-1]["iteration"] if results else 0
    _say(f"iteration {last:.0f} after {_duration(seconds)}")
    checkpoint = checkpoints.newest(directory)
    _say(f"checkpoint: {checkpoint}")
    _say(f"evaluate it: rllib evaluate {checkpoint} --baseline")


def _raise_trial_error(trial: Any, directory: Path, verbose: bool) -> NoReturn:
    error = trial.get_pickled_error()
    if verbose and error is not None:
        err.print(str(error), markup=False, soft_wrap=True)
    lines = [f"training failed: {_message(error) if error is not None else trial.status}"]
    if (directory / "error.txt").is_file():
        lines.append(f"traceback: {directory / 'error.txt'}")
    try:
        checkpoint = checkpoints.newest(directory)
        lines.append(f"saved: {checkpoint}, after iteration {_iteration(checkpoint)}")
        lines.append(f"go on from it: the same command with --resume {checkpoint}")
    except checkpoints.CheckpointError:
        lines.append("no checkpoint was written before that")
    raise TrainingError("\n".join(lines))


# Checkpoints.


def _find_checkpoint(path: Path) -> Path:
    if not path.exists() or (path / "config.json").is_file():
        raise checkpoints.CheckpointError(
            f"{path} is no checkpoint of a run"
            + (": it does not exist" if not path.exists() else ", but a model")
            + "; a model alone has no tasks or sampling: give a run's checkpoint or directory, "
            "and --baseline for the model before training"
        )
    return checkpoints.newest(path)


def load_config(checkpoint: Path) -> GRPOConfig:
    """The config of the run that wrote a checkpoint. Checkpoints hold pickles: load only what you trust.

    Raises:
        CheckpointError: If it is not a checkpoint of a GRPO run.
    """
    from rllib_exit.grpo.grpo_config import GRPOConfig

    # Envs that a run's file imported from beside it, if the command is run there.
    sys.path.insert(0, str(Path.cwd()))
    state = _unpickle(checkpoint / "class_and_ctor_args.pkl")["ctor_args_and_kwargs"][0][0]
    config = GRPOConfig.from_state(dict(state))
    if not isinstance(config, GRPOConfig):
        raise checkpoints.CheckpointError(f"{checkpoint} is of a run with {type(config).__name__}, not GRPOConfig")
    return config


def load_weights(checkpoint: Path) -> np.ndarray:
    """(bytes,) uint8, the policy's weights in a checkpoint as a float32 safetensors file.

    Raises:
        CheckpointError: If it has none.
    """
    module = checkpoint / "learner_group" / "learner" / "rl_module" / "default_policy" / "module_state.pkl"
    return _unpickle(module)["model"]


def _iteration(checkpoint: Path) -> int:
    return _unpickle(checkpoint / "algorithm_state.pkl")["training_iteration"]


def _unpickle(file: Path) -> Any:
    if not file.is_file():
        raise checkpoints.CheckpointError(f"{file.parent} is no checkpoint of a training run: it has no {file.name}")
    with open(file, "rb") as f:
        try:
            return pickle.load(f)
        except ModuleNotFoundError as error:
            raise checkpoints.CheckpointError(
                f"{file} needs the module {error.name!r}: install it, or run in the directory that holds it"
            ) from error


# Evaluation.


def _evaluate(path: Path, config: Any, limit: int | None, seeds: int, baseline: bool, output: Path) -> None:
    import ray
    import torch
    import transformers

    from rllib_exit.env_runners.llm_env_runner import make_env
    from rllib_exit.evaluation import report

    task_ids = list(make_env(config.env, config.env_config).tasks)[:limit]
    weights = load_weights(path)
    _say(f"{path}: {len(task_ids)} tasks, {config.self_improvement_steps} steps, {seeds} seed{'s' * (seeds > 1)}")
    if seeds > 1 and config.temperature == 0:
        _say("temperature is 0: all seeds give the same; set it in the run's evaluation_config")
    runs = asyncio.run(_run_self_improvement(config, task_ids, weights, seeds, baseline))
    gc.collect()  # vLLM's engine prints a traceback if it is collected as late as at exit

    curves = {}
    for name, chains_by_seed in runs.items():
        fitting = [[chain for chain in chains if chain is not None] for chains in chains_by_seed]
        if not fitting[0]:
            raise ValueError("no task fits the context: max_model_len is too small")
        if left_out := len(task_ids) - len(fitting[0]):
            _say(f"{left_out} tasks are left out: their prompts do not fit max_model_len ({config.max_model_len})")
        curves[name] = report.Curve.of(fitting)
    out.print(report.table(curves, title=f"{config.self_improvement_steps}-step self-improvement"))

    output.mkdir(parents=True, exist_ok=True)
    data = {
        "checkpoint": str(path.absolute()),
        "iteration": _iteration(path),
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
        "versions": {
            "python": sys.version.split()[0],
            "ray": ray.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
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
    _say(f"written: {output}/evaluation.json and self_improvement.png")


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
                await generator.update_weights(_cast(weights, config.dtype))
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
                _say(f"{label}: {_duration(time.perf_counter() - start)}")
                runs[name].append(chains)
    finally:
        await generator.close()
    return runs


def _cast(weights: np.ndarray, dtype: str) -> np.ndarray:
    import numpy as np
    import torch
    from safetensors.torch import load, save

    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load(weights.tobytes()).items()}
    return np.frombuffer(save(tensors), np.uint8)


# What the user sees.


def _say(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _quiet(verbose: bool) -> None:
    # Paths in a config are relative to where the command is run, not to the trial's directory.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Ctrl-C is ours: Tune's own handler would end the run without a checkpoint.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    if not verbose:
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's new output prints a header even at verbose=0
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        os.environ.setdefault("TQDM_DISABLE", "1")
        warnings.filterwarnings("ignore")
        import ray  # noqa: F401  (importing it resets the levels)

        # What Tune logs as an error comes back as the trial's error, and is told then.
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


@contextmanager
def _clear_errors(verbose: bool) -> Iterator[None]:
    """Turns what a user can mend into one red message and exit code 1; the rest keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("interrupted", style="red")
        raise typer.Exit(130) from None
    except (ValueError, OSError, TrainingError) as error:
        if verbose:
            err.print_exception()
        err.print(_message(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _message(error: BaseException) -> str:
    """What to tell the user: of an error in a Ray worker, its cause's message."""
    cause = getattr(error, "cause", None)
    while isinstance(cause, BaseException):
        error, cause = cause, getattr(cause, "cause", None)
    text = str(error).strip()
    if type(error).__module__.startswith("ray."):
        # An actor that died in its constructor carries a traceback as text: its last line is the error.
        return text.splitlines()[-1] if text else type(error).__name__
    # After an empty line come details, such as a rollout's traceback.
    text = text.split("\n\n")[0]
    return (
        text if isinstance(error, ValueError | OSError | TrainingError) and text else f"{type(error).__name__}: {text}"
    )
