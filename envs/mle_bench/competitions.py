"""MLE-bench competitions: where they lie on disk, and what their scores are worth.

A competition is a directory with its data under ``prepared/public`` and ``prepared/private``, as
``mlebench prepare`` leaves it. Its definition (``config.yaml``, ``description_obfuscated.md`` or
``description.md``, ``grade.py``) lies in the same directory or, if there is no ``config.yaml``, in the
installed ``mlebench`` package.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, StrictFloat, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from envs.options import validate


@pydantic_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ScoreRange:
    """What a competition's scores are worth.

    Attributes:
        worst: This score, and every worse one, has quality 0.
        best: This score has quality 1. It is above ``worst`` where a higher score is better.
    """

    worst: StrictFloat
    best: StrictFloat

    def __post_init__(self) -> None:
        if self.worst == self.best:
            raise ValueError(f"worst is {self.worst!r} and best is {self.best!r}: use two different numbers")

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is better."""
        return self.best > self.worst

    def quality(self, score: float) -> float:
        """The normalised score, in [0, 1]."""
        return min(1.0, max(0.0, (score - self.worst) / (self.best - self.worst)))


# Paper, Table 3. Unbounded errors have a finite worst score, chosen from what people submitted.
SCORE_RANGES: Mapping[str, ScoreRange] = {
    "random-acts-of-pizza": ScoreRange(worst=0.0, best=1.0),  # area under the ROC curve
    # The table's best score is 1.0, but a perfect log loss is 0: every submission below 1.0 would be perfect.
    "spooky-author-identification": ScoreRange(worst=1.5, best=0.0),  # log loss
    "detecting-insults-in-social-commentary": ScoreRange(worst=0.0, best=1.0),  # area under the ROC curve
    "nomad2018-predict-transparent-conductors": ScoreRange(worst=1.0, best=0.0),  # mean of two columns' RMSLE
    "jigsaw-toxic-comment-classification-challenge": ScoreRange(worst=0.0, best=1.0),  # mean of six columns' AUC
    "aerial-cactus-identification": ScoreRange(worst=0.0, best=1.0),  # area under the ROC curve
}


class _Grader(BaseModel):
    name: str
    grade_fn: str

    @field_validator("grade_fn")
    @classmethod
    def _is_function(cls, value: str) -> str:
        if value.count(":") != 1:
            raise ValueError("write it as module:function")
        return value


class _Dataset(BaseModel):
    answers: PurePosixPath
    gold_submission: PurePosixPath | None = None


class _Config(BaseModel):
    """What is read of a competition's ``config.yaml``, which has more fields in mle-bench."""

    id: str
    grader: _Grader
    dataset: _Dataset
    score_range: ScoreRange | None = None


@dataclass(frozen=True, slots=True)
class Competition:
    """One competition.

    Attributes:
        id: Its name in mle-bench.
        directory: The directory of its data.
        definition: The directory of its ``config.yaml`` and ``grade.py``.
        description: What a competitor is told, in Markdown.
        metric: The name of its score.
        score_range: The field ``score_range`` of ``config.yaml``, else the range in the paper's table; None where
            neither has one.
        answers: The file of the right answers.
        gold: A file with a perfect submission, often ``answers`` itself.
        grade_fn: ``module:function``, as ``config.yaml`` names it.
    """

    id: str
    directory: Path
    definition: Path
    description: str
    metric: str
    score_range: ScoreRange | None
    answers: Path
    gold: Path
    grade_fn: str

    @property
    def public(self) -> Path:
        """The data that a competitor sees."""
        return self.directory / "prepared" / "public"

    @property
    def packaged(self) -> bool:
        """Whether the definition is the installed ``mlebench`` package's."""
        return self.definition != self.directory


def load_competition(directory: str | Path) -> Competition:
    """Loads a competition from its directory.

    Raises:
        FileNotFoundError: If a file or directory of it is missing.
        ValueError: If its ``config.yaml`` lacks a field or has a wrong one.
    """
    directory = Path(directory).absolute()
    for part in ("public", "private"):
        if not (directory / "prepared" / part).is_dir():
            raise FileNotFoundError(
                f"{directory / 'prepared' / part} does not exist: name a competition's directory, as "
                "`mlebench prepare` or `python -m envs.mle_bench.synthetic` write it"
            )
    definition = directory if (directory / "config.yaml").is_file() else _packaged_definition(directory)
    file = definition / "config.yaml"
    config = validate(_Config, yaml.safe_load(file.read_text()), f"{file}: ")

    def data_file(field: str, path: PurePosixPath) -> Path:
        # The path is in the data directory of all competitions, so it begins with this one's id.
        if path.is_absolute() or ".." in path.parts or not path.is_relative_to(config.id):
            raise ValueError(f"{file}: dataset.{field} is {str(path)!r}: it must begin with {config.id}/")
        found = directory / path.relative_to(config.id)
        if not found.is_file():
            raise FileNotFoundError(f"{found} does not exist: {file} names it as dataset.{field}")
        return found

    answers, gold = config.dataset.answers, config.dataset.gold_submission
    return Competition(
        id=config.id,
        directory=directory,
        definition=definition,
        description=_description(definition),
        metric=config.grader.name,
        score_range=config.score_range or SCORE_RANGES.get(config.id),
        answers=data_file("answers", answers),
        gold=data_file("gold_submission", gold or answers),
        grade_fn=config.grader.grade_fn,
    )


def import_from(definition: Path, name: str) -> Callable[..., Any]:
    """Imports a function from a competition's definition, whose modules may import each other relatively.

    Args:
        definition: The directory.
        name: ``module:function``. Of a dotted module, as in mle-bench, only the last part counts.

    Raises:
        ImportError: If there is no such module, or it cannot be imported.
        AttributeError: If it has no such function.
    """
    module, function = name.split(":")
    package = ModuleType(f"competition:{definition}".replace(".", "_"))
    package.__path__ = [str(definition)]
    sys.modules[package.__name__] = package
    return getattr(importlib.import_module(f"{package.__name__}.{module.rpartition('.')[2]}"), function)


def _packaged_definition(directory: Path) -> Path:
    spec = importlib.util.find_spec("mlebench")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{directory / 'config.yaml'} does not exist and the package mlebench is not installed: install it, or "
            "copy the competition's config.yaml, description and grade.py into the directory"
        )
    definition = Path(spec.submodule_search_locations[0], "competitions", directory.name)
    if not (definition / "config.yaml").is_file():
        raise FileNotFoundError(
            f"neither {directory} nor the installed mlebench has a config.yaml for {directory.name!r}: name the "
            "directory as the competition, or put a config.yaml there"
        )
    return definition


def _description(definition: Path) -> str:
    for name in ("description_obfuscated.md", "description.md"):
        if (definition / name).is_file():
            return (definition / name).read_text().strip()
    raise FileNotFoundError(f"{definition} has neither description_obfuscated.md nor description.md: write one")
