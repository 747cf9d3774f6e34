"""What the parts of ExIt add: one setting changed at a time, on countdown with a secret target.

    python benchmarks/ablations.py --jobs 2 --output results/ablations

Trains ``tuned_examples/countdown_exit.py`` as ``reproduction.py`` does, with three seeds for every choice in
``ABLATIONS``, and measures accuracy by self-improvement step on the held-out tasks. Writes ``ablations.json`` and
``ablations.png``. The script can be stopped and resumed: what is done is not done again. Settings and seeds that
``ablations.json`` already has are not run: copy the file of an earlier experiment into the output directory to add to
it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import countdown_results
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from reproduction import COUNTDOWN, Training, rllib, set_options, train_all

from envs.countdown.env import CountdownEnv
from rllib_exit.self_improvement.results import JSON, PARQUET

DEFAULT = "default"
EMBEDDING = ("diversity_metric=embedding", "embedding_model=bundled:all-minilm-l6-v2")
# By ablation, what is chosen: the settings that differ from the example's. Without any, it is the example itself.
ABLATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "self-iteration probability": {"0.2": ("self_iteration_prob=0.2",), "0.5": (), "0.8": ("self_iteration_prob=0.8",)},
    "divergence probability": {"0": ("divergence_prob=0",), "0.2": (), "0.5": ("divergence_prob=0.5",)},
    "feedback": {"with": (), "without": ("env_config.feedback=False",)},
    "buffer size": {"32": ("buffer_size=32",), "512": ()},
    "selection": {
        "variance": (),
        "uniform": ("inverse_temperature=0",),
        "regret": ("learnability=regret",),
        "maximum": ("learnability=maximum",),
        "top quantile": ("learnability=top_quantile",),
        "PUCT": ("learnability=maximum", "exploration_coeff=1"),
    },
    "expansions per group": {"1": (), "8": ("expansions_per_group=8",)},
    "diversity": {"edit distance": (), "none": ("diversity_bonus=False",), "embedding": EMBEDDING},
}


def name_of(settings: tuple[str, ...]) -> str:
    """The name of the runs with these settings."""
    return ",".join(settings).replace("env_config.", "") or DEFAULT


def entries(output: Path) -> list[dict[str, Any]]:
    """For every run its settings, its seed and what ``countdown_results.of_chains`` says of it."""
    solution = CountdownEnv({"limit": 1}).solution
    found = []
    for file in sorted((output / "runs").rglob(JSON)):
        name, _, seed = file.relative_to(output / "runs").parts[0].rpartition("-seed")
        rows = pd.read_parquet(file.parent / PARQUET)
        found.append({"settings": name, "seed": int(seed), **countdown_results.of_chains(rows, solution)})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """A row for each choice: means over seeds, in brackets the lowest and highest run, in percent and points."""
    columns = {
        "first answer": lambda e: 100 * e["accuracy"][0],
        "after one step": lambda e: 100 * e["accuracy"][1],
        "after K steps": lambda e: 100 * e["accuracy"][-1],
        "gain": lambda e: 100 * (e["accuracy"][-1] - e["accuracy"][0]),
        "right kept": lambda e: 100 * float(np.mean([value for value in e["right_kept"] if value is not None])),
        "distinct answers": lambda e: e["distinct_answers"][-1],
    }
    cells: dict[str, list[str]] = {}
    for ablation, choices in ABLATIONS.items():
        for choice, settings in choices.items():
            runs = [entry for entry in found if entry["settings"] == name_of(settings)]
            if runs:
                cells[f"{ablation}: {choice}"] = [
                    f"{len(runs)}",
                    *(_text(list(map(of, runs))) for of in columns.values()),
                ]
    return pd.DataFrame.from_dict(cells, orient="index", columns=["seeds", *columns]).to_string()


def _text(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """Draws accuracy by step, a panel for each ablation: means over seeds, in bands from lowest to highest."""
    figure = Figure(figsize=(16, 8), layout="constrained")
    panels = list(figure.subplots(2, 4, sharex=True, sharey=True).flat)
    for axes, (ablation, choices) in zip(panels, ABLATIONS.items(), strict=False):
        for i, (choice, settings) in enumerate(choices.items()):
            runs = [100 * np.array(entry["accuracy"]) for entry in found if entry["settings"] == name_of(settings)]
            if runs:
                color = "black" if not settings else f"C{i}"
                axes.plot(np.mean(runs, axis=0), color=color, label=choice if settings else f"{choice} (default)")
                low, high = np.min(runs, axis=0), np.max(runs, axis=0)
                axes.fill_between(range(len(low)), low, high, color=color, alpha=0.15, lw=0)
        axes.set(title=ablation, xlabel="self-improvement steps", ylabel="held-out accuracy (%)", ylim=(0, 100))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels[len(ABLATIONS) :]:
        axes.axis("off")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ablations", nargs="+", choices=ABLATIONS, default=list(ABLATIONS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on its share of the cores")
    parser.add_argument("--output", type=Path, default=Path("results/ablations"))
    args = parser.parse_args()
    output = args.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    file = output / "ablations.json"
    by_run = {(entry["settings"], entry["seed"]): entry for entry in countdown_results.read(file)}
    choices = dict.fromkeys(settings for ablation in args.ablations for settings in ABLATIONS[ablation].values())
    runs = (
        Training(
            output / "runs" / f"{name_of(settings)}-seed{seed}",
            "tuned_examples/countdown_exit.py",
            seed,
            COUNTDOWN.iterations,
            set_options(["evaluation_interval=None", *settings]),
        )
        for seed, settings in itertools.product(args.seeds, choices)
        if (name_of(settings), seed) not in by_run
    )
    train_all(runs, args.jobs)
    rllib(output / "evaluate.log", "evaluate", str(output / "runs"), "--steps", "16", *COUNTDOWN.evaluation)
    by_run |= {(entry["settings"], entry["seed"]): entry for entry in entries(output)}
    found = [by_run[key] for key in sorted(by_run)]
    file.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, output / "ablations.png")
    print(table(found), flush=True)


if __name__ == "__main__":
    main()
