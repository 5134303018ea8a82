"""Map each test case to the ids of its rows in a submission file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.profiles import Profile, profile_of
from competition.data.cases import case_rows
from competition.data.patterns import SliceFile, slice_aliases
from competition.data.readers import has_reader
from competition.data.rle.tables import table_id_suffix
from competition.ensembling.ensemble import list_slices
from competition.errors import MaskfoldError
from competition.postprocessing.case import CasePrediction
from competition.submission.reader import IdLookup, SampleSubmission, format_key, read_sample
from competition.submission.writer import MaskItem, ObjectsItem


@dataclass(frozen=True)
class TestSet:
    """Hold the test cases and the format of the submission.

    Attributes:
        comp: the competition.
        rows: rows of the test cases in the case table.
        profile: the file format.
        sample: the host's sample submission; None if there is none.
        names: for each case id, the ids of the rows of this case in the submission file: one id, or one id per slice.
    """

    __test__ = False  # tells pytest that this class is not a test, although its name begins with Test

    comp: Competition
    rows: list[Any]
    profile: Profile
    sample: SampleSubmission | None
    names: dict[str, list[str]]

    @classmethod
    def from_table(cls, comp: Competition, table: Any, with_sample: bool = True) -> TestSet:
        """Return the test set for a case table, after comparing it with the host's sample submission.

        Args:
            comp: the competition.
            table: case table of the test cases.
            with_sample: whether the rows get the host's ids. These are the ids of the sample submission or, if
                there is none, the case ids with the suffix of `host_id_suffix`. If False, the rows get the case ids.

        Raises:
            MaskfoldError: the sample submission has an id without an image, or no row for an image or class; or there
                is no sample submission, and the host's ids are unknown.
        """
        profile, rows = profile_of(comp), case_rows(table)
        sample = None
        if comp.submission.sample is not None and with_sample:
            sample = read_sample(Path(comp.root) / comp.submission.sample, profile)
            profile = sample.profile
        names = row_names(rows, profile, sample)
        if sample is not None:
            sample.check_ids([name for case_names in names.values() for name in case_names])
            _check_classes(sample, profile)
        elif with_sample:
            suffix = host_id_suffix(comp)
            names = {
                case_id: [add_suffix(name, suffix) for name in case_names] for case_id, case_names in names.items()
            }
        return cls(comp, rows, profile, sample, names)

    def __len__(self) -> int:
        return len(self.rows)

    def masks(
        self, row: Any, prediction: CasePrediction, confidence: np.ndarray[Any, Any] | None = None
    ) -> Iterator[MaskItem | ObjectsItem]:
        """Yield the masks of one case for `write_submission`: one item for each class.

        If the file has one row per slice, there is one item for each class and slice. If the file has several objects
        per case, an item is a label image with all objects of the class.

        Args:
            row: row of the case table.
            prediction: masks and objects of the case.
            confidence: (K, *spatial) probabilities of the classes, needed if the file has a confidence for each object.
                The confidence of an object is its mean probability.
        """
        names = self.names[row.id]
        for index, cls in enumerate(self.comp.classes):
            if not self.profile.several_masks:
                for name, mask in self._split_slices(names, prediction.masks[index]):
                    yield name, cls, mask
                continue
            labels = prediction.object_labels(index)
            means = None
            if confidence is not None and self.profile.confidence:
                means = object_means(labels, confidence[index])
            for name, part in self._split_slices(names, labels):
                yield ObjectsItem(name, cls, part, means)

    def _split_slices(self, names: list[str], mask: np.ndarray[Any, Any]) -> Iterable[tuple[str, np.ndarray[Any, Any]]]:
        if len(names) == 1 and mask.ndim == self.comp.dimensions and not self._sliced(mask, names):
            return [(names[0], mask)]
        return [(name, mask[..., z]) for z, name in enumerate(names)]

    def _sliced(self, mask: np.ndarray[Any, Any], names: list[str]) -> bool:
        return self.profile.rows == "slice_class" and mask.ndim == 3


def object_means(labels: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> dict[int, float]:
    """Return the mean of the values in each object of a label image, by the object's number.

    Args:
        labels: (*spatial) integers, 0 for background.
        values: (*spatial) floats.
    """
    pixels = labels != 0
    numbers = labels[pixels]
    # The sort must be stable, because a sum of floats depends on the order of the pixels.
    order = np.argsort(numbers, kind="stable")
    objects, first = np.unique(numbers[order], return_index=True)
    parts = np.split(values[pixels][order], first[1:]) if len(objects) else []
    return {int(number): float(np.mean(part, dtype=np.float64)) for number, part in zip(objects, parts, strict=True)}


def host_id_suffix(comp: Competition) -> str:
    """Return the suffix that the host's ids have after the case id, e.g. `.jpg`; it may be empty.

    If the profile states the suffix, it is returned. Otherwise, the suffix is that of the ids in the table `train.rle`.
    Without a profile and without such a table, it is empty.

    Raises:
        MaskfoldError: the profile does not state the suffix, and there is no table `train.rle` (status 2).
    """
    profile = profile_of(comp)
    if profile.id_suffix is not None:
        return profile.id_suffix
    if comp.train.rle is not None:
        return table_id_suffix(comp)
    if comp.submission.profile is None:
        return ""
    raise MaskfoldError(
        f"It is unknown whether the ids of the profile {profile.name} include the file extension, "
        "because there is no sample submission.",
        "Set submission.sample to the sample submission of the host.",
        status=2,
    )


def add_suffix(name: str, suffix: str) -> str:
    """Return an id with the host's suffix; if the id already ends in the extension of an image, return it unchanged."""
    return name if has_reader(name) else name + suffix


def row_names(rows: Iterable[Any], profile: Profile, sample: SampleSubmission | None) -> dict[str, list[str]]:
    """Return the ids that each case's rows have in the submission file: the case id, or one id per slice.

    If there is a sample submission, the ids of slices are spelt as in this sample submission.

    Args:
        rows: rows of the case table.
        profile: the file format.
        sample: the host's sample submission; None if there is none.

    Returns:
        The ids by case id.

    Raises:
        MaskfoldError: the format requires slices, but a case is a single file (status 2).
    """
    lookup = IdLookup(dict.fromkeys(key[0] for key in sample.keys)) if sample is not None else None
    known = None if lookup is None else set(lookup.ids)
    return {row.id: _names_of_case(row, profile, lookup, known) for row in rows}


def _names_of_case(row: Any, profile: Profile, lookup: IdLookup | None, known: set[str] | None) -> list[str]:
    """Return the ids that one case's rows have in the submission file, see `row_names`.

    A stack of slices has one row per slice if the format requires it, or if the sample submission does not contain the
    case id. If there is no sample submission, it also has one row per slice if `profile.slices_are_images` is True.

    Args:
        row: row of the case table.
        profile: the file format.
        lookup: the names of the images in the sample submission; None if there is no sample submission.
        known: the names in `lookup` as a set; None if there is no sample submission.
    """
    slices = list_slices(row)
    rows_are_slices = profile.slices_are_images if known is None else row.id not in known
    if slices is None or not (profile.rows == "slice_class" or rows_are_slices):
        if profile.rows == "slice_class" and slices is None:
            raise MaskfoldError(
                f"The profile {profile.name} requires a row per slice, but the case {row.id} is a single file "
                f"of shape {'×'.join(map(str, json.loads(row.shape)))}.",
                "Set test.images to a pattern for the files of slices, such as `{id}/slice_{z}.png`.",
                status=2,
            )
        return [row.id]
    names = []
    for z, path in slices:
        spellings = slice_aliases(row.id, SliceFile(z, path))
        names.append(next((name for name in spellings if lookup is None or lookup.get(name) is not None), spellings[0]))
    return names


def _check_classes(sample: SampleSubmission, profile: Profile) -> None:
    """Check that each image in the sample submission has a row for each class; skip this if rows have no classes.

    Raises:
        MaskfoldError: a row is missing.
    """
    present = set(sample.keys)
    for image in dict.fromkeys(key[0] for key in sample.keys) if profile.rows_have_class else ():
        for cls in profile.classes:
            if (image, cls) not in present:
                raise MaskfoldError(
                    f"{sample.path} has no row for {format_key((image, cls))}, although it has rows for other "
                    "classes of this image.",
                    "Download the sample submission again, or correct competition.classes.",
                )
