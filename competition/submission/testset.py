"""The test cases under the names that the host's file uses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.sources import Slice, slice_names
from competition.submission.members import plain_rows, slices_of
from competition.submission.postprocess import Outcome
from competition.submission.profiles import Profile, profile_of
from competition.submission.read import Names, Sample, read_sample, said
from competition.submission.writer import Masked


@dataclass(frozen=True)
class TestSet:
    """What is to be predicted, and how it is written.

    Attributes:
        comp: the competition.
        rows: rows of the case table.
        profile: what the file looks like.
        sample: the host's sample; None where there is none.
        names: of each case: one name, or one for each slice.
    """

    __test__ = False  # pytest: not a test

    comp: Competition
    rows: list[Any]
    profile: Profile
    sample: Sample | None
    names: dict[str, list[str]]

    @classmethod
    def of(cls, comp: Competition, table: Any, with_sample: bool = True) -> TestSet:
        """The set of a case table, checked against the host's sample.

        Raises:
            MaskfoldError: the sample asks for a case without an image, or leaves one out.
        """
        profile, rows = profile_of(comp), plain_rows(table)
        sample = None
        if comp.submission.sample is not None and with_sample:
            sample = read_sample(Path(comp.root) / comp.submission.sample, profile)
            profile = sample.profile
        names = {row.id: names_of(row, profile, sample) for row in rows}
        if sample is not None:
            sample.check([name for several in names.values() for name in several])
            _check_classes(sample, profile)
        return cls(comp, rows, profile, sample, names)

    def __len__(self) -> int:
        return len(self.rows)

    def masks(self, row: Any, outcome: Outcome, confidence: np.ndarray[Any, Any] | None = None) -> Iterator[Masked]:
        """What the writer wants of one case.

        Args:
            row: the case.
            outcome: its masks.
            confidence: (K, *spatial) probabilities, where the file has a confidence for each object.
        """
        names = self.names[row.id]
        for index, cls in enumerate(self.comp.classes):
            if not self.profile.many:
                for name, mask in self._pieces(names, outcome.masks[index]):
                    yield name, cls, mask
                continue
            for one in outcome.of(index):
                for name, mask in self._pieces(names, one):
                    if mask.any() and confidence is not None and self.profile.confidence:
                        yield name, cls, mask, float(np.mean(confidence[index][one], dtype=np.float64))
                    elif mask.any():
                        yield name, cls, mask
            for name, mask in self._pieces(names, np.zeros_like(outcome.masks[index])):
                yield name, cls, mask  # nothing of it is written, but the case is known to have been predicted

    def _pieces(self, names: list[str], mask: np.ndarray[Any, Any]) -> Iterable[tuple[str, np.ndarray[Any, Any]]]:
        if len(names) == 1 and mask.ndim == self.comp.dimensions and not self._sliced(mask, names):
            return [(names[0], mask)]
        return [(name, mask[..., place]) for place, name in enumerate(names)]

    def _sliced(self, mask: np.ndarray[Any, Any], names: list[str]) -> bool:
        return self.profile.rows == "slice_class" and mask.ndim == 3


def names_of(row: Any, profile: Profile, sample: Sample | None) -> list[str]:
    """The case's name, or those of its slices as the sample spells them."""
    slices = slices_of(row)
    if slices is None or not _by_slice(row, profile, sample):
        if profile.rows == "slice_class" and slices is None:
            raise MaskfoldError(
                f"{profile.name} wants a row for each slice, but the case {row.id} is one file of shape "
                f"{'×'.join(map(str, json.loads(row.shape)))}.",
                "Name its slices in test.images: `{id}/slice_{z}.png`.",
                status=2,
            )
        return [row.id]
    known = Names(dict.fromkeys(key[0] for key in sample.keys)) if sample is not None else None
    names = []
    for z, path in slices:
        spelled = slice_names(row.id, Slice(z, path))
        names.append(next((name for name in spelled if known is None or known.get(name) is not None), spelled[0]))
    return names


def _check_classes(sample: Sample, profile: Profile) -> None:
    """Refuses a sample that asks for some classes of an image only.

    Raises:
        MaskfoldError: naming the row that is not there.
    """
    there = set(sample.keys)
    for image in dict.fromkeys(key[0] for key in sample.keys) if profile.classed else ():
        for cls in profile.classes:
            if (image, cls) not in there:
                raise MaskfoldError(
                    f"{sample.path} has no row for {said((image, cls))}, but has its other classes.",
                    "Take the host's own sample, or correct competition.classes.",
                )


def _by_slice(row: Any, profile: Profile, sample: Sample | None) -> bool:
    """Whether the file has a row for each slice of a stack: so says the profile, or the sample does not know the case."""
    if profile.rows == "slice_class":
        return True
    return sample is not None and row.id not in {key[0] for key in sample.keys}
