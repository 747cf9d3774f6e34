"""``rllib view``: shows a run's log of rollouts in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rllib_exit.cli.console import CommandError, Verbose, clear_errors, say


def view(
    directory: Annotated[Path, typer.Argument(help="Directory of a run that was trained with --log-rollouts.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes a free one.")] = 8270,
    verbose: Verbose = False,
) -> None:
    """Shows the rollouts of a training run in a browser, also while it trains: Ctrl-C ends it.

    Groups side by side, tokens with their advantages and log-probabilities, what came from what, and the task buffer.
    The page is served on this machine alone; from another one, forward the port with ssh.
    """
    with clear_errors(verbose):
        from rllib_exit.view.queries import RunView
        from rllib_exit.view.server import make_server

        try:
            server, address = make_server(RunView(directory), port)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise CommandError(f"port {port} cannot be had ({error.strerror}): give another one with --port") from error
        say(f"open {address}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
        finally:
            server.server_close()
