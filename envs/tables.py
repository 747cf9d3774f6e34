"""Reads the rows of data sets: of a file, a folder or the Hugging Face Hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

FILE_SUFFIXES = (".jsonl", ".parquet", ".csv")


def rows(path: str, split: str | None = None, config: str | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a data set, each with its line or row number.

    Args:
        path: A ``.jsonl``, ``.parquet`` or ``.csv`` file, a folder that ``datasets`` can load, or a Hub data set.
        split: The data set's own split, ``train`` by default. A file has none.
        config: The data set's configuration. A file has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the data set cannot be loaded. The message names the file and the row.
    """
    file = Path(path)
    if file.suffix in FILE_SUFFIXES:
        if not file.is_file():
            raise FileNotFoundError(f"{path}: no such file: correct the path")
        if split or config:
            raise ValueError(f"{path}: a file has no split {split!r} or config {config!r}: leave them out")
        yield from {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".csv": _csv_rows}[file.suffix](path)
        return
    if file.is_file():
        raise ValueError(f"{path}: unknown file type: use {', '.join(FILE_SUFFIXES)}")
    import datasets  # slow, and files do not need it

    try:
        loaded = datasets.load_dataset(path, config, split=split or "train")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load the data set {path!r} (config {config!r}, split {split!r}): {error}. Give a "
            f"{', '.join(FILE_SUFFIXES)} file, a folder, or a data set of the Hub"
        ) from error
    yield from enumerate(loaded, start=1)  # type: ignore[arg-type]


def _jsonl_rows(path: str) -> Iterator[tuple[int, Row]]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: broken JSON ({error}): write one object per line") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a {type(row).__name__}: write one JSON object per line")
            yield number, row


def _parquet_rows(path: str) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path).to_pylist()
    except ValueError as error:  # pyarrow's own errors are ValueErrors
        raise ValueError(f"{path}: not a readable Parquet file ({error}): write it again") from error
    yield from enumerate(table, start=1)


def _csv_rows(path: str) -> Iterator[tuple[int, Row]]:
    with open(path, newline="", encoding="utf-8-sig") as lines:
        try:
            for number, row in enumerate(csv.DictReader(lines, strict=True), start=1):
                if None in row or None in row.values():
                    raise ValueError(f"{path}:{number}: its number of cells is not that of the header: mend the row")
                yield number, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a readable CSV file ({error}): write it again, in UTF-8") from error


def text(value: Any) -> str:
    """A cell as text: several answers become a list, 142.0 becomes 142, None and NaN become nothing."""
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return ", ".join(map(text, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
