"""The learner: knows tokens, masks, log-probabilities and advantages; nothing of curricula."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_exit.grpo.batch import TrainBatch
from rllib_exit.grpo.causal_lm_rl_module import ENTROPY, LOGPROBS, PACK, CausalLMRLModule
from rllib_exit.grpo.grpo_config import GRPOConfig
from rllib_exit.objective import packing
from rllib_exit.objective.loss import grpo_loss
from rllib_exit.objective.packing import Pack, Row

logger = logging.getLogger(__name__)


class GRPOTorchLearner(TorchLearner):
    """GRPO's update (paper Eqs. 4 and 5) over packs of rows, with gradients accumulated over the packs."""

    config: GRPOConfig

    def build(self) -> None:
        # Ray gives a process as many threads as the CPUs that it reserved. The learner works while the
        # engine waits, so it may use them all.
        torch.set_num_threads(self.config.learner_threads or os.cpu_count() or 1)
        _keep_freed_memory()
        self._num_updates = 0
        self._num_batches = 0
        super().build()

    @property
    def language_model(self) -> CausalLMRLModule:
        """The module that is trained."""
        return self.module[DEFAULT_MODULE_ID]  # type: ignore[return-value]

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        params = self.get_parameters(self.module[module_id])
        optimizer = torch.optim.AdamW(
            params, lr=config.lr, betas=config.adam_betas, weight_decay=config.weight_decay, fused=True
        )
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=params)

    def get_parameters(self, module: Any) -> list[torch.nn.Parameter]:
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def _log_trainable_parameters(self) -> None:
        """Logged once, they would be NaN in every later result."""

    def update(self, *, training_data: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Runs ``num_epochs`` passes over a :class:`TrainBatch`, one optimizer step per minibatch."""
        start = time.perf_counter()
        batch: TrainBatch = training_data.batch
        self._weights_seq_no += 1
        minibatches = [self._pack(rows) for rows in batch.minibatches]
        # π_old is the policy at the start. With a single update it is the current one, for free.
        single = self.config.num_epochs * len(minibatches) == 1
        old = None if single else [[self._logprobs(p) for p in packs] for packs in minibatches]

        sums: dict[str, float] = defaultdict(float)
        for _ in range(self.config.num_epochs):
            for i, packs in enumerate(minibatches):
                self._update_minibatch(packs, old[i] if old else [None] * len(packs), sums)
        self._num_batches += 1
        if self._num_batches % self.config.ref_update_interval == 0:
            self.language_model.update_reference(self.config.ref_update_rate)

        seconds = time.perf_counter() - start
        self._log(sums, sum(len(row.token_ids) for rows in batch.minibatches for row in rows) / seconds)
        return self.metrics.reduce()

    def _pack(self, rows: tuple[Row, ...]) -> list[Pack]:
        share = not self.config.attn_implementation.startswith("flash")
        packs = packing.pack(rows, self.config.max_tokens_per_micro_batch, share_prefixes=share)
        return [pack.to(self.language_model.model.device) for pack in packs]

    @torch.no_grad()
    def _logprobs(self, pack: Pack) -> torch.Tensor:
        return self.language_model.forward_train({PACK: pack})[LOGPROBS]

    def _update_minibatch(self, packs: list[Pack], old: Sequence[torch.Tensor | None], sums: dict[str, float]) -> None:
        optimizer = self.get_optimizer()
        optimizer.zero_grad(set_to_none=True)
        loss_sum = 0.0
        for pack, old_logprobs_N in zip(packs, old, strict=True):
            loss = self.compute_loss_for_module(
                module_id=DEFAULT_MODULE_ID,
                config=self.config,
                batch={PACK: pack, "old_logprobs": old_logprobs_N, "sums": sums},
                fwd_out=self.language_model.forward_train({PACK: pack}),
            )
            loss.backward()
            loss_sum += float(loss.detach())
        sums["loss"] += loss_sum
        sums["minibatches"] += 1
        if not packs:
            return
        max_norm = self.config.grad_clip if self.config.grad_clip is not None else float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.get_parameters(self.language_model), max_norm))
        # One non-finite gradient makes the norm non-finite.
        if not (torch.isfinite(torch.tensor([norm, loss_sum]))).all():
            logger.warning("skipped an update: loss %s, gradient norm %s", loss_sum, norm)
            sums["skipped_updates"] += 1
            optimizer.zero_grad(set_to_none=True)
            return
        sums["grad_norm"] += norm
        self._num_updates += 1
        warmup = max(1, self.config.lr_warmup_steps)
        self._set_optimizer_lr(optimizer, self.config.lr * min(1.0, self._num_updates / warmup))
        optimizer.step()

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Any:
        """The pack's share of the minibatch's loss; adds to ``batch["sums"]`` what is reported."""
        pack: Pack = batch[PACK]
        logprobs_N = fwd_out[LOGPROBS]
        old_logprobs_N = batch["old_logprobs"]
        reference = self.language_model.reference_logprobs(pack) if config.kl_coeff else None
        loss, stats = grpo_loss(
            logprobs_N,
            logprobs_N.detach() if old_logprobs_N is None else old_logprobs_N,
            pack.rollout_logprobs_N,
            reference,
            pack.advantages_N,
            pack.weights_N,
            clip_param=config.clip_param,
            clip_param_high=config.clip_param_high,
            kl_coeff=config.kl_coeff,
            mismatch_clip=config.mismatch_clip,
        )
        sums = batch["sums"]
        sums["entropy"] += float(fwd_out[ENTROPY].sum())
        for name, value in stats.items():
            if name.endswith("_max"):
                sums[name] = max(sums[name], float(value))
            else:
                sums[name] += float(value)
        return loss

    def _log(self, sums: dict[str, float], tokens_per_s: float) -> None:
        tokens = max(sums["num_tokens"], 1.0)
        updates = max(sums["minibatches"] - sums["skipped_updates"], 1.0)
        values = {
            "loss": sums["loss"] / max(sums["minibatches"], 1.0),
            "kl": sums["kl"] / tokens,
            "clip_fraction": sums["clipped"] / tokens,
            "entropy": sums["entropy"] / tokens,
            "grad_norm": sums["grad_norm"] / updates,
            "logprob_abs_diff_mean": sums["logprob_abs_diff"] / tokens,
            "logprob_abs_diff_max": sums["logprob_abs_diff_max"],
            "skipped_updates": sums["skipped_updates"],
            "lr": self._get_optimizer_lr(self.get_optimizer()),
            "tokens_per_s": tokens_per_s,
        }
        for name, value in values.items():
            self.metrics.log_value(name, value, reduce="mean", window=1)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = super().get_state(*args, **kwargs)
        state.update(num_updates=self._num_updates, num_batches=self._num_batches)
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        # The stock learner ignores weights and versions older than its own: a rollback has both.
        self._weights_seq_no = 0
        super().set_state(state)
        self._weights_seq_no = state[WEIGHTS_SEQ_NO]
        self._num_updates = state.get("num_updates", self._num_updates)
        self._num_batches = state.get("num_batches", self._num_batches)


def _keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next micro-batch.

    By default it gives large tensors back to the kernel when they are freed; faulting fresh pages in for
    every activation and gradient then takes longer than computing them. GPU tensors are not concerned.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**28)
        libc.mallopt(m_mmap_max, 0)
