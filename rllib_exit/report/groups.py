"""Runs in groups: the runs of one domain, model, strategy and settings, which differ in their seeds alone."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rllib_exit.curriculum.exit import STRATEGIES
from rllib_exit.report.figures import BASE, Line, Style, mean_and_se, style
from rllib_exit.report.runs import HYPER_PARAMETERS, Found, Run, Search
from rllib_exit.self_improvement.curves import Curve
from rllib_exit.self_improvement.results import ALL, BASELINE, TRAINED, Evaluation

# As the rows of the paper's Table 1.
LABELS: Mapping[str, str] = {
    BASE: "Base model",
    "grpo": "GRPO",
    "curriculum": "+ curriculum",
    "improve": "+ improve",
    "diverge": "+ diverge",
    "exit": "+ diversity (ExIt)",
}


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        label: The strategy, and where there are several groups of it, what tells them apart.
        strategy: A name in ``STRATEGIES``.
        style: How it is drawn.
        runs: In the order of their seeds.
    """

    label: str
    strategy: str
    style: Style
    runs: tuple[Run, ...]

    def line(self, path: str, window: int = 1) -> Line | None:
        """A number of the results by iteration, over the iterations that all runs have it in; None if there is none.

        Args:
            path: See :mod:`rllib_exit.metrics`.
            window: It is averaged over so many iterations.
        """
        from rllib_exit.report.figures import smoothed

        series = [run.series(path) for run in self.runs if run.results]
        shared = sorted(set.intersection(*map(set, series))) if series else []
        if not shared:
            return None
        values = np.array([smoothed(np.array([of_run[i] for i in shared]), window) for of_run in series])
        return Line(self.label, self.style, np.array(shared), *mean_and_se(values))


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """Everything that was found of one domain and model.

    Attributes:
        name: Of the domain; with the model's, where there are several.
        groups: In the order of Table 1.
        searches: By the label of a group, or that of the base model; those that can be compared.
        left_out: The other searches, and why.
    """

    name: str
    groups: tuple[Group, ...]
    searches: Mapping[str, Sequence[Search]] = field(default_factory=dict)
    left_out: Sequence[str] = ()

    @property
    def slug(self) -> str:
        """The name, for files."""
        return slug(self.name)

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def trained(self) -> list[Run]:
        """The runs whose training is there, not their evaluation alone."""
        return [run for run in self.runs if run.results]

    @property
    def all_searches(self) -> list[Search]:
        return [search for of_group in self.searches.values() for search in of_group]

    def places(self) -> dict[str, int]:
        """By label, the place of its strategy among the rows of Table 1."""
        order = list(LABELS)
        of_groups = {g.label: order.index(g.strategy) if g.strategy in order else len(order) for g in self.groups}
        return {LABELS[BASE]: 0} | of_groups

    def styles(self) -> dict[str, Style]:
        """By label, the base model's first."""
        return {LABELS[BASE]: style(BASE)} | {group.label: group.style for group in self.groups}


def slug(text: str) -> str:
    """A text as a name for files and anchors."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def domains(found: Found) -> list[Domain]:
    """What was found, by domain and model."""
    by_domain: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in found.runs:
        by_domain[run.domain, run.model].append(run)
    searched = {id(search.run): search.run for search in found.searches if search.run is not None}
    known = {id(run) for run in found.runs}
    for key, run in searched.items():
        if key not in known:
            by_domain[run.domain, run.model].append(run)
    for search in found.searches:
        if search.run is None:
            by_domain.setdefault(("ML engineering", search.settings["model"]), [])
    names = [name for name, _ in by_domain]
    result = []
    for (name, model), runs in by_domain.items():
        groups = _groups(runs)
        searches: dict[str, list[Search]] = defaultdict(list)
        for search in found.searches:
            if search.run is None:
                if (name, model) == ("ML engineering", search.settings["model"]):
                    searches[LABELS[BASE]].append(search)
            elif group := next((group for group in groups if search.run in group.runs), None):
                searches[group.label].append(search)
        label = name if names.count(name) == 1 else f"{name} · {Path(model).name.removeprefix('bundled:')}"
        result.append(Domain(label, groups, *_comparable(searches)))
    return result


def _comparable(searches: Mapping[str, Sequence[Search]]) -> tuple[dict[str, list[Search]], list[str]]:
    """The searches of every run's most trained checkpoint and of one way of sampling, that of most methods."""
    left_out = []
    newest: dict[int, tuple[int, str]] = {}
    for search in (search for of_group in searches.values() for search in of_group):
        newest[id(search.run)] = max(_age(search), newest.get(id(search.run), _age(search)))
    by_sampling: dict[str, dict[str, list[Search]]] = defaultdict(lambda: defaultdict(list))
    for label, of_group in searches.items():
        for search in of_group:
            if _age(search) < newest[id(search.run)]:
                left_out.append(f"{search.file}: left out, the run has searches from a later checkpoint")
            else:
                by_sampling[json.dumps(search.sampling, sort_keys=True)][label].append(search)
    if not by_sampling:
        return {}, left_out
    chosen = max(by_sampling, key=lambda key: (len(by_sampling[key]), sum(map(len, by_sampling[key].values()))))
    for key, other in by_sampling.items():
        if key != chosen:
            files = (str(search.file) for of_group in other.values() for search in of_group)
            left_out += [f"{file}: left out, it samples with {key}, the searches shown with {chosen}" for file in files]
    return dict(by_sampling[chosen]), left_out


def _age(search: Search) -> tuple[int, str]:
    """Orders the checkpoints of a run: by trial, the newest of which comes first, then by name."""
    if search.run is None:
        return 0, ""
    checkpoint = Path(search.settings["checkpoint"])
    names = [trial.name for trial in search.run.trials]
    return -names.index(checkpoint.parent.name), checkpoint.name


def _groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    by_strategy: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_strategy[run.strategy][json.dumps(run.settings, sort_keys=True, default=str)].append(run)
    order = [*STRATEGIES, *sorted(by_strategy.keys() - STRATEGIES.keys())]
    groups = []
    for strategy in [name for name in order if name in by_strategy]:
        variants = list(by_strategy[strategy].values())
        for number, of_variant in enumerate(variants):
            label = LABELS.get(strategy, strategy)
            if len(variants) > 1:
                label += f" ({_difference(of_variant[0], [other[0] for other in variants])})"
            groups.append(Group(label, strategy, style(strategy, number), tuple(of_variant)))
    return tuple(groups)


def _difference(run: Run, others: Sequence[Run]) -> str:
    """The settings that tell a run from the others, in words."""

    def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
        env_config = settings["env_config"]
        return {name: settings[name] for name in HYPER_PARAMETERS if name in settings} | dict(env_config)

    def short(value: Any) -> str:
        if isinstance(value, list):
            return "+".join(Path(str(item)).name for item in value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    all_settings = [flat(other.settings) for other in others]
    mine = flat(run.settings)
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    odd = [name for name in names if any(settings.get(name) != all_settings[0].get(name) for settings in all_settings)]
    return ", ".join(f"{name} {short(mine.get(name))}" for name in odd)


@dataclass(frozen=True, slots=True, eq=False)
class Improvement:
    """The K-step self-improvement of a group, or of the base model, on a split.

    Attributes:
        label: The group's.
        style: The group's.
        curve: Its first axis is over training runs, or over the sampling seeds of a single one.
        over: What that axis is, in words.
        evaluations: The files that it comes from, with their run.
        splits: Whose tasks they are.
    """

    label: str
    style: Style
    curve: Curve
    over: str
    evaluations: tuple[tuple[Path, Run], ...]
    splits: tuple[str, ...]

    def line(self, values_SK: np.ndarray) -> Line:
        mean, se = mean_and_se(values_SK)
        return Line(self.label, self.style, np.arange(len(mean)), mean, se)


def improvements(domain: Domain) -> dict[str, list[Improvement]]:
    """By split, of the base model, then of every group that has it.

    The first is what can be compared: the split that all evaluations have in common, or, of several, all of their
    tasks together. Where they have none in common, it is empty. A split whose name stands for more tasks in one
    evaluation than in another counts as several.
    """
    evaluated = {
        group.label: [(run, *pair) for run in group.runs if (pair := run.evaluation()) is not None]
        for group in domain.groups
    }
    evaluations = [evaluation for items in evaluated.values() for *_, evaluation in items]
    if not evaluations:
        return {}
    sizes: dict[str, set[int]] = defaultdict(set)
    for evaluation in evaluations:
        for split, policies in evaluation.curves.items():
            sizes[split].add(policies[TRAINED].num_tasks)

    def by_split(evaluation: Evaluation) -> dict[str, Mapping[str, Curve]]:
        return {
            split if len(sizes[split]) == 1 else f"{split} of {policies[TRAINED].num_tasks} tasks": policies
            for split, policies in evaluation.curves.items()
        }

    splits = dict.fromkeys(split for evaluation in evaluations for split in by_split(evaluation))
    common = tuple(split for split in splits if all(split in by_split(evaluation) for evaluation in evaluations))
    steps = min(len(next(iter(e.curves.values()))[TRAINED].accuracy) for e in evaluations)

    def found(of: tuple[str, ...]) -> list[Improvement]:
        """The improvements on the tasks of some splits together."""
        having = {
            label: [
                (run, file, {p: _cut(Curve.pooled([there[split][p] for split in of]), steps) for p in there[of[0]]})
                for run, file, evaluation in items
                if (there := by_split(evaluation)).keys() >= set(of)
            ]
            for label, items in evaluated.items()
        }
        base = _base([item for items in having.values() for item in items], of)
        of_groups = [
            Improvement(
                group.label,
                group.style,
                *_over([policies[TRAINED] for *_, policies in items]),
                tuple((file, run) for run, file, _ in items),
                of,
            )
            for group in domain.groups
            if (items := having[group.label])
        ]
        return [*([base] if base else []), *of_groups]

    first = common[0] if len(common) == 1 else ALL
    return {first: found(common) if common else []} | {split: found((split,)) for split in splits if split != first}


def _base(having: Sequence[tuple[Run, Path, Mapping[str, Curve]]], splits: tuple[str, ...]) -> Improvement | None:
    """The model before training. Evaluations of it by several runs are of one and the same model: they are averaged."""
    having = [item for item in having if BASELINE in item[2]]
    if not having:
        return None
    curves = [policies[BASELINE] for *_, policies in having]
    seeds = min(len(curve.accuracy_SK) for curve in curves)

    def mean(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.mean([of_run[:seeds] for of_run in values], axis=0)

    shared = [name for name in curves[0].metrics_SK if all(name in curve.metrics_SK for curve in curves)]
    curve = Curve(
        curves[0].num_tasks,
        mean([curve.accuracy_SK for curve in curves]),
        mean([curve.net_corrections_SK for curve in curves]),
        {name: mean([curve.metrics_SK[name] for curve in curves]) for name in shared},
    )
    over = f"{seeds} sampling seed{'s' * (seeds > 1)}"
    return Improvement(LABELS[BASE], style(BASE), curve, over, tuple((file, run) for run, file, _ in having), splits)


def _over(curves: Sequence[Curve]) -> tuple[Curve, str]:
    """Over training runs, or, of a single one, over its sampling seeds."""
    if len(curves) == 1:
        seeds = len(curves[0].accuracy_SK)
        return curves[0], f"1 training run, {seeds} sampling seed{'s' * (seeds > 1)}"
    shared = [name for name in curves[0].metrics_SK if all(name in curve.metrics_SK for curve in curves)]
    curve = Curve(
        curves[0].num_tasks,
        np.stack([curve.accuracy for curve in curves]),
        np.stack([curve.net_corrections for curve in curves]),
        {name: np.stack([curve.metrics_SK[name].mean(axis=0) for curve in curves]) for name in shared},
    )
    return curve, f"{len(curves)} training runs"


def _cut(curve: Curve, steps: int) -> Curve:
    return Curve(
        curve.num_tasks,
        curve.accuracy_SK[:, :steps],
        curve.net_corrections_SK[:, :steps],
        {name: values_SK[:, :steps] for name, values_SK in curve.metrics_SK.items()},
    )
