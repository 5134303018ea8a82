"""Assemble the command line `maskfold` from the modules `commands_*`, and run it.

Exit status: 0 if the command succeeded, 1 if it failed, 2 if the arguments or the YAML are invalid.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import Annotated, Any

import typer

from competition.cli import commands_runs, commands_submit, commands_train
from competition.cli.console import exit_with_error
from competition.errors import MaskfoldError
from competition.redact import install_redaction

# Disable telemetry before any of these libraries is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Let waiting threads sleep: if they spin while another program is busy, a step takes several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train segmentation models by cross-validation without leaks, estimate their score, and write the "
    "submission of a competition.",
)


def _print_version(value: bool) -> None:
    if value:
        from competition import __version__

        typer.echo(f"maskfold {__version__}")
        raise typer.Exit


@app.callback()
def common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Handle the options that come before the command."""


for _module in (commands_train, commands_submit, commands_runs):  # the order of `maskfold --help`
    app.add_typer(_module.commands)


@app.command(hidden=True)
def version() -> None:
    """Print the version."""
    from competition import __version__

    typer.echo(__version__)


def main() -> None:
    """Run the command line; print expected errors without a traceback."""
    install_redaction()
    # Libraries create millions of objects that stay alive. With Python's default threshold of 700, the search for
    # garbage among these objects takes a sixth of the import time.
    gc.set_threshold(5_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal without Unicode shows a replacement for characters that it lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        status: Any = app(standalone_mode=False)
    except MaskfoldError as error:
        exit_with_error(f"error: {error}", error.status)
    except KeyboardInterrupt:
        exit_with_error("stopped", 130)
    except typer.Abort:
        exit_with_error("aborted", 130)
    except OSError as error:
        from competition.io import as_disk_error

        if (disk_error := as_disk_error(error, None)) is None:
            raise
        exit_with_error(f"error: {disk_error}", 1)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            exit_with_error(f"error: {error.format_message().rstrip('.')}. See maskfold --help.", 2)
        raise
    else:
        if status == 130:  # without this, typer would handle Ctrl-C without a message
            exit_with_error("stopped", 130)
        sys.exit(status if isinstance(status, int) else 0)
