"""The config of a command: what a Python file configures, with ``--set``'s overrides."""

from __future__ import annotations

import copyreg
import functools
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NewType, cast

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


def check_file(file: Path) -> None:
    """Finds out what needs no import: whether there is such a file, and it is Python.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not Python.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    with _one_line(file):
        compile(file.read_bytes(), file, "exec")


def load_file(file: Path, *, any_algorithm: bool = False) -> tuple[GRPOConfig, dict[str, Any], TuneConfig | None]:
    """Runs a Python file and takes its ``config``, ``stop`` and ``tune_config``.

    Args:
        file: The file.
        any_algorithm: Whether the config may be that of another algorithm of RLlib's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no usable ``config``, ``stop`` or ``tune_config``.
    """
    check_file(file)

    import ray.cloudpickle
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
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
    before = set(sys.modules)
    with _one_line(file):
        spec.loader.exec_module(module)
    # The workers cannot import the file and its neighbours: what they define, an env for one, goes to them by value.
    for name in {spec.name} | {name for name in set(sys.modules) - before if _is_beside(sys.modules[name], file)}:
        ray.cloudpickle.register_pickle_by_value(sys.modules[name])
        _by_value.add(name)

    config, stop = getattr(module, "config", None), getattr(module, "stop", {})
    tune_config = getattr(module, "tune_config", None)
    if not isinstance(config, AlgorithmConfig if any_algorithm else GRPOConfig):
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
    _check_travels(file, config, spec.name)
    return cast("GRPOConfig", config), dict(stop), tune_config


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """Says in one line what a user's file raises, and where."""
    try:
        yield
    except SyntaxError as error:
        raise ValueError(f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}") from error
    except (ValueError, OSError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == file.absolute()]
        raise ValueError(f"{file}:{lines[-1]}: {type(error).__name__}: {error}") from error


def _is_beside(module: Any, file: Path) -> bool:
    """Whether a module is one of the user's, beside the file or in a folder there."""
    source, folder = getattr(module, "__file__", None), file.parent.resolve()
    if source is None or not Path(source).resolve().is_relative_to(folder):
        return False
    installed = "site-packages" in Path(source).resolve().relative_to(folder).parts
    return not installed and module.__name__.partition(".")[0] not in ("rllib_exit", "envs")


_by_value: set[str] = set()  # the modules that go to the workers by value


def _by_value_too(take_apart: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], Any]:
    """How to pickle what pickle takes by its name always, also where that name leads nowhere."""

    def reduce(thing: Any) -> Any:
        by_name = thing.__module__ in sys.modules and thing.__module__ not in _by_value
        return thing.__qualname__ if by_name else take_apart(thing)

    return reduce


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _new_type(name: str, supertype: Any, module: str) -> Any:
    new = NewType(name, supertype)  # type: ignore[misc]
    new.__module__ = module
    return new


copyreg.pickle(functools._lru_cache_wrapper, _by_value_too(lambda f: (_cached, (f.__wrapped__, f.cache_parameters()))))
copyreg.pickle(
    cast(Any, NewType), _by_value_too(lambda new: (_new_type, (new.__name__, new.__supertype__, new.__module__)))
)


def _check_travels(file: Path, config: Any, module: str) -> None:
    """Raises a ValueError if Ray's workers, which cannot import the file, could not make sense of its config."""
    from ray import cloudpickle

    loaded = sys.modules[module]
    try:
        pickled = cloudpickle.dumps(config.to_dict())  # pyright: ignore[reportPrivateImportUsage]
        del sys.modules[module]
        cloudpickle.loads(pickled)
    except Exception as error:
        raise ValueError(
            f"{file}: its config cannot be sent to Ray's workers ({type(error).__name__}: {error}): make what it holds "
            "inside the functions that use it"
        ) from error
    finally:
        sys.modules[module] = loaded


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
    from rllib_exit.settings_group import unknown_name

    config = config.copy(copy_frozen=False)
    pairs = [_parse_setting(setting) for setting in settings]
    # A strategy sets other fields to its preset: what was asked for besides comes after it.
    for key, value in sorted(pairs, key=lambda pair: pair[0] != "strategy"):
        name, *path = key.split(".")
        names = [name for name in vars(config) if not name.startswith("_")]
        if name not in names:
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
        ValueError: If a field is wrong, the environment fails in an episode, or the model is not to be had.
    """
    from rllib_exit.env_runners.environments import make_env, rehearse
    from rllib_exit.grpo.config import vllm_generator
    from rllib_exit.models import check_model, resolve_model

    config.copy(copy_frozen=False).validate()
    if config.generator_class is vllm_generator and importlib.util.find_spec("vllm") is None:
        raise ValueError("vllm is not installed: run `pip install 'rllib-exit[cpu]'`, on GPUs `'rllib-exit[gpu]'`")
    evaluation: Any = config.get_evaluation_config_object()  # None if the config is the evaluation's itself
    for each in (config, *([evaluation] if config.evaluation_interval and evaluation is not None else [])):
        try:
            env = make_env(each.env, each.env_config)
        except (ValueError, OSError):
            raise
        except Exception as error:
            raise ValueError(f"env {each.env!r} cannot be made: {type(error).__name__}: {error}") from error
        rehearse(env)
    for name in ("model_name", "embedding_model"):
        model = getattr(config, name)
        if model is not None:
            path = resolve_model(model)
            if Path(model).expanduser().is_dir():
                setattr(config, name, path)
    check_model(config.model_path, has_template="chat_template" in config.chat_template_kwargs)
