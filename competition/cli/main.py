"""`maskfold`: words in, calls out. Exit status 0 done, 1 the work failed, 2 the words or the YAML are wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from competition.config.errors import MaskfoldError
from competition.config.secrets import guard, scrub

# Libraries that phone home are told not to, before any of them is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Waiting threads sleep: spinning beside another busy program costs several times a step.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A competition harness for image segmentation: leak-free folds, tracked runs, honest scores.",
)

Trust = Annotated[list[str] | None, typer.Option(help="A package of your own that `target` may name; repeatable.")]


@app.command(epilog="Example: maskfold cv experiments/demo2d/unet2d.yaml training.epochs=3")
def cv(
    file: Annotated[Path, typer.Argument(help="The experiment's YAML.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. folds.run=[0,1].")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start another run although this one exists.")] = False,
    trust: Trust = None,
) -> None:
    """Cross-validate an experiment: train its folds, score them out of fold, log to MLflow.

    The same command resumes a run that was stopped; a finished one prints its table.
    """
    from competition.cli.cv import cross_validate

    cross_validate(file, overrides or [], new, tuple(trust or []))


@app.command(epilog="Example: maskfold demo 2d -o data/demo2d, or: maskfold demo spine --layout spine")
def demo(
    name: Annotated[str, typer.Argument(help="2d, 3d or gate; with --layout any name, that of the folder below data.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where; default data/demo<name>, or data/<name> with --layout."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Phantoms with the folders, formats, sizes and difficulty of real "
            "data: spleen, spine, a02025 or hipmri."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed makes another competition.")] = 0,
) -> None:
    """Make a small competition: pictures or volumes, masks, a sample submission and its hidden solution."""
    from competition.cli.demo import make

    make(name, output, layout, seed)


@app.command(epilog="Example: maskfold explore experiments/a02025/competition.yaml root=data/a02025")
def explore(
    file: Annotated[Path, typer.Argument(help="The competition's YAML.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value of the competition, e.g. root=/data.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; default reports/<name>.html.")
    ] = None,
) -> None:
    """Look at the data before training: sizes, spacings, intensities, classes, duplicates, faults; suggest folds and patch."""
    from competition.cli.explore import explore_competition

    explore_competition(file, overrides or [], output)


@app.command(epilog="Example: maskfold dicom exports -o data/spleen --layout imagesTr")
def dicom(
    folder: Annotated[Path, typer.Argument(help="DICOM files, in any order and any folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where NIfTI files and series.csv go.")],
    layout: Annotated[
        str, typer.Option(help="The folder of the images: imagesTr (masks go to labelsTr) or imagesTs (labelsTs).")
    ] = "imagesTr",
    labels: Annotated[
        str | None,
        typer.Option(
            help="A regular expression: series whose description matches it hold labels. DICOM-SEG is known by itself."
        ),
    ] = None,
) -> None:
    """Convert DICOM series to NIfTI, and list in series.csv what was found, what was refused, and why."""
    from competition.cli.dicom import convert

    convert(folder, output, layout, labels)


@app.command(epilog="Example: maskfold doctor")
def doctor() -> None:
    """Say whether this machine can train: versions, devices, memory, disk, MLflow's store, kaggle's credentials."""
    from competition.cli.doctor import examine

    examine()


@app.command(epilog="Example: maskfold fetch hippocampus -o data")
def fetch(
    name: Annotated[
        str, typer.Argument(help="hippocampus, spleen or another task of the Decathlon, kaggle:COMPETITION, or `list`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder that will hold it.")] = Path("data"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Download a public data set; its size and licence are printed first."""
    from competition.cli.fetch import fetch_data

    fetch_data(name, output, yes)


@app.command(epilog="Example: maskfold submit experiments/demo2d/unet2d.yaml")
def submit(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Runs, and key=value. A run is an experiment's YAML (its latest "
            "finished run), a run's folder, or its hash."
        ),
    ],
    weights: Annotated[
        str | None, typer.Option(help="Of the runs: `auto`, or numbers such as 0.6,0.4; equal by default.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The CSV.")] = None,
    out_of_fold: Annotated[
        bool,
        typer.Option(
            "--out-of-fold", help="Write the training cases as they were predicted out of fold, to check the score."
        ),
    ] = False,
    trust: Trust = None,
) -> None:
    """Predict the test cases with every fold, and write the CSV that the host accepts.

    Weights and post-processing are fitted out of fold; the expected score is printed with its interval.
    """
    from competition.cli.submit import make_submission

    make_submission(words, weights, output, out_of_fold, tuple(trust or []))


@app.command(epilog="Example: maskfold predict RUN --images scans -o predictions")
def predict(
    words: Annotated[list[str], typer.Argument(help="Runs, and key=value; see submit.")],
    images: Annotated[Path, typer.Option(help="A folder of pictures or volumes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the masks go.")],
    pictures: Annotated[
        int, typer.Option(min=0, help="Of how many cases image and prediction are drawn side by side.")
    ] = 3,
    trust: Trust = None,
) -> None:
    """Predict the images of a folder: label NIfTI with the image's affine, or label PNG."""
    from competition.cli.predict import predict_folder

    predict_folder(words, images, output, pictures, tuple(trust or []))


@app.command(epilog="Example: maskfold upload submissions/demo2d/unet2d-15ba66a88b85.csv -m 'wider network'")
def upload(
    file: Annotated[Path | None, typer.Argument(help="The CSV; not needed with --notebook.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value of the competition, e.g. root=/data.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="What Kaggle shows beside it.")] = None,
    competition: Annotated[
        str | None,
        typer.Option(help="The name in the competition's address, or its YAML; default submission.kaggle in its YAML."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    notebook: Annotated[str | None, typer.Option(help="Hand in what this notebook wrote: OWNER/NAME.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Of the notebook.")] = None,
    output: Annotated[str, typer.Option("--file", help="What the notebook wrote.")] = "submission.csv",
) -> None:
    """Hand a CSV in at Kaggle, after it was checked against the sample; asks before it spends one of today's tries."""
    from competition.cli.upload import upload_file

    upload_file(file, overrides or [], message, competition, yes, notebook, version, output)


@app.command(epilog="Example: maskfold ledger -o ledger.png, or: maskfold ledger --add x.csv --public 0.71")
def ledger(
    words: Annotated[
        list[str] | None, typer.Argument(help="Competitions, all by default; and key=value for --add.")
    ] = None,
    refresh: Annotated[
        bool | None, typer.Option("--refresh/--no-refresh", help="Ask Kaggle for scores; or where some are missing.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A plot (.png) or a page (.html).")] = None,
    competition: Annotated[str | None, typer.Option(help="With --add: the competition's YAML.")] = None,
    add: Annotated[Path | None, typer.Option(help="Enter the scores of a file that was handed in elsewhere.")] = None,
    public: Annotated[float | None, typer.Option(help="Its public score.")] = None,
    private: Annotated[float | None, typer.Option(help="Its private score.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="What to call it.")] = None,
) -> None:
    """List what was handed in: CV, public and private score, what changed; and say which changes are noise."""
    from competition.cli.ledger import show_ledger

    show_ledger(words or [], refresh, output, competition, add, public, private, message)


@app.command(epilog="Example: maskfold export experiments/demo2d/unet2d.yaml -o bundle")
def export(
    words: Annotated[list[str], typer.Argument(help="Runs, and key=value; see submit.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder; a former bundle there is replaced.")],
    weights: Annotated[str | None, typer.Option(help="Of the runs, as for submit.")] = None,
    zipped: Annotated[bool, typer.Option("--zip", help="Also write FOLDER.zip.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Add the networks as ONNX, for onnxruntime.")] = False,
    wheels: Annotated[bool, typer.Option("--wheels", help="Fetch the packages' wheels, all but PyTorch's.")] = False,
    hours: Annotated[float, typer.Option(min=0.01, help="The time limit in the notebook.")] = 9.0,
    trust: Trust = None,
) -> None:
    """Write a folder that predicts by itself, for notebooks without network: weights, code, script, notebook.

    python FOLDER/run.py writes the very CSV of `maskfold submit`, for the test images that are there when it runs.
    """
    from competition.cli.export import export_bundle

    export_bundle(words, output, weights, tuple(trust or []), zipped=zipped, onnx=onnx, wheels=wheels, hours=hours)


@app.command(
    epilog="Example: maskfold score mine.csv --competition experiments/demo2d/competition.yaml --solution solution.csv"
)
def score(
    file: Annotated[Path, typer.Argument(help="The submission's CSV.")],
    competition: Annotated[Path, typer.Option(help="The competition's YAML.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value of the competition, e.g. root=/data.")
    ] = None,
    solution: Annotated[
        Path | None,
        typer.Option(help="A CSV with the truth of the test cases. Without it the file holds training cases."),
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Where to write the scores of each case.")] = None,
) -> None:
    """Score a CSV with the competition's metric: against a solution, or against the training masks."""
    from competition.cli.score import score_file

    score_file(file, competition, solution, table, overrides or [])


@app.command(epilog="Example: maskfold study experiments/hippocampus/unet3d.yaml --trials 30 folds.run=[0,1]")
def study(
    file: Annotated[Path, typer.Argument(help="The experiment's YAML, with a `study` section.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. folds.run=[0,1].")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials finished in all; default study.trials.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="postgresql://… for several machines; default mlruns/optuna.db.")
    ] = None,
    promote: Annotated[int | None, typer.Option(min=1, help="Train the best N on all folds.")] = None,
    trust: Trust = None,
) -> None:
    """Search keys of the experiment with Optuna; each trial is one cross-validation run.

    The same command goes on, also after a kill. Trial 0 is the YAML as it is.
    """
    from competition.cli.study import study as run

    run(file, overrides or [], trials, storage, promote, tuple(trust or []))


@app.command(epilog="Example: maskfold report experiments/demo2d/unet2d.yaml -o report.html")
def report(
    words: Annotated[
        list[str],
        typer.Argument(
            help="One run, and key=value, e.g. competition.root=/data; or one "
            "study. A run is an experiment's YAML (its latest finished run), "
            "a run's folder, or its hash; a study its folder below "
            "mlruns/studies, or its name."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; default report.html in that folder.")
    ] = None,
    trust: Trust = None,
) -> None:
    """Write one page to look at: scores, learning curves, cases, calibration, error against size, the YAML.

    The page needs no network. Its pictures alone are in a folder of the same name.
    """
    from competition.cli.report import make_report

    make_report(words, output, tuple(trust or []))


@app.command(epilog="Example: maskfold compare experiments/demo2d/unet2d.yaml 2cb50ff146c0 -o reports/compare")
def compare(
    words: Annotated[list[str], typer.Argument(help="Two runs, and key=value; see submit.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder; default reports/compare-A-B.")
    ] = None,
    cases: Annotated[
        int, typer.Option(min=0, help="Of how many cases, those that changed most, pictures are drawn.")
    ] = 10,
    trust: Trust = None,
) -> None:
    """Compare two runs on the cases that both predicted out of fold: paired, per case and class.

    The competition's metric, Dice, surface Dice and HD95, each with its difference, interval and p.
    """
    from competition.cli.compare import compare_runs

    compare_runs(words, output, cases, tuple(trust or []))


@app.command(epilog="Example: maskfold register experiments/demo2d/unet2d.yaml --best")
def register(
    words: Annotated[list[str], typer.Argument(help="A run, and key=value; see submit.")],
    best: Annotated[
        bool,
        typer.Option(
            "--best",
            help="The run with the highest cross-validation score of that competition, in place of the named one.",
        ),
    ] = False,
    trust: Trust = None,
) -> None:
    """Register a run's networks in MLflow, as a version of the model that is named after the competition.

    mlflow.pyfunc.load_model("models:/NAME/1").predict(images) gives masks of arrays or of files.
    """
    from competition.cli.register import register_run

    register_run(words, best, tuple(trust or []))


@app.command(epilog="Example: maskfold ui --port 5001")
def ui(
    port: Annotated[int, typer.Option(help="TCP port.")] = 5000,
    host: Annotated[str, typer.Option(help="Address; others than 127.0.0.1 let the network in.")] = "127.0.0.1",
) -> None:
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
    guard()
    try:
        status: Any = app(standalone_mode=False)
    except MaskfoldError as error:
        fail(f"error: {error}", error.status)
    except KeyboardInterrupt:
        fail("stopped", 130)
    except typer.Abort:
        fail("aborted", 130)
    except OSError as error:
        from competition.data.files import refusal

        if (refused := refusal(error, None)) is None:
            raise
        fail(f"error: {refused}", 1)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's own word on a wrong command line
            fail(f"error: {error.format_message().rstrip('.')}. See maskfold --help.", 2)
        raise
    else:
        if status == 130:  # typer's own answer to Ctrl-C, without a word
            fail("stopped", 130)
        sys.exit(status if isinstance(status, int) else 0)


def fail(text: str, status: int) -> None:
    """Say why on standard error and leave."""
    print(scrub(text), file=sys.stderr)
    sys.exit(status)
