"""Checkpoints of an algorithm: whole or none, verified, and independent of how the learners are sharded."""

from __future__ import annotations

import inspect
import logging
import pickle
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER_GROUP
from ray.rllib.utils import force_list
from ray.train._internal.checkpoint_manager import _TrainingResult  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
from ray.tune.result import TIME_TOTAL_S

from rllib_exit import checkpoints
from rllib_exit.checkpoints import Checkpoint, CheckpointError, Place
from rllib_exit.connectors.exit_replay import ExItReplay
from rllib_exit.grpo.rollout_queue import RolloutQueue
from rllib_exit.learner.learner_group import LEARNERS, GRPOLearnerGroup, learner_errors

logger = logging.getLogger(__name__)

CURRICULUM = "curriculum"
SELECTED = "selected_requests"
WARM_START = "warm_start"


class CheckpointedAlgorithm(Algorithm):
    """RLlib's Algorithm with checkpoints that a crash cannot leave half written.

    A checkpoint also holds the curriculum, what was selected and not yet trained on, and how the warm start went. The
    learners write their part themselves, from a copy in host memory, while a thread of this process waits for them and
    then writes the manifest. One checkpoint is written at a time.
    """

    learner_group: GRPOLearnerGroup
    replay: ExItReplay
    rollouts: RolloutQueue
    warm_started: dict[str, Any] | None = None  # what the warm start reports
    _saving: Future[None] | None = None  # the checkpoint that is being written, or was written last

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

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Saves as Tune's Trainable does, but straight to the trial's storage.

        With ``save_in_background`` it returns when the state is copied: what Tune then registers is not whole yet.
        """
        if checkpoint_dir or self._storage is None:
            return super().save(checkpoint_dir)
        metrics = dict(self._last_result or {})
        self._storage._update_checkpoint_index(metrics)
        self._storage._check_validation_file()
        place = Place(self._storage.storage_filesystem, self._storage.checkpoint_fs_path)
        self.finish_saving()
        place.clear()  # after a failure, Tune gives a number again
        self._start_saving(place)
        if not self._in_background:
            self.finish_saving()
        self._storage.persist_artifacts(force=self._storage.sync_config.sync_artifacts_on_checkpoint)
        return _TrainingResult(tune.Checkpoint(place.path, place.filesystem), metrics)

    @property
    def _in_background(self) -> bool:
        config: Any = self.config
        return config.save_in_background

    def save_whole(self) -> str:
        """Saves as Tune would, and returns the checkpoint's path when it is whole."""
        result = self.save()
        self.finish_saving()
        return result.checkpoint.path

    def save_to_path(self, path: Any = None, *, filesystem: Any = None, **kwargs: Any) -> str:
        """Saves a checkpoint, with a manifest, into a directory that is new or empty; returns when it is whole.

        Args:
            path: The directory: of this machine, a URI, or in ``filesystem``. With several nodes, all must see it. By
                default a temporary directory is made.
            filesystem: A ``pyarrow.fs.FileSystem``.
            **kwargs: RLlib's own arguments.
        """
        path = tempfile.mkdtemp() if path is None else path
        self.finish_saving()
        self._start_saving(Place.of(path, filesystem), **kwargs)
        self.finish_saving()
        return str(path)

    def _start_saving(self, place: Place, **kwargs: Any) -> None:
        """Begins to write a checkpoint; returns when the state is copied."""
        checkpoints.begin(place)
        with tempfile.TemporaryDirectory() as local:
            super().save_to_path(local, **kwargs)
            files = [file for file in Path(local).rglob("*") if file.is_file()]
            small = {str(file.relative_to(local)): file.read_bytes() for file in files}
        with learner_errors():
            learners = self.learner_group.start_saving(place / LEARNERS)

        def finish() -> None:
            try:
                sums = {name: place.write(name, content) for name, content in small.items()}
                sums |= {f"{LEARNERS}/{name}": value for name, value in learners().items()}
                checkpoints.finish(place, sums)
            except Exception:
                logger.exception("checkpoint %s was not written", place)
                place.clear()
                raise

        executor = ThreadPoolExecutor(1, "checkpoint")
        self._saving = executor.submit(finish)
        executor.shutdown(wait=False)

    def finish_saving(self) -> None:
        """Waits until the checkpoint that is being written is whole.

        Raises:
            LearnerError: If a learner was lost.
            Exception: What else kept it from that; once.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            with learner_errors():
                saving.result()

    def cleanup(self) -> None:
        try:
            self.finish_saving()
        finally:
            super().cleanup()

    def restore(self, checkpoint_path: Any) -> None:
        """Restores as Tune's Trainable does, but reads the checkpoint where it lies.

        If it never became whole, since what wrote it in the background was killed, the newest whole one beside it is
        taken.
        """
        place = Place.of(getattr(checkpoint_path, "checkpoint", checkpoint_path))
        if self._storage is not None and self._in_background and checkpoints.MANIFEST not in place.files():
            beside = checkpoints.newest_at(place.parent)
            logger.warning("checkpoint %s was not written to its end: going on from %s", place, beside)
            place = beside
        self._time_since_restore, self._timesteps_since_restore, self._iterations_since_restore = 0.0, 0, 0
        self.load_checkpoint(place)  # type: ignore[arg-type]
        self._restored = True

    def restore_from_path(self, path: Any, *, filesystem: Any = None, **kwargs: Any) -> None:
        """Restores a checkpoint, whichever back end and number of learners wrote it.

        Raises:
            CheckpointError: If it is incomplete, damaged, or was not written by this program.
        """
        checkpoint = Checkpoint(Place.of(path, filesystem))
        with tempfile.TemporaryDirectory() as local:
            for name in checkpoint.names:
                if not name.startswith(f"{LEARNERS}/"):
                    file = Path(local) / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(checkpoint.read(name))
            super().restore_from_path(local, **kwargs)
        if "component" not in kwargs:
            self.learner_group.restore(checkpoint)
            self.after_restore()

    @classmethod
    def from_checkpoint(cls, path: Any, filesystem: Any = None, **kwargs: Any) -> Any:
        """Makes the algorithm that a checkpoint is of, as RLlib does, but reads nothing before it is verified.

        Raises:
            CheckpointError: As :meth:`restore_from_path`.
        """
        place = Place.of(path, filesystem)
        made = pickle.loads(Checkpoint(place).read(cls.CLASS_AND_CTOR_ARGS_FILE_NAME))
        if not issubclass(made["class"], cls):
            raise CheckpointError(f"checkpoint {place} is of {made['class'].__name__}, which is no {cls.__name__}")
        args, named = made["ctor_args_and_kwargs"]
        bound = inspect.signature(made["class"]).bind(*force_list(args), **named)
        bound.arguments.update(kwargs)
        algorithm = made["class"](*bound.args, **bound.kwargs)
        algorithm.restore_from_path(place)
        return algorithm

    def after_restore(self) -> None:
        """Called after a checkpoint was restored.

        (``_restored`` is a flag of Tune's ``Trainable``.)
        """


class LastCheckpoint(tune.Callback):
    """For Tune's runs with ``save_in_background``: waits at a trial's end until its last checkpoint is whole.

    Tune ends a trial's processes seconds after it has asked for the last checkpoint.

    Attributes:
        error: What kept it from that.
    """

    error: BaseException | None = None

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        try:
            if actor := trial.temporary_state.ray_actor:
                ray.get(actor.finish_saving.remote())
        except RayError as error:
            self.error = error.cause if isinstance(error, RayTaskError) else error
            logger.error("the last checkpoint of %s was not written: %s", trial, self.error)
