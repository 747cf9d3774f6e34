"""Whether our graders give the scores of the real mle-bench, on the paper's six competitions.

    git clone https://github.com/openai/mle-bench && pip install ./mle-bench
    python benchmarks/mle_bench_agreement.py

Kaggle's data may not be passed on, so made-up raw data goes through each competition's real ``prepare.py``. Then
mle-bench's own ``Grader``, our grader of its package and our grader of a folder with a copy of the competition's files
score the same submissions, good, bad and invalid. The scores must be equal to the 5 decimals that mle-bench gives.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from envs.mle_bench.competitions import SCORE_RANGES, load_competition  # noqa: E402
from envs.mle_bench.grading import SubmissionGrader  # noqa: E402

ROWS = 300


def words(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(["never", "the", "raven", "ship", "dread", "you", "fool", "please"], 8))


def zipped(file: Path, contents: dict[str, str]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def pizza(raw: Path, rng: np.random.Generator) -> None:
    rows = [
        {"request_id": f"t3_{i}", "request_text": words(rng), "requester_received_pizza": bool(rng.random() < 0.3)}
        for i in range(ROWS)
    ]
    (raw / "train.json").write_text(json.dumps(rows))
    test = [{key: row[key] for key in ("request_id", "request_text")} for row in rows[:100]]
    (raw / "test.json").write_text(json.dumps(test))


def spooky(raw: Path, rng: np.random.Generator) -> None:
    authors = rng.choice(["EAP", "HPL", "MWS"], ROWS)
    table = pd.DataFrame({"id": [f"id{i:05}" for i in range(ROWS)], "text": [words(rng) for _ in range(ROWS)]})
    zipped(raw / "train.zip", {"train.csv": table.assign(author=authors).to_csv(index=False)})


def insults(raw: Path, rng: np.random.Generator) -> None:
    def table(begin: int) -> pd.DataFrame:
        comments = [f"{i} {words(rng)}" for i in range(begin, begin + ROWS)]
        return pd.DataFrame({"Insult": rng.integers(0, 2, ROWS), "Date": "20120618192155Z", "Comment": comments})

    table(0).to_csv(raw / "train.csv", index=False)
    table(ROWS).assign(Usage="PrivateTest").to_csv(raw / "test_with_solutions.csv", index=False)


def nomad(raw: Path, rng: np.random.Generator) -> None:
    table = pd.DataFrame({"id": range(1, ROWS + 1), "number_of_total_atoms": rng.integers(10, 80, ROWS)})
    train = table.assign(formation_energy_ev_natom=rng.random(ROWS), bandgap_energy_ev=5 * rng.random(ROWS))
    geometry = {f"train/{i}/geometry.xyz": "#\n" for i in table["id"]}
    zipped(raw / "train.zip", geometry)
    zipped(raw / "test.zip", {"test/1/geometry.xyz": "#\n"})
    zipped(raw / "train.csv.zip", {"train.csv": train.to_csv(index=False)})
    zipped(raw / "test.csv.zip", {"test.csv": table.to_csv(index=False)})


def toxic(raw: Path, rng: np.random.Generator) -> None:
    classes = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    ids = [f"{i:016x}" for i in range(2 * ROWS)]
    texts = pd.DataFrame({"id": ids, "comment_text": [words(rng) for _ in ids]})
    labels = pd.DataFrame(rng.integers(0, 2, (len(ids), 6)), columns=classes)
    labels[rng.random(len(ids)) < 0.3] = -1  # as Kaggle marks what was not scored
    train, test = texts[:ROWS].join(labels[:ROWS].clip(lower=0)), texts[ROWS:]
    answers = test.drop(columns="comment_text").join(labels[ROWS:])
    sample = answers.assign(**dict.fromkeys(classes, 0.5))
    for name, table in (("train", train), ("test", test), ("test_labels", answers), ("sample_submission", sample)):
        zipped(raw / f"{name}.csv.zip", {f"{name}.csv": table.to_csv(index=False)})


def cactus(raw: Path, rng: np.random.Generator) -> None:
    names = [f"{i:032x}.jpg" for i in range(ROWS)]
    pd.DataFrame({"id": names, "has_cactus": rng.integers(0, 2, ROWS)}).to_csv(raw / "train.csv", index=False)
    zipped(raw / "train.zip", {f"train/{name}": "" for name in names})


RAW: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "random-acts-of-pizza": pizza,
    "spooky-author-identification": spooky,
    "detecting-insults-in-social-commentary": insults,
    "nomad2018-predict-transparent-conductors": nomad,
    "jigsaw-toxic-comment-classification-challenge": toxic,
    "aerial-cactus-identification": cactus,
}


def submissions(gold: Any, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """The right answers, then others, each with what it is."""
    targets = gold.select_dtypes("number").columns.drop("id", errors="ignore")
    yield "gold", gold

    def predict(noise: float) -> Any:
        values = np.clip(gold[targets].to_numpy(float), 0, None)
        values = np.abs((1 - noise) * values + noise * rng.random(values.shape))
        if len(targets) == 3:  # probabilities of authors
            values /= values.sum(axis=1, keepdims=True)
        return gold.assign(**dict(zip(targets, values.T, strict=True)))

    for noise in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        yield f"noise {noise}", predict(noise)
    yield "another order of rows", predict(0.5).sample(frac=1, random_state=0)
    yield "coarse", predict(0.5).round(1)
    yield "constant", gold.assign(**dict.fromkeys(targets, 1 / len(targets)))
    yield "one more column", predict(0.5).assign(note="x")
    yield "columns reversed", predict(0.5)[gold.columns[::-1]]
    yield "not between 0 and 1", predict(0.5).assign(**{targets[0]: 3.5})
    yield "negative", predict(0.5).assign(**{targets[0]: -0.5})
    yield "missing value", predict(0.5).assign(**{targets[0]: np.nan})
    yield "infinite", predict(0.5).assign(**{targets[0]: np.inf})
    yield "text", predict(0.5).assign(**{targets[0]: "many"})
    yield "column missing", gold.drop(columns=targets[0])
    yield "no identifier", gold[targets]
    yield "row missing", gold[1:]
    yield "row twice", pd.concat([gold, gold[:1]])
    yield "identifier twice", pd.concat([gold[:-1], gold[:1]])
    yield "no rows", gold[:0]


def check(name: str, directory: Path, rng: np.random.Generator) -> tuple[int, int, list[str]]:
    """How many submissions there were, how many of them had a score, and where graders differ."""
    from mlebench.registry import registry  # type: ignore[import-not-found]
    from mlebench.utils import load_answers, read_csv  # type: ignore[import-not-found]

    raw, public, private = (directory / name / part for part in ("raw", "prepared/public", "prepared/private"))
    for folder in (raw, public, private):
        folder.mkdir(parents=True)
    RAW[name](raw, rng)
    real = registry.set_data_dir(directory).get_competition(name)
    real.prepare_fn(raw=raw, public=public, private=private)
    packaged = load_competition(directory / name)
    copied = Path(shutil.copytree(packaged.definition, directory / "copies" / name))
    shutil.copytree(directory / name / "prepared", copied / "prepared")
    own = load_competition(copied)
    assert packaged.packaged and not own.packaged and packaged.score_range == SCORE_RANGES[name]

    total, scored, differences = 0, 0, []
    with SubmissionGrader(packaged) as by_package, SubmissionGrader(own) as by_folder:
        for what, table in submissions(read_csv(packaged.gold), rng):
            content = table.to_csv(index=False).encode()
            expected = real.grader(read_csv(io.BytesIO(content)), load_answers(real.answers))
            expected = None if expected is None or not np.isfinite(expected) else expected
            scores = [grader.grade(content).score for grader in (by_package, by_folder)]
            total += 1
            scored += expected is not None
            if scores != [expected, expected]:
                differences.append(f"{name}, {what}: mle-bench {expected}, package {scores[0]}, folder {scores[1]}")
    return total, scored, differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the made-up data")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the real grader logs every invalid submission
    warnings.simplefilter("ignore")
    totals: list[Any] = []
    with tempfile.TemporaryDirectory() as directory:
        for name in RAW:
            total, scored, differences = check(name, Path(directory), np.random.default_rng(args.seed))
            totals.append((total, scored, len(differences)))
            print(f"{name:50}{total:4} submissions {scored:4} scored {len(differences):4} differences", flush=True)
            for difference in differences:
                print(f"  {difference}")
    total, scored, differences = map(sum, zip(*totals, strict=True))
    print(f"{'all':50}{total:4} submissions {scored:4} scored {differences:4} differences")
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
