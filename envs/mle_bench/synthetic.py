"""Two small competitions with made-up data, in mle-bench's layout: for tests, and for training on a CPU.

``python -m envs.mle_bench.synthetic DIRECTORY`` writes them. Their definitions lie beside this module, in
``synthetic_competitions``; the raw data is drawn here, and their ``prepare.py`` splits it.

- ``urgent-support-messages`` (text, AUC): a message's exclamation marks tell a little of whether it is
  urgent, some words more, all words together most.
- ``courier-delivery-times`` (a table, RMSLE): the distance tells a little of the time a delivery takes,
  its logarithm more; vehicle, city, hour and weight tell the rest.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from envs.mle_bench.competitions import import_from

DEFINITIONS = Path(__file__).parent / "synthetic_competitions"

ROWS = 900

# Sentences with the log-odds of urgency that each adds.
SENTENCES: Sequence[tuple[str, float]] = (
    ("our whole site is down", 2.5),
    ("nobody in the office can log in", 2.0),
    ("we are losing orders every minute", 2.2),
    ("the deadline is tonight", 1.8),
    ("customers are calling us about errors at checkout", 1.6),
    ("the backup failed and data is missing", 1.7),
    ("please call me back immediately", 1.6),
    ("the last update broke our import", 0.8),
    ("the app crashes when I open a report", 0.6),
    ("I cannot print invoices today", 0.5),
    ("my password reset mail did not arrive", 0.3),
    ("the export is slower than last week", 0.0),
    ("one of our users asked how to share a report", -0.6),
    ("I have a question about my invoice", -0.8),
    ("could you change the address on our account", -1.0),
    ("where can I find the documentation", -1.2),
    ("we think about buying more seats next year", -1.6),
    ("a dark theme would be nice", -1.8),
    ("I am just curious how this works", -1.7),
    ("there is no hurry at all", -2.4),
    ("thanks for the great service", -1.3),
    ("please close my old ticket whenever you can", -1.5),
)

VEHICLES = {"bike": 0.0, "scooter": -0.25, "van": 0.1}
CITIES = {"Arden": 0.0, "Belmont": 0.3, "Corwin": -0.25, "Dunmore": 0.15, "Elsby": -0.1}


def generate(directory: str | Path, seed: int = 0) -> list[Path]:
    """Writes both competitions.

    Args:
        directory: Gets a folder for each; such a folder must not exist yet.
        seed: The seed of the data. The same seed gives the same files.

    Returns:
        The folders of the competitions.

    Raises:
        FileExistsError: If there is such a folder.
    """
    written = []
    for name, file, draw in (
        ("urgent-support-messages", "messages.csv", draw_messages),
        ("courier-delivery-times", "deliveries.csv", draw_deliveries),
    ):
        competition = Path(directory, name)
        shutil.copytree(DEFINITIONS / name, competition, ignore=shutil.ignore_patterns("__pycache__"))
        raw, public, private = (competition / part for part in ("raw", "prepared/public", "prepared/private"))
        for folder in (raw, public, private):
            folder.mkdir(parents=True)
        with open(raw / file, "w", newline="") as lines:
            csv.writer(lines).writerows(draw(np.random.default_rng(seed)))
        import_from(competition, "prepare:prepare")(raw=raw, public=public, private=private)
        written.append(competition)
    return written


def draw_messages(rng: np.random.Generator) -> Iterable[Sequence[object]]:
    """The rows of ``messages.csv``, its header first."""
    yield "id", "text", "urgent"
    for i in range(ROWS):
        chosen = [SENTENCES[j] for j in rng.choice(len(SENTENCES), size=rng.integers(2, 5), replace=False)]
        log_odds = sum(weight for _, weight in chosen)
        # Urgent people use more exclamation marks, some always use them.
        ends = ["!" * rng.integers(1, 3) if rng.random() < 0.2 + 0.25 * (log_odds > 0) else "." for _ in chosen]
        text = " ".join(
            sentence[0].upper() + sentence[1:] + end for (sentence, _), end in zip(chosen, ends, strict=True)
        )
        yield i, text, int(rng.random() < 1 / (1 + np.exp(-1.2 * log_odds)))


def draw_deliveries(rng: np.random.Generator) -> Iterable[Sequence[object]]:
    """The rows of ``deliveries.csv``, its header first."""
    yield "id", "distance_km", "weight_kg", "hour", "vehicle", "city", "minutes"
    for i in range(ROWS):
        distance = rng.gamma(1.5, 4.0) + 0.3
        weight = rng.gamma(2.0, 2.0) + 0.1
        hour = int(rng.integers(7, 22))
        vehicle, city = str(rng.choice(list(VEHICLES))), str(rng.choice(list(CITIES)))
        rush = 0.3 * (hour in (8, 9, 17, 18))
        log_minutes = 2.2 + 0.75 * np.log1p(distance) + 0.03 * weight + rush + VEHICLES[vehicle] + CITIES[city]
        minutes = np.exp(log_minutes + 0.1 * rng.standard_normal())
        yield i, round(distance, 2), round(weight, 2), hour, vehicle, city, round(minutes, 1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.mle_bench.synthetic", description="Writes two small competitions with made-up data."
    )
    parser.add_argument("directory", help="gets a folder for each competition")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the data (default: 0)")
    arguments = parser.parse_args()
    for competition in generate(arguments.directory, arguments.seed):
        print(competition)


if __name__ == "__main__":
    main()
