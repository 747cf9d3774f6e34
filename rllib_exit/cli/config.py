"""The config of a command: what a Python file configures, with ``--set``'s overrides."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

import rllib_exit

if TYPE_CHECKING:
    from ray.tune import TuneConfig

    from rllib_exit.grpo.config import GRPOConfig

Scale = Annotated[
    str, typer.Option(help="Which config the file makes: auto, cpu or paper. auto: paper where there are GPUs.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field: lr=1e-6, env_config.limit=10. Repeatable."),
]


def load_file(file: Path) -> tuple[GRPOConfig, dict[str, Any], TuneConfig | None]:
    """Runs a Python file and takes its ``config``, ``stop`` and ``tune_config``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no usable ``config``, ``stop`` or ``tune_config``.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")

    import ray.cloudpickle
    from ray.tune import TuneConfig

    from rllib_exit.grpo.config import GRPOConfig

    for folder in {file.parent.absolute(), Path.cwd()}:
        _check_envs(folder)
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
    tune_config = getattr(module, "tune_config", None)
    if not isinstance(config, GRPOConfig):
        has = "no `config`" if config is None else f"a `config` of type {type(config).__name__}"
        raise ValueError(f"{file} has {has}: set `config = GRPOConfig()...` in it")
    if not isinstance(stop, Mapping):
        raise ValueError(
            f"{file} has a `stop` of type {type(stop).__name__}: use a dict like {{'training_iteration': 10}}"
        )
    if not isinstance(tune_config, TuneConfig | None):
        raise ValueError(
            f"{file} has a `tune_config` of type {type(tune_config).__name__}: "
            "use ray.tune.TuneConfig(metric=…, mode=…)"
        )
    return config, dict(stop), tune_config


def _check_envs(folder: Path) -> None:
    """Raises a ValueError if a folder on the import path has an `envs` of its own."""
    ours = Path(rllib_exit.__file__).resolve().parents[1] / "envs"
    for own in (folder / "envs.py", folder / "envs"):
        if own.resolve() != ours and (own.is_file() or any(own.glob("*.py"))):
            raise ValueError(
                f"{own} and a package of rllib-exit have one name, `envs`: rename it, to my_envs for example"
            )


def override(config: GRPOConfig, settings: Sequence[str]) -> GRPOConfig:
    """A copy of the config with ``--set``'s settings.

    Args:
        config: The config.
        settings: ``key=value`` each; a value is a JSON or YAML literal, or None.

    Raises:
        ValueError: If a setting is malformed or names no field.
    """
    from rllib_exit.settings import unknown_name

    config = config.copy(copy_frozen=False)
    pairs = [_parse_setting(setting) for setting in settings]
    # A strategy sets other fields to its preset: what was asked for besides comes after it.
    for key, value in sorted(pairs, key=lambda pair: pair[0] != "strategy"):
        name, *path = key.split(".")
        if name not in (names := config.field_names()):
            raise ValueError(unknown_name(f"--set {key}: the config", "field", name, names))
        if name == "strategy" and not path:
            config.curriculum(value)
        elif path:
            setattr(config, name, replaced(getattr(config, name), path, value, key))
        else:
            setattr(config, name, value)
    return config


def _parse_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {setting}: write it as key=value")
    if text == "None":
        return key, None
    try:
        return key, json.loads(text)  # YAML takes 1e-6 for a string
    except json.JSONDecodeError:
        pass
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {setting}: the value is no JSON or YAML literal ({error})") from error


def replaced(old: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """A copy of a nested dict with the value at the path."""
    if not path:
        return value
    if old is None:
        old = {}
    if not isinstance(old, Mapping):
        raise ValueError(f"--set {key}: it reaches into {old!r}, which is no dict")
    return {**old, path[0]: replaced(old.get(path[0]), path[1:], value, key)}


def check(config: GRPOConfig) -> None:
    """Finds a config's mistakes before any actor is started; makes its model's path absolute.

    Raises:
        ValueError: If a field is wrong, or the model is not to be had.
    """
    from rllib_exit.env_runners.environments import make_env
    from rllib_exit.models import resolve_model

    config.copy(copy_frozen=False).validate()
    make_env(config.env, config.env_config)
    evaluation: Any = config.get_evaluation_config_object()  # None if the config is the evaluation's itself
    if config.evaluation_interval and evaluation is not None:
        make_env(evaluation.env, evaluation.env_config)
    for name in ("model_name", "embedding_model"):
        model = getattr(config, name)
        if model is not None:
            path = resolve_model(model)
            if Path(model).expanduser().is_dir():
                setattr(config, name, path)
