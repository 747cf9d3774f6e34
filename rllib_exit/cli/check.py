"""``rllib check``: what would go wrong with a run, and what it needs, before anything heavy is loaded."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from rllib_exit.cli.config import Scale, Settings, load_file, override
from rllib_exit.cli.console import Verbose, clear_errors, err, quiet, say, take_scale
from rllib_exit.scale import SCALE_VARIABLE

if TYPE_CHECKING:
    from envs.base import SelfImprovementEnv
    from rllib_exit.grpo.config import GRPOConfig

# How many tasks' prompts are measured.
PROMPTS = 64
# The driver that the CUDA 13 builds of torch and vLLM need.
DRIVER = 580
# What of a GPU a plan may fill: CUDA's context and fragmentation take the rest.
USABLE = 0.92


@dataclass(frozen=True)
class Finding:
    """What one check found: ``good`` is None where it could not be made."""

    check: str
    good: bool | None
    text: str


def check_file(
    file: Annotated[Path, typer.Argument(help="Python file with `config`, as of `rllib train file`.")],
    scale: Scale = "auto",
    results_dir: Annotated[str, typer.Option(help="Where results and checkpoints would go.")] = "results",
    gpu_gb: Annotated[
        float | None, typer.Option(min=1, help="The memory of a GPU in GB; by default that of this machine's first.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    settings: Settings = None,
    verbose: Verbose = False,
) -> None:
    """Checks what a Python file would train: settings, environment, prompts, memory, disk, drivers and resources.

    Plays one canned episode of every kind, and loads no weights. Ends with exit code 1 if there is a problem.
    """
    with clear_errors(verbose):
        quiet(verbose)
        if not as_json:
            take_scale(scale)
        else:
            os.environ[SCALE_VARIABLE] = scale
        config, _, _ = load_file(file)
        findings = []
        for finding in findings_of(override(config, settings or []), results_dir, gpu_gb):
            findings.append(finding)
            if not as_json:
                sign = {True: "ok     ", False: "PROBLEM", None: "unknown"}[finding.good]
                say(f"{sign}  {finding.check}: {finding.text}")
        if as_json:
            print(json.dumps([asdict(finding) for finding in findings], indent=1))
    problems = sum(finding.good is False for finding in findings)
    if problems:
        err.print(f"{problems} of {len(findings)} checks found a problem", style="red")
        raise typer.Exit(1)


def findings_of(config: GRPOConfig, results_dir: Path | str, gpu_gb: float | None = None) -> Iterator[Finding]:
    """Makes all checks; those that a failed one would mislead are left out."""
    yield (settings := _made("settings", lambda: _settings(config)))
    if not settings.good:
        return
    env: list[SelfImprovementEnv] = []
    yield (made := _made("environment", lambda: _environment(config, env)))
    if made.good:
        yield _made("canned episodes", lambda: _episodes(env[0]))
    shape: list[Any] = []
    yield (model := _made("model", lambda: _model(config, shape)))
    if model.good:
        if made.good:
            yield _made("prompts", lambda: _prompts(config, env[0]))
        gpu = gpu_gb * 1e9 if gpu_gb else _gpu_memory()
        yield from _memory(config, shape[0], gpu)
        if "://" not in str(results_dir):  # a bucket has room
            yield _disk(config, shape[0], Path(results_dir))
    yield _driver(config)
    yield _resources(config)


def _made(check: str, make: Callable[[], str]) -> Finding:
    """What a check says, or the error that it ends with."""
    try:
        return Finding(check, True, make())
    except Exception as error:
        own = isinstance(error, ValueError | OSError)
        return Finding(check, False, str(error) if own else f"{type(error).__name__}: {error}")


def _settings(config: GRPOConfig) -> str:
    config.copy(copy_frozen=False).validate()
    return f"{config.strategy}, {config.prompts_per_batch} prompts × {config.rollouts_per_prompt} rollouts"


def _environment(config: GRPOConfig, made: list[SelfImprovementEnv]) -> str:
    from rllib_exit.env_runners.environments import make_env

    made.append(make_env(config.env, config.env_config))
    text = f"{type(made[0]).__name__} with {len(made[0].tasks):,} tasks"
    evaluation: Any = config.get_evaluation_config_object()
    if config.evaluation_interval and evaluation is not None:
        text += f", {len(make_env(evaluation.env, evaluation.env_config).tasks):,} in evaluation"
    return text


def _episodes(env: SelfImprovementEnv) -> str:
    """Plays the first task: its demonstration or a canned response, and a step of each kind from there."""
    from envs.base import Kind, TaskInstance

    task_id = next(iter(env.tasks))
    try:
        responses = list(env.demonstration(env.tasks[task_id]))
    except NotImplementedError:
        responses = ["This is a canned response."]
    rewards: dict[str, float] = {}
    for kind in get_args(Kind):
        iterate = None if kind == "base" else env.turns[0]
        env.reset(options={"instance": TaskInstance(task_id, iterate=iterate, kind=kind)})
        for response in responses:
            _, reward, done, *_ = env.step(response)
            rewards[kind] = reward
            if done:
                break
        if not env.turns:
            return "the first response ends the episode without an iterate to improve on"
    return "rewards " + ", ".join(f"{kind} {reward:.3g}" for kind, reward in rewards.items())


def _model(config: GRPOConfig, made: list[Any]) -> str:
    from transformers import AutoConfig

    from rllib_exit.grpo.memory_plan import ModelShape

    made.append(ModelShape.of(AutoConfig.from_pretrained(_name(config))))
    return f"{config.model_name}, {made[0].parameters / 1e6:,.0f} million parameters"


def _name(config: GRPOConfig) -> str:
    """What transformers finds the model's config and tokenizer by; a hub model's weights are not fetched."""
    from rllib_exit.models import resolve_model

    name = config.model_name or ""
    return resolve_model(name) if name.startswith("bundled:") or Path(name).is_dir() else name


def _prompts(config: GRPOConfig, env: SelfImprovementEnv) -> str:
    from envs.base import TaskInstance
    from rllib_exit.chat import ChatTokenizer

    chat = ChatTokenizer(_name(config), config.chat_template_kwargs)
    lengths = {}
    for task_id in list(env.tasks)[:: max(1, len(env.tasks) // PROMPTS)]:
        env.reset(options={"instance": TaskInstance(task_id)})
        lengths[task_id] = len(chat.encode(env.messages()))
    room = config.max_model_len - config.max_response_tokens
    longest = max(lengths, key=lambda task_id: lengths[task_id])
    too_long = sum(length > room for length in lengths.values())
    if too_long:
        raise ValueError(
            f"{too_long} of {len(lengths)} prompts are longer than {room} tokens, up to {lengths[longest]} (task "
            f"{longest}): raise max_model_len ({config.max_model_len}), or lower max_response_tokens "
            f"({config.max_response_tokens})"
        )
    return f"up to {lengths[longest]} tokens, where max_model_len less max_response_tokens has room for {room}"


def _memory(config: GRPOConfig, shape: Any, gpu: float | None) -> Iterator[Finding]:
    from rllib_exit.grpo import memory_plan

    needs = memory_plan.learner(shape, config)
    engine = memory_plan.engine(shape, config)
    token = memory_plan.cache_bytes_per_token(shape, config)
    learner_on_gpu, engine_on_gpu = config.num_gpus_per_learner > 0, config.num_gpus_per_env_runner > 0
    total, text = sum(needs.values()), _table(needs)
    room = gpu if learner_on_gpu else _host_memory()
    if room is None:
        mend = "name the GPU's memory with --gpu-gb" if learner_on_gpu else "the node's memory is not known here"
        yield Finding("learner's memory", None, f"{text}; {mend}")
    else:
        good = total <= USABLE * room
        kind = "" if learner_on_gpu else " of host memory"
        text += f", of {room / 1e9:.0f} GB{kind}" + ("" if good else _smaller(config))
        yield Finding("learner's memory", good, text)
    host = memory_plan.learner_host(shape, config)
    yield Finding("learner's host memory", None, f"{_table(host)}, for each learner")
    text = f"{_table(engine)}, and {token / 1e3:.1f} kB of cache a token"
    share = memory_plan.engine_share(config)
    if not engine_on_gpu or gpu is None:
        cache = config.num_envs_per_env_runner * config.max_model_len * token
        full = f"{cache / 1e9:.3g} GB if all {config.num_envs_per_env_runner} episodes fill their context"
        yield Finding("engine's memory", None, f"{text}, {full}")
        return
    tokens = memory_plan.cache_tokens(shape, config, gpu)
    contexts = tokens / config.max_model_len
    mend = "" if contexts >= 1 else "; raise tensor_parallel_size or gpu_memory_utilization, or lower max_model_len"
    yield Finding(
        "engine's memory",
        contexts >= 1,
        f"{text}; {share} of {gpu / 1e9:.0f} GB leaves {max(0.0, tokens):,.0f} tokens, which is "
        f"{max(0.0, contexts):.1f} full contexts, for {config.num_envs_per_env_runner} episodes at once{mend}",
    )
    if config.colocated:
        rests = memory_plan.resting_learner(shape, config)
        most = math.floor(100 * (USABLE - sum(rests.values()) / gpu)) / 100
        mend = "" if share <= most else f"; lower gpu_memory_utilization to {max(0.0, most)}, or shard the learners"
        text = f"between updates the learner keeps {_table(rests)}, beside the engine's {share * gpu / 1e9:.3g} GB"
        yield Finding("shared GPU", share <= most, f"{text} of {gpu / 1e9:.0f} GB{mend}")


def _smaller(config: GRPOConfig) -> str:
    """What would make a learner smaller, the cheapest first."""
    mends = []
    if not config.gradient_checkpointing:
        mends.append("set gradient_checkpointing=True")
    mends.append(f"lower max_tokens_per_micro_batch ({config.max_tokens_per_micro_batch})")
    if config.sharding == "ddp" and config.num_learners > 1:
        mends.append("shard with .fsdp2()")
    mends.append(f"use more learners than {max(1, config.num_learners)}, with .fsdp2()")
    if config.lora_r is None:
        mends.append("train adapters with .lora(r=16)")
    return f"; {', or '.join(mends)}"


def _table(needs: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in needs.items())
    return f"{sum(needs.values()) / 1e9:.3g} GB ({parts})"


def _disk(config: GRPOConfig, shape: Any, results_dir: Path) -> Finding:
    from rllib_exit.grpo import memory_plan

    there = next(path for path in (results_dir.absolute(), *results_dir.absolute().parents) if path.exists())
    needs, free = memory_plan.checkpoints(shape, config), shutil.disk_usage(there).free
    text = f"{memory_plan.CHECKPOINTS} checkpoints take {needs / 1e9:.3g} GB, {there} has {free / 1e9:.1f} GB free"
    return Finding("disk", needs < free, text + ("" if needs < free else ": choose another --results-dir"))


def _gpu_memory() -> float | None:
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _host_memory() -> float | None:
    """This machine's memory in bytes; None where the run is on other machines."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None if "RAY_ADDRESS" in os.environ else float(there)


def _driver(config: GRPOConfig) -> Finding:
    import torch

    if not config.num_gpus_per_learner and not config.num_gpus_per_env_runner:
        return Finding("driver", None, "the config asks for no GPU")
    if torch.version.cuda is None:
        mend = "the config asks for GPUs: install the CUDA build (`make test EXTRA=gpu`)"
        return Finding("driver", False, f"torch {torch.__version__} is built without CUDA, and {mend}")
    file = Path("/proc/driver/nvidia/version")
    if not file.is_file():
        return Finding("driver", None, "this machine has no NVIDIA driver: check on a node that has GPUs")
    words = file.read_text().split()
    version = next((word for word in words if word[:3].isdigit() and "." in word), "0")
    old = int(version.split(".")[0]) < DRIVER and int(torch.version.cuda.split(".")[0]) >= 13
    text = f"driver {version}, torch for CUDA {torch.version.cuda}"
    return Finding("driver", not old, text + (f": CUDA 13 needs driver {DRIVER} or later" if old else ""))


def _resources(config: GRPOConfig) -> Finding:
    """Whether the Ray cluster of RAY_ADDRESS, or this machine, has what the run reserves."""
    from rllib_exit.grpo.algorithm import GRPO

    request: Any = GRPO.default_resource_request(config.to_dict())
    needs = {name: amount for name, amount in request.required_resources.items() if amount}
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in sorted(needs.items()))
    if "RAY_ADDRESS" in os.environ:
        import ray

        from rllib_exit.cli.runs import init_ray

        init_ray(verbose=False)
        there, where = ray.cluster_resources(), f"the cluster at {os.environ['RAY_ADDRESS']}"
        ray.shutdown()
    else:
        import torch

        there, where = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}, "this machine"
    lacking = [f"{there.get(name, 0):g} {name}" for name, amount in needs.items() if amount > there.get(name, 0)]
    if lacking:
        mend = "use fewer learners or env runners, or name a larger cluster in RAY_ADDRESS"
        return Finding("resources", False, f"the run reserves {wanted}, {where} has {', '.join(lacking)}: {mend}")
    return Finding("resources", True, f"the run reserves {wanted}, which {where} has")
