"""GRPO with Exploratory Iteration as an RLlib Algorithm."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import TIMERS, WEIGHTS_SEQ_NO

from rllib_exit import checkpoints
from rllib_exit.connectors.exit_replay import ExItReplay
from rllib_exit.curriculum.exit import ExIt
from rllib_exit.embeddings import Embedder
from rllib_exit.env_runners.episodes import RolloutFailure
from rllib_exit.env_runners.llm_env_runner import make_env
from rllib_exit.evaluation.self_improvement import accuracy_by_step, metrics_by_step, net_corrections_by_step
from rllib_exit.grpo.batch import TrainBatch, make_batches
from rllib_exit.grpo.grpo_config import GRPOConfig
from rllib_exit.objective.advantages import group_advantages
from rllib_exit.objective.diversity import diversity_coefficients, edit_diversity_coefficients
from rllib_exit.rollouts import Rollout, RolloutGroup, RolloutRequest, means

CURRICULUM = "curriculum"
# Rounds without any result from any env runner before an iteration is given up.
MAX_LOST_ROUNDS = 3


class RolloutError(RuntimeError):
    """Rollouts failed and cannot be had by running them again."""


class GRPO(Algorithm):
    """Group-Relative Policy Optimization (paper section 2.2) on a curriculum of task instances (section 4)."""

    config: GRPOConfig
    evaluation_config: GRPOConfig
    env_runner_group: EnvRunnerGroup
    learner_group: LearnerGroup

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        return GRPOConfig()

    def setup(self, config: Any) -> None:
        # The environment first: its errors cost nothing before actors and models are made.
        self._tasks = make_env(self.config.env, self.config.env_config).tasks
        rng = np.random.default_rng(self.config.seed)
        self.replay = ExItReplay(ExIt(self.config.curriculum_config(), list(self._tasks), rng))
        self.policy_version = 0
        self.embedder = Embedder(self.config.embedding_model) if self._embeds and self.config.embedding_model else None
        super().setup(config)

    def step(self) -> dict[str, Any]:
        """As RLlib's; an iteration whose rollouts cannot be had first saves the state that it began with."""
        before, version = self.replay.get_state(), self.policy_version
        try:
            return super().step()
        except RolloutError as error:
            # Before the update the weights are the last iteration's; so must the curriculum be.
            if self.policy_version == version:
                self.replay.set_state(before)
            checkpoint: Any = self.save()
            raise RolloutError(f"{error}\n\nsaved: {checkpoint.checkpoint.path}") from error

    def training_step(self) -> None:
        """One iteration: select, roll out, advantages, update, sync, curriculum update."""
        with self._timed("select"):
            requests = self.replay.select(self.config.prompts_per_batch)
        with self._timed("rollout"):
            groups = self._roll_out(requests)
        rolled_out = [group for group in groups if not group.skipped]
        with self._timed("embed"):
            advantages = self._advantages(rolled_out)
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
            self._update(batches)
        with self._timed("sync"):
            self._sync_weights(self.env_runner_group)
        self.replay(batch=groups, metrics=self.metrics)
        self._log_rollouts(groups)

    def _roll_out(self, requests: Sequence[RolloutRequest]) -> list[RolloutGroup]:
        results = self._distribute(self.env_runner_group, "roll_out", "requests", requests)
        for result in results:
            if isinstance(result, RolloutFailure):
                raise RolloutError(f"{result.message}\n\n{result.details}")
        if all(group.skipped for group in results):
            raise RolloutError(
                f"no prompt of this iteration fits the context: max_model_len is {self.config.max_model_len} and "
                f"max_response_tokens {self.config.max_response_tokens}; raise the one or lower the other"
            )
        return results

    def _distribute(
        self, group: EnvRunnerGroup, method: str, argument: str, items: Sequence[Any], **kwargs: Any
    ) -> list[Any]:
        """Calls a method of the env runners with a share of the items each; runs the shares of lost runners again.

        Returns:
            One result per item, in the items' order.
        """
        results: dict[int, Any] = {}
        lost_rounds = 0
        while len(results) < len(items):
            runners = self._wait_for_env_runners(group)
            waiting = [i for i in range(len(items)) if i not in results]
            share_of = {runner: waiting[n :: len(runners)] for n, runner in enumerate(runners)}
            answers: Any = group._worker_manager.foreach_actor(
                [method] * len(runners),
                kwargs=[{argument: [items[i] for i in share], **kwargs} for share in share_of.values()],
                remote_actor_ids=runners,
                # The lists above must not be filtered; a runner lost since answers with an error.
                healthy_only=False,
            )
            done = {answer.actor_id: answer.get() for answer in answers if answer.ok}
            for runner, values in done.items():
                results.update(zip(share_of[runner], values, strict=True))
            lost_rounds = 0 if done else lost_rounds + 1
            if lost_rounds == MAX_LOST_ROUNDS:
                raise RolloutError(f"all env runners were lost {lost_rounds} times in a row; see their logs")
        return [results[i] for i in range(len(items))]

    def _wait_for_env_runners(self, group: EnvRunnerGroup) -> list[int]:
        """The healthy env runners, those included that Ray has restarted, with the current weights."""
        timeout = self.config.env_runner_restore_timeout_s or math.inf
        deadline = time.monotonic() + timeout
        while True:
            self.restore_env_runners(group)
            if runners := group.healthy_env_runner_ids():
                return runners
            if time.monotonic() > deadline:
                raise RolloutError(f"no env runner came back within env_runner_restore_timeout_s ({timeout} s)")
            time.sleep(0.5)

    @property
    def _embeds(self) -> bool:
        return self.config.diversity_bonus and self.config.diversity_metric == "embedding"

    def _advantages(self, groups: Sequence[RolloutGroup]) -> list[np.ndarray]:
        """(G,) per group: Eq. 3, times Eq. 6 with the diversity bonus."""
        normalize = self.config.normalize_std
        advantages = [group_advantages(group.returns_G, normalize_std=normalize) for group in groups]
        if self.config.diversity_bonus:
            # Where every advantage is 0 there is nothing to scale.
            scaled = [i for i, advantages_G in enumerate(advantages) if advantages_G.any()]
            solutions = [[_solution(groups[i], rollout) for rollout in groups[i].rollouts] for i in scaled]
            if self.embedder is not None:
                embeddings = iter(self.embedder.embed([text for texts in solutions for text in texts]))
                coefficients = [diversity_coefficients(np.stack([next(embeddings) for _ in t])) for t in solutions]
            else:
                coefficients = [edit_diversity_coefficients(texts) for texts in solutions]
            for i, coefficients_G in zip(scaled, coefficients, strict=True):
                advantages[i] = advantages[i] * coefficients_G
        return advantages

    def _update(self, batches: Sequence[TrainBatch]) -> None:
        if self.learner_group.is_local:
            training_data = TrainingData(batch=batches[0])  # type: ignore[arg-type]
        else:
            training_data = TrainingData(batches=list(batches))  # type: ignore[arg-type]
        results = self.learner_group.update(training_data=training_data)
        self.metrics.aggregate(results, key="learner")

    def _sync_weights(self, group: EnvRunnerGroup) -> None:
        """Gives the learner's weights to the env runners and waits until they have them.

        RLlib's own sync does not wait, and drops weights while older ones are under way.
        """
        state = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        self.policy_version = state[WEIGHTS_SEQ_NO]
        group.foreach_env_runner("set_state", kwargs={"state": ray.put(state)}, local_env_runner=False)

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """K-step self-improvement on every task of ``evaluation_config``'s environment.

        Returns:
            ``num_tasks``, and ``accuracy``, ``net_corrections`` and the domain's metrics with one entry
            per step, ``step_0`` to ``step_K``.
        """
        group = self.eval_env_runner_group or self.env_runner_group
        self._sync_weights(group)
        config = self.evaluation_config
        task_ids = list(make_env(config.env, config.env_config).tasks)
        results = self._distribute(group, "self_improve", "task_ids", task_ids, config=ray.put(config))
        chains = [chain for chain in results if chain is not None]
        if not chains:
            raise RolloutError("no task of the evaluation fits the context")

        def by_step(values: np.ndarray) -> dict[str, float]:
            return {f"step_{k}": float(value) for k, value in enumerate(values)}

        return {
            "num_tasks": len(chains),
            "accuracy": by_step(accuracy_by_step(chains)),
            "net_corrections": by_step(net_corrections_by_step(chains)),
            **{name: by_step(values) for name, values in metrics_by_step(chains).items()},
        }

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        # Evaluation runs on the training engines unless it was given env runners of its own.
        return eval_config.evaluation_num_env_runners > 0

    def _timed(self, name: str) -> AbstractContextManager:
        return self.metrics.log_time((TIMERS, name), reduce="mean", window=1)

    def _log(self, key: Any, value: float) -> None:
        self.metrics.log_value(key, float(value), reduce="mean", window=1)

    def _log_rollouts(self, groups: Sequence[RolloutGroup]) -> None:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        tokens = [sum(int(segment.loss_mask.sum()) for segment in rollout.segments) for rollout in rollouts]
        seconds = self.metrics.peek((TIMERS, "rollout"))
        values = {
            "return_mean": np.mean([rollout.return_ for rollout in rollouts]),
            "quality_mean": np.mean([rollout.quality for rollout in rollouts]),
            "response_tokens_mean": np.mean(tokens),
            "truncated_fraction": np.mean([rollout.truncated for rollout in rollouts]),
            "invalid_fraction": np.mean([not rollout.valid for rollout in rollouts]),
            "skipped_prompts": sum(group.skipped for group in groups),
            "tokens_per_s": sum(tokens) / max(seconds, 1e-9),
        }
        values.update(means([rollout.metrics for rollout in rollouts]))
        for name, value in values.items():
            self._log(("rollouts", name), value)
        # How hard the selected tasks are, in the domain's own terms (paper section 5.4).
        metrics = [self._tasks[group.request.instance.task_id].data.get("metrics", {}) for group in groups]
        for name, value in means(metrics).items():
            self._log(("curriculum", f"{name}_mean"), value)
        self._log("policy_version", self.policy_version)
        # The weights of this iteration were made after its rollouts: on-policy is a lag of 0.
        self._log("policy_lag_max", self.policy_version - 1 - min(group.policy_version for group in groups))

    # State.

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(CURRICULUM, components, not_components):
            state[CURRICULUM] = self.replay.get_state()
        return state

    def get_checkpointable_components(self) -> list:
        return [*super().get_checkpointable_components(), (CURRICULUM, self.replay)]

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Saves a checkpoint, atomically and with a manifest, into a directory that is new or empty."""
        if path is None or "://" in str(path) or kwargs.get("filesystem") is not None:
            return super().save_to_path(path, **kwargs)
        with checkpoints.atomic_checkpoint(path) as staging:
            super().save_to_path(staging, **kwargs)
        return str(path)

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restores a checkpoint.

        Raises:
            CheckpointError: If it is incomplete or damaged.
        """
        if "component" not in kwargs and Path(path).is_dir():
            checkpoints.verify(path)
        super().restore_from_path(path, *args, **kwargs)
        self._sync_weights(self.env_runner_group)


def _solution(group: RolloutGroup, rollout: Rollout) -> str:
    """What the policy wrote in this rollout, without the history it started from."""
    return "\n".join(turn.response for turn in rollout.turns[group.request.instance.starting_turn :])
