"""Define the arguments and help texts of the commands for studies, reports and stored runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from competition.cli.options import RUNS_METAVAR, AllowOption, OverridesArgument, TrustOption

commands = typer.Typer()


@commands.command(epilog="Example: maskfold study experiments/hippocampus/unet3d.yaml --trials 30 folds.run=[0,1]")
def study(
    file: Annotated[Path, typer.Argument(help="The experiment's YAML, with a `study` section.")],
    overrides: OverridesArgument = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of trials that the study shall finish in total; default: study.trials of the YAML."
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Address of Optuna's database: postgresql://… for several machines; default: mlruns/optuna.db."
        ),
    ] = None,
    promote: Annotated[
        int | None, typer.Option(min=1, help="Search no further; train the best N finished trials on all folds.")
    ] = None,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Search for the best values of YAML keys with Optuna; each trial is one cross-validation run.

    Run the same command again to resume, also after a crash. Trial 0 uses the YAML unchanged.
    """
    from competition.cli.train import study_command

    study_command(file, overrides or [], trials, storage, promote, tuple(trust or []))


@commands.command(epilog="Example: maskfold report experiments/demo2d/unet2d.yaml -o report.html")
def report(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|STUDY|KEY=VALUE",
            help="The run, followed by key=value overrides, e.g. competition.root=/data; or a study. A run is given "
            "by its experiment's YAML (the latest finished run), its folder or its hash. A study is given by its "
            "name, or by its folder below mlruns/studies.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file to write; default: report.html in the folder of RUN or STUDY."),
    ] = None,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Write an HTML report: scores, learning curves, cases, calibration, error by size of the objects or masks, YAML.

    The report is a single file. Its pictures are also in a folder of the same name.
    """
    from competition.cli.train import report_command

    report_command(words, output, tuple(trust or []))


@commands.command(epilog="Example: maskfold review experiments/demo2d/unet2d.yaml -o reports/review.html")
def review(
    words: Annotated[
        list[str],
        typer.Argument(metavar=RUNS_METAVAR, help="One run, then key=value overrides; see maskfold submit --help."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file, with a CSV next to it; default: reports/review-RUN.html."),
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Number of findings to draw as pictures.")] = 40,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Find labels that look wrong: cases and objects where the out-of-fold predictions contradict the truth.

    Writes an HTML page with pictures, and a CSV. Fill in the columns exclude and weight of the CSV, and name the CSV in
    train.exclude or train.weights of the competition's YAML.
    """
    from competition.cli.train import review_command

    review_command(words, output, pictures, tuple(trust or []))


@commands.command(epilog="Example: maskfold compare experiments/demo2d/unet2d.yaml 2cb50ff146c0 -o reports/compare")
def compare(
    words: Annotated[
        list[str],
        typer.Argument(metavar=RUNS_METAVAR, help="Two runs, then key=value overrides; see maskfold submit --help."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder; default: reports/compare-HASH-HASH.")
    ] = None,
    cases: Annotated[
        int,
        typer.Option(
            min=0, help="Number of cases to draw as pictures: those whose scores differ most between the two runs."
        ),
    ] = 10,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Compare two runs on the cases that both predicted out of fold, paired by case and class.

    Prints the competition's metric, Dice, surface Dice and HD95, each with its difference, interval and p-value.
    """
    from competition.cli.train import compare_command

    compare_command(words, output, cases, tuple(trust or []))


@commands.command(epilog="Example: maskfold register experiments/demo2d/unet2d.yaml --best")
def register(
    words: Annotated[
        list[str],
        typer.Argument(metavar=RUNS_METAVAR, help="One run, then key=value overrides; see maskfold submit --help."),
    ],
    best: Annotated[
        bool,
        typer.Option(
            "--best",
            help="Register the run with the best cross-validation score in the given run's competition, instead of the "
            "given run.",
        ),
    ] = False,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Register a run's networks in MLflow, as a version of the model named after the competition.

    mlflow.pyfunc.load_model("models:/NAME/1").predict(images) returns masks for arrays or files.
    """
    from competition.cli.train import register_command

    register_command(words, best, tuple(trust or []))


@commands.command(epilog="Example: maskfold clean --dry-run, or: maskfold clean --older-than 8w --keep-best 3")
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files; delete nothing.")] = False,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Keep files that have changed within this time, e.g. 12h, 30d or 8w.")
    ] = "30d",
    keep_best: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Also delete finished runs, except for the N best runs of each competition. By default, all finished "
            "runs are kept.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Free disk space: delete temporary files, unfinished runs, and unneeded prepared cases and MLflow artifacts.

    The command lists the files with sizes and reasons, then asks. A run stays if a submission, the ledger, a registered
    model, a YAML file or another run names it, if it is a best trial of a study, or if a process works in it.
    """
    from competition.cli.clean import clean_command

    clean_command(dry_run, older_than, keep_best, yes)


@commands.command(epilog="Example: maskfold ui --port 5001")
def ui(
    port: Annotated[int, typer.Option(help="TCP port.")] = 5000,
    host: Annotated[
        str,
        typer.Option(
            help="Network address of the server. With any address other than 127.0.0.1, other computers can connect "
            "to the server."
        ),
    ] = "127.0.0.1",
) -> None:
    """Start the MLflow user interface for the runs in this folder."""
    from competition.tracking.server import serve_mlflow

    serve_mlflow(Path.cwd(), host, port)


@commands.command(epilog="Example: maskfold watch, or: maskfold watch --once")
def watch(
    once: Annotated[
        bool,
        typer.Option(
            "--once", help="Print the table once and exit. This is the default if the output is not a terminal."
        ),
    ] = False,
    seconds: Annotated[float, typer.Option(help="Seconds between two updates of the table.")] = 2.0,
) -> None:
    """Show a live table of the folds and trials that run in this folder, until Ctrl-C.

    The columns are step, seconds per step, estimated end, score, memory and epoch. The command only reads the files of
    the runs, so it also works over ssh and for runs on Ray. It marks runs whose process was killed.
    """
    from competition.cli.watch import watch_command

    watch_command(once, seconds)
