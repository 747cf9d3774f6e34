"""RLlib's LearnerGroup for sharded learners: what concerns their state is asked of all of them together."""

from __future__ import annotations

import json
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
from safetensors import safe_open
from safetensors.torch import load_file, save

from rllib_exit.checkpoints import CheckpointError
from rllib_exit.learner import lora
from rllib_exit.settings import LoRASettings

# Of a checkpoint.
LEARNERS = "learners"
PROGRESS = "progress.json"
POLICY, REFERENCE = "policy", "reference"


class LearnerError(RuntimeError):
    """A learner failed, and with it what was learned since the last checkpoint is lost."""


class LearnersTimeoutError(RuntimeError):
    """Learners did not answer in time; they hang, and are of no more use."""


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
    would wait for ever.

    A checkpoint is a directory with ``progress.json`` and, for each kind of :meth:`GRPOTorchLearner.state_names`,
    a directory of safetensors files with full tensors. It does not depend on the back end or on the number of
    learners. The tensors pass through this process, a file at a time: the learners need no common file system.
    """

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

    def put_weights(self) -> tuple[list[ray.ObjectRef], int, int]:
        """Puts the policy's weights into Ray's object store.

        Returns:
            The files, see :func:`safetensors_file`; how many bytes they have; the weights' version.
        """
        return self._together(lambda learner: (*learner.put_weights(), learner.policy_version))

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

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Writes the learners' state into a new directory."""
        directory = Path(path)
        directory.mkdir()
        progress, names = self._together(lambda learner: (learner.progress(), learner.state_names()))
        (directory / PROGRESS).write_text(json.dumps(progress))
        for kind, files in names.items():
            (directory / kind).mkdir()
            for i, bucket in enumerate(files):
                file = self._together(lambda learner, kind=kind, bucket=bucket: learner.get_tensors(kind, bucket))
                file.tofile(directory / kind / f"{i:05}.safetensors")
        return str(directory)

    def restore_from_path(self, path: Any, **kwargs: Any) -> None:
        """Restores what :meth:`save_to_path` wrote.

        Raises:
            CheckpointError: If there is nothing, or if it is of another model.
        """
        directory = Path(path)
        if not (directory / PROGRESS).is_file():
            raise CheckpointError(f"{directory} holds no learners' state: it has no {PROGRESS}")
        for kind, files in self._together(lambda learner: learner.state_names()).items():
            saved = sorted((directory / kind).glob("*.safetensors"))
            if kind == REFERENCE and not saved:
                continue  # the run that wrote it had no KL term: the reference policy starts now
            wanted, found = {name for bucket in files for name in bucket}, {name for f in saved for name in _names(f)}
            if wanted != found:
                raise CheckpointError(
                    f"{directory / kind} is of another model, or of a run with other LoRA settings: "
                    f"{sorted(wanted ^ found)[:3]} are not in both"
                )
            self._load(kind, saved)
        progress = json.loads((directory / PROGRESS).read_text())
        self._together(lambda learner: learner.set_progress(progress))

    def load_model(self, directory: Path) -> None:
        """Makes a model in Hugging Face format, float32, the policy, and the reference policy if there is one."""
        for kind in self._together(lambda learner: learner.state_names()):
            if kind in (POLICY, REFERENCE):
                self._load(kind, sorted(directory.glob("*.safetensors")))

    def _load(self, kind: str, files: Sequence[Path]) -> None:
        for file in files:
            tensors = np.fromfile(file, np.uint8)
            reference = tensors if self.is_local else ray.put(tensors)
            self._together(lambda learner, ref=reference: learner.set_tensors(kind, _value(ref)))

    def _together(self, call: Callable[[Any], Any], timeout_s: float | None = None) -> Any:
        """Calls all learners and returns the first one's result.

        Raises:
            RayError: The first error, if a learner has one or is lost.
            LearnersTimeoutError: If one does not answer in time.
        """
        # Not the healthy ones alone: they would wait for the others.
        results = self._get_results(
            self.foreach_learner(call, healthy_only=False, mark_healthy=True, timeout_seconds=timeout_s)  # type: ignore[arg-type]
        )
        if len(results) < max(1, len(self)):
            raise LearnersTimeoutError(f"{len(self) - len(results)} learners did not answer within {timeout_s} s")
        return results[0]


def load_policy(checkpoint: Path, model_path: str, dtype: str, adapters: LoRASettings) -> np.ndarray:
    """The policy's weights in a checkpoint, float32, with Hugging Face names and with adapters merged.

    Args:
        checkpoint: The checkpoint's directory.
        model_path: The directory of the model that the run began with.
        dtype: That of the run.
        adapters: Those of the run.

    Returns:
        A safetensors file, (bytes,) uint8.

    Raises:
        CheckpointError: If there are none.
    """
    files = sorted((checkpoint / LEARNERS / POLICY).glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{checkpoint} holds no policy: it has no {LEARNERS}/{POLICY}")
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    if adapters.lora_r is not None:
        from transformers import AutoModelForCausalLM

        base: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype))
        weights = {name: parameter.detach().float() for name, parameter in base.named_parameters()}
        tensors = lora.merge_all(weights, tensors, adapters.lora_alpha / adapters.lora_r)
    return np.frombuffer(save(tensors), np.uint8)


def _names(file: Path) -> Iterator[str]:
    with safe_open(file, "np") as tensors:
        yield from tensors.keys()


def _value(reference: Any) -> np.ndarray:
    return ray.get(reference) if isinstance(reference, ray.ObjectRef) else reference
