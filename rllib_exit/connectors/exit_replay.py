"""The replay-buffer connector: the only adapter between the curriculum and RLlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2

from rllib_exit.curriculum.exit import ExIt
from rllib_exit.curriculum.plateau import plateau
from rllib_exit.rollouts import RolloutGroup, RolloutRequest


class ExItReplay(ConnectorV2):
    """Holds the curriculum on the driver, where the Algorithm checkpoints it as a component of its own.

    It stands outside the env runners' and learners' pipelines, whose connectors' state RLlib merges or
    does not save. Called with rollout groups as ``batch`` it updates the task buffer and passes them on. It reports
    what the curriculum does, and ``starting_turn_plateau``, the :func:`plateau` of the starting turns so far.

    Args:
        curriculum: Selects task instances and learns from their groups.
    """

    def __init__(self, curriculum: ExIt) -> None:
        super().__init__()
        self.curriculum = curriculum
        self._starting_turns: list[float] = []

    def select(self, num_prompts: int) -> list[RolloutRequest]:
        """The requests of an iteration (paper section 4, selection)."""
        return self.curriculum.select(num_prompts)

    def __call__(self, *, batch: Sequence[RolloutGroup], metrics: Any = None, **kwargs: Any) -> Sequence[RolloutGroup]:
        """Updates the task buffer with an iteration's groups (paper section 4, expansion)."""
        values = self.curriculum.update(batch)
        # Of replayed instances: how many base tasks there are, at turn 0, is what self_iteration_prob says.
        if values["selected_fraction"]:
            self._starting_turns.append(values["starting_turn_mean"] / values["selected_fraction"])
        values["starting_turn_plateau"] = plateau(self._starting_turns) if self._starting_turns else 0.0
        if metrics is not None:
            for name, value in values.items():
                metrics.log_value(("curriculum", name), value, reduce="mean", window=1)
        return batch

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        return {"curriculum": self.curriculum.get_state(), "starting_turns": list(self._starting_turns)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.curriculum.set_state(state["curriculum"])
        self._starting_turns = list(state["starting_turns"])

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (), {"curriculum": None}
