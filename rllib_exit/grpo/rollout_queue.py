"""The rollouts that are under way: selected, begun, and not yet trained on."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from rllib_exit.env_runners.dispatcher import Dispatcher
from rllib_exit.env_runners.llm_env_runner import remote_call
from rllib_exit.grpo.waiting import RolloutError, as_completed
from rllib_exit.objective.scoring import num_to_refill, to_train_on
from rllib_exit.rollouts import RolloutGroup, RolloutRequest, ScoredGroup
from rllib_exit.settings import TrainingSettings

# Selects so many requests.
Select = Callable[[int], Sequence[RolloutRequest]]
# If most groups of so many iterations in a row cannot be judged, something other than the policy is broken.
MAX_UNJUDGED = 3


@dataclass(frozen=True, slots=True)
class RolledOut:
    """The rollouts of one iteration.

    Attributes:
        groups: One for each request, in the order of the requests.
        batch: Those of them to train on.
        seconds: How long these rollouts were under way, without the time that earlier ones took.
        num_lost: How many env runners were lost since the last iteration's rollouts were in.
    """

    groups: tuple[ScoredGroup, ...]
    batch: Sequence[ScoredGroup]
    seconds: float
    num_lost: int

    @property
    def trainable(self) -> list[ScoredGroup]:
        """The groups that have rollouts to be compared.

        The prompts of the others do not fit the context, or their episodes could not be judged.
        """
        return [scored for scored in self.groups if scored.group.trainable]


class RolloutQueue:
    """Selects ahead and keeps the env runners supplied.

    As many iterations are selected ahead as the policy may lag. So the rollouts of an iteration begin with weights
    that are at most that many updates old when they are trained on, and what is trained on is what was selected, in
    that order, however long it took.

    Args:
        env_runners: They roll out the requests.
        settings: ``prompts_per_batch``, ``rollouts_per_prompt`` and ``refill_zero_variance``.
        max_policy_lag: How many iterations are selected ahead.
        meanwhile: Called again and again while rollouts are waited for.
        num_scorers: How many groups are scored at once.
    """

    def __init__(
        self,
        env_runners: Dispatcher,
        settings: TrainingSettings,
        *,
        max_policy_lag: int,
        meanwhile: Callable[[], object],
        num_scorers: int = 1,
    ) -> None:
        self.selected: deque[Sequence[RolloutRequest]] = deque()
        """The requests that were selected and not yet trained on, one entry for each iteration; to be saved."""
        self._env_runners = env_runners
        self._settings = settings
        self._max_policy_lag = max_policy_lag
        self._meanwhile = meanwhile
        self._scorers = ThreadPoolExecutor(num_scorers, thread_name_prefix="score")
        self._under_way: dict[str, Future[RolloutGroup]] = {}  # by group_id
        self._last_in: float | None = None
        self._num_lost_before = 0
        self._num_unjudged = 0

    def select(self, select: Select) -> Sequence[RolloutRequest]:
        """Selects what is missing, begins the rollouts of what is new, and returns this iteration's requests."""
        while len(self.selected) <= self._max_policy_lag:
            self.selected.append(select(self._settings.prompts_per_batch))
        self._begin(itertools.chain.from_iterable(self.selected))
        return self.selected[0]

    def _begin(self, requests: Iterable[RolloutRequest], *, first: bool = False) -> None:
        for request in requests:
            if request.group_id not in self._under_way:
                call = remote_call("roll_out", request)
                future = self._env_runners.submit(call, size=self._settings.rollouts_per_prompt, first=first)
                self._under_way[request.group_id] = future

    def collect(
        self, requests: Sequence[RolloutRequest], score: Callable[[RolloutGroup], ScoredGroup], select: Select
    ) -> RolledOut:
        """Waits for all the requests' groups and scores each as it comes in, while others are under way.

        All are waited for: to train on those that end first would prefer short responses. If some are to be replaced,
        as :func:`num_to_refill` says, their replacements are selected together, and join this iteration's requests.
        Their rollouts come before those that were selected ahead.

        Raises:
            RolloutError: At the first failure; if no prompt fits the context; or if most groups of several iterations
                in a row could not be judged. All rollouts are then cancelled, and begin anew with the next iteration.
            StoppedError: If the run is asked to stop. The same holds.
        """
        # If they were begun earlier, they have been under way since those of the last iteration were in.
        begun = (self._last_in if self._max_policy_lag else None) or time.perf_counter()
        scored: list[ScoredGroup] = []
        new, refill = requests, self._settings.refill_zero_variance
        try:
            while new:
                futures = [self._under_way[request.group_id] for request in new]
                scoring = [self._scorers.submit(score, group) for group in as_completed(futures, self._meanwhile)]
                scored += [future.result() for future in scoring]
                number = num_to_refill(scored, self._settings.prompts_per_batch, refill)
                new = select(number) if number else ()
                requests = self.selected[0] = [*requests, *new]
                self._begin(new, first=True)
            self._check([of.group for of in scored])
        except Exception:
            self.cancel()
            raise
        for request in requests:
            del self._under_way[request.group_id]
        by_id = {of.group.request.group_id: of for of in scored}
        self._last_in = time.perf_counter()
        num_lost = self._env_runners.num_lost - self._num_lost_before
        self._num_lost_before += num_lost
        groups = tuple(by_id[request.group_id] for request in requests)
        return RolledOut(groups, to_train_on(groups, refill), self._last_in - begun, num_lost)

    def _check(self, groups: Sequence[RolloutGroup]) -> None:
        if all(group.skipped for group in groups):
            raise RolloutError(
                "no prompt of this iteration fits the context: raise max_model_len, or lower max_response_tokens"
            )
        unjudged = sum(not group.trainable and not group.skipped for group in groups)
        self._num_unjudged = self._num_unjudged + 1 if 2 * unjudged > len(groups) else 0
        if self._num_unjudged == MAX_UNJUDGED:
            raise RolloutError(
                f"most groups of {MAX_UNJUDGED} iterations in a row could not be judged, {unjudged} of {len(groups)} "
                "in the last one: the environment's grader or sandbox is broken; the log of the env runners says why "
                "each episode was left out"
            )

    def trained(self) -> None:
        """Forgets the oldest requests: they were trained on."""
        self.selected.popleft()

    def cancel(self) -> None:
        """Cancels all rollouts. What was selected stays selected."""
        self._env_runners.cancel()
        self._under_way.clear()

    def restore(self, selected: Sequence[Sequence[RolloutRequest]]) -> None:
        """Cancels all rollouts, and takes what another queue had selected."""
        self.cancel()
        self.selected = deque(selected)
