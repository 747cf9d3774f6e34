"""Moves weights into the engine's workers, in place, through shared memory.

Weights come as safetensors files, one per bucket of them, each in parts as it lies in Ray's object store. One after
the other passes through shared memory into the engine's worker processes, which load it without a restart.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

SHARED_MEMORY = "/dev/shm"


@contextmanager
def shared_file(parts: Sequence[np.ndarray]) -> Iterator[str]:
    """A file in shared memory that holds the parts, one after the other, while the context lasts.

    Args:
        parts: (bytes,) uint8 each.
    """
    directory = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None
    with tempfile.NamedTemporaryFile(dir=directory, prefix="rllib-exit-", suffix=".safetensors") as file:
        for part in parts:
            file.write(part.data)
        file.flush()
        yield file.name


class WeightLoader:
    """Extends vLLM's worker (``worker_extension_cls``); runs in the worker's process."""

    model_runner: Any
    model_config: Any
    vllm_config: Any

    def start_loading(self) -> None:
        """Replaces the model's weights by those of the files to come, which together hold all of them."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._unloaded = {name for name, _ in self.model_runner.get_model().named_parameters()}
        initialize_layerwise_reload(self.model_runner.get_model())

    def load_file(self, path: str) -> None:
        """Loads a safetensors file with Hugging Face names."""
        from safetensors.torch import load_file
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config):
            loaded = self.model_runner.get_model().load_weights(load_file(path).items())
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
