"""Read tables of run lengths.

The content of a table shows the meaning of each column, the pixel order, and whether pixels are numbered from 0 or 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from competition.config.profiles import PROFILES, Profile
from competition.data.patterns import CaseFiles, SliceFile, match_cases
from competition.data.readers import read_header, read_image, strip_extension
from competition.data.rle.order import OrderVote, count_votes, likely_order
from competition.data.rle.tables import targets_by_name
from competition.errors import MaskfoldError
from competition.planning.words import tokens
from competition.rle_text import RleFormat, parse_numbers
from competition.tables import read_csv

if TYPE_CHECKING:
    import pandas

RUNS = re.compile(r"\s*\d+\s+\d+(?:\s+\d+\s+\d+)*\s*")
EMPTY_TEXTS = ("", "-1", "1 0", "-", "0", "nan", "NaN", "none", "None")
MAX_CELLS = 2000  # cells of a column that are examined
MAX_CLASSES = 60
MAX_CASES, MAX_TEXTS = 24, 10  # cases whose runs are decoded, and rows of each case
MIN_SHARE = 0.6  # share of a table's ids that must have an image
MIN_COUNTS = 3  # a column numbers objects only if images have so many different counts of objects
# Form of the ids of known competitions whose columns other competitions use too.
PROFILE_IDS = {
    "dsb2018": r"[0-9a-f]{64}",
    "carvana": r"[0-9a-f]{12}_\d\d\.jpg",
    "tgs-salt": r"[0-9a-f]{10}",
    "airbus": r"[0-9a-f]{9}\.jpg",
    "siim-acr": r"[0-9]+(\.[0-9]+){5,}",
    "severstal": r"[0-9a-f]{9}\.jpg(_[1-4])?",
    "clouds": r"[0-9a-f]{7}\.jpg_(Fish|Flower|Gravel|Sugar)",
    "hubmap-kidney": r"[0-9a-f]{9}",
    "hubmap-organ": r"\d{3,5}",
    "sartorius": r"[0-9a-f]{12}",
    "uw-madison-gi-tract": r"case\d+_day\d+_slice_\d+",
    "sennet-hoa": r"kidney_.+_\d{4}",
}


@dataclass(frozen=True)
class RunTable:
    """Hold a table with a column of run lengths.

    Attributes:
        path: path below the folder.
        id, mask, cls: names of the columns; cls is None without a column of classes.
        classes: values of the class column, or the suffixes of the ids, in the order of their first rows.
        rows: for each row, the id (without the class), the class and the run lengths.
        empty: text that stands for an empty mask.
        header: names of all columns.
    """

    path: str
    id: str
    mask: str
    cls: str | None
    classes: tuple[str, ...]
    rows: tuple[tuple[str, str, str], ...]  # id without class, class, runs
    empty: str
    header: tuple[str, ...]

    @property
    def filled(self) -> list[tuple[str, str, str]]:
        """The rows that have run lengths."""
        return [row for row in self.rows if RUNS.fullmatch(row[2])]


def read_run_table(root: Path, path: str, names: Iterable[str]) -> RunTable | None:
    """Read a table of run lengths.

    Return None if no column has run lengths, or if no other column names the images.

    Args:
        root: the folder.
        path: path of the table below the folder.
        names: names of images and slices that a table may use.
    """
    try:
        table = read_csv(root / path, {})
    except MaskfoldError:
        return None
    mask = _mask_column(table)
    if mask is None:
        return None
    known = set(names) | {strip_extension(name) for name in names}
    scores = {column: _known_share(table[column], known) for column in table.columns if column != mask}
    if not scores:
        return None
    id_column = max(scores, key=lambda column: scores[column])
    in_id = scores[id_column] < MIN_SHARE
    ids = table[id_column].tolist()
    if in_id:
        ids = [text.rpartition("_")[0] for text in ids]
        if _known_share(ids, known) < MIN_SHARE:
            return None
    cls = None if in_id else _class_column(table, id_column, mask)
    classes = [""] * len(ids)
    if cls is not None:
        classes = table[cls].tolist()
    elif in_id:
        classes = [text.rpartition("_")[2] for text in table[id_column]]
    texts = table[mask].tolist()
    blank = Counter(text.strip() for text in texts if not RUNS.fullmatch(text))
    empty = blank.most_common(1)[0][0] if blank else ""
    return RunTable(
        path,
        str(id_column),
        mask,
        cls,
        tuple(dict.fromkeys(classes)) if cls is not None or in_id else (),
        tuple(zip(ids, classes, texts, strict=True)),
        "" if empty.lower() == "nan" else empty,
        tuple(map(str, table.columns)),
    )


def _mask_column(table: pandas.DataFrame) -> str | None:
    """Return the column of run lengths; None if there is none.

    Each cell of this column is empty or has pairs of numbers, and some cells have several pairs.
    """
    for column in table.columns:
        cells = table[column].head(MAX_CELLS).tolist()
        runs = [cell for cell in cells if RUNS.fullmatch(cell)]
        other = sum(cell.strip() not in EMPTY_TEXTS for cell in cells if not RUNS.fullmatch(cell))
        if runs and not other and any(len(cell.split()) >= 4 for cell in runs) and len(set(runs)) > 1:
            return str(column)
    return None


def _known_share(ids: Iterable[str], known: set[str]) -> float:
    distinct = list(dict.fromkeys(ids))[:MAX_CELLS]
    return sum(text in known or strip_extension(text) in known for text in distinct) / max(1, len(distinct))


def _class_column(table: pandas.DataFrame, id_column: str, mask: str) -> str | None:
    """Return the column that distinguishes the masks of an image; None if there is no such column."""
    words = {"class", "classid", "category", "label", "organ", "type", "name", "cls"}
    best = None
    for column in table.columns:
        distinct = table[column].nunique()
        if column in (id_column, mask) or not 2 <= distinct <= MAX_CLASSES:
            continue
        if table.duplicated([id_column]).any() and not table.duplicated([id_column, column]).any():
            best = best or (None if _numbers_rows(table, id_column, column) else str(column))
        if not words.isdisjoint({*tokens(str(column)), str(column).casefold()}) and table.duplicated([id_column]).any():
            return str(column)
    return best


def _numbers_rows(table: pandas.DataFrame, id_column: str, column: str) -> bool:
    """Return whether a column numbers the rows of each image (0, 1, … or 1, 2, …), and images have different counts."""
    if not all(re.fullmatch(r"\d{1,4}", text) for text in table[column]):
        return False
    numbers = [sorted(map(int, own)) for _, own in table.groupby(id_column)[column]]
    start = min(own[0] for own in numbers)
    counts = {len(own) for own in numbers}
    return (
        start <= 1 and len(counts) >= MIN_COUNTS and all(own == list(range(start, start + len(own))) for own in numbers)
    )


# Known competitions


def find_profile(table: RunTable, sample_header: Sequence[str] | None) -> Profile | None:
    """Return the known competition to which a training table belongs, by its columns and the form of its ids.

    Return None if the table belongs to no known competition.

    Args:
        table: the training table.
        sample_header: header of the sample submission; None if there is no sample submission.
    """
    for name, profile in PROFILES.items():
        for variant in (profile, profile.alternative):
            if variant is None or name not in PROFILE_IDS:
                continue
            has_header = any(
                expected <= set(table.header) and {table.id, table.mask} <= expected
                for expected in _possible_columns(variant)
            )
            has_sample = sample_header is None or list(sample_header) in (
                [list(item.columns) for item in (profile, profile.alternative) if item is not None]
            )
            if has_header and has_sample and _has_profile_ids(name, table):
                return profile
    return None


def _possible_columns(profile: Profile) -> list[set[str]]:
    """Return two sets of columns; a training table of the host must have all columns of at least one set.

    The first set has the columns that the profile defines for the training table, the second set the columns of the
    submission. `competition.data.rle.tables` reads tables with either set.
    """
    train = profile.train
    cls = train.class_column or profile.class_column
    own = {train.id_column or profile.id_column, train.mask_column or profile.mask_column, cls}
    return [
        {column for column in columns if column}
        for columns in (own, {profile.id_column, profile.mask_column, profile.class_column})
    ]


def _has_profile_ids(name: str, table: RunTable) -> bool:
    expression = re.compile(PROFILE_IDS[name])
    ids = [f"{case_id}_{cls}" if table.cls is None and cls else case_id for case_id, cls, _ in table.rows[:MAX_CELLS]]
    if PROFILES[name].classes and table.classes and not set(table.classes) <= set(PROFILES[name].classes):
        return False
    return bool(ids) and all(expression.fullmatch(text) for text in ids)


# Format of the runs


@dataclass(frozen=True)
class Runs:
    """Hold the run lengths of one case or slice.

    Attributes:
        texts: run lengths of some of its masks.
        shape: shape of the image.
        image: path of the image; None for a volume.
    """

    texts: tuple[str, ...]
    shape: tuple[int, ...]
    image: Path | None


def collect_runs(root: Path, pattern: str, dimensions: int, table: RunTable) -> list[Runs]:
    """Return the run lengths of some cases (or slices) with the sizes of their images.

    Args:
        root: the folder.
        pattern: pattern of the images.
        dimensions: 2 or 3.
        table: the table.
    """
    cases = match_cases(root, pattern, "train.images")
    targets = targets_by_name(cases)
    texts: dict[tuple[str, int | None], list[str]] = {}
    for name, _, text in table.filled:
        target = targets.get(name) or targets.get(strip_extension(name))
        if target is not None:
            texts.setdefault(target, []).append(text)
    keys = sorted(texts, key=str)
    chosen = [keys[number * len(keys) // MAX_CASES] for number in range(MAX_CASES)] if len(keys) > MAX_CASES else keys
    found = []
    for case_id, index in chosen:
        path = root / _file_of(cases[case_id], index)
        try:
            shape = read_header(path, 2 if index is not None else dimensions).shape
        except MaskfoldError:  # the check of the cases reports this file
            continue
        found.append(Runs(tuple(texts[case_id, index][:MAX_TEXTS]), shape, path if len(shape) == 2 else None))
    return found


def _file_of(case: CaseFiles, index: int | None) -> str:
    if index is None:
        return case.paths[0] if case.paths else case.slices[0].path
    item: SliceFile = case.slices[index]
    return item.path


def is_relative(runs: Sequence[Runs]) -> bool:
    """Return whether the start of each run is relative to the end of the previous run.

    Absolute starts always increase from run to run, relative starts often do not.
    """
    texts = [text for item in runs for text in item.texts if len(text.split()) >= 6]
    decreasing = sum(bool((np.diff(parse_numbers(text)[::2]) <= 0).any()) for text in texts)
    return bool(texts) and decreasing >= 0.5 * len(texts)


def vote_order(runs: Sequence[Runs], relative: bool) -> OrderVote:
    """Return the pixel order that most cases indicate; see `competition.data.rle.order`."""
    votes = []
    for item in runs:
        image = None
        try:
            if item.image is not None and item.shape[0] == item.shape[1]:
                image = read_image(item.image, 2).array[:3].mean(axis=0, dtype=np.float32)
            votes.append(likely_order(item.texts, item.shape, RleFormat("column", 1, relative), image))
        except MaskfoldError:
            votes.append(None)
    return count_votes(votes)


def find_base(runs: Sequence[Runs], order: Literal["row", "column"], relative: bool) -> tuple[Literal[0, 1], str]:
    """Return whether pixels are numbered from 0 or 1, and a phrase with the evidence.

    Without evidence, return 1 and an empty text.
    """
    if relative:
        return 1, "the starts are relative, so the base does not matter"
    crossing = {0: 0, 1: 0}
    for item in runs:
        size = int(np.prod(item.shape))
        line = item.shape[0] if order == "column" else item.shape[-1]
        for text in item.texts:
            numbers = parse_numbers(text)
            starts, lengths = numbers[: len(numbers) // 2 * 2 : 2], numbers[1::2]
            if (starts == 0).any():
                return 0, "a run starts at pixel 0"
            if (starts + lengths > size).any():
                return 1, "a run ends at the last pixel if pixels are counted from 1"
            short = lengths < line
            for base, count in crossing.items():
                first = (starts - base)[short]
                crossing[base] = count + int(np.count_nonzero(first % line + lengths[short] > line))
    if crossing[0] > crossing[1] and crossing[1] <= 0.2 * crossing[0]:
        return 1, "if pixels are counted from 1, runs at the edge of the image end at the end of their line"
    if crossing[1] > crossing[0] and crossing[0] <= 0.2 * crossing[1]:
        return 0, "if pixels are counted from 0, runs at the edge of the image end at the end of their line"
    return 1, ""


def find_overlap(runs: Mapping[str, Sequence[tuple[str, str]]]) -> str | None:
    """Return the id of a case in which two classes share a pixel; None if there is no such case."""
    for case_id, rows in runs.items():
        last: dict[str, list[tuple[int, int]]] = {}
        for cls, text in rows:
            numbers = parse_numbers(text)
            last.setdefault(cls, []).extend(zip(numbers[::2].tolist(), numbers[1::2].tolist(), strict=False))
        if len(last) > 1:
            events = sorted((start, start + length, cls) for cls, items in last.items() for start, length in items)
            end, owner = -1, ""
            for start, stop, cls in events:
                if start < end and cls != owner:
                    return case_id
                if stop > end:
                    end, owner = stop, cls
    return None
