"""Runs by domain and method: the runs of one method differ in their seeds alone."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
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
    """A text as a name for files and anchors, of at most 80 characters."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name if len(name) <= 80 else f"{name[:71]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


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


def name_runs(runs: Sequence[Mapping[str, Any]], domains: Mapping[tuple[str, str], str]) -> dict[int, Run]:
    """By their places, the runs with keys and methods: by domain, then in the order of Table 1, then by seed."""
    names = list(domains.values())

    def of_strategy(i: int) -> tuple[Any, ...]:
        params = runs[i]["params"]
        return names.index(domains[_domain_of(params)]), place(params["strategy"]), params["strategy"]

    def order(i: int) -> tuple[Any, ...]:
        return *of_strategy(i), runs[i]["params"].get("seed") or 0, str(runs[i]["trials"])

    named: dict[int, Run] = {}
    keys: Counter[str] = Counter()
    for (domain_index, _, strategy), group in groupby(sorted(range(len(runs)), key=order), key=of_strategy):
        places, domain = list(group), names[domain_index]
        differences = _differences([runs[i]["params"] for i in places])
        variants = list(dict.fromkeys(differences))
        for i, difference in zip(places, differences, strict=True):
            seed = runs[i]["params"].get("seed")
            key = f"{slug(domain)}/{slug(strategy if seed is None else f'{strategy}-seed{seed}')}"
            keys[key] += 1
            key += f"-{keys[key]}" if keys[key] > 1 else ""
            method = LABELS.get(strategy, strategy) + (f" ({difference})" if difference else "")
            named[i] = Run(key, domain, method, style(strategy, variants.index(difference)), **runs[i])
    return named


def _differences(params: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of some configs, the settings besides the seed that tell it from the others, in words."""

    def short(value: Any) -> str:
        if isinstance(value, list):
            return "+".join(Path(str(item)).name for item in value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    settings = [
        {name: of[name] for name in HYPER_PARAMETERS if name in of} | dict(of.get("env_config") or {}) for of in params
    ]
    names = dict.fromkeys(name for of in settings for name in of)
    odd = [name for name in names if any(of.get(name) != settings[0].get(name) for of in settings)]
    return [", ".join(f"{name} {short(of.get(name))}" for name in odd) for of in settings]
