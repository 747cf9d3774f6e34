"""What training, evaluation and search have left under some directories: the runs, and tidy tables of their numbers."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rllib_exit.report.figures import BASE_STYLE, Style
from rllib_exit.report.runs import BASE, ML_ENGINEERING, Run, domain_names, name_runs, slug
from rllib_exit.report.sources import Sources, read_lines
from rllib_exit.rollout_log import LoggedRollouts
from rllib_exit.run_identity import PARAMS, RESULTS, identity, read_params
from rllib_exit.self_improvement.results import BASELINE, read

# What a mean over runs is written as.
LINE = ["mean", "standard_error"]


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Everything that was found, or what of it is of one domain.

    Every table has the columns ``domain``, ``method`` and ``run``, a run's key; it is empty for a search with the base
    model. In a domain, those of evaluations and searches have the file that they come from as ``source``.

    Attributes:
        runs: By domain, then in the order of Table 1, then by seed.
        iterations: A row for each run and iteration, a column for each number, such as ``rollouts/quality_mean``.
        evaluations: A row for each file, split, method, sampling seed and step: ``tasks``, ``accuracy`` in percent,
            which is the mean quality, ``graded``, whether there are qualities between 0 and 1, ``net_corrections``,
            and the domain's numbers as ``metrics/NAME``.
        searches: A row for each file and step: ``best``, the best normalised score so far.
        problems: What could not be used, and why.
        sources: The files of what is shown, to be copied beside it.
        name: The domain.
    """

    runs: tuple[Run, ...]
    iterations: pd.DataFrame
    evaluations: pd.DataFrame
    searches: pd.DataFrame
    problems: tuple[str, ...]
    sources: Sources
    name: str = ""

    @property
    def slug(self) -> str:
        """The domain, for the names of files."""
        return slug(self.name)

    @property
    def methods(self) -> dict[str, list[Run]]:
        """The runs by method, in the order of Table 1."""
        return {name: [run for run in self.runs if run.method == name] for name in self.styles if name != BASE}

    @property
    def styles(self) -> dict[str, Style]:
        return {BASE: BASE_STYLE} | {run.method: run.style for run in self.runs}

    @property
    def score(self) -> str:
        """What the mean quality is called: accuracy if it is known that every quality is 0 or 1."""
        known = not self.evaluations.empty and not self.evaluations.graded.any()
        return "accuracy" if known else "mean quality"

    @property
    def trained(self) -> list[Run]:
        """The runs whose training is there, not only their evaluations or searches."""
        there = set(self.iterations.run)
        return [run for run in self.runs if run.key in there]

    def domains(self) -> list[Results]:
        """The results of each domain, in the order of Table 1, and only such as can be compared."""
        names = dict.fromkeys([*(run.domain for run in self.runs), *self.searches.domain])
        return [self._domain(name) for name in names]

    def _domain(self, name: str) -> Results:
        part = replace(self, name=name, runs=tuple(run for run in self.runs if run.domain == name))
        part = replace(part, runs=tuple(run for runs in part.methods.values() for run in runs))
        methods, keys = list(part.styles), ["", *(run.key for run in part.runs)]

        def rows(table: pd.DataFrame) -> pd.DataFrame:
            table = table[table.domain == name]
            table = table.drop(columns=[name for name in table if "/" in str(name) and table[name].isna().all()])
            # The last key of lexsort is the first to sort by.
            return table.iloc[np.lexsort([table.run.map(keys.index), table.method.map(methods.index)])]

        evaluations = _comparable_evaluations(rows(self.evaluations))
        searches, left_out = _comparable_searches(rows(self.searches))
        return replace(
            part,
            iterations=rows(self.iterations),
            evaluations=evaluations.assign(source=[part._evaluation(row) for row in evaluations.itertuples()]),
            searches=searches.assign(source=[part._search(row) for row in searches.itertuples()]),
            problems=tuple(left_out),
        )

    def _evaluation(self, row: Any) -> Any:
        return self.sources.add(row.file, f"{row.run}/{row.file.name}", row.run.partition("/")[2])

    def _search(self, row: Any) -> Any:
        run = row.run.partition("/")[2] or "base"
        name = f"{self.slug}/search/{run}-{slug(f'{row.competition}-seed{row.seed}')}.jsonl"
        return self.sources.add(row.file, name, f"{run}, {row.competition}, seed {row.seed}")


def means(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """By the columns ``by``, the ``mean`` of a column and its ``standard_error``, which is NaN for a single row."""
    return table.groupby(list(by), sort=False)[value].agg(mean="mean", standard_error="sem").reset_index()


def means_by_iteration(table: pd.DataFrame, value: str, window: int = 1) -> pd.DataFrame:
    """By method and iteration the mean over runs, each of which is averaged over its last ``window`` iterations.

    Only the iterations in which all runs of a method have a finite number are counted.
    """
    runs = table.groupby("method").run.transform("nunique")
    table = table.assign(runs=runs, value=table.get(value, math.nan))[["method", "run", "iteration", "runs", "value"]]
    table = table[np.isfinite(table.value.astype(float))]
    if table.empty:
        return table.assign(mean=0.0, standard_error=0.0)
    table = table[table.groupby(["method", "iteration"]).run.transform("nunique") == table.runs]
    rolling = table.groupby("run").value.transform(lambda values: values.rolling(window, min_periods=1).mean())
    return means(table.assign(value=rolling), ["method", "iteration"], "value")


def find(directories: Iterable[Path], output: Path | None = None) -> Results:
    """Reads what lies under some directories, except for what a report at ``output`` has there.

    Trials of one experiment with the same settings, seed and number are one run that was resumed: the newest trial
    counts, and the trial before it for the iterations before its first.

    Raises:
        FileNotFoundError: If a directory does not exist.
    """
    directories = list(dict.fromkeys(directory.absolute() for directory in directories))
    output = output and output.absolute()
    for directory in directories:
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is no directory")

    def files(name: str) -> list[Path]:
        there = {file for directory in directories for file in directory.rglob(name)}
        return sorted(file for file in there if output not in file.parents)

    problems: list[str] = []
    # In the tables a run is named by its place in this list until all runs are known. Evaluations and searches append
    # the runs whose training is not there.
    runs: list[dict[str, Any]] = []
    iterations = _read_trials(files(RESULTS), runs, problems)
    by_age = sorted(files("evaluation.json"), key=lambda file: file.stat().st_mtime_ns)
    evaluations = _read_each(by_age, _read_evaluation, _EVALUATIONS, runs, problems)
    searches = _read_each(files("search.jsonl"), _read_search, _SEARCHES, runs, problems)
    base = searches[searches.run == _BASE_RUN]
    domains = domain_names(runs, base.model)
    named = name_runs(runs, domains)
    columns = {name: [getattr(run, name) for run in named.values()] for name in ("key", "domain", "method")}
    names = pd.DataFrame(columns, index=list(named), dtype=object)

    def with_names(table: pd.DataFrame) -> pd.DataFrame:
        return table.join(names, on="run").drop(columns="run").rename(columns={"key": "run"})

    evaluations, searches = with_names(evaluations), with_names(searches)
    evaluations["method"] = evaluations.method.where(evaluations.policy != BASELINE, BASE)
    searches.loc[base.index, "domain"] = [domains[ML_ENGINEERING, model] for model in base.model]
    searches.loc[base.index, ["run", "method"]] = "", BASE
    iterations = with_names(iterations)
    return Results(tuple(named.values()), iterations, evaluations, searches, tuple(problems), Sources(output or Path()))


# The columns of these tables that are needed even if there are no rows, and the place of the base model's searches.
_ITERATIONS = ["run", "iteration"]
_EVALUATIONS = ["run", "file", "trained_iterations", "split", "policy", "tasks", "graded", "seed", "step", "accuracy"]
_SEARCHES = ["run", "file", "competition", "seed", "model", "age", "sampling", "step", "best"]
_BASE_RUN = -1


@contextmanager
def _noted(problems: list[str], file: Path) -> Iterator[None]:
    """Leaves out a file that cannot be used, whatever it holds, and notes why."""
    try:
        yield
    except ValueError as error:
        problems.append(str(error) if str(file) in str(error) else f"{file}: {error}")
    except (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError) as error:
        problems.append(f"{file}: left out, it is damaged or of another program ({type(error).__name__}: {error})")


def _read_each(
    files: Iterable[Path],
    read_file: Callable[[Path, list[dict[str, Any]]], pd.DataFrame],
    columns: list[str],
    runs: list[dict[str, Any]],
    problems: list[str],
) -> pd.DataFrame:
    tables = []
    for file in files:
        with _noted(problems, file):
            tables.append(read_file(file, runs))
    return _together(tables, columns)


def _together(tables: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """The rows of some tables; without any, an empty table with columns."""
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns).astype({"run": int})


def _read_trials(files: Sequence[Path], runs: list[dict[str, Any]], problems: list[str]) -> pd.DataFrame:
    trials: dict[str, list[Path]] = defaultdict(list)
    lines: dict[Path, list[dict[str, Any]]] = {}
    for file in files:
        trial = file.parent
        with _noted(problems, file):
            if (params := read_params(trial)) is None:
                continue
            found = read_lines(file)
            if not found:
                raise ValueError(f"{file}: no iteration has ended yet")
            _check_run(params, trial / PARAMS)
            lines[trial] = [_numbers(line) for line in found]
            trials[identity(trial)].append(trial)
    tables = []
    for of_run in trials.values():
        newest = sorted(of_run, key=lambda trial: (trial / RESULTS).stat().st_mtime_ns, reverse=True)
        results: dict[int, dict[str, Any]] = {}
        for trial in newest:
            first = min(results, default=math.inf)
            # Within a trial the last line of an iteration counts.
            by_iteration = {line["training_iteration"]: line for line in lines[trial]}
            results |= {i: line for i, line in by_iteration.items() if i < first}
        try:
            log = LoggedRollouts(*newest)
        except FileNotFoundError:
            log = None
        numbers = pd.DataFrame([results[i] for i in sorted(results)])
        tables.append(numbers.rename(columns={"training_iteration": "iteration"}).assign(run=len(runs)))
        runs.append({"params": read_params(newest[0]), "trials": tuple(newest), "log": log})
    return _together(tables, _ITERATIONS)


def _check_run(params: Any, file: Path) -> None:
    """Raises a ValueError if these are not what is known of a run: its tables and names are made of them."""
    if not isinstance(params, dict) or "strategy" not in params or "env" not in params:
        raise ValueError(f"{file.parent}: no run of rllib-exit: its {file.name} has no strategy")
    for name, kinds in (("strategy", str), ("env", str), ("env_config", dict | None), ("seed", int | None)):
        if not isinstance(params.get(name), kinds):
            raise ValueError(f"{file}: {name} is {str(params[name])[:100]!r}, which no run of rllib-exit has")


def _numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one iteration's results by their path, such as ``rollouts/quality_mean``; and versions, as texts.

    What should be a number and is not is NaN.
    """
    if type(line["training_iteration"]) is not int:
        raise TypeError("training_iteration is no whole number")
    flat = pd.json_normalize([{**line, "config": None}], sep="/").to_dict("records")[0]
    numbers = {
        str(path): value if isinstance(value, int | float) and abs(value) < 1e300 else math.nan
        for path, value in flat.items()
    }
    return numbers | {str(path): str(value) for path, value in flat.items() if str(path).startswith("versions/")}


def _run_of(runs: Sequence[Mapping[str, Any]], names: Iterable[str]) -> int | None:
    """The place of the run that has a trial of the first name that is any's."""
    # Tune's names of trials are unique, wherever they were moved.
    by_trial = {trial.name: i for i, run in reversed(list(enumerate(runs))) for trial in run["trials"]}
    return next((by_trial[name] for name in names if name in by_trial), None)


def _read_evaluation(file: Path, runs: list[dict[str, Any]]) -> pd.DataFrame:
    evaluation = read(file)
    run = _run_of(runs, [*(path.name for path in file.parents), Path(evaluation.checkpoint).parent.name])
    if run is None:
        said = {"params": {**evaluation.run, "model_name": evaluation.run["model"]}, "trials": (), "log": None}
        _check_run(said["params"], file)
        runs += [] if said in runs else [said]
        run = runs.index(said)
    names = ("temperature", "top_p", "top_k", "self_improvement_steps", "limit")
    settings = {name: evaluation.settings.get(name) for name in names}
    tables = []
    for split, policies in evaluation.curves.items():
        for policy, curve in policies.items():
            seeds, steps = np.indices(curve.accuracy_SK.shape)
            numbers = {
                "seed": seeds,
                "step": steps,
                "accuracy": 100 * curve.accuracy_SK,
                "net_corrections": curve.net_corrections_SK,
                **{f"metrics/{name}": 100 * values_SK for name, values_SK in curve.metrics_SK.items()},
            }
            table = pd.DataFrame({name: values_SK.ravel() for name, values_SK in numbers.items()})
            tables.append(table.assign(split=split, policy=policy, tasks=curve.num_tasks, graded=curve.graded))
    return pd.concat(tables).assign(
        run=run,
        file=file,
        trained_iterations=evaluation.iteration,
        settings=", ".join(f"{name} {value}" for name, value in settings.items() if value is not None),
    )


def _read_search(file: Path, runs: list[dict[str, Any]]) -> pd.DataFrame:
    try:
        sampling, *steps = read_lines(file)
        about = {name: sampling.pop(name) for name in ("competition", "seed", "model")}
        checkpoint = sampling.pop("checkpoint")
        best = np.maximum.accumulate([step["quality"] for step in steps] or [0.0])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file}: no search of this version of rllib-exit ({type(error).__name__}: {error})"
        ) from error
    if not steps:
        raise ValueError(f"{file}: no step has ended yet")
    run, age = _BASE_RUN, ""
    if checkpoint is not None:
        trial = Path(checkpoint).parent
        run = _run_of(runs, [trial.name])
        if run is None:
            params = read_params(trial)
            if params is None:
                raise ValueError(f"{file}: its checkpoint's run is not there: name the directory of {trial} too")
            _check_run(params, trial / PARAMS)
            run = len(runs)
            runs.append({"params": params, "trials": (trial,), "log": None})
        # Orders the checkpoints of a run: by trial, of which the newest comes first, then by name.
        newer = [of_run.name for of_run in runs[run]["trials"]].index(trial.name)
        age = f"{10**6 - newer}/{Path(checkpoint).name}"
    about |= {"run": run, "file": file, "age": age, "sampling": json.dumps(sampling, sort_keys=True)}
    return pd.DataFrame({"step": range(len(best)), "best": best}).assign(**about)


def _comparable_evaluations(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Those of every run's most trained checkpoint (of several, the newest), up to the step that all of them have.

    A split whose name stands for more tasks in one evaluation than in another counts as several.
    """
    newest = evaluations.sort_values("trained_iterations", kind="stable").groupby("run").file.last()
    evaluations = evaluations[evaluations.file == evaluations.run.map(newest)]
    sizes = evaluations.groupby("split").tasks.transform("nunique")
    sized = evaluations.split + " of " + evaluations.tasks.astype(str) + " tasks"
    steps = evaluations.groupby("file").step.max().min()
    return evaluations.assign(split=evaluations.split.where(sizes == 1, sized))[evaluations.step <= steps]


def _comparable_searches(searches: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Those of every run's most trained checkpoint and of one way of sampling, that of most methods; and the others."""
    old = searches.age < searches.groupby("run").age.transform("max")
    text = "left out, the run has searches from a later checkpoint"
    left_out = [f"{file}: {text}" for file in searches[old].file.unique()]
    searches = searches[~old]
    if searches.empty:
        return searches, left_out
    counts = searches.groupby("sampling", sort=False).agg({"method": "nunique", "file": "nunique"})
    chosen = max(counts.index, key=lambda sampling: tuple(counts.loc[sampling]))
    others = searches[searches.sampling != chosen].drop_duplicates("file")
    left_out += [
        f"{file}: left out, it samples with {sampling}, the searches shown with {chosen}"
        for file, sampling in zip(others.file, others.sampling, strict=True)
    ]
    return searches[searches.sampling == chosen], left_out
