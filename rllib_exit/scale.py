"""The scale of a run: a small model on this CPU, or the paper's models on GPUs.

A tuned example asks for the scale when it is imported; ``rllib train file --scale`` sets it.
"""

from __future__ import annotations

import os
import sys
from typing import Literal

SCALE_VARIABLE = "RLLIB_EXIT_SCALE"

Scale = Literal["cpu", "paper"]


def current_scale() -> Scale:
    """The scale that the environment variable ``RLLIB_EXIT_SCALE`` names, or that the hardware allows.

    Raises:
        ValueError: If the variable names no scale.
    """
    return scale_and_reason()[0]


def scale_and_reason() -> tuple[Scale, str]:
    """The scale, and the reason for it, which is shown to the user.

    Raises:
        ValueError: If ``RLLIB_EXIT_SCALE`` names no scale.
    """
    asked = os.environ.get(SCALE_VARIABLE) or "auto"
    if asked == "cpu" or asked == "paper":
        return asked, "as asked"
    if asked != "auto":
        raise ValueError(f"scale is {asked!r}: use 'auto', 'cpu' or 'paper' (--scale or {SCALE_VARIABLE})")

    # A cluster's GPUs count, not those of the machine that the command is typed on.
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        gpus, where = int(ray.cluster_resources().get("GPU", 0)), "the Ray cluster"
    else:
        import torch

        gpus, where = torch.cuda.device_count(), "this machine"
    if gpus:
        return "paper", f"{where} has {gpus} GPU{'s' * (gpus > 1)}"
    return "cpu", f"{where} has no GPU"


def cpu_dtype() -> Literal["bfloat16", "float32"]:
    """The dtype in which this machine's CPU is faster: bfloat16 where it has instructions for it, else float32.

    With them bfloat16 is about twice as fast in engine and learner, without them three times as slow.
    """
    import torch

    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"
