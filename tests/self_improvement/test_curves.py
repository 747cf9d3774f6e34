from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rllib_exit.self_improvement.chain import Chain
from rllib_exit.self_improvement.curves import Curve, plot, standard_error, summary_table, table


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
    # Of 0 and 0.5: standard deviation 0.3536, over the root of 2.
    np.testing.assert_allclose(two.to_json()["accuracy"]["standard_error"], [0.25, 0.25])
    np.testing.assert_allclose(two.net_corrections, [0, 1])


def test_a_curve_knows_whether_its_qualities_are_graded():
    assert not curve([[0, 1], [1, 0]], [[1, 1], [0, 0]]).graded
    assert curve([[0, 1], [0.5, 1]]).graded
    assert curve([[0.5, 0.5], [0.5, 0]]).graded
    assert curve([[0.5, 1], [0.5, 0]]).graded  # whole sums, but no correction makes the difference


def test_a_single_seed_has_no_standard_error():
    one = curve([[0, 1], [0, 0]])
    assert standard_error(one.accuracy_SK) is None
    assert one.to_json()["accuracy"]["standard_error"] is one.to_json()["net_corrections"]["standard_error"] is None
    assert "±" not in text({"trained": one})


def test_table_compares_baseline_and_trained():
    shown = text({"baseline": curve([[0, 0], [1, 0]]), "trained": curve([[0, 1], [1, 1]])})
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in rows[1].strip("│").split("│")] == ["1", "0.0", "-1", "100.0", "+1", "+100.0"]


def test_the_means_by_step():
    chains = [Chain("a", (0, 1), metrics=({"x": 1.0}, {"x": 3.0})), Chain("b", (1, 1), metrics=({"x": 2.0}, {}))]
    curve = Curve.of([chains])
    np.testing.assert_allclose(curve.accuracy, [0.5, 1])
    np.testing.assert_allclose(curve.net_corrections, [0, 1])
    np.testing.assert_allclose(curve.metrics_SK["x"], [[1.5, 3]])


def test_pooled_counts_every_task_the_same():
    small, large = curve([[0, 1]], [[1, 1]]), curve([[0, 0]] * 3, [[0, 1]] * 3)
    pooled = Curve.pooled([small, large])
    np.testing.assert_allclose(pooled.accuracy_SK, [[0, 0.25], [0.25, 1]])
    np.testing.assert_allclose(pooled.net_corrections_SK, [[0, 1], [0, 3]])


def test_json_keeps_everything():
    chains = [Chain("t", (0.0, 1.0), metrics=({"calls": 2.0}, {"calls": 3.0, "late": 1.0}))]
    before = Curve.of([chains, chains])
    after = Curve.from_json(json.loads(json.dumps(before.to_json())))
    assert after.num_tasks == 1
    np.testing.assert_array_equal(after.accuracy_SK, [[0, 1], [0, 1]])
    np.testing.assert_array_equal(after.metrics_SK["late"], [[np.nan, 1], [np.nan, 1]])
    assert json.loads(json.dumps(before.to_json()))["metrics"]["calls"]["standard_error"] == [0, 0]


def test_a_metric_that_one_seed_alone_reports_is_kept():
    plain, late = [Chain("t", (0.0,), metrics=({"a": 1.0},))], [Chain("t", (0.0,), metrics=({"b": 2.0},))]
    for seeds in ([plain, late], [late, plain]):
        both = Curve.of(seeds)
        after = Curve.from_json(json.loads(json.dumps(both.to_json())))
        for of in (both, after):
            assert list(of.metrics_SK) == ["a", "b"]
            np.testing.assert_array_equal(np.sort(of.metrics_SK["a"].ravel()), [1, np.nan])
        assert both.to_json()["metrics"]["b"]["mean"] == [None]


def test_summary_has_a_row_per_split_and_policy():
    curves = {("a", "baseline"): curve([[0, 0]]), ("a", "trained"): curve([[0, 1]])}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary_table(curves))
    rows = [line for line in console.export_text().splitlines() if line.startswith("│")]
    cells = [cell.strip() for cell in rows[1].strip("│").split("│")]
    assert cells == ["a", "trained", "1", "0.0", "100.0", "+100.0", "+1"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_plot_writes_an_image(tmp_path: Path, seeds: int):
    path = tmp_path / "curve.png"
    plot({"baseline": curve(*[[[0, 0.5, 1]]] * seeds), "trained": curve(*[[[0, 1, 1]]] * seeds)}, path, title="1 task")
    assert path.read_bytes().startswith(b"\x89PNG")
