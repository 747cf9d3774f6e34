from __future__ import annotations

from pathlib import Path

from tests.scripts import load_benchmark

CLUSTER = Path(__file__).parents[2] / "docs" / "cluster.md"


def test_the_documents_predictions_are_the_programs() -> None:
    predictions = load_benchmark("weight_sync_predictions")
    assert predictions.table() in CLUSTER.read_text()


def test_a_patch_hardly_asks_for_the_link() -> None:
    predictions = load_benchmark("weight_sync_predictions")
    fast, slow = predictions.LINKS["NVLink"], predictions.LINKS["10 Gbit/s"]
    assert predictions.patch(slow) - predictions.patch(fast) < 0.02 * predictions.broadcast(slow)
    assert predictions.broadcast(fast) < predictions.patch(fast) < predictions.full_copy(fast)
