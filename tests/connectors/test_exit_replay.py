from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from envs.base import Turn
from rllib_exit.connectors.exit_replay import ExItReplay
from rllib_exit.curriculum.exit import STRATEGIES, ExIt
from rllib_exit.rollouts import Rollout, RolloutGroup


def make() -> ExItReplay:
    return ExItReplay(ExIt(STRATEGIES["exit"], ["a", "b"], np.random.default_rng(0)))


def train(replay: ExItReplay, starting_turn: float, selected: float = 0.5) -> dict[Any, float]:
    """One iteration, whose replayed instances start at this turn on average; what it reports."""
    reported: dict[Any, float] = {}
    metrics = SimpleNamespace(log_value=lambda key, value, **kwargs: reported.__setitem__(key, value))
    groups = [
        RolloutGroup(request, (Rollout((), (Turn("x"),), 1.0, 1.0), Rollout((), (Turn("y"),), 0.0, 0.0)))
        for request in replay.select(2)
    ]
    curriculum: Any = replay.curriculum
    update = curriculum.update
    of_all = {"starting_turn_mean": starting_turn * selected, "selected_fraction": selected}
    curriculum.update = lambda groups: {**update(groups), **of_all}
    assert replay(batch=groups, metrics=metrics) is groups
    del curriculum.update
    return reported


def test_reports_where_the_starting_turn_plateaus_and_goes_on_when_restored() -> None:
    replay = make()
    curve = [0.0, 1.0, 2.0, 3.0, 3.0, 3.0]
    for turn in curve:
        reported = train(replay, turn)
    assert reported["curriculum", "starting_turn_plateau"] == pytest.approx(3.0)
    assert reported["curriculum", "buffer_size"] == len(replay.curriculum.buffer)
    restored = make()
    restored.set_state(pickle.loads(pickle.dumps(replay.get_state())))
    assert repr(restored.get_state()) == repr(replay.get_state())
    reported = train(restored, 3.0)
    assert reported["curriculum", "starting_turn_plateau"] == pytest.approx(3.0)
    assert train(make(), 1.0)["curriculum", "starting_turn_plateau"] == 1.0


def test_the_plateau_does_not_depend_on_how_much_is_replayed() -> None:
    replay = make()
    assert train(replay, 0.0, selected=0.0)["curriculum", "starting_turn_plateau"] == 0.0
    for selected in (0.25, 1.0, 0.0, 0.5):
        assert train(replay, 2.0, selected)["curriculum", "starting_turn_plateau"] == pytest.approx(2.0)
