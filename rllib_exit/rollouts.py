"""What passes between the curriculum, the env runners and the learner.

A rollout is one episode from one task instance. A group is the G rollouts of one instance. A rollout is
a tuple of segments: a segment is one token sequence with a mask over the tokens that the policy
generated; a new one begins whenever the next prompt is not a token-for-token extension of the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from envs.base import TaskInstance, Turn

# Names a segment within a run: its group's id, the rollout's place in the group, the segment's place in the rollout.
SegmentKey = tuple[str, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One token sequence that the learner trains on.

    Attributes:
        token_ids: (T,) int32, prompt and generated tokens.
        loss_mask: (T,) bool, True where the policy generated the token. The first is never True.
        logprobs: (T,) float32, the engine's log-probability of each generated token (at the sampling
            temperature), 0 elsewhere.
        ended_mask: (T,) bool, ``loss_mask`` without the responses that lack a valid ending, which overlong
            filtering leaves out; None if there are none.
    """

    token_ids: np.ndarray
    loss_mask: np.ndarray
    logprobs: np.ndarray
    ended_mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.loss_mask) == len(self.logprobs):
            raise ValueError(
                f"a segment of {len(self.token_ids)} tokens has {len(self.loss_mask)} mask values "
                f"and {len(self.logprobs)} log-probabilities"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One episode.

    Attributes:
        segments: The token sequences, in order.
        turns: The complete history: the instance's turns and the new ones, last iterates only.
        return_: The undiscounted sum of rewards; what the advantage uses.
        quality: The final quality in [0, 1]; what learnability uses.
        valid: Whether the last response ended validly. One before it that did not was answered by the environment.
        truncated: Whether a response hit the token limit, or the episode the context's end.
        metrics: The domain's numbers for this episode.
        attempts: How often the episode was begun before it went through.
        files: What the last response made, by name, where the environment was asked to keep it.
    """

    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    return_: float
    quality: float
    valid: bool = True
    truncated: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    attempts: int = 1
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def num_response_tokens(self) -> int:
        """How many tokens the policy generated."""
        return sum(int(segment.loss_mask.sum()) for segment in self.segments)


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One prompt of an iteration: the instance to roll out G episodes from.

    Attributes:
        group_id: Unique within a run.
        instance: Where the episodes start.
        source: The task buffer's instance that this one was made from; None for a base task.
        seed: Seeds the sampling of the group; rollout g uses those from ``seed + 1000 * g``, one for each turn.
    """

    group_id: str
    instance: TaskInstance
    source: TaskInstance | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class RolloutGroup:
    """The rollouts of one request.

    Attributes:
        request: What was asked for.
        rollouts: G episodes, without those that could not be judged; empty if the prompt did not fit the context.
        policy_version: The oldest version of the weights that generated them.
        num_dropped: The number of episodes that could not be judged.
    """

    request: RolloutRequest
    rollouts: tuple[Rollout, ...]
    policy_version: int = 0
    num_dropped: int = 0

    @property
    def skipped(self) -> bool:
        """Whether nothing was rolled out, because the prompt did not fit the context."""
        return not self.rollouts and not self.num_dropped

    @property
    def trainable(self) -> bool:
        """Whether there are two rollouts at least, which can be compared."""
        return len(self.rollouts) > 1

    @property
    def returns_G(self) -> np.ndarray:
        """(G,) float64."""
        return np.array([rollout.return_ for rollout in self.rollouts])

    @property
    def qualities_G(self) -> np.ndarray:
        """(G,) float64, in [0, 1]."""
        return np.array([rollout.quality for rollout in self.rollouts])


@dataclass(frozen=True, slots=True, eq=False)
class ScoredGroup:
    """A group and what the update needs besides.

    Attributes:
        group: The rollouts.
        plain_advantages_G: (G,) float64, A_i of Eq. 3, without the diversity bonus.
        seconds: How long it took to compute them, embeddings included.
        diversity_G: (G,) float64, D_i of Eq. 6; None without the bonus, or where every advantage is 0.
    """

    group: RolloutGroup
    plain_advantages_G: np.ndarray
    seconds: float = 0.0
    diversity_G: np.ndarray | None = None

    @property
    def advantages_G(self) -> np.ndarray:
        """(G,) float64, one advantage for all tokens of a rollout: A_i, or D_i · A_i with the diversity bonus."""
        return self.plain_advantages_G if self.diversity_G is None else self.plain_advantages_G * self.diversity_G

    @property
    def has_signal(self) -> bool:
        """Whether the policy gradient of the group is not 0."""
        return bool(self.advantages_G.any())


def means(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every name over the records that have it."""
    names = sorted({name for record in records for name in record})
    return {name: float(np.mean([record[name] for record in records if name in record])) for name in names}
