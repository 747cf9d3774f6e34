"""Task instances: how many, how different (paper section 5.5), one alone (section 3), chains (appendix D)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllib_exit.report import figures
from rllib_exit.report.figures import Line, mean_and_se
from rllib_exit.report.groups import LABELS, Domain, Group
from rllib_exit.report.instances import (
    SAMPLE,
    Instance,
    mean_distances,
    sample,
    task_prompts,
    texts,
    umap_map,
)
from rllib_exit.report.page import Cell, HtmlTable, Link, Piece, ShownChain, Source
from rllib_exit.report.page import shortened as short
from rllib_exit.report.runs import Run

if TYPE_CHECKING:
    from rllib_exit.rollout_log import Row
from rllib_exit.report.pieces.material import NO_LOG, NO_TRAINING, Material, line_rows, number, unique


def distinct_instances(domain: Domain, material: Material) -> Piece:
    """How many distinct task instances each strategy trained on."""
    piece = Piece(f"{domain.slug}-distinct", "Distinct task instances", "Figure 7, left")
    groups = [group for group in domain.groups if any(run.results for run in group.runs)]
    if not groups:
        piece.gap = NO_TRAINING
        return piece
    names = ("curriculum/distinct_instances_total", "curriculum/distinct_tasks_total")
    series = {id(run): [run.series(name) for name in names] for run in domain.trained}
    shared = set.intersection(*(set(of_name) for of_run in series.values() for of_name in of_run))
    if not shared:
        piece.gap = f"the runs have no iteration in common whose results have {' and '.join(names)}"
        return piece
    last = max(shared)
    counts = {
        group: [(run, *(of_name[last] for of_name in series[id(run)])) for run in group.runs if run.results]
        for group in groups
    }
    base = [instances for group in groups if group.strategy == "grpo" for _, instances, _ in counts[group]]
    bars, table = [], []
    rows = []
    for group in groups:
        values = np.array([instances for _, instances, _ in counts[group]])
        tasks = np.array([tasks for *_, tasks in counts[group]])
        mean, se = mean_and_se(values)
        bars.append((group.label, group.style, float(mean), None if se is None else float(se)))
        sources = tuple(s for run, *_ in counts[group] for s in material.results(domain, run))
        ratio = f"{mean / np.mean(base):.2f}" if base else "—"
        cells = [number(float(mean), None if se is None else float(se), ".0f"), f"{tasks.mean():.0f}", ratio]
        table.append([Cell(group.label), *(Cell(text, sources) for text in cells)])
        rows += [
            {"method": group.label, "run": run.name, "iteration": last, "instances": instances, "base_tasks": tasks}
            for run, instances, tasks in counts[group]
        ]
    piece.figure = figures.bars(bars, y_label=f"distinct instances by iteration {last}")
    piece.table = HtmlTable(["Method", "Distinct instances", "Distinct base tasks", "Relative to GRPO"], table)
    piece.rows = rows
    piece.sources = unique(s for run in domain.trained for s in material.results(domain, run))
    piece.caption = (
        f"Task instances that were rolled out by iteration {last}, the last that all runs have: a base task, or one "
        "with its own history and iterate."
    )
    return piece


def distances(domain: Domain, material: Material) -> list[Piece]:
    """Pairwise distances of task instances, and their map."""
    new = Piece(f"{domain.slug}-distances-new", "Distances between new task instances", "Table 2")
    everything = Piece(f"{domain.slug}-distances-all", "Distances between all task instances", "Table 7")
    mapped = Piece(f"{domain.slug}-umap", "Map of task instances (UMAP)", "Figure 7, right")
    pieces = [new, everything, mapped]

    def gap(reason: str) -> list[Piece]:
        for piece in pieces:
            piece.gap = reason
        return pieces

    logged = {group: [run for run in group.runs if run.log is not None] for group in domain.groups}
    logged = {group: runs for group, runs in logged.items() if runs}
    if not logged:
        return gap(NO_LOG if domain.trained else NO_TRAINING)
    if material.embedder is None:
        return gap("embeddings were not asked for (--embedding-model none)")
    prompts: dict[int, dict[str, str]] = {}
    try:
        for runs in logged.values():
            # The runs of a group have the same environment.
            prompts |= dict.fromkeys(map(id, runs), task_prompts(runs[0]))
    except ValueError as error:
        return gap(str(error))
    embedded: dict[str, np.ndarray] = {}

    def embed(piece: Piece, run: Run, of: Sequence[Instance]) -> tuple[np.ndarray, Source]:
        """The embeddings, and the file of what was embedded."""
        assert material.embedder is not None
        written = texts(run, of, prompts[id(run)])
        unknown = list(dict.fromkeys(text for text in written if text not in embedded))
        embedded.update(zip(unknown, material.embedder.embed(unknown), strict=True))
        rows = [
            {"instance": instance.id, "task_id": instance.task_id, "text": text}
            for instance, text in zip(of, written, strict=True)
        ]
        source = material.from_log(domain, run, piece.key.removeprefix(f"{domain.slug}-"), rows)
        return np.stack([embedded[text] for text in written]), source

    for piece, only_new in ((new, True), (everything, False)):
        _fill_distances(piece, domain, logged, material, embed, only_new)
    _fill_map(mapped, domain, logged, material, embed)
    return pieces


def _fill_distances(
    piece: Piece, domain: Domain, logged: Mapping[Group, Sequence[Run]], material: Material, embed: Any, only_new: bool
) -> None:
    table, rows, sources = [], [], []
    for group, runs in logged.items():
        of_group = []
        from_runs = []
        for run in runs:
            chosen = [instance for instance in material.instances(run) if instance.new or not only_new]
            if len(chosen) < 2:
                continue
            embeddings, source = embed(piece, run, drawn := sample(chosen))
            cosine, l2 = mean_distances(embeddings)
            of_group.append((cosine, l2))
            from_runs.append(source)
            rows.append(
                {
                    "method": group.label,
                    "run": run.name,
                    "cosine": cosine,
                    "l2": l2,
                    "instances": len(chosen),
                    "embedded": len(drawn),
                    "file": source.href,
                }
            )
        cells = [Cell("N/A"), Cell("N/A")]
        if of_group:
            mean, se = mean_and_se(np.array(of_group))
            texts_of = [number(mean[i], None if se is None else se[i], ".3f") for i in range(2)]
            cells = [Cell(text, (piece.own_csv,)) for text in texts_of]
        table.append([Cell("Uniform (GRPO)" if group.strategy == "grpo" else group.label), *cells])
        sources += [*from_runs, *(material.log(domain, run) for run in runs)]
    if not rows:
        piece.gap = "no run has two instances that the curriculum made"
        return
    which = "instances that the curriculum made" if only_new else "instances, base tasks included"
    piece.table = HtmlTable(["Method", "Cosine distance", "L2 distance"], table)
    piece.rows = rows
    piece.sources = unique(sources)
    piece.caption = (
        f"Mean over all pairs of distinct {which}, at most {SAMPLE} of a run drawn at random, embedded by "
        f"{material.embedder.model if material.embedder else ''} and scaled to unit length; an instance's text is its "
        "iterate and the request that it answers. N/A: the strategy makes no such instances."
    )


def _fill_map(
    piece: Piece, domain: Domain, logged: Mapping[Group, Sequence[Run]], material: Material, embed: Any
) -> None:
    base: list[tuple[Run, Instance, np.ndarray]] = []
    new: dict[Group, list[tuple[Run, Instance, np.ndarray]]] = defaultdict(list)
    sources = []
    for group, runs in logged.items():
        each = max(1, SAMPLE // len(runs))
        for run in runs:
            everything = material.instances(run)
            there = {instance.id for _, instance, _ in base}
            tasks = [instance for instance in everything if not instance.new and instance.id not in there]
            tasks = sample(tasks, max(0, SAMPLE - len(base)))
            made = sample([instance for instance in everything if instance.new], each)
            if not tasks and not made:
                continue
            embeddings, source = embed(piece, run, [*tasks, *made])
            sources += [source, material.log(domain, run)]
            base += [(run, *pair) for pair in zip(tasks, embeddings[: len(tasks)], strict=True)]
            if made:
                new[group] += [(run, *pair) for pair in zip(made, embeddings[len(tasks) :], strict=True)]
    if not new:
        piece.gap = "no run has instances that the curriculum made"
        return
    try:
        points = umap_map(np.stack([embedding for of_group in [base, *new.values()] for *_, embedding in of_group]))
    except ValueError as error:
        piece.gap = str(error)
        return
    background, rest = points[: len(base)], points[len(base) :]
    drawn: dict[str, tuple[figures.Style, np.ndarray]] = {}
    rows = _map_rows("base tasks", base, background)
    for group, of_group in new.items():
        of_points, rest = rest[: len(of_group)], rest[len(of_group) :]
        drawn[group.label] = group.style, of_points
        rows += _map_rows(group.label, of_group, of_points)
    piece.figure = figures.scatters(drawn, background, label=f"base tasks: {len(background)}")
    piece.rows = rows
    piece.sources = unique(sources)
    piece.caption = (
        f"Instances that each strategy made, at most {SAMPLE} of a strategy, over the base tasks in grey; one UMAP of "
        f"their embeddings by {material.embedder.model if material.embedder else ''}, by cosine distance."
    )


def _map_rows(method: str, of: Sequence[tuple[Run, Instance, np.ndarray]], points: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"method": method, "run": run.name, "instance": instance.id, "x": x, "y": y}
        for (run, instance, _), (x, y) in zip(of, points, strict=True)
    ]


def learnability(domain: Domain, material: Material) -> Piece:
    """A task trained on alone, against the same task trained on with others."""
    piece = Piece(f"{domain.slug}-one-task", "One task alone, and with others", "Figure 1")
    logged = [(group, run) for group in domain.groups for run in group.runs if run.log is not None]
    if not logged:
        piece.gap = NO_LOG if domain.trained else NO_TRAINING
        return piece
    tasks = {id(run): {instance.task_id for instance in material.instances(run)} for _, run in logged}
    alone = [(group, run) for group, run in logged if len(tasks[id(run)]) == 1]
    found = [
        (task, alone_group, run_group)
        for alone_group, run in alone
        for task in tasks[id(run)]
        for run_group, other in logged
        if run_group.strategy == alone_group.strategy and len(tasks[id(other)]) > 1 and task in tasks[id(other)]
    ]
    if not found:
        piece.gap = (
            "no strategy was trained both on one task alone and on several with it; train twice, with "
            "--set env_config.competitions=... or the like, and --log-rollouts"
        )
        return piece
    task = found[0][0]
    groups = dict.fromkeys(group for which, *pair in found if which == task for group in pair)
    having = {group: [run for which, run in logged if which is group and task in tasks[id(run)]] for group in groups}
    lines, sources = [], []
    for group, runs in having.items():
        series = [_task_quality(run, task) for run in runs]
        for run, of_run in zip(runs, series, strict=True):
            rows = [{"task_id": task, "iteration": i, "mean_quality": quality} for i, quality in of_run.items()]
            sources.append(material.from_log(domain, run, "one-task", rows))
        shared = sorted(set.intersection(*map(set, series)))
        if shared:
            values = np.array([[of_run[i] for i in shared] for of_run in series])
            together = len(tasks[id(runs[0])])
            label = f"{LABELS.get(group.strategy, group.strategy)}, " + (
                "alone" if together == 1 else f"{together} tasks"
            )
            lines.append(Line(label, group.style, np.array(shared), *mean_and_se(values)))
    piece.figure = figures.panels([(task, "mean quality", lines)], x_label="iteration", markers=True, columns=1)
    piece.rows = line_rows([(task, line) for line in lines], "iteration")
    piece.sources = unique(sources)
    piece.caption = f"Mean quality of the rollouts of {task} by iteration, in runs on it alone and on several tasks."
    return piece


def _task_quality(run: Run, task: str) -> dict[int, float]:
    import pyarrow.dataset as ds

    assert run.log is not None
    by_iteration: dict[int, list[float]] = defaultdict(list)
    for row in run.log.read(ds.field("task_id") == task, columns=["iteration", "quality"]):
        by_iteration[row["iteration"]].append(row["quality"])
    return {iteration: float(np.mean(qualities)) for iteration, qualities in sorted(by_iteration.items())}


def chains(domain: Domain, material: Material) -> Piece:
    """Self-iteration chains met in training."""
    piece = Piece(f"{domain.slug}-chains", "Self-iteration chains met in training", "Appendix D")
    order = ("exit", "diverge", "improve")
    runs = [
        run
        for strategy in order
        for group in domain.groups
        if group.strategy == strategy
        for run in group.runs
        if run.log is not None
    ]
    if not runs:
        strategies = {group.strategy for group in domain.groups if any(run.log is not None for run in group.runs)}
        piece.gap = (
            f"the logs of rollouts are of {', '.join(sorted(strategies))}, which does not self-iterate"
            if strategies
            else NO_LOG
        )
        return piece
    run = runs[0]
    found = _sample_chains(run)
    if not found:
        piece.gap = f"{run.name} has no self-iteration step yet"
        return piece
    try:
        prompts = task_prompts(run)
    except ValueError:
        prompts = {}
    shown, rows = [], []
    for why, chain in found:
        task = chain[0]["task_id"]
        links = []
        for row, child in zip(chain, [*chain[1:], None], strict=True):
            # A later turn than the first may be what the next step starts from.
            t = row["turn_ids"].index(child["instance_id"]) if child else row["starting_turn"]
            turn = row["turns"][t]
            kind = row["kind"] if t == row["starting_turn"] else "base"
            title = (
                f"{'Answer' if kind == 'base' else kind.capitalize()} · iteration {row['iteration']} · "
                f"depth {turn['depth']} · quality {row['quality']:.3g}"
            )
            feedback = turn["feedback"] or "" if child else ""
            links.append(Link(title, short(turn["response"]) or "(nothing)", short(feedback, 800)))
            rows.append(
                {
                    "chain": why,
                    "task_id": task,
                    "rollout": f"{row['group_id']}/{row['g']}",
                    **{name: row[name] for name in ("iteration", "kind", "starting_turn", "quality")},
                    "turn": t,
                    "response": turn["response"],
                    "feedback": turn["feedback"],
                }
            )
        shown.append((f"{why}: {task}", short(prompts.get(task, ""), 900), links))
    source = material.from_log(domain, run, "chains", rows)
    piece.chains = [ShownChain(title, prompt, links, source) for title, prompt, links in shown]
    piece.rows = rows
    piece.sources = [source]
    piece.caption = (
        f"From the log of {run.name}. Each step starts from the response above it; the prompts of the steps are those "
        "of envs/prompts.py. `rllib rollouts DIR --show GROUP/G` shows a rollout of the CSV file in full."
    )
    return piece


def _sample_chains(run: Run) -> list[tuple[str, list[Row]]]:
    """A chain that gained, one that diverged, and the deepest; each from its first response on."""
    import pyarrow.dataset as ds

    assert run.log is not None
    columns = ["iteration", "group_id", "g", "task_id", "kind", "depth", "quality", "iterate"]
    steps = run.log.read((ds.field("kind") != "base") & ds.field("valid") & ~ds.field("truncated"), columns=columns)

    def gain(row: Row) -> float:
        return row["quality"] - (row["iterate"]["quality"] or 0.0)

    found: list[tuple[str, Row]] = []
    for why, chosen, key in (
        ("Improved", [r for r in steps if r["kind"] == "improve" and gain(r) > 0], lambda r: (r["depth"], gain(r))),
        ("Diverged", [r for r in steps if r["kind"] == "diverge" and gain(r) >= 0], lambda r: (gain(r), r["depth"])),
        ("The deepest", steps, lambda r: (r["depth"], r["quality"])),
    ):
        taken = {row["task_id"] for _, row in found}
        chosen = [row for row in chosen if row["task_id"] not in taken]
        if chosen:
            found.append((why, max(chosen, key=key)))
    chains = []
    for why, row in found:
        whole = run.log.rollout(row["group_id"], row["g"], iteration=row["iteration"])
        ancestors, _ = run.log.lineage(whole)
        earlier = [run.log.rollout(a["group_id"], a["g"], iteration=a["iteration"]) for a in reversed(ancestors)]
        chains.append((why, [*earlier, whole]))
    return chains
