"""Define the arguments and help texts of the commands that make, submit, score, export and exchange predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from competition.cli.options import (
    RUN_HELP,
    RUNS_METAVAR,
    AllowOption,
    CompetitionOverridesArgument,
    OverridesArgument,
    TrustOption,
)
from competition.errors import MaskfoldError
from competition.text import has_or_have, join_names

DEFAULT_METRICS, DEFAULT_TOLERANCES, DEFAULT_MISSING = "dice,hd95,nsd", "1,2,3", "error"  # of `maskfold score`

commands = typer.Typer()


@commands.command(epilog="Example: maskfold submit experiments/demo2d/unet2d.yaml")
def submit(
    words: Annotated[list[str], typer.Argument(metavar=RUNS_METAVAR, help=RUN_HELP)],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Ensemble weights of the runs: `auto` fits them, or give numbers such as 0.6,0.4. By default, all "
            "runs have equal weights."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="CSV to write. If the host expects label files: their folder or zip file."),
    ] = None,
    out_of_fold: Annotated[
        bool,
        typer.Option(
            "--out-of-fold",
            help="Write a CSV with the out-of-fold predictions of the training cases, instead of predictions of the "
            "test cases. `maskfold score` computes the run's score again from this CSV.",
        ),
    ] = False,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Predict the test cases with all folds, and write a valid submission CSV.

    Prints the expected score with its interval. On the out-of-fold predictions, --weights auto fits the ensemble
    weights, and postprocess.tune=true tunes the post-processing.
    """
    from competition.cli.submit import submit_command

    submit_command(words, weights, output, out_of_fold, tuple(trust or []))


@commands.command(epilog="Example: maskfold predict RUN --images scans -o predictions")
def predict(
    words: Annotated[list[str], typer.Argument(metavar=RUNS_METAVAR, help=RUN_HELP)],
    images: Annotated[Path, typer.Option(help="Folder of the images (2D) or volumes to predict.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder for the masks.")],
    pictures: Annotated[
        int, typer.Option(min=0, help="Number of cases to draw as pictures, with image and prediction side by side.")
    ] = 3,
    label_map: Annotated[
        bool,
        typer.Option(
            "--label-map",
            help="For overlapping classes that are regions within regions, as in BraTS: write one label file per case "
            "instead of one file per class.",
        ),
    ] = False,
    trust: TrustOption = None,
    allow: AllowOption = None,
) -> None:
    """Predict the images of a folder and write label files: NIfTI with the image's affine, or PNG."""
    from competition.cli.submit import predict_command

    predict_command(words, images, output, pictures, tuple(trust or []), label_map)


@commands.command(epilog="Example: maskfold upload submissions/demo2d/unet2d-15ba66a88b85.csv -m 'wider network'")
def upload(
    file: Annotated[Path | None, typer.Argument(help="The CSV to submit; with --notebook, it is not needed.")] = None,
    overrides: CompetitionOverridesArgument = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Description of the submission, which Kaggle shows.")
    ] = None,
    competition: Annotated[
        str | None,
        typer.Option(
            help="The competition: its name in Kaggle's URL, or the path of its competition.yaml. Default: the "
            "competition for which maskfold submit wrote the CSV, with the name in submission.kaggle of its YAML."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    notebook: Annotated[str | None, typer.Option(help="Submit the output of this notebook: OWNER/NAME.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="With --notebook: version of the notebook.")] = None,
    output: Annotated[
        str, typer.Option("--file", help="With --notebook: name of the file that the notebook writes.")
    ] = "submission.csv",
) -> None:
    """Check a CSV against the sample submission, and submit the CSV to Kaggle after you confirm."""
    from competition.cli.submit import upload_command

    upload_command(file, overrides or [], message, competition, yes, notebook, version, output)


@commands.command(epilog="Example: maskfold ledger -o ledger.png, or: maskfold ledger --add x.csv --public 0.71")
def ledger(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|KEY=VALUE",
            help="Names of the competitions to list (default: all). With --add, also key=value overrides of the "
            "competition's YAML.",
        ),
    ] = None,
    refresh: Annotated[
        bool | None,
        typer.Option(
            "--refresh/--no-refresh",
            help="Fetch scores from Kaggle. By default, the command does so only if a score is missing.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a plot (.png) or an HTML page (.html) to this file.")
    ] = None,
    competition: Annotated[str | None, typer.Option(help="With --add: path of the competition's YAML.")] = None,
    add: Annotated[
        Path | None, typer.Option(help="Add a file that was submitted without maskfold upload, e.g. to another host.")
    ] = None,
    public: Annotated[float | None, typer.Option(help="With --add: the score on the public leaderboard.")] = None,
    private: Annotated[float | None, typer.Option(help="With --add: the score on the private leaderboard.")] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="With --add: a description of the submission.")
    ] = None,
) -> None:
    """List all submissions with their CV, public and private scores, and mark the differences that are noise."""
    from competition.cli.submit import ledger_command

    ledger_command(words or [], refresh, output, competition, add, public, private, message)


@commands.command(epilog="Example: maskfold export experiments/demo2d/unet2d.yaml -o bundle")
def export(
    words: Annotated[list[str], typer.Argument(metavar=RUNS_METAVAR, help=RUN_HELP)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Output folder. If it contains a bundle, the new bundle replaces it.")
    ],
    weights: Annotated[str | None, typer.Option(help="Ensemble weights of the runs, as for maskfold submit.")] = None,
    zipped: Annotated[bool, typer.Option("--zip", help="Also pack the bundle into FOLDER.zip.")] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also export the networks as ONNX files, to predict with onnxruntime.")
    ] = False,
    wheels: Annotated[
        bool, typer.Option("--wheels", help="Also download the wheels of the required packages, except for PyTorch's.")
    ] = False,
    hours: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="Time limit of the bundle's notebook, in hours. If the time is too short, the notebook leaves out "
            "test-time augmentation, then networks.",
        ),
    ] = 9.0,
    container: Annotated[
        str | None,
        typer.Option(
            help="With the value grand-challenge: also write a Dockerfile and the entry point that Grand Challenge "
            "starts."
        ),
    ] = None,
    input_slug: Annotated[
        str | None,
        typer.Option(
            help="With --container: slug of the input at Grand Challenge; default: the only folder below /input/images."
        ),
    ] = None,
    output_slug: Annotated[
        str | None,
        typer.Option(help="With --container: slug of the output at Grand Challenge; default: the competition's name."),
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


@commands.command(
    epilog="Example: maskfold score mine.csv --competition experiments/demo2d/competition.yaml --solution solution.csv"
)
def score(
    file: Annotated[Path, typer.Argument(help="Submission CSV, or a folder of label files (with --truth).")],
    overrides: CompetitionOverridesArgument = None,
    competition: Annotated[Path | None, typer.Option(help="The competition's YAML; required if FILE is a CSV.")] = None,
    solution: Annotated[
        Path | None,
        typer.Option(
            help="CSV with the truth of the test cases. Without it, the submission must contain training cases."
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", "--output", "-o", help="Write the scores of each case to this CSV.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Folder with the true label files.")] = None,
    metrics: Annotated[
        str,
        typer.Option(help="Metrics for label files, separated by commas: names, or import paths of your own metrics."),
    ] = DEFAULT_METRICS,
    tolerances: Annotated[
        str, typer.Option(help="Tolerances of the metric nsd in mm, separated by commas; each gets a column.")
    ] = DEFAULT_TOLERANCES,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Label values to score, e.g. 1,2. With names: liver=1,tumour=2+3, where the values 2 and 3 are both "
            "tumour. By default, all values above 0 are scored."
        ),
    ] = None,
    ignore: Annotated[
        int | None,
        typer.Option(
            help="Label value to leave out of the score, for example 255: pixels with this value in the files of "
            "--truth do not count."
        ),
    ] = None,
    dimensions: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=3,
            help="Number of axes of the label files; default: 3 for NIfTI, NRRD and MHA, and 2 for other formats.",
        ),
    ] = None,
    missing: Annotated[
        str,
        typer.Option(
            help="What to do with cases that only one of the two folders has: `error` stops, `skip` leaves them out, "
            "`empty` scores a missing prediction as an empty mask, and leaves out a prediction without truth."
        ),
    ] = DEFAULT_MISSING,
    trust: TrustOption = None,
) -> None:
    """Score a CSV with the competition's metric, or a folder of label files with any metrics.

    A CSV is compared with a solution, or with the training masks. The label files of a folder are compared with the
    files of the same names in --truth.
    """
    if truth is not None:
        from competition.cli.score_folder import score_folder_command

        if competition is not None or solution is not None or overrides:
            raise MaskfoldError(
                "--truth is for label files, but --competition, --solution and KEY=VALUE are for a CSV: found both "
                "kinds of arguments, expected only one kind.",
                "To score label files, omit --competition, --solution and KEY=VALUE. To score a CSV, omit --truth.",
                status=2,
            )
        score_folder_command(
            file, truth, metrics, tolerances, classes, ignore, dimensions, missing, table, tuple(trust or [])
        )
        return
    given = {
        "--metrics": metrics != DEFAULT_METRICS,
        "--tolerances": tolerances != DEFAULT_TOLERANCES,
        "--classes": classes is not None,
        "--ignore": ignore is not None,
        "--dimensions": dimensions is not None,
        "--missing": missing != DEFAULT_MISSING,
    }
    if not file.is_dir() and (unused := [option for option, is_given in given.items() if is_given]):
        raise MaskfoldError(
            f"{join_names(unused)} {has_or_have(len(unused))} no effect on the score of a CSV, only with --truth.",
            f"Remove {join_names(unused)}. The competition's YAML sets metric, classes and ignored pixels.",
            status=2,
        )
    if file.is_dir():
        raise MaskfoldError(
            f"{file} is a folder, which requires --truth, but --truth is missing.",
            "Add --truth FOLDER with the true label files.",
            status=2,
        )
    if competition is None:
        raise MaskfoldError(
            "--competition is missing, but a CSV requires it.", "Add --competition PATH/competition.yaml.", status=2
        )
    from competition.cli.submit import score_command

    score_command(file, competition, solution, table, overrides or [], tuple(trust or []))


@commands.command(
    "import",
    epilog="Example: maskfold import nnUNet_results/Dataset004/nnUNetTrainer__nnUNetPlans__3d_fullres "
    "--competition experiments/hippocampus/competition.yaml --name nnunet --test predictions",
)
def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of the predictions: nnU-Net's results; or fold_0/ID.npz, fold_1/ID.npz, …; or oof/ID.nii.gz "
            "together with --splits. Test predictions are in test/ID.nii.gz."
        ),
    ],
    competition: Annotated[Path, typer.Option(help="The competition's YAML.")],
    name: Annotated[str, typer.Option(help="Name of the new run, e.g. nnunet.")],
    overrides: CompetitionOverridesArgument = None,
    oof: Annotated[Path | None, typer.Option(help="Folder of the out-of-fold predictions; requires --splits.")] = None,
    test: Annotated[Path | None, typer.Option(help="Folder of the test predictions; default: FOLDER/test.")] = None,
    splits: Annotated[
        Path | None,
        typer.Option(help="File of the folds: nnU-Net's splits_final.json, or a CSV with the columns id and fold."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="What the files contain: labels or probabilities; `auto` decides by their values.")
    ] = "auto",
    axes: Annotated[
        str | None,
        typer.Option(
            help="Order of the spatial axes in NPY and NPZ files, e.g. zyx; files of nnU-Net are zyx by default."
        ),
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Order of the channels in the files, e.g. background,posterior,anterior.")
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Turn the predictions of another program, such as nnU-Net, into a run for submit, compare and report.

    Checks ids, shapes, values and folds, and scores the predictions. If the fold of a training case is unknown, its
    prediction is not used, because the network may have been trained on the case.
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


@commands.command(epilog="Example: maskfold folds experiments/hippocampus/unet3d.yaml --to nnunet -o splits_final.json")
def folds(
    name: Annotated[str, typer.Argument(metavar="RUN", help="An experiment's YAML, a run's folder, or its hash.")],
    overrides: OverridesArgument = None,
    to: Annotated[
        str, typer.Option(help="Format of the file: nnunet (splits_final.json), or csv (columns id and fold).")
    ] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output file; default: splits_final.json or folds.csv.")
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Write the folds of an experiment for other programs, so that team mates train on the same folds."""
    from competition.cli.exchange import folds_command

    folds_command(name, overrides or [], to, output, tuple(trust or []))
