"""Define the arguments and help texts of the commands that lead from data to a cross-validated run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from competition.cli.options import AllowOption, CompetitionOverridesArgument, OverridesArgument, TrustOption
from competition.errors import MaskfoldError

commands = typer.Typer()


@commands.command(epilog="Example: maskfold init data/mine --minutes 15 --folds 5")
def init(
    folder: Annotated[Path, typer.Argument(help="Folder with the unpacked files of the competition.")],
    name: Annotated[str | None, typer.Option(help="Name of the competition; default: the folder's name.")] = None,
    layout: Annotated[
        int | None, typer.Option(help="Number of the layout to use, if Maskfold can read the folder in several ways.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time budget of each fold, in minutes; default: 15.")] = None,
    folds: Annotated[
        int | None, typer.Option(help="Number of folds; default: 5, or the number of groups if there are fewer than 5.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace YAML files that exist already.")] = False,
    measure: Annotated[
        bool,
        typer.Option(
            help="Time training steps on this machine, to choose resolution, network and patch. With --no-measure, the "
            "plan uses the standard network."
        ),
    ] = True,
) -> None:
    """Recognise a folder's layout, and write experiments/NAME/competition.yaml and a first experiment.yaml.

    A comment on each line of both files gives the reason for its value. The command then checks the data as maskfold
    explore does.
    """
    from competition.cli.init import init_command

    init_command(folder, name, layout, minutes, folds, force, measure)


@commands.command(epilog="Example: maskfold plan experiments/mine/experiment.yaml --minutes 120")
def plan(
    file: Annotated[Path, typer.Argument(help="The experiment's YAML.")],
    overrides: OverridesArgument = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time budget of each fold, in minutes; default: the budget in the YAML, or 15.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the new plan into the YAML; the former file is kept as FILE.bak.")
    ] = False,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Plan an experiment again, for another budget or machine, and show the difference to the present YAML.

    The command times training steps to choose resolution, network and patch. Keys that the plan does not set, and
    values that you changed since the last plan, stay as they are.
    """
    from competition.cli.init import plan_command

    plan_command(file, overrides or [], minutes, write, tuple(trust or []))


@commands.command(epilog="Example: maskfold cv experiments/demo2d/unet2d.yaml training.epochs=3")
def cv(
    file: Annotated[
        Path,
        typer.Argument(
            help="The experiment's YAML; or a folder of data, for which the command first writes a YAML as maskfold "
            "init does."
        ),
    ],
    overrides: OverridesArgument = None,
    minutes: Annotated[
        float | None, typer.Option(help="Only with a folder: time budget of each fold, in minutes; default: 15.")
    ] = None,
    layout: Annotated[
        int | None, typer.Option(help="Only with a folder: number of the layout to use, as for maskfold init.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Only with a folder: name of the competition; default: the folder's name.")
    ] = None,
    new: Annotated[
        bool, typer.Option("--new", help="Start a new run even if this experiment already has one.")
    ] = False,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Cross-validate an experiment: train its folds, score the out-of-fold predictions, log to MLflow.

    Run the same command again to resume a stopped run, or to print the table of a finished run.
    """
    if file.is_dir():
        from competition.cli.init import experiment_for

        file = experiment_for(file, overrides or [], layout, minutes, name)
    elif (minutes is not None or layout is not None or name is not None) and not file.exists():
        raise MaskfoldError(f"{file} does not exist.", "Give a folder with data, or an experiment's YAML.", status=2)
    elif minutes is not None or layout is not None or name is not None:
        raise MaskfoldError(
            f"{file} is a file, but --minutes, --layout and --name are only for a folder of data.",
            "Leave out --layout and --name, or give the folder of the data instead of the file."
            if minutes is None
            else f"Set training.budget_minutes={minutes:g} instead, or plan the experiment again: maskfold plan "
            f"{file} --minutes {minutes:g} --write.",
            status=2,
        )
    from competition.cli.train import cv_command

    cv_command(file, overrides or [], new, tuple(trust or []))


@commands.command(epilog="Example: maskfold demo 2d -o data/demo2d, or: maskfold demo spine")
def demo(
    name: Annotated[
        str,
        typer.Argument(
            help="A demo: 2d, 3d or gate; or a layout of phantoms: spleen, spine, a02025 or hipmri. With --layout, "
            "NAME can be any text and only names the default output folder."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Output folder; default: data/demoNAME for a demo, data/NAME for phantoms."
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Write phantoms (artificial data) with the folders, formats, sizes and difficulty of a real data set: "
            "spleen, spine, a02025 or hipmri."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed; each seed gives different images.")] = 0,
) -> None:
    """Make a small competition: images, masks, a sample submission, and the hidden solution of the test cases.

    The YAML files are written to experiments/ in the working folder; existing files are kept.
    """
    from competition.cli.data import demo_command

    demo_command(name, output, layout, seed)


@commands.command(epilog="Example: maskfold explore experiments/a02025/competition.yaml root=data/a02025")
def explore(
    file: Annotated[Path, typer.Argument(help="The competition's YAML.")],
    overrides: CompetitionOverridesArgument = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="HTML file to write; default: reports/NAME.html, with the competition's name."
        ),
    ] = None,
) -> None:
    """Check the data before training: sizes, intensities, classes, duplicates, faults; suggest folds and patch size."""
    from competition.cli.data import explore_command

    explore_command(file, overrides or [], output)


@commands.command(epilog="Example: maskfold dicom exports -o data/spleen --layout imagesTr")
def dicom(
    folder: Annotated[Path, typer.Argument(help="Folder with DICOM files; subfolders are read too.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder for NIfTI files and series.csv.")],
    layout: Annotated[
        str,
        typer.Option(
            help="Subfolder for the images: imagesTr (its masks go to labelsTr) or imagesTs (its masks go to labelsTs)."
        ),
    ] = "imagesTr",
    labels: Annotated[
        str | None,
        typer.Option(
            help="Regular expression: a series whose description matches it contains labels instead of images. "
            "DICOM-SEG files are always recognised."
        ),
    ] = None,
) -> None:
    """Convert DICOM series to NIfTI; series.csv lists all series, with the reason if a series was refused."""
    from competition.cli.data import dicom_command

    dicom_command(folder, output, layout, labels)


@commands.command(epilog="Example: maskfold doctor")
def doctor() -> None:
    """Check whether this machine can train: packages, GPUs, memory, disk, MLflow store, Kaggle credentials."""
    from competition.doctor.checks import print_report  # not from `cli.data`, whose imports may be missing

    if status := print_report():
        raise typer.Exit(status)


@commands.command(epilog="Example: maskfold fetch hippocampus -o data")
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="Data set to download: a task of the Medical Segmentation Decathlon, e.g. spleen; or "
            "kaggle:COMPETITION. `list` lists the tasks."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder in which the folder of the data set is created.")
    ] = Path("data"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Download a public data set, after printing its size and licence."""
    from competition.cli.data import fetch_command

    fetch_command(name, output, yes)
