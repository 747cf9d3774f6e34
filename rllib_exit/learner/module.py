"""A Hugging Face causal language model, with its reference policy, as an RLModule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import nn

from rllib_exit.learner import lora as adapters
from rllib_exit.learner.sharding.collectives import rank
from rllib_exit.learner.sharding.ddp import DDPModel
from rllib_exit.learner.sharding.sharded_model import ShardedModel, cast_parameters
from rllib_exit.learner.sharding.weights import collect_weights
from rllib_exit.models import resolve_model
from rllib_exit.objective.logprobs import OutputLayer
from rllib_exit.objective.packing import Pack

LOGPROBS = "logprobs"
ENTROPY = "entropy"
PACK = "pack"


class CausalLMRLModule(TorchRLModule):
    """The policy and, if there is a KL term, the reference policy.

    Weights are fp32 masters, those of the reference policy too. With ``dtype`` bfloat16 the forward pass is in bfloat16
    and, with adapters, so are the weights that are not trained. Dropout is off, whatever the model's config says: the
    learner's log-probabilities must be those of the policy that the engine samples from.

    ``model_config`` has the keys ``model`` (a name), ``dtype``, ``temperature``, ``attn_implementation``,
    ``gradient_checkpointing``, ``reference`` and, for adapters, ``lora``: the arguments of
    :func:`rllib_exit.learner.lora.add_adapters`. With adapters, the model without them is the reference policy.

    Attributes:
        model: The policy: a Hugging Face model; in a learner a :class:`ShardedModel` around it.
        reference: The same for the reference policy, or None.
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
        lora: dict[str, Any] | None = None,
    ) -> None:
        self.compute_dtype = getattr(torch, dtype)
        self.temperature = temperature
        self._lora = lora is not None
        self.model: Any = _load_model(resolve_model(model), attn_implementation)
        self.model.config.use_cache = False
        self.language_config = self.model.config
        linear = self.model.get_output_embeddings()
        if type(linear) is not nn.Linear:
            raise ValueError(f"model {model!r} has {linear!r} as its output layer: use one with a torch.nn.Linear")
        self.model.set_output_embeddings(OutputLayer(linear))
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.reference: Any = None
        if lora:
            cast_parameters(self.model, self.compute_dtype)
            self.model = adapters.add_adapters(self.model, **lora)
        elif reference:
            # Its weights are float32 as the policy's are: the passes of both round alike, and small steps of the
            # moving average are not lost.
            self.reference = copy.deepcopy(self.model).requires_grad_(False)

    def shard(self, make: Callable[[nn.Module, bool], ShardedModel]) -> None:
        """Spreads the models over the learners with ``make(model, trained)``."""
        self.model = make(self.model, True)
        if self.reference is not None:
            self.reference = make(self.reference, False)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Log-probabilities (N,) of the pack's targets, and the entropies (N,) of their distributions."""
        return self._score(self.model, batch[PACK])

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._score(self.model, batch[PACK])

    @torch.no_grad()
    def plain_logprobs(self, pack: Pack) -> torch.Tensor:
        """Log-probabilities (N,) of a pack of one row, with no mask of ours: as the model itself has them."""
        return self._score(self.model, pack, masked=False)[LOGPROBS]

    @torch.no_grad()
    def reference_logprobs(self, packs: Sequence[Pack]) -> list[torch.Tensor]:
        """Log-probabilities (N,) of each pack's targets under the reference policy.

        In one go, so that the reference is on the device no longer than that.
        """
        if self._lora:
            with adapters.without_adapters(self.model):
                return [self._score(self.model, pack)[LOGPROBS] for pack in packs]
        with self.reference.on_device():
            return [self._score(self.reference, pack)[LOGPROBS] for pack in packs]

    def _score(self, model: Any, pack: Pack, masked: bool = True) -> dict[str, torch.Tensor]:
        mixed = any(p.dtype != self.compute_dtype for p in model.parameters())
        [output_layer] = (m for m in model.modules() if isinstance(m, OutputLayer))
        with (
            torch.autocast(pack.token_ids_T.device.type, dtype=self.compute_dtype, enabled=mixed),
            output_layer.scoring(pack.targets_N, self.temperature),
        ):
            scores = model(
                input_ids=pack.token_ids_T[None],
                position_ids=pack.position_ids_T[None],
                attention_mask=pack.mask_for(self.model_config["attn_implementation"]) if masked else None,
                # Only the positions that predict a generated token go through the output layer.
                logits_to_keep=pack.sources_N,
            ).logits
        if scores.untyped_storage().data_ptr() != output_layer.scores_at:
            raise ValueError(
                f"model {self.model_config['model']!r} changes the logits of its output layer, by a scale or a soft "
                "cap, so that the learner's log-probabilities would not be the engine's: use a model that does not"
            )
        logprobs_N, entropy_N = scores
        return {LOGPROBS: logprobs_N, ENTROPY: entropy_N.detach()}

    @torch.no_grad()
    def update_reference(self, rate: float) -> None:
        """Ref ← a·θ + (1 − a)·ref (paper section 2.2)."""
        if self.reference is None:
            return
        for names in self.reference.buckets(list(self.reference.shapes)):
            theta, ref = self.model.gather("master", names), self.reference.gather("master", names)
            self.reference.scatter("master", {name: old.lerp(theta[name], rate) for name, old in ref.items()})

    def get_state(
        self, components: Any = None, *, not_components: Any = None, inference_only: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """``model``: the policy's weights as the engine takes them, in the compute dtype.

        They are a safetensors file, (bytes,) uint8, with Hugging Face names; None on learners other than the
        first. Collective where the module is sharded.
        """
        model = self.model
        if not isinstance(model, ShardedModel):
            model = DDPModel(model, model.device, None)
        return {"model": collect_weights(model, self.compute_dtype)}


def _load_model(path: str, attn_implementation: str) -> Any:
    """The model with its weights, float32, on rank 0; without memory for them on the other learners."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attn_implementation}
    if rank() == 0:
        return AutoModelForCausalLM.from_pretrained(path, config=config, **options)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **options)
