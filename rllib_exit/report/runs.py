"""Runs by domain and method: the runs of one method differ in their seeds alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rllib_exit.report.figures import Style, style
from rllib_exit.rollout_log import LoggedRollouts
from rllib_exit.run_identity import HYPER_PARAMETERS, env_name

BASE = "Base model"
# The strategies as the rows of the paper's Table 1.
LABELS: Mapping[str, str] = {
    "grpo": "GRPO",
    "curriculum": "+ curriculum",
    "improve": "+ improve",
    "diverge": "+ diverge",
    "exit": "+ diversity (ExIt)",
}
ML_ENGINEERING = "ML engineering"


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A training run, or what is known of one whose directory is not there from its evaluations and searches.

    Attributes:
        key: Names it in the tables: ``arithmetic/exit-seed0``.
        domain: Of its tasks; with the model's name where there are several models.
        method: The strategy as Table 1 calls it, and what tells its settings from those of the strategy's other runs.
            Runs of one method differ in their seeds alone.
        style: How the method is drawn.
        params: Its config as Tune wrote it.
        trials: Its directories, the newest first: more than one if it was resumed.
        log: Its log of rollouts; None without one.
    """

    key: str
    domain: str
    method: str
    style: Style
    params: Mapping[str, Any]
    trials: tuple[Path, ...]
    log: LoggedRollouts | None

    @property
    def name(self) -> str:
        """Strategy and seed, as in ``exit-seed0``."""
        return self.key.partition("/")[2]

    @property
    def strategy(self) -> str:
        return self.params["strategy"]

    @property
    def env_config(self) -> Mapping[str, Any]:
        return self.params.get("env_config") or {}


def slug(text: str) -> str:
    """A text as a name for files and anchors."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def place(strategy: str) -> int:
    """The place of a strategy's row in Table 1; others follow."""
    return list(LABELS).index(strategy) if strategy in LABELS else len(LABELS)


def _domain_of(params: Mapping[str, Any]) -> tuple[str, str]:
    """What the report calls the domain of an environment, and the model."""
    env, env_config = env_name(params["env"]), params.get("env_config") or {}
    names = {"BFCLEnv": "Tool use", "MLEBenchEnv": ML_ENGINEERING}
    if env == "CompetitionMathEnv":
        names[env] = "Arithmetic" if env_config.get("tasks", "arithmetic") == "arithmetic" else "Competition math"
    return names.get(env, env), str(params.get("model_name"))


def domain_names(runs: Sequence[Mapping[str, Any]], base_models: Iterable[str]) -> dict[tuple[str, str], str]:
    """By domain and model, in order, the names of the report's sections."""
    pairs = sorted({_domain_of(run["params"]) for run in runs})
    pairs = list(dict.fromkeys([*pairs, *((ML_ENGINEERING, model) for model in base_models)]))
    models = Counter(domain for domain, _ in pairs)
    return {
        (domain, model): domain if models[domain] == 1 else f"{domain} · {Path(model).name.removeprefix('bundled:')}"
        for domain, model in pairs
    }


def _settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the outcome depends on besides strategy and seed."""
    return {name: params[name] for name in HYPER_PARAMETERS if name in params} | dict(params.get("env_config") or {})


def name_runs(runs: Sequence[Mapping[str, Any]], domains: Mapping[tuple[str, str], str]) -> dict[int, Run]:
    """By their places, the runs with keys and methods: by domain, then in the order of Table 1, then by seed."""

    def order(i: int) -> tuple[Any, ...]:
        strategy, seed = params[i]["strategy"], params[i].get("seed") or 0
        return list(domains).index(_domain_of(params[i])), place(strategy), strategy, seed, str(runs[i]["trials"])

    params = [run["params"] for run in runs]
    ordered = sorted(range(len(runs)), key=order)
    variants: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for i in ordered:
        of_strategy = variants[domains[_domain_of(params[i])], params[i]["strategy"]]
        of_strategy += [] if _settings(params[i]) in of_strategy else [_settings(params[i])]
    named: dict[int, Run] = {}
    keys: Counter[str] = Counter()
    for i in ordered:
        domain, strategy, seed = domains[_domain_of(params[i])], params[i]["strategy"], params[i].get("seed")
        of_strategy = variants[domain, strategy]
        variant = of_strategy.index(_settings(params[i]))
        method = LABELS.get(strategy, strategy)
        method += f" ({_difference(of_strategy[variant], of_strategy)})" if len(of_strategy) > 1 else ""
        key = f"{slug(domain)}/{slug(strategy if seed is None else f'{strategy}-seed{seed}')}"
        keys[key] += 1
        key += f"-{keys[key]}" if keys[key] > 1 else ""
        named[i] = Run(key, domain, method, style(strategy, variant), **runs[i])
    return named


def _difference(mine: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """The settings that tell a run from the others, in words."""

    def short(value: Any) -> str:
        if isinstance(value, list):
            return "+".join(Path(str(item)).name for item in value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    names = dict.fromkeys(name for settings in others for name in settings)
    odd = [name for name in names if any(settings.get(name) != others[0].get(name) for settings in others)]
    return ", ".join(f"{name} {short(mine.get(name))}" for name in odd)
