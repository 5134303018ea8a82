"""Read a bundle and find the test cases; `competition.export.runtime_prediction` predicts them.

A bundle predicts the test images that exist when it runs. In many competitions, the real test set is hidden: while the
notebook is written, the sample submission is empty or contains only dummy cases.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.experiment import Experiment
from competition.config.loading import load_experiment
from competition.config.postprocess import PostprocessConfig
from competition.config.profiles import Profile, profile_of
from competition.context import Context
from competition.data.case_files import find_images
from competition.data.cases import COLUMNS, case_row, case_rows, case_table
from competition.data.patterns import unmatched_images
from competition.data.readers import strip_extension
from competition.data.selection import SkippedCases, listed_test_cases
from competition.errors import MaskfoldError
from competition.export.predictor import EXPERIMENT_FILE, adapt_to_machine, empty_case_table, folds_table
from competition.io import ensure_writable, open_synced
from competition.runs.blend import Ensemble
from competition.runs.run import Run
from competition.submission.reader import IdLookup, RowKey, SampleSubmission, format_row, open_rows, read_sample
from competition.submission.testset import TestSet, add_suffix, row_names
from competition.submission.writer import MaskItem
from competition.text import format_count, has_or_have

BUNDLE_FILE, BUNDLE_FORMAT = "bundle.json", 1


# The bundle


@dataclass(frozen=True)
class Bundle:
    """Hold the content of a bundle, adapted to the folder in which the competition's data are mounted.

    Attributes:
        folder: folder of the bundle.
        ensemble: the runs of the bundle and their weights; the runs are in subfolders of the bundle.
        settings: the post-processing.
        id_suffix: suffix that the host's ids have after the case id, e.g. `.png`; may be empty.
        trust: names of the user's own packages in the bundle.
        has_onnx: whether the bundle contains the networks also as ONNX files.
    """

    folder: Path
    ensemble: Ensemble
    settings: PostprocessConfig
    id_suffix: str
    trust: tuple[str, ...]
    has_onnx: bool

    @classmethod
    def read(cls, folder: Path, root: Path, accelerator: str | None = None) -> Bundle:
        """Read a bundle for a competition whose data are mounted at `root`.

        Args:
            folder: folder of the bundle.
            root: the competition's data folder.
            accelerator: cpu or cuda. If it is None, each run uses the accelerator in its YAML or, if this machine lacks
                that accelerator, `auto`.

        Raises:
            MaskfoldError: a file is missing, or its format is not that of this version.
        """
        try:
            plain: dict[str, Any] = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
            if plain["format"] != BUNDLE_FORMAT:
                raise ValueError(f"found format {plain['format']}, expected {BUNDLE_FORMAT}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise MaskfoldError(
                f"{folder / BUNDLE_FILE} cannot be read: {error}.", "Export the bundle again."
            ) from error
        trust = tuple(plain["trust"])
        runs = []
        for entry in plain["runs"]:
            run_folder = folder / entry["folder"]
            exp = _at_root(
                adapt_to_machine(load_experiment(run_folder / EXPERIMENT_FILE, trust=trust)), root, accelerator
            )
            runs.append(Run(run_folder, exp, empty_case_table(), folds_table(run_folder), entry["name"]))
        ensemble = Ensemble(tuple(runs), tuple(float(entry["weight"]) for entry in plain["runs"]))
        settings = PostprocessConfig.model_validate(plain["postprocess"])
        return cls(folder, ensemble, settings, plain["ending"], trust, plain["onnx"])


def _at_root(exp: Experiment, root: Path, accelerator: str | None) -> Experiment:
    comp = exp.competition.model_copy(update={"root": root.absolute()})
    run = exp.run if accelerator is None else exp.run.model_copy(update={"accelerator": accelerator})
    return exp.model_copy(update={"competition": comp, "run": run})


# Test cases


@dataclass(frozen=True)
class TestCases:
    """Hold the test cases to predict.

    Attributes:
        test_set: the cases, and the rows of the submission file. If there are no test images, there are no cases.
        rows_without_images: rows of the sample submission whose image does not exist; they get empty masks.
    """

    test_set: TestSet
    rows_without_images: tuple[RowKey, ...] = ()

    def empty_masks(self) -> Iterator[MaskItem]:
        """Yield an empty mask for each row of the sample submission whose image is missing."""
        for name, cls in self.rows_without_images:
            yield name, cls, np.zeros((1, 1), np.bool_)


def find_test_cases(comp: Competition, suffix: str, context: Context, continue_on_error: bool = False) -> TestCases:
    """Find the test images, and the rows that the submission file must have.

    The rows depend on how the host's sample submission (below: the sample) fits the images:

    - If there are no test images, the rows are those of the sample, and they get empty masks.
    - If the sample has exactly the rows of the images, the rows are those of the sample.
    - If there is no sample, or none of its ids has an image (then it is a dummy), the rows follow from the images,
      sorted by id (and slice) and class.
    - Otherwise, the rows of the sample come first, in its order; rows without an image get empty masks. The rows of
      all other images follow, sorted by id (and slice) and class.

    Args:
        comp: the competition; its `root` is the folder in which the host's files are mounted.
        suffix: suffix that the host's ids have after the case id, e.g. `.png`; used only if the ids of the sample have
            no common extension, or if there is no sample.
        context: context whose log receives messages for the user.
        continue_on_error: whether cases whose images cannot be read are kept, so that they get empty masks.

    Raises:
        MaskfoldError: `root` does not contain the data of this competition, or an image or the sample cannot be read.
    """
    rows = _read_rows(comp, context, continue_on_error)
    profile, sample = _read_sample(comp, context)
    sample_keys = sample.keys if sample is not None else ()
    if not rows:
        return TestCases(TestSet(comp, [], profile, sample, {}), sample_keys)
    names = row_names(rows, profile, sample)
    if comp.submission.sample is None:
        full_names = {case_id: [add_suffix(name, suffix) for name in of_case] for case_id, of_case in names.items()}
        return TestCases(TestSet(comp, rows, profile, None, full_names))
    lookup = IdLookup([name for case_names in names.values() for name in case_names])
    known_keys = [key for key in sample_keys if lookup.get(key[0]) is not None]
    if not known_keys:  # the names in a dummy sample do not show how real cases are named
        names = row_names(rows, profile, None)
    suffix = id_suffix(sample_keys) or suffix
    known = {(lookup.get(image), cls) for image, cls in known_keys}
    spelling = {lookup.get(image): image for image, _ in known_keys}
    added_keys = [
        (spelling.get(name, add_suffix(name, suffix)), cls)
        for row in rows
        for name in names[row.id]
        for cls in (profile.classes or (None,))
        if (name, cls) not in known
    ]
    without_images = tuple(key for key in sample_keys if lookup.get(key[0]) is None) if known_keys else ()
    if sample_keys and not added_keys and not without_images:  # the sample is complete
        return TestCases(TestSet(comp, rows, profile, sample, names))
    _report_differences(comp, sample_keys, known_keys, added_keys, without_images, len(rows), context)
    kept_keys = [key for key in sample_keys if key in without_images or lookup.get(key[0]) is not None]
    completed = SampleSubmission(Path(comp.root) / comp.submission.sample, profile, (*kept_keys, *added_keys))
    return TestCases(TestSet(comp, rows, profile, completed, names), without_images)


def write_empty_submission(found: TestCases, path: Path) -> int:
    """Write a submission file in which each row of the sample submission has an empty mask.

    This is needed when the user saves a notebook at Kaggle: the notebook then runs while the real test images are not
    mounted yet. If there is no sample submission, the file has only the header.

    Args:
        found: the result of `find_test_cases` if there are no test images.
        path: path of the file.

    Returns:
        The number of rows.
    """
    profile = found.test_set.profile
    ensure_writable(path.parent)
    with open_synced(path) as stream:
        lines = io.TextIOWrapper(stream, "utf-8", newline="")
        out = csv.writer(lines, lineterminator="\n")
        out.writerow(profile.columns)
        for key in found.rows_without_images:
            out.writerow(format_row(profile, key, profile.rle.empty, (1, 1)))
        lines.detach()
    return len(found.rows_without_images)


def id_suffix(keys: tuple[RowKey, ...]) -> str:
    """Return the extension that all ids of a sample submission share, e.g. `.png`; empty if they share none."""
    suffixes = {image[len(strip_extension(image)) :] for image, _ in keys}
    return suffixes.pop() if len(suffixes) == 1 else ""


def _read_sample(comp: Competition, context: Context) -> tuple[Profile, SampleSubmission | None]:
    """Return the format of the submission file, and the host's sample submission.

    If the file of the sample submission is missing or has no rows, the second item is None.
    """
    profile = profile_of(comp)
    if comp.submission.sample is None:
        return profile, None
    path = Path(comp.root) / comp.submission.sample
    if not path.is_file():
        context.say(
            f"note: {comp.submission.sample} does not exist, so the submission file gets the rows of all test images"
        )
        return profile, None
    layout, rows = open_rows(path, profile)
    if next(rows, None) is None:
        return layout, None
    sample = read_sample(path, profile)
    return sample.profile, sample


def _read_rows(comp: Competition, context: Context, continue_on_error: bool) -> list[Any]:
    """Return the rows of the test cases in the case table.

    If the data folder belongs to the competition, but has no test images, return an empty list.

    Args:
        comp: the competition.
        context: context whose log receives messages for the user.
        continue_on_error: see `find_test_cases`.

    Raises:
        MaskfoldError: the data folder does not belong to the competition, or an image cannot be read.
    """
    try:
        return list(case_rows(case_table(comp, "test")))
    except MaskfoldError as error:
        if (whole := _without_selection(comp)) is not None:
            rows = _read_rows(whole, context, continue_on_error)
            context.say(f"note: all test images are predicted, because test.cases does not fit them: {error.message}")
            return rows
        if continue_on_error and _any_test_image(comp):
            return _rows_with_unreadable_cases(comp)
        if comp.test is None or not Path(comp.root).is_dir() or _any_test_image(comp) or not _is_root(comp):
            raise
        if others := unmatched_images(comp, "test"):
            raise MaskfoldError(
                "test.images: the pattern matches no file, although the folder of the pattern has "
                f"{format_count(len(others), 'other image file')}, such as {others[0]}.",
                "Rename the files, or export the bundle again with the right test.images.",
            ) from error
        context.say(f"note: {error.message}")
        return []


def _without_selection(comp: Competition) -> Competition | None:
    """Return the competition without `test.cases`, if this key lists ids that no test image has; otherwise None.

    The hidden test set has other images than those from which the user selected.
    """
    listed = listed_test_cases(comp)
    if listed is None or comp.test is None:
        return None
    whole = comp.model_copy(update={"test": comp.test.model_copy(update={"cases": None})})
    try:
        known = find_images(whole, "test", SkippedCases(whole))
    except MaskfoldError:
        return None
    return whole if set(listed) - set(known) else None


def _rows_with_unreadable_cases(comp: Competition) -> list[Any]:
    """Return the rows of the test cases in the case table.

    If a case cannot be read, the shape in its row is one pixel or, for a stack of slice files, one pixel per slice.

    Raises:
        MaskfoldError: the files of the test cases cannot be found.
    """
    rows = []
    for case_id, images in find_images(comp, "test", SkippedCases(comp)).items():
        try:
            row = case_row(comp.model_copy(update={"on_bad_case": "stop"}), "test", case_id, images, None)
        except MaskfoldError:
            slices = next(iter(images.values())).slices
            row = {
                **dict.fromkeys(COLUMNS, ""),
                "id": case_id,
                "images": json.dumps({name: case.files for name, case in images.items()}),
                "masks": "null",
                "shape": json.dumps([1, 1, len(slices)] if slices else [1] * comp.dimensions),
                "spacing": json.dumps([1.0] * comp.dimensions),
                "slices": json.dumps([item.z for item in slices] or None),
            }
        rows.append(SimpleNamespace(**row))
    return rows


def _any_test_image(comp: Competition) -> bool:
    """Return whether any file, readable or not, matches a pattern of the test images."""
    from competition.data.patterns import match_cases

    patterns = comp.test.images if comp.test is not None else ""
    for pattern in [patterns] if isinstance(patterns, str) else patterns.values():
        try:
            match_cases(Path(comp.root), pattern, "test.images")
        except MaskfoldError:
            continue
        return True
    return False


def _is_root(comp: Competition) -> bool:
    """Return whether the data folder contains the host's sample submission, or a folder of images from the YAML."""
    root = Path(comp.root)
    if comp.submission.sample is not None and (root / comp.submission.sample).is_file():
        return True
    sources = (comp.train.images, comp.test.images if comp.test is not None else {})
    patterns = [pattern for source in sources for pattern in ([source] if isinstance(source, str) else source.values())]
    folders = [pattern.split("{")[0].rpartition("/")[0] for pattern in patterns]
    return any(folder and (root / folder).is_dir() for folder in folders)


def _report_differences(
    comp: Competition,
    sample_keys: tuple[RowKey, ...],
    known_keys: list[RowKey],
    added_keys: list[RowKey],
    without_images: tuple[RowKey, ...],
    cases: int,
    context: Context,
) -> None:
    """Tell the user how the sample submission and the test images differ.

    Args:
        comp: the competition.
        sample_keys: keys of the rows of the sample submission.
        known_keys: those of `sample_keys` whose image exists.
        added_keys: keys of rows that are added for images that have no row in the sample submission.
        without_images: keys of rows in the sample submission whose image does not exist.
        cases: number of test cases.
        context: context whose log receives the messages.
    """
    name = comp.submission.sample
    if sample_keys and not known_keys:
        context.say(
            f"note: {name} is not used, because it is a dummy: none of its ids has an image "
            f"({sample_keys[0][0]}, …). The submission file gets the rows of the {cases} test cases"
        )
    elif sample_keys and added_keys:
        context.say(
            f"note: {name} lacks {format_count(len(added_keys), 'row')} of the {cases} test cases; the "
            "submission file gets these rows at its end"
        )
    elif not sample_keys and name is not None and (Path(comp.root) / name).is_file():
        context.say(f"note: {name} has no rows, so the submission file gets the rows of the {cases} test cases")
    if without_images:
        context.say(
            f"note: {format_count(len(without_images), 'row')} of {name} {has_or_have(len(without_images))} no image "
            f"({without_images[0][0]}{', …' if len(without_images) > 1 else ''}); a row without an image gets an "
            "empty mask"
        )
