"""Atomic, verified checkpoints.

RLlib writes a checkpoint in place and loads a damaged one without a word. Here a checkpoint is written
beside its place, synced, given a manifest of its files' SHA-256 sums, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete or damaged."""


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A directory to write into; it appears at ``path``, with a manifest, when the context ends without error.

    Raises:
        FileExistsError: If there is a non-empty directory at ``path``.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield staging
        sums = {str(file.relative_to(staging)): _sha256_synced(file) for file in _files(staging)}
        manifest = staging / MANIFEST
        manifest.write_text(json.dumps(sums, indent=1))
        _sha256_synced(manifest)
        staging.chmod(0o755)
        os.rename(staging, path)
        _sync_directory(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sha256_synced(file: Path) -> str:
    with open(file, "rb") as f:
        os.fsync(f.fileno())
    return _sha256(file)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
