"""Splits the deliveries into public and private data."""

from pathlib import Path

import pandas as pd


def prepare(raw: Path, public: Path, private: Path) -> None:
    """Writes a third of the raw deliveries as test set, its times as answers.

    Args:
        raw: Has ``deliveries.csv``.
        public: Gets ``train.csv``, ``test.csv`` and ``sample_submission.csv``.
        private: Gets ``test.csv``.
    """
    deliveries = pd.read_csv(raw / "deliveries.csv")
    test = deliveries.sample(frac=1 / 3, random_state=0)
    deliveries.drop(test.index).to_csv(public / "train.csv", index=False)
    test.drop(columns="minutes").to_csv(public / "test.csv", index=False)
    test[["id", "minutes"]].to_csv(private / "test.csv", index=False)
    test[["id"]].assign(minutes=10).to_csv(public / "sample_submission.csv", index=False)
