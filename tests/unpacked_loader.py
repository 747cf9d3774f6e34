"""For an engine on a CPU that keeps the weights as they came, as one on a GPU does."""

from __future__ import annotations

from vllm import _custom_ops

from rllib_exit.weight_sync.engine_loader import WeightLoader

# Without oneDNN vLLM has nothing that it would repack weights for.
_custom_ops._supports_onednn = False


class UnpackedLoader(WeightLoader):
    """Named as ``worker_extension_cls``, it is imported into the worker's process before the model is loaded."""
