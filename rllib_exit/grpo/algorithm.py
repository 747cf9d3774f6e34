"""GRPO with Exploratory Iteration as an RLlib Algorithm."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import TIMERS
from ray.tune import PlacementGroupFactory

from rllib_exit.connectors.exit_replay import ExItReplay
from rllib_exit.curriculum.exit import CurriculumConfig, ExIt
from rllib_exit.embeddings import make_diversity, num_embedders
from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.env_runners.environments import make_env
from rllib_exit.env_runners.llm_env_runner import make_dispatcher, remote_call
from rllib_exit.grpo import placement
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.grpo.conventions import ConventionalAlgorithm
from rllib_exit.grpo.rollout_metrics import engine_metrics, rollout_metrics
from rllib_exit.grpo.rollout_queue import RolledOut, RolloutQueue
from rllib_exit.grpo.signal_watch import SignalWatch
from rllib_exit.grpo.stopping import StoppedError
from rllib_exit.grpo.update import Update
from rllib_exit.grpo.waiting import RolloutError, as_completed
from rllib_exit.learner.batch import TOKEN_LOGPROBS
from rllib_exit.learner.learner_group import GRPOLearnerGroup
from rllib_exit.metrics import Gauges
from rllib_exit.objective.scoring import score
from rllib_exit.rollout_log import RolloutLog
from rllib_exit.rollouts import RolloutGroup, ScoredGroup, SegmentKey
from rllib_exit.self_improvement.curves import Curve
from rllib_exit.self_improvement.evaluator import start_chains, steps_after
from rllib_exit.settings import TrainingSettings
from rllib_exit.sft import warm_start
from rllib_exit.versions import versions
from rllib_exit.weight_sync.transfers import WeightSync

logger = logging.getLogger(__name__)


class GRPO(ConventionalAlgorithm):
    """Group-Relative Policy Optimization (paper section 2.2) on a curriculum of task instances (section 4).

    Faults: the rollouts of a lost env runner are run again, see :class:`Dispatcher`. An episode that fails twice ends
    training with a :class:`RolloutError`, after a checkpoint. A lost learner ends it with a ``LearnerError``; training
    goes on from the last checkpoint, which has what was selected and not yet trained on.
    """

    config: GRPOConfig
    evaluation_config: GRPOConfig
    env_runner_group: EnvRunnerGroup
    learner_group: GRPOLearnerGroup

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        return GRPOConfig()

    def setup(self, config: Any) -> None:
        # The environment first: its errors cost nothing before actors and models are made.
        self._env = make_env(self.config.env, self.config.env_config)
        rng = np.random.default_rng(self.config.seed)
        self.replay = ExItReplay(ExIt(CurriculumConfig.of(self.config), list(self._env.tasks), rng))
        self.diversity = make_diversity(self.config)
        self.policy_version = 0
        self._signal_watch = SignalWatch()
        super().setup(config)
        self._gauges = Gauges(run=Path(str(self.logdir)).name, strategy=self.config.strategy)
        self._rollout_log = RolloutLog.of_trial(self.config, str(self.logdir), self._storage, self._env)
        self._env_runners = self._evaluation_env_runners = make_dispatcher(self.env_runner_group, self.config)
        if self.eval_env_runner_group is not None:
            self._evaluation_env_runners = make_dispatcher(self.eval_env_runner_group, self.evaluation_config)
        self._weights = WeightSync(self.learner_group, self.config, self._env_runners, self._evaluation_env_runners)
        self._policy_update = Update(self.learner_group, self.config, self._env.max_turns)
        self.rollouts = RolloutQueue(
            self._env_runners,
            TrainingSettings.of(self.config),
            max_policy_lag=self.config.max_policy_lag,
            meanwhile=self._meanwhile,
            num_scorers=max(1, num_embedders(self.config)),
        )

    def step(self) -> dict[str, Any]:
        """Runs RLlib's step, the first after the warm start; if rollouts fail, a checkpoint has what was selected."""
        if self.iteration == 0 and self.config.warm_start_epochs:
            directory, self.warm_started = warm_start(self.config, logger.info)
            self.learner_group.load_model(directory)
            self._sync_weights(self._env_runners)
        try:
            result = super().step()
        except (RolloutError, StoppedError) as error:
            raise type(error)(f"{error}\n\nsaved: {self.save_whole()}") from error
        self._gauges.set(result)
        if warning := self._signal_watch.look(result):
            logger.warning(warning)
            result["warning"] = warning
        return {**result, "versions": versions(), **({"warm_start": self.warm_started} if self.warm_started else {})}

    def training_step(self) -> None:
        """One iteration of ExIt (paper section 4): the steps stand in the order in which data passes through them.

        What takes minutes at scale does not wait for its turn: rollouts may have been begun iterations ago, and each
        group is scored while others are under way.
        """
        with self._timed("select"):
            requests = self.rollouts.select(self.replay.select)
        with self._timed("rollout"):
            rolled_out = self.rollouts.collect(requests, self._score, self.replay.select)
        with self._timed("update"):
            logprobs = self._update(rolled_out.batch)
        with self._timed("sync"):
            self._sync_weights(self._env_runners)
        self.replay(batch=[scored.group for scored in rolled_out.groups], metrics=self.metrics)
        self.rollouts.trained()
        self._report(rolled_out, logprobs)

    def _score(self, group: RolloutGroup) -> ScoredGroup:
        scored = score(group, self.diversity, normalize_std=self.config.normalize_std)
        self._policy_update.add(scored)
        return scored

    def _meanwhile(self) -> None:
        self._weights.serve()
        self._policy_update.serve()

    def _update(self, groups: Sequence[ScoredGroup]) -> dict[SegmentKey, np.ndarray]:
        """Trains the learners on the groups (Eqs. 4 and 5); returns their log-probabilities for the log of rollouts."""
        if self.config.colocated:
            self._env_runners.broadcast(remote_call("sleep"))
        results = self._policy_update(groups)
        logprobs = {key: of for result in results for key, of in result.pop(TOKEN_LOGPROBS, {}).items()}
        self.metrics.aggregate(results, key="learner")
        return logprobs

    def _sync_weights(self, env_runners: Dispatcher) -> None:
        transferred = self._weights(env_runners)
        self.policy_version = transferred.policy_version
        self._log({("sync", name): value for name, value in transferred.metrics.items()})

    def _report(self, rolled_out: RolledOut, logprobs: Mapping[SegmentKey, np.ndarray]) -> None:
        self._log(rollout_metrics(rolled_out, self._env.tasks, policy_version=self.policy_version))
        self._log(engine_metrics(self._env_runners))
        self.log_by_rllibs_names(rolled_out, self._env_runners)
        if self._rollout_log is not None:
            self._rollout_log.write(self.iteration + 1, rolled_out.trainable, self.replay.curriculum, logprobs)

    def run_evaluation(self) -> dict[str, Any]:
        """K-step self-improvement on every task of the evaluation's environment, as :meth:`Curve.to_metrics` has it."""
        config, env_runners = self.evaluation_config, self._evaluation_env_runners
        if env_runners is not self._env_runners:  # which have the newest weights already
            self._sync_weights(env_runners)
        env = make_env(config.env, config.env_config)
        futures = start_chains(env_runners, env, list(env.tasks), config, steps=steps_after(self.iteration + 1, config))
        for _ in as_completed(futures, self._weights.serve):
            pass
        chains = [chain for future in futures if (chain := future.result()) is not None]
        if not chains:
            raise RolloutError("no task of the evaluation fits the context")
        return Curve.of([chains]).to_metrics()

    def after_restore(self) -> None:
        self._sync_weights(self._env_runners)

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Does nothing: the dispatcher brings lost env runners back, while the others work."""
        return []

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        rllibs: Any = super().default_resource_request(config)
        return placement.request(rllibs, cls.get_default_config().update_from_dict(config))

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        return eval_config.evaluation_num_env_runners > 0  # else evaluation runs on the training's

    def _timed(self, name: str) -> AbstractContextManager:
        return self.metrics.log_time((TIMERS, name), reduce="mean", window=1)

    def _log(self, values: Mapping[tuple[str, ...], float]) -> None:
        for key, value in values.items():
            self.metrics.log_value(key, float(value), reduce="mean", window=1)

    def cleanup(self) -> None:
        self._gauges.close()
        for env_runners in {self._env_runners, self._evaluation_env_runners}:
            env_runners.cancel()
            env_runners.broadcast(remote_call("close"))
            env_runners.stop()
        super().cleanup()
