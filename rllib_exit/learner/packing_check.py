"""Finds out, before training, whether a model scores packed rows as it scores them alone."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from rllib_exit.learner.module import LOGPROBS, PACK, CausalLMRLModule
from rllib_exit.objective import packing
from rllib_exit.objective.packing import Row

logger = logging.getLogger(__name__)

# The largest mean difference of log-probabilities that rounding explains.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def can_share_prefixes(module: CausalLMRLModule, device: torch.device, *, max_model_len: int, share: bool) -> bool:
    """Scores a small pack with shared prefixes, and one without, against its rows alone.

    The mask of a pack says which tokens a token may attend to. A recurrent or convolutional layer does not ask it, and
    some implementations of attention take it for something else. Collective: all learners make the same passes.

    Args:
        module: The policy.
        device: The learner's device.
        max_model_len: The most tokens of a row.
        share: Whether rows of a pack are to share their prefixes.

    Returns:
        Whether they can: False if ``share`` is False, or if only packs without sharing are scored rightly.

    Raises:
        ValueError: If packs cannot be used at all. It names the model and the reason.
    """
    name, config = module.model_config["model"], module.language_config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and window < max_model_len:
        raise ValueError(
            f"model {name!r} attends to the last {window} tokens only in some layers, which the masks of the learner "
            f"do not express: use a max_model_len of at most {window} (it is {max_model_len}), or another model"
        )
    rows = _rows(config.vocab_size)
    alone = [module.plain_logprobs(pack.to(device)) for row in rows for pack in packing.pack([row], 1)]
    tolerance = TOLERANCES[module.compute_dtype]

    def difference(share_prefixes: bool) -> float:
        [pack] = packing.pack(rows, 10**6, share_prefixes)
        with torch.no_grad():
            logprobs_N = module.forward_train({PACK: pack.to(device)})[LOGPROBS]
        packed = [logprobs_N[pack.rows_N == i] for i in range(len(rows))]
        return float(torch.cat(packed).sub(torch.cat(alone)).abs().mean())

    without = difference(False)
    if not without <= tolerance:  # NaN too
        raise ValueError(
            f"model {name!r} with attn_implementation {module.model_config['attn_implementation']!r} scores packed "
            f"rows otherwise than rows alone (mean difference of log-probabilities {without:.2g}): its layers do not "
            "keep to the mask of a pack; use attn_implementation 'sdpa', or a model with plain causal attention"
        )
    if not share or difference(True) <= tolerance:
        return share
    logger.warning(
        "model %r does not score rows that share their prompt as it scores rows alone: every rollout of a group "
        "repeats its prompt, so that an update takes more time and memory",
        name,
    )
    return False


def _rows(vocab_size: int) -> list[Row]:
    """Three rows of each of two prompts; they are the same on every learner."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for length in (20, 13):
        prompt: Any = rng.integers(vocab_size, size=length)
        for _ in range(3):
            token_ids = np.concatenate([prompt, rng.integers(vocab_size, size=rng.integers(4, 12))]).astype(np.int32)
            mask = np.arange(len(token_ids)) >= length
            rows.append(Row(token_ids, mask, np.zeros(len(token_ids), np.float32), 0.0, 1.0))
    return rows
