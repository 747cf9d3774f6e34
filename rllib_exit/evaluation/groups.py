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
from rllib_exit.evaluation.curves import Curve
from rllib_exit.evaluation.figures import BASE, Line, Style, mean_and_se, style
from rllib_exit.evaluation.results import ALL, BASELINE, TRAINED, Evaluation
from rllib_exit.evaluation.runs import HYPER_PARAMETERS, Found, Run, Search

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
        from rllib_exit.evaluation.figures import smoothed

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
        searches: By the label of a group, or that of the base model.
    """

    name: str
    groups: tuple[Group, ...]
    searches: Mapping[str, Sequence[Search]] = field(default_factory=dict)

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
        result.append(Domain(label, groups, searches))
    return result


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
    """

    label: str
    style: Style
    curve: Curve
    over: str
    evaluations: tuple[tuple[Path, Run], ...]

    def line(self, values_SK: np.ndarray) -> Line:
        mean, se = mean_and_se(values_SK)
        return Line(self.label, self.style, np.arange(len(mean)), mean, se)


def improvements(domain: Domain) -> dict[str, list[Improvement]]:
    """By split, all of them together first if there are several: the base model, then every group that has it."""
    evaluated = {
        group.label: [(run, *pair) for run in group.runs if (pair := run.evaluation()) is not None]
        for group in domain.groups
    }
    everything = [item for items in evaluated.values() for item in items]
    splits = dict.fromkeys(split for _, _, evaluation in everything for split in _by_split(evaluation))
    steps = min((len(next(iter(e.curves.values()))[TRAINED].accuracy) for *_, e in everything), default=0)
    result: dict[str, list[Improvement]] = {}
    for split in sorted(splits, key=lambda name: name != ALL):
        found = [_base(domain, everything, split, steps)]
        for group in domain.groups:
            having = [item for item in evaluated[group.label] if split in _by_split(item[2])]
            if having:
                curves = [_cut(_by_split(evaluation)[split][TRAINED], steps) for *_, evaluation in having]
                sources = tuple((file, run) for run, file, _ in having)
                found.append(Improvement(group.label, group.style, *_over(curves), sources))
        result[split] = [improvement for improvement in found if improvement is not None]
    return result


def _by_split(evaluation: Evaluation) -> dict[str, Mapping[str, Curve]]:
    together = {ALL: evaluation.pooled()} if len(evaluation.curves) > 1 else {}
    return {**together, **evaluation.curves}


def _base(
    domain: Domain, everything: Sequence[tuple[Run, Path, Evaluation]], split: str, steps: int
) -> Improvement | None:
    """The model before training. Evaluations of it by several runs are of one and the same model: they are averaged."""
    having = [
        (run, file, _cut(policies[BASELINE], steps))
        for run, file, evaluation in everything
        if BASELINE in (policies := _by_split(evaluation).get(split, {}))
    ]
    if not having:
        return None
    seeds = min(len(curve.accuracy_SK) for *_, curve in having)

    def mean(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.mean([of_run[:seeds] for of_run in values], axis=0)

    curves = [curve for *_, curve in having]
    shared = [name for name in curves[0].metrics_SK if all(name in curve.metrics_SK for curve in curves)]
    curve = Curve(
        curves[0].num_tasks,
        mean([curve.accuracy_SK for curve in curves]),
        mean([curve.net_corrections_SK for curve in curves]),
        {name: mean([curve.metrics_SK[name] for curve in curves]) for name in shared},
    )
    over = f"{seeds} sampling seed{'s' * (seeds > 1)}"
    return Improvement(LABELS[BASE], style(BASE), curve, over, tuple((file, run) for run, file, _ in having))


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
