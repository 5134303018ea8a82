"""The networks that label images: which of a run's members may teach a fold, and what they say together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from competition.config import Experiment, MaskfoldError
from competition.training.find import finished
from competition.training.job import FoldResult, Job
from competition.training.lineage import Leak, Protected, Source, leaks, learnt, member_name, through, told_leaks
from competition.training.runs import CvRun, load_run


@dataclass(frozen=True)
class Teacher:
    """Those members of one run that have seen nothing of what a fold validates.

    Attributes:
        run: the run.
        members: (fold, seed) of each.
        sources: what they have learnt from.
    """

    run: CvRun
    members: tuple[tuple[int, int], ...]
    sources: tuple[Source, ...]

    @property
    def names(self) -> list[str]:
        """The members in words."""
        return [member_name(self.run, *member) for member in self.members]

    def weights(self) -> list[Path]:
        """Their files."""
        found = []
        for member in self.members:
            folder = self.run.member_folder(*member)
            result = FoldResult.read(folder)
            found.append(folder / (result.weights if result is not None else "weights.safetensors"))
        return found

    def digests(self) -> list[str]:
        """SHA-256 (hexadecimal) of their weights.

        Raises:
            MaskfoldError: a file is missing.
        """
        try:
            return [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.weights()]
        except OSError as error:
            raise MaskfoldError(
                f"pseudo.from: the weights {error.filename} cannot be read: {error.strerror}.",
                "Copy the file back, or train that fold again.",
            ) from error


def find_teachers(run: CvRun, job: Job) -> list[Teacher]:
    """The teachers of a fold: of each run of `pseudo.from` the members that saw none of the cases it validates.

    With the same folds in both these are the same fold's; of a run on another competition's data they are all.

    Raises:
        MaskfoldError: a run has none, with the lineage that shows each leak; or its classes are others (status 2).
    """
    pseudo, protected, teachers = run.exp.pseudo, Protected(run, job.fold), []
    for word in pseudo.words if pseudo is not None else ():
        other = load_run(Path(word), job.trust)
        _refuse_others(run.exp, other)
        clean: list[tuple[int, int]] = []
        sources: dict[Source, None] = {}
        found: list[Leak] = []
        for member in finished(other):
            seen = learnt(other, *member, job.trust)
            if leaked := leaks(member_name(other, *member), seen, protected):
                found += leaked
            else:
                clean.append(member)
                sources |= dict.fromkeys(through("taught by", other, *member, job.trust))
        if not clean:
            raise _refusal(run, job.fold, other, found)
        teachers.append(Teacher(other, tuple(clean), tuple(sources)))
    return teachers


def _refusal(run: CvRun, fold: int, other: CvRun, found: Sequence[Leak]) -> MaskfoldError:
    if not found:
        return MaskfoldError(
            f"pseudo.from: {other.folder} has no finished fold.", "Finish it with its `maskfold cv` command."
        )
    missing = [number for number in other.numbers() if (number, 0) not in finished(other)]
    hint = (
        f"Its fold {fold} may be the teacher that is missing: finish that run, or use the same folds in both "
        if fold in missing
        else "Use the same folds in both, so that each fold is taught by the one that left out the same cases "
    )
    return MaskfoldError(
        f"pseudo.from: no network of {other.name}/{other.folder.name} may teach fold {fold} of {run.name}, since each has seen "
        f"cases that the fold validates:{told_leaks(found)}.",
        f"{hint}({_same_folds(run, other)}).",
        status=2,
    )


def _same_folds(run: CvRun, other: CvRun) -> str:
    file = other.folder / "folds.csv"
    if set(run.folds["id"]) == set(other.folds["id"]):
        return f"folds.scheme=file folds.file={file}"
    return f"folds.scheme=file, with a folds.file of your cases' rows in {file}"


def _refuse_others(exp: Experiment, other: CvRun) -> None:
    """Classes must be the same; channels show where a network is built."""
    ours, theirs = exp.competition, other.exp.competition
    for key in ("dimensions", "classes", "labels"):
        if getattr(ours, key) != getattr(theirs, key):
            raise MaskfoldError(
                f"pseudo.from: {other.folder} predicts {key} {getattr(theirs, key)}, and competition.{key} is "
                f"{getattr(ours, key)}.",
                "Name a run that predicts the same classes.",
                status=2,
            )


class Classroom:
    """The teachers' networks, built when the first image asks for them.

    Args:
        teachers: whose predictions are averaged, each run with the same weight.
        exp: the experiment that learns: its images, its device.
        cache: the folder of prepared cases.
        trust: packages besides the known ones that `target` may name.
    """

    def __init__(self, teachers: Sequence[Teacher], exp: Experiment, cache: Path, trust: tuple[str, ...]) -> None:
        self.teachers, self.exp, self.cache, self.trust = teachers, exp, cache, trust
        self._built: dict[int, tuple[Any, list[Any]]] = {}

    @property
    def used(self) -> bool:
        """Whether an image has asked for the networks yet."""
        return bool(self._built)

    def probabilities(self, row: Any) -> np.ndarray:
        """(`comp.outputs`, *file shape) float32 of one image.

        Args:
            row: a row of the case table.

        Raises:
            MaskfoldError: the image cannot be read or predicted.
        """
        from competition.data.prepare import PreparedCase, prepare_case
        from competition.inference.case import predict_case
        from competition.inference.masks import merged

        total: np.ndarray | None = None
        for number, teacher in enumerate(self.teachers):
            exp = self._experiment(teacher)
            case = PreparedCase.open(prepare_case(row, exp, self.cache))
            fabric, networks = self._networks(number, exp, case.image.shape[0])
            found = merged(predict_case(networks, case, exp, fabric.device, fabric.autocast), exp.competition)
            total = found if total is None else total + found
        assert total is not None
        return total / np.float32(len(self.teachers))

    def _experiment(self, teacher: Teacher) -> Experiment:
        """The teacher's experiment on our images and our machine."""
        exp = teacher.run.exp
        comp = exp.competition.model_copy(
            update={"root": self.exp.competition.root, "train": self.exp.competition.train}
        )
        return exp.model_copy(update={"competition": comp, "run": self.exp.run.model_copy(update={"devices": 1})})

    def _networks(self, number: int, exp: Experiment, channels: int) -> tuple[Any, list[Any]]:
        from competition.inference.weights import load_weights
        from competition.model.network import build_network
        from competition.training.device import make_fabric

        if number not in self._built:
            fabric = make_fabric(exp)[0]
            networks = []
            for path in self.teachers[number].weights():
                network = build_network(exp, channels * (exp.patch.slices or 1), self.trust, pretrained=False)
                load_weights(network, path)
                networks.append(network.to(fabric.device).eval())
            self._built[number] = (fabric, networks)
        return self._built[number]
