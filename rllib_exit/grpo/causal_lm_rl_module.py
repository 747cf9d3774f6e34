"""A Hugging Face causal language model, with its reference policy, as an RLModule."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from rllib_exit.models import resolve_model
from rllib_exit.objective.packing import Pack

LOGPROBS = "logprobs"
ENTROPY = "entropy"
PACK = "pack"


class CausalLMRLModule(TorchRLModule):
    """The policy and, if there is a KL term, the reference policy.

    Weights are fp32 masters; with ``dtype`` bfloat16 the forward pass runs under autocast and the
    reference policy is kept in bfloat16. ``model_config`` has the keys ``model`` (a name),
    ``dtype``, ``temperature``, ``attn_implementation``, ``gradient_checkpointing`` and ``reference``.
    """

    def setup(self) -> None:
        # RLModuleSpec.build takes an AttributeError for an old constructor signature and hides it.
        try:
            self._setup(**self.model_config)
        except AttributeError as error:
            raise RuntimeError(f"building {type(self).__name__} failed: {error}") from error

    def _setup(
        self,
        *,
        model: str,
        dtype: str,
        temperature: float,
        attn_implementation: str,
        gradient_checkpointing: bool,
        reference: bool,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.compute_dtype = getattr(torch, dtype)
        self.temperature = temperature
        self.model = AutoModelForCausalLM.from_pretrained(
            resolve_model(model), dtype=torch.float32, attn_implementation=attn_implementation
        )
        self.model.config.use_cache = False
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.reference = None
        if reference:
            self.reference = copy.deepcopy(self.model).to(self.compute_dtype).requires_grad_(False)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Log-probabilities (N,) of the pack's targets, and the entropies (N,) of their distributions."""
        return self._score(self.model, batch[PACK])

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._score(self.model, batch[PACK])

    @torch.no_grad()
    def reference_logprobs(self, pack: Pack) -> torch.Tensor:
        """Log-probabilities (N,) of the pack's targets under the reference policy."""
        return self._score(self.reference, pack)[LOGPROBS]

    def _score(self, model: Any, pack: Pack) -> dict[str, torch.Tensor]:
        autocast = self.compute_dtype != torch.float32
        with torch.autocast(model.device.type, dtype=self.compute_dtype, enabled=autocast):
            logits = model(
                input_ids=pack.token_ids_T[None],
                position_ids=pack.position_ids_T[None],
                attention_mask=self._attention_mask(pack),
                # Only the positions that predict a generated token go through the output layer.
                logits_to_keep=pack.sources_N,
            ).logits[0]
        logits = logits.float() / self.temperature
        logprobs_NV = logits.log_softmax(-1)
        logprobs_N = logprobs_NV.gather(-1, pack.targets_N[:, None])[:, 0]
        with torch.no_grad():
            entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
        return {LOGPROBS: logprobs_N, ENTROPY: entropy_N}

    def _attention_mask(self, pack: Pack) -> torch.Tensor | None:
        # Flash attention finds a pack's documents by its position ids.
        if self.model_config["attn_implementation"].startswith("flash"):
            return None
        return pack.attention_mask()

    @torch.no_grad()
    def update_reference(self, rate: float) -> None:
        """Ref ← a·θ + (1 − a)·ref (paper section 2.2)."""
        if self.reference is not None:
            for ref, theta in zip(self.reference.parameters(), self.model.parameters(), strict=True):
                ref.lerp_(theta.to(ref.dtype), rate)

    def get_state(
        self, components: Any = None, *, not_components: Any = None, inference_only: bool = False, **kwargs: Any
    ):
        """The weights as one safetensors blob each, (bytes,) uint8, under their Hugging Face names.

        With ``inference_only`` the policy's alone, in the compute dtype, as the engine takes them.
        """
        if inference_only:
            return {"model": _serialise(self.model, self.compute_dtype)}
        state = {"model": _serialise(self.model)}
        if self.reference is not None:
            state["reference"] = _serialise(self.reference)
        return state

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Restores what :meth:`get_state` gave."""
        _load(self.model, state["model"])
        if self.reference is not None and "reference" in state:
            _load(self.reference, state["reference"])


def _serialise(model: torch.nn.Module, dtype: torch.dtype | None = None) -> np.ndarray:
    from safetensors.torch import save

    # named_parameters names a tied output layer once.
    tensors = {name: p.detach().to(dtype or p.dtype).contiguous() for name, p in model.named_parameters()}
    return np.frombuffer(save(tensors), np.uint8)


@torch.no_grad()
def _load(model: torch.nn.Module, blob: np.ndarray) -> None:
    from safetensors.torch import load

    tensors = load(blob.tobytes())
    parameters = dict(model.named_parameters())
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())
        raise ValueError(f"the saved weights are of another architecture: {odd[:3]} are not in both")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
