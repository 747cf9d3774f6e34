"""What training runs have left in their directories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARAMS, RESULTS = "params.json", "result.json"

# What a run's outcome depends on, besides its seed: the rows of the paper's Tables 4 to 6 and what we added.
HYPER_PARAMETERS: Mapping[str, str] = {
    "model_name": "Model",
    "dtype": "Data type",
    "lr": "Learning rate",
    "prompts_per_batch": "Prompts per batch",
    "rollouts_per_prompt": "Rollouts per prompt",
    "num_epochs": "Epochs per batch",
    "minibatch_size": "Minibatch size",
    "clip_param": "Clipping ε",
    "clip_param_high": "Clipping ε above 1",
    "kl_coeff": "KL coefficient β",
    "ref_update_interval": "Ref. update interval",
    "ref_update_rate": "Ref. update rate",
    "normalize_std": "Advantages over std.",
    "loss_aggregation": "Loss aggregation",
    "mismatch_clip": "Mismatch clip",
    "overlong_filtering": "Overlong filtering",
    "lr_warmup_steps": "Warm-up updates",
    "weight_decay": "Weight decay",
    "grad_clip": "Gradient clip",
    "lora_r": "LoRA rank",
    "max_policy_lag": "Policy lag",
    "temperature": "Temperature",
    "max_model_len": "Context tokens",
    "max_response_tokens": "Response tokens",
    "buffer_size": "Total buffer size",
    "min_buffer_size": "Min. buffer size",
    "self_iteration_prob": "Self-iteration prob.",
    "divergence_prob": "Divergence prob.",
    "self_iteration": "Self-iteration steps",
    "inverse_temperature": "Inverse temperature α",
    "expansions_per_group": "Expansions per group",
    "diversity_bonus": "Diversity bonus",
    "diversity_metric": "Diversity metric",
    "embedding_model": "Embedding model",
}


def read_params(trial: Path) -> dict[str, Any] | None:
    """The config that Tune wrote into a trial's directory; None if there is none."""
    file = trial / PARAMS
    return json.loads(file.read_text()) if file.is_file() else None


def identity(trial: Path) -> str:
    """The same for the trials of one run, as where it was resumed: they share experiment, settings and seed."""
    params = read_params(trial)
    if params is None:
        return str(trial.absolute())
    names = ("strategy", "seed", "env", "env_config", *HYPER_PARAMETERS)
    return json.dumps([str(trial.absolute().parent), {name: params.get(name) for name in names}], sort_keys=True)


def env_name(env: Any) -> str:
    """The name of an environment's class, also where Tune wrote it down as ``<class 'module.Name'>``."""
    if isinstance(env, type):
        return env.__name__
    return str(env).removeprefix("<class '").removesuffix("'>").rpartition(".")[2]
