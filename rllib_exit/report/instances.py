"""Task instances: how different they are (paper section 5.5), one task alone (section 3), chains (appendix D).

An instance is told from others by its id in the log of rollouts: a digest of the task and the responses up to the
iterate. A *new* instance is one that the curriculum made: it has a history or an iterate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from rllib_exit.report import figures
from rllib_exit.report.page import GapError, Piece, cells
from rllib_exit.report.results import LINE, Results, means, means_by_iteration
from rllib_exit.report.runs import LABELS, Run
from rllib_exit.report.sources import Source, unique
from rllib_exit.report.training import NO_TRAINING

if TYPE_CHECKING:
    from rllib_exit.embeddings import Embedder
    from rllib_exit.rollout_log import LoggedRollouts, Row

NO_LOG = "no log of rollouts is there; train with --log-rollouts"
# At most so many instances of a run are embedded.
SAMPLE = 300


class Instances:
    """What the logs of rollouts of a domain say of its task instances; read when first asked for.

    Without an embedder, what needs embeddings is a gap.
    """

    def __init__(self, domain: Results, embedder: Embedder | None) -> None:
        self.domain = domain
        self.sources = domain.sources
        self.embedder = embedder
        self.logs = {run: run.log for run in domain.runs if run.log is not None}
        self._embeddings: dict[str, np.ndarray] = {}

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per run and distinct instance, in the order in which they were first rolled out.

        ``id``, ``task_id``, ``starting_turn``, ``depth`` (of its iterate), ``first_iteration``, ``iterated``,
        ``groups`` (how many were rolled out from it), ``quality`` (the mean of its rollouts), ``run``, ``method``.

        Raises:
            GapError: If there is no log.
        """
        if not self.logs:
            raise GapError(NO_LOG if self.domain.trained else NO_TRAINING)
        columns = ["iteration", "group_id", "task_id", "kind", "starting_turn", "depth", "instance_id", "quality"]
        tables = []
        for run, log in self.logs.items():
            rollouts = pd.DataFrame(log.read(columns=columns)).rename(columns={"instance_id": "id"})
            # The base instance of a task and a replay from an empty history have the same id.
            by_id = rollouts.assign(iterated=rollouts.kind != "base").groupby("id", sort=False)
            table = by_id.agg(
                task_id=("task_id", "first"),
                starting_turn=("starting_turn", "first"),
                depth=("depth", "first"),
                first_iteration=("iteration", "first"),
                iterated=("iterated", "first"),
                groups=("group_id", "nunique"),
                quality=("quality", "mean"),
            )
            tables.append(table.reset_index().assign(run=run.key, method=run.method))
        return pd.concat(tables, ignore_index=True)

    def of(self, run: Run, new: bool | None = None) -> pd.DataFrame:
        """The run's instances, or only those that the curriculum made, or only the others."""
        table = self.table[self.table.run == run.key]
        made = table.iterated | (table.starting_turn > 0)
        return table if new is None else table[made == new]

    def summary(self, run: Run) -> Source:
        """The run's log, summed up by task instance."""
        return self.sources.from_log(run, "instances", self.of(run).drop(columns=["run", "method"]))

    @cached_property
    def prompts(self) -> dict[str, dict[str, str]]:
        """By method, the prompts of its base tasks: its runs have the same environment."""
        return {run.method: task_prompts(run) for run in reversed(self.logs)}

    def embed(self, run: Run, name: str, drawn: pd.DataFrame) -> tuple[np.ndarray, Source]:
        """(N, E) the embeddings of some instances of a run, and the file of what was embedded."""
        if self.embedder is None:
            raise GapError("embeddings were not asked for (--embedding-model none)")
        written = self._texts(run, list(drawn.id))
        unknown = list(dict.fromkeys(text for text in written if text not in self._embeddings))
        self._embeddings.update(zip(unknown, self.embedder.embed(unknown), strict=True))
        table = pd.DataFrame({"instance": drawn.id, "task_id": drawn.task_id, "text": written})
        return np.stack([self._embeddings[text] for text in written]), self.sources.from_log(run, name, table)

    def _texts(self, run: Run, ids: Sequence[str]) -> list[str]:
        """What tells a run's instances apart to a reader, one text each.

        It is the iterate, if there is one, and then the request that it answers: the last turn's feedback, or the
        task's prompt. The iterate comes first, because embedders cut long texts.
        """
        columns = ["instance_id", "task_id", "starting_turn", "iterate", "turns"]
        written: dict[str, str] = {}
        rows = self.logs[run].read((ds.field("g") == 0) & ds.field("instance_id").isin(ids), columns=columns)
        for row in rows:
            history = row["turns"][: row["starting_turn"]]
            prompt = self.prompts[run.method].get(row["task_id"], row["task_id"])
            request = str(history[-1]["feedback"] or "") if history else prompt
            iterate = [str(row["iterate"]["response"])] if row["iterate"] else []
            written.setdefault(row["instance_id"], "\n\n".join([*iterate, str(request)]))
        return [written[name] for name in ids]


def task_prompts(run: Run) -> dict[str, str]:
    """The prompts of a run's base tasks, as its log has them. Its environment is not made: that would run its code."""
    prompts = run.log.prompts() if run.log else {}
    if not prompts:
        raise GapError(f"the log of rollouts of {run.name} has no prompts")
    return prompts


def sample(table: pd.DataFrame, size: int = SAMPLE) -> pd.DataFrame:
    """At most ``size`` rows, drawn uniformly, in their order."""
    if len(table) <= size:
        return table
    return table.iloc[np.sort(np.random.default_rng(0).choice(len(table), size=size, replace=False))]


def distances(instances: Instances, *, new: bool) -> Piece:
    """Pairwise distances of task instances: of those that the curriculum made, or of all."""
    key = "distances-new" if new else "distances-all"
    rows, files = [], []
    for run in instances.logs:
        chosen = instances.of(run, new=True if new else None)
        if len(chosen) >= 2:
            drawn = sample(chosen)
            embeddings, source = instances.embed(run, key, drawn)
            cosine, l2 = mean_distances(embeddings)
            sizes = {"instances": len(chosen), "embedded": len(drawn), "file": source.href}
            rows.append({"method": run.method, "run": run.name, "cosine": cosine, "l2": l2, **sizes})
            files.append(source)
        files.append(instances.summary(run))  # also of a run without such instances
    if not rows:
        raise GapError("no run has two instances that the curriculum made")
    table = pd.DataFrame(rows)
    by_method = means(table, ["method"], "cosine").merge(means(table, ["method"], "l2"), on="method")
    csv = Source("CSV", f"tables/{instances.domain.slug}-{key}.csv", "the numbers by run")
    header = {
        "Cosine distance": ("mean_x", ".3f", "standard_error_x"),
        "L2 distance": ("mean_y", ".3f", "standard_error_y"),
    }
    shown = cells(by_method.assign(files=by_method.method.map(lambda _: (csv,))), header, index="method", name="Method")
    shown = shown.reindex(pd.Index(instances.table.method.unique(), name="Method"), fill_value="N/A")
    which = "instances that the curriculum made" if new else "instances, base tasks included"
    caption = (
        f"Mean over all pairs of distinct {which}, at most {SAMPLE} of a run drawn at random, embedded by "
        f"{getattr(instances.embedder, 'model', '')} and scaled to unit length; an instance's text is its iterate and "
        "the request that it answers. N/A: the strategy makes no such instances."
    )
    return Piece(caption, table, unique([files]), table=shown.rename(index={LABELS["grpo"]: "Uniform (GRPO)"}))


def mean_distances(embeddings_NE: np.ndarray) -> tuple[float, float]:
    """The mean cosine and L2 distance between two embeddings of a set, over all pairs; scaled to unit length."""
    if len(embeddings_NE) < 2:
        raise ValueError("a distance needs two embeddings")
    from scipy.spatial.distance import pdist

    cosine = np.maximum(pdist(embeddings_NE, "cosine"), 0.0)
    return float(cosine.mean()), float(np.sqrt(2 * cosine).mean())


def umap_map(instances: Instances) -> Piece:
    """The UMAP of task instances by cosine distance (McInnes et al., 2018): what each method made, over base tasks."""
    base = "base tasks"
    points, files = [], []
    runs = instances.table.groupby("method").run.nunique()
    there: set[str] = set()
    for run in instances.logs:
        tasks = instances.of(run, new=False)
        tasks = sample(tasks[~tasks.id.isin(there)], max(0, SAMPLE - len(there))).assign(method=base)
        there.update(tasks.id)
        drawn = pd.concat([tasks, sample(instances.of(run, new=True), max(1, SAMPLE // runs[run.method]))])
        if len(drawn):
            embeddings, source = instances.embed(run, "umap", drawn)
            points.append(drawn[["method", "id"]].assign(run=run.name, embedding=list(embeddings)))
            files += [source, instances.summary(run)]
    # The map depends on the order of the points: base tasks come first, then method by method.
    table = pd.concat(points).sort_values("method", key=lambda method: method != base, kind="stable")
    if (table.method == base).all():
        raise GapError("no run has instances that the curriculum made")
    if len(table) < 10:
        raise GapError(f"a map needs at least 10 instances, there are {len(table)}")
    import umap

    # The spectral start needs more points than dimensions of the graph's pieces.
    start, neighbors = "spectral" if len(table) > 50 else "random", min(15, len(table) - 1)
    mapper = umap.UMAP(n_neighbors=neighbors, metric="cosine", init=start, random_state=0, n_jobs=1)
    table[["x", "y"]] = np.asarray(mapper.fit_transform(np.stack(table.embedding)), dtype=float)
    table = table.rename(columns={"id": "instance"})[["method", "run", "instance", "x", "y"]]
    caption = (
        f"Instances that each strategy made, at most {SAMPLE} of a strategy, over the base tasks in grey; one UMAP of "
        f"their embeddings by {getattr(instances.embedder, 'model', '')}, by cosine distance."
    )
    return Piece(caption, table, unique([files]), figures.maps(table, instances.domain.styles, background=base))


def one_task(instances: Instances) -> Piece:
    """A task trained on alone, against the same task trained on with others."""
    tasks = instances.table.groupby("run").task_id.agg(set)
    tasks = {run: tasks[run.key] for run in instances.logs}
    pairs = [
        (min(tasks[alone]), {alone.method, other.method})
        for alone in tasks
        for other in tasks
        if len(tasks[alone]) == 1 and tasks[alone] < tasks[other] and alone.strategy == other.strategy
    ]
    if not pairs:
        raise GapError(
            "no strategy was trained both on one task alone and on several with it; train twice, with "
            "--set env_config.competitions=... or the like, and --log-rollouts"
        )
    task = pairs[0][0]
    methods = set().union(*(both for of, both in pairs if of == task))
    tables, styles, files = [], {}, []
    for run in (run for run in tasks if run.method in methods and task in tasks[run]):
        rollouts = instances.logs[run].read(ds.field("task_id") == task, columns=["task_id", "iteration", "quality"])
        quality = pd.DataFrame(rollouts).groupby(["task_id", "iteration"]).quality.mean()
        by_iteration = quality.rename("mean_quality").reset_index()
        files.append(instances.sources.from_log(run, "one-task", by_iteration))
        number = len(tasks[run])
        label = f"{LABELS.get(run.strategy, run.strategy)}, {'alone' if number == 1 else f'{number} tasks'}"
        styles[label] = run.style
        tables.append(by_iteration.assign(run=run.key, method=label))
    lines = means_by_iteration(pd.concat(tables), "mean_quality").assign(panel=task, y_label="mean quality")
    caption = f"Mean quality of the rollouts of {task} by iteration, in runs on it alone and on several tasks."
    figure = figures.panels(lines, styles, x="iteration", x_label="iteration")
    return Piece(caption, lines[["panel", "method", "iteration", *LINE]], files, figure)


def chains(instances: Instances) -> Piece:
    """Self-iteration chains met in training."""
    order = ("exit", "diverge", "improve")
    runs = sorted((run for run in instances.logs if run.strategy in order), key=lambda run: order.index(run.strategy))
    if not runs:
        strategies = ", ".join(sorted({run.strategy for run in instances.logs}))
        gap = f"the logs of rollouts are of {strategies}, which does not self-iterate"
        raise GapError(gap if strategies else NO_LOG)
    run = runs[0]
    rows = [{"chain": why, **step} for why, chain in sample_chains(instances.logs[run]) for step in _steps(chain)]
    if not rows:
        raise GapError(f"{run.name} has no self-iteration step yet")
    try:
        prompts = task_prompts(run)
    except GapError:
        prompts = {}
    table = pd.DataFrame(rows)
    source = instances.sources.from_log(run, "chains", table)
    shown = [
        (f"{why}: {task}", prompts.get(str(task), ""), source, steps.to_dict("records"))
        for (why, task), steps in table.groupby(["chain", "task_id"], sort=False)
    ]
    caption = (
        f"From the log of {run.name}. Each step starts from the response above it; the prompts of the steps are those "
        "of envs/prompts.py. `rllib rollouts DIR --show GROUP/G` shows a rollout of the CSV file in full."
    )
    return Piece(caption, table, [source], chains=shown)


def _steps(chain: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Of every rollout of a chain the turn that the next one starts from."""
    for row, child in zip(chain, [*chain[1:], None], strict=True):
        # It may be a later turn than the first.
        t = row["turn_ids"].index(child["instance_id"]) if child else row["starting_turn"]
        yield {
            "task_id": row["task_id"],
            "rollout": f"{row['group_id']}/{row['g']}",
            **{name: row[name] for name in ("iteration", "kind", "starting_turn")},
            "quality": f"{row['quality']:.3g}",
            "turn": t,
            **{name: row["turns"][t][name] for name in ("response", "feedback", "depth")},
        }


def sample_chains(log: LoggedRollouts) -> list[tuple[str, list[Row]]]:
    """A chain that gained, one that diverged, and the deepest; each from its first response on."""
    columns = ["iteration", "group_id", "g", "task_id", "kind", "depth", "quality", "iterate"]
    valid = (ds.field("kind") != "base") & ds.field("valid") & ~ds.field("truncated")
    steps = pd.DataFrame(log.read(valid, columns=columns), columns=columns)
    steps["gain"] = steps.quality - [(iterate["quality"] or 0.0) for iterate in steps.iterate]
    chains = []
    for why, chosen, by in (
        ("Improved", (steps.kind == "improve") & (steps.gain > 0), ["depth", "gain"]),
        ("Diverged", (steps.kind == "diverge") & (steps.gain >= 0), ["gain", "depth"]),
        ("The deepest", steps.kind != "base", ["depth", "quality"]),
    ):
        # Of several, the first.
        best = steps[chosen & ~steps.task_id.isin([chain[0]["task_id"] for _, chain in chains])]
        for row in best.sort_values(by, ascending=False, kind="stable").head(1).to_dict("records"):
            whole = log.rollout(row["group_id"], row["g"], iteration=row["iteration"])
            ancestors, _ = log.lineage(whole)
            earlier = [log.rollout(a["group_id"], a["g"], iteration=a["iteration"]) for a in reversed(ancestors)]
            chains.append((why, [*earlier, whole]))
    return chains
