from __future__ import annotations

from pathlib import Path

import pytest

from envs.mle_bench.synthetic import generate


@pytest.fixture(scope="session")
def competitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the two synthetic competitions."""
    directory = tmp_path_factory.mktemp("competitions")
    generate(directory)
    return directory


@pytest.fixture(scope="session")
def messages(competitions: Path) -> Path:
    """The text competition, scored by AUC."""
    return competitions / "urgent-support-messages"


@pytest.fixture(scope="session")
def deliveries(competitions: Path) -> Path:
    """The tabular competition, scored by RMSLE."""
    return competitions / "courier-delivery-times"
