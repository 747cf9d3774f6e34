"""What the pieces of the report share: the copies of result files, and how numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_exit.report.figures import Line
from rllib_exit.report.groups import Domain, slug
from rllib_exit.report.instances import (
    Instance,
    instances,
)
from rllib_exit.report.page import Source, Sources, csv_bytes, json_lines
from rllib_exit.report.runs import PARAMS, RESULTS, Run, Search, read_lines

if TYPE_CHECKING:
    from rllib_exit.embeddings import Embedder

NO_TRAINING = "no training run's result.json is there; name the directory that `rllib train file` wrote"
NO_EVALUATION = "no evaluation.json is there; run `rllib evaluate DIR --baseline`"
NO_LOG = "no log of rollouts is there; train with --log-rollouts"
_LEFT_OUT = ("config", "hostname", "node_ip", "pid")


@dataclass
class Material:
    """What the pieces are made of, besides the runs.

    Attributes:
        sources: Copies result files.
        embedder: Embeds task instances; None to leave them out.
        names: By the id of a run, the folder of its files.
    """

    sources: Sources
    embedder: Embedder | None
    names: dict[int, str] = field(default_factory=dict)
    _instances: dict[int, list[Instance]] = field(default_factory=dict)

    def folder(self, domain: Domain, run: Run) -> str:
        """The folder of a run's files, one for each run."""
        if id(run) not in self.names:
            name = wanted = f"{domain.slug}/{slug(run.name)}"
            number = 1
            while name in self.names.values():
                number += 1
                name = f"{wanted}-{number}"
            self.names[id(run)] = name
        return self.names[id(run)]

    def results(self, domain: Domain, run: Run) -> list[Source]:
        """The run's results, of every trial."""
        name = f"{self.folder(domain, run)}/results.jsonl"
        files = [trial / RESULTS for trial in run.trials if (trial / RESULTS).is_file()]
        return [self.sources.add(file, name, run.name, lambda file=file: _results(file)) for file in files]

    def params(self, domain: Domain, run: Run) -> list[Source]:
        """The run's config."""
        files = [trial / PARAMS for trial in run.trials[:1] if (trial / PARAMS).is_file()]
        name = f"{self.folder(domain, run)}/{PARAMS}"
        return [self.sources.add(file, name, run.name) for file in files]

    def evaluation(self, domain: Domain, file: Path, run: Run) -> Source:
        """An evaluation's numbers."""
        return self.sources.add(file, f"{self.folder(domain, run)}/{file.name}", run.name)

    def log(self, domain: Domain, run: Run) -> Source:
        """The run's log of rollouts, summed up by task instance."""
        return self.from_log(domain, run, "instances", map(asdict, self.instances(run)))

    def from_log(self, domain: Domain, run: Run, name: str, rows: Iterable[Mapping[str, Any]]) -> Source:
        """What was taken from the run's log of rollouts, as a CSV file."""
        assert run.log is not None
        directory = next(iter(run.log.files.values())).parent
        name = f"{self.folder(domain, run)}/{name}.csv"
        return self.sources.add(directory, name, run.name, lambda: csv_bytes(list(rows)))

    def instances(self, run: Run) -> list[Instance]:
        """The run's distinct task instances."""
        if id(run) not in self._instances:
            self._instances[id(run)] = instances(run)
        return self._instances[id(run)]

    def search(self, domain: Domain, search: Search) -> Source:
        """A search's steps."""
        of = slug(search.run.name) if search.run else "base"
        name = f"{domain.slug}/search/{of}-{slug(search.competition)}-seed{search.settings['seed']}.jsonl"
        return self.sources.add(search.file, name, f"{of}, {search.competition}, seed {search.settings['seed']}")


def _results(file: Path) -> bytes:
    """Tune's results without the config, which every line repeats, and without what tells of the machine."""
    return json_lines([{k: v for k, v in line.items() if k not in _LEFT_OUT} for line in read_lines(file)])


def number(mean: float, se: float | None, spec: str = ".1f") -> str:
    """A mean, with its standard error if there is one."""
    text = format(mean, spec).replace("-", "−")
    return text if se is None else f"{text} ± {se:{spec.removeprefix('+')}}"


def line_rows(lines: Sequence[tuple[str, Line]], x: str) -> list[dict[str, Any]]:
    """The CSV rows of lines, each with its panel's title; ``x`` names their axis."""
    return [
        {
            "panel": title,
            "method": line.label,
            x: line.x[i],
            "mean": line.mean[i],
            "standard_error": None if line.se is None else line.se[i],
        }
        for title, line in lines
        for i in range(len(line.x))
    ]


def unique(sources: Iterable[Source]) -> list[Source]:
    """Sources in their order, each once."""
    return list(dict.fromkeys(sources))
