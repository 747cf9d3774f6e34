"""Checkpoints that are written while training goes on, to a bucket, under Tune."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import tune

from rllib_exit.checkpoints import MANIFEST, Checkpoint, Place, newest_at, verify
from rllib_exit.grpo.algorithm import GRPO
from rllib_exit.grpo.checkpointing import LastCheckpoint
from tests.grpo.test_algorithm import make_config
from tests.learner.sharding.learners import tensors
from tests.processes import children

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Bucket(MemoryFileSystem):
    """A bucket to which nothing can be written while it is shut, and that fails when it is full."""

    open_ = threading.Event()
    full = False

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "wb" and "learners" in path:
            assert self.open_.wait(60)
            if Bucket.full:
                raise OSError("the bucket is full")
        return super().open(path, mode, **kwargs)


class Storage:
    """What an algorithm asks of Tune's StorageContext."""

    storage_filesystem = PyFileSystem(FSSpecHandler(Bucket()))
    sync_config = SimpleNamespace(sync_artifacts_on_checkpoint=False)
    index = 0

    @property
    def checkpoint_fs_path(self) -> str:
        return f"bucket/trial/checkpoint_{self.index:06}"

    def _update_checkpoint_index(self, metrics: Any) -> None:
        self.index += 1

    def _check_validation_file(self) -> None: ...

    def persist_artifacts(self, force: bool = False) -> None: ...


@pytest.fixture(scope="module")
def algo(tiny_model: str, ray_session: None) -> Iterator[Any]:
    config = make_config(tiny_model, kl_coeff=0.1).fault_tolerance(save_in_background=True)
    algo: Any = config.build_algo()
    algo._storage = Storage()
    yield algo
    Bucket.open_.set()
    algo.stop()


def state(algo: Any, path: Path) -> tuple[Any, str]:
    saved = tensors(Checkpoint(algo.save_to_path(path)))
    return {name: tensor.tolist() for name, tensor in saved.items()}, repr(algo.replay.get_state())


def test_training_goes_on_while_a_checkpoint_is_written_and_it_is_the_state_when_it_was_asked_for(
    algo: Any, tmp_path: Path
) -> None:
    Bucket.open_.set()
    algo.train()
    first = algo.save()
    algo.train()
    expected = state(algo, tmp_path / "second")
    Bucket.open_.clear()
    second = algo.save()
    assert second.metrics["training_iteration"] == 2
    place = Place.of(second.checkpoint)
    assert MANIFEST not in place.files()
    algo.train()  # nothing is written yet, and yet it goes on
    assert MANIFEST not in place.files() and newest_at(place.parent).path.endswith(first.checkpoint.path)

    # Whoever goes on from what was never written to its end has the last whole one.
    algo.restore(second)
    assert algo.training_iteration == 1 and algo.policy_version == 1

    # The next one waits until this one is whole.
    threading.Timer(0.5, Bucket.open_.set).start()
    third = algo.save()
    verify(place)
    algo.finish_saving()
    verify(third.checkpoint)
    algo.restore(second)
    assert algo.training_iteration == 2 and state(algo, tmp_path / "restored") == expected


def test_what_could_not_be_written_is_told_by_the_next_one_and_leaves_nothing(
    algo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bucket.open_.set()
    whole = algo.save_whole()
    monkeypatch.setattr(Bucket, "full", True)
    place = Place.of(algo.save().checkpoint)
    with pytest.raises(OSError, match="the bucket is full"):
        algo.save()
    assert not place.files() and newest_at(place.parent).path.endswith(whole)
    monkeypatch.undo()
    verify(Place.of(algo.save_whole(), Storage.storage_filesystem))


class LearnerKiller(tune.Callback):
    """Kills a learner after the third result, once: the checkpoint of the first is whole then."""

    killed = False

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if result["training_iteration"] == 3 and not LearnerKiller.killed:
            LearnerKiller.killed = True
            [learner] = children(os.getpid(), "_WrappedExecutable")
            os.kill(learner, signal.SIGKILL)


def test_tune_goes_on_after_a_learners_death_as_its_failure_config_says(
    tiny_model: str, ray_session: None, tmp_path: Path
) -> None:
    config = make_config(tiny_model, num_learners=1, num_cpus_per_learner=1)
    config.fault_tolerance(save_in_background=True)
    last = LastCheckpoint()
    results = tune.Tuner(
        GRPO,
        param_space=config.to_dict(),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(tmp_path),
            stop={"training_iteration": 4},
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=2, checkpoint_at_end=True),
            callbacks=[LearnerKiller(), last],
            verbose=0,
        ),
    ).fit()
    assert LearnerKiller.killed and not results.errors
    assert results[0].metrics and results[0].metrics["policy_version"] == 4
    # It does not end before the last one is whole.
    assert last.error is None and results[0].checkpoint is not None
    verify(results[0].checkpoint)
