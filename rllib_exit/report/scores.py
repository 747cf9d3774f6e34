"""Scores and gains: Table 1, self-improvement by step, greedy search (paper section 5.3, appendix C)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rllib_exit.report import figures
from rllib_exit.report.page import GapError, Piece, cells
from rllib_exit.report.results import LINE, Results, means
from rllib_exit.report.runs import BASE, place
from rllib_exit.report.sources import unique

NO_EVALUATION = "no evaluation.json is there; run `rllib evaluate DIR --baseline`"
NO_SHARED_SPLIT = "the evaluations have no split in common; they have"
NO_SHARED_COMPETITION = "there is no competition that all runs, and the base model if it was, were searched on"


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The scores of methods on the same splits or competitions.

    Attributes:
        of: The splits or competitions.
        rows: The evaluations or searches on them, by step.
        scores: A row for each ``method``, ``replicate`` (what the mean is ``over``, in words) and ``step``.
    """

    of: tuple[str, ...]
    rows: pd.DataFrame
    scores: pd.DataFrame

    @property
    def steps(self) -> int:
        return int(self.scores.step.max())

    @property
    def tasks(self) -> int:
        return int(self.rows.groupby("of").tasks.first().sum())

    def lines(self, score: str, panel: str = "", y_label: str = "") -> pd.DataFrame:
        """By method and step, the ``mean`` of a score and its ``standard_error``, NaN for a single replicate.

        With what they are over, the files that they come from and the figure's panel that they are drawn in.
        """
        lines = means(self.scores, ["method", "over", "step"], score)
        files = {str(method): unique([sources]) for method, sources in self.rows.groupby("method").source}
        about = {"split": " + ".join(self.of), "tasks": self.tasks, "panel": panel, "y_label": y_label}
        return lines.assign(files=lines.method.map(files), **about)


def _comparison(of: Sequence[str], rows: pd.DataFrame, scores: Sequence[str]) -> Comparison:
    """The mean scores by method: over its training runs or, of a single one, over its sampling seeds.

    Evaluations of the base model are of one and the same model, whichever run they were made for: they are averaged,
    and the mean is over sampling seeds. Only the seeds and steps that everything in ``of`` has are counted.
    """
    rows = rows[rows.of.isin(of)]
    rows = rows[rows.step <= rows.groupby("file").step.max().min()]
    replicates = []
    for method, own in rows.groupby("method", sort=False):
        runs = own.run.nunique()
        if method == BASE or runs == 1:
            seeds = set.intersection(*own.groupby(["run", "of"]).seed.agg(set))
            own = own[own.seed.isin(seeds)] if seeds else own.assign(seed=0)
            over = f"{max(1, len(seeds))} sampling seed{'s' if len(seeds) > 1 else ''}"
            over = over if method == BASE else f"1 training run, {over}"
            replicates.append(own.assign(replicate=own.seed, over=over))
        else:
            replicates.append(own.assign(replicate=own.run, over=f"{runs} training runs"))
    keys = ["method", "over", "replicate", "step"]
    each = pd.concat(replicates).groupby([*keys, "of"], sort=False)[[*scores, "tasks"]].mean()
    # Every task counts the same; corrections are added up.
    sums = each[list(scores)].mul(each.tasks, axis=0).groupby(keys, sort=False).sum(min_count=len(of))
    means = sums.div(each.tasks.groupby(keys, sort=False).sum(), axis=0)
    if "net_corrections" in means:
        means["net_corrections"] = each.net_corrections.groupby(keys, sort=False).sum()
    return Comparison(tuple(of), rows, means.reset_index())


def evaluated(domain: Results) -> tuple[Comparison | None, list[Comparison]]:
    """The tasks together of the splits that all evaluations have, if there are any; then every other split."""
    if domain.evaluations.empty:
        raise GapError(NO_EVALUATION)
    rows = domain.evaluations.assign(of=domain.evaluations.split)
    trained = rows[rows.method != BASE]
    having = trained.groupby("of", sort=False).file.nunique()
    common = tuple(having.index[having == trained.file.nunique()])
    scores = ["accuracy", "net_corrections", *rows.filter(regex="^metrics/")]
    together = _comparison(common, rows, scores) if common else None
    return together, [_comparison((split,), rows, scores) for split in having.index if common != (split,)]


def searched(domain: Results) -> tuple[dict[str, Comparison], dict[str, Comparison]]:
    """By title: the competitions trained on and those held out, of those that all runs have; then each competition."""
    if domain.searches.empty:
        raise GapError("no search.jsonl is there; run `rllib search RUN --competition DIR`")
    rows = domain.searches.assign(of=domain.searches.competition, tasks=1)
    shared = set.intersection(*rows.groupby("run").competition.agg(set))
    directories = [run.env_config.get("competitions") or () for run in domain.runs]
    trained_on = {Path(name).name for of in directories for name in ([of] if isinstance(of, str) else of)}
    groups = {"Training": shared & trained_on, "Held out": shared - trained_on}
    together = {title: _comparison(sorted(of), rows, ["best"]) for title, of in groups.items() if of}
    each = {
        f"{name} ({'training' if name in trained_on else 'held out'})": _comparison((name,), rows, ["best"])
        for name in sorted(rows.competition.unique())
    }
    return together, each


def table_1(domains: Sequence[Results]) -> Piece:
    """Initial score and gain by method and domain."""
    tables, rows, notes = [], [], []
    for domain in domains:
        if domain.searches.empty and domain.evaluations.empty:
            continue
        comparison, note = _evaluation_column(domain) if domain.searches.empty else _search_column(domain)
        notes.append(f"{domain.name}: {note}")
        header = {f"{domain.name} (%)": ("initial", ".1f", "standard_error"), "gain": ("gain", "+.1f")}
        score = domain.score if domain.searches.empty else "best normalised score"
        if comparison is None:
            tables.append(pd.DataFrame(columns=list(header), dtype=object))
            continue
        lines = comparison.lines("accuracy" if domain.searches.empty else "best")
        ends = lines.groupby(["method", "over", "tasks", "files"], sort=False).agg(
            initial=("mean", "first"),
            standard_error=("standard_error", "first"),
            final=("mean", "last"),
            final_standard_error=("standard_error", "last"),
        )
        ends = (ends * (1 if domain.searches.empty else 100)).reset_index()
        split = "all" if len(comparison.of) > 1 and domain.searches.empty else " ".join(comparison.of)
        about = {"domain": domain.name, "score": score, "split": split, "steps": comparison.steps}
        rows.append(ends.assign(gain=ends.final - ends.initial, **about))
        tables.append(cells(rows[-1], header, index="method", name="Method"))
    if not rows:
        raise GapError(" ".join(notes) or NO_EVALUATION)
    numbers = pd.concat(rows)
    places = {BASE: -1} | {run.method: place(run.strategy) for domain in domains for run in domain.runs}
    order = pd.Index(sorted(numbers.method.unique(), key=places.__getitem__), name="Method")
    caption = (
        "The score before self-improvement in percent, ± one standard error where there are several seeds, and the "
        f"points gained by the last step. {' '.join(notes)}"
    )
    columns = ["domain", "method", "score", "initial", "standard_error", "final", "final_standard_error", "gain"]
    columns += ["split", "steps", "tasks", "over"]
    table = pd.concat([table.reindex(order, fill_value="—") for table in tables], axis="columns")
    return Piece(caption, numbers[[*columns, "files"]], unique(numbers.files), table=table)


def conclusion(numbers: pd.DataFrame, most: int = 3) -> list[str]:
    """What Table 1's numbers say: the best method of every domain, what the steps add, and how sure that is.

    Args:
        numbers: The rows of :func:`table_1`.
        most: How many sentences.
    """
    sentences = []
    for domain, rows in numbers.groupby("domain", sort=False):
        trained = rows[rows.method != BASE]
        best = (trained if len(trained) else rows).sort_values("final").iloc[-1]
        others = rows[rows.method.isin([BASE, "GRPO"]) & (rows.method != best.method)]
        beside = "".join(f"; {row.method}: {row.initial:.1f} → {row.final:.1f} %" for row in others.itertuples())
        sentences.append(
            f"{domain}: over {best.steps} steps the {best.score} of {best.method} goes from {best.initial:.1f} to "
            f"{best.final:.1f} %, the highest of the methods here{beside}."
        )
    methods = numbers[numbers.method != BASE]
    methods = methods if len(methods) else numbers
    gaining, losing = (methods.sort_values("gain").iloc[place] for place in (-1, 0))
    sentences.append(
        f"The steps add most to {gaining.method} ({gaining.domain}), {_signed(gaining.gain)} points, and least to "
        f"{losing.method} ({losing.domain}), {_signed(losing.gain)}."
    )
    over = " or ".join(methods.over.unique())
    error = methods[["standard_error", "final_standard_error"]].max(axis=None)
    sentences.append(
        f"A score is the mean over {over}, "
        + (
            "without a standard error: a difference may be chance."
            if pd.isna(error)
            else f"with a standard error of up to {error:.1f} points: a smaller difference may be chance."
        )
    )
    return sentences[:most]


def _signed(number: float) -> str:
    return f"{number:+.1f}".replace("-", "−")


def _evaluation_column(domain: Results) -> tuple[Comparison | None, str]:
    """What Table 1 shows of a domain without searches, and a note on it."""
    together, each = evaluated(domain)
    if together is None:
        return None, f"{NO_SHARED_SPLIT} {', '.join(other.of[0] for other in each)}."
    *others, last = together.of
    which = f"splits {', '.join(others)} and {last} together" if others else f"split {last}"
    return together, (
        f"{domain.score} on the {which} ({together.tasks} tasks), {together.steps} self-improvement steps; "
        f"mean over {_over([together])}.{_not_evaluated(together, each)}"
    )


def _search_column(domain: Results) -> tuple[Comparison | None, str]:
    """What Table 1 shows of a domain with searches, and a note on it."""
    together, _ = searched(domain)
    if not together:
        return None, f"{NO_SHARED_COMPETITION}."
    which, shown = list(together.items())[-1]
    return shown, (
        f"best normalised score of a greedy search's first response and after step {shown.steps}, over the "
        f"{which.lower().replace(' ', '-')} competitions {', '.join(shown.of)}; "
        f"mean over {' or '.join(shown.scores.over.unique())}.{_not_searched(domain, together)}"
    )


def _not_counted(others: Iterable[str], done: str) -> str:
    names = ", ".join(others)
    return f" Not counted, as not every run was {done} on it: {names}." if names else ""


def _not_evaluated(together: Comparison, each: Sequence[Comparison]) -> str:
    return _not_counted((other.of[0] for other in each if other.of[0] not in together.of), "evaluated")


def _not_searched(domain: Results, shown: Mapping[str, Comparison]) -> str:
    """What of the searches is not in the means that are shown, in words."""
    counted = [name for comparison in shown.values() for name in comparison.of]
    text = _not_counted(sorted(set(domain.searches.competition).difference(counted)), "searched")
    lengths = domain.searches.groupby("file").step.max()
    if lengths.nunique() > 1:
        text += f" The searches have {lengths.min()} to {lengths.max()} steps; curves end with the shortest."
    return text


def _over(comparisons: Sequence[Comparison]) -> str:
    """What the means of the methods are over, in words."""
    pairs = pd.concat([comparison.scores for comparison in comparisons])[["over", "method"]].drop_duplicates()
    methods = pairs.groupby("over", sort=False).method.agg(", ".join)
    most = pairs.over.value_counts(sort=False).idxmax()
    others = "; ".join(f"{of}: {over}" for over, of in methods.drop(most).items())
    return f"{most} ({others})" if others else str(most)


def self_improvement(domain: Results) -> Piece:
    """Accuracy or mean quality, and net corrections, by step, on the splits that all evaluations have."""
    together, each = evaluated(domain)
    if together is None:
        raise GapError(f"{NO_SHARED_SPLIT} {', '.join(other.of[0] for other in each)}, shown below")
    return _by_step(domain, [together], _not_evaluated(together, each))


def per_split(domain: Results) -> Piece:
    """Accuracy or mean quality, and net corrections, by step, on every other split."""
    together, each = evaluated(domain)
    if not each and together:
        raise GapError(
            f"the evaluations have one split, {together.of[0]}, shown above; run `rllib evaluate DIR --split ...`"
        )
    return _by_step(domain, each)


def _by_step(domain: Results, comparisons: Sequence[Comparison], note: str = "") -> Piece:
    lines = []
    for comparison in comparisons:
        name = " + ".join(comparison.of)
        lines.append(comparison.lines("accuracy", f"{name} ({comparison.tasks} tasks)", f"{domain.score} (%)"))
        lines.append(comparison.lines("net_corrections", f"{name}: net corrections", "problems"))
    settings = sorted({text for comparison in comparisons for text in comparison.rows.settings})
    caption = (
        "Net corrections: problems that are right after step k and were wrong at step 0, less those the other way "
        f"round. Mean over {_over(comparisons)}; bands are one standard error where there is more than one. "
        f"Settings: {' | '.join(settings)}; up to the step that all evaluations have."
    )
    caption += " The evaluations differ in their settings: compare with care." if len(settings) > 1 else ""
    return _curves(domain, lines, caption + note)


FIRST_TURN = "metrics/first_turn_accuracy"


def first_turn(domain: Results) -> Piece:
    """The first request solved, and the share of requests solved, by step."""
    together, _ = evaluated(domain)
    if together is None:
        raise GapError("the evaluations have no split in common")
    titles = {FIRST_TURN: "First request solved", "metrics/requests_solved_fraction": "Requests solved"}
    lines = [together.lines(name, title, "%") for name, title in titles.items() if name in together.scores]
    caption = f"The first request solved, and the share of all of a task's requests; all is the {domain.score} above."
    return _curves(domain, lines, caption)


def search(domain: Results) -> Piece:
    """The best score so far of greedy search by step, over training and held-out competitions."""
    together, _ = searched(domain)
    if not together:
        raise GapError(f"{NO_SHARED_COMPETITION}; each is shown below")
    return _best_so_far(domain, together)


def search_each(domain: Results) -> Piece:
    """The best score so far of greedy search by step, per competition."""
    return _best_so_far(domain, searched(domain)[1])


def _best_so_far(domain: Results, shown: Mapping[str, Comparison]) -> Piece:
    caption = (
        "The best score up to each step, in [0, 1]; a script without a score counts 0. Bands are one standard error "
        "over training runs or, of a single one and of the base model, over sampling seeds, where there is more than "
        f"one.{_not_searched(domain, shown)}"
    )
    lines = [comparison.lines("best", title, "best normalised score") for title, comparison in shown.items()]
    return _curves(domain, lines, caption, x_label="search step", steps=True)


def _curves(
    domain: Results,
    panels: Sequence[pd.DataFrame],
    caption: str,
    *,
    x_label: str = "self-improvement step k",
    steps: bool = False,
) -> Piece:
    lines = pd.concat(panels).dropna(subset="mean")
    figure = figures.panels(lines, domain.styles, x="step", x_label=x_label, steps=steps)
    rows = lines[["panel", "split", "method", "step", *LINE, "tasks", "over", "files"]]
    return Piece(caption, rows, unique(lines.files), figure)
