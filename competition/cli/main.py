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
# Waiting threads sleep: spinning beside another busy program costs several times a step.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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


@app.command(epilog="Example: maskfold submit experiments/demo2d/unet2d.yaml")
def submit(words: Annotated[list[str], typer.Argument(help="Runs, and key=value. A run is an experiment's YAML (its latest "
                                                           "finished run), a run's folder, or its hash.")],
           weights: Annotated[str | None, typer.Option(help="Of the runs: `auto`, or numbers such as 0.6,0.4; "
                                                            "equal by default.")] = None,
           output: Annotated[Path | None, typer.Option("--output", "-o", help="The CSV.")] = None,
           out_of_fold: Annotated[bool, typer.Option("--out-of-fold", help="Write the training cases as they were predicted "
                                                                           "out of fold, to check the score.")] = False,
           trust: Trust = None) -> None:
    """Predict the test cases with every fold, and write the CSV that the host accepts.

    Weights and post-processing are fitted out of fold; the expected score is printed with its interval.
    """
    from competition.cli.submit import make_submission

    make_submission(words, weights, output, out_of_fold, tuple(trust or []))


@app.command(epilog="Example: maskfold predict RUN --images scans -o predictions")
def predict(words: Annotated[list[str], typer.Argument(help="Runs, and key=value; see submit.")],
            images: Annotated[Path, typer.Option(help="A folder of pictures or volumes.")],
            output: Annotated[Path, typer.Option("--output", "-o", help="Where the masks go.")],
            trust: Trust = None) -> None:
    """Predict the images of a folder: label NIfTI with the image's affine, or label PNG."""
    from competition.cli.predict import predict_folder

    predict_folder(words, images, output, tuple(trust or []))


@app.command(epilog="Example: maskfold score mine.csv --competition experiments/demo2d/competition.yaml --solution solution.csv")
def score(file: Annotated[Path, typer.Argument(help="The submission's CSV.")],
          competition: Annotated[Path, typer.Option(help="The competition's YAML.")],
          overrides: Annotated[list[str] | None, typer.Argument(help="key=value of the competition, e.g. root=/data.")] = None,
          solution: Annotated[Path | None, typer.Option(help="A CSV with the truth of the test cases. Without it the file "
                                                             "holds training cases.")] = None,
          table: Annotated[Path | None, typer.Option(help="Where to write the scores of each case.")] = None) -> None:
    """Score a CSV with the competition's metric: against a solution, or against the training masks."""
    from competition.cli.score import score_file

    score_file(file, competition, solution, table, overrides or [])


@app.command(epilog="Example: maskfold study experiments/hippocampus/unet3d.yaml --trials 30 folds.run=[0,1]")
def study(file: Annotated[Path, typer.Argument(help="The experiment's YAML, with a `study` section.")],
          overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. folds.run=[0,1].")] = None,
          trials: Annotated[int | None, typer.Option(help="Trials finished in all; default study.trials.")] = None,
          storage: Annotated[str | None, typer.Option(help="postgresql://… for several machines; default "
                                                           "mlruns/optuna.db.")] = None,
          promote: Annotated[int | None, typer.Option(help="Train the best N on all folds.")] = None,
          trust: Trust = None) -> None:
    """Search keys of the experiment with Optuna; each trial is one cross-validation run.

    The same command goes on, also after a kill. Trial 0 is the YAML as it is.
    """
    from competition.cli.study import study as run

    run(file, overrides or [], trials, storage, promote, tuple(trust or []))


@app.command(epilog="Example: maskfold report experiments/demo2d/unet2d.yaml -o report.html")
def report(words: Annotated[list[str], typer.Argument(help="One run, and key=value, e.g. competition.root=/data. A run is an "
                                                           "experiment's YAML (its latest finished run), a run's folder, or "
                                                           "its hash.")],
           output: Annotated[Path | None, typer.Option("--output", "-o", help="The page; default report.html in the run's "
                                                                              "folder.")] = None,
           trust: Trust = None) -> None:
    """Write one page to look at: scores, learning curves, cases, calibration, error against size, the YAML.

    The page needs no network. Its pictures alone are in a folder of the same name.
    """
    from competition.cli.report import make_report

    make_report(words, output, tuple(trust or []))


@app.command(epilog="Example: maskfold register experiments/demo2d/unet2d.yaml --best")
def register(words: Annotated[list[str], typer.Argument(help="A run, and key=value; see submit.")],
             best: Annotated[bool, typer.Option("--best", help="The run with the highest cross-validation score of that "
                                                               "competition, in place of the named one.")] = False,
             trust: Trust = None) -> None:
    """Register a run's networks in MLflow, as a version of the model that is named after the competition.

    mlflow.pyfunc.load_model("models:/NAME/1").predict(images) gives masks of arrays or of files.
    """
    from competition.cli.register import register_run

    register_run(words, best, tuple(trust or []))


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
