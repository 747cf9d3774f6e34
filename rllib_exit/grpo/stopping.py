"""Asks a run to stop before its iteration ends, on whichever node of the cluster it is."""

from __future__ import annotations

import ray
from ray.experimental.internal_kv import _internal_kv_exists, _internal_kv_put


class StoppedError(RuntimeError):
    """Training was asked to stop; the message says where it left a checkpoint."""


def request_stop() -> None:
    """Asks what this driver has started to save a checkpoint and stop."""
    _internal_kv_put(_key(), b"")


def stop_requested() -> bool:
    """Whether this driver, or the one that started this actor, has asked to stop."""
    return _internal_kv_exists(_key())


def _key() -> bytes:
    return f"rllib_exit_stop:{ray.get_runtime_context().get_job_id()}".encode()
