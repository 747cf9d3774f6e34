"""Area under the ROC curve."""

import numpy as np
import pandas as pd


def grade(submission: pd.DataFrame, answers: pd.DataFrame) -> float:
    """The probability that an urgent message is predicted above another one; ties count half.

    Args:
        submission: ``id`` and ``urgent``, a probability, in any order.
        answers: ``id`` and ``urgent``, 0 or 1.

    Raises:
        ValueError: If the submission is not valid.
    """
    for column in ("id", "urgent"):
        if column not in submission.columns:
            raise ValueError(f"there is no column {column!r}")
    table = answers.merge(submission, on="id", suffixes=("", "_predicted"), validate="one_to_one")
    if not len(table) == len(answers) == len(submission):
        raise ValueError(f"the ids must be those of test.csv, {len(answers)} rows")
    predicted = table["urgent_predicted"].to_numpy(float)
    if not np.all((predicted >= 0) & (predicted <= 1)):  # NaN neither
        raise ValueError("urgent must be between 0 and 1 in every row")
    urgent = table["urgent"].to_numpy() == 1
    difference = predicted[urgent, None] - predicted[None, ~urgent]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))
