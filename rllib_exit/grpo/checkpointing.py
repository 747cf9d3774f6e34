"""Checkpoints of an algorithm: atomic, verified, and independent of how the learners are sharded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow.fs import copy_files
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER_GROUP
from ray.rllib.utils import force_list
from ray.train import Checkpoint
from ray.tune.result import TIME_TOTAL_S

from rllib_exit import checkpoints
from rllib_exit.connectors.exit_replay import ExItReplay
from rllib_exit.grpo.rollout_queue import RolloutQueue
from rllib_exit.learner.learner_group import LEARNERS, GRPOLearnerGroup

CURRICULUM = "curriculum"
SELECTED = "selected_requests"
WARM_START = "warm_start"


class CheckpointedAlgorithm(Algorithm):
    """RLlib's Algorithm with checkpoints that a crash cannot leave half written.

    A checkpoint also holds the curriculum, what was selected and not yet trained on, and how the warm start went. The
    learners write and read their part themselves, tensor by tensor: it is too large for one dict.
    """

    learner_group: GRPOLearnerGroup
    replay: ExItReplay
    rollouts: RolloutQueue
    warm_started: dict[str, Any] | None = None  # what the warm start reports

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        without = [*force_list(not_components), COMPONENT_LEARNER_GROUP]
        state = super().get_state(components, not_components=without, **kwargs)
        if self._check_component(CURRICULUM, components, not_components):
            state[CURRICULUM] = self.replay.get_state()
        return {
            **state,
            SELECTED: list(self.rollouts.selected),
            TIME_TOTAL_S: self._time_total,
            WARM_START: self.warm_started,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if SELECTED in state:
            self.rollouts.restore(state[SELECTED])
            # Tune restores it only for trials that Tune itself resumes.
            self._time_total = state[TIME_TOTAL_S]
            self.warm_started = state.get(WARM_START)

    def get_checkpointable_components(self) -> list:
        parts = [part for part in super().get_checkpointable_components() if part[0] != COMPONENT_LEARNER_GROUP]
        return [*parts, (CURRICULUM, self.replay)]

    def save_to_path(self, path: Any = None, *, filesystem: Any = None, **kwargs: Any) -> str:
        """Saves a checkpoint, atomically and with a manifest, into a directory that is new or empty.

        Args:
            path: The directory. If it is a URI, or a path in ``filesystem``, the checkpoint is copied there after it
                is complete. By default a temporary directory is made.
            filesystem: A ``pyarrow.fs.FileSystem``.
            **kwargs: RLlib's own arguments.
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
        """Restores a checkpoint, whichever back end and number of learners wrote it.

        Raises:
            CheckpointError: If it is incomplete, damaged, or was not written by this program.
        """
        with _verified(path, filesystem) as local:
            super().restore_from_path(local, **kwargs)
            if "component" not in kwargs:
                self.learner_group.restore_from_path(local / LEARNERS)
                self.after_restore()

    @classmethod
    def from_checkpoint(cls, path: Any, filesystem: Any = None, **kwargs: Any) -> Any:
        """Makes the algorithm that a checkpoint is of, as RLlib does, but reads nothing before it is verified.

        Raises:
            CheckpointError: As :meth:`restore_from_path`.
        """
        path = path.path if isinstance(path, Checkpoint) else path
        with _verified(path, filesystem) as local:
            return super().from_checkpoint(str(local), **kwargs)

    def after_restore(self) -> None:
        """Called after a checkpoint was restored.

        (``_restored`` is a flag of Tune's ``Trainable``.)
        """


@contextmanager
def _verified(path: Any, filesystem: Any) -> Iterator[Path]:
    """A checkpoint on this machine, whole: a copy of it, if it lies elsewhere."""
    with tempfile.TemporaryDirectory() as local:
        if filesystem is not None or "://" in str(path):
            copy_files(str(path), local, source_filesystem=filesystem)
            path = local
        checkpoints.verify(path)
        yield Path(path)
