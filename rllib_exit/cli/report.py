"""``rllib report``: the paper's tables and figures, of what the other commands have left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rllib_exit.cli.console import CommandError, Verbose, clear_errors, installed, quiet, say


def report(
    directories: Annotated[
        list[Path], typer.Argument(help="What train, evaluate and search have left, or directories above it.")
    ],
    output: Annotated[Path, typer.Option(help="Directory for the page, its figures, tables and sources.")],
    title: Annotated[str, typer.Option(help="Of the page.")] = "Exploratory Iteration: results",
    embedding_model: Annotated[
        str, typer.Option(help="Embeds task instances, to tell how much they differ; none: leave that out.")
    ] = "bundled:all-minilm-l6-v2",
    verbose: Verbose = False,
) -> None:
    """Writes a page with the paper's tables and figures: report.html, PNG and CSV files.

    Runs are told apart by environment, model, strategy and settings, and averaged over their seeds. What is missing is
    named, with the command that makes it.
    """
    with clear_errors(verbose):
        quiet(verbose)
        if not installed("umap"):
            raise CommandError(
                "rllib report needs umap-learn, which is missing: run `pip install 'rllib-exit[report]'`"
            )
        from rllib_exit.embeddings import Embedder
        from rllib_exit.models import resolve_model
        from rllib_exit.report.report import write_report

        embedder = None
        if embedding_model != "none":
            resolve_model(embedding_model)
            embedder = Embedder(embedding_model)
        page = write_report(directories, output, title=title, embedder=embedder, say=say)
        say(f"written: {page}")
