"""GRPO with Exploratory Iteration as an RLlib Algorithm."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow.fs import copy_files
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER_GROUP
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics import TIMERS
from ray.tune import PlacementGroupFactory
from ray.tune.result import TIME_TOTAL_S

from rllib_exit import checkpoints
from rllib_exit.connectors.exit_replay import ExItReplay
from rllib_exit.curriculum.exit import ExIt
from rllib_exit.embeddings import Embedder
from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.env_runners.llm_env_runner import make_dispatcher, make_env, remote_call
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.grpo.stopping import StoppedError, stop_requested
from rllib_exit.learner.batch import TrainBatch, make_batches
from rllib_exit.learner.learner_group import LEARNERS, GRPOLearnerGroup, learner_errors
from rllib_exit.metrics import Gauges
from rllib_exit.objective.advantages import group_advantages
from rllib_exit.objective.diversity import diversity_coefficients, edit_diversity_coefficients
from rllib_exit.rollout_log import RolloutLog
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, means
from rllib_exit.self_improvement.chain import (
    Chain,
    accuracy_by_step,
    chain_seed,
    metrics_by_step,
    net_corrections_by_step,
)
from rllib_exit.versions import versions
from rllib_exit.weight_sync.transfers import NCCLTransfer, ObjectStoreTransfer, WeightTransfer

CURRICULUM = "curriculum"
SELECTED = "selected_requests"


class RolloutError(RuntimeError):
    """Rollouts failed and cannot be had by running them again."""


class GRPO(Algorithm):
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
        self.replay = ExItReplay(ExIt(self.config.curriculum_config(), list(self._env.tasks), rng))
        self.policy_version = 0
        self.embedder = Embedder(self.config.embedding_model) if self._embeds and self.config.embedding_model else None
        self._ahead: deque[list[RolloutRequest]] = deque()  # selected and not yet trained on, by iteration
        self._rolling_out: dict[str, Future[RolloutGroup]] = {}  # by group_id
        self._rolled_out_at: float | None = None
        self._advantages: dict[str, np.ndarray] = {}  # of this iteration's groups, by group_id
        self._num_lost_before = 0
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
            self._env_runners: self._make_weight_transfer(),
        }

    def step(self) -> dict[str, Any]:
        """As RLlib's; an iteration that ends without its rollouts leaves a checkpoint with what it had selected."""
        try:
            result = super().step()
        except (RolloutError, StoppedError) as error:
            checkpoint: Any = self.save()
            raise type(error)(f"{error}\n\nsaved: {checkpoint.checkpoint.path}") from error
        self._gauges.set(result)
        return {**result, "versions": versions()}

    def training_step(self) -> None:
        """One iteration: select, roll out, advantages, update, sync, curriculum update."""
        with self._timed("select"):
            requests = self._select()
        with self._timed("rollout"):
            groups = self._roll_out(requests)
        rolled_out = [group for group in groups if not group.skipped]
        advantages = [self._advantages[group.request.group_id] for group in rolled_out]
        batches = make_batches(
            rolled_out,
            advantages,
            num_learners=max(1, self.config.num_learners or 0),
            minibatch_size=self.config.minibatch_size,
            loss_aggregation=self.config.loss_aggregation,
            max_response_tokens=self.config.max_response_tokens,
            overlong_filtering=self.config.overlong_filtering,
            skip_zero_advantage=self.config.kl_coeff == 0,
        )
        with self._timed("update"):
            if self.config.colocated:
                self._env_runners.broadcast(remote_call("sleep"))
            self._update(batches)
        with self._timed("sync"):
            self._sync_weights(self._env_runners)
        self.replay(batch=groups, metrics=self.metrics)
        self._ahead.popleft()
        self._log_rollouts(groups)
        if self._rollout_log is not None:
            self._rollout_log.write(self.iteration + 1, rolled_out, advantages)

    def _select(self) -> list[RolloutRequest]:
        """This iteration's requests.

        Selects as many iterations ahead as the policy may lag, and has what is selected rolled out: the rollouts of
        an iteration begin with weights that are at most so many updates old when they are trained on.
        """
        while len(self._ahead) <= self.config.max_policy_lag:
            self._ahead.append(self.replay.select(self.config.prompts_per_batch))
        for request in itertools.chain.from_iterable(self._ahead):
            if request.group_id not in self._rolling_out:
                self._rolling_out[request.group_id] = self._env_runners.submit(
                    remote_call("roll_out", request), size=self.config.rollouts_per_prompt
                )
        return self._ahead[0]

    def _roll_out(self, requests: Sequence[RolloutRequest]) -> list[RolloutGroup]:
        """Waits for the groups of all the requests: what ends first is not preferred.

        While some are under way, the solutions of those that are in are embedded.
        """
        self._advantages.clear()
        self._embed_s = 0.0
        # If they were begun before, rollouts have been under way since those of the last iteration were in.
        begun = self._rolled_out_at if self.config.max_policy_lag else None
        begun = begun or time.perf_counter()
        try:
            groups = self._results([self._rolling_out[request.group_id] for request in requests], self._score)
            if all(group.skipped for group in groups):
                raise RolloutError(
                    f"no prompt of this iteration fits the context: max_model_len is {self.config.max_model_len} and "
                    f"max_response_tokens {self.config.max_response_tokens}; raise the one or lower the other"
                )
        except (RolloutError, StoppedError):
            self._cancel_rollouts()
            raise
        for request in requests:
            del self._rolling_out[request.group_id]
        self._rolled_out_at = time.perf_counter()
        self._rollout_s = self._rolled_out_at - begun
        self._log((TIMERS, "embed"), self._embed_s)
        return groups

    def _results(
        self, futures: Sequence[Future[Any]], as_each_is_in: Callable[[Any], object] = lambda result: None
    ) -> list[Any]:
        """What the env runners answer, in order.

        Args:
            futures: The answers.
            as_each_is_in: Called with each answer when it is in, while others may be under way.

        Raises:
            RolloutError: At the first failure.
            StoppedError: If the run is asked to stop meanwhile.
        """
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            for error in filter(None, (future.exception() for future in done)):
                # What was raised in an env runner has Ray's error, which tells where, as its cause.
                details = f"\n\n{error.__cause__}" if error.__cause__ else ""
                raise RolloutError(f"{error}{details}") from error
            for future in done:
                as_each_is_in(future.result())
            if waiting and stop_requested():
                raise StoppedError("training was asked to stop")
            for transfer in self._weight_transfers.values():
                transfer.serve()
        return [future.result() for future in futures]

    def _cancel_rollouts(self) -> None:
        self._env_runners.cancel()
        self._rolling_out.clear()

    @property
    def _embeds(self) -> bool:
        return self.config.diversity_bonus and self.config.diversity_metric == "embedding"

    def _score(self, group: RolloutGroup) -> None:
        """The group's (G,) advantages: Eq. 3, times Eq. 6 with the diversity bonus."""
        if group.skipped:
            return
        start = time.perf_counter()
        advantages_G = group_advantages(group.returns_G, normalize_std=self.config.normalize_std)
        # Where every advantage is 0 there is nothing to scale.
        if self.config.diversity_bonus and advantages_G.any():
            solutions = [self._solution(group, rollout) for rollout in group.rollouts]
            if self.embedder is not None:
                advantages_G = advantages_G * diversity_coefficients(self.embedder.embed(solutions))
            else:
                advantages_G = advantages_G * edit_diversity_coefficients(solutions)
        self._advantages[group.request.group_id] = advantages_G
        self._embed_s += time.perf_counter() - start

    def _solution(self, group: RolloutGroup, rollout: Rollout) -> str:
        """What the policy wrote in this rollout, without the history it started from."""
        new_turns = rollout.turns[group.request.instance.starting_turn :]
        return "\n".join(self._env.solution(turn.response) for turn in new_turns)

    def _update(self, batches: Sequence[TrainBatch]) -> None:
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
        self._log(("sync", "bytes"), transferred.num_bytes)
        self._log(("sync", "transfer_s"), transferred.transfer_s)
        self._log(("sync", "load_s"), transferred.load_s)

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
        task_ids = list(make_env(config.env, config.env_config).tasks)
        seeds = [chain_seed(0, i, config.self_improvement_steps) for i in range(len(task_ids))]
        calls = [remote_call("self_improve", *work) for work in zip(task_ids, seeds, strict=True)]
        results: list[Chain | None] = self._results([env_runners.submit(call) for call in calls])
        chains = [chain for chain in results if chain is not None]
        if not chains:
            raise RolloutError("no task of the evaluation fits the context")

        def by_step(values: np.ndarray) -> dict[str, float]:
            return {f"step_{k}": float(value) for k, value in enumerate(values)}

        accuracy = accuracy_by_step(chains)
        return {
            "num_tasks": len(chains),
            "improvement": float(accuracy[-1] - accuracy[0]),
            "accuracy": by_step(accuracy),
            "net_corrections": by_step(net_corrections_by_step(chains)),
            **{name: by_step(values) for name, values in metrics_by_step(chains).items()},
        }

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """RLlib's bundles; colocated, a learner and the env runner of its number share one.

        RLlib places each env runner in the bundle of its number. The room that it leaves there is for one learner,
        and no other bundle has any.
        """
        request: Any = super().default_resource_request(config)
        merged = cls.get_default_config().update_from_dict(config)
        if not merged.colocated:
            return request
        main, *bundles = request.bundles
        pairs = zip(bundles[: merged.num_env_runners], bundles[merged.num_env_runners :], strict=True)
        shared = [{key: a.get(key, 0) + b.get(key, 0) for key in a | b} for a, b in pairs]
        return PlacementGroupFactory([main, *shared], strategy=request.strategy)

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        # Evaluation runs on the training engines unless it was given env runners of its own.
        return eval_config.evaluation_num_env_runners > 0

    def _make_weight_transfer(self) -> WeightTransfer:
        if self.config.weight_transfer == "nccl":
            timeout_s = self.config.generation_timeout_s
            return NCCLTransfer(self.learner_group, engine_size=self.config.engine_size, timeout_s=timeout_s)
        return ObjectStoreTransfer(self.learner_group)

    def _timed(self, name: str) -> AbstractContextManager:
        return self.metrics.log_time((TIMERS, name), reduce="mean", window=1)

    def _log(self, key: Any, value: float) -> None:
        self.metrics.log_value(key, float(value), reduce="mean", window=1)

    def _make_rollout_log(self) -> RolloutLog:
        # Tune's storage may be a bucket; without Tune there is none.
        if self._storage is None:
            return RolloutLog(Path(str(self.logdir)) / "rollouts")
        return RolloutLog(Path(self._storage.trial_fs_path) / "rollouts", self._storage.storage_filesystem)

    def _log_rollouts(self, groups: Sequence[RolloutGroup]) -> None:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        tokens = [sum(int(segment.loss_mask.sum()) for segment in rollout.segments) for rollout in rollouts]
        num_lost = self._env_runners.num_lost
        values = {
            "return_mean": np.mean([rollout.return_ for rollout in rollouts]),
            "quality_mean": np.mean([rollout.quality for rollout in rollouts]),
            "response_tokens_mean": np.mean(tokens),
            "truncated_fraction": np.mean([rollout.truncated for rollout in rollouts]),
            "invalid_fraction": np.mean([not rollout.valid for rollout in rollouts]),
            "skipped_prompts": sum(group.skipped for group in groups),
            "tokens_per_s": sum(tokens) / self._rollout_s,
            "retried_episodes": sum(rollout.attempts - 1 for rollout in rollouts),
            "dropped_episodes": sum(self.config.rollouts_per_prompt - len(g.rollouts) for g in groups if not g.skipped),
            "lost_env_runners": num_lost - self._num_lost_before,
        }
        self._num_lost_before = num_lost
        values.update(means([rollout.metrics for rollout in rollouts]))
        for name, value in values.items():
            self._log(("rollouts", name), value)
        # How hard the selected tasks are, in the domain's own terms (paper section 5.4).
        metrics = [self._env.tasks[group.request.instance.task_id].data.get("metrics", {}) for group in groups]
        for name, value in means(metrics).items():
            self._log(("curriculum", f"{name}_mean"), value)
        self._log("policy_version", self.policy_version)
        # The weights of this iteration were made after its rollouts: on-policy is a lag of 0.
        self._log("policy_lag_max", self.policy_version - 1 - min(group.policy_version for group in groups))

    # State.

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        # The learners' state is too large for a dict: save_to_path writes it, a part at a time.
        without = [*force_list(not_components), COMPONENT_LEARNER_GROUP]
        state = super().get_state(components, not_components=without, **kwargs)
        if self._check_component(CURRICULUM, components, not_components):
            state[CURRICULUM] = self.replay.get_state()
        state[SELECTED] = list(self._ahead)
        state[TIME_TOTAL_S] = self._time_total
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if SELECTED in state:
            self._ahead = deque(state[SELECTED])
            # Tune restores it for what it resumes itself alone.
            self._time_total = state[TIME_TOTAL_S]

    def get_checkpointable_components(self) -> list:
        components = super().get_checkpointable_components()
        return [*(c for c in components if c[0] != COMPONENT_LEARNER_GROUP), (CURRICULUM, self.replay)]

    def save_to_path(self, path: Any = None, *, filesystem: Any = None, **kwargs: Any) -> str:
        """Saves a checkpoint, atomically and with a manifest, into a directory that is new or empty.

        Args:
            path: The directory; a URI, or a path in ``filesystem``, is written to after all is saved. By default
                a temporary directory.
            filesystem: A ``pyarrow.fs.FileSystem``.
            **kwargs: RLlib's.
        """
        path = tempfile.mkdtemp() if path is None else path
        if filesystem is not None or "://" in str(path):
            with tempfile.TemporaryDirectory() as local:
                saved = self.save_to_path(Path(local) / "checkpoint", **kwargs)
                copy_files(saved, str(path), destination_filesystem=filesystem)
            return str(path)
        with checkpoints.atomic_checkpoint(path) as staging:
            super().save_to_path(staging, **kwargs)
            self.learner_group.save_to_path(staging / LEARNERS)
        return str(path)

    def restore_from_path(self, path: Any, *, filesystem: Any = None, **kwargs: Any) -> None:
        """Restores a checkpoint, whichever back end and number of learners it was written with.

        Raises:
            CheckpointError: If it is incomplete or damaged.
        """
        if "component" in kwargs:
            return super().restore_from_path(path, filesystem=filesystem, **kwargs)
        if filesystem is not None or "://" in str(path):
            with tempfile.TemporaryDirectory() as local:
                copy_files(str(path), local, source_filesystem=filesystem)
                return self.restore_from_path(local, **kwargs)
        checkpoints.verify(path)
        self._cancel_rollouts()
        super().restore_from_path(path, **kwargs)
        self.learner_group.restore_from_path(Path(path) / LEARNERS)
        self._sync_weights(self._env_runners)

    def cleanup(self) -> None:
        self._gauges.close()
        for env_runners in {self._env_runners, self._evaluation_env_runners}:
            env_runners.cancel()
            env_runners.broadcast(remote_call("close"))
            env_runners.stop()
        super().cleanup()
