"""``rllib sweep-table``: the ranking of a sweep's trials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rllib_exit.cli.console import Verbose, clear_errors, quiet


def sweep_table(
    directory: Annotated[Path, typer.Argument(help="Directory of a sweep, which may be under way.")],
    verbose: Verbose = False,
) -> None:
    """Ranks the trials of a sweep by its metric, the best first."""
    with clear_errors(verbose):
        quiet(verbose)
        from rllib_exit.cli import sweeps

        rows, sweep = sweeps.load_rows(directory)
        sweeps.show_rows(rows, sweep)
        sweeps.say_best(rows, sweep, directory)
