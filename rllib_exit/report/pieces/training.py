"""Training: learning curves, the curriculum (paper section 5.4), the runs and their hyper-parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllib_exit.metrics import METRICS
from rllib_exit.report import figures
from rllib_exit.report.groups import Domain, Group
from rllib_exit.report.page import Cell, HtmlTable, Piece, Source
from rllib_exit.report.runs import HYPER_PARAMETERS

if TYPE_CHECKING:
    pass
from rllib_exit.report.pieces.material import NO_TRAINING, Material, line_rows, unique


def training(domain: Domain, material: Material) -> Piece:
    """Quality of the rollouts and held-out accuracy while training."""
    return _curves(
        domain,
        material,
        Piece(f"{domain.slug}-training", "Learning curves", ""),
        {
            "Quality of training rollouts": ("rollouts/quality_mean", "mean quality"),
            "Held-out accuracy, step 0": ("evaluation/accuracy/step_0", "accuracy"),
            **_last_step(domain),
            "Response length": ("rollouts/response_tokens_mean", "tokens"),
        },
        "The tasks that a curriculum selects are not those of GRPO: the quality of training rollouts is no measure to "
        "compare strategies by, held-out accuracy is.",
    )


def _last_step(domain: Domain) -> dict[str, tuple[str, str]]:
    steps = {
        int(name.removeprefix("step_"))
        for run in domain.runs
        for result in run.results
        for name in (result.get("evaluation") or {}).get("accuracy", {})
    }
    last = max(steps, default=0)
    return {f"Held-out accuracy, step {last}": (f"evaluation/accuracy/step_{last}", "accuracy")} if last else {}


def curriculum(domain: Domain, material: Material) -> Piece:
    """How hard the selected task instances are, and what the buffer holds."""
    listed = {metric.path for metric in METRICS}
    own = dict.fromkeys(
        name
        for run in domain.runs
        for result in run.results
        for name in result.get("curriculum", {})
        if f"curriculum/{name}" not in listed and name.endswith("_mean")
    )
    # The numbers of the tasks themselves, of the ground truth for one (Figure 5).
    difficulty = {
        name.removesuffix("_mean").replace("_", " ").capitalize(): (f"curriculum/{name}", "mean") for name in own
    }
    return _curves(
        domain,
        material,
        Piece(f"{domain.slug}-curriculum", "The curriculum over training", "Figures 5 and 6"),
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


def _curves(
    domain: Domain, material: Material, piece: Piece, asked: Mapping[str, tuple[str, str]], caption: str
) -> Piece:
    if not domain.trained:
        piece.gap = NO_TRAINING
        return piece
    longest = max(len(run.results) for run in domain.trained)
    window = max(1, longest // 20)
    drawn, lines, constant, missing = [], [], [], []
    for title, (path, y_label) in asked.items():
        # What is evaluated every so often is not averaged.
        of_panel = [
            line
            for group in domain.groups
            if (line := group.line(path, 1 if path.startswith("evaluation/") else window)) is not None
        ]
        if not of_panel:
            missing.append(title.lower())
        elif all(line.mean.min() == line.mean.max() == of_panel[0].mean[0] for line in of_panel):
            constant.append(f"{title.lower()} is {of_panel[0].mean[0]:g} throughout")
        else:
            if path.startswith("curriculum/buffer"):
                of_panel = [line for line in of_panel if line.mean.any()]  # GRPO has no buffer
            drawn.append((title, y_label, of_panel))
            lines += [(title, line) for line in of_panel]
    if not drawn:
        piece.gap = "; ".join([*constant, *(f"no run has {title}" for title in missing)])
        return piece
    few = all(len(line.x) == 1 for _, line in lines)
    piece.figure = figures.panels(drawn, x_label="iteration", markers=few)
    piece.rows = line_rows(lines, "iteration")
    piece.sources = unique(source for run in domain.trained for source in material.results(domain, run))
    number = sorted({len(group.runs) for group in domain.groups if any(run.results for run in group.runs)})
    piece.caption = (
        f"{caption} Mean over {' or '.join(map(str, number))} run{'s' * (number[-1] > 1)} per strategy"
        f"{', bands are one standard error' * (number[-1] > 1)}"
        + (f"; averaged over the last {window} iterations" if window > 1 else "")
        + "."
    )
    if constant:
        piece.caption += f" Not drawn: {'; '.join(constant)}."
    if missing:
        piece.caption += f" No run has: {', '.join(missing)}."
    return piece


def runs_table(domain: Domain, material: Material) -> Piece:
    """The runs: how long they are and where they lie."""
    piece = Piece(f"{domain.slug}-runs", "Runs", "")
    if not domain.trained:
        piece.gap = NO_TRAINING
        return piece
    table, rows = [], []
    for group in domain.groups:
        for run in group.runs:
            if not run.results:
                continue
            sources = tuple(material.results(domain, run))
            hours = sum(result.get("time_this_iter_s", 0.0) for result in run.results) / 3600
            iterations = run.results[-1]["training_iteration"]
            per_iteration = run.params.get("prompts_per_batch", 0) * run.params.get("rollouts_per_prompt", 0)
            quality = list(run.series("rollouts/quality_mean").values())
            last = float(np.mean(quality[-10:])) if quality else float("nan")
            row = {
                "method": group.label,
                "seed": run.seed,
                "iterations": iterations,
                "rollouts": iterations * per_iteration,
                "hours": hours,
                "quality_of_the_last_10_iterations": last,
                "directories": " ".join(source.original for source in sources),
            }
            rows.append(row)
            texts_of_row = (str(iterations), str(iterations * per_iteration), f"{hours:.2f}", f"{last:.3f}")
            table.append([Cell(f"{group.label}, seed {run.seed}"), *(Cell(text, sources) for text in texts_of_row)])
    header = ["Run", "Iterations", "Rollouts", "Hours", "Quality, last 10 iterations"]
    piece.table = HtmlTable(header, table)
    piece.rows = rows
    piece.sources = unique(s for run in domain.trained for s in material.results(domain, run))
    piece.caption = "Quality: of the rollouts trained on."
    return piece


def hyper_parameters(domain: Domain, material: Material) -> Piece:
    """What the runs were made with."""
    piece = Piece(f"{domain.slug}-hyper-parameters", "Hyper-parameters and versions", "Tables 4 to 6")
    groups = [group for group in domain.groups if "prompts_per_batch" in group.runs[0].params]
    if not groups:
        piece.gap = NO_TRAINING
        return piece
    sources = {group: tuple(s for run in group.runs for s in material.params(domain, run)) for group in groups}
    table, rows = [], []

    def add(name: str, values: Sequence[str], of_row: Mapping[Group, tuple[Source, ...]] = sources) -> None:
        rows.append({"name": name, **dict(zip([group.label for group in groups], values, strict=True))})
        if len(set(values)) == 1 and len(groups) > 1:
            table.append([Cell(name), Cell(values[0], of_row[groups[0]][:1], span=len(groups))])
        else:
            cells = [Cell(value, of_row[group][:1]) for group, value in zip(groups, values, strict=True)]
            table.append([Cell(name), *cells])

    add("Seeds", [", ".join(str(run.seed) for run in group.runs) for group in groups])
    for name, label in HYPER_PARAMETERS.items():
        values = [group.runs[0].params.get(name) for group in groups]
        if any(value not in (None, [], {}) for value in values):
            add(label, [_text(value) for value in values])
    env_configs = [group.runs[0].params.get("env_config") or {} for group in groups]
    for option in dict.fromkeys(option for env_config in env_configs for option in env_config):
        add(f"Environment: {option}", [_text(env_config.get(option)) for env_config in env_configs])
    from_results = {group: tuple(s for run in group.runs for s in material.results(domain, run)) for group in groups}
    made_with = [_versions(group) for group in groups]
    for package in dict.fromkeys(package for of_group in made_with for package in of_group) or ["Versions"]:
        values = [of_group.get(package, "not recorded by these runs") for of_group in made_with]
        add(package if package == "Versions" else f"Version: {package}", values, from_results)
    piece.table = HtmlTable(["", *(group.label for group in groups)], table, centred=True)
    piece.rows = rows
    piece.sources = unique(s for of_group in sources.values() for s in of_group)
    piece.caption = "What is the same for all is in the middle. None: the feature is off."
    return piece


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _versions(group: Group) -> dict[str, str]:
    """Of several versions within the group, all."""
    found: dict[str, list[str]] = defaultdict(list)
    for run in group.runs:
        for result in run.results:
            for package, version in (result.get("versions") or {}).items():
                if version not in found[package]:
                    found[package].append(version)
    return {package: ", ".join(of_package) for package, of_package in found.items()}
