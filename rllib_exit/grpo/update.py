"""An iteration's update of the policy: when its groups are in or, streamed, while others are still rolled out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ray.rllib.core.learner.training_data import TrainingData

from rllib_exit.learner.batch import TrainBatch, make_batches
from rllib_exit.learner.learner_group import GRPOLearnerGroup, learner_errors
from rllib_exit.objective.loss import token_budget
from rllib_exit.objective.scoring import to_train_on
from rllib_exit.rollouts import ScoredGroup
from rllib_exit.settings import TrainingSettings

if TYPE_CHECKING:
    from rllib_exit.grpo.config import GRPOConfig


class Update:
    """Trains the learners on an iteration's groups (Eqs. 4 and 5).

    With ``streamed_update``, a part of the batch goes to the learners as soon as they have nothing to do and there are
    tokens enough for a full pass of each. The loss is a sum over rows, and the policy stays as it is until the last
    part is in: the step is that of the whole batch, but for the order in which floats are added up. So this is no
    asynchronous training. What remains to be done when the last rollout ends is the last part.

    Args:
        learners: The learners.
        config: The run's.
        max_turns: The most turns of an episode; None without a limit.
    """

    def __init__(self, learners: GRPOLearnerGroup, config: GRPOConfig, max_turns: int | None) -> None:
        self._learners = learners
        self._settings = TrainingSettings.of(config)
        self._max_rollout_tokens = token_budget(max_turns, config.max_response_tokens, config.max_model_len)
        self._num_learners = max(1, config.num_learners)
        self._scored: SimpleQueue[ScoredGroup] = SimpleQueue()
        self._waiting: list[ScoredGroup] = []
        self._sent: list[ScoredGroup] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="streamed-update")
        self._under_way: Future[None] | None = None

    def add(self, scored: ScoredGroup) -> None:
        """Takes a group of this iteration. It may be called from any thread."""
        if self._settings.streamed_update:
            self._scored.put(scored)

    def serve(self) -> None:
        """Has the learners begin with a part, if there is enough for one; to be called again and again.

        Raises:
            LearnerError: If a learner failed.
        """
        new = [self._scored.get() for _ in range(self._scored.qsize())]
        self._waiting += to_train_on(new, self._settings.refill_zero_variance)
        if self._under_way is not None and not self._under_way.done():
            return
        if sum(map(_num_tokens, self._waiting)) >= self._num_learners * self._settings.max_tokens_per_micro_batch:
            self._wait()
            part, self._waiting = self._waiting, []
            self._sent += part
            self._under_way = self._thread.submit(self._learners.accumulate, self._batches(part))

    def __call__(self, groups: Sequence[ScoredGroup]) -> Any:
        """Makes the step, and returns the learners' metrics.

        Args:
            groups: The iteration's batch.

        Raises:
            LearnerError: If a learner failed.
        """
        self._wait()
        sent = set(map(id, self._sent))
        rest = [of for of in groups if id(of) not in sent]
        if len(groups) - len(rest) < len(sent):  # some are of an iteration that failed, and begins anew
            with learner_errors():
                self._learners.forget()
            rest = list(groups)
        batches: Any = self._batches(rest)
        self._scored, self._waiting, self._sent = SimpleQueue(), [], []
        data = TrainingData(batch=batches[0]) if self._learners.is_local else TrainingData(batches=batches)
        with learner_errors():
            return self._learners.update(training_data=data)

    def _wait(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            with learner_errors():
                under_way.result()

    def _batches(self, groups: Sequence[ScoredGroup]) -> list[TrainBatch]:
        return make_batches(
            groups,
            self._settings,
            max_rollout_tokens=self._max_rollout_tokens,
            num_learners=self._num_learners,
            part=self._settings.streamed_update,
        )


def _num_tokens(scored: ScoredGroup) -> int:
    """How many tokens a group has at least: a prompt once for all of its rollouts, and the responses."""
    segments = [segment for rollout in scored.group.rollouts for segment in rollout.segments]
    generated = [int(segment.loss_mask.sum()) for segment in segments]
    return sum(generated) + max((len(s.token_ids) - n for s, n in zip(segments, generated, strict=True)), default=0)
