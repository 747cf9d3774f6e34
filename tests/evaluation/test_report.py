from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rllib_exit.evaluation.report import Curve, plot, table
from rllib_exit.evaluation.self_improvement import Chain


def curve(*qualities_by_seed: Sequence[Sequence[float]]) -> Curve:
    return Curve.of(
        [[Chain(f"t{i}", tuple(qualities)) for i, qualities in enumerate(seed)] for seed in qualities_by_seed]
    )


def text(*args, **kwargs) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(*args, **kwargs))
    return console.export_text()


def test_mean_and_standard_error_over_seeds():
    two = curve([[0, 1], [0, 1]], [[1, 1], [0, 0]])
    np.testing.assert_allclose(two.accuracy, [0.25, 0.75])
    assert two.accuracy_se is not None
    # Of 0 and 0.5: standard deviation 0.3536, over the root of 2.
    np.testing.assert_allclose(two.accuracy_se, [0.25, 0.25])
    np.testing.assert_allclose(two.net_corrections, [0, 1])


def test_a_single_seed_has_no_standard_error():
    one = curve([[0, 1], [0, 0]])
    assert one.accuracy_se is None and one.net_corrections_se is None
    assert "±" not in text({"trained": one})


def test_table_compares_baseline_and_trained():
    shown = text({"baseline": curve([[0, 0], [1, 0]]), "trained": curve([[0, 1], [1, 1]])})
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in rows[1].strip("│").split("│")] == ["1", "0.0", "-1", "100.0", "+1", "+100.0"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_plot_writes_an_image(tmp_path: Path, seeds: int):
    path = tmp_path / "curve.png"
    plot({"baseline": curve(*[[[0, 0.5, 1]]] * seeds), "trained": curve(*[[[0, 1, 1]]] * seeds)}, path, title="1 task")
    assert path.read_bytes().startswith(b"\x89PNG")
