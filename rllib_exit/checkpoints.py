"""Atomic, verified checkpoints.

RLlib writes a checkpoint in place, and loads a damaged one without a warning. Here a checkpoint is written beside its
place, gets a manifest of its files' SHA-256 sums, is synced, and is then renamed.

A checkpoint holds pickles, which run code when they are read. Its manifest says who wrote it, and nothing is read of a
checkpoint whose manifest does not name this program and all of its files. That keeps out what was damaged, added or
made by another program; it is no signature, so load only what you trust.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rllib_exit.files import atomic_directory

MANIFEST = "manifest.json"
WRITER = "rllib-exit"


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
        sums = {name: _sha256(staging / name) for name in _files(staging)}
        (staging / MANIFEST).write_text(json.dumps({"written_by": WRITER, "files": sums}, indent=1))


def verify(path: str | Path) -> None:
    """Checks that a checkpoint is whole.

    Raises:
        CheckpointError: If it is not, or was not written by this program; says which file and what is wrong with it.
    """
    path = Path(path)
    listed, there = _listed(path), _files(path)
    for name in sorted(listed.keys() | there):
        if name not in there:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is missing; use an earlier one")
        if name not in listed:
            raise CheckpointError(f"checkpoint {path} has a file that is not its own: {name}; remove it")
        if _sha256(path / name) != listed[name]:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} was changed; use an earlier one")


def _listed(path: Path) -> dict[str, str]:
    """By name, the sums in a checkpoint's manifest."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{path} is no complete checkpoint: it has no {MANIFEST}")
    try:
        content = json.loads(manifest.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged: {MANIFEST} is cut off or no JSON; use an earlier one"
        ) from error
    if not isinstance(content, dict) or content.get("written_by") != WRITER:
        raise CheckpointError(
            f"checkpoint {path} is not loaded: its {MANIFEST} does not say that {WRITER} wrote it. Where it is from an "
            "earlier version, load it with that version"
        )
    files = content.get("files")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"checkpoint {path} is damaged: {MANIFEST} lists no files; use an earlier one")
    return files


def _files(path: Path) -> set[str]:
    """The files of a checkpoint but for the manifest, and for hidden ones, in which Ray keeps metadata."""
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    return {name for name in names if name != MANIFEST and not name.startswith(".")}


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
