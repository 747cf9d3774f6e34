"""The report: what training runs, evaluations and searches have left, as the paper's tables and figures."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rllib_exit.embeddings import Embedder
from rllib_exit.report import instances, scores, training
from rllib_exit.report.page import Piece, Sources, write_page
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
    # Below the directories, a report would count the copies that an earlier one made.
    found = find(directories, skip=output)
    domains = found.domains()
    if not domains:
        reasons = "".join(f"\n{problem}" for problem in found.problems)
        raise ValueError(f"there is nothing to report under {', '.join(map(str, directories))}{reasons}")
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    sources = Sources(output)
    title_1 = "Initial score, and gain after the last step"
    table_1 = Piece.make("table-1", title_1, "Table 1", scores.table_1, domains, sources)
    sections: list[dict[str, Any]] = [{"key": "results", "title": "Results", "domain": "", "pieces": [table_1]}]
    for domain in domains:
        say(f"{domain.name}: {len(domain.runs)} runs, {domain.searches.file.nunique()} searches")
        pieces = _pieces(domain, sources, embedder)
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
        output,
        sections,
        title=title,
        lead=lead,
        overview=_overview(sections),
        problems=[problem.replace(f"{Path.cwd()}/", "") for problem in problems],
        files=sources.all,
    )


def _pieces(domain: Results, sources: Sources, embedder: Embedder | None) -> list[Piece]:
    searched = not domain.searches.empty or domain.name.startswith(ML_ENGINEERING)
    # ML engineering's self-improvement at inference time is the search.
    improved = not searched or not domain.evaluations.empty
    by_step = [
        ("self-improvement", "Self-improvement by step", "Figures 3 and 4", scores.self_improvement),
        ("first-turn", "First-turn and per-request accuracy by step", "Figure 3 (tool use)", scores.first_turn),
        ("splits", "Self-improvement by step, per split", "Figure 8", scores.per_split),
    ]
    if scores.FIRST_TURN not in domain.evaluations:
        del by_step[1]
    search = [
        ("search", "Greedy search by step", "Figure 9", scores.search),
        ("search-each", "Greedy search by step, per competition", "Figure 10", scores.search_each),
    ]
    trained = [
        ("training", "Learning curves", "", training.learning_curves),
        ("curriculum", "The curriculum over training", "Figures 5 and 6", training.curriculum),
        ("distinct", "Distinct task instances", "Figure 7, left", training.distinct_instances),
    ]
    logged = [
        ("distances-new", "Distances between new task instances", "Table 2", partial(instances.distances, new=True)),
        ("distances-all", "Distances between all task instances", "Table 7", partial(instances.distances, new=False)),
        ("umap", "Map of task instances (UMAP)", "Figure 7, right", instances.umap_map),
        ("one-task", "One task alone, and with others", "Figure 1", instances.one_task),
        ("chains", "Self-iteration chains met in training", "Appendix D", instances.chains),
    ]
    made = [
        ("runs", "Runs", "", training.runs),
        ("hyper-parameters", "Hyper-parameters and versions", "Tables 4 to 6", training.hyper_parameters),
    ]
    seen = instances.Instances(domain, sources, embedder)
    before = [*(by_step if improved else []), *(search if searched else []), *trained]
    pieces: list[tuple[Any, tuple[Any, ...]]] = [(piece, (domain, sources)) for piece in before]
    pieces += [(piece, (seen,)) for piece in logged]
    pieces += [(piece, (domain, sources)) for piece in made]
    return [
        Piece.make(f"{domain.slug}-{key}", title, paper, content, *arguments)
        for (key, title, paper, content), arguments in pieces
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


def _overview(sections: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every piece of any domain, what each domain has of it."""
    first, *of_domains = ({(piece.title, piece.paper): piece for piece in section["pieces"]} for section in sections)
    rows = [(heading, [piece] * len(of_domains)) for heading, piece in first.items()]
    rows += [
        (heading, [pieces.get(heading) for pieces in of_domains])
        for heading in dict.fromkeys(heading for pieces in of_domains for heading in pieces)
    ]
    return [{"title": title, "paper": paper, "pieces": pieces} for (title, paper), pieces in rows]
