"""Loads the examples as ``rllib train file`` does."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from rllib_exit.scale import SCALE_VARIABLE

EXAMPLES = Path(__file__).parents[2] / "tuned_examples"


def load_config(domain: str, strategy: str, scale: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The validated config of an example."""
    monkeypatch.setenv(SCALE_VARIABLE, scale)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    config = runpy.run_path(str(EXAMPLES / f"{domain}_{strategy}.py"))["config"]
    config.validate()
    assert config.strategy == strategy
    return config


def check_curriculum(config: Any, size: int | None, minimum: int | None, *probs: float) -> None:
    """Checks total and min. buffer size, unless there is none, self-iteration prob. and divergence prob."""
    assert (config.self_iteration_prob, config.divergence_prob) == probs
    if size is not None:
        assert (config.buffer_size, config.min_buffer_size) == (size, minimum)
