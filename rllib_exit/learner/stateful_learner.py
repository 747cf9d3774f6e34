"""A learner's weights and state, as engines and checkpoints take them: all learners take part, and the first has it."""

from __future__ import annotations

import math
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from safetensors.torch import load

from rllib_exit import settings
from rllib_exit.checkpoints import Place
from rllib_exit.learner import lora
from rllib_exit.learner.learner_group import POLICY, REFERENCE
from rllib_exit.learner.module import CausalLMRLModule
from rllib_exit.learner.sharding.collectives import rank
from rllib_exit.learner.sharding.sharded_model import ShardedModel
from rllib_exit.learner.sharding.weights import collect_adapters, collect_weights, weight_buckets, weight_shapes
from rllib_exit.learner.shards import ShardWriter, State
from rllib_exit.weight_sync.weight_store import StoredWeights, WeightStore, put_adapters

if TYPE_CHECKING:
    from rllib_exit.weight_sync.nccl_sender import NCCLSender


class StatefulLearner(TorchLearner):
    """Sends, saves and restores what a learner has. Methods marked collective are called on all learners together."""

    def build(self) -> None:
        self._num_updates = 0
        self._num_batches = 0
        self._store = WeightStore(settings.GenerationSettings.of(self.config).full_weights_interval)
        self._sender: NCCLSender | None = None
        self._writer = ShardWriter()
        super().build()

    @property
    def language_model(self) -> CausalLMRLModule:
        """The module that is trained."""
        return self.module[DEFAULT_MODULE_ID]  # type: ignore[return-value]

    @property
    def model(self) -> ShardedModel:
        """The policy."""
        return self.language_model.model

    @property
    def policy_version(self) -> int:
        """How many batches the policy was trained on."""
        return self._weights_seq_no

    def collect_weights(self) -> np.ndarray | None:
        """The policy's weights as the engine takes them, see :func:`collect_weights`. Collective."""
        return collect_weights(self.model, self.language_model.compute_dtype)

    def put_weights(self) -> StoredWeights | None:
        """Puts the same into Ray's object store, or what changed, or the adapters alone; None but on the first learner.

        Collective.
        """
        if settings.LoRASettings.of(self.config).sends_adapters:
            adapters = collect_adapters(self.model, self.language_model.compute_dtype)
            if adapters is None:
                return None
            return put_adapters(lora.saved_config(self.model.module), adapters, self._weights_seq_no)
        buckets = weight_buckets(self.model, self.language_model.compute_dtype)
        if rank() == 0:
            return self._store.put(buckets, self._weights_seq_no)
        deque(buckets, maxlen=0)
        return None

    def describe_weights(self) -> tuple[dict[str, Any], int]:
        """What :meth:`send_weights` sends, as vLLM's workers need it, and how many bytes that is."""
        dtype = self.language_model.compute_dtype
        shapes = weight_shapes(self.model)
        update_info = {
            "names": list(shapes),
            "dtype_names": [str(dtype).removeprefix("torch.")] * len(shapes),
            "shapes": [list(shape) for shape in shapes.values()],
        }
        return update_info, sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize

    def transfer_address(self) -> dict[str, Any]:
        """A free port of this node."""
        with socket.socket() as s:
            s.bind(("", 0))
            return {"master_address": ray.util.get_node_ip_address(), "master_port": s.getsockname()[1]}

    def open_transfer(self, init_info: dict[str, Any]) -> None:
        """Joins a group with the engines' workers, see :class:`NCCLSender`; leaves the last one. Collective."""
        from rllib_exit.weight_sync.nccl_sender import NCCLSender, ParamMeta

        if self._sender is not None:
            self._sender.close()
        dtype = self.language_model.compute_dtype
        metadata = [ParamMeta(name, dtype, shape) for name, shape in weight_shapes(self.model).items()]
        self._sender = NCCLSender(rank(), metadata, lambda: weight_buckets(self.model, dtype), init_info)

    def send_weights(self) -> None:
        """Broadcasts the policy's weights in that group. Collective."""
        assert self._sender is not None, "open_transfer comes first"
        self._sender.send()

    def progress(self) -> dict[str, int]:
        """How far training is."""
        return {
            "policy_version": self._weights_seq_no,
            "num_updates": self._num_updates,
            "num_batches": self._num_batches,
        }

    def set_progress(self, progress: dict[str, int]) -> None:
        """Restores what :meth:`progress` gave."""
        self._weights_seq_no = progress["policy_version"]
        self._num_updates = progress["num_updates"]
        self._num_batches = progress["num_batches"]
        self.model.set_step(self._num_updates)

    def start_saving(self, place: Place) -> dict[str, int]:
        """Begins to write this learner's part of a checkpoint, and returns how far training is.

        It is what the learner holds now: it may go on when this returns.
        """
        self._writer.start(self._state(), place)
        return self.progress()

    def saved(self) -> dict[str, str] | Exception | None:
        """The sums of what it wrote, or the error; None as long as it writes."""
        return self._writer.outcome()

    def state_names(self) -> dict[str, list[list[str]]]:
        """What a checkpoint holds: for each kind of tensors, the names in one bucket after the other.

        The kinds are ``policy``, the trained float32 weights; ``exp_avg`` and ``exp_avg_sq``, their moments; and
        ``reference``, if there is one.
        """
        return {kind: model.buckets(names) for kind, (model, _, names) in self._state().items()}

    def set_tensors(self, kind: str, file: np.ndarray) -> None:
        """Sets full tensors, a safetensors file, (bytes,) uint8, whatever the number of learners. Collective."""
        model, part, _ = self._state()[kind]
        model.scatter(part, load(file.tobytes()))

    def _state(self) -> State:
        model, reference = self.model, self.language_model.reference
        state: dict[str, Any] = {
            POLICY: (model, "master", model.trainable),
            "exp_avg": (model, "exp_avg", model.trainable),
            "exp_avg_sq": (model, "exp_avg_sq", model.trainable),
        }
        if reference is not None:
            state[REFERENCE] = (reference, "master", list(reference.shapes))
        return state
