"""What an iteration's result says of its rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from envs.base import Task
from rllib_exit.grpo.rollout_queue import RolledOut
from rllib_exit.rollouts import means


def rollout_metrics(rolled_out: RolledOut, *, group_size: int) -> dict[str, float]:
    """The numbers under ``rollouts/``: those of every domain, then the domain's own."""
    groups = [scored.group for scored in rolled_out.groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    tokens = [rollout.num_response_tokens for rollout in rollouts]
    return {
        "return_mean": _mean([rollout.return_ for rollout in rollouts]),
        "quality_mean": _mean([rollout.quality for rollout in rollouts]),
        "response_tokens_mean": _mean(tokens),
        "truncated_fraction": _mean([rollout.truncated for rollout in rollouts]),
        "invalid_fraction": _mean([not rollout.valid for rollout in rollouts]),
        "skipped_prompts": sum(group.skipped for group in groups),
        "tokens_per_s": sum(tokens) / rolled_out.seconds,
        "retried_episodes": sum(rollout.attempts - 1 for rollout in rollouts),
        "dropped_episodes": sum(group_size - len(group.rollouts) for group in groups if not group.skipped),
        "lost_env_runners": rolled_out.num_lost,
        **means([rollout.metrics for rollout in rollouts]),
    }


def task_metrics(rolled_out: RolledOut, tasks: Mapping[str, Task]) -> dict[str, float]:
    """How hard the selected tasks are, in the domain's own terms (paper section 5.4)."""
    selected = [tasks[scored.group.request.instance.task_id] for scored in rolled_out.groups]
    return {f"{name}_mean": value for name, value in means([t.data.get("metrics", {}) for t in selected]).items()}


def policy_lag(rolled_out: RolledOut, policy_version: int) -> int:
    """How many updates the oldest rollouts were behind the policy that was trained on them; 0 is on-policy.

    Args:
        rolled_out: The rollouts.
        policy_version: The version after the update, which is one more than that before it.
    """
    return policy_version - 1 - min(scored.group.policy_version for scored in rolled_out.groups)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
