from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rllib_exit.cli.config import load_file, override
from tests.scripts import load_benchmark

EXAMPLE = Path(__file__).parents[2] / "tuned_examples" / "countdown_exit.py"


@pytest.fixture(scope="module")
def ablations() -> Any:
    return load_benchmark("ablations")


def test_every_choice_is_a_config_that_can_train(ablations: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RLLIB_EXIT_SCALE", "cpu")
    config, _, _ = load_file(EXAMPLE)
    for ablation, choices in ablations.ABLATIONS.items():
        assert () in choices.values(), f"{ablation} is compared with the example itself"
        for settings in choices.values():
            override(config, settings).validate()


def test_runs_of_different_settings_have_different_names(ablations: Any):
    settings = {of for choices in ablations.ABLATIONS.values() for of in choices.values()}
    names = {ablations.name_of(of) for of in settings}
    assert len(names) == len(settings) and "default" in names and not any("/" in name for name in names)


def test_the_table_has_the_mean_and_the_range_of_seeds(ablations: Any):
    def run(settings: str, seed: int, last: float) -> dict[str, Any]:
        accuracy = [0.25, 0.5, last]
        more = {"right_kept": [None, 1.0], "distinct_answers": [1.0, 1.5, 2.0]}
        return {"settings": settings, "seed": seed, "accuracy": accuracy, **more}

    lines = ablations.table([run("default", 0, 0.75), run("default", 1, 0.85)]).splitlines()
    rows = [line for line in lines if line.startswith("feedback: with ")]
    assert len(rows) == 1 and not any(line.startswith("feedback: without") for line in lines)
    assert "80.0 (75.0 to 85.0)" in rows[0] and "55.0 (50.0 to 60.0)" in rows[0]
