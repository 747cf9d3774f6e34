"""Splits the messages into public and private data."""

from pathlib import Path

import pandas as pd


def prepare(raw: Path, public: Path, private: Path) -> None:
    """Writes a third of the raw messages as test set, its labels as answers.

    Args:
        raw: Has ``messages.csv``.
        public: Gets ``train.csv``, ``test.csv`` and ``sample_submission.csv``.
        private: Gets ``test.csv``.
    """
    messages = pd.read_csv(raw / "messages.csv")
    test = messages.sample(frac=1 / 3, random_state=0)
    messages.drop(test.index).to_csv(public / "train.csv", index=False)
    test[["id", "text"]].to_csv(public / "test.csv", index=False)
    test[["id", "urgent"]].to_csv(private / "test.csv", index=False)
    test[["id"]].assign(urgent=0.5).to_csv(public / "sample_submission.csv", index=False)
