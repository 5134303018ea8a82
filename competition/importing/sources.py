"""Find the prediction files of other programs, and the case and fold of each file.

The layouts are nnU-Net's results folder (`fold_0/validation/{id}.npz`), fold folders (`fold_0/{id}.npy`), and folders
for all out-of-fold and all test predictions (`oof/`, `test/`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from competition.data.duplicates import split_groups
from competition.data.readers import extension_of
from competition.errors import MaskfoldError
from competition.importing.splits import read_splits
from competition.text import nearest_hint

if TYPE_CHECKING:
    import pandas as pd

EXTENSIONS = (".npz", ".npy", ".nii.gz", ".nii", ".png", ".tif", ".tiff")
ARRAYS = (".npz", ".npy")
FOLD_FOLDER = re.compile(r"fold_(\d+)")
VALIDATION_FOLDERS = ("validation", "validation_raw")  # names of nnU-Net's file of folds, in versions 2 and 1
SPLIT_FILES = ("splits_final.json", "folds.csv")
LAYOUT_HINT = (
    "Expected FOLDER/fold_0/validation/ID.npz (nnU-Net), FOLDER/fold_0/ID.nii.gz, or FOLDER/oof/ID.nii.gz with "
    "--splits FILE; and test predictions in FOLDER/test. Or set --oof and --test."
)


@dataclass(frozen=True)
class CaseFiles:
    """Hold the files that predict one case.

    Attributes:
        main: the prediction; or, with `by_class`, the file of the first class.
        by_class: one file per class, in the order of the classes; empty if there is a single file.
        labels: a label file next to an array, with which the array is compared; None if there is none.
    """

    main: Path
    by_class: tuple[Path, ...] = ()
    labels: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that are read."""
        return self.by_class or (self.main, *((self.labels,) if self.labels is not None else ()))


@dataclass
class Sources:
    """Hold the prediction files that a search found, by case.

    Attributes:
        layout: description of the layout, for the user.
        cases: files of the training cases, by id.
        fold_of: fold of each training case; None: unknown, so that the case counts as seen.
        tests: files of the test cases, by id.
        channels: names of the classes in the files' order, from nnU-Net's dataset.json; empty if unknown.
    """

    layout: str
    cases: dict[str, CaseFiles] = field(default_factory=dict)
    fold_of: dict[str, int | None] = field(default_factory=dict)
    tests: dict[str, CaseFiles] = field(default_factory=dict)
    channels: list[str] = field(default_factory=list)


def find_sources(folder: Path, oof: Path | None, splits: Path | None, ids: list[str], classes: list[str]) -> Sources:
    """Find the predictions of the training cases below a folder.

    Args:
        folder: the folder; see the module's docstring for its layouts.
        oof: folder of the out-of-fold predictions; None searches fold folders, then `folder/oof`, then `folder`.
        splits: file with the folds, see `read_splits`; None: splits_final.json or folds.csv in `folder`, if it exists.
        ids: ids of the training cases.
        classes: names of the classes.

    Raises:
        MaskfoldError: a folder is missing, a file has an unknown id, a case has two predictions or two folds, or all
            folds are unknown.
    """
    for option, path in (("FOLDER", folder), ("--oof", oof)):
        if path is not None and not path.is_dir():
            raise MaskfoldError(f"{option}: found {path}, expected a folder.", LAYOUT_HINT, status=2)
    if splits is None:
        splits = next((folder / name for name in SPLIT_FILES if (folder / name).is_file()), None)
    known = None if splits is None else read_splits(splits)
    fold_folders = list(_fold_folders(folder)) if oof is None else []
    if fold_folders:
        sources = Sources("nnU-Net results" if _is_nnunet(fold_folders) else "folders by fold")
        for number, place in fold_folders:
            _add_fold(sources, number, place, ids, classes)
        if known is not None:
            _check_agreement(sources, known, str(splits))
    else:
        place = oof or (folder / "oof" if (folder / "oof").is_dir() else folder)
        sources = Sources("a folder of out-of-fold predictions", files_by_case(place, ids, classes, "training"))
        sources.fold_of = {case: (known or {}).get(case) for case in sources.cases}
        if sources.cases and known is None:
            raise MaskfoldError(
                f"{place} has predictions of {len(sources.cases)} training cases, but their folds are unknown, so all "
                "would count as seen in training.",
                "Name the file of the folds with --splits (splits_final.json, or a CSV with the columns id and fold), "
                "or put the predictions into FOLDER/fold_0, FOLDER/fold_1, …",
                status=2,
            )
    # Keep the folds of cases without a prediction too, because they show on which cases the networks of other folds
    # were trained.
    sources.fold_of = {**(known or {}), **sources.fold_of}
    sources.channels = _channel_names(folder)
    return sources


def find_tests(sources: Sources, folder: Path, test: Path | None, ids: list[str], classes: list[str]) -> None:
    """Add the files of the test cases to the sources.

    Args:
        sources: the sources of the training cases.
        folder: the folder of all predictions.
        test: folder of the test predictions; None: `folder/test`, if it exists.
        ids: ids of the test cases.
        classes: names of the classes.

    Raises:
        MaskfoldError: see `find_sources`.
    """
    place = test or folder / "test"
    if test is not None and not test.is_dir():
        raise MaskfoldError(f"--test: found {test}, expected a folder.", LAYOUT_HINT, status=2)
    if place.is_dir():
        sources.tests = files_by_case(place, ids, classes, "test")


def _fold_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the number and the prediction folder of each fold folder; skip fold folders without predictions."""
    matches = [(FOLD_FOLDER.fullmatch(path.name), path) for path in sorted(folder.iterdir()) if path.is_dir()]
    for match, path in sorted((int(match[1]), path) for match, path in matches if match):
        place = next((path / name for name in VALIDATION_FOLDERS if (path / name).is_dir()), path)
        if any(extension_of(file.name) in EXTENSIONS for file in place.iterdir() if file.is_file()):
            yield match, place


def _is_nnunet(folders: list[tuple[int, Path]]) -> bool:
    return any(place.name in VALIDATION_FOLDERS for _, place in folders)


def _add_fold(sources: Sources, number: int, place: Path, ids: list[str], classes: list[str]) -> None:
    """Add the predictions in one fold's folder."""
    for case, files in files_by_case(place, ids, classes, "training", is_model_folder=True).items():
        if case in sources.cases:
            raise MaskfoldError(
                f"The case {case} has two predictions: {sources.cases[case].main} and {files.main}.",
                "Keep the one of the network that was not trained on the case.",
            )
        sources.cases[case], sources.fold_of[case] = files, number


def _check_agreement(sources: Sources, known: Mapping[str, int | None], name: str) -> None:
    """Check that fold folders agree with the file of folds; a case without a fold in this file loses its fold."""
    for case, number in list(sources.fold_of.items()):
        listed = known.get(case)
        if listed is None:
            sources.fold_of[case] = None
        elif listed != number:
            raise MaskfoldError(
                f"{name} says that fold {listed} validates the case {case}, but its prediction lies in fold_{number}.",
                "Name the file of the folds that these networks were trained with, or correct the folders.",
            )


def files_by_case(
    place: Path, ids: list[str], classes: list[str], kind: str, *, is_model_folder: bool = False
) -> dict[str, CaseFiles]:
    """Return the files that predict each case in a folder.

    Args:
        place: the folder; other kinds of files in it are ignored.
        ids: ids of the cases.
        classes: names of the classes, for one file per class: `{id}_{class}.png`.
        kind: training or test, for messages.
        is_model_folder: whether pictures of training curves may lie in the folder (nnU-Net's progress.png).

    Raises:
        MaskfoldError: a file belongs to no case, a case has two files of one kind, or a class has no file.
    """
    known = set(ids)
    found: dict[str, list[Path]] = {}
    parts: dict[str, dict[str, Path]] = {}
    with_class = {f"{case}_{name}": (case, name) for case in ids for name in classes}
    for path in sorted(place.iterdir()):
        extension = extension_of(path.name)
        if extension not in EXTENSIONS or path.name.startswith(".") or not path.is_file():
            continue
        stem = path.name[: -len(extension)]
        if stem in known:
            found.setdefault(stem, []).append(path)
        elif stem in with_class:
            case, name = with_class[stem]
            parts.setdefault(case, {})[name] = path
        elif not (is_model_folder and path.name == "progress.png"):
            hint = nearest_hint(stem, ids) or (f", expected an id such as {ids[0]}" if ids else "")
            raise MaskfoldError(
                f"{path} belongs to no {kind} case: found the id {stem}{hint}.",
                "Rename the file to the id of its case, or move it to another folder.",
            )
    cases = {case: _one_prediction(case, paths) for case, paths in found.items()}
    for case, files in parts.items():
        if case in cases:
            raise MaskfoldError(
                f"The case {case} has two predictions: {cases[case].main} and {next(iter(files.values()))}.",
                "Keep one file per case, or one file per class.",
            )
        if missing := [name for name in classes if name not in files]:
            raise MaskfoldError(
                f"The case {case} has no file for the class {missing[0]} in {place}, but one for "
                f"{', '.join(name for name in classes if name in files)}.",
                f"Add {case}_{missing[0]}{extension_of(next(iter(files.values())).name)}.",
            )
        cases[case] = CaseFiles(files[classes[0]], tuple(files[name] for name in classes))
    return {case: cases[case] for case in ids if case in cases}


def _one_prediction(case: str, paths: list[Path]) -> CaseFiles:
    """Return a case's files: an array with the label file next to the array, or the case's only file."""
    arrays = [path for path in paths if extension_of(path.name) in ARRAYS]
    others = [path for path in paths if extension_of(path.name) not in ARRAYS]
    if len(arrays) > 1 or len(others) > 1:
        first, second = (arrays if len(arrays) > 1 else others)[:2]
        raise MaskfoldError(f"The case {case} has two predictions: {first} and {second}.", "Keep one of the two files.")
    return CaseFiles(arrays[0], labels=others[0] if others else None) if arrays else CaseFiles(others[0])


def _channel_names(folder: Path) -> list[str]:
    """Return the classes in the order of nnU-Net's channels, from dataset.json; empty if there is no such file."""
    path = folder / "dataset.json"
    if not path.is_file():
        return []
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        numbers = {str(name): value for name, value in labels.items()}
        if not all(type(value) is int for value in numbers.values()):
            return []  # regions are omitted, because their channels have the order of `regions_class_order`
        return [name for name, value in sorted(numbers.items(), key=lambda item: item[1]) if value > 0]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def seen_cases(sources: Sources, cases: pd.DataFrame) -> dict[str, str]:
    """Return, by case id, the reason why a prediction of a training case is not out of fold; omit the other cases.

    A case is out of fold if its fold is known, and if all cases of its group (or with the same image) are in the same
    fold. A case in another fold, or with an unknown fold, may have been used in training.

    Args:
        sources: the predictions.
        cases: the case table.
    """
    folds_of_group: dict[str, set[int | None]] = {}
    group_of = dict(zip(cases["id"], split_groups(cases.reset_index(drop=True)), strict=True))
    for case, group in group_of.items():
        folds_of_group.setdefault(group, set()).add(sources.fold_of.get(case))
    reasons = {}
    for case in sources.cases:
        fold = sources.fold_of.get(case)
        if fold is None:
            reasons[case] = "its fold is unknown"
        elif folds_of_group[group_of[case]] != {fold}:
            reasons[case] = "a case of its group, or with the same image, is in another fold"
    return reasons
