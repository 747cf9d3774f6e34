"""RLlib's LearnerGroup for sharded learners: what concerns their state is asked of all of them together."""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from safetensors.torch import save

from rllib_exit.checkpoints import Checkpoint, CheckpointError, Place
from rllib_exit.learner import lora, shards
from rllib_exit.learner.batch import TrainBatch
from rllib_exit.learner.sharding.collectives import rank
from rllib_exit.pulse import Watch, end_pulse, start_pulse
from rllib_exit.settings import FaultToleranceSettings, LoRASettings
from rllib_exit.weight_sync.weight_store import StoredWeights

# Of a checkpoint.
LEARNERS = "learners"
PROGRESS = "progress.json"
POLICY, REFERENCE = "policy", "reference"


class LearnerError(RuntimeError):
    """A learner failed, and with it what was learned since the last checkpoint is lost."""


class LearnersTimeoutError(RuntimeError):
    """Learners did not answer in time, or gave no sign of life; they are of no more use."""


@contextmanager
def learner_errors() -> Iterator[None]:
    """Turns what is raised for a lost learner into a LearnerError."""
    try:
        yield
    except (RayError, LearnersTimeoutError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise LearnerError(
            "a learner failed, and with it what was learned since the last checkpoint is lost; go on from that one.\n\n"
            f"{type(cause).__name__}: {cause}"
        ) from error


class GRPOLearnerGroup(LearnerGroup):
    """The learners.

    RLlib's group asks one learner for its state. Gathering sharded parameters takes all of them: that one
    would wait for ever. And where one fails, the others wait for it, for the half hour that NCCL gives them. Here all
    end together: a call ends when one of them fails or gives no sign of life for ``learner_timeout_s``.

    The learners' part of a checkpoint is ``progress.json`` and, for each kind of :meth:`GRPOTorchLearner.state_names`,
    a directory of safetensors files, see :mod:`rllib_exit.learner.shards`. It does not depend on the back end or on the
    number of learners that read it. Each learner writes its own files, but they are read here, one bucket at a time.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        self._timeout_s = FaultToleranceSettings.of(config).learner_timeout_s or math.inf
        self._pulses: list[str] = []
        self._calling = threading.Lock()
        super().__init__(config=config, **kwargs)
        if self._workers:
            pulses = [f"{uuid.uuid4()}" for _ in self._workers]
            pairs = zip(self._workers, pulses, strict=True)
            ray.get([worker.apply.remote(lambda _, key=key: start_pulse(key)) for worker, key in pairs])
            self._pulses = pulses

    def update(self, *, training_data: Any, **kwargs: Any) -> list[Any]:  # type: ignore[override]
        """RLlib's update, on all learners together."""
        if self.is_local:
            return super().update(training_data=training_data, **kwargs)
        parts = training_data.shard(num_shards=len(self))
        pairs: Any = zip(self._workers or (), parts, strict=True)
        with self._calling:
            answers = [worker.update.remote(training_data=part, **kwargs) for worker, (part, _) in pairs]
        return self._answers(answers)

    def kill(self) -> None:
        """Ends all learners, whatever they wait for."""
        for worker in self._workers or ():
            ray.kill(worker)

    def shutdown(self) -> None:
        super().shutdown()
        if self.is_remote and ray.is_initialized():
            end_pulse(self._pulses)

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The weights' version alone.

        RLlib asks for the weights too when it makes the env runners, which get them by our own way, see
        :mod:`rllib_exit.weight_sync.transfers`.
        """
        version = self._together(lambda learner: learner.policy_version)
        return {COMPONENT_LEARNER: {COMPONENT_RL_MODULE: {}, WEIGHTS_SEQ_NO: version}}

    def collect_weights(self) -> np.ndarray:
        """The policy's weights as the engine takes them: one safetensors file, (bytes,) uint8."""
        return self._together(lambda learner: learner.collect_weights())

    def put_weights(self) -> StoredWeights:
        """Puts the policy's weights into Ray's object store, or what changed since the last time."""
        return self._together(lambda learner: learner.put_weights())

    def set_state(self, state: Any) -> None:
        raise NotImplementedError("the learners' state is restored from a checkpoint: call restore_from_path")

    def describe_weights(self) -> tuple[dict[str, Any], int, int]:
        """What :meth:`send_weights` sends, as vLLM's workers need it; how many bytes that is; its version."""
        return self._together(lambda learner: (*learner.describe_weights(), learner.policy_version))

    def transfer_address(self) -> dict[str, Any]:
        """Where a group for :meth:`send_weights` can meet."""
        return self._together(lambda learner: learner.transfer_address())

    def open_transfer(self, init_info: dict[str, Any], timeout_s: float | None) -> None:
        """Has the first learner join a group with the engines' workers, see :class:`NCCLSender`.

        Raises:
            LearnersTimeoutError: If it does not come about in time.
        """
        self._together(lambda learner: learner.open_transfer(init_info), timeout_s)

    def send_weights(self, timeout_s: float | None) -> None:
        """Broadcasts the policy's weights in that group.

        Raises:
            LearnersTimeoutError: If it takes longer.
        """
        self._together(lambda learner: learner.send_weights(), timeout_s)

    def accumulate(self, parts: Sequence[TrainBatch]) -> None:
        """Has every learner add up the gradients of its part, see :meth:`GRPOTorchLearner.accumulate`."""
        reference = parts if self.is_local else ray.put(parts)
        self._together(lambda learner: learner.accumulate(_value(reference)[rank()]))

    def forget(self) -> None:
        """Drops what was accumulated."""
        self._together(lambda learner: learner.forget())

    def start_saving(self, place: Place) -> Callable[[], dict[str, str]]:
        """Has all learners begin to write their part of a checkpoint; they may go on when this returns.

        Returns:
            Waits, in any thread, until it is written, and returns the SHA-256 sums of the files. It raises what went
            wrong.
        """
        progress = self._together(lambda learner: learner.start_saving(place))

        def wait() -> dict[str, str]:
            sums = {PROGRESS: place.write(PROGRESS, json.dumps(progress).encode())}
            while None in (outcomes := self._all(lambda learner: learner.saved())):
                time.sleep(0.2)
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
                sums |= outcome
            return sums

        return wait

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        raise NotImplementedError("the learners' state is a part of the algorithm's checkpoint: save that one")

    def restore_from_path(self, path: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the learners' state is a part of the algorithm's checkpoint: restore that one")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restores what :meth:`start_saving` wrote into ``learners`` of a checkpoint.

        Raises:
            CheckpointError: If there is nothing, or if it is of another model, or damaged.
        """
        if f"{LEARNERS}/{PROGRESS}" not in checkpoint.names:
            raise CheckpointError(f"{checkpoint.place} holds no learners' state: it has no {LEARNERS}/{PROGRESS}")
        for kind, wanted in self._together(lambda learner: learner.state_names()).items():
            directory = f"{LEARNERS}/{kind}"
            saved = shards.buckets(checkpoint, directory)
            if kind == REFERENCE and not saved:
                continue  # the run that wrote it had no KL term: the reference policy starts now
            if others := {name for bucket in wanted for name in bucket} ^ set(shards.names(checkpoint, directory)):
                raise CheckpointError(
                    f"{directory} in {checkpoint.place} is of another model, or of a run with other LoRA settings: "
                    f"{sorted(others)[:3]} are not in both"
                )
            for files in saved:
                self._load(kind, np.frombuffer(save(shards.join(map(checkpoint.read, files))), np.uint8))
        progress = json.loads(checkpoint.read(f"{LEARNERS}/{PROGRESS}"))
        self._together(lambda learner: learner.set_progress(progress))

    def load_model(self, directory: Path) -> None:
        """Makes a model in Hugging Face format, float32, the policy, and the reference policy if there is one."""
        for kind in self._together(lambda learner: learner.state_names()):
            if kind in (POLICY, REFERENCE):
                for file in sorted(directory.glob("*.safetensors")):
                    self._load(kind, np.fromfile(file, np.uint8))

    def _load(self, kind: str, tensors: np.ndarray) -> None:
        reference = tensors if self.is_local else ray.put(tensors)
        self._together(lambda learner: learner.set_tensors(kind, _value(reference)))

    def _together(self, call: Callable[[Any], Any], timeout_s: float | None = None) -> Any:
        """Calls all learners and returns the first one's result, see :meth:`_all`."""
        return self._all(call, timeout_s)[0]

    def _all(self, call: Callable[[Any], Any], timeout_s: float | None = None) -> list[Any]:
        """Calls all learners and returns their results.

        Raises:
            RayError: The first error, if a learner has one or is lost.
            LearnersTimeoutError: If one does not answer in time, or gives no sign of life.
        """
        if self.is_local:
            return self._get_results(self.foreach_learner(call))  # type: ignore[arg-type]
        workers: Any = self._workers
        with self._calling:  # several threads call: all learners have to get their calls in the same order
            answers = [worker.apply.remote(call) for worker in workers]
        return self._answers(answers, timeout_s)

    def _answers(self, answers: Sequence[ray.ObjectRef], timeout_s: float | None = None) -> list[Any]:
        """The learners' answers; if one fails all are ended, since the others may wait for it."""
        watch = Watch(self._pulses, self._timeout_s)
        waiting, deadline = list(answers), time.monotonic() + (timeout_s or math.inf)
        try:
            while waiting:
                done, waiting = ray.wait(waiting, timeout=1)
                ray.get(done)  # raises the error, if it is one
                if silent := watch.silent():
                    raise LearnersTimeoutError(
                        f"learners {silent} gave no sign of life for learner_timeout_s={self._timeout_s:g} s"
                    )
                if waiting and time.monotonic() > deadline:
                    raise LearnersTimeoutError(f"{len(waiting)} learners did not answer within {timeout_s} s")
            return ray.get(list(answers))
        except (RayError, LearnersTimeoutError):
            self.kill()
            raise


def load_policy(checkpoint: Checkpoint, model_path: str, dtype: str, adapters: LoRASettings) -> np.ndarray:
    """The policy's weights in a checkpoint, float32, with Hugging Face names and with adapters merged.

    Args:
        checkpoint: The checkpoint.
        model_path: The directory of the model that the run began with.
        dtype: That of the run.
        adapters: Those of the run.

    Returns:
        A safetensors file, (bytes,) uint8.

    Raises:
        CheckpointError: If there are none.
    """
    tensors: dict[str, torch.Tensor] = {}
    for files in shards.buckets(checkpoint, f"{LEARNERS}/{POLICY}"):
        tensors |= shards.join(map(checkpoint.read, files))
    if not tensors:
        raise CheckpointError(f"{checkpoint.place} holds no policy: it has no {LEARNERS}/{POLICY}")
    if adapters.lora_r is not None:
        from transformers import AutoModelForCausalLM

        base: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype))
        weights = {name: parameter.detach().float() for name, parameter in base.named_parameters()}
        tensors = lora.merge_all(weights, tensors, adapters.lora_alpha / adapters.lora_r)
    return np.frombuffer(save(tensors), np.uint8)


def _value(reference: Any) -> Any:
    return ray.get(reference) if isinstance(reference, ray.ObjectRef) else reference
