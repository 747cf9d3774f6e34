"""The report: what training runs, evaluations and searches have left, as the paper's tables and figures."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rllib_exit.embeddings import Embedder
from rllib_exit.report import instances, scores, training
from rllib_exit.report.page import Piece, write_page
from rllib_exit.report.results import Results, find
from rllib_exit.report.runs import ML_ENGINEERING


def write_report(
    directories: Sequence[Path],
    output: Path,
    *,
    title: str = "Exploratory Iteration: results",
    embedder: Embedder | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Writes the report of everything under some directories.

    Args:
        directories: Of runs, evaluations and searches, or above some.
        output: A directory for the page, its figures, tables, and copies of the result files; made if need be.
        title: Of the page.
        embedder: Embeds task instances; None leaves out what needs embeddings, and says so.
        say: Is told what is being done.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If a directory does not exist.
        ValueError: If there is nothing to report.
    """
    found = find(directories, output)
    domains = found.domains()
    if not domains:
        reasons = "".join(f"\n{problem}" for problem in found.problems)
        raise ValueError(f"there is nothing to report under {', '.join(map(str, directories))}{reasons}")
    title_1 = "Initial score, and gain after the last step"
    table_1 = Piece.make("table-1", title_1, "Table 1", scores.table_1, domains)
    sections: list[dict[str, Any]] = [{"key": "results", "title": "Results", "domain": "", "pieces": [table_1]}]
    for domain in domains:
        say(f"{domain.name}: {len(domain.runs)} runs, {domain.searches.file.nunique()} searches")
        pieces = _pieces(domain, embedder)
        sections.append({"key": domain.slug, "title": domain.name, "domain": domain.name, "pieces": pieces})
    problems = [*found.problems, *(text for domain in domains for text in domain.problems), *_same_seeds(domains)]
    lead = [
        "Exploratory Iteration (ExIt) trains a language model to improve on its own answers, one step at a time. This "
        "page holds what the runs here measured, piece by piece as in the paper “Bootstrapping Task Spaces for "
        "Self-Improvement”. Every number links to the result file that it comes from.",
        f"{len(found.trained)} training runs, {found.evaluations.file.nunique()} evaluations and "
        f"{found.searches.file.nunique()} searches; written on {datetime.date.today().isoformat()}.",
    ]
    return write_page(
        output.absolute(),
        sections,
        title=title,
        conclusion=[] if table_1.gap else scores.conclusion(table_1.rows),
        lead=lead,
        problems=[problem.replace(f"{Path.cwd()}/", "") for problem in problems],
        files=found.sources.copy(),
    )


def _pieces(domain: Results, embedder: Embedder | None) -> list[Piece]:
    searched = not domain.searches.empty or domain.name.startswith(ML_ENGINEERING)
    # ML engineering's self-improvement at inference time is the search.
    evaluated = not searched or not domain.evaluations.empty
    first_turn = evaluated and scores.FIRST_TURN in domain.evaluations
    seen = instances.Instances(domain, embedder)
    new, every = partial(instances.distances, new=True), partial(instances.distances, new=False)
    listed: list[tuple[bool, str, str, str, Callable[..., Piece], Any]] = [
        (evaluated, "self-improvement", "Self-improvement by step", "Figures 3 and 4", scores.self_improvement, domain),
        (first_turn, "first-turn", "First-turn and per-request accuracy by step", "Figure 3 (tool use)",
         scores.first_turn, domain),
        (evaluated, "splits", "Self-improvement by step, per split", "Figure 8", scores.per_split, domain),
        (searched, "search", "Greedy search by step", "Figure 9", scores.search, domain),
        (searched, "search-each", "Greedy search by step, per competition", "Figure 10", scores.search_each, domain),
        (True, "training", "Learning curves", "", training.learning_curves, domain),
        (True, "curriculum", "The curriculum over training", "Figures 5 and 6", training.curriculum, domain),
        (True, "distinct", "Distinct task instances", "Figure 7, left", training.distinct_instances, domain),
        (True, "distances-new", "Distances between new task instances", "Table 2", new, seen),
        (True, "distances-all", "Distances between all task instances", "Table 7", every, seen),
        (True, "umap", "Map of task instances (UMAP)", "Figure 7, right", instances.umap_map, seen),
        (True, "one-task", "One task alone, and with others", "Figure 1", instances.one_task, seen),
        (True, "chains", "Self-iteration chains met in training", "Appendix D", instances.chains, seen),
        (True, "runs", "Runs", "", training.runs, domain),
        (True, "hyper-parameters", "Hyper-parameters and versions", "Tables 4 to 6", training.hyper_parameters, domain),
    ]  # fmt: skip
    return [
        Piece.make(f"{domain.slug}-{key}", title, paper, content, argument)
        for asked, key, title, paper, content, argument in listed
        if asked
    ]


def _same_seeds(domains: Sequence[Results]) -> list[str]:
    """Runs that should differ in their seeds and do not."""
    problems = []
    for method, runs in (item for domain in domains for item in domain.methods.items()):
        seeds = [str(run.params.get("seed")) for run in runs]
        for seed in sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            same = [run for run, of_run in zip(runs, seeds, strict=True) if of_run == seed and run.trials]
            directories = ", ".join(str(run.trials[0]) for run in same)
            problems.append(f"{method}: several runs have seed {seed}, and each counts: {directories}")
    return problems
