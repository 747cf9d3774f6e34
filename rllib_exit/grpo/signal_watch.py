"""Notices where training has nothing to learn from, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# An iteration has no signal if more than this share of its groups has rollouts of one quality only.
NO_SIGNAL = 0.95
# So many iterations without a signal, one after the other, are worth a warning.
PATIENCE = 5


@dataclass
class SignalWatch:
    """Counts the iterations in a row that have no signal.

    Attributes:
        num_silent: Their number.
    """

    num_silent: int = 0

    def look(self, result: Mapping[str, Any]) -> str | None:
        """Looks at an iteration's result.

        Returns:
            A warning, once for all iterations in a row that have no signal; it names the likely cause and the mend.
        """
        silent = result["curriculum"]["zero_variance_fraction"]
        self.num_silent = self.num_silent + 1 if silent > NO_SIGNAL else 0
        if self.num_silent != PATIENCE:
            return None
        rollouts = result["rollouts"]
        unended = max(rollouts["invalid_fraction"], rollouts["truncated_fraction"])
        if unended > 0.5:
            cause = f"{unended:.0%} of the rollouts have a response without a valid ending"
            mend = "warm the model up on demonstrations (`.warm_start()`), or raise max_response_tokens"
        elif rollouts["quality_mean"] == 1:
            cause, mend = "every rollout solves its task", "take harder tasks"
        elif rollouts["quality_mean"] == 0:
            cause = "no rollout solves its task"
            mend = "take easier tasks, warm the model up on demonstrations (`.warm_start()`), or take a larger model"
        else:
            cause = "the rollouts of a group are all alike"
            mend = "raise the temperature, or lower the learning rate if the entropy has collapsed"
        return (
            f"nothing was learned in the last {PATIENCE} iterations: the rollouts of {silent:.0%} of the groups are "
            f"all of one quality, so that their advantages are 0. The likely cause: {cause}. What may help: {mend}."
        )
