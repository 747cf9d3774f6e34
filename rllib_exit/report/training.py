"""Training: learning curves, the curriculum (paper section 5.4), the runs and their hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rllib_exit.metrics import METRICS
from rllib_exit.report import figures
from rllib_exit.report.page import GapError, Piece, cell, cells
from rllib_exit.report.results import LINE, Results, means, means_by_iteration
from rllib_exit.run_identity import HYPER_PARAMETERS

NO_TRAINING = "no training run's result.json is there; name the directory that `rllib train file` wrote"


def learning_curves(domain: Results) -> Piece:
    """Quality of the rollouts and of held-out answers while training."""
    steps = domain.iterations.filter(regex="^evaluation/accuracy/step_")
    last = max((int(name.rpartition("_")[2]) for name in map(str, steps)), default=0)
    return _curves(
        domain,
        {
            "Quality of training rollouts": ("rollouts/quality_mean", "mean quality"),
            f"Held-out {domain.score}, step 0": ("evaluation/accuracy/step_0", domain.score),
            f"Held-out {domain.score}, step {last}": (f"evaluation/accuracy/step_{last}", domain.score),
            "Response length": ("rollouts/response_tokens_mean", "tokens"),
        },
        "The tasks that a curriculum selects are not those of GRPO: the quality of training rollouts is no measure to "
        f"compare strategies by, held-out {domain.score} is.",
    )


def curriculum(domain: Results) -> Piece:
    """How hard the selected task instances are, and what the buffer holds."""
    listed = {metric.path for metric in METRICS}
    # The numbers of the tasks themselves, such as the ground truth's steps (Figure 5).
    own = [path for path in map(str, domain.iterations.filter(regex="^curriculum/.*_mean$")) if path not in listed]
    difficulty = {
        path[len("curriculum/") : -len("_mean")].replace("_", " ").capitalize(): (path, "mean") for path in own
    }
    return _curves(
        domain,
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


def _curves(domain: Results, asked: Mapping[str, tuple[str, str]], caption: str) -> Piece:
    if not domain.trained:
        raise GapError(NO_TRAINING)
    window = max(1, domain.iterations.groupby("run").size().max() // 20)
    lines, constant, missing = [], [], []
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
            lines.append(of_panel.assign(panel=panel, y_label=y_label))
    if not lines:
        raise GapError("; ".join([*constant, *(f"no run has {panel}" for panel in missing)]))
    table = pd.concat(lines)
    figure = figures.panels(table, domain.styles, x="iteration", x_label="iteration")
    runs = sorted(domain.iterations.groupby("method").run.nunique().unique())
    several = "s per strategy, bands are one standard error" if runs[-1] > 1 else " per strategy"
    caption += f" Mean over {' or '.join(map(str, runs))} run{several}"
    caption += f"; averaged over the last {window} iterations." if window > 1 else "."
    caption += f" Not drawn: {'; '.join(constant)}." if constant else ""
    caption += f" No run has: {', '.join(missing)}." if missing else ""
    return Piece(
        caption, table[["panel", "method", "iteration", *LINE]], domain.sources.results(domain.trained), figure
    )


def distinct_instances(domain: Results) -> Piece:
    """How many distinct task instances each strategy trained on."""
    if not domain.trained:
        raise GapError(NO_TRAINING)
    paths = {"curriculum/distinct_instances_total": "instances", "curriculum/distinct_tasks_total": "base_tasks"}
    counts = domain.iterations.reindex(columns=["method", "run", "iteration", *paths]).dropna().rename(columns=paths)
    runs = counts.groupby("iteration").run.nunique()
    shared = runs.index[runs == len(domain.trained)]
    if shared.empty:
        raise GapError(f"the runs have no iteration in common whose results have {' and '.join(paths)}")
    last = shared.max()
    counts = counts[counts.iteration == last]
    rows = means(counts, ["method"], "instances")
    rows["tasks"] = counts.groupby("method", sort=False).base_tasks.mean().to_numpy()
    grpo = {run.key for run in domain.runs if run.strategy == "grpo"}
    rows["relative"] = rows["mean"] / counts[counts.run.isin(grpo)].instances.mean()  # NaN without GRPO
    rows["files"] = rows.method.map({name: domain.sources.results(runs) for name, runs in domain.methods.items()})
    header = {
        "Distinct instances": ("mean", ".0f", "standard_error"),
        "Distinct base tasks": ("tasks", ".0f"),
        "Relative to GRPO": ("relative", ".2f"),
    }
    caption = (
        f"Task instances that were rolled out by iteration {last}, the last that all runs have: a base task, or one "
        "with its own history and iterate."
    )
    figure = figures.bars(rows, domain.styles, y_label=f"distinct instances by iteration {last}")
    table = cells(rows, header, index="method", name="Method")
    counts["run"] = counts.run.str.partition("/")[2]
    return Piece(caption, counts, domain.sources.results(domain.trained), figure, table)


def runs(domain: Results) -> Piece:
    """The runs: how long they are and where they lie."""
    if not domain.trained:
        raise GapError(NO_TRAINING)
    rows = []
    for run in domain.trained:
        iterations = domain.iterations[domain.iterations.run == run.key]
        number, files = iterations.iteration.max(), domain.sources.results([run])
        seconds, quality = (iterations.get(name, pd.Series()) for name in ("time_this_iter_s", "rollouts/quality_mean"))
        rows.append(
            {
                "method": run.method,
                "seed": run.params.get("seed"),
                "iterations": number,
                "rollouts": number * run.params.get("prompts_per_batch", 0) * run.params.get("rollouts_per_prompt", 0),
                "hours": seconds.sum() / 3600,
                "quality_of_the_last_10_iterations": quality.dropna().tail(10).mean(),
                "directories": " ".join(source.original for source in files),
                "files": files,
                "name": f"{run.method}, seed {run.params.get('seed')}",
            }
        )
    header = {
        "Iterations": ("iterations", "d"),
        "Rollouts": ("rollouts", "d"),
        "Hours": ("hours", ".2f"),
        "Quality, last 10 iterations": ("quality_of_the_last_10_iterations", ".3f"),
    }
    numbers = pd.DataFrame(rows)
    table = cells(numbers, header, index="name", name="Run")
    sources = domain.sources.results(domain.trained)
    return Piece("Quality: of the rollouts trained on.", numbers.drop(columns=["files", "name"]), sources, table=table)


def hyper_parameters(domain: Results) -> Piece:
    """What the runs were made with."""
    methods = {name: runs for name, runs in domain.methods.items() if "prompts_per_batch" in runs[0].params}
    if not methods:
        raise GapError(NO_TRAINING)
    first = [runs[0] for runs in methods.values()]
    rows = {"Seeds": [", ".join(str(run.params.get("seed")) for run in runs) for runs in methods.values()]}
    for name, label in HYPER_PARAMETERS.items():
        values = [run.params.get(name) for run in first]
        if any(value not in (None, [], {}) for value in values):
            rows[label] = [_text(value) for value in values]
    for option in dict.fromkeys(option for run in first for option in run.env_config):
        rows[f"Environment: {option}"] = [_text(run.env_config.get(option)) for run in first]
    params = [domain.sources.params([run]) for run in first]
    files = {name: params for name in rows}
    for package in list(map(str, domain.iterations.filter(regex="^versions/"))) or ["Versions"]:
        # Of several versions within a method, all.
        made_with = [domain.iterations[domain.iterations.method == method].get(package) for method in methods]
        found = ["" if column is None else ", ".join(column.dropna().unique()) for column in made_with]
        name = package.replace("versions/", "Version: ")
        rows[name] = [text or "not recorded by these runs" for text in found]
        files[name] = [domain.sources.results([run])[:1] for run in first]
    # What is the same for all is one cell.
    cells = [
        [cell(*pair) for pair in zip(values, files[name], strict=True)]
        if len(set(values)) > 1
        else [cell(values[0], files[name][0]), *(None for _ in values[1:])]
        for name, values in rows.items()
    ]
    numbers = pd.DataFrame.from_dict(rows, orient="index", columns=list(methods)).rename_axis("name").reset_index()
    table = pd.DataFrame(cells, pd.Index(rows), pd.Index(methods), dtype=object)
    caption = "What is the same for all is in the middle. None: the feature is off."
    return Piece(caption, numbers, domain.sources.params(domain.runs), table=table, texts=True)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
