"""DeepSpeed's ZeRO: what is sharded grows with the stage, and the optimizer's state can lie in host memory.

Stage 0 shards nothing, 1 the optimizer's state, 2 gradients too, 3 parameters too.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rllib_exit.learner.sharding.collectives import place, rank, share, world_size
from rllib_exit.learner.sharding.sharded_model import (
    OptimizerConfig,
    Part,
    ShardedModel,
    cast_parameters,
    make_adamw,
    start_moments,
)


class DeepSpeedModel(ShardedModel):
    """A model in a DeepSpeed engine.

    With stage 3, forward and backward passes are collective: every learner makes as many of them, in the
    same order. In bfloat16, the parameters are bfloat16 and the optimizer keeps float32 masters.

    Args:
        module: The model; on learners other than the first its tensors may be on the ``meta`` device.
        device: The learner's.
        optimizer: None for a model that is not trained.
        compute_dtype: The dtype of the parameters; bfloat16 needs stage 1 or above.
        zero_stage: 0 to 3.
        offload_optimizer: Keep masters and moments in host memory and update them there.
        zero_optimization: More of DeepSpeed's ``zero_optimization`` section.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        optimizer: OptimizerConfig | None,
        *,
        compute_dtype: torch.dtype,
        zero_stage: int,
        offload_optimizer: bool = False,
        zero_optimization: Mapping[str, Any] | None = None,
    ) -> None:
        deepspeed = _import_deepspeed(device)
        super().__init__(module)
        cast_parameters(module, compute_dtype)
        if zero_stage == 3:
            _partition(module, device, compute_dtype, {})
        else:
            place(module, device)
        self._zero_stage = zero_stage
        self._gathered = deepspeed.zero.GatheredParameters
        self._norm = 0.0
        self._parameters_by_name = dict(module.named_parameters())
        trained = [self._parameters_by_name[name] for name in self.trainable]
        adamw = make_adamw(trained, optimizer) if optimizer else None
        clip = optimizer.max_grad_norm if optimizer and math.isfinite(optimizer.max_grad_norm) else 0.0
        if adamw and zero_stage == 0:
            # Stage 0 hands the gradients to the optimizer unchecked.
            self._max_norm, clip = (clip or math.inf), 0.0
            adamw.register_step_pre_hook(self._clip_and_check)
        # DeepSpeed makes flat buffers of these sizes: no larger than there is something to hold.
        numel = sum(prod(shape) for shape in self.shapes.values())
        zero: dict[str, Any] = {
            "stage": zero_stage,
            "reduce_bucket_size": min(numel, 100_000_000),
            "allgather_bucket_size": min(numel, 100_000_000),
            "stage3_prefetch_bucket_size": min(numel // 8, 50_000_000),
        }
        if offload_optimizer and adamw:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=adamw,
            config={
                "train_micro_batch_size_per_gpu": 1,
                # The loop accumulates: backward() as often as it likes, then step().
                "managed_gradient_accumulation": False,
                "gradient_clipping": clip,
                "bf16": {"enabled": compute_dtype == torch.bfloat16},
                "data_types": {"grad_accum_dtype": "fp32"},
                "communication_data_type": "fp32",
                # torch's fused AdamW runs on the CPU too, and needs no compiler.
                "zero_force_ds_cpu_optimizer": False,
                "zero_optimization": {**zero, **(zero_optimization or {})},
            },
            dist_init_required=False,
        )
        if adamw:
            self._start_moments()

    def forward(self, **inputs: Any) -> Any:
        return self._engine(**inputs)

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages.
        self._engine.backward(loss * world_size(), scale_wrt_gas=False)

    def step(self, lr: float, divisor: float = 1.0) -> float:
        if divisor != 1.0:
            raise ValueError("DeepSpeed keeps gradients in buffers of its own, which cannot be divided")
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = lr
        # From stage 1, a norm that is not finite makes DeepSpeed skip the update.
        self._engine.step()
        return self._norm if self._zero_stage == 0 else float(self._engine.get_global_grad_norm())

    def _clip_and_check(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._norm = float(nn.utils.clip_grad_norm_(parameters, self._max_norm))
        if not math.isfinite(self._norm):
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def gather(self, part: Part, names: Sequence[str]) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameters: dict[str, Any] = {name: self._parameters_by_name[name] for name in names}
        if part == "weights" or (part == "master" and self._zero_stage == 0):
            if self._zero_stage < 3:
                return {name: p.detach() for name, p in parameters.items()}
            with self._gathered(parameters.values()):
                return {name: p.detach().clone() for name, p in parameters.items()}
        if part == "master":
            return {name: cast(Tensor, safe_get_full_fp32_param(p)) for name, p in parameters.items()}
        if self._zero_stage == 0:
            state = self._engine.basic_optimizer.state
            return {name: state[p][part] for name, p in parameters.items()}
        return {name: cast(Tensor, safe_get_full_optimizer_state(p, part)) for name, p in parameters.items()}

    @torch.no_grad()
    def shard(self, part: Part, name: str) -> tuple[int, Tensor]:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        p: Any = self._parameters_by_name[name]
        if self._zero_stage == 0:
            return share(self.gather(part, [name])[name])
        if self._zero_stage == 3:
            local = safe_get_local_fp32_param(p) if part == "master" else safe_get_local_optimizer_state(p, part)
            start = min(rank() * cast(Tensor, local).numel(), p.ds_numel)
            return start, cast(Tensor, local)[: p.ds_numel - start]  # the last one is padded
        if p._hp_mapping is None:
            return 0, torch.empty(0)
        fragment = p._hp_mapping.get_hp_fragment(None if part == "master" else part)
        return p._hp_mapping.lp_fragment_address.start, fragment.detach().reshape(-1)

    @torch.no_grad()
    def scatter(self, part: Part, tensors: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameters = {name: self._parameters_by_name[name] for name in tensors}
        if part in ("weights", "master"):
            with self._gathered(parameters.values(), modifier_rank=0, enabled=self._zero_stage == 3):
                if rank() == 0 or self._zero_stage < 3:
                    for name, p in parameters.items():
                        p.copy_(tensors[name])
        for name, p in parameters.items():
            if part == "master" and self._zero_stage:
                safe_set_full_fp32_param(p, tensors[name])
            elif part in ("exp_avg", "exp_avg_sq"):
                if self._zero_stage:
                    safe_set_full_optimizer_state(p, tensors[name], part)
                else:
                    self._engine.basic_optimizer.state[p][part].copy_(tensors[name])

    def set_step(self, step: int) -> None:
        for state in self._engine.basic_optimizer.state.values():
            state["step"].fill_(step)

    def _start_moments(self) -> None:
        optimizer = self._engine.optimizer
        if self._zero_stage == 3:
            start_moments(self._engine.basic_optimizer, optimizer.fp32_partitioned_groups_flat)
        else:
            groups = self._engine.basic_optimizer.param_groups
            start_moments(self._engine.basic_optimizer, [p for group in groups for p in group["params"]])
        if self._zero_stage in (1, 2):
            optimizer._lazy_init_hp_params_optimizer_state()


def _import_deepspeed(device: torch.device) -> Any:
    # What DeepSpeed reads when it is imported: a learner sees one device, its own.
    os.environ["LOCAL_RANK"] = "0"
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls them, and torch warns of each call.
    deprecated = r".*torch\.distributed\.(all_gather_into|reduce_scatter)_tensor"
    warnings.filterwarnings("ignore", deprecated, FutureWarning)
    if device.type == "cpu":
        # Its shared memory operations would be compiled now, for minutes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    assert dist.is_initialized()
    deepspeed.init_distributed(dist_init_required=False)
    return deepspeed


def _partition(module: nn.Module, device: torch.device, dtype: torch.dtype, placed: dict[Tensor, Tensor]) -> None:
    """Shards parameters one module after the other, so that only rank 0 ever holds more than one of them whole.

    Buffers stay as they are: zero.Init around the whole construction would make RoPE's frequencies bfloat16.
    """
    import deepspeed

    for child in module.children():
        _partition(child, device, dtype, placed)
    place(module, device, recurse=False, placed=placed)
    if module._parameters:
        deepspeed.zero.Init(module=module, dtype=dtype, mem_efficient_linear=False)
