"""Label images with the predictions of teachers, which are networks of other runs.

A network may be a teacher of a fold only if it was not trained on the cases that this fold validates.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.axes import competition_axes, permutation
from competition.config.experiment import Experiment
from competition.context import Context
from competition.data.cache import RECORD_FILE, PreprocessedCase, cache_key, get_or_build
from competition.data.cases import case_rows
from competition.data.masks import IGNORED, unpredicted_pixels
from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.runs.cascade.first_stage import refuse_first_stage
from competition.runs.fold import FoldJob
from competition.runs.run import FOLDS_FILE, Run, load_run
from competition.training.distributed import make_fabric
from competition.training.lineage import (
    HeldOutCases,
    Leak,
    TrainingCases,
    cases_via,
    find_leaks,
    format_leaks,
    member_name,
    training_cases,
)

if TYPE_CHECKING:
    import pandas as pd

# Why an image with a pseudo-label is not used for training.
DOUBTS = {
    "dice": "their expected Dice is below pseudo.confidence.dice",
    "entropy": "their entropy is above pseudo.confidence.entropy",
    "ignored": "no voxel is certain (pseudo.confidence.lower and pseudo.confidence.upper)",
}


# Teachers


@dataclass(frozen=True)
class Teacher:
    """Hold the networks of one run that may teach a fold, because they were not trained on its validation cases.

    Attributes:
        run: the run of the networks.
        members: (fold, seed) of each network.
        sources: the cases on which the networks were trained.
    """

    run: Run
    members: tuple[tuple[int, int], ...]
    sources: tuple[TrainingCases, ...]

    @property
    def names(self) -> list[str]:
        """The names of the networks, e.g. `hippocampus-unet3d/2cb50ff146c0/fold_0`."""
        return [member_name(self.run, *member) for member in self.members]

    def weight_files(self) -> list[Path]:
        """Return the weight file of each network."""
        return [self.run.weights(*member) for member in self.members]

    def digests(self) -> list[str]:
        """Return the SHA-256 (hexadecimal) of each weight file.

        Raises:
            MaskfoldError: a file is missing.
        """
        try:
            return [sha256_of_file(path) for path in self.weight_files()]
        except OSError as error:
            raise MaskfoldError(
                f"pseudo.from: the weights {error.filename} cannot be read: {error.strerror}.",
                f"Restore the file from a backup, or train this fold of the run {self.run.folder.name} again.",
            ) from error


def find_teachers(run: Run, job: FoldJob) -> list[Teacher]:
    """Return the teachers of a fold, one for each run in `pseudo.from`.

    Only networks that were not trained on the fold's validation cases are teachers. If a run in `pseudo.from` has the
    same folds as `run`, its teachers are its networks of the same fold. If it was trained on data of another
    competition, all its networks are teachers.

    Args:
        run: the run whose fold is taught.
        job: the fold.

    Raises:
        MaskfoldError: all networks of a run in `pseudo.from` were trained on validation cases of the fold (the message
            names some of these cases), or the run does not have the classes of the experiment (status 2).
    """
    pseudo, protected, teachers = run.exp.pseudo, HeldOutCases(run, job.fold), []
    context = Context(job.trust)
    for name in pseudo.teacher_names if pseudo is not None else ():
        teacher_run = load_run(Path(name), job.trust)
        refuse_first_stage([teacher_run], "teach (pseudo.from)")
        _check_same_classes(run.exp, teacher_run)
        clean_members: list[tuple[int, int]] = []
        sources: dict[TrainingCases, None] = {}
        all_leaks: list[Leak] = []
        for member in teacher_run.finished_members():
            seen_cases = training_cases(teacher_run, *member, context)
            if member_leaks := find_leaks(member_name(teacher_run, *member), seen_cases, protected):
                all_leaks += member_leaks
            else:
                clean_members.append(member)
                sources |= dict.fromkeys(cases_via("taught by", teacher_run, *member, context))
        if not clean_members:
            raise _no_teacher_error(run, job.fold, teacher_run, all_leaks)
        teachers.append(Teacher(teacher_run, tuple(clean_members), tuple(sources)))
    return teachers


def _no_teacher_error(run: Run, fold: int, teacher_run: Run, all_leaks: Sequence[Leak]) -> MaskfoldError:
    """Return the error for a run in `pseudo.from` that has no teacher for a fold.

    Args:
        run: the run whose fold is taught.
        fold: number of the fold.
        teacher_run: the run in `pseudo.from`.
        all_leaks: the validation cases of the fold on which the networks of `teacher_run` were trained; empty if it has
            no finished network.
    """
    if not all_leaks:
        return MaskfoldError(
            f"pseudo.from: {teacher_run.folder} has no finished fold.",
            "Finish that run with its `maskfold cv` command.",
        )
    finished_members = teacher_run.finished_members()
    unfinished_folds = [number for number in teacher_run.fold_numbers() if (number, 0) not in finished_members]
    hint = (
        f"The network of fold {fold} of {teacher_run.full_name} may be the missing teacher, but that fold is not "
        "finished. Finish it, or use the same folds in both runs "
        if fold in unfinished_folds
        else "Use the same folds in both runs, so that each fold has a teacher that was not trained on its validation "
        "cases "
    )
    return MaskfoldError(
        f"pseudo.from: no network of {teacher_run.full_name} may teach fold {fold} of {run.name}, "
        f"because each of them was trained on cases that this fold validates:{format_leaks(all_leaks)}.",
        f"{hint}({_same_folds_setting(run, teacher_run)}).",
        status=2,
    )


def _same_folds_setting(run: Run, teacher_run: Run) -> str:
    """Return the `key=value` settings, for a hint, with which a run gets the same folds as the run of its teachers."""
    file = teacher_run.folder / FOLDS_FILE
    if set(run.folds["id"]) == set(teacher_run.folds["id"]):
        return f"folds.scheme=file folds.file={file}"
    return f"with folds.scheme=file and a folds.file that contains those rows of {file} that belong to your cases"


def _check_same_classes(exp: Experiment, teacher_run: Run) -> None:
    """Check that a run in `pseudo.from` has the same classes, dimensions and order of axes as an experiment.

    The number of input channels is checked later, when the networks of the run are built.

    Raises:
        MaskfoldError: the classes, the kind of labels, the dimensions or the order of axes differ (status 2).
    """
    comp, teacher_comp = exp.competition, teacher_run.exp.competition
    for key in ("dimensions", "classes", "labels"):
        if getattr(comp, key) != getattr(teacher_comp, key):
            raise MaskfoldError(
                f"pseudo.from: {teacher_run.folder} has {key} {getattr(teacher_comp, key)}, expected "
                f"{getattr(comp, key)} (competition.{key}).",
                f"In pseudo.from, name a run with the same competition.{key} as this experiment.",
                status=2,
            )
    axes, teacher_axes = competition_axes(comp), competition_axes(teacher_comp)
    if permutation(axes, teacher_axes) is not None:
        raise MaskfoldError(
            f"pseudo.from: {teacher_run.folder} was trained on images with the axes {teacher_axes}, expected {axes}.",
            "In pseudo.from, name a run that was trained on images of the same file format: NIfTI has the axes xy, "
            "pictures and TIFF have yx.",
            status=2,
        )


class TeacherEnsemble:
    """Predict with an ensemble of teachers; the networks are built when the first image is predicted.

    Args:
        teachers: the teachers. The predictions of each teacher are averaged over its networks, and then over the
            teachers with equal weights.
        exp: the experiment that trains on the pseudo-labels. It defines where the images are, and the device.
        cache: folder of the preprocessed cases.
        context: context with the trusted packages.
    """

    def __init__(self, teachers: Sequence[Teacher], exp: Experiment, cache: Path, context: Context) -> None:
        self.teachers, self.exp, self.cache, self.context = teachers, exp, cache, context
        self._networks_by_teacher: dict[int, tuple[Any, list[Any]]] = {}

    @property
    def is_loaded(self) -> bool:
        """Whether the networks are loaded; this happens at the first image whose pseudo-label is not in the cache."""
        return bool(self._networks_by_teacher)

    def probabilities(self, row: Any) -> np.ndarray:
        """Predict one image; return its probabilities, (`comp.output_channels`, *file shape) float32.

        Args:
            row: row of the image in the table of unlabelled images.

        Raises:
            MaskfoldError: the image cannot be read or predicted.
        """
        from competition.data.preprocessing import preprocess_case
        from competition.inference.masks import merge_boundary_class
        from competition.inference.predict import predict_case

        total: np.ndarray | None = None
        for index, teacher in enumerate(self.teachers):
            exp = self._teacher_experiment(teacher)
            case = PreprocessedCase.open(preprocess_case(row, exp, self.cache))
            fabric, networks = self._load_networks(index, exp, case.image.shape[0])
            probabilities = merge_boundary_class(
                predict_case(networks, case, exp, fabric.device, fabric.autocast), exp.competition
            )
            total = probabilities if total is None else total + probabilities
        assert total is not None
        return total / np.float32(len(self.teachers))

    def _teacher_experiment(self, teacher: Teacher) -> Experiment:
        """Return the experiment of a teacher's run, with the device of `self.exp` and its keys about image files."""
        exp = teacher.run.exp
        keys = ("root", "train", "array_axes", "spacing")
        comp = exp.competition.model_copy(update={key: getattr(self.exp.competition, key) for key in keys})
        return exp.model_copy(update={"competition": comp, "run": self.exp.run.model_copy(update={"devices": 1})})

    def _load_networks(self, index: int, exp: Experiment, channels: int) -> tuple[Any, list[Any]]:
        if index not in self._networks_by_teacher:
            fabric, teacher = make_fabric(exp)[0], self.teachers[index]
            networks = list(teacher.run.networks(channels, fabric.device, self.context, teacher.members))
            self._networks_by_teacher[index] = (fabric, networks)
        return self._networks_by_teacher[index]


# Pseudo-labels


def pseudo_label_cases(
    rows: pd.DataFrame, teachers: Sequence[Teacher], exp: Experiment, job: FoldJob, context: Context
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Predict the pseudo-labels of images, and store each image with its pseudo-label as a preprocessed case.

    Args:
        rows: rows of the table of unlabelled images.
        teachers: the teachers of the fold.
        exp: the experiment that trains on the images.
        job: the fold.
        context: context with the trusted packages and the log.

    Returns:
        The folder of each image whose pseudo-label is confident enough, by id. And statistics: `left_out` (the number
        of all other images, by reason), `ignored` (share of uncertain voxels, averaged over the confident images) and
        `dice` (expected Dice, averaged over the confident images).
    """
    from competition.io import remove_all_stale_temp

    assert exp.pseudo is not None
    remove_all_stale_temp(job.cache)
    ensemble = TeacherEnsemble(teachers, exp, job.cache, context)
    signature = [
        [(teacher.run.folder.name, teacher.digests()) for teacher in teachers],
        exp.pseudo.confidence.model_dump(mode="json"),
    ]
    confident, records = {}, []
    for done, row in enumerate(case_rows(rows), start=1):
        # Other images than the test images have no region masks.
        outside = unpredicted_pixels(exp.competition, row) if exp.pseudo.images is None else None
        parts = ["pseudo", 1, cache_key(row, exp), signature]
        if outside is not None:
            parts.append(hashlib.sha256(outside.tobytes()).hexdigest())
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        build = partial(pseudo_label_case, row=row, teachers=ensemble, exp=exp, cache=job.cache, outside=outside)
        folder = get_or_build(job.cache, key, build)
        record = json.loads((folder / RECORD_FILE).read_bytes())["pseudo"]
        records.append(record)
        if not record["doubt"]:
            confident[row.id] = folder
        if done % max(1, len(rows) // 4) == 0 and done < len(rows) and ensemble.is_loaded:
            context.say(f"{done} of {len(rows)} images labelled")
    if not confident:
        best = max(record["dice"] for record in records)
        reasons = "; ".join(DOUBTS[doubt] for doubt in sorted({record["doubt"] for record in records}))
        raise MaskfoldError(
            f"The teachers of {job.folder.name} predict none of the {len(rows)} images with enough "
            f"confidence; the highest expected Dice is {best:.3f}.",
            f"Why images were rejected: {reasons}. Relax these keys, or train better teachers.",
        )
    kept = [record for record in records if not record["doubt"]]
    return confident, {
        "left_out": dict(Counter(record["doubt"] for record in records if record["doubt"])),
        "ignored": float(np.mean([record["ignored"] for record in kept])),
        "dice": float(np.mean([record["dice"] for record in kept])),
    }


def pseudo_label_case(
    folder: Path, row: Any, teachers: TeacherEnsemble, exp: Experiment, cache: Path, outside: np.ndarray | None = None
) -> dict[str, Any]:
    """Write an image with its pseudo-label as a preprocessed case.

    If the pseudo-label is too uncertain, write no arrays. `competition.data.cache.get_or_build` calls this function as
    its argument `build`.

    Args:
        folder: empty folder for the files of the preprocessed case.
        row: row of the image in the table of unlabelled images.
        teachers: ensemble that predicts the image.
        exp: the experiment that trains on the image.
        cache: folder in which preprocessed cases are stored.
        outside: (*file shape) bool, the pixels outside the region mask of the image (`test.region`), which training
            ignores; None if there is no region mask.

    Returns:
        The content of `case.json`. Its value `pseudo.doubt` is empty if the image is used for training; otherwise it is
        the reason for not using it: `dice`, `entropy` or `ignored`.

    Raises:
        MaskfoldError: the image cannot be read or predicted.
    """
    from competition.data.preprocessing import link_or_copy, preprocess_case, write_mask
    from competition.inference.confidence import foreground_entropy, pseudo_mask, self_dice
    from competition.inference.predict import Prediction, within_region

    assert exp.pseudo is not None
    rule, comp = exp.pseudo.confidence, exp.competition
    probabilities = teachers.probabilities(row)
    if outside is not None:  # the teachers were not trained there, so their predictions there mean nothing
        within_region(Prediction(probabilities, None), comp, row)
    mask = pseudo_mask(probabilities, comp, rule)
    if outside is not None:
        mask[:, outside] = IGNORED
    dice, entropy = self_dice(probabilities, comp), foreground_entropy(probabilities, comp)
    if rule.dice is not None and dice < rule.dice:
        doubt = "dice"
    elif rule.entropy is not None and entropy > rule.entropy:
        doubt = "entropy"
    else:
        doubt = "ignored" if (mask == 255).all() else ""
    summary = {"pseudo": {"doubt": doubt, "dice": dice, "entropy": entropy, "ignored": float((mask == 255).mean())}}
    if doubt:
        return {"id": row.id, **summary}
    source = PreprocessedCase.open(preprocess_case(row, exp, cache))
    link_or_copy(source.folder / "image.npy", folder / "image.npy")
    write_mask(folder, mask, source.geometry, exp, row.id, _objects(mask, exp))
    record = json.loads((source.folder / RECORD_FILE).read_bytes())
    record.pop("sizes")
    return {**record, **summary}


def _objects(mask: np.ndarray, exp: Experiment) -> np.ndarray | None:
    """Return the objects of a pseudo-label, as (*spatial) int32 numbers: the connected components of each class.

    If the experiment does not need objects, because neither `prepare.boundary` nor `prepare.rings` is set, return None.
    """
    if exp.prepare.object_key is None:
        return None
    import cc3d

    labels = np.where(mask[0] == 255, 0, mask[0]).astype(np.uint8)
    return np.asarray(cc3d.connected_components(labels, connectivity=8 if labels.ndim == 2 else 26)).astype(np.int32)
