"""Checkpoints that are whole or none at all, on a disk or in a bucket.

RLlib writes a checkpoint in place, and loads a damaged one without a warning. Here a checkpoint's files go straight to
their place, by whoever has them: each learner writes its own. The last file is a manifest of all the others' SHA-256
sums. What has none is no checkpoint.

A checkpoint holds pickles, which run code when they are read. Its manifest says who wrote it, and nothing is read of a
checkpoint whose manifest does not name this program and all of its files, and no file that is not as its sum says.
That keeps out what was damaged, added or made by another program; it is no signature, so load only what you trust.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

MANIFEST = "manifest.json"
WRITER = "rllib-exit"


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete or damaged."""


@dataclass(frozen=True)
class Place:
    """A directory in a file system; it can be sent to other processes.

    Attributes:
        filesystem: This machine's, or that of a bucket.
        path: Its path there.
    """

    filesystem: FileSystem
    path: str

    @classmethod
    def of(cls, path: Any, filesystem: FileSystem | None = None) -> Place:
        """The place that a path in a file system, a URI, a path of this machine or Ray's ``Checkpoint`` names."""
        from pyarrow import fs

        if isinstance(path, Place):
            return path
        if hasattr(path, "filesystem"):
            return cls(path.filesystem, path.path)
        if filesystem is not None:
            return cls(filesystem, str(path).rstrip("/"))
        if "://" in str(path):
            return cls(*fs.FileSystem.from_uri(str(path).rstrip("/")))
        return cls(fs.LocalFileSystem(), str(Path(path).absolute()))

    def __truediv__(self, name: str) -> Place:
        return Place(self.filesystem, f"{self.path}/{name}")

    @property
    def parent(self) -> Place:
        """The directory above."""
        return Place(self.filesystem, self.path.rpartition("/")[0])

    def __str__(self) -> str:
        return self.path if self._is_local else f"{self.filesystem.type_name}://{self.path}"

    def write(self, name: str, content: bytes) -> str:
        """Writes a file, on this machine to the disk itself, and returns its SHA-256 sum."""
        path = f"{self.path}/{name}"
        self.filesystem.create_dir(path.rpartition("/")[0])
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)
        if self._is_local:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        return hashlib.sha256(content).hexdigest()

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read()

    def files(self) -> dict[str, FileInfo]:
        """By name, all files below, but for hidden ones, in which Ray keeps metadata."""
        from pyarrow import fs

        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True, recursive=True))
        above = self.path.strip("/")
        by_name = {file.path.strip("/").removeprefix(above).lstrip("/"): file for file in found if file.is_file}
        return {name: file for name, file in by_name.items() if not name.startswith(".")}

    def clear(self) -> None:
        """Removes it, if it is there, so that it is no checkpoint from the first moment on."""
        from pyarrow import fs

        manifest = f"{self.path}/{MANIFEST}"
        if self.filesystem.get_file_info(manifest).is_file:
            self.filesystem.delete_file(manifest)
        if self.filesystem.get_file_info(self.path).type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)

    @property
    def _is_local(self) -> bool:
        return self.filesystem.type_name == "local"


class Checkpoint:
    """A whole checkpoint.

    Args:
        place: Its directory, as :meth:`Place.of` takes it.

    Raises:
        CheckpointError: If its files are not those that its manifest lists, or if this program did not write it.
    """

    def __init__(self, place: Any) -> None:
        self.place = Place.of(place)
        self._sums = _listed(self.place)
        there = self.place.files().keys() - {MANIFEST}
        for name in sorted(self._sums.keys() | there):
            if name not in there:
                raise CheckpointError(f"checkpoint {self.place} is damaged: {name} is missing; use an earlier one")
            if name not in self._sums:
                raise CheckpointError(f"checkpoint {self.place} has a file that is not its own: {name}; remove it")

    @cached_property
    def names(self) -> list[str]:
        """Its files."""
        return sorted(self._sums)

    def read(self, name: str) -> bytes:
        """The content of one of its files.

        Raises:
            CheckpointError: If it is not what was written.
        """
        content = self.place.read(name)
        if hashlib.sha256(content).hexdigest() != self._sums[name]:
            raise CheckpointError(f"checkpoint {self.place} is damaged: {name} was changed; use an earlier one")
        return content


def begin(place: Place) -> None:
    """Makes the directory of a new checkpoint.

    Raises:
        FileExistsError: If there are files.
    """
    place.filesystem.create_dir(place.path)
    if place.files():
        raise FileExistsError(f"{place} is not empty: name a new directory for the checkpoint")


def finish(place: Place, sums: Mapping[str, str]) -> None:
    """Makes what was written a checkpoint.

    Args:
        place: Its directory.
        sums: The SHA-256 sums of its files, as :meth:`Place.write` returned them.

    Raises:
        CheckpointError: If there are files that are not to be seen from here.
    """
    if hidden := sums.keys() - place.files().keys():
        raise CheckpointError(
            f"checkpoint {place} has files that are on other machines alone, such as {min(hidden)}: use a directory "
            "or bucket that all nodes share"
        )
    # Whole or not at all, on a disk too.
    place.write(f".{MANIFEST}", json.dumps({"written_by": WRITER, "files": dict(sums)}, indent=1).encode())
    place.filesystem.move(f"{place.path}/.{MANIFEST}", f"{place.path}/{MANIFEST}")


def verify(path: Any) -> None:
    """Checks every file of a checkpoint.

    Raises:
        CheckpointError: If it is not whole, or was not written by this program; says which file and what is wrong.
    """
    checkpoint = Checkpoint(path)
    for name in checkpoint.names:
        checkpoint.read(name)


def newest(path: str | Path) -> Path:
    """The newest whole checkpoint at or under a path of this machine.

    Raises:
        CheckpointError: If there is none.
    """
    return Path(newest_at(Place.of(path)).path)


def newest_at(place: Place) -> Place:
    """As :func:`newest`, anywhere."""
    # A file system may know no times; the names of a trial's checkpoints are in order.
    found = sorted(_checkpoints(place), key=lambda manifest: (manifest.mtime_ns or 0, manifest.path), reverse=True)
    for manifest in found:
        checkpoint = Place(place.filesystem, manifest.path.rpartition("/")[0])
        try:
            verify(checkpoint)
        except CheckpointError:
            continue
        return checkpoint
    if not place.filesystem.get_file_info(place.path).type:
        raise CheckpointError(f"{place} does not exist")
    raise CheckpointError(f"no whole checkpoint under {place}" + (f": {len(found)} are damaged" if found else ""))


def _checkpoints(place: Place) -> Iterator[FileInfo]:
    """The manifests at or under a place."""
    return (file for name, file in place.files().items() if name.rpartition("/")[2] == MANIFEST)


def _listed(place: Place) -> dict[str, str]:
    """By name, the sums in a checkpoint's manifest."""
    try:
        content = json.loads(place.read(MANIFEST))
    except FileNotFoundError:
        raise CheckpointError(f"{place} is no complete checkpoint: it has no {MANIFEST}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {place} is damaged: {MANIFEST} is cut off or no JSON; use an earlier one"
        ) from error
    if not isinstance(content, dict) or content.get("written_by") != WRITER:
        raise CheckpointError(
            f"checkpoint {place} is not loaded: its {MANIFEST} does not say that {WRITER} wrote it. Where it is from "
            "an earlier version, load it with that version"
        )
    files = content.get("files")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"checkpoint {place} is damaged: {MANIFEST} lists no files; use an earlier one")
    return files
