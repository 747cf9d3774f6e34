"""Atomic, verified checkpoints.

RLlib writes a checkpoint in place, and loads a damaged one without a warning. Here a checkpoint is written beside its
place, gets a manifest of its files' SHA-256 sums, is synced, and is then renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rllib_exit.files import atomic_directory

MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete or damaged."""


@contextmanager
def atomic_checkpoint(path: str | Path) -> Iterator[Path]:
    """A directory to write into; it appears at ``path``, with a manifest, when the context ends without error.

    Raises:
        OSError: If there is a non-empty directory at ``path``.
    """
    with atomic_directory(path) as staging:
        yield staging
        sums = {str(f.relative_to(staging)): _sha256(f) for f in sorted(staging.rglob("*")) if f.is_file()}
        (staging / MANIFEST).write_text(json.dumps(sums, indent=1))


def verify(path: str | Path) -> None:
    """Checks that a checkpoint is whole.

    Raises:
        CheckpointError: If it is not; says which file and what is wrong with it.
    """
    path = Path(path)
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{path} is no complete checkpoint: it has no {MANIFEST}")
    for name, sha256 in json.loads(manifest.read_text()).items():
        if not (path / name).is_file():
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is missing; use an earlier one")
        if _sha256(path / name) != sha256:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} was changed; use an earlier one")


def newest(path: str | Path) -> Path:
    """The newest whole checkpoint at or under ``path``.

    Raises:
        CheckpointError: If there is none.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    found = [manifest.parent for manifest in path.rglob(MANIFEST)]
    for checkpoint in sorted(found, key=lambda c: (c / MANIFEST).stat().st_mtime_ns, reverse=True):
        try:
            verify(checkpoint)
        except CheckpointError:
            continue
        return checkpoint
    raise CheckpointError(f"no whole checkpoint under {path}" + (f": {len(found)} are damaged" if found else ""))


def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
