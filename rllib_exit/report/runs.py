"""What `rllib train`, `rllib evaluate` and `rllib search` have left in directories."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_exit.rollout_log import LoggedRollouts
    from rllib_exit.self_improvement.greedy_search import Step
    from rllib_exit.self_improvement.results import Evaluation

PARAMS, RESULTS = "params.json", "result.json"

# What a run's outcome depends on, besides its seed: the rows of the paper's Tables 4 to 6 and what we added. Where and
# how fast it ran is not among it: learners, engines, sizes of micro-batches.
HYPER_PARAMETERS: Mapping[str, str] = {
    "model_name": "Model",
    "dtype": "Data type",
    "lr": "Learning rate",
    "prompts_per_batch": "Prompts per batch",
    "rollouts_per_prompt": "Rollouts per prompt",
    "num_epochs": "Epochs per batch",
    "minibatch_size": "Minibatch size",
    "clip_param": "Clipping ε",
    "clip_param_high": "Clipping ε above 1",
    "kl_coeff": "KL coefficient β",
    "ref_update_interval": "Ref. update interval",
    "ref_update_rate": "Ref. update rate",
    "normalize_std": "Advantages over std.",
    "loss_aggregation": "Loss aggregation",
    "mismatch_clip": "Mismatch clip",
    "overlong_filtering": "Overlong filtering",
    "lr_warmup_steps": "Warm-up updates",
    "lr_decay_steps": "Decay updates",
    "weight_decay": "Weight decay",
    "adam_betas": "AdamW's β",
    "grad_clip": "Gradient clip",
    "lora_r": "LoRA rank",
    "lora_alpha": "LoRA α",
    "lora_target_modules": "LoRA layers",
    "max_policy_lag": "Policy lag",
    "temperature": "Temperature",
    "stop": "Stop strings",
    "chat_template_kwargs": "Chat template",
    "max_model_len": "Context tokens",
    "compact_history_chars": "History compacted to",
    "max_response_tokens": "Response tokens",
    "buffer_size": "Total buffer size",
    "min_buffer_size": "Min. buffer size",
    "self_iteration_prob": "Self-iteration prob.",
    "divergence_prob": "Divergence prob.",
    "self_iteration": "Self-iteration steps",
    "inverse_temperature": "Inverse temperature α",
    "learnability": "Learnability score",
    "staleness_coeff": "Staleness coefficient",
    "expansions_per_group": "Expansions per group",
    "diversity_bonus": "Diversity bonus",
    "diversity_metric": "Diversity metric",
    "embedding_model": "Embedding model",
}


def read_params(trial: Path) -> dict[str, Any] | None:
    """The config that Tune wrote into a trial's directory; None if there is none."""
    file = trial / PARAMS
    return json.loads(file.read_text()) if file.is_file() else None


def identity(trial: Path) -> str:
    """The same for the trials of one run, as where it was resumed: they share experiment, settings, seed and number."""
    params = read_params(trial)
    if params is None:
        return str(trial.absolute())
    names = ("strategy", "seed", "env", "env_config", *HYPER_PARAMETERS)
    of_run = {name: params.get(name) for name in names}
    return json.dumps([str(trial.absolute().parent), of_run, _number(trial)], sort_keys=True)


def _number(trial: Path) -> str | None:
    """Tells a trial from the others of its sweep; of a run alone it is always the same."""
    if not (trial / RESULTS).is_file():
        return None
    with open(trial / RESULTS) as lines:
        first = lines.readline()
    # Tune numbers the trials of a session, as in "1a2b3_00004". A search algorithm's trials have ids without a number,
    # each another one, and are never begun anew.
    return json.loads(first).get("trial_id", "").rpartition("_")[2] if first.endswith("\n") else None


def env_name(env: Any) -> str:
    """The name of an environment's class, also where Tune wrote it down as ``<class 'module.Name'>``."""
    if isinstance(env, type):
        return env.__name__
    return str(env).removeprefix("<class '").removesuffix("'>").rpartition(".")[2]


def domain(env: str, env_config: Mapping[str, Any]) -> str:
    """What the report calls the domain of an environment."""
    if env == "CompetitionMathEnv":
        return "Arithmetic" if env_config.get("tasks", "arithmetic") == "arithmetic" else "Competition math"
    return {"BFCLEnv": "Tool use", "MLEBenchEnv": "ML engineering"}.get(env, env)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One training run, with its evaluations; or evaluations alone, if the run's directory is not there.

    Attributes:
        params: Its config as Tune wrote it down; of evaluations alone, what they say of the run.
        trials: Its directories, the newest first: more than one if it was resumed.
        results: Its iterations' results in order, without the config.
        log: Its log of rollouts; None without one.
        evaluations: By file, the newest last.
    """

    params: Mapping[str, Any]
    trials: tuple[Path, ...] = ()
    results: tuple[Mapping[str, Any], ...] = ()
    log: LoggedRollouts | None = None
    evaluations: dict[Path, Evaluation] = field(default_factory=dict)

    @property
    def strategy(self) -> str:
        return self.params["strategy"]

    @property
    def seed(self) -> int | None:
        return self.params.get("seed")

    @property
    def model(self) -> str:
        return str(self.params.get("model_name"))

    @property
    def domain(self) -> str:
        return domain(env_name(self.params["env"]), self.params.get("env_config") or {})

    @property
    def competitions(self) -> set[str]:
        """Those of MLE-bench that it was trained on."""
        directories = (self.params.get("env_config") or {}).get("competitions") or ()
        return {Path(name).name for name in ([directories] if isinstance(directories, str) else directories)}

    @property
    def name(self) -> str:
        """Strategy and seed."""
        return self.strategy if self.seed is None else f"{self.strategy}-seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """What its outcome depends on besides strategy and seed."""
        names = [name for name in HYPER_PARAMETERS if name in self.params]
        return {name: self.params[name] for name in names} | {"env_config": self.params.get("env_config") or {}}

    def series(self, path: str) -> dict[int, float]:
        """By iteration, a number of the results, where they have it; see :mod:`rllib_exit.metrics`."""
        numbers = {}
        for result in self.results:
            value: Any = result
            for key in path.split("/"):
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, int | float) and math.isfinite(value):
                numbers[result["training_iteration"]] = float(value)
        return numbers

    def evaluation(self) -> tuple[Path, Evaluation] | None:
        """That of the most trained checkpoint; of several, the newest."""
        if not self.evaluations:
            return None
        return max(self.evaluations.items(), key=lambda pair: (pair[1].iteration, pair[0].stat().st_mtime_ns))


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """A greedy search.

    Attributes:
        file: Its ``search.jsonl``.
        settings: Its first line.
        steps: Its further lines.
        run: The run whose checkpoint it used; None for a model alone.
    """

    file: Path
    settings: Mapping[str, Any]
    steps: tuple[Step, ...]
    run: Run | None = None

    @property
    def competition(self) -> str:
        return self.settings["competition"]

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings that its steps depend on, besides the seed."""
        others = ("competition", "model", "checkpoint", "seed")
        return {name: value for name, value in self.settings.items() if name not in others}


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Everything that was found.

    Attributes:
        runs: Training runs.
        searches: Greedy searches.
        problems: What could not be used, and why.
    """

    runs: tuple[Run, ...]
    searches: tuple[Search, ...]
    problems: tuple[str, ...]


def find(directories: Iterable[Path], *, skip: Path | None = None) -> Found:
    """Reads what lies under some directories, but for what lies under ``skip``.

    Trials of one experiment with the same settings, seed and number are one run: the newest counts, and for the
    iterations before its first the one before, as where it was resumed.

    Raises:
        FileNotFoundError: If a directory does not exist.
    """
    directories = list(dict.fromkeys(directory.absolute() for directory in directories))
    for directory in directories:
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is no directory")
    problems: list[str] = []

    def files(name: str) -> list[Path]:
        there = {file for directory in directories for file in directory.rglob(name)}
        return sorted(file for file in there if skip is None or skip.absolute() not in file.parents)

    trials: dict[str, list[Path]] = defaultdict(list)
    for file in files(RESULTS):
        if not (file.parent / PARAMS).is_file():
            continue
        try:
            if not read_lines(file):
                problems.append(f"{file}: no iteration has ended yet")
                continue
        except ValueError as error:
            problems.append(str(error))
            continue
        params = read_params(file.parent) or {}
        if "strategy" not in params or "env" not in params:
            problems.append(f"{file.parent}: no run of rllib-exit: its {PARAMS} has no strategy")
            continue
        trials[identity(file.parent)].append(file.parent)
    runs = [_read_run(of_run) for of_run in trials.values()]
    runs += _add_evaluations(runs, files("evaluation.json"), problems)
    known = [*runs]
    searches = tuple(search for file in files("search.jsonl") for search in _read_search(file, known, problems))
    order = list(_strategies())
    runs.sort(key=lambda run: (run.domain, _place(order, run.strategy), run.seed or 0, str(run.trials)))
    return Found(tuple(runs), searches, tuple(problems))


def _strategies() -> Sequence[str]:
    from rllib_exit.curriculum.exit import STRATEGIES

    return tuple(STRATEGIES)


def _place(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a last one that is still being written is left out.

    Raises:
        ValueError: If another one is damaged.
    """
    text = file.read_text()
    lines = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file}: line {number} is damaged ({error})") from error
    return lines


def _read_run(trials: Sequence[Path]) -> Run:
    from rllib_exit.rollout_log import LoggedRollouts

    newest = sorted(trials, key=lambda trial: (trial / RESULTS).stat().st_mtime_ns, reverse=True)
    results: dict[int, dict[str, Any]] = {}
    for trial in newest:
        first = min(results, default=math.inf)
        # Within a trial the last line of an iteration counts.
        lines = {line["training_iteration"]: line for line in read_lines(trial / RESULTS)}
        results |= {iteration: line for iteration, line in lines.items() if iteration < first}
    for line in results.values():
        line.pop("config", None)
    try:
        log = LoggedRollouts(*newest)
    except FileNotFoundError:
        log = None
    params = read_params(newest[0]) or {}
    return Run(params, tuple(newest), tuple(line for _, line in sorted(results.items())), log)


def _add_evaluations(runs: Sequence[Run], files: Sequence[Path], problems: list[str]) -> list[Run]:
    """Gives evaluations to their runs; those without one make runs of their own."""
    from rllib_exit.self_improvement.results import read

    by_trial = {trial.name: run for run in runs for trial in run.trials}
    others: dict[str, Run] = {}
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        try:
            evaluation = read(file)
        except ValueError as error:
            problems.append(str(error))
            continue
        # Tune's names of trials are unique, wherever they were moved.
        names = [*(path.name for path in file.parents), Path(evaluation.checkpoint).parent.name]
        run = next((by_trial[name] for name in names if name in by_trial), None)
        if run is None:
            said = {**evaluation.run, "model_name": evaluation.run["model"]}
            run = others.setdefault(json.dumps(said, sort_keys=True, default=str), Run(said))
        run.evaluations[file] = evaluation
    return list(others.values())


def _read_search(file: Path, runs: list[Run], problems: list[str]) -> Iterator[Search]:
    """A search, if it can be read; its run is added to ``runs`` if it is not among them."""
    from rllib_exit.self_improvement.greedy_search import Step

    try:
        settings, *steps = read_lines(file)
        search = Search(file, settings, tuple(Step(**step) for step in steps))
        checkpoint = settings["checkpoint"]
    except (ValueError, TypeError, KeyError) as error:
        problems.append(f"{file}: no search of this version of rllib-exit ({type(error).__name__}: {error})")
        return
    if not search.steps:
        problems.append(f"{file}: no step has ended yet")
        return
    if checkpoint is None:
        yield search
        return
    trial = Path(checkpoint).parent
    run = next((run for run in runs for there in run.trials if there.name == trial.name), None)
    if run is None and (params := read_params(trial)):
        runs.append(run := Run(params, (trial,)))
    if run is None:
        problems.append(f"{file}: its checkpoint's run is not there: name the directory of {trial} too")
        return
    yield Search(file, settings, search.steps, run)
