"""The test set as it is found when the bundle runs: the public sample may be empty, or hold one dummy case."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from competition.config import Competition, MaskfoldError
from competition.data.files import whole_file, writable
from competition.data.readers import stem
from competition.data.table import case_table
from competition.submission.members import plain_rows
from competition.submission.profiles import Profile, profile_of
from competition.submission.read import Key, Names, Sample, fill, open_rows, read_sample
from competition.submission.testset import TestSet, names_of
from competition.submission.writer import Masked

Say = Callable[[str], None]


@dataclass(frozen=True)
class FoundSet:
    """What is to be predicted.

    Attributes:
        tests: the cases and the rows; no case where there is no test image.
        without: rows of the sample whose image is missing: they get empty masks.
    """

    tests: TestSet
    without: tuple[Key, ...] = ()

    def ghosts(self) -> Iterator[Masked]:
        """Empty masks for the rows without an image."""
        for name, cls in self.without:
            yield name, cls, np.zeros((1, 1), np.bool_)


def find_cases(comp: Competition, ending: str, say: Say) -> FoundSet:
    """The test images below the competition's root, and the rows that the file needs.

    Where the sample fits the images, everything is as `maskfold submit` has it. Else rows are those of the sample whose
    image is there, in its order, and then those of all other images by id (and slice) and class. A sample of which no
    id has an image is a dummy and plays no part; where some ids have one, the rows of the others get empty masks.

    Args:
        comp: the competition; its root is where the host's files are mounted.
        ending: what the host's ids have behind the image's id, such as `.png`, where no sample shows it.
        say: takes lines for the user.

    Raises:
        MaskfoldError: the root is not the competition's, or an image or the sample cannot be read.
    """
    rows = _rows(comp, say)
    profile, sample = _sample(comp, say)
    if not rows:
        return FoundSet(TestSet(comp, [], profile, sample, {}), sample.keys if sample is not None else ())
    names = {row.id: names_of(row, profile, sample) for row in rows}
    if comp.submission.sample is None:
        return FoundSet(TestSet(comp, rows, profile, None, names))
    every = Names([name for several in names.values() for name in several])
    given = sample.keys if sample is not None else ()
    known = [key for key in given if every.get(key[0]) is not None]
    if not known:  # neither do a dummy's names say how cases are named
        names = {row.id: names_of(row, profile, None) for row in rows}
    ending = ending_of(given) or ending
    there = {(every.get(image), cls) for image, cls in known}
    spelled = {every.get(image): image for image, _ in known}
    rest = [
        (spelled.get(name, name + ending), cls)
        for row in rows
        for name in names[row.id]
        for cls in (profile.classes or (None,))
        if (name, cls) not in there
    ]
    without = tuple(key for key in given if every.get(key[0]) is None) if known else ()
    if given and not rest and not without:  # the host's own file
        return FoundSet(TestSet(comp, rows, profile, sample, names))
    _tell(comp, given, known, rest, without, len(rows), say)
    keys = [key for key in given if key in without or every.get(key[0]) is not None]
    made = Sample(Path(comp.root) / comp.submission.sample, profile, (*keys, *rest))
    return FoundSet(TestSet(comp, rows, profile, made, names), without)


def write_without_images(found: FoundSet, path: Path) -> int:
    """Writes the sample's rows with empty masks, or the header alone: a notebook is saved before it sees the test set.

    Returns:
        The number of rows.
    """
    profile = found.tests.profile
    writable(path.parent)
    with whole_file(path) as stream:
        lines = io.TextIOWrapper(stream, "utf-8", newline="")
        out = csv.writer(lines, lineterminator="\n")
        out.writerow(profile.columns)
        for key in found.without:
            out.writerow(fill(profile, key, profile.rle.empty, (1, 1)))
        lines.detach()
    return len(found.without)


def ending_of(keys: tuple[Key, ...]) -> str:
    """What the ids of a sample have behind the image's id, such as `.png`."""
    endings = {image[len(stem(image)) :] for image, _ in keys}
    return endings.pop() if len(endings) == 1 else ""


def _sample(comp: Competition, say: Say) -> tuple[Profile, Sample | None]:
    """The layout, and the host's sample as far as it has rows."""
    profile = profile_of(comp)
    if comp.submission.sample is None:
        return profile, None
    path = Path(comp.root) / comp.submission.sample
    if not path.is_file():
        say(f"note: {comp.submission.sample} is not there; the rows follow from the test images")
        return profile, None
    layout, rows = open_rows(path, profile)
    if next(rows, None) is None:
        return layout, None
    sample = read_sample(path, profile)
    return sample.profile, sample


def _rows(comp: Competition, say: Say) -> list[Any]:
    """Rows of the test cases; none where the folder is the competition's and holds no test image."""
    try:
        return list(plain_rows(case_table(comp, "test")))
    except MaskfoldError as error:
        if comp.test is None or not Path(comp.root).is_dir() or _any_file(comp) or not _is_root(comp):
            raise
        say(f"note: {error.wrong}")
        return []


def _any_file(comp: Competition) -> bool:
    """Whether there is any image of the test pattern, good or bad."""
    from competition.data.sources import find

    patterns = comp.test.images if comp.test is not None else ""
    for pattern in [patterns] if isinstance(patterns, str) else patterns.values():
        try:
            find(Path(comp.root), pattern, "test.images")
        except MaskfoldError:
            continue
        return True
    return False


def _is_root(comp: Competition) -> bool:
    """Whether the host's sample, or a folder that the YAML names, is below the root."""
    root = Path(comp.root)
    if comp.submission.sample is not None and (root / comp.submission.sample).is_file():
        return True
    sources = (comp.train.images, comp.test.images if comp.test is not None else {})
    patterns = [text for one in sources for text in ([one] if isinstance(one, str) else one.values())]
    heads = [text.split("{")[0].rpartition("/")[0] for text in patterns]
    return any(head and (root / head).is_dir() for head in heads)


def _tell(
    comp: Competition,
    given: tuple[Key, ...],
    known: list[Key],
    rest: list[Key],
    without: tuple[Key, ...],
    cases: int,
    say: Say,
) -> None:
    name = comp.submission.sample
    if given and not known:
        say(
            f"note: no id of {name} has an image ({given[0][0]}, …): a dummy; the rows follow from the {cases} test cases"
        )
    elif given and rest:
        say(f"note: {name} lacks {len(rest)} rows of the {cases} test cases; they follow after its own")
    elif not given and name is not None and (Path(comp.root) / name).is_file():
        say(f"note: {name} has no rows; they follow from the {cases} test cases")
    if without:
        say(f"note: {len(without)} rows of {name} have no image ({without[0][0]}, …) and get empty masks")
