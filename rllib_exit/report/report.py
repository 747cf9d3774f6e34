"""The report: what training runs, evaluations and searches have left, as the paper's tables and figures."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rllib_exit.embeddings import Embedder
from rllib_exit.report.groups import Domain, domains
from rllib_exit.report.page import Section, Sources, write_page
from rllib_exit.report.pieces import instances, scores, training
from rllib_exit.report.pieces.material import Material
from rllib_exit.report.runs import find


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
    if not found.runs and not found.searches:
        reasons = "".join(f"\n{problem}" for problem in found.problems)
        raise ValueError(f"there is nothing to report under {', '.join(map(str, directories))}{reasons}")
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    material = Material(Sources(output), embedder)
    by_domain = domains(found)
    sections = [Section("results", "Results", [scores.table_1(by_domain, material)])]
    for domain in by_domain:
        say(f"{domain.name}: {len(domain.runs)} runs, {sum(map(len, domain.searches.values()))} searches")
        sections.append(_section(domain, material))
    problems = [*found.problems, *(text for domain in by_domain for text in domain.left_out), *_same_seeds(by_domain)]
    run_count = sum(len(domain.trained) for domain in by_domain)
    lead = [
        "Exploratory Iteration (ExIt) trains a language model to improve on its own answers, one step at a time. This "
        "page holds what the runs here measured, piece by piece as in the paper “Bootstrapping Task Spaces for "
        "Self-Improvement”. Every number links to the result file that it comes from.",
        f"{run_count} training runs, {sum(len(run.evaluations) for d in by_domain for run in d.runs)} evaluations and "
        f"{len(found.searches)} searches; written on {datetime.date.today().isoformat()}.",
    ]
    return write_page(
        output,
        title,
        lead,
        sections,
        overview=_overview(sections),
        problems=[problem.replace(f"{Path.cwd()}/", "") for problem in problems],
        files=material.sources.all,
    )


def _section(domain: Domain, material: Material) -> Section:
    searched = bool(domain.searches) or domain.name.startswith("ML engineering")
    # ML engineering's self-improvement at inference time is the search.
    improved = not searched or any(run.evaluations for run in domain.runs)
    return Section(
        domain.slug,
        domain.name,
        [
            *(scores.self_improvement(domain, material) if improved else []),
            *(scores.greedy_search(domain, material) if searched else []),
            training.training(domain, material),
            training.curriculum(domain, material),
            instances.distinct_instances(domain, material),
            *instances.distances(domain, material),
            instances.learnability(domain, material),
            instances.chains(domain, material),
            training.runs_table(domain, material),
            training.hyper_parameters(domain, material),
        ],
        domain=domain.name,
    )


def _same_seeds(by_domain: Sequence[Domain]) -> list[str]:
    """Runs that should differ in their seeds and do not."""
    problems = []
    for group in (group for domain in by_domain for group in domain.groups):
        seeds = [run.seed for run in group.runs]
        for seed in sorted({str(seed) for seed in seeds if seeds.count(seed) > 1}):
            directories = ", ".join(str(run.trials[0]) for run in group.runs if str(run.seed) == seed and run.trials)
            problems.append(f"{group.label}: several runs have seed {seed}, and each counts: {directories}")
    return problems


def _overview(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """For every piece of any domain, what each domain has of it."""
    first, *of_domains = sections
    kinds = {(piece.title, piece.paper): None for section in of_domains for piece in section.pieces}
    rows = [{"title": piece.title, "paper": piece.paper, "pieces": [piece] * len(of_domains)} for piece in first.pieces]
    for title, paper in kinds:
        having = [next((piece for piece in s.pieces if piece.title == title), None) for s in of_domains]
        rows.append({"title": title, "paper": paper, "pieces": having})
    return rows
