"""Reads what a training run wrote: the config, weights and progress in its checkpoints."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_exit import checkpoints
from rllib_exit.cli.console import CommandError, duration, say
from rllib_exit.run_identity import identity

if TYPE_CHECKING:
    import numpy as np

    from rllib_exit.env_runners.dispatcher import Dispatcher
    from rllib_exit.grpo.config import GRPOConfig


def find_checkpoint(path: Path) -> Path:
    """The newest whole checkpoint at or under a path."""
    if not path.exists() or (path / "config.json").is_file():
        raise checkpoints.CheckpointError(
            f"{path} is no checkpoint of a run"
            + (": it does not exist" if not path.exists() else ", but a model")
            + "; a model alone has no tasks or sampling: give a run's checkpoint or directory, "
            "and --baseline for the model before training"
        )
    return checkpoints.newest(path)


def find_checkpoints(path: Path) -> list[Path]:
    """The newest whole checkpoint of every run at or under a path, in the order of their paths."""
    newest = find_checkpoint(path)
    if newest == path:
        return [newest]
    by_run: dict[str, Path] = {}
    for trial in {manifest.parent.parent for manifest in path.rglob(checkpoints.MANIFEST)}:
        try:
            checkpoint = checkpoints.newest(trial)
        except checkpoints.CheckpointError:
            continue  # all of this trial's are damaged
        run = identity(trial)
        if run not in by_run or _written(checkpoint) > _written(by_run[run]):
            by_run[run] = checkpoint
    return sorted(by_run.values())


def _written(checkpoint: Path) -> int:
    return (checkpoint / checkpoints.MANIFEST).stat().st_mtime_ns


def load_config(checkpoint: Path) -> GRPOConfig:
    """The config of the run that wrote a checkpoint. Checkpoints hold pickles: load only what you trust."""
    from rllib_exit.grpo.config import GRPOConfig

    # Envs that a run's file imported from beside it, if the command is run there.
    sys.path.insert(0, str(Path.cwd()))
    state = _unpickle(checkpoint, "class_and_ctor_args.pkl")["ctor_args_and_kwargs"][0][0]
    config = GRPOConfig.from_state(dict(state))
    if not isinstance(config, GRPOConfig):
        raise checkpoints.CheckpointError(f"{checkpoint} is of a run with {type(config).__name__}, not GRPOConfig")
    return config


def generation_settings(config: GRPOConfig) -> dict[str, Any]:
    """What responses depend on besides the policy, the prompt and the seed, as it is written beside results."""
    from rllib_exit.settings import WHOLE_DISTRIBUTION

    names = ("dtype", "max_model_len", "max_response_tokens", "temperature", *WHOLE_DISTRIBUTION, "stop")
    return {name: getattr(config, name) for name in names}


def load_weights(checkpoint: Path) -> np.ndarray:
    """(bytes,) uint8, the policy's weights in a checkpoint as a float32 safetensors file."""
    from rllib_exit.learner.learner_group import load_policy
    from rllib_exit.settings import LoRASettings

    config = load_config(checkpoint)
    whole = checkpoints.Checkpoint(checkpoint)
    return load_policy(whole, config.model_path, config.dtype, LoRASettings.of(config))


def load_iteration(checkpoint: Path | checkpoints.Place) -> int:
    """How many iterations were done when a checkpoint was written."""
    return _unpickle(checkpoint, "algorithm_state.pkl")["training_iteration"]


def _unpickle(path: Path | checkpoints.Place, name: str) -> Any:
    checkpoint = checkpoints.Checkpoint(path)
    if name not in checkpoint.names:
        raise checkpoints.CheckpointError(f"{path} is no checkpoint of a training run: it has no {name}")
    try:
        return pickle.loads(checkpoint.read(name))
    except ModuleNotFoundError as error:
        raise checkpoints.CheckpointError(
            f"{path}/{name} needs the module {error.name!r}: install it, or run in the directory that holds it"
        ) from error


def cast(weights: np.ndarray, dtype: str) -> list[list[np.ndarray]]:
    """A safetensors file's tensors in another dtype, as :meth:`Generator.update_weights` takes them."""
    import numpy as np
    import torch
    from safetensors.torch import load, save

    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load(weights.tobytes()).items()}
    return [[np.frombuffer(save(tensors), np.uint8)]]


def load_into(env_runners: Dispatcher, checkpoint: Path, config: GRPOConfig) -> None:
    """Gives a checkpoint's weights to env runners."""
    import ray

    from rllib_exit.env_runners.llm_env_runner import remote_call
    from rllib_exit.weight_sync.weight_store import StoredWeights

    files: list[Any] = cast(load_weights(checkpoint), config.dtype)
    if config.num_env_runners:
        files = [ray.put(file) for file in files]
    weights = StoredWeights.full(load_iteration(checkpoint), files)
    env_runners.broadcast(remote_call("update_weights", weights))


@contextmanager
def open_env_runners(config: GRPOConfig) -> Iterator[Dispatcher]:
    """The env runners of a command: ``num_env_runners`` actors, or with 0 one in this process, without Ray.

    What goes wrong in their episodes or engines becomes a CommandError.
    """
    import ray

    from rllib_exit.env_runners.dispatcher import EnvRunnersLostError
    from rllib_exit.env_runners.generator import EngineError
    from rllib_exit.env_runners.llm_env_runner import env_runners_of_its_own
    from rllib_exit.env_runners.player import EpisodeError

    if not config.num_env_runners:
        # A thread of this process starts the engine, and imports it, too. Two threads that import a module at once may
        # each see a part of it.
        import transformers.modeling_utils  # noqa: F401

    config = config.copy(copy_frozen=False)
    # The engines have no learners beside them, and get the whole weights of a checkpoint.
    config.colocated, config.weight_transfer, config.lora_sync = False, "object_store", "merged"
    try:
        if number := config.num_env_runners:
            each = {"CPU": config.num_cpus_per_env_runner, "GPU": config.num_gpus_per_env_runner}
            needed = {name: (amount or 0) * number for name, amount in each.items()}
            init_ray()
            require(f"{number} env runners need", needed, "use a lower --env-runners")
        with env_runners_of_its_own(config) as env_runners:
            yield env_runners
    except (EpisodeError, EngineError, EnvRunnersLostError) as error:
        raise CommandError(f"{error}") from error
    finally:
        if config.num_env_runners:
            ray.shutdown()


# Environment variables whose names begin so are settings of the processes that learn and generate.
_OF_WORKERS = ("NCCL_", "TORCH_NCCL_", "VLLM_", "GLOO_")


def init_ray(verbose: bool = False, num_cpus: int | None = None, dashboard: bool = False) -> None:
    """Joins the Ray cluster that RAY_ADDRESS names; without it, starts Ray here and joins none by chance.

    Environment variables of NCCL, Gloo and vLLM go to the workers on all nodes.

    Args:
        verbose: Whether the workers' logs are shown.
        num_cpus: The CPUs that Ray has, if it is started here; by default those of the machine.
        dashboard: Whether Ray's dashboard is started with it, which takes seconds.
    """
    import ray

    begun, here = time.perf_counter(), "RAY_ADDRESS" not in os.environ
    # Ray would start a worker for every CPU at once. Trials, which have an environment of their own, never use them.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    variables = {name: value for name, value in os.environ.items() if name.startswith(_OF_WORKERS)}
    context = ray.init(
        address="local" if here else None,
        num_cpus=num_cpus,
        include_dashboard=dashboard if here else None,
        runtime_env={"env_vars": variables} if variables and not here else None,
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
    )
    say(f"{'start' if here else 'join'} Ray: {duration(time.perf_counter() - begun)}")
    if url := context.dashboard_url:
        say(f"Ray dashboard: http://{url}")


def require(who: str, needed: Mapping[str, float], mend: str) -> None:
    """Raises a ValueError if Ray lacks resources that somebody needs, who would wait for them forever."""
    import ray

    there = ray.cluster_resources()
    for name, amount in needed.items():
        if amount > there.get(name, 0):
            raise ValueError(
                f"{who} {amount:g} {name} and Ray has {there.get(name, 0):g}: {mend}, or start Ray on more nodes and "
                "set RAY_ADDRESS"
            )
