"""Root mean squared logarithmic error."""

import numpy as np
import pandas as pd


def grade(submission: pd.DataFrame, answers: pd.DataFrame) -> float:
    """The root of the mean squared difference of log(1 + minutes).

    Args:
        submission: ``id`` and ``minutes``, in any order.
        answers: ``id`` and ``minutes``.

    Raises:
        ValueError: If the submission is not valid.
    """
    for column in ("id", "minutes"):
        if column not in submission.columns:
            raise ValueError(f"there is no column {column!r}")
    table = answers.merge(submission, on="id", suffixes=("", "_predicted"), validate="one_to_one")
    if not len(table) == len(answers) == len(submission):
        raise ValueError(f"the ids must be those of test.csv, {len(answers)} rows")
    predicted = table["minutes_predicted"].to_numpy(float)
    if not np.all((predicted >= 0) & np.isfinite(predicted)):
        raise ValueError("minutes must be a number of 0 or more in every row")
    return float(np.sqrt(np.mean((np.log1p(predicted) - np.log1p(table["minutes"].to_numpy(float))) ** 2)))
