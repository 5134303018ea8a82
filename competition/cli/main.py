"""`maskfold`: words in, calls out. Exit status 0 done, 1 the work failed, 2 the words or the YAML are wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from competition.config.errors import MaskfoldError

# Libraries that phone home are told not to, before any of them is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="A competition harness for image segmentation: leak-free folds, tracked runs, honest scores.")

Trust = Annotated[list[str] | None, typer.Option(help="A package of your own that `target` may name; repeatable.")]


@app.command(epilog="Example: maskfold cv experiments/demo2d/unet2d.yaml training.epochs=3")
def cv(file: Annotated[Path, typer.Argument(help="The experiment's YAML.")],
       overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. folds.run=[0,1].")] = None,
       new: Annotated[bool, typer.Option("--new", help="Start another run although this one exists.")] = False,
       trust: Trust = None) -> None:
    """Cross-validate an experiment: train its folds, score them out of fold, log to MLflow.

    The same command resumes a run that was stopped; a finished one prints its table.
    """
    from competition.cli.cv import cross_validate

    cross_validate(file, overrides or [], new, tuple(trust or []))


@app.command(epilog="Example: maskfold demo 2d -o data/demo2d")
def demo(name: Annotated[str, typer.Argument(help="2d or 3d.")],
         output: Annotated[Path | None, typer.Option("--output", "-o", help="Where; default data/demo<name>.")] = None,
         seed: Annotated[int, typer.Option(help="Another seed makes another competition.")] = 0) -> None:
    """Make a small competition: pictures or volumes, masks, a sample submission and its hidden solution."""
    from competition.data.demo import make_demo

    folder = output or Path("data") / f"demo{name}"
    make_demo(name, folder, seed=seed)
    typer.echo(f"{folder}: a {name} competition. Next: maskfold cv experiments/demo{name}/unet{name}.yaml")


@app.command(epilog="Example: maskfold ui --port 5001")
def ui(port: Annotated[int, typer.Option(help="TCP port.")] = 5000,
       host: Annotated[str, typer.Option(help="Address; others than 127.0.0.1 let the network in.")] = "127.0.0.1") -> None:
    """Open MLflow's pages on the runs of this folder."""
    from competition.tracking.server import serve

    serve(Path.cwd(), host, port)


@app.command(hidden=True)
def version() -> None:
    """Print the version."""
    from competition import __version__

    typer.echo(__version__)


def main() -> None:
    """Run the command line; errors a user can cause are two sentences, never a traceback."""
    try:
        status: Any = app(standalone_mode=False)
    except MaskfoldError as error:
        fail(f"error: {error}", error.status)
    except KeyboardInterrupt:
        fail("stopped", 130)
    except typer.Abort:
        fail("aborted", 130)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's own word on a wrong command line
            fail(f"error: {error.format_message()} See maskfold --help.", 2)
        raise
    else:
        if status == 130:  # typer's own answer to Ctrl-C, without a word
            fail("stopped", 130)
        sys.exit(status if isinstance(status, int) else 0)


def fail(text: str, status: int) -> None:
    """Say why on standard error and leave."""
    print(text, file=sys.stderr)
    sys.exit(status)
