from __future__ import annotations

import sys

import pytest

from rllib_exit.scale import SCALE_VARIABLE, cpu_dtype, current_scale, scale_and_reason


def test_scale_is_asked_for_or_found_out(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.delenv(SCALE_VARIABLE, raising=False)
    for gpus, scale in [(0, "cpu"), (2, "paper")]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        monkeypatch.delitem(sys.modules, "ray", raising=False)
        assert current_scale() == scale
        assert "GPU" in scale_and_reason()[1]
    for scale in ("cpu", "paper"):
        monkeypatch.setenv(SCALE_VARIABLE, scale)
        assert scale_and_reason() == (scale, "as asked")
    monkeypatch.setenv(SCALE_VARIABLE, "big")
    with pytest.raises(ValueError, match="'big'"):
        current_scale()


def test_the_clusters_gpus_count(monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.delenv(SCALE_VARIABLE, raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    assert scale_and_reason() == ("paper", "the Ray cluster has 4 GPUs")


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx2": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_bfloat16_needs_instructions(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: str):
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert cpu_dtype() == dtype
