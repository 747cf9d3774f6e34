"""The sweeps search the spaces of the paper's appendix A.5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rllib_exit.cli.config import load_file, override
from rllib_exit.cli.sweeps import search_spaces
from rllib_exit.scale import SCALE_VARIABLE

ROOT = Path(__file__).parents[2]
KL_COEFFS, PROBS = [0.0, 0.001, 0.01], [0.2, 0.5, 0.8]
SPACES = {
    "math_sweep": {"lr": [5e-7, 1e-6, 5e-6], "kl_coeff": KL_COEFFS},
    "math_exit_sweep": {
        "lr": [5e-7, 1e-6, 5e-6],
        "buffer_size": [100, 256, 512, 1024],
        "self_iteration_prob": PROBS,
        "divergence_prob": PROBS,
    },
    "bfcl_sweep": {"lr": [1e-7, 5e-7, 1e-6, 5e-6], "kl_coeff": KL_COEFFS},
    "bfcl_exit_sweep": {
        "lr": [1e-7, 5e-7, 1e-6, 5e-6],
        "buffer_size": [100, 320, 640],
        "self_iteration_prob": PROBS,
        "divergence_prob": PROBS,
    },
    "mle_sweep": {"lr": [5e-7, 1e-6, 5e-6], "kl_coeff": KL_COEFFS, "ref_update_rate": [0.0, 0.5, 1.0]},
    "mle_exit_sweep": {
        "lr": [5e-7, 1e-6, 5e-6],
        "buffer_size": [3, 24, 32, 64],
        "min_buffer_size": [3, 8],
        "self_iteration_prob": PROBS,
        "divergence_prob": PROBS,
    },
}


def load(name: str, scale: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(SCALE_VARIABLE, scale)
    config, _, _ = load_file(ROOT / "tuned_examples" / f"{name}.py")
    return config


@pytest.mark.parametrize("name", SPACES)
def test_the_spaces_are_those_of_appendix_a5(name: str, monkeypatch: pytest.MonkeyPatch):
    spaces = search_spaces(load(name, "paper", monkeypatch))
    # Outside ML engineering, min_buffer_size is no space of its own: it follows buffer_size.
    grids = {field: space.categories for field, space in spaces.items() if field in SPACES[name]}
    assert grids == SPACES[name] and all(space.is_grid() for field, space in spaces.items() if field in grids)
    assert spaces.keys() - grids.keys() <= {"min_buffer_size"}


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_ml_engineering_selects_on_what_it_trains_on(scale: str, monkeypatch: pytest.MonkeyPatch):
    config = load("mle_sweep", scale, monkeypatch)
    assert config.get_evaluation_config_object().env_config == config.env_config
    changed: Any = override(config, ['env_config.competitions=["x"]'])
    assert changed.get_evaluation_config_object().env_config["competitions"] == ["x"]


def test_a_search_of_ml_engineering_takes_16_steps(monkeypatch: pytest.MonkeyPatch):
    config = load("mle_sweep", "paper", monkeypatch)
    assert config.greedy_search and config.self_improvement_steps == 16
