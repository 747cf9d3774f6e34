"""Moves weights into the engine's workers, in place, through shared memory.

Weights come as safetensors files, one per bucket of them, each in parts as it lies in Ray's object store. One after
the other passes through shared memory into the engine's worker processes, which load it without a restart. So do
patches of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rllib_exit.weight_sync.patches import apply_patch, read_patch

SHARED_MEMORY = "/dev/shm"


@contextmanager
def shared_file(parts: Sequence[np.ndarray]) -> Iterator[str]:
    """A file in shared memory that holds the parts, one after the other, while the context lasts.

    Args:
        parts: (bytes,) uint8 each.
    """
    with tempfile.NamedTemporaryFile(dir=_shared_memory(), prefix="rllib-exit-", suffix=".safetensors") as file:
        file.writelines(part.data for part in parts)
        file.flush()
        yield file.name


@contextmanager
def shared_adapters(config: Sequence[np.ndarray], adapters: Sequence[np.ndarray]) -> Iterator[str]:
    """A directory in shared memory that holds LoRA adapters as peft saves them, while the context lasts.

    Args:
        config: ``adapter_config.json`` in parts, (bytes,) uint8 each.
        adapters: ``adapter_model.safetensors``, likewise.
    """
    with tempfile.TemporaryDirectory(dir=_shared_memory(), prefix="rllib-exit-") as directory:
        for name, parts in {"adapter_config.json": config, "adapter_model.safetensors": adapters}.items():
            with open(os.path.join(directory, name), "wb") as file:
                file.writelines(part.data for part in parts)
        yield directory


def _shared_memory() -> str | None:
    return SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None


class WeightLoader:
    """Extends vLLM's worker (``worker_extension_cls``); runs in the worker's process."""

    model_runner: Any
    model_config: Any
    vllm_config: Any

    def start_loading(self) -> None:
        """Replaces the model's weights by those of the files to come, which together hold all of them."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._shapes: dict[str, tuple[int, ...]] = {}
        self._unloaded = {name for name, _ in self.model_runner.get_model().named_parameters()}
        initialize_layerwise_reload(self.model_runner.get_model())

    def load_file(self, path: str, *patches: str) -> None:
        """Loads a safetensors file with Hugging Face names, and patches of it, see :func:`make_patch`."""
        from safetensors.torch import load_file
        from vllm.config import set_current_vllm_config

        tensors = load_file(path)
        for patch in patches:
            apply_patch(tensors, load_file(patch))
        self._shapes.update((name, tuple(tensor.shape)) for name, tensor in tensors.items())
        with set_current_vllm_config(self.vllm_config):
            loaded = self.model_runner.get_model().load_weights(tensors.items())
        # Some models do not say.
        self._unloaded -= self._unloaded if loaded is None else loaded

    def finish_loading(self) -> None:
        """Ends the replacement.

        Raises:
            ValueError: If some of the model's weights did not come.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(model, self.model_config)
            # vLLM's CPU build packs a copy of a tied lm_head that reloading leaves as it was.
            lm_head = getattr(model, "lm_head", None)
            if lm_head is not None and getattr(model.config, "tie_word_embeddings", False):
                lm_head.quant_method.process_weights_after_loading(lm_head)
                self._unloaded.discard("lm_head.weight")
        if self._unloaded:
            raise ValueError(f"the engine keeps old weights: it got none for {sorted(self._unloaded)[:3]}")

    def can_patch(self) -> bool:
        """Whether the model's parameters are the weights as they came, each as a whole or in part.

        vLLM's CPU build repacks them and drops them; quantization changes their dtype.
        """
        parameters = self.model_runner.get_model().parameters()
        return all(p.numel() and p.dtype == self.model_config.dtype for p in parameters)

    def patch(self, path: str) -> None:
        """Applies a patch, see :func:`make_patch`, to the model's parameters."""
        from safetensors.torch import load_file
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.checkpoint_weight_patch import (
            CheckpointWeightPatch,
            load_checkpoint_weight_patches,
        )

        model = self.model_runner.get_model()
        changes = read_patch(load_file(path, device=str(next(model.parameters()).device)))
        patches = [
            CheckpointWeightPatch(name, self._shapes[name], values.dtype, values, places)
            for name, places, values in changes
        ]
        with set_current_vllm_config(self.vllm_config):
            load_checkpoint_weight_patches(model, patches, validate_unique_indices=False)

    def checksums(self) -> dict[str, int]:
        """The sum of the bytes of every parameter that the model keeps."""
        parameters = self.model_runner.get_model().named_parameters()
        return {name: int(p.detach().view(torch.uint8).sum(dtype=torch.int64)) for name, p in parameters if p.numel()}
