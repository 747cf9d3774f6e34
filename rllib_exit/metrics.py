"""The numbers that training reports, as one list: Ray's gauges and the Grafana dashboard are made from it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

# Grafana's names of units.
NUMBER, FRACTION, SECONDS, BYTES = "short", "percentunit", "s", "bytes"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of an iteration's result.

    Attributes:
        path: Its keys in the result, joined by slashes.
        description: What it says, in ASCII.
        unit: Grafana's name of its unit.
        panel: The dashboard's panel that it shares with its neighbours; by default it has a panel of its own.
        by: What it is one number for each of: a ``"step"`` of self-improvement, under ``step_0``, ``step_1``, …, or an
            ``"engine"``, under ``engine_1``, …, the numbers of the env runners.
    """

    path: str
    description: str
    unit: str = NUMBER
    panel: str = ""
    by: Literal["", "step", "engine"] = ""

    @property
    def row(self) -> str:
        """The dashboard's row."""
        row, slash, _ = self.path.partition("/")
        return row if slash else "policy"

    @property
    def name(self) -> str:
        """The last key of the path."""
        return self.path.rpartition("/")[2]

    @property
    def gauge(self) -> str:
        """The name of its gauge in Ray; Prometheus has it with ``ray_`` before it."""
        return "rllib_exit_" + re.sub(r"\W", "_", self.path, flags=re.ASCII)


# The panels that several metrics share.
KINDS, CUT, ITERATION, LOGPROBS = "kinds of prompts", "cut or invalid", "parts of an iteration", "logprob_abs_diff"
REQUESTS, KV_CACHE = "requests", "kv_cache_usage"
METRICS = (
    Metric("curriculum/buffer_size", "Instances in the task buffer."),
    Metric("curriculum/buffer_score_min", "Lowest learnability score in the task buffer.", panel="buffer_score"),
    Metric("curriculum/buffer_score_mean", "Mean learnability score in the task buffer.", panel="buffer_score"),
    Metric("curriculum/buffer_score_max", "Highest learnability score in the task buffer.", panel="buffer_score"),
    Metric("curriculum/selected_fraction", "Prompts selected from the task buffer.", FRACTION, KINDS),
    Metric("curriculum/improve_fraction", "Prompts that improve an iterate.", FRACTION, KINDS),
    Metric("curriculum/diverge_fraction", "Prompts that diverge from an iterate.", FRACTION, KINDS),
    Metric("curriculum/depth_mean", "Self-iteration steps behind the iterates; 0 for a base task."),
    Metric("curriculum/starting_turn_mean", "Turn at which the episodes start.", panel="starting_turn"),
    Metric("curriculum/starting_turn_plateau", "Turn at which replayed episodes level off.", panel="starting_turn"),
    Metric("curriculum/distinct_tasks_total", "Base tasks seen so far.", panel="distinct"),
    Metric("curriculum/distinct_instances_total", "Task instances seen so far.", panel="distinct"),
    Metric("curriculum/group_variance_mean", "Learnability: variance of the quality within a group."),
    Metric("curriculum/zero_variance_fraction", "Groups that teach nothing: all of one quality.", FRACTION),
    Metric("curriculum/skipped_fraction", "Groups whose prompt does not fit the context.", FRACTION),
    Metric("curriculum/unjudged_fraction", "Groups of which fewer than two rollouts could be judged.", FRACTION),
    Metric("rollouts/return_mean", "Mean return; what advantages are made of."),
    Metric("rollouts/quality_mean", "Mean final quality; what learnability is made of.", FRACTION),
    Metric("rollouts/response_tokens_mean", "Tokens that the policy generated per rollout."),
    Metric("rollouts/truncated_fraction", "Rollouts cut by a limit of tokens.", FRACTION, CUT),
    Metric("rollouts/invalid_fraction", "Rollouts whose last response is invalid.", FRACTION, CUT),
    Metric("rollouts/skipped_prompts", "Prompts that do not fit the context."),
    Metric("rollouts/retried_episodes", "Episodes begun once more because the first attempt failed."),
    Metric("rollouts/dropped_groups", "Groups without a signal that a refill left out of the batch."),
    Metric("rollouts/dropped_episodes", "Episodes left out of their groups because the environment broke down."),
    Metric("rollouts/lost_env_runners", "Env runners lost and restarted."),
    Metric("rollouts/tokens_per_s", "Tokens generated per second."),
    Metric("learner/loss", "Loss of the update."),
    Metric("learner/kl", "KL divergence from the reference policy, per token."),
    Metric("learner/clip_fraction", "Tokens whose ratio was clipped.", FRACTION),
    Metric("learner/entropy", "Entropy of the policy, per token."),
    Metric("learner/grad_norm", "Norm of the gradient before clipping."),
    Metric("learner/logprob_abs_diff_mean", "Mean |log-probability of the learner - of the engine|.", panel=LOGPROBS),
    Metric("learner/logprob_abs_diff_max", "Largest |log-probability of the learner - of the engine|.", panel=LOGPROBS),
    Metric("learner/lr", "Learning rate."),
    Metric("learner/skipped_updates", "Updates left out because of a non-finite loss or gradient."),
    Metric("learner/tokens_per_s", "Tokens trained on per second."),
    Metric("learner/mfu", "Model FLOPs utilisation: FLOPs of the update, of the GPUs' dense bfloat16 peak.", FRACTION),
    Metric("learner/gpu_memory_max", "Most memory of tensors on a learner's GPU since the last update.", BYTES),
    Metric("learner/bubble_s", "Time since the last update in which the learners had nothing to train on.", SECONDS),
    Metric("engine/tokens_per_s", "Tokens generated per second.", by="engine"),
    Metric("engine/requests_running", "Requests running, mean over forward passes.", NUMBER, REQUESTS, "engine"),
    Metric("engine/requests_waiting", "Requests waiting, mean over forward passes.", NUMBER, REQUESTS, "engine"),
    Metric("engine/kv_cache_usage", "Used of the KV cache, mean over forward passes.", FRACTION, KV_CACHE, "engine"),
    Metric("engine/kv_cache_usage_max", "Most that was used of the KV cache.", FRACTION, KV_CACHE, "engine"),
    Metric("engine/prefix_cache_hit_rate", "Tokens of prompts found in the prefix cache.", FRACTION, by="engine"),
    Metric("engine/preemptions", "Requests put back because the KV cache was full.", by="engine"),
    Metric("engine/bubble_s", "Time in which the engine had no request to work on.", SECONDS, by="engine"),
    Metric("timers/select", "Selecting the prompts.", SECONDS, ITERATION),
    Metric("timers/rollout", "Rolling out.", SECONDS, ITERATION),
    Metric("timers/embed", "Advantages and the diversity bonus; part of rolling out.", SECONDS, ITERATION),
    Metric("timers/update", "Updating the policy.", SECONDS, ITERATION),
    Metric("timers/sync", "Giving the weights to the env runners.", SECONDS, ITERATION),
    Metric("sync/bytes", "Size of the weights sent, or of what changed.", BYTES),
    Metric("sync/changed_fraction", "Weights that differ from those sent before; 1 if not compared.", FRACTION),
    Metric("sync/transfer_s", "Weights on their way to the engines.", SECONDS, "sync"),
    Metric("sync/load_s", "Weights being loaded by the slowest engine.", SECONDS, "sync"),
    Metric("policy_version", "Updates made so far."),
    Metric("policy_lag_max", "How many updates the oldest rollouts of the batch were behind."),
    Metric("evaluation/accuracy", "Mean quality after each step of self-improvement.", FRACTION, by="step"),
    Metric("evaluation/improvement", "Accuracy after the last step of self-improvement, less that before."),
    Metric("evaluation/net_corrections", "Tasks put right minus tasks put wrong since step 0.", by="step"),
    Metric("evaluation/invalid_fraction", "Episodes whose last response is invalid.", FRACTION, by="step"),
    Metric("evaluation/truncated_fraction", "Episodes that a limit cut.", FRACTION, by="step"),
    Metric("evaluation/num_tasks", "Tasks evaluated on."),
)
# The rows in which a domain's own numbers stand beside the listed ones.
DOMAIN_ROWS = ("curriculum", "rollouts", "evaluation")


def readings(result: Mapping[str, Any]) -> Iterator[tuple[Metric, dict[str, str], float]]:
    """The listed metrics that a result holds, then the domain's own.

    Yields:
        The metric, its tag ``step`` or ``engine`` if it is by one, and its value.
    """
    listed = {metric.path for metric in METRICS}
    domain = [
        Metric(f"{row}/{name}", "A number of the domain.", by="step" if isinstance(value, Mapping) else "")
        for row in DOMAIN_ROWS
        for name, value in result.get(row, {}).items()
        if f"{row}/{name}" not in listed
    ]
    for metric in (*METRICS, *domain):
        value: Any = result
        for key in metric.path.split("/", 1):
            value = value.get(key) if isinstance(value, Mapping) else None
        if metric.by and isinstance(value, Mapping):
            for one, number in value.items():
                if isinstance(number, Real):
                    yield metric, {metric.by: str(one).removeprefix(f"{metric.by}_")}, float(number)
        elif isinstance(value, Real):
            yield metric, {}, float(value)


class Gauges:
    """Ray's gauges of the metrics, which Prometheus scrapes from the nodes.

    Ray forgets a gauge soon after it was set. So a thread sets them all again every second, until ``close``.

    Args:
        run: The value of the tag ``run``.
        strategy: The value of the tag ``strategy``.
    """

    def __init__(self, run: str, strategy: str) -> None:
        # Ray's gauges take ASCII.
        self._tags = {"run": run.encode("ascii", "replace").decode(), "strategy": strategy}
        self._gauges: dict[str, Any] = {}
        self._values: dict[tuple[str, ...], tuple[Any, float, dict[str, str]]] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._keep, name="gauges", daemon=True).start()

    def set(self, result: Mapping[str, Any]) -> None:
        """Sets the gauge of every metric that an iteration's result holds; the others keep their values."""
        from ray.util.metrics import Gauge

        for metric, tags, value in readings(result):
            key, tags = (metric.gauge, *tags.values()), {**self._tags, **tags}
            if metric.gauge not in self._gauges:
                self._gauges[metric.gauge] = Gauge(metric.gauge, metric.description, tuple(tags))
            self._values[key] = self._gauges[metric.gauge], value, tags
        self._set_all()

    def close(self) -> None:
        """Lets Ray forget the gauges."""
        self._closed.set()

    def _set_all(self) -> None:
        for gauge, value, tags in list(self._values.values()):
            gauge.set(value, tags)

    def _keep(self) -> None:
        import ray

        # Ray exports a gauge once a second at most, and forgets it after two exports without it.
        while not self._closed.wait(1.0) and ray.is_initialized():
            self._set_all()
