"""What the user of a command sees: its output, and messages instead of tracebacks for errors."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from rllib_exit.scale import SCALE_VARIABLE, scale_and_reason

# Models, data and files from elsewhere wrote parts of what is printed: none of it is markup.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

Verbose = Annotated[bool, typer.Option("--verbose", help="Show the workers' logs, and tracebacks of errors.")]


class CommandError(RuntimeError):
    """A command failed; the message is what the user is told."""


def say(text: str) -> None:
    """Prints a line."""
    out.print(visible(text), soft_wrap=True)


def visible(text: str) -> str:
    """The text with all characters escaped that a terminal would not show as such, but for line breaks and tabs.

    Escape sequences could rewrite what the terminal shows; bidirectional marks and their like could disguise it.
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def duration(seconds: float) -> str:
    """Seconds as "40 s", "1 min 05 s" or "2 h 03 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def installed(module: str) -> bool:
    """Whether a module of an extra can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is None in sys.modules
        return False


def take_scale(scale: str) -> None:
    """Sets the scale that a file makes its config for, and says which one it is.

    Raises:
        ValueError: If there is no such scale.
    """
    os.environ[SCALE_VARIABLE] = scale
    taken, reason = scale_and_reason()
    say(f"scale: {taken} ({reason})")


def quiet(verbose: bool) -> None:
    """Prepares the process before Ray, torch and vLLM are loaded: unless verbose, what they log is hidden."""
    # Paths in a config are relative to where the command is run, not to the trial's directory.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # The command handles Ctrl-C: Tune's own handler would end the run without a checkpoint.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    if not verbose:
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's new output prints a header even at verbose=0
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        os.environ.setdefault("TQDM_DISABLE", "1")
        warnings.filterwarnings("ignore")
        import ray.rllib  # noqa: F401  (importing it resets the levels)

        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)
        # What Tune logs as an error is also the trial's error, which the command tells.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


@contextmanager
def clear_errors(verbose: bool) -> Iterator[None]:
    """Turns errors that a user can mend into one red message and exit code 1; others keep their tracebacks."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("interrupted", style="red")
        raise typer.Exit(130) from None
    except (ValueError, OSError, CommandError) as error:
        if verbose:
            err.print_exception()
        err.print(visible(error_message(error)), style="red", soft_wrap=True)
        raise typer.Exit(1) from None


def error_message(error: BaseException) -> str:
    """What to tell the user of an error. For an error in a Ray worker it is the message of its cause."""
    cause = getattr(error, "cause", None)
    while isinstance(cause, BaseException):
        error, cause = cause, getattr(cause, "cause", None)
    text = str(error).strip()
    if type(error).__module__.startswith("ray."):
        # An actor that died in its constructor carries a traceback as text: its last line is the error.
        return text.splitlines()[-1] if text else type(error).__name__
    text = text.split("\n\n")[0]  # details follow after an empty line, such as a rollout's traceback
    plain = bool(text) and isinstance(error, ValueError | OSError | CommandError)
    return text if plain else f"{type(error).__name__}: {text}"
