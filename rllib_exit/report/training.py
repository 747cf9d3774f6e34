"""Training: learning curves, the curriculum (paper section 5.4), the runs and their hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rllib_exit.metrics import METRICS
from rllib_exit.report import figures
from rllib_exit.report.page import Cell, GapError, Piece, Sources, cells
from rllib_exit.report.results import LINE, Results, means, means_by_iteration
from rllib_exit.run_identity import HYPER_PARAMETERS

NO_TRAINING = "no training run's result.json is there; name the directory that `rllib train file` wrote"


def learning_curves(domain: Results, sources: Sources) -> Piece:
    """Quality of the rollouts and held-out accuracy while training."""
    steps = domain.iterations.filter(regex="^evaluation/accuracy/step_")
    last = max((int(name.rpartition("_")[2]) for name in map(str, steps)), default=0)
    return _curves(
        domain,
        sources,
        {
            "Quality of training rollouts": ("rollouts/quality_mean", "mean quality"),
            "Held-out accuracy, step 0": ("evaluation/accuracy/step_0", "accuracy"),
            f"Held-out accuracy, step {last}": (f"evaluation/accuracy/step_{last}", "accuracy"),
            "Response length": ("rollouts/response_tokens_mean", "tokens"),
        },
        "The tasks that a curriculum selects are not those of GRPO: the quality of training rollouts is no measure to "
        "compare strategies by, held-out accuracy is.",
    )


def curriculum(domain: Results, sources: Sources) -> Piece:
    """How hard the selected task instances are, and what the buffer holds."""
    listed = {metric.path for metric in METRICS}
    # The numbers of the tasks themselves, such as the ground truth's steps (Figure 5).
    own = [path for path in map(str, domain.iterations.filter(regex="^curriculum/.*_mean$")) if path not in listed]
    difficulty = {
        path[len("curriculum/") : -len("_mean")].replace("_", " ").capitalize(): (path, "mean") for path in own
    }
    return _curves(
        domain,
        sources,
        {
            "Starting turn": ("curriculum/starting_turn_mean", "mean"),
            **difficulty,
            "Self-iteration depth": ("curriculum/depth_mean", "mean"),
            "Learnability in the buffer, mean": ("curriculum/buffer_score_mean", "variance"),
            "Learnability in the buffer, highest": ("curriculum/buffer_score_max", "variance"),
            "Learnability in the buffer, lowest": ("curriculum/buffer_score_min", "variance"),
            "Instances in the buffer": ("curriculum/buffer_size", "instances"),
            "Selected from the buffer": ("curriculum/selected_fraction", "share of prompts"),
            "Groups that teach nothing": ("curriculum/zero_variance_fraction", "share of groups"),
        },
        "Means over the task instances selected for an iteration; a base task has starting turn 0 and depth 0.",
    )


def _curves(domain: Results, sources: Sources, asked: Mapping[str, tuple[str, str]], caption: str) -> Piece:
    if not domain.trained:
        raise GapError(NO_TRAINING)
    window = max(1, domain.iterations.groupby("run").size().max() // 20)
    lines, y_labels, constant, missing = [], {}, [], []
    for panel, (path, y_label) in asked.items():
        # What is evaluated every so often is not averaged.
        of_panel = means_by_iteration(domain.iterations, path, 1 if path.startswith("evaluation/") else window)
        if of_panel.empty:
            missing.append(panel.lower())
        elif of_panel["mean"].nunique() == 1:
            constant.append(f"{panel.lower()} is {of_panel['mean'].iloc[0]:g} throughout")
        else:
            if path.startswith("curriculum/buffer"):  # GRPO has no buffer
                of_panel = of_panel[of_panel.groupby("method")["mean"].transform("any")]
            y_labels[panel] = y_label
            lines.append(of_panel.assign(panel=panel))
    if not lines:
        raise GapError("; ".join([*constant, *(f"no run has {panel}" for panel in missing)]))
    table = pd.concat(lines)
    few = table.groupby(["panel", "method"]).size().max() == 1
    figure = figures.panels(table, domain.styles, y_labels, x="iteration", x_label="iteration", markers=bool(few))
    runs = sorted(domain.iterations.groupby("method").run.nunique().unique())
    several = runs[-1] > 1
    caption += f" Mean over {' or '.join(map(str, runs))} run{'s' if several else ''} per strategy"
    caption += ", bands are one standard error" if several else ""
    caption += f"; averaged over the last {window} iterations." if window > 1 else "."
    caption += f" Not drawn: {'; '.join(constant)}." if constant else ""
    caption += f" No run has: {', '.join(missing)}." if missing else ""
    rows = table[["panel", "method", "iteration", *LINE]]
    return Piece(caption, rows, sources.results(domain.trained), figure)


def distinct_instances(domain: Results, sources: Sources) -> Piece:
    """How many distinct task instances each strategy trained on."""
    if not domain.trained:
        raise GapError(NO_TRAINING)
    columns = {"instances": "curriculum/distinct_instances_total", "base_tasks": "curriculum/distinct_tasks_total"}
    counts = domain.iterations.reindex(columns=["method", "run", "iteration", *columns.values()]).dropna()
    runs = counts.groupby("iteration").run.nunique()
    shared = runs.index[runs == len(domain.trained)]
    if shared.empty:
        raise GapError(f"the runs have no iteration in common whose results have {' and '.join(columns.values())}")
    last = shared.max()
    counts = counts[counts.iteration == last].rename(columns={path: name for name, path in columns.items()})
    by_method = means(counts, ["method"], "instances")
    by_method["tasks"] = counts.groupby("method", sort=False).base_tasks.mean().to_numpy()
    grpo = [run.key for run in domain.runs if run.strategy == "grpo"]
    by_method["relative"] = by_method["mean"] / counts[counts.run.isin(grpo)].instances.mean() if grpo else "—"
    trained = domain.trained
    files = {name: sources.results(run for run in trained if run.method == name) for name in by_method.method}
    header = {
        "Distinct instances": ("mean", "{:.0f}", "standard_error"),
        "Distinct base tasks": ("tasks", "{:.0f}"),
        "Relative to GRPO": ("relative", "{:.2f}"),
    }
    table = cells(by_method.assign(files=by_method.method.map(files)), header, index="method", name="Method")
    caption = (
        f"Task instances that were rolled out by iteration {last}, the last that all runs have: a base task, or one "
        "with its own history and iterate."
    )
    figure = figures.bars(by_method, domain.styles, y_label=f"distinct instances by iteration {last}")
    rows = counts.assign(run=counts.run.str.partition("/")[2])[["method", "run", "iteration", *columns]]
    return Piece(caption, rows, sources.results(domain.trained), figure, table)


def runs(domain: Results, sources: Sources) -> Piece:
    """The runs: how long they are and where they lie."""
    if not domain.trained:
        raise GapError(NO_TRAINING)
    quality = "quality_of_the_last_10_iterations"
    by_run = domain.iterations.reindex(columns=["run", "iteration", "time_this_iter_s", "rollouts/quality_mean"])
    by_run = by_run.groupby("run", sort=False).agg(
        iterations=("iteration", "max"),
        hours=("time_this_iter_s", lambda seconds: seconds.sum() / 3600),
        last=("rollouts/quality_mean", lambda values: values.dropna().tail(10).mean()),
    )
    of_run = [sources.results([run]) for run in domain.trained]
    params = [run.params for run in domain.trained]
    rollouts = [of.get("prompts_per_batch", 0) * of.get("rollouts_per_prompt", 0) for of in params]
    rows = by_run.rename(columns={"last": quality}).assign(
        method=[run.method for run in domain.trained],
        seed=pd.Series([of.get("seed") for of in params], by_run.index, object),
        rollouts=by_run.iterations * rollouts,
        directories=[" ".join(source.original for source in files) for files in of_run],
    )
    header = {
        "Iterations": ("iterations", "{}"),
        "Rollouts": ("rollouts", "{}"),
        "Hours": ("hours", "{:.2f}"),
        "Quality, last 10 iterations": (quality, "{:.3f}"),
    }
    names = [f"{method}, seed {seed}" for method, seed in zip(rows.method, rows.seed, strict=True)]
    table = cells(rows.assign(files=pd.Series(of_run, rows.index), name=names), header, index="name", name="Run")
    rows = rows[["method", "seed", "iterations", "rollouts", "hours", quality, "directories"]]
    return Piece("Quality: of the rollouts trained on.", rows, sources.results(domain.trained), table=table)


def hyper_parameters(domain: Results, sources: Sources) -> Piece:
    """What the runs were made with."""
    methods = {name: runs for name, runs in domain.methods.items() if "prompts_per_batch" in runs[0].params}
    if not methods:
        raise GapError(NO_TRAINING)
    first = {method: runs[0] for method, runs in methods.items()}
    rows = {"Seeds": [", ".join(str(run.params.get("seed")) for run in runs) for runs in methods.values()]}
    for name, label in HYPER_PARAMETERS.items():
        values = [run.params.get(name) for run in first.values()]
        if any(value not in (None, [], {}) for value in values):
            rows[label] = [_text(value) for value in values]
    for option in dict.fromkeys(option for run in first.values() for option in run.env_config):
        rows[f"Environment: {option}"] = [_text(run.env_config.get(option)) for run in first.values()]
    files = {name: [sources.params(runs)[:1] for runs in methods.values()] for name in rows}
    packages = list(map(str, domain.iterations.filter(regex="^versions/")))
    for package in packages or ["Versions"]:
        # Of several versions within a method, all.
        made_with = [domain.iterations[domain.iterations.method == method].get(package) for method in methods]
        found = ["" if column is None else ", ".join(column.dropna().unique()) for column in made_with]
        name = package.replace("versions/", "Version: ")
        rows[name] = [text or "not recorded by these runs" for text in found]
        files[name] = [sources.results(runs)[:1] for runs in methods.values()]
    cells = [[Cell(*pair) for pair in zip(values, files[name], strict=True)] for name, values in rows.items()]
    names, header = list(rows), pd.Index(methods)
    numbers = pd.DataFrame(list(rows.values()), pd.Index(names, name="name"), header).reset_index()
    caption = "What is the same for all is in the middle. None: the feature is off."
    table = pd.DataFrame(cells, pd.Index(names), header)
    return Piece(caption, numbers, sources.params(domain.runs), table=table, centred=True)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
