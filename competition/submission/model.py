"""A run as an MLflow model: code and safetensors, nothing that is unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import competition
from competition.config import MaskfoldError, resolved
from competition.config.load import write_yaml
from competition.data.records import read_record
from competition.submission.export.requirements import normal
from competition.submission.folder import settings_of
from competition.submission.members import checkpoints
from competition.submission.predictor import EXPERIMENT, STEPS
from competition.training.checkpoint import write_json
from competition.training.find import finished
from competition.training.runs import CvRun

PACKAGE = Path(competition.__file__).parent
SCRIPT = Path(__file__).with_name("served.py")


def pack(run: CvRun, folder: Path) -> None:
    """Writes all that predicts into a folder: `experiment.yaml`, `postprocess.json`, and each member's weights.

    Args:
        run: with at least one finished fold. Its steps are those that `maskfold predict` would take.
        folder: made here.

    Raises:
        MaskfoldError: a file of weights is missing, or the disk is full.
    """
    folder.mkdir(parents=True)
    write_yaml(resolved(run.exp), folder / EXPERIMENT)
    write_json(folder / STEPS, {"settings": settings_of([run]).model_dump(mode="json")})
    for one in checkpoints(run):
        member = folder / run.member_folder(one.fold, one.seed).name
        member.mkdir()
        shutil.copyfile(one.path, member / one.path.name)
        shutil.copyfile(one.path.parent / "result.json", member / "result.json")


def fingerprint(run: CvRun) -> str:
    """A SHA-256 (hexadecimal) of what a model of the run depends on: its experiment, steps, weights, and the code."""
    exp = resolved(run.exp)
    exp["competition"].pop("root")  # where the data lie changes nothing
    for key in ("run", "study"):
        del exp[key]
    code = [
        (str(path.relative_to(PACKAGE)), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    plain = [
        exp,
        settings_of([run]).model_dump(mode="json"),
        code,
        sorted((one.fold, one.seed, one.sha256) for one in checkpoints(run)),
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def described(run: CvRun) -> str:
    """A sentence on what predicts, and how well it did out of fold."""
    summary = _summary(run)
    members = len(finished(run))
    text = f"{run.name} {run.folder.name}, {members} network{'s' * (members > 1)}"
    if summary.get("score") is None:
        return text
    text += f", {summary['metric']} {summary['score']:.4f} out of fold"
    if summary.get("low") is not None and summary.get("high") is not None:
        text += f" (95 % interval {summary['low']:.4f} to {summary['high']:.4f}, {summary['cases']} cases)"
    return text


def version_tags(run: CvRun) -> dict[str, str]:
    """Tags of a model's version, so that the registry can be searched."""
    summary = _summary(run)
    tags = {
        "competition": run.exp.competition.name,
        "run_hash": run.folder.name,
        "members": str(len(finished(run))),
        "experiment": run.name.removeprefix(f"{run.exp.competition.name}-"),
    }
    if summary.get("score") is not None:
        tags.update(metric=str(summary["metric"]), cv_score=f"{summary['score']:.6f}")
    return tags


def _summary(run: CvRun) -> dict[str, Any]:
    path = run.folder / "summary.json"
    return read_record(path, "Type the run's `maskfold cv` again, which writes it.") if path.exists() else {}


def write_model(run: CvRun, folder: Path, workshop: Path) -> None:
    """Writes an MLflow model that holds its networks and this package's code.

    Args:
        run: with at least one finished fold.
        folder: of the model, made here.
        workshop: an empty folder for the time being.

    Raises:
        MaskfoldError: the run cannot be packed, or MLflow made a file that would have to be unpickled.
    """
    import mlflow.pyfunc

    logging.getLogger("mlflow.pyfunc").setLevel(
        logging.ERROR
    )  # it would like a signature; none says: arrays of any size
    pack(run, workshop / "run")
    code = workshop / "code" / "competition"
    shutil.copytree(PACKAGE, code, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(SCRIPT),
        artifacts={"run": str(workshop / "run")},
        code_paths=[str(code)],
        pip_requirements=requirements(),
    )
    for cache in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache)
    pickled = [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")]
    if pickled:
        raise MaskfoldError(
            f"MLflow wrote {pickled[0].name} into the model, which would run code when it is loaded.",
            "Install the MLflow of requirements.lock.",
        )


def requirements() -> list[str]:
    """What the package needs of what is installed, in those versions; `+cpu` and the like are left off."""
    try:
        wanted = metadata.requires("maskfold") or []
    except metadata.PackageNotFoundError:
        wanted = ["mlflow", "torch"]  # the package runs from a folder; its own words are not to be had
    plain = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted if "extra ==" not in line]
    installed = {normal(package.name): package.version for package in metadata.distributions()}
    return [f"{name}=={installed[normal(name)].split('+')[0]}" for name in plain if normal(name) in installed]
