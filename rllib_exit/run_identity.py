"""Which run a trial's directory belongs to, as Tune's files in it say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARAMS, RESULTS = "params.json", "result.json"

# What a run's outcome depends on besides its seed: the rows of the paper's Tables 4 to 6, and what we added. Where the
# run was made and how fast it was (learners, engines, sizes of micro-batches) is not part of it.
HYPER_PARAMETERS: Mapping[str, str] = {
    "model_name": "Model",
    "dtype": "Data type",
    "warm_start_epochs": "Warm-start epochs",
    "warm_start_lr": "Warm-start learning rate",
    "warm_start_batch_size": "Warm-start batch size",
    "warm_start_env_config": "Warm-start environment",
    "lr": "Learning rate",
    "prompts_per_batch": "Prompts per batch",
    "rollouts_per_prompt": "Rollouts per prompt",
    "refill_zero_variance": "Refill of groups",
    "num_epochs": "Epochs per batch",
    "minibatch_size": "Minibatch size",
    "clip_param": "Clipping ε",
    "clip_param_high": "Clipping ε above 1",
    "kl_coeff": "KL coefficient β",
    "ref_update_interval": "Ref. update interval",
    "ref_update_rate": "Ref. update rate",
    "normalize_std": "Advantages over std.",
    "loss": "Loss",
    "loss_aggregation": "Loss aggregation",
    "mismatch_clip": "Mismatch clip",
    "mismatch_mode": "Mismatch mode",
    "overlong_filtering": "Overlong filtering",
    "lr_warmup_steps": "Warm-up updates",
    "lr_decay_steps": "Decay updates",
    "weight_decay": "Weight decay",
    "adam_betas": "AdamW's β",
    "grad_clip": "Gradient clip",
    "lora_r": "LoRA rank",
    "lora_alpha": "LoRA α",
    "lora_target_modules": "LoRA layers",
    "max_policy_lag": "Policy lag",
    "temperature": "Temperature",
    "stop": "Stop strings",
    "chat_template_kwargs": "Chat template",
    "max_model_len": "Context tokens",
    "compact_history_chars": "History compacted to",
    "max_response_tokens": "Response tokens",
    "buffer_size": "Total buffer size",
    "min_buffer_size": "Min. buffer size",
    "self_iteration_prob": "Self-iteration prob.",
    "divergence_prob": "Divergence prob.",
    "self_iteration": "Self-iteration steps",
    "inverse_temperature": "Inverse temperature α",
    "learnability": "Learnability score",
    "learnability_of": "Learnability of",
    "staleness_coeff": "Staleness coefficient",
    "exploration_coeff": "Exploration coefficient",
    "expansions_per_group": "Expansions per group",
    "diversity_bonus": "Diversity bonus",
    "diversity_metric": "Diversity metric",
    "embedding_model": "Embedding model",
}


def read_params(trial: Path) -> dict[str, Any] | None:
    """The config that Tune wrote into a trial's directory; None if there is none.

    Raises:
        ValueError: If it is damaged.
    """
    file = trial / PARAMS
    try:
        return json.loads(file.read_text()) if file.is_file() else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error})") from error


def identity(trial: Path) -> str:
    """A text that is the same for all trials of one run.

    A run that was resumed has several trials: they share experiment, settings, seed and number in their sweep.
    """
    params = read_params(trial)
    if params is None:
        return str(trial.absolute())
    names = ("strategy", "seed", "env", "env_config", *HYPER_PARAMETERS)
    of_run = {name: params.get(name) for name in names}
    return json.dumps([str(trial.absolute().parent), of_run, _number(trial)], sort_keys=True)


def _number(trial: Path) -> str | None:
    """Tells a trial from the others of its sweep; it is always the same for a run without a sweep."""
    if not (trial / RESULTS).is_file():
        return None
    with open(trial / RESULTS) as lines:
        first = lines.readline()
    # Tune numbers the trials of a session, as in "1a2b3_00004". The trials of a search algorithm have unique ids
    # without a number, and are never begun anew.
    return json.loads(first).get("trial_id", "").rpartition("_")[2] if first.endswith("\n") else None


def env_name(env: Any) -> str:
    """The name of an environment's class, also where Tune wrote it down as ``<class 'module.Name'>``."""
    if isinstance(env, type):
        return env.__name__
    return str(env).removeprefix("<class '").removesuffix("'>").rpartition(".")[2]
