"""Moves weights from the learner into the engine's workers, in place.

The learner's weights travel as the bytes of a safetensors file: through Ray's object store to the env
runner, then through shared memory into the engine's worker processes, which load them without a restart.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

SHARED_MEMORY = "/dev/shm"


@contextmanager
def shared_file(weights: np.ndarray) -> Iterator[str]:
    """A file in shared memory that holds the weights while the context lasts.

    Args:
        weights: (bytes,) uint8.
    """
    directory = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None
    with tempfile.NamedTemporaryFile(dir=directory, prefix="rllib-exit-", suffix=".safetensors") as file:
        file.write(weights.data)
        file.flush()
        yield file.name


class WeightLoader:
    """Extends vLLM's worker (``worker_extension_cls``); runs in the worker's process."""

    model_runner: Any

    def load_weights_file(self, path: str) -> None:
        """Replaces the model's weights by those of a safetensors file with Hugging Face names."""
        from safetensors.torch import load_file

        self.model_runner.reload_weights(weights_iterator=iter(load_file(path).items()))
        # vLLM's CPU build packs a copy of a tied lm_head that reload_weights leaves as it was.
        model = self.model_runner.get_model()
        lm_head = getattr(model, "lm_head", None)
        if lm_head is not None and getattr(model.config, "tie_word_embeddings", False):
            lm_head.quant_method.process_weights_after_loading(lm_head)
