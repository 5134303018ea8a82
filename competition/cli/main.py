"""Define the arguments and help texts of the command line `maskfold`.

Exit status: 0 if the command succeeded, 1 if it failed, 2 if the arguments or the YAML are invalid.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

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
    help="Train, evaluate and submit image segmentation models: leak-free folds, tracked runs, unbiased scores.",
)

RUNS_METAVAR = "RUN|KEY=VALUE"
RUN_HELP = (
    "One or more runs, then key=value overrides. A run is an experiment's YAML (its latest finished run), a run's "
    "folder, or its hash."
)
TrustOption = Annotated[
    list[str] | None, typer.Option(help="Allow `target` to name classes of this package of your own; repeatable.")
]


def _allow_arguments(keys: list[str] | None) -> None:
    if keys:
        from competition.config.arguments import allow_arguments

        allow_arguments(keys)


AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        callback=_allow_arguments,
        help="Allow this argument in the YAML to name a file, an address, a cache or a hub, e.g. "
        "model.args.checkpoint_path; repeatable.",
    ),
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Override keys of the YAML, e.g. folds.run=[0,1].")
]
CompetitionOverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override keys of the competition's YAML, e.g. root=/data."),
]


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


@app.command(epilog="Example: maskfold init data/mine --minutes 15 --folds 5")
def init(
    folder: Annotated[Path, typer.Argument(help="Folder with the competition's files, unpacked.")],
    name: Annotated[str | None, typer.Option(help="Name of the competition; default: the folder's name.")] = None,
    layout: Annotated[
        int | None, typer.Option(help="Number of the layout to use, if the folder can be read in several ways.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time budget of a fold, in minutes; default 15.")] = None,
    folds: Annotated[
        int | None, typer.Option(help="Number of folds; default 5, or the number of groups if there are fewer.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing YAML files.")] = False,
    measure: Annotated[
        bool, typer.Option(help="Time training steps on this machine, to choose resolution, network and patch.")
    ] = True,
) -> None:
    """Recognise a folder's layout, and write experiments/NAME/competition.yaml and a first experiment.yaml.

    A comment on each line of both files gives the reason. The command then checks the data as maskfold explore does.
    """
    from competition.cli.init import init_command

    init_command(folder, name, layout, minutes, folds, force, measure)


@app.command(epilog="Example: maskfold plan experiments/mine/experiment.yaml --minutes 120")
def plan(
    file: Annotated[Path, typer.Argument(help="The experiment's YAML.")],
    overrides: OverridesArgument = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time budget of a fold, in minutes; default: that of the YAML, or 15.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the plan; the former file is kept as FILE.bak.")
    ] = False,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Plan an experiment again, for another budget or machine: time training steps, choose, and show the difference.

    Keys that the plan does not set, and values that you changed since the last plan, stay as they are.
    """
    from competition.cli.init import plan_command

    plan_command(file, overrides or [], minutes, write, tuple(trust or []))


@app.command(epilog="Example: maskfold cv experiments/demo2d/unet2d.yaml training.epochs=3")
def cv(
    file: Annotated[
        Path, typer.Argument(help="The experiment's YAML; or a folder of data, which maskfold init then describes.")
    ],
    overrides: OverridesArgument = None,
    minutes: Annotated[
        float | None, typer.Option(help="With a folder: time budget of a fold, in minutes; default 15.")
    ] = None,
    layout: Annotated[int | None, typer.Option(help="With a folder: number of the layout, as for init.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start a new run even if one exists.")] = False,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Cross-validate an experiment: train its folds, score the out-of-fold predictions, log to MLflow.

    Run the same command again to resume a stopped run, or to print the table of a finished one.
    """
    if file.is_dir():
        from competition.cli.init import experiment_for

        file = experiment_for(file, overrides or [], layout, minutes)
    elif (minutes is not None or layout is not None) and not file.exists():
        raise MaskfoldError(f"{file} does not exist.", "Name a folder with data, or an experiment's YAML.", status=2)
    elif minutes is not None or layout is not None:
        raise MaskfoldError(
            f"{file} is no folder, so --minutes and --layout have no effect.",
            f"Set training.budget_minutes={minutes or 15:g} instead, or plan again: maskfold plan {file}.",
            status=2,
        )
    from competition.cli.train import cv_command

    cv_command(file, overrides or [], new, tuple(trust or []))


@app.command(epilog="Example: maskfold demo 2d -o data/demo2d, or: maskfold demo spine")
def demo(
    name: Annotated[
        str, typer.Argument(help="2d, 3d or gate, or a layout; with --layout, the name of the folder below data.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output folder; default data/demo<name>, or data/<name> with --layout."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Make phantoms with the folders, formats, sizes and difficulty of real data: spleen, spine, a02025 or "
            "hipmri."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed; each seed gives different images.")] = 0,
) -> None:
    """Make a small competition: 2D images or volumes, masks, a sample submission and its hidden solution.

    The YAML files are written to experiments/ in the working folder; existing files are kept.
    """
    from competition.cli.data import demo_command

    demo_command(name, output, layout, seed)


@app.command(epilog="Example: maskfold explore experiments/a02025/competition.yaml root=data/a02025")
def explore(
    file: Annotated[Path, typer.Argument(help="The competition's YAML.")],
    overrides: CompetitionOverridesArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output page; default reports/<name>.html.")
    ] = None,
) -> None:
    """Check the data before training: sizes, intensities, classes, duplicates, faults; suggest folds and patch size."""
    from competition.cli.data import explore_command

    explore_command(file, overrides or [], output)


@app.command(epilog="Example: maskfold dicom exports -o data/spleen --layout imagesTr")
def dicom(
    folder: Annotated[Path, typer.Argument(help="Folder with DICOM files, also in subfolders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder for NIfTI files and series.csv.")],
    layout: Annotated[
        str, typer.Option(help="Subfolder of the images: imagesTr (masks in labelsTr) or imagesTs (masks in labelsTs).")
    ] = "imagesTr",
    labels: Annotated[
        str | None,
        typer.Option(
            help="Regular expression: a series whose description matches contains labels. DICOM-SEG is always "
            "recognised."
        ),
    ] = None,
) -> None:
    """Convert DICOM series to NIfTI; series.csv lists all series, with the reason if a series was refused."""
    from competition.cli.data import dicom_command

    dicom_command(folder, output, layout, labels)


@app.command(epilog="Example: maskfold doctor")
def doctor() -> None:
    """Check whether this machine can train: packages, GPUs, memory, disk, MLflow store, Kaggle credentials."""
    from competition.doctor.checks import print_report  # not from `cli.data`, whose imports may be missing

    if status := print_report():
        raise typer.Exit(status)


@app.command(epilog="Example: maskfold fetch hippocampus -o data")
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="A task of the Medical Segmentation Decathlon, e.g. spleen; kaggle:COMPETITION; or `list`."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Parent folder of the data set.")] = Path("data"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Download a public data set, after printing its size and licence."""
    from competition.cli.data import fetch_command

    fetch_command(name, output, yes)


@app.command(epilog="Example: maskfold submit experiments/demo2d/unet2d.yaml")
def submit(
    words: Annotated[list[str], typer.Argument(metavar=RUNS_METAVAR, help=RUN_HELP)],
    weights: Annotated[
        str | None,
        typer.Option(help="Ensemble weights of the runs: `auto`, or numbers such as 0.6,0.4; equal by default."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output CSV.")] = None,
    out_of_fold: Annotated[
        bool,
        typer.Option(
            "--out-of-fold", help="Write the out-of-fold predictions of the training cases, to check the score."
        ),
    ] = False,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Predict the test cases with all folds, and write a valid submission CSV.

    Fits weights and post-processing on the out-of-fold predictions; prints the expected score with its interval.
    """
    from competition.cli.submit import submit_command

    submit_command(words, weights, output, out_of_fold, tuple(trust or []))


@app.command(epilog="Example: maskfold predict RUN --images scans -o predictions")
def predict(
    words: Annotated[list[str], typer.Argument(metavar=RUNS_METAVAR, help=RUN_HELP)],
    images: Annotated[Path, typer.Option(help="Folder of 2D images or volumes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder of the masks.")],
    pictures: Annotated[
        int, typer.Option(min=0, help="Number of cases drawn as pictures, image and prediction side by side.")
    ] = 3,
    label_map: Annotated[
        bool,
        typer.Option(
            "--label-map",
            help="Write overlapping classes that are regions within regions (BraTS) into one file per case.",
        ),
    ] = False,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Predict the images of a folder and write label files: NIfTI with the image's affine, or PNG."""
    from competition.cli.submit import predict_command

    predict_command(words, images, output, pictures, tuple(trust or []), label_map)


@app.command(epilog="Example: maskfold upload submissions/demo2d/unet2d-15ba66a88b85.csv -m 'wider network'")
def upload(
    file: Annotated[Path | None, typer.Argument(help="Submission CSV; not needed with --notebook.")] = None,
    overrides: CompetitionOverridesArgument = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Description shown by Kaggle.")] = None,
    competition: Annotated[
        str | None,
        typer.Option(
            help="The competition: its name in Kaggle's URL, or its YAML. Default: submission.kaggle of its YAML."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    notebook: Annotated[str | None, typer.Option(help="Submit the output of this notebook: OWNER/NAME.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Version of the notebook.")] = None,
    output: Annotated[str, typer.Option("--file", help="Output file of the notebook.")] = "submission.csv",
) -> None:
    """Submit a CSV to Kaggle, after checking it against the sample; asks before using one of today's submissions."""
    from competition.cli.submit import upload_command

    upload_command(file, overrides or [], message, competition, yes, notebook, version, output)


@app.command(epilog="Example: maskfold ledger -o ledger.png, or: maskfold ledger --add x.csv --public 0.71")
def ledger(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME|KEY=VALUE", help="Competitions, default all; key=value overrides for --add."),
    ] = None,
    refresh: Annotated[
        bool | None,
        typer.Option("--refresh/--no-refresh", help="Fetch scores from Kaggle. Default: only if a score is missing."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output plot (.png) or page (.html).")] = None,
    competition: Annotated[str | None, typer.Option(help="With --add: the competition's YAML.")] = None,
    add: Annotated[Path | None, typer.Option(help="Add a file that was submitted elsewhere.")] = None,
    public: Annotated[float | None, typer.Option(help="With --add: public score.")] = None,
    private: Annotated[float | None, typer.Option(help="With --add: private score.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="With --add: description.")] = None,
) -> None:
    """List all submissions with their CV, public and private scores, and mark the differences that are noise."""
    from competition.cli.submit import ledger_command

    ledger_command(words or [], refresh, output, competition, add, public, private, message)


@app.command(epilog="Example: maskfold export experiments/demo2d/unet2d.yaml -o bundle")
def export(
    words: Annotated[list[str], typer.Argument(metavar=RUNS_METAVAR, help=RUN_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder; a bundle in it is replaced.")],
    weights: Annotated[str | None, typer.Option(help="Ensemble weights of the runs, as for submit.")] = None,
    zipped: Annotated[bool, typer.Option("--zip", help="Also write FOLDER.zip.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also export the networks as ONNX, for onnxruntime.")] = False,
    wheels: Annotated[bool, typer.Option("--wheels", help="Download the packages' wheels, except PyTorch's.")] = False,
    hours: Annotated[float, typer.Option(min=0.01, help="Time limit of the notebook.")] = 9.0,
    container: Annotated[
        str | None, typer.Option(help="grand-challenge: also write a Dockerfile and the entry point of its interface.")
    ] = None,
    input_slug: Annotated[
        str | None, typer.Option(help="With --container: name of the input socket; default the only one.")
    ] = None,
    output_slug: Annotated[
        str | None, typer.Option(help="With --container: name of the output socket; default the competition's name.")
    ] = None,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Write a self-contained prediction bundle for offline notebooks: weights, code, script, notebook.

    python FOLDER/run.py writes the same CSV as `maskfold submit`, for the test images present when it runs.
    """
    from competition.cli.submit import export_command

    export_command(
        words,
        output,
        weights,
        tuple(trust or []),
        zipped=zipped,
        onnx=onnx,
        wheels=wheels,
        hours=hours,
        container=container,
        input_slug=input_slug,
        output_slug=output_slug,
    )


@app.command(
    epilog="Example: maskfold score mine.csv --competition experiments/demo2d/competition.yaml --solution solution.csv"
)
def score(
    file: Annotated[Path, typer.Argument(help="Submission CSV, or a folder of label files (with --truth).")],
    overrides: CompetitionOverridesArgument = None,
    competition: Annotated[Path | None, typer.Option(help="The competition's YAML; for a CSV.")] = None,
    solution: Annotated[
        Path | None,
        typer.Option(help="CSV with the truth of the test cases. Without it, the file must contain training cases."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", "--output", "-o", help="Output CSV with the scores of each case.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Folder with the true label files.")] = None,
    metrics: Annotated[
        str, typer.Option(help="Metrics of label files, or import paths of your own, separated by commas.")
    ] = "dice,hd95,nsd",
    tolerances: Annotated[str, typer.Option(help="Tolerances of nsd in mm; a column for each.")] = "1,2,3",
    classes: Annotated[
        str | None, typer.Option(help="Label values, e.g. 1,2 or liver=1,tumour=2+3; default: all values.")
    ] = None,
    ignore: Annotated[int | None, typer.Option(help="Value of true pixels that do not count.")] = None,
    dimensions: Annotated[
        int | None, typer.Option(min=2, max=3, help="Axes of label files; default 3 for NIfTI, NRRD and MHA, else 2.")
    ] = None,
    missing: Annotated[
        str, typer.Option(help="Cases that one folder lacks: error, skip, or empty (an empty prediction).")
    ] = "error",
    trust: TrustOption = None,
) -> None:
    """Score a CSV with the competition's metric, or a folder of label files with any metrics.

    A CSV is compared with a solution, or with the training masks; a folder with the label files of the same names in
    --truth.
    """
    if truth is not None:
        from competition.cli.score_folder import score_folder_command

        if competition is not None or solution is not None or overrides:
            raise MaskfoldError(
                "--truth: found --competition, --solution or KEY=VALUE as well, which apply only to a CSV.",
                "Omit these arguments, or omit --truth.",
                status=2,
            )
        score_folder_command(
            file, truth, metrics, tolerances, classes, ignore, dimensions, missing, table, tuple(trust or [])
        )
        return
    if file.is_dir():
        raise MaskfoldError(f"{file} is a folder.", "Name the folder of true label files with --truth.", status=2)
    if competition is None:
        raise MaskfoldError(
            "--competition is missing, which a CSV requires.", "Add --competition PATH/competition.yaml.", status=2
        )
    from competition.cli.submit import score_command

    score_command(file, competition, solution, table, overrides or [], tuple(trust or []))


@app.command(
    "import",
    epilog="Example: maskfold import nnUNet_results/Dataset004/nnUNetTrainer__nnUNetPlans__3d_fullres "
    "--competition experiments/hippocampus/competition.yaml --name nnunet --test predictions",
)
def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of the predictions: nnU-Net's results, or fold_0/ID.npz, …, or oof/ID.nii.gz with --splits; "
            "and test/ID.nii.gz."
        ),
    ],
    competition: Annotated[Path, typer.Option(help="The competition's YAML.")],
    name: Annotated[str, typer.Option(help="Name of the run, such as nnunet.")],
    overrides: CompetitionOverridesArgument = None,
    oof: Annotated[Path | None, typer.Option(help="Folder of the out-of-fold predictions; needs --splits.")] = None,
    test: Annotated[Path | None, typer.Option(help="Folder of the test predictions; default FOLDER/test.")] = None,
    splits: Annotated[
        Path | None, typer.Option(help="The folds: nnU-Net's splits_final.json, or a CSV with the columns id and fold.")
    ] = None,
    kind: Annotated[str, typer.Option(help="Content of the files: labels, probabilities, or auto.")] = "auto",
    axes: Annotated[
        str | None,
        typer.Option(help="Order of the spatial axes of NPY and NPZ files, e.g. zyx; default zyx for nnU-Net's."),
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Order of the files' channels, e.g. background,posterior,anterior.")
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Make a run of predictions made elsewhere, such as nnU-Net's, for submit, compare and report.

    Checks ids, shapes, values and folds; scores the predictions. A case whose fold is unknown counts as seen.
    """
    from competition.cli.exchange import import_command

    import_command(
        folder,
        competition,
        name,
        overrides or [],
        oof=oof,
        test=test,
        splits=splits,
        kind=kind,
        axes=axes,
        channels=channels,
        trust=tuple(trust or []),
    )


@app.command(epilog="Example: maskfold folds experiments/hippocampus/unet3d.yaml --to nnunet -o splits_final.json")
def folds(
    name: Annotated[str, typer.Argument(metavar="RUN", help="An experiment's YAML, a run's folder, or its hash.")],
    overrides: OverridesArgument = None,
    to: Annotated[str, typer.Option(help="nnunet (splits_final.json) or csv (columns id and fold).")] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output file; default splits_final.json or folds.csv.")
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Write the folds of an experiment for other programs, so that team mates train on the same folds."""
    from competition.cli.exchange import folds_command

    folds_command(name, overrides or [], to, output, tuple(trust or []))


@app.command(epilog="Example: maskfold study experiments/hippocampus/unet3d.yaml --trials 30 folds.run=[0,1]")
def study(
    file: Annotated[Path, typer.Argument(help="The experiment's YAML, with a `study` section.")],
    overrides: OverridesArgument = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Total number of finished trials; default study.trials.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage: postgresql://… for several machines; default mlruns/optuna.db.")
    ] = None,
    promote: Annotated[int | None, typer.Option(min=1, help="Train the best N trials on all folds.")] = None,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Search keys of the experiment with Optuna; each trial is one cross-validation run.

    Run the same command again to resume, also after a crash. Trial 0 uses the YAML unchanged.
    """
    from competition.cli.train import study_command

    study_command(file, overrides or [], trials, storage, promote, tuple(trust or []))


@app.command(epilog="Example: maskfold report experiments/demo2d/unet2d.yaml -o report.html")
def report(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|STUDY|KEY=VALUE",
            help="One run and key=value overrides, e.g. competition.root=/data; or one study. A run is an experiment's "
            "YAML (its latest finished run), a run's folder, or its hash. A study is its name, or its folder below "
            "mlruns/studies.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output page; default report.html in the folder of the run or study."),
    ] = None,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Write an HTML report: scores, learning curves, cases, calibration, error by size, the YAML.

    The page is a single file. Its pictures are also in a folder of the same name.
    """
    from competition.cli.train import report_command

    report_command(words, output, tuple(trust or []))


@app.command(epilog="Example: maskfold review experiments/demo2d/unet2d.yaml -o reports/review.html")
def review(
    words: Annotated[
        list[str],
        typer.Argument(metavar=RUNS_METAVAR, help="One run, then key=value overrides; see maskfold submit --help."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output page; default reports/review-RUN.html. The CSV is beside it."),
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Number of findings to draw.")] = 40,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Find labels that look wrong: cases and objects where the out-of-fold predictions contradict the truth.

    Writes a page with pictures and a CSV. Fill its columns exclude and weight, and name it in train.exclude or
    train.weights of the competition's YAML.
    """
    from competition.cli.train import review_command

    review_command(words, output, pictures, tuple(trust or []))


@app.command(epilog="Example: maskfold compare experiments/demo2d/unet2d.yaml 2cb50ff146c0 -o reports/compare")
def compare(
    words: Annotated[
        list[str],
        typer.Argument(metavar=RUNS_METAVAR, help="Two runs, then key=value overrides; see maskfold submit --help."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder; default reports/compare-A-B.")
    ] = None,
    cases: Annotated[
        int,
        typer.Option(min=0, help="Number of cases to draw as pictures. The cases with the largest change are drawn."),
    ] = 10,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Compare two runs on the cases that both predicted out of fold, paired by case and class.

    Prints the competition's metric, Dice, surface Dice and HD95, each with its difference, interval and p-value.
    """
    from competition.cli.train import compare_command

    compare_command(words, output, cases, tuple(trust or []))


@app.command(epilog="Example: maskfold register experiments/demo2d/unet2d.yaml --best")
def register(
    words: Annotated[
        list[str],
        typer.Argument(metavar=RUNS_METAVAR, help="One run, then key=value overrides; see maskfold submit --help."),
    ],
    best: Annotated[
        bool,
        typer.Option(
            "--best",
            help="Register the competition's run with the best cross-validation score instead of the given one.",
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


@app.command(epilog="Example: maskfold clean --dry-run, or: maskfold clean --older-than 8w --keep-best 3")
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files; delete nothing.")] = False,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Keep files that changed within this time, e.g. 12h, 30d or 8w.")
    ] = "30d",
    keep_best: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Also delete finished runs, except for the N best ones of each competition. Default: no finished run.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Free disk space: unfinished runs, prepared cases and MLflow artifacts that nothing needs, temporary files.

    The command lists the files with sizes and reasons, then asks. A run stays if a submission, the ledger, a registered
    model or another run names it, if it is a best trial of a study, or if a process works in it.
    """
    from competition.cli.clean import clean_command

    clean_command(dry_run, older_than, keep_best, yes)


@app.command(epilog="Example: maskfold ui --port 5001")
def ui(
    port: Annotated[int, typer.Option(help="TCP port.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other than 127.0.0.1 is reachable from the network.")
    ] = "127.0.0.1",
) -> None:
    """Start the MLflow user interface for the runs in this folder."""
    from competition.tracking.server import serve_mlflow

    serve_mlflow(Path.cwd(), host, port)


@app.command(epilog="Example: maskfold watch, or: maskfold watch --once")
def watch(
    once: Annotated[bool, typer.Option("--once", help="Print the table once; the default without a terminal.")] = False,
    seconds: Annotated[float, typer.Option(help="Seconds between two readings of the files.")] = 2.0,
) -> None:
    """Show the folds and trials that run in this folder: step, seconds per step, end, score, memory; Ctrl-C ends it.

    The command reads the files of the runs only, so it works over ssh and beside Ray, and names killed processes.
    """
    from competition.cli.watch import watch_command

    watch_command(once, seconds)


@app.command(hidden=True)
def version() -> None:
    """Print the version."""
    from competition import __version__

    typer.echo(__version__)


def main() -> None:
    """Run the command line; print errors that a user can cause as one message without a traceback."""
    install_redaction()
    # Libraries create millions of objects that stay; with Python's 700, a sixth of their import time goes into looking
    # for garbage among them.
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
