"""The learner: knows tokens, masks, log-probabilities and advantages; nothing of curricula."""

from __future__ import annotations

import itertools
import logging
import math
import socket
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from safetensors.torch import load
from torch import Tensor, nn
from torch.distributed import ReduceOp

from envs.workers import usable_cpus
from rllib_exit import settings
from rllib_exit.checkpoints import Place
from rllib_exit.learner.batch import TOKEN_LOGPROBS, TrainBatch
from rllib_exit.learner.learner_group import POLICY, REFERENCE
from rllib_exit.learner.module import ENTROPY, LOGPROBS, PACK, CausalLMRLModule
from rllib_exit.learner.packing_check import can_share_prefixes
from rllib_exit.learner.sharding.collectives import all_reduce, rank, start_process_group
from rllib_exit.learner.sharding.ddp import DDPModel
from rllib_exit.learner.sharding.sharded_model import OptimizerConfig, ShardedModel
from rllib_exit.learner.sharding.weights import collect_weights, weight_buckets, weight_shapes
from rllib_exit.learner.shards import ShardWriter, State
from rllib_exit.memory import keep_freed_memory, release_freed_memory
from rllib_exit.objective import packing
from rllib_exit.objective.loss import grpo_loss
from rllib_exit.objective.packing import Pack, Row
from rllib_exit.weight_sync.weight_store import StoredWeights, WeightStore

if TYPE_CHECKING:
    from rllib_exit.weight_sync.nccl_sender import NCCLSender

logger = logging.getLogger(__name__)


# Sums over the tokens that a learner trains on.
SUMMED = ("loss", "kl", "clipped", "entropy", "logprob_abs_diff", "num_tokens")
Sums = defaultdict[str, Any]  # of numbers, or scalar tensors
# A pack whose loss is 0, for a learner that has fewer packs than another.
EMPTY_ROW = Row(np.zeros(2, np.int32), np.array([False, True]), np.zeros(2, np.float32), 0.0, 0.0)


class GRPOTorchLearner(TorchLearner):
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
        self._num_updates = 0
        self._num_batches = 0
        self._lr = self._training.lr
        self._store = WeightStore(settings.GenerationSettings.of(self.config).full_weights_interval)
        self._sender: NCCLSender | None = None
        self._writer = ShardWriter()
        super().build()
        self._share_prefixes = can_share_prefixes(
            self.language_model,
            self._torch_device,
            max_model_len=self._language_model.max_model_len,
            # Flash attention finds a pack's rows by their positions, and knows no trees.
            share=not self._language_model.attn_implementation.startswith("flash"),
        )

    @property
    def language_model(self) -> CausalLMRLModule:
        """The module that is trained."""
        return self.module[DEFAULT_MODULE_ID]  # type: ignore[return-value]

    @property
    def model(self) -> ShardedModel:
        """The policy."""
        return self.language_model.model

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
        # FSDP2 shards DeepSpeed's reference policy, too: it computes in the same precision and keeps float32 weights.
        if sharding.sharding != "ddp":
            from rllib_exit.learner.sharding.fsdp2 import FSDP2Model

            return FSDP2Model(module, device, optimizer, dtype)
        return DDPModel(module, device, optimizer)

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
        """Runs ``num_epochs`` passes over a :class:`TrainBatch`, one optimizer step per minibatch. Collective."""
        start = time.perf_counter()
        batch: TrainBatch = training_data.batch
        self._weights_seq_no += 1
        minibatches = self._equalise([self._pack(rows) for rows in batch.minibatches])
        packs = [pack for packs in minibatches for pack in packs]
        # What the updates do not change is computed ahead of them, once for all epochs.
        reference = self.language_model.reference_logprobs(packs) if self._training.kl_coeff else [None] * len(packs)
        # π_old is the policy at the start. With a single update it is the current one, for free.
        single = self._training.num_epochs * len(minibatches) == 1
        old: list[Any] = [None if single else self._logprobs(pack) for pack in packs]

        sums: Sums = defaultdict(float)
        for _ in range(self._training.num_epochs):
            scored = zip(packs, old, reference, strict=True)
            old = []
            for minibatch in minibatches:
                old += self._update_minibatch(list(itertools.islice(scored, len(minibatch))), sums)
        self._num_batches += 1
        if self._num_batches % 10 == 0:  # faulting it in again takes a seventh of an update
            release_freed_memory()
        if self._num_batches % self._training.ref_update_interval == 0:
            self.language_model.update_reference(self._training.ref_update_rate)

        tokens = sum(len(row.token_ids) for rows in batch.minibatches for row in rows)
        numbers = defaultdict(float, {name: float(value) for name, value in sums.items()})
        if self._colocated:
            # The engine that shares the device gets what the update no longer needs.
            torch.cuda.empty_cache()
        self._log(numbers, tokens, time.perf_counter() - start)
        result = self.metrics.reduce()
        if self._log_tokens:
            result[TOKEN_LOGPROBS] = packing.unpack(
                batch.minibatches, minibatches, [of for of in old if of is not None]
            )
        return result

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

    def _update_minibatch(
        self, scored: Sequence[tuple[Pack, Tensor | None, Tensor | None]], sums: Sums
    ) -> list[Tensor]:
        """One optimizer step over packs, each with its log-probabilities under the old and the reference policy.

        Returns those under the old policy, which is the current one where none were given.
        """
        sums["minibatches"] += 1
        old: list[Tensor] = []
        if not scored:
            return old
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
        lr = self._training.lr * self._lr_factor(self._num_updates)
        # The norm is that of all learners together, and so is what follows from it.
        norm = self.model.step(lr)
        if not math.isfinite(norm):
            logger.warning("skipped an update: gradient norm %s", norm)
            sums["skipped_updates"] += 1
            return old
        sums["grad_norm"] += norm
        self._num_updates += 1
        self._lr = lr
        return old

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

    def _log(self, sums: Mapping[str, float], tokens: int, seconds: float) -> None:
        """Logs the same on every learner: RLlib's mean over the learners is then that of all their tokens."""
        *totals, tokens_total = all_reduce([*(sums[name] for name in SUMMED), tokens], self._torch_device, ReduceOp.SUM)
        total = dict(zip(SUMMED, totals, strict=True))
        worst, slowest = all_reduce([sums["logprob_abs_diff_max"], seconds], self._torch_device, ReduceOp.MAX)
        values = {
            "skipped_updates": sums["skipped_updates"],
            "lr": self._lr,
            "tokens_per_s": tokens_total / slowest,
        }
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

    # The learners' state: all of them take part, and the first has it.

    @property
    def policy_version(self) -> int:
        """How many batches the policy was trained on."""
        return self._weights_seq_no

    def collect_weights(self) -> np.ndarray | None:
        """The policy's weights as the engine takes them, see :func:`collect_weights`. Collective."""
        return collect_weights(self.model, self.language_model.compute_dtype)

    def put_weights(self) -> StoredWeights | None:
        """Puts the same into Ray's object store, or what changed; None but on the first learner. Collective."""
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
