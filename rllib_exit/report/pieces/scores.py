"""Scores and gains: Table 1, self-improvement by step, greedy search (paper section 5.3, appendix C)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rllib_exit.report import figures
from rllib_exit.report.figures import Line, mean_and_se
from rllib_exit.report.groups import Domain, Improvement, improvements
from rllib_exit.report.page import Cell, HtmlTable, Piece, Source
from rllib_exit.report.pieces.material import NO_EVALUATION, Material, line_rows, number, unique
from rllib_exit.report.runs import Search

NOTHING_SHARED = "the evaluations have no split in common; they have"
NO_SHARED_COMPETITION = "there is no competition that all runs, and the base model if it was, were searched on"


def table_1(domains: Sequence[Domain], material: Material) -> Piece:
    """Initial score and gain by strategy and domain."""
    piece = Piece("table-1", "Initial score, and gain after the last step", "Table 1")
    columns: list[Column] = []
    for domain in domains:
        column = _search_column(domain, material) or _evaluation_column(domain, material)
        if column is not None:
            columns.append(column)
    if not columns:
        piece.gap = NO_EVALUATION
        return piece
    notes = " ".join(column.note for column in columns)
    labels = dict.fromkeys(label for column in columns for label in column.scores)
    if not labels:
        piece.gap = notes
        return piece
    strategies = {label: place for domain in domains for label, place in domain.places().items()}
    rows = []
    for label in sorted(labels, key=lambda label: strategies[label]):
        row = [Cell(label)]
        for column in columns:
            if label in column.scores:
                initial, gain, sources, _ = column.scores[label]
                row += [Cell(initial, sources), Cell(gain, sources)]
            else:
                row += [Cell("—"), Cell("—")]
        rows.append(row)
    header = [name for column in columns for name in (f"{column.domain} (%)", "gain")]
    piece.table = HtmlTable(["Method", *header], rows)
    piece.rows = [row for column in columns for *_, row in column.scores.values()]
    piece.sources = unique(s for column in columns for _, _, sources, _ in column.scores.values() for s in sources)
    piece.caption = (
        "The score before self-improvement in percent, ± one standard error where there are several seeds, and the "
        f"points gained by the last step. {notes}"
    )
    return piece


@dataclass(frozen=True)
class Column:
    """Table 1's of a domain: by method the initial score, the gain, the sources and the CSV's row."""

    domain: str
    scores: Mapping[str, tuple[str, str, tuple[Source, ...], dict[str, Any]]]
    note: str


def _score(
    domain: Domain, label: str, values_SK: np.ndarray, over: str, sources: tuple[Source, ...], **row: Any
) -> tuple[str, str, tuple[Source, ...], dict[str, Any]]:
    """A score from (S, K+1) values in percent."""
    mean, se = mean_and_se(values_SK)
    first_se = None if se is None else float(se[0])
    gain = float(mean[-1] - mean[0])
    row = {
        "domain": domain.name,
        "method": label,
        "initial": float(mean[0]),
        "standard_error": first_se,
        "final": float(mean[-1]),
        "gain": gain,
        **row,
        "over": over,
        "files": " ".join(source.href for source in sources),
    }
    return number(float(mean[0]), first_se), number(gain, None, "+.1f"), sources, row


def _evaluation_column(domain: Domain, material: Material) -> Column | None:
    found = improvements(domain)
    if not found:
        return None
    split, of_split = next(iter(found.items()))
    if not of_split:
        return Column(domain.name, {}, f"{domain.name}: {NOTHING_SHARED} {', '.join(list(found)[1:])}.")
    steps = len(of_split[0].curve.accuracy) - 1
    tasks = of_split[0].curve.num_tasks
    scores = {
        improvement.label: _score(
            domain,
            improvement.label,
            100 * improvement.curve.accuracy_SK,
            improvement.over,
            _evaluations(domain, improvement, material),
            split=split,
            steps=steps,
            tasks=improvement.curve.num_tasks,
        )
        for improvement in of_split
    }
    note = (
        f"{domain.name}: accuracy on {_which(of_split[0])} ({tasks} tasks), {steps} self-improvement steps; "
        f"{_over(of_split)}.{_not_shared(found)}"
    )
    return Column(domain.name, scores, note)


def _which(improvement: Improvement) -> str:
    *others, last = improvement.splits
    return f"the splits {', '.join(others)} and {last} together" if others else f"the split {last}"


def _not_shared(found: Mapping[str, Sequence[Improvement]]) -> str:
    """What is left out of the first of the improvements by split, in words."""
    (first, of_first), *others = found.items()
    left_out = [split for split, _ in others if split != first and split not in of_first[0].splits]
    return f" Not counted, as not every run was evaluated on it: {', '.join(left_out)}." if left_out else ""


def _over(found: Sequence[Improvement]) -> str:
    """What the means of the methods are over, in words."""
    methods: dict[str, list[str]] = defaultdict(list)
    for improvement in found:
        if improvement.label not in methods[improvement.over]:
            methods[improvement.over].append(improvement.label)
    if len(methods) == 1:
        return f"mean over {next(iter(methods))}"
    longest = max(methods, key=lambda over: len(methods[over]))
    others = "; ".join(f"{', '.join(labels)}: {over}" for over, labels in methods.items() if over != longest)
    return f"mean over {longest} ({others})"


def _search_column(domain: Domain, material: Material) -> Column | None:
    if not domain.all_searches:
        return None
    shared = _shared_competitions(domain)
    held_out = [name for name in shared if not _trained_on(domain, name)]
    shown = held_out or shared
    if not shown:
        return Column(domain.name, {}, f"{domain.name}: {NO_SHARED_COMPETITION}.")
    scores = {}
    overs: dict[str, None] = {}
    steps = _search_steps(domain, shown)
    for label in domain.styles():
        if of_group := _searches(domain, label, shown):
            values_SK, over = _search_curves(of_group, steps)
            sources = tuple(material.search(domain, search) for search in of_group)
            scores[label] = _score(
                domain, label, 100 * values_SK, over, sources, split=" ".join(shown), steps=steps, tasks=len(shown)
            )
            overs[over] = None
    note = (
        f"{domain.name}: best normalised score of a greedy search's first response and after step {steps}, over "
        f"the {'held-out' if held_out else 'training'} competitions {', '.join(shown)}; mean over {' or '.join(overs)}."
        f"{_search_left_out(domain, shared)}"
    )
    return Column(domain.name, scores, note)


def _searches(domain: Domain, label: str, competitions: Sequence[str]) -> list[Search]:
    return [search for search in domain.searches.get(label, ()) if search.competition in competitions]


def _search_steps(domain: Domain, competitions: Sequence[str]) -> int:
    """The steps after the first response that all searches on some competitions have."""
    return min(len(search.steps) for label in domain.searches for search in _searches(domain, label, competitions)) - 1


def _shared_competitions(domain: Domain) -> list[str]:
    """The competitions that every run that was searched with, and the base model if it was, were searched on."""
    by_run: dict[int, set[str]] = defaultdict(set)
    for search in domain.all_searches:
        by_run[id(search.run)].add(search.competition)
    return sorted(set.intersection(*by_run.values()))


def _search_left_out(domain: Domain, shared: Sequence[str]) -> str:
    """What of the searches is left out of the means, in words."""
    searches = domain.all_searches
    others = sorted({search.competition for search in searches}.difference(shared))
    text = f" Not counted, as not every run was searched on it: {', '.join(others)}." if others else ""
    lengths = sorted({len(search.steps) - 1 for search in searches})
    if len(lengths) > 1:
        text += f" The searches have {lengths[0]} to {lengths[-1]} steps; curves end with the shortest."
    return text


def _trained_on(domain: Domain, competition: str) -> bool:
    return any(competition in run.competitions for run in domain.runs)


def _search_curves(searches: Sequence[Search], steps: int) -> tuple[np.ndarray, str]:
    """(S, K+1) the best score so far, averaged over competitions.

    S is over training runs, or, of a single one or of the base model, over the sampling seeds that all of its
    competitions have.
    """
    by_run: dict[int, list[Search]] = defaultdict(list)
    for search in searches:
        by_run[id(search.run)].append(search)
    if len(by_run) > 1:
        return np.array(
            [_over_competitions(of_run, steps) for of_run in by_run.values()]
        ), f"{len(by_run)} training runs"
    by_competition: dict[str, set[int]] = defaultdict(set)
    for search in searches:
        by_competition[search.competition].add(search.settings["seed"])
    seeds = sorted(set.intersection(*by_competition.values()))
    of_seeds = [[search for search in searches if search.settings["seed"] == seed] for seed in seeds] or [searches]
    over = f"{'1 training run, ' if searches[0].run else ''}{len(of_seeds)} sampling seed{'s' * (len(of_seeds) > 1)}"
    return np.array([_over_competitions(of_seed, steps) for of_seed in of_seeds]), over


def _over_competitions(searches: Sequence[Search], steps: int) -> np.ndarray:
    """(K+1,) the best score so far: the mean over sampling seeds, and of that over competitions."""
    by_competition: dict[str, list[np.ndarray]] = defaultdict(list)
    for search in searches:
        best = np.maximum.accumulate([step.quality for step in search.steps[: steps + 1]])
        by_competition[search.competition].append(best)
    return np.mean([np.mean(curves, axis=0) for curves in by_competition.values()], axis=0)


def self_improvement(domain: Domain, material: Material) -> list[Piece]:
    """Accuracy and net corrections by step: all splits together, and each."""
    together = Piece(f"{domain.slug}-self-improvement", "Self-improvement by step", "Figures 3 and 4")
    per_split = Piece(f"{domain.slug}-splits", "Self-improvement by step, per split", "Figure 8")
    found = improvements(domain)
    if not found:
        together.gap = per_split.gap = NO_EVALUATION
        return [together, per_split]
    first, *others = found
    if found[first]:
        _fill_self_improvement(together, domain, {first: found[first]}, material)
        together.caption += _not_shared(found)
    else:
        together.gap = f"{NOTHING_SHARED} {', '.join(others)}, shown below"
    if others:
        _fill_self_improvement(per_split, domain, {split: found[split] for split in others}, material)
    else:
        per_split.gap = f"the evaluations have one split, {first}, shown above; run `rllib evaluate DIR --split ...`"
    pieces = [together, per_split]
    turns = [
        improvement for improvement in found[first] if {"first_turn_accuracy"} <= improvement.curve.metrics_SK.keys()
    ]
    if turns:
        pieces.insert(1, _first_turn(domain, turns, material))
    return pieces


def _fill_self_improvement(
    piece: Piece, domain: Domain, found: Mapping[str, Sequence[Improvement]], material: Material
) -> None:
    drawn, rows = [], []
    for split, of_split in found.items():
        name = " + ".join(of_split[0].splits)
        tasks = of_split[0].curve.num_tasks
        accuracy = [improvement.line(100 * improvement.curve.accuracy_SK) for improvement in of_split]
        corrections = [improvement.line(improvement.curve.net_corrections_SK) for improvement in of_split]
        drawn.append((f"{name} ({tasks} tasks)", "accuracy (%)", accuracy))
        drawn.append((f"{name}: net corrections", "problems", corrections))
        for improvement, of_accuracy, of_corrections in zip(of_split, accuracy, corrections, strict=True):
            files = " ".join(source.href for source in _evaluations(domain, improvement, material))
            for k in range(len(of_accuracy.x)):
                rows.append(
                    {
                        "split": split,
                        "method": improvement.label,
                        "step": k,
                        "accuracy": of_accuracy.mean[k],
                        "accuracy_standard_error": None if of_accuracy.se is None else of_accuracy.se[k],
                        "net_corrections": of_corrections.mean[k],
                        "net_corrections_standard_error": None if of_corrections.se is None else of_corrections.se[k],
                        "tasks": tasks,
                        "over": improvement.over,
                        "files": files,
                    }
                )
    everything = [improvement for of_split in found.values() for improvement in of_split]
    piece.figure = figures.panels(drawn, x_label="self-improvement step k", markers=True)
    piece.rows = rows
    piece.sources = unique(s for improvement in everything for s in _evaluations(domain, improvement, material))
    settings = {
        _settings(run.evaluations[file].settings) for improvement in everything for file, run in improvement.evaluations
    }
    piece.caption = (
        "Net corrections: problems that are right after step k and were wrong at step 0, less those the other way "
        f"round. M{_over(everything)[1:]}; bands are one standard error where there is more than one. "
        f"Settings: {' | '.join(sorted(settings))}; up to the step that all evaluations have."
    )
    if len(settings) > 1:
        piece.caption += " The evaluations differ in their settings: compare with care."


def _settings(settings: Mapping[str, Any]) -> str:
    """What an evaluation's numbers depend on, in words."""
    names = ("temperature", "top_p", "top_k", "self_improvement_steps", "limit")
    return ", ".join(f"{name} {settings[name]}" for name in names if settings.get(name) is not None)


def _first_turn(domain: Domain, found: Sequence[Improvement], material: Material) -> Piece:
    drawn = [
        (title, "%", [improvement.line(100 * improvement.curve.metrics_SK[name]) for improvement in found])
        for title, name in (
            ("First request solved", "first_turn_accuracy"),
            ("Requests solved", "requests_solved_fraction"),
        )
        if all(name in improvement.curve.metrics_SK for improvement in found)
    ]
    lines = [(title, line) for title, _, of_panel in drawn for line in of_panel]
    return Piece(
        f"{domain.slug}-first-turn",
        "First-turn and per-request accuracy by step",
        "Figure 3 (tool use)",
        "The first user request solved, and the share of all of a task's requests; all of them is the accuracy above.",
        figure=figures.panels(drawn, x_label="self-improvement step k", markers=True),
        rows=line_rows(lines, "step"),
        sources=unique(s for improvement in found for s in _evaluations(domain, improvement, material)),
    )


def _evaluations(domain: Domain, improvement: Improvement, material: Material) -> tuple[Source, ...]:
    return tuple(material.evaluation(domain, file, run) for file, run in improvement.evaluations)


def greedy_search(domain: Domain, material: Material) -> list[Piece]:
    """Best score so far by step: over training and held-out competitions, and per competition."""
    together = Piece(f"{domain.slug}-search", "Greedy search by step", "Figure 9")
    each = Piece(f"{domain.slug}-search-each", "Greedy search by step, per competition", "Figure 10")
    searches = domain.all_searches
    if not searches:
        together.gap = each.gap = "no search.jsonl is there; run `rllib search RUN --competition DIR`"
        return [together, each]
    competitions = sorted({search.competition for search in searches})
    shared = _shared_competitions(domain)
    on = [name for name in competitions if _trained_on(domain, name)]
    groups = (("Training", [name for name in shared if name in on]), ("Held out", [n for n in shared if n not in on]))
    for piece, asked in (
        (together, {title: names for title, names in groups if names}),
        (each, {f"{name} ({'training' if name in on else 'held out'})": [name] for name in competitions}),
    ):
        if not asked:
            piece.gap = f"{NO_SHARED_COMPETITION}; each is shown below"
            continue
        drawn = []
        for title, names in asked.items():
            lines = []
            steps = _search_steps(domain, names)
            for label, of_style in domain.styles().items():
                if shown := _searches(domain, label, names):
                    values_SK, _ = _search_curves(shown, steps)
                    lines.append(Line(label, of_style, np.arange(steps + 1), *mean_and_se(values_SK)))
            drawn.append((title, "best normalised score", lines))
        piece.figure = figures.panels(drawn, x_label="search step", steps=True, markers=True)
        piece.rows = line_rows([(title, line) for title, _, lines in drawn for line in lines], "step")
        piece.sources = unique(material.search(domain, search) for search in searches)
        piece.caption = (
            "The best score up to each step, in [0, 1]; a script without a score counts 0. Bands are one standard "
            "error over training runs or, of a single one and of the base model, over sampling seeds, where there is "
            f"more than one.{_search_left_out(domain, shared if piece is together else competitions)}"
        )
    return [together, each]
