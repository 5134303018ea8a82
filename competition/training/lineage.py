"""Weights of another run may start this one only if they never saw what this fold validates."""

from __future__ import annotations

from pathlib import Path

from competition.config import MaskfoldError
from competition.training.job import Job
from competition.training.runs import CvRun, load_run


def check_lineage(source: Path, job: Job, run: CvRun) -> Path:
    """The weights of `source` that this fold may start from.

    Args:
        source: another run's folder.
        job: the fold that is about to start.
        run: the run it belongs to.

    Returns:
        The path of the weights: the same fold's, or those of the fit on all cases for a fit on all cases.

    Raises:
        MaskfoldError: there are none, or they were trained on a case that this fold validates.
    """
    other = load_run(source, job.trust)
    weights = other.member_folder(job.fold, 0) / "weights.safetensors"
    if not weights.exists():
        raise MaskfoldError(f"init_from: {weights} does not exist.",
                            "Finish that run's fold first, or name another run.")
    if job.fold >= 0:
        validated = set(run.folds.loc[run.folds["fold"] == job.fold, "id"])
        seen = set(other.folds.loc[~other.folds["fold"].isin([job.fold, -2]), "id"])
        if leaked := sorted(validated & seen):
            raise MaskfoldError(
                f"init_from: fold {job.fold} of {source} was trained on {leaked[0]!r} and {len(leaked) - 1} more of the "
                f"cases that this fold validates.", "Use the same folds in both (folds.scheme: file).", status=2)
    return weights
