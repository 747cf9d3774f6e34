"""GRPO with Exploratory Iteration as an RLlib Algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import TIMERS
from ray.tune import PlacementGroupFactory

from rllib_exit.connectors.exit_replay import ExItReplay
from rllib_exit.curriculum.exit import CurriculumConfig, ExIt
from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.env_runners.environments import make_env
from rllib_exit.env_runners.llm_env_runner import make_dispatcher, remote_call
from rllib_exit.grpo import placement
from rllib_exit.grpo.checkpointing import CheckpointedAlgorithm
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.grpo.rollout_metrics import policy_lag, rollout_metrics, task_metrics
from rllib_exit.grpo.rollout_queue import RolledOut, RolloutQueue
from rllib_exit.grpo.scoring import make_scorer
from rllib_exit.grpo.stopping import StoppedError
from rllib_exit.grpo.waiting import RolloutError, as_completed
from rllib_exit.learner.batch import TrainBatch, make_batches
from rllib_exit.learner.learner_group import GRPOLearnerGroup, learner_errors
from rllib_exit.metrics import Gauges
from rllib_exit.rollout_log import RolloutLog
from rllib_exit.rollouts import ScoredGroup
from rllib_exit.self_improvement.curves import Curve
from rllib_exit.self_improvement.evaluator import start_chains
from rllib_exit.versions import versions
from rllib_exit.weight_sync.transfers import ObjectStoreTransfer, WeightTransfer, make_transfer

CURRICULUM = "curriculum"
SELECTED = "selected_requests"


class GRPO(CheckpointedAlgorithm):
    """Group-Relative Policy Optimization (paper section 2.2) on a curriculum of task instances (section 4).

    Faults: the rollouts of a lost env runner are run again, see :class:`Dispatcher`. An episode that fails twice
    ends training with a :class:`RolloutError`, after a checkpoint. A lost learner ends it with a ``LearnerError``;
    training goes on from the last checkpoint. What was selected and not yet trained on is part of a checkpoint, so
    that a restored run trains on it again.
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
        self.policy_version = 0
        self.score = make_scorer(self._env, self.config)
        super().setup(config)
        self._gauges = Gauges(run=Path(str(self.logdir)).name, strategy=self.config.strategy)
        self._rollout_log = self._make_rollout_log() if self.config.log_rollouts else None
        self._env_runners = make_dispatcher(self.env_runner_group, self.config)
        if self.eval_env_runner_group is None:
            self._evaluation_env_runners = self._env_runners
        else:
            self._evaluation_env_runners = make_dispatcher(self.eval_env_runner_group, self.evaluation_config)
        self._weight_transfers: dict[Dispatcher, WeightTransfer] = {
            self._evaluation_env_runners: ObjectStoreTransfer(self.learner_group),
            self._env_runners: make_transfer(self.learner_group, self.config),
        }
        self.rollouts = RolloutQueue(
            self._env_runners,
            group_size=self.config.rollouts_per_prompt,
            max_policy_lag=self.config.max_policy_lag,
            meanwhile=self._serve_weights,
        )

    def step(self) -> dict[str, Any]:
        """Runs RLlib's step; an iteration that ends without its rollouts leaves a checkpoint with what it selected."""
        try:
            result = super().step()
        except (RolloutError, StoppedError) as error:
            checkpoint: Any = self.save()
            raise type(error)(f"{error}\n\nsaved: {checkpoint.checkpoint.path}") from error
        self._gauges.set(result)
        return {**result, "versions": versions()}

    def training_step(self) -> None:
        """One iteration of ExIt (paper section 4): the steps stand in the order in which data passes through them."""
        with self._timed("select"):
            requests = self.rollouts.select(lambda: self.replay.select(self.config.prompts_per_batch))
        with self._timed("rollout"):
            rolled_out = self.rollouts.collect(requests, self.score)
        batches = self._make_batches(rolled_out.trainable)
        with self._timed("update"):
            self._update(batches)
        with self._timed("sync"):
            self._sync_weights(self._env_runners)
        self.replay(batch=[scored.group for scored in rolled_out.groups], metrics=self.metrics)
        self.rollouts.trained()
        self._report(rolled_out)

    def _make_batches(self, groups: Sequence[ScoredGroup]) -> list[TrainBatch]:
        """One batch for each learner."""
        if not groups:
            self.rollouts.cancel()
            raise RolloutError(
                f"no prompt of this iteration fits the context: max_model_len is {self.config.max_model_len} and "
                f"max_response_tokens {self.config.max_response_tokens}; raise the one or lower the other"
            )
        return make_batches(
            groups,
            num_learners=max(1, self.config.num_learners or 0),
            minibatch_size=self.config.minibatch_size,
            loss_aggregation=self.config.loss_aggregation,
            max_response_tokens=self.config.max_response_tokens,
            overlong_filtering=self.config.overlong_filtering,
            skip_zero_advantage=self.config.kl_coeff == 0,
        )

    def _update(self, batches: Sequence[TrainBatch]) -> None:
        if self.config.colocated:
            self._env_runners.broadcast(remote_call("sleep"))
        if self.learner_group.is_local:
            training_data = TrainingData(batch=batches[0])  # type: ignore[arg-type]
        else:
            training_data = TrainingData(batches=list(batches))  # type: ignore[arg-type]
        with learner_errors():
            results = self.learner_group.update(training_data=training_data)
        self.metrics.aggregate(results, key="learner")

    def _sync_weights(self, env_runners: Dispatcher) -> None:
        """Gives the learner's weights to the env runners and waits until they have them.

        RLlib's own sync does not wait, and drops weights while older ones are under way.
        """
        transferred = self._weight_transfers[env_runners](env_runners)
        self.policy_version = transferred.policy_version
        sync = {
            "bytes": transferred.num_bytes,
            "transfer_s": transferred.transfer_s,
            "load_s": transferred.load_s,
        }
        self._log("sync", sync)

    def _serve_weights(self) -> None:
        """Gives weights to env runners that came back; to be called while the learners have nothing to do."""
        for transfer in self._weight_transfers.values():
            transfer.serve()

    def _report(self, rolled_out: RolledOut) -> None:
        self._log("rollouts", rollout_metrics(rolled_out, group_size=self.config.rollouts_per_prompt))
        self._log(CURRICULUM, task_metrics(rolled_out, self._env.tasks))
        self._log(TIMERS, {"embed": sum(scored.seconds for scored in rolled_out.groups)})
        self._log(None, {"policy_version": self.policy_version})
        self._log(None, {"policy_lag_max": policy_lag(rolled_out, self.policy_version)})
        if self._rollout_log is not None:
            self._rollout_log.write(self.iteration + 1, rolled_out.trainable)

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Does nothing: the dispatcher brings lost env runners back, while the others work."""
        return []

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """K-step self-improvement on every task of ``evaluation_config``'s environment.

        Returns:
            ``num_tasks``; ``improvement``, the accuracy after K steps less that before; and ``accuracy``,
            ``net_corrections`` and the domain's metrics with one entry per step, ``step_0`` to ``step_K``.
        """
        config, env_runners = self.evaluation_config, self._evaluation_env_runners
        self._sync_weights(env_runners)
        env = make_env(config.env, config.env_config)
        futures = start_chains(env_runners, env, list(env.tasks), config)
        for _ in as_completed(futures, self._serve_weights):
            pass
        chains = [chain for future in futures if (chain := future.result()) is not None]
        if not chains:
            raise RolloutError("no task of the evaluation fits the context")

        def by_step(values: np.ndarray) -> dict[str, float]:
            return {f"step_{k}": float(value) for k, value in enumerate(values)}

        curve = Curve.of([chains])
        [accuracy], [net_corrections] = curve.accuracy_SK, curve.net_corrections_SK
        return {
            "num_tasks": curve.num_tasks,
            "improvement": float(accuracy[-1] - accuracy[0]),
            "accuracy": by_step(accuracy),
            "net_corrections": by_step(net_corrections),
            **{name: by_step(values_SK[0]) for name, values_SK in curve.metrics_SK.items()},
        }

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """Asks for RLlib's bundles; colocated, a learner and the env runner of its number share one."""
        request: Any = super().default_resource_request(config)
        merged = cls.get_default_config().update_from_dict(config)
        return placement.colocated(request, merged.num_env_runners) if merged.colocated else request

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        # Evaluation runs on the training engines unless it was given env runners of its own.
        return eval_config.evaluation_num_env_runners > 0

    def _timed(self, name: str) -> AbstractContextManager:
        return self.metrics.log_time((TIMERS, name), reduce="mean", window=1)

    def _log(self, under: str | None, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.metrics.log_value((under, name) if under else name, float(value), reduce="mean", window=1)

    def _make_rollout_log(self) -> RolloutLog:
        # Tune's storage may be a bucket; without Tune there is none.
        if self._storage is None:
            return RolloutLog(Path(str(self.logdir)) / "rollouts")
        return RolloutLog(Path(self._storage.trial_fs_path) / "rollouts", self._storage.storage_filesystem)

    # State: what CheckpointedAlgorithm saves, the curriculum, and what was selected and not yet trained on.

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(CURRICULUM, components, not_components):
            state[CURRICULUM] = self.replay.get_state()
        return {**state, SELECTED: list(self.rollouts.selected)}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if SELECTED in state:
            self.rollouts.restore(state[SELECTED])

    def get_checkpointable_components(self) -> list:
        return [*super().get_checkpointable_components(), (CURRICULUM, self.replay)]

    def after_restore(self) -> None:
        self._sync_weights(self._env_runners)

    def cleanup(self) -> None:
        self._gauges.close()
        for env_runners in {self._env_runners, self._evaluation_env_runners}:
            env_runners.cancel()
            env_runners.broadcast(remote_call("close"))
            env_runners.stop()
        super().cleanup()
