"""The versions that a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of what computes its results."""
    packages = ("rllib-exit", "ray", "torch", "transformers")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}
