"""The stages in which a run loads: each process tells the command that waits for it what it is at.

What is told passes through Ray's key-value store, in which Tune keeps its registry too: it needs no actor of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMESPACE = "rllib_exit_stages"


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Tells that this process is in a stage and, when the stage has ended, how many seconds it took.

    Without Ray nobody is told. A stage that raises has not ended.
    """
    begun = time.perf_counter()
    _tell(name, None)
    yield
    _tell(name, time.perf_counter() - begun)


def _tell(name: str, seconds: float | None) -> None:
    import ray

    if ray.is_initialized():
        context = ray.get_runtime_context()
        key = f"{context.get_job_id()}/{name}/{context.get_actor_id()}"  # a restarted actor has its name again
        _store()._internal_kv_put(key, json.dumps(seconds), namespace=NAMESPACE)


def stages() -> dict[str, float | None]:
    """The stages that processes of this job were in, and how many seconds each took: the longest, if several were.

    None stands for a stage that a process is in now. Without Ray there are none.
    """
    import ray

    told: dict[str, list[float | None]] = {}
    if not ray.is_initialized():
        return {}
    for key in _store()._internal_kv_list(f"{ray.get_runtime_context().get_job_id()}/", namespace=NAMESPACE):
        seconds = _store()._internal_kv_get(key, namespace=NAMESPACE)
        told.setdefault(key.decode().split("/")[1], []).append(json.loads(seconds))
    return {name: None if None in each else max(s for s in each if s is not None) for name, each in told.items()}


def _store() -> Any:
    from ray.experimental import internal_kv

    return internal_kv
