"""Write a run as an MLflow model that consists of code and safetensors files, without pickled files."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import competition
from competition.config.loading import resolve_config, resolve_for_prediction, write_yaml
from competition.errors import MaskfoldError
from competition.export.predictor import EXPERIMENT_FILE, POSTPROCESS_FILE
from competition.export.requirements import normalise_package_name
from competition.records import json_digest, write_json
from competition.runs.fold import RESULT_FILE
from competition.runs.run import Run
from competition.runs.summary import read_summary, run_scores
from competition.submission.label_files import label_file_settings
from competition.text import format_count

PACKAGE_FOLDER = Path(competition.__file__).parent
MODEL_SCRIPT = Path(__file__).with_name("mlflow_script.py")


def write_predictor_folder(run: Run, folder: Path) -> None:
    """Write all files of a run that prediction needs: `experiment.yaml`, `postprocess.json`, and all weights.

    Args:
        run: a run with at least one finished fold. `postprocess.json` gets the post-processing settings that `maskfold
            predict` uses for this run.
        folder: folder that this function creates.

    Raises:
        MaskfoldError: a weight file is missing, or the disk is full.
    """
    folder.mkdir(parents=True)
    write_yaml(resolve_for_prediction(run.exp), folder / EXPERIMENT_FILE)
    write_json(folder / POSTPROCESS_FILE, {"settings": label_file_settings([run]).model_dump(mode="json")})
    for checkpoint in run.checkpoints():
        member = folder / run.member_folder(checkpoint.fold, checkpoint.seed).name
        member.mkdir()
        shutil.copyfile(checkpoint.path, member / checkpoint.path.name)
        shutil.copyfile(checkpoint.path.parent / RESULT_FILE, member / RESULT_FILE)


def model_fingerprint(run: Run) -> str:
    """Return a SHA-256 (hexadecimal) that changes when a part of a run's model changes.

    The parts are the resolved YAML (without `competition.root`, `run` and `study`), the post-processing settings, the
    weights, and Maskfold's code.
    """
    exp = resolve_config(run.exp)
    exp["competition"].pop("root")  # the location of the data does not change the model
    for key in ("run", "study"):
        del exp[key]
    code = [
        (str(path.relative_to(PACKAGE_FOLDER)), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(PACKAGE_FOLDER.rglob("*.py"))
    ]
    plain = [
        exp,
        label_file_settings([run]).model_dump(mode="json"),
        code,
        sorted((checkpoint.fold, checkpoint.seed, checkpoint.sha256) for checkpoint in run.checkpoints()),
    ]
    return json_digest(plain)


def describe_run(run: Run) -> str:
    """Return a description of a run in one line: its number of networks and its out-of-fold score."""
    summary = _summary(run)
    members = len(run.finished_members())
    text = f"{run.name} {run.folder.name}, {members} network{'s' * (members > 1)}"
    if summary.get("score") is None:
        return text
    text += f", {summary['metric']} {summary['score']:.4f} out of fold"
    if summary.get("low") is not None and summary.get("high") is not None:
        text += (
            f" (95 % interval {summary['low']:.4f} to {summary['high']:.4f}, {format_count(summary['cases'], 'case')})"
        )
    submitted = run_scores(run, summary)
    if submitted is not None and submitted.counting in ("nested", "processed"):
        text += f", {submitted.value:.4f} with {submitted.note}"
    return text


def version_tags(run: Run) -> dict[str, str]:
    """Return the tags of a model version, by which users can search MLflow's model registry."""
    summary = _summary(run)
    tags = {
        "competition": run.exp.competition.name,
        "run_hash": run.folder.name,
        "members": str(len(run.finished_members())),
        "experiment": run.name.removeprefix(f"{run.exp.competition.name}-"),
    }
    if summary.get("score") is not None:
        tags.update(metric=str(summary["metric"]), cv_score=f"{summary['score']:.6f}")
        if (submitted := run_scores(run, summary)) is not None:
            tags.update(counted_score=f"{submitted.value:.6f}")
    return tags


def _summary(run: Run) -> dict[str, Any]:
    try:
        return read_summary(run.folder)
    except FileNotFoundError:
        return {}


def write_model(run: Run, folder: Path, temporary_folder: Path) -> None:
    """Write a run as an MLflow model, with its networks and a copy of Maskfold's code.

    Args:
        run: a run with at least one finished fold.
        folder: folder of the model, which this function creates.
        temporary_folder: an empty folder for temporary files.

    Raises:
        MaskfoldError: a weight file is missing, the disk is full, or MLflow has written a pickled file.
    """
    import mlflow.pyfunc

    # MLflow warns that the signature is missing, but no signature can describe arrays of any size.
    logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
    write_predictor_folder(run, temporary_folder / "run")
    code = temporary_folder / "code" / "competition"
    shutil.copytree(PACKAGE_FOLDER, code, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(MODEL_SCRIPT),
        artifacts={"run": str(temporary_folder / "run")},
        code_paths=[str(code)],
        pip_requirements=pinned_requirements(),
    )
    for cache_folder in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache_folder)
    pickled = [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")]
    if pickled:
        raise MaskfoldError(
            f"MLflow wrote the pickled file {pickled[0].name} into the model, but a model must have no pickled file, "
            "because loading one can run any code.",
            "Install the MLflow version in the file requirements.lock of Maskfold's repository.",
        )


def pinned_requirements() -> list[str]:
    """Return `name==version` of each package that Maskfold requires, with the installed version.

    Local parts of versions, such as `+cpu`, are left out.
    """
    try:
        required = metadata.requires("maskfold") or []
    except metadata.PackageNotFoundError:
        required = ["mlflow", "torch"]  # the package is not installed, so it has no metadata
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line]
    installed = {normalise_package_name(package.name): package.version for package in metadata.distributions()}
    return [
        f"{name}=={installed[normalise_package_name(name)].split('+')[0]}"
        for name in names
        if normalise_package_name(name) in installed
    ]
