"""The command line ``rllib``: its commands are one module each, beside this one.

Ray, torch and their like are imported inside the commands, so that ``rllib --help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rllib_exit.cli.check import check_file
from rllib_exit.cli.evaluate import evaluate
from rllib_exit.cli.examples import copy, examples
from rllib_exit.cli.export import export
from rllib_exit.cli.grafana import grafana
from rllib_exit.cli.report import report
from rllib_exit.cli.rollouts import rollouts
from rllib_exit.cli.search import search
from rllib_exit.cli.sft import sft
from rllib_exit.cli.sweep_table import sweep_table
from rllib_exit.cli.train import TrainGroup, train_dataset, train_file
from rllib_exit.cli.view import view
from rllib_exit.versions import versions

app = typer.Typer(
    help="Fine-tunes language models with GRPO and Exploratory Iteration on Ray RLlib.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rllib-exit {versions().get('rllib-exit', 'is not installed')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None: ...


train = typer.Typer(cls=TrainGroup, invoke_without_command=True)
train.callback()(train_dataset)
app.add_typer(train, name="train")
train.command("file")(train_file)
app.command("check")(check_file)
shown_examples = typer.Typer(invoke_without_command=True)
shown_examples.callback()(examples)
shown_examples.command()(copy)
app.add_typer(shown_examples, name="examples")
for command in (evaluate, export, sft, search, report, rollouts, view, sweep_table, grafana):
    app.command()(command)


def main() -> None:
    """The console script ``rllib``."""
    app()
