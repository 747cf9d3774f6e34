"""The report: what training runs, evaluations and searches have left, as the paper's tables and figures."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rllib_exit.embeddings import Embedder
from rllib_exit.report import instances, scores, training
from rllib_exit.report.page import Content, Piece, Section, Sources, write_page
from rllib_exit.report.results import ML_ENGINEERING, Results, find


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
    # Below the directories, a report would count the copies that an earlier one made.
    found = find(directories, skip=output)
    domains = found.domains()
    if not domains:
        reasons = "".join(f"\n{problem}" for problem in found.problems)
        raise ValueError(f"there is nothing to report under {', '.join(map(str, directories))}{reasons}")
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    sources = Sources(output)
    first = "Initial score, and gain after the last step"
    table_1 = Piece.make("table-1", first, "Table 1", lambda: scores.table_1(domains, sources))
    sections = [Section("results", "Results", [table_1])]
    for domain in domains:
        say(f"{domain.name}: {len(domain.runs)} runs, {domain.searches.file.nunique()} searches")
        sections.append(Section(domain.slug, domain.name, _pieces(domain, sources, embedder), domain.name))
    problems = [*found.problems, *(text for domain in domains for text in domain.problems), *_same_seeds(domains)]
    lead = [
        "Exploratory Iteration (ExIt) trains a language model to improve on its own answers, one step at a time. This "
        "page holds what the runs here measured, piece by piece as in the paper “Bootstrapping Task Spaces for "
        "Self-Improvement”. Every number links to the result file that it comes from.",
        f"{len(found.trained)} training runs, {found.evaluations.file.nunique()} evaluations and "
        f"{found.searches.file.nunique()} searches; written on {datetime.date.today().isoformat()}.",
    ]
    return write_page(
        output,
        title,
        lead,
        sections,
        overview=_overview(sections),
        problems=[problem.replace(f"{Path.cwd()}/", "") for problem in problems],
        files=sources.all,
    )


def _pieces(domain: Results, sources: Sources, embedder: Embedder | None) -> list[Piece]:
    searched = not domain.searches.empty or domain.name.startswith(ML_ENGINEERING)
    # ML engineering's self-improvement at inference time is the search.
    improved = not searched or not domain.evaluations.empty
    seen = instances.Instances(domain, sources, embedder)
    pieces: list[tuple[str, str, str, Callable[[], Content]]] = []
    if improved:
        own = "Self-improvement by step"
        pieces += [("self-improvement", own, "Figures 3 and 4", lambda: scores.self_improvement(domain, sources))]
    if improved and scores.FIRST_TURN in domain.evaluations:
        own = "First-turn and per-request accuracy by step"
        pieces += [("first-turn", own, "Figure 3 (tool use)", lambda: scores.first_turn(domain, sources))]
    if improved:
        own = "Self-improvement by step, per split"
        pieces += [("splits", own, "Figure 8", lambda: scores.per_split(domain, sources))]
    if searched:
        own = "Greedy search by step"
        pieces += [
            ("search", own, "Figure 9", lambda: scores.search(domain, sources)),
            ("search-each", f"{own}, per competition", "Figure 10", lambda: scores.search_each(domain, sources)),
        ]
    between = "Distances between {} task instances"
    pieces += [
        ("training", "Learning curves", "", lambda: training.learning_curves(domain, sources)),
        ("curriculum", "The curriculum over training", "Figures 5 and 6", lambda: training.curriculum(domain, sources)),
        ("distinct", "Distinct task instances", "Figure 7, left", lambda: training.distinct_instances(domain, sources)),
        ("distances-new", between.format("new"), "Table 2", lambda: instances.distances(seen, new=True)),
        ("distances-all", between.format("all"), "Table 7", lambda: instances.distances(seen, new=False)),
        ("umap", "Map of task instances (UMAP)", "Figure 7, right", lambda: instances.umap_map(seen)),
        ("one-task", "One task alone, and with others", "Figure 1", lambda: instances.one_task(seen)),
        ("chains", "Self-iteration chains met in training", "Appendix D", lambda: instances.chains(seen)),
        ("runs", "Runs", "", lambda: training.runs(domain, sources)),
        (
            "hyper-parameters",
            "Hyper-parameters and versions",
            "Tables 4 to 6",
            lambda: training.hyper_parameters(domain, sources),
        ),
    ]
    return [Piece.make(f"{domain.slug}-{key}", title, paper, content) for key, title, paper, content in pieces]


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


def _overview(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """For every piece of any domain, what each domain has of it."""
    first, *of_domains = sections
    rows = [{"title": piece.title, "paper": piece.paper, "pieces": [piece] * len(of_domains)} for piece in first.pieces]
    for title, paper in {(piece.title, piece.paper): None for section in of_domains for piece in section.pieces}:
        having = [next((piece for piece in s.pieces if piece.title == title), None) for s in of_domains]
        rows.append({"title": title, "paper": paper, "pieces": having})
    return rows
