"""What an iteration's result says of its rollouts and of the engines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from ray.rllib.utils.metrics import TIMERS

from envs.base import Task
from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.env_runners.llm_env_runner import remote_call
from rllib_exit.grpo.rollout_queue import RolledOut
from rllib_exit.rollouts import means


def rollout_metrics(
    rolled_out: RolledOut, tasks: Mapping[str, Task], *, policy_version: int
) -> dict[tuple[str, ...], float]:
    """The numbers to report, by their keys in the result.

    Args:
        rolled_out: The iteration's rollouts.
        tasks: The base tasks. Their own numbers say how hard what was selected is (paper section 5.4).
        policy_version: The version after the update, which is one more than that before it. The policy's lag is how
            many updates the oldest rollouts were behind the policy that was trained on them; 0 is on-policy.
    """
    groups = [scored.group for scored in rolled_out.groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    tokens = [rollout.num_response_tokens for rollout in rollouts]
    of_rollouts = {
        **means([rollout.metrics for rollout in rollouts]),  # first: a domain's number replaces none of those below
        "return_mean": _mean([rollout.return_ for rollout in rollouts]),
        "quality_mean": _mean([rollout.quality for rollout in rollouts]),
        "response_tokens_mean": _mean(tokens),
        "truncated_fraction": _mean([rollout.truncated for rollout in rollouts]),
        "invalid_fraction": _mean([not rollout.valid for rollout in rollouts]),
        "skipped_prompts": sum(group.skipped for group in groups),
        "tokens_per_s": sum(tokens) / rolled_out.seconds,
        "retried_episodes": sum(rollout.attempts - 1 for rollout in rollouts),
        "dropped_groups": len(rolled_out.trainable) - len(rolled_out.batch),
        "dropped_episodes": sum(group.num_dropped for group in groups),
        "lost_env_runners": rolled_out.num_lost,
    }
    of_tasks = means([tasks[group.request.instance.task_id].data.get("metrics", {}) for group in groups])
    return {
        **{("rollouts", name): value for name, value in of_rollouts.items()},
        **{("curriculum", f"{name}_mean"): value for name, value in of_tasks.items()},
        (TIMERS, "embed"): sum(scored.seconds for scored in rolled_out.groups),
        ("policy_version",): policy_version,
        ("policy_lag_max",): policy_version - 1 - min(group.policy_version for group in groups),
    }


def engine_metrics(env_runners: Dispatcher) -> dict[tuple[str, ...], float]:
    """What each engine did since the last call, by its keys in the result; an engine has its env runner's number."""
    return {
        ("engine", name, f"engine_{number}"): value
        for number, stats in env_runners.call_all(remote_call("read_engine_stats"))
        for name, value in stats.items()
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
