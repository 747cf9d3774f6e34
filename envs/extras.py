"""What is said where an optional package is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(package: str, what: str) -> Iterator[None]:
    """Imports of a package that comes with the extra of its name stand in here.

    Args:
        package: The package, which is also the name of the extra.
        what: What needs it, as the beginning of a sentence: ``an OpenEnv server needs the package openenv``.

    Raises:
        ModuleNotFoundError: If the package is missing, with what to install. Where it lacks a package itself, the error
            stays as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(f"{what}: pip install 'rllib-exit[{package}]'") from error
