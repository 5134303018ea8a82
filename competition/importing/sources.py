"""Find the prediction files of another program, and the case and the fold to which each file belongs.

Three layouts of folders are known:

- nnU-Net's results: `fold_0/validation/{id}.npz` and so on;
- one folder for each fold: `fold_0/{id}.npy` and so on;
- one folder for all out-of-fold predictions (`oof/`), with a file that lists the folds.

In all layouts, test predictions are in `test/`.
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
VALIDATION_FOLDERS = ("validation", "validation_raw")  # nnU-Net's folders of validation predictions, versions 2 and 1
SPLIT_FILES = ("splits_final.json", "folds.csv")
LAYOUT_HINT = (
    "Expected FOLDER/fold_0/validation/ID.npz (nnU-Net), FOLDER/fold_0/ID.nii.gz, or "
    "FOLDER/oof/ID.nii.gz together with --splits FILE. Test predictions are expected in "
    "FOLDER/test. For other folders, set --oof and --test."
)


@dataclass(frozen=True)
class CaseFiles:
    """Hold the files with the prediction of one case.

    Attributes:
        main: the file with the prediction; if there is one file for each class, the file of the first class.
        by_class: the files of all classes, in the order of the classes. Empty if there is a single file.
        labels: a label file next to the file with probabilities. The two files are compared. None if there is no such
            file.
    """

    main: Path
    by_class: tuple[Path, ...] = ()
    labels: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that belong to the prediction and are read."""
        return self.by_class or (self.main, *((self.labels,) if self.labels is not None else ()))


@dataclass
class Sources:
    """Hold the prediction files that were found in a folder.

    Attributes:
        layout: name of the layout of the folder, for the user, e.g. `folders by fold`.
        cases: files of each training case that has a prediction, by id.
        fold_of: number of the fold that validates each training case, by id. None if it is unknown; the network may
            then have been trained on the case, so its prediction is not used.
        tests: files of each test case that has a prediction, by id.
        channels: names of the classes in the order of the files' channels, from nnU-Net's `dataset.json`; empty if
            unknown.
    """

    layout: str
    cases: dict[str, CaseFiles] = field(default_factory=dict)
    fold_of: dict[str, int | None] = field(default_factory=dict)
    tests: dict[str, CaseFiles] = field(default_factory=dict)
    channels: list[str] = field(default_factory=list)


def find_sources(folder: Path, oof: Path | None, splits: Path | None, ids: list[str], classes: list[str]) -> Sources:
    """Find the predictions of the training cases in a folder.

    Args:
        folder: the folder; see the docstring of this module for its layouts.
        oof: folder of all out-of-fold predictions. With None, the predictions come from the first of these places that
            exists: the folders of the folds in `folder`, the folder `oof` in `folder`, `folder` itself.
        splits: file with the folds, see `read_splits`. None for `splits_final.json` or `folds.csv` in `folder`, if one
            of them exists.
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
                f"{place} has predictions of training cases ({len(sources.cases)}), but the folds of these cases are "
                "unknown, so all predictions would count as seen in training.",
                "Give the file of the folds with --splits (splits_final.json, or a CSV with the columns id and "
                "fold). Or put the predictions into FOLDER/fold_0, FOLDER/fold_1, …",
                status=2,
            )
    # Keep also the folds of cases without a prediction, because they show on which cases the networks of other folds
    # were trained.
    sources.fold_of = {**(known or {}), **sources.fold_of}
    sources.channels = _channel_names(folder)
    return sources


def find_tests(sources: Sources, folder: Path, test: Path | None, ids: list[str], classes: list[str]) -> None:
    """Find the predictions of the test cases, and add them to `sources.tests`.

    Args:
        sources: the predictions of the training cases; the attribute `tests` is set in place.
        folder: the folder of all predictions.
        test: folder of the test predictions; None for `test` in `folder`, if it exists.
        ids: ids of the test cases.
        classes: names of the classes.

    Raises:
        MaskfoldError: the folder `test` does not exist, a file has an unknown id, or a case has two predictions.
    """
    place = test or folder / "test"
    if test is not None and not test.is_dir():
        raise MaskfoldError(f"--test: found {test}, expected a folder.", LAYOUT_HINT, status=2)
    if place.is_dir():
        sources.tests = files_by_case(place, ids, classes, "test")


def _fold_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the number of each fold and the folder with its predictions; folds without predictions are skipped."""
    matches = [(FOLD_FOLDER.fullmatch(path.name), path) for path in sorted(folder.iterdir()) if path.is_dir()]
    for match, path in sorted((int(match[1]), path) for match, path in matches if match):
        place = next((path / name for name in VALIDATION_FOLDERS if (path / name).is_dir()), path)
        if any(extension_of(file.name) in EXTENSIONS for file in place.iterdir() if file.is_file()):
            yield match, place


def _is_nnunet(folders: list[tuple[int, Path]]) -> bool:
    return any(place.name in VALIDATION_FOLDERS for _, place in folders)


def _add_fold(sources: Sources, number: int, place: Path, ids: list[str], classes: list[str]) -> None:
    """Add the predictions in the folder of one fold to `sources`.

    Args:
        sources: the predictions that were found; they are changed in place.
        number: number of the fold.
        place: folder with its predictions.
        ids: ids of the training cases.
        classes: names of the classes.

    Raises:
        MaskfoldError: a file has an unknown id, or a case has a second prediction.
    """
    for case, files in files_by_case(place, ids, classes, "training", is_model_folder=True).items():
        if case in sources.cases:
            raise MaskfoldError(
                f"The case {case} has two predictions, {sources.cases[case].main} and {files.main}, expected one.",
                "Keep only the prediction of the network that was not trained on the case.",
            )
        sources.cases[case], sources.fold_of[case] = files, number


def _check_agreement(sources: Sources, known: Mapping[str, int | None], name: str) -> None:
    """Check that the folders of folds agree with the file that lists the folds.

    If the file lists no fold for a case, the fold of the case becomes unknown.

    Args:
        sources: the predictions that were found; they are changed in place.
        known: fold of each case in the file, by id.
        name: name of the file, for messages.

    Raises:
        MaskfoldError: the prediction of a case is in the folder of another fold.
    """
    for case, number in list(sources.fold_of.items()):
        listed = known.get(case)
        if listed is None:
            sources.fold_of[case] = None
        elif listed != number:
            raise MaskfoldError(
                f"According to {name}, fold {listed} validates the case {case}, but its prediction is in "
                f"fold_{number}.",
                "Give the file of the folds with which these networks were trained, or move the predictions to "
                "the right folders.",
            )


def files_by_case(
    place: Path, ids: list[str], classes: list[str], kind: str, *, is_model_folder: bool = False
) -> dict[str, CaseFiles]:
    """Return the files with the prediction of each case in a folder, by id.

    The prediction of a case is a file `{id}.…`, or one file `{id}_{class}.…` for each class. Files with other
    extensions than `EXTENSIONS` are ignored.

    Args:
        place: the folder.
        ids: ids of the cases.
        classes: names of the classes.
        kind: `training` or `test`, for messages.
        is_model_folder: whether the folder may contain nnU-Net's picture of the training curves, `progress.png`.

    Raises:
        MaskfoldError: a file belongs to no case, a case has two predictions, or a class of a case has no file.
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
                f"The name of {path} is not the id of a {kind} case: found {stem}{hint}.",
                "Rename the file to the id of its case, or move it to another folder.",
            )
    cases = {case: _one_prediction(case, paths) for case, paths in found.items()}
    for case, files in parts.items():
        if case in cases:
            raise MaskfoldError(
                f"The case {case} has two predictions, {cases[case].main} and "
                f"{next(iter(files.values()))}, expected one.",
                "Keep one file per case, or one file per class.",
            )
        if missing := [name for name in classes if name not in files]:
            raise MaskfoldError(
                f"The case {case} has no file for the class {missing[0]} in {place}, although the case has files for "
                f"{', '.join(name for name in classes if name in files)}.",
                f"Add the file {case}_{missing[0]}{extension_of(next(iter(files.values())).name)}.",
            )
        cases[case] = CaseFiles(files[classes[0]], tuple(files[name] for name in classes))
    return {case: cases[case] for case in ids if case in cases}


def _one_prediction(case: str, paths: list[Path]) -> CaseFiles:
    """Return the prediction of a case from its files: one file, or an NPY or NPZ file with a label file next to it.

    Args:
        case: id of the case.
        paths: the files with this id.

    Raises:
        MaskfoldError: there are two NPY or NPZ files, or two files with other extensions.
    """
    arrays = [path for path in paths if extension_of(path.name) in ARRAYS]
    others = [path for path in paths if extension_of(path.name) not in ARRAYS]
    if len(arrays) > 1 or len(others) > 1:
        first, second = (arrays if len(arrays) > 1 else others)[:2]
        raise MaskfoldError(
            f"The case {case} has two predictions, {first} and {second}, expected one.",
            "Keep only one of the two files.",
        )
    return CaseFiles(arrays[0], labels=others[0] if others else None) if arrays else CaseFiles(others[0])


def _channel_names(folder: Path) -> list[str]:
    """Return the names of the classes in the order of nnU-Net's channels, from `dataset.json`.

    If the file does not exist, cannot be read, or defines regions, return an empty list.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return []
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        numbers = {str(name): value for name, value in labels.items()}
        if not all(type(value) is int for value in numbers.values()):
            return []  # with regions, the order of the channels is in another key, `regions_class_order`
        return [name for name, value in sorted(numbers.items(), key=lambda item: item[1]) if value > 0]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def seen_cases(sources: Sources, cases: pd.DataFrame) -> dict[str, str]:
    """Return the predictions that are not out of fold, because the network may have been trained on the case.

    A prediction is out of fold if the fold of its case is known, and all cases of the same group (or with the same
    image) are in this fold too.

    Args:
        sources: the predictions that were found.
        cases: the case table.

    Returns:
        The reason for each such prediction, by case id. Predictions that are out of fold are not included.
    """
    folds_of_group: dict[str, set[int | None]] = {}
    group_of = dict(zip(cases["id"], split_groups(cases.reset_index(drop=True)), strict=True))
    for case, group in group_of.items():
        folds_of_group.setdefault(group, set()).add(sources.fold_of.get(case))
    reasons = {}
    for case in sources.cases:
        fold = sources.fold_of.get(case)
        if fold is None:
            reasons[case] = "the fold of the case is unknown"
        elif folds_of_group[group_of[case]] != {fold}:
            reasons[case] = "another fold has a case of the same group or with the same image"
    return reasons
