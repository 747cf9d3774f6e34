"""RLlib's own names for what an iteration reports, and its callbacks around an evaluation.

An environment step is a response of the policy. The returns are those of the iteration's episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_exit.env_runners.callbacks import wanted
from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.env_runners.llm_env_runner import remote_call
from rllib_exit.grpo.checkpointing import CheckpointedAlgorithm
from rllib_exit.grpo.rollout_queue import RolledOut
from rllib_exit.rollouts import ScoredGroup
from rllib_exit.stages import stage

# RLlib's names of the learners' numbers, by ours.
LEARNER_NAMES = {
    "loss": "total_loss",
    "kl": "mean_kl_loss",
    "entropy": "entropy",
    "grad_norm": "gradients_default_optimizer_global_norm",
    "lr": "default_optimizer_learning_rate",
}


class ConventionalAlgorithm(CheckpointedAlgorithm):
    """An algorithm that reports by RLlib's names too, and whose evaluation calls RLlib's callbacks."""

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Evaluates, see :meth:`run_evaluation`, between ``on_evaluate_start`` and ``on_evaluate_end``."""
        self._call_back("on_evaluate_start")
        with stage("evaluation"):
            metrics = self.run_evaluation()
        self._call_back("on_evaluate_end", evaluation_metrics=metrics)
        return metrics

    def run_evaluation(self) -> dict[str, Any]:
        """The evaluation's results, which callbacks may add to."""
        raise NotImplementedError

    def log_by_rllibs_names(self, rolled_out: RolledOut, env_runners: Dispatcher) -> None:
        """Logs what RLlib's stop conditions, schedulers and dashboards look for, and what callbacks have logged.

        Args:
            rolled_out: The iteration's rollouts.
            env_runners: They have rolled them out.
        """
        log_by_rllibs_names(self.metrics, rolled_out.groups, rolled_out.batch)
        if wanted(self.config):
            logged = env_runners.call_all(remote_call("get_metrics"))
            self.metrics.aggregate(logged, key=ENV_RUNNER_RESULTS)

    def _call_back(self, name: str, **arguments: Any) -> None:
        functions = getattr(self.config, f"callbacks_{name}")
        arguments = {"algorithm": self, "metrics_logger": self.metrics, **arguments}
        make_callback(name, list(force_list(self.callbacks)), functions, kwargs=arguments)


def log_by_rllibs_names(metrics: MetricsLogger, groups: Sequence[ScoredGroup], batch: Sequence[ScoredGroup]) -> None:
    """Logs what RLlib's stop conditions, schedulers and dashboards look for.

    Args:
        metrics: The algorithm's, in which the learners' numbers of the iteration are under ``learner``.
        groups: The iteration's groups, all of them.
        batch: Those of them that were trained on.
    """

    def num_steps(scored: ScoredGroup) -> int:
        start = scored.group.request.instance.starting_turn
        return sum(len(rollout.turns) - start for rollout in scored.group.rollouts)

    sampled = sum(map(num_steps, groups))
    trained = sum(map(num_steps, batch))
    returns = [rollout.return_ for scored in groups for rollout in scored.group.rollouts]
    values: dict[tuple[str, str], float] = {
        (ENV_RUNNER_RESULTS, NUM_EPISODES): len(returns),
        (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED): sampled,
    }
    if returns:
        values |= {
            (ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN): sum(returns) / len(returns),
            (ENV_RUNNER_RESULTS, EPISODE_RETURN_MIN): min(returns),
            (ENV_RUNNER_RESULTS, EPISODE_RETURN_MAX): max(returns),
            (ENV_RUNNER_RESULTS, EPISODE_LEN_MEAN): sampled / len(returns),
        }
    for key, value in values.items():
        metrics.log_value(key, value, reduce="mean", window=1)
    for ours, theirs in LEARNER_NAMES.items():
        value = metrics.peek(("learner", ours), default=math.nan)
        if not math.isnan(value):
            metrics.log_value((LEARNER_RESULTS, DEFAULT_MODULE_ID, theirs), value, reduce="mean", window=1)
    lifetime = {
        (ENV_RUNNER_RESULTS, NUM_EPISODES_LIFETIME): len(returns),
        (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME): sampled,
        (LEARNER_RESULTS, ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME): trained,
        (LEARNER_RESULTS, DEFAULT_MODULE_ID, NUM_MODULE_STEPS_TRAINED_LIFETIME): trained,
    }
    for key, value in lifetime.items():
        metrics.log_value(key, value, reduce="lifetime_sum")
    for key in ((ALL_MODULES, NUM_ENV_STEPS_TRAINED), (DEFAULT_MODULE_ID, NUM_MODULE_STEPS_TRAINED)):
        metrics.log_value((LEARNER_RESULTS, *key), trained, reduce="sum")
