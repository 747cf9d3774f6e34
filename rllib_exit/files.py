"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def staging_prefix(path: Path) -> str:
    """How the names of a directory's unfinished versions begin, beside it."""
    return f".{path.name}.tmp-"


def new_directory(path: str | Path) -> Path:
    """The absolute path of a directory that is yet to be written; asked for before the work for it begins.

    Raises:
        FileExistsError: If there is something at ``path``, other than an empty directory.
    """
    path = Path(path).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is not empty: name a new directory")
    return path


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A directory to write into; it is synced and appears at ``path`` when the context ends without error.

    Raises:
        OSError: If there is a non-empty directory at ``path``.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=staging_prefix(path)))
    try:
        yield staging
        staging.chmod(0o755)
        for written in (*staging.rglob("*"), staging):
            _fsync(written)
        os.rename(staging, path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
