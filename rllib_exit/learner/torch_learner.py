"""The learner: knows tokens, masks, log-probabilities and advantages; nothing of curricula."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor, nn
from torch.distributed import ReduceOp

from envs.workers import usable_cpus
from rllib_exit import settings
from rllib_exit.learner.batch import TOKEN_LOGPROBS, TrainBatch
from rllib_exit.learner.flops import ModelFlops, peak
from rllib_exit.learner.module import ENTROPY, LOGPROBS, PACK
from rllib_exit.learner.packing_check import can_share_prefixes
from rllib_exit.learner.sharding.collectives import all_reduce, start_process_group, world_size
from rllib_exit.learner.sharding.ddp import DDPModel
from rllib_exit.learner.sharding.sharded_model import OptimizerConfig, ShardedModel
from rllib_exit.learner.stateful_learner import StatefulLearner
from rllib_exit.memory import keep_freed_memory, release_freed_memory
from rllib_exit.objective import packing
from rllib_exit.objective.loss import grpo_loss
from rllib_exit.objective.packing import Pack, Row
from rllib_exit.rollouts import SegmentKey

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


# Sums over the tokens that a learner trains on.
SUMMED = ("loss", "kl", "clipped", "entropy", "logprob_abs_diff", "num_tokens")
Sums = defaultdict[str, Any]  # of numbers, or scalar tensors
# A pack whose loss is 0, for a learner that has fewer packs than another.
EMPTY_ROW = Row(np.zeros(2, np.int32), np.array([False, True]), np.zeros(2, np.float32), 0.0, 0.0)


@dataclass
class Accumulated:
    """What was done of an update, besides the gradients; its batch may come in parts."""

    sums: Sums = field(default_factory=lambda: defaultdict(float))
    divisor: float = 0.0
    tokens: int = 0
    flops: float = 0.0  # NaN if they are not known
    seconds: float = 0.0
    bubble_s: float = 0.0  # without anything to train on, since the last update
    logprobs: dict[SegmentKey, np.ndarray] = field(default_factory=dict)  # under the old policy, for the log


class GRPOTorchLearner(StatefulLearner):
    """GRPO's update (paper Eqs. 4 and 5) over packs of rows, with gradients accumulated over the packs.

    It owns the loop; where parameters, gradients and the optimizer's state lie is the back end's matter, see
    :mod:`rllib_exit.learner.sharding.sharded_model`. Losses and metrics do not depend on the back end or on the
    number of learners. Methods marked collective are called on all learners together.
    """

    def build(self) -> None:
        self._training = settings.TrainingSettings.of(self.config)
        self._log_tokens = settings.ReportingSettings.of(self.config).with_tokens
        self._sharding = settings.ShardingSettings.of(self.config)
        self._language_model = settings.LanguageModelSettings.of(self.config)
        self._colocated = settings.ExecutionSettings.of(self.config).colocated
        # Ray gives a process as many threads as the CPUs that it reserved. The learner works while the
        # engine waits, so it may use them all.
        torch.set_num_threads(self._training.learner_threads or usable_cpus())
        keep_freed_memory()
        self._lr = self._training.lr
        self._accumulated = Accumulated()
        super().build()
        self._share_prefixes = can_share_prefixes(
            self.language_model,
            self._torch_device,
            max_model_len=self._language_model.max_model_len,
            # Flash attention finds a pack's rows by their positions, and knows no trees.
            share=not self._language_model.attn_implementation.startswith("flash"),
        )
        model = self.model
        self._flops = ModelFlops.of(self.language_model.language_config, model.shapes, model.trainable)
        self._peak = peak(self._torch_device, self.language_model.compute_dtype)
        self._idle_since = time.perf_counter()

    def _make_module(self) -> Any:
        if self._sharding.sharding != "ddp":
            start_process_group(self._torch_device)
        module = super()._make_module()
        language_model: Any = module[DEFAULT_MODULE_ID]
        language_model.shard(self._shard)
        return module

    def _shard(self, module: nn.Module, trained: bool) -> ShardedModel:
        training, sharding, device = self._training, self._sharding, self._torch_device
        optimizer = None
        if trained:
            max_norm = training.grad_clip if training.grad_clip is not None else math.inf
            optimizer = OptimizerConfig(training.adam_betas, training.weight_decay, max_norm)
        dtype = getattr(torch, self._language_model.dtype)
        if sharding.sharding == "deepspeed" and trained:
            from rllib_exit.learner.sharding.deepspeed import DeepSpeedModel

            return DeepSpeedModel(
                module,
                device,
                optimizer,
                compute_dtype=dtype,
                zero_stage=sharding.zero_stage,
                offload_optimizer=sharding.offload_optimizer,
                zero_optimization=sharding.zero_optimization,
            )
        # FSDP2 shards the reference policy for all of them, where several learners would each have one. It keeps
        # float32 weights and computes as the policy does: for DDP its layers are gathered in float32, for autocast.
        if sharding.sharding == "ddp" and (trained or world_size() == 1):
            return DDPModel(module, device, optimizer)
        from rllib_exit.learner.sharding.fsdp2 import FSDP2Model

        return FSDP2Model(module, device, optimizer, torch.float32 if sharding.sharding == "ddp" else dtype)

    @property
    def _torch_device(self) -> torch.device:
        return torch.device(self._device)

    # The back end does what these do in RLlib.

    def _map_module_to_device(self, module: Any) -> None:
        pass

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        pass

    def _make_modules_ddp_if_necessary(self) -> None:
        pass

    def _log_trainable_parameters(self) -> None:
        """Logged once, they would be NaN in every later result."""

    def update(self, *, training_data: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Trains on a :class:`TrainBatch`, or on the last part of one. Collective.

        Runs ``num_epochs`` passes, one optimizer step per minibatch. A batch in parts is one step.
        """
        batch: TrainBatch = training_data.batch
        self._weights_seq_no += 1
        if batch.divisor is None:
            done = Accumulated()
            with self._busy(done):
                self._train(batch, done)
        else:
            self.accumulate(batch)
            done, self._accumulated = self._accumulated, Accumulated()
            with self._busy(done):
                self._step(done.sums, done.divisor)
                done.sums["loss"] /= done.divisor
        self._num_batches += 1
        if self._num_batches % 10 == 0:  # faulting it in again takes a seventh of an update
            release_freed_memory()
        if self._num_batches % self._training.ref_update_interval == 0:
            self.language_model.update_reference(self._training.ref_update_rate)
        if self._colocated:
            # The engine that shares the device gets what the update no longer needs.
            torch.cuda.empty_cache()
        self._log(done)
        result = self.metrics.reduce()
        if self._log_tokens:
            result[TOKEN_LOGPROBS] = done.logprobs
        return result

    def accumulate(self, part: TrainBatch) -> None:
        """Adds the gradients of a part of the next batch, ahead of its update. Collective.

        The gradient of a batch is the sum of those of its rows: it does not matter when each is computed, as long as
        the policy is the same.
        """
        done = self._accumulated
        with self._busy(done):
            [packs] = self._equalise([self._pack(rows) for rows in part.minibatches])
            done.flops += self._count_flops(packs)
            old = self._backward(zip(packs, itertools.repeat(None), self._reference(packs)), done.sums)
            done.divisor += part.divisor or 0.0
            done.tokens += _num_tokens(part)
            if self._log_tokens:
                done.logprobs |= packing.unpack(part.minibatches, [packs], old)

    def forget(self) -> None:
        """Drops what was accumulated of a batch that will not be trained on."""
        self._accumulated = Accumulated()
        self.model.zero_grad()

    @contextmanager
    def _busy(self, done: Accumulated) -> Iterator[None]:
        """Adds the seconds within it, and those before it since the learner was last busy."""
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        done.bubble_s += start - self._idle_since
        done.seconds += end - start
        self._idle_since = end

    def _train(self, batch: TrainBatch, done: Accumulated) -> None:
        minibatches = self._equalise([self._pack(rows) for rows in batch.minibatches])
        packs = [pack for packs in minibatches for pack in packs]
        # What the updates do not change is computed ahead of them, once for all epochs.
        reference = self._reference(packs)
        # π_old is the policy at the start. With a single update it is the current one, for free.
        single = self._training.num_epochs * len(minibatches) == 1
        old: list[Any] = [None if single else self._logprobs(pack) for pack in packs]
        done.flops = self._count_flops(packs, epochs=self._training.num_epochs, forward=int(not single))
        done.tokens = _num_tokens(batch)

        for _ in range(self._training.num_epochs):
            scored = zip(packs, old, reference, strict=True)
            old = []
            for minibatch in minibatches:
                old += self._backward(itertools.islice(scored, len(minibatch)), done.sums)
                self._step(done.sums)
        if self._log_tokens:
            done.logprobs = packing.unpack(batch.minibatches, minibatches, old)

    def _count_flops(self, packs: Sequence[Pack], *, epochs: int = 1, forward: int = 0) -> float:
        """Of the epochs, further forward passes and those of the reference policy; NaN if they are not known."""
        if self._flops is None:
            return math.nan
        passes = epochs + forward + bool(self._training.kl_coeff)
        return self._flops.of_passes(packs, forward=passes, backward=epochs)

    def _reference(self, packs: Sequence[Pack]) -> Sequence[Tensor | None]:
        return self.language_model.reference_logprobs(packs) if self._training.kl_coeff else [None] * len(packs)

    def _pack(self, rows: tuple[Row, ...]) -> list[Pack]:
        packs = packing.pack(rows, self._training.max_tokens_per_micro_batch, self._share_prefixes)
        return [pack.to(self._torch_device) for pack in packs]

    def _equalise(self, minibatches: list[list[Pack]]) -> list[list[Pack]]:
        """Adds empty packs, so that every learner makes as many passes: with sharded parameters each is collective."""
        numbers = all_reduce([len(packs) for packs in minibatches], self._torch_device, ReduceOp.MAX)
        return [
            packs + [self._empty_pack] * (int(n) - len(packs)) for packs, n in zip(minibatches, numbers, strict=True)
        ]

    @cached_property
    def _empty_pack(self) -> Pack:
        [pack] = self._pack((EMPTY_ROW,))
        return pack

    @torch.no_grad()
    def _logprobs(self, pack: Pack) -> torch.Tensor:
        return self.language_model.forward_train({PACK: pack})[LOGPROBS]

    def _backward(self, scored: Iterable[tuple[Pack, Tensor | None, Tensor | None]], sums: Sums) -> list[Tensor]:
        """Adds the gradients of packs, each with its log-probabilities under the old and the reference policy.

        Returns those under the old policy, which is the current one where none were given.
        """
        old: list[Tensor] = []
        for pack, old_logprobs_N, ref_logprobs_N in scored:
            fwd_out = self.language_model.forward_train({PACK: pack})
            old.append(fwd_out[LOGPROBS].detach() if old_logprobs_N is None else old_logprobs_N)
            loss = self.compute_loss_for_module(
                module_id=DEFAULT_MODULE_ID,
                config=self.config,
                batch={PACK: pack, "old_logprobs": old[-1], "reference_logprobs": ref_logprobs_N, "sums": sums},
                fwd_out=fwd_out,
            )
            self.model.backward(loss)
            sums["packs"] += 1
        return old

    def _step(self, sums: Sums, divisor: float = 1.0) -> None:
        """An optimizer step with the gradients, if there are any."""
        sums["minibatches"] += 1
        if not sums.pop("packs", 0):
            return
        lr = self._training.lr * self._lr_factor(self._num_updates)
        # The norm is that of all learners together, and so is what follows from it.
        norm = self.model.step(lr, divisor)
        if not math.isfinite(norm):
            logger.warning("skipped an update: gradient norm %s", norm)
            sums["skipped_updates"] += 1
            return
        sums["grad_norm"] += norm
        self._num_updates += 1
        self._lr = lr

    def _lr_factor(self, num_updates: int) -> float:
        """The share of the learning rate for the next update: it rises linearly, stays, or falls linearly to 0."""
        warmup, decay = self._training.lr_warmup_steps, self._training.lr_decay_steps
        factor = min(1.0, (num_updates + 1) / max(1, warmup))
        if decay is not None:
            factor = min(factor, max(0.0, 1 - (num_updates - warmup) / decay))
        return factor

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Any:
        """The pack's share of the minibatch's loss; adds to ``batch["sums"]`` what is reported."""
        pack: Pack = batch[PACK]
        logprobs_N = fwd_out[LOGPROBS]
        loss, stats = grpo_loss(
            logprobs_N,
            batch["old_logprobs"],
            pack.rollout_logprobs_N,
            batch["reference_logprobs"],
            pack.advantages_N,
            pack.weights_N,
            pack.rows_N,
            loss=self._training.loss,
            clip_param=self._training.clip_param,
            clip_param_high=self._training.clip_param_high,
            kl_coeff=self._training.kl_coeff,
            mismatch_clip=self._training.mismatch_clip,
            mismatch_mode=self._training.mismatch_mode,
        )
        if pack is self._empty_pack:
            return loss
        # Tensors: to read one of them would have the device wait for what it is to do next.
        sums: Sums = batch["sums"]
        stats = {"loss": loss.detach(), "entropy": fwd_out[ENTROPY].sum(), **stats}
        for name, value in stats.items():
            value = value.double()
            sums[name] = torch.clamp(value, min=sums[name]) if name.endswith("_max") else sums[name] + value
        return loss

    def _log(self, done: Accumulated) -> None:
        """Logs the same on every learner: RLlib's mean over the learners is then that of all their tokens."""
        device = self._torch_device
        sums = defaultdict(float, {name: float(value) for name, value in done.sums.items()})
        summed = [*(sums[name] for name in SUMMED), done.tokens, done.flops, self._peak]
        *totals, tokens, flops, peaks = all_reduce(summed, device, ReduceOp.SUM)
        total = dict(zip(SUMMED, totals, strict=True))
        largest = [sums["logprob_abs_diff_max"], done.seconds, done.bubble_s, _gpu_memory_max(device)]
        worst, slowest, bubble_s, gpu_memory_max = all_reduce(largest, device, ReduceOp.MAX)
        values = {
            "skipped_updates": sums["skipped_updates"],
            "lr": self._lr,
            "tokens_per_s": tokens / slowest,
            "bubble_s": bubble_s,
            "mfu": flops / (slowest * peaks),
            "gpu_memory_max": gpu_memory_max,
        }
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        # Where nothing was trained there is no loss: 0 would be a value like any other.
        if num_tokens := total["num_tokens"]:
            values |= {
                "loss": total["loss"] / sums["minibatches"],
                "kl": total["kl"] / num_tokens,
                "clip_fraction": total["clipped"] / num_tokens,
                "entropy": total["entropy"] / num_tokens,
                "grad_norm": sums["grad_norm"] / max(sums["minibatches"] - sums["skipped_updates"], 1.0),
                "logprob_abs_diff_mean": total["logprob_abs_diff"] / num_tokens,
                "logprob_abs_diff_max": worst,
            }
        for name, value in values.items():
            self.metrics.log_value(name, value, reduce="mean", window=1)


def _gpu_memory_max(device: torch.device) -> float:
    """The most bytes of tensors on the GPU since the last call; NaN without a GPU."""
    if device.type != "cuda":
        return math.nan
    most = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return float(most)


def _num_tokens(batch: TrainBatch) -> int:
    return sum(len(row.token_ids) for rows in batch.minibatches for row in rows)
