"""What the public board says, and what it does not: its noise, and how far it agrees with cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import atanh, isfinite, nan, sqrt, tanh
from typing import TYPE_CHECKING

import numpy as np

from competition.config import Metric
from competition.scoring.summary import difference_noise
from competition.submission.ledger import Record
from competition.submission.upload import groups_in

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 4  # files, for a correlation: Fisher's interval needs one more than three
LEVEL_Z = 1.959964  # of a normal's 95 %
FORMULA = (
    "noise: half the width of the interval that holds 95 % of the differences between two files on N public cases. "
    "Paired: such cases are drawn from the out-of-fold cases of both (for a mean, 1.96 s/√N with the standard deviation "
    "s of the cases' differences). Else √(h₁² + h₂²), h half of each file's 95 % interval for N cases, as if the two "
    "were scored on different cases: too much rather than too little"
)


@dataclass(frozen=True)
class Noise:
    """By how much the public score of two equally good files differs; 95 % of differences are smaller.

    Attributes:
        value: half the width.
        cases: of the public board.
        paired: on how many shared out-of-fold cases; 0: from the two files' own intervals.
    """

    value: float
    cases: int
    paired: int

    def __str__(self) -> str:
        how = f"paired over {self.paired} out-of-fold cases" if self.paired else "from both files' intervals"
        return f"±{self.value:.4f} on {self.cases} public cases, {how}"


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of out-of-fold and public scores, with Fisher's 95 % interval.

    Attributes:
        files: how many.
        r: nan where there are too few, or all have one score.
        low: lower end. high: upper end.
    """

    files: int
    r: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.files < FEWEST:
            return (
                f"correlation of CV and public: needs {FEWEST} files with both scores, and there "
                f"{'is' if self.files == 1 else 'are'} {self.files}"
            )
        if not isfinite(self.r):
            return "correlation of CV and public: none, since all files have one score"
        words = f"correlation of CV and public: r {self.r:+.3f} (95 % {self.low:+.3f} to {self.high:+.3f}, Fisher, {self.files} files)"
        return words + (
            "; the interval holds 0: nothing says yet that the two agree" if self.low <= 0 <= self.high else ""
        )


def noise(one: Record, other: Record, tables: tuple[pd.DataFrame | None, pd.DataFrame | None]) -> Noise | None:
    """The noise of the difference of two files' public scores; None where nothing is known of it.

    Args:
        one: the earlier upload.
        other: the later.
        tables: the out-of-fold scores of each, by case and class.
    """
    cases = other.public_cases or one.public_cases
    if cases is None:
        return None
    first, second = tables
    if first is not None and second is not None and one.metric == other.metric and other.metric:
        shared = set(first["id"]) & set(second["id"])
        if len(shared) > 1 and set(first["class"]) == set(second["class"]):
            pair = [table[table["id"].isin(shared)] for table in (first, second)]
            value = difference_noise(
                pair[0], pair[1], Metric.model_validate(other.metric), cases, groups=groups_in(pair[1])
            )
            if isfinite(value):
                return Noise(value, cases, len(shared))
    halves = [_half(record.expected) for record in (one, other)]
    if halves[0] is None or halves[1] is None:
        return None
    return Noise(sqrt(halves[0] ** 2 + halves[1] ** 2), cases, 0)


def chased(records: Sequence[Record], tables: Mapping[str, pd.DataFrame | None]) -> list[str]:
    """A sentence for each public score that moved, from the upload before it with another file, by less than its noise.

    Args:
        records: the oldest first.
        tables: the out-of-fold scores by record.
    """
    lines = []
    before: Record | None = None
    for record in scored(records):
        if before is not None and before.sha256 == record.sha256 and record.sha256:
            continue
        if before is not None and record.public is not None and before.public is not None:
            moved = record.public - before.public
            found = noise(before, record, (tables.get(before.id), tables.get(record.id)))
            if found is not None and abs(moved) < found.value:
                lines.append(
                    f"{day(record)}: the public score moved by {moved:+.4f}, less than its noise ({found}): if "
                    "this is why you chose, you are chasing the board"
                )
        before = record
    return lines


def surprises(records: Sequence[Record]) -> list[str]:
    """A sentence for each public score outside of the interval that holds 95 % of such test sets."""
    lines = []
    for record in scored(records):
        low, high = record.expected.get("low"), record.expected.get("high")
        if record.public is not None and low is not None and high is not None and not low <= record.public <= high:
            lines.append(
                f"{day(record)}: public {record.public:.4f} is outside of {low:.4f} to {high:.4f}, where 95 % of "
                f"test sets of {record.public_cases} cases lie: the test cases are of another kind, or the folds leak"
            )
    return lines


def correlation(records: Sequence[Record]) -> Correlation:
    """Of the files with both scores, each file once."""
    pairs = list(
        {
            record.sha256 or record.id: (record.score, record.public)
            for record in scored(records)
            if record.score is not None
        }.values()
    )
    if len(pairs) < FEWEST:
        return Correlation(len(pairs), nan, nan, nan)
    x, y = np.array(pairs, np.float64).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(len(pairs), nan, nan, nan)
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
    if abs(r) > 1 - 1e-12:
        return Correlation(len(pairs), r, r, r)
    wide = LEVEL_Z / sqrt(len(pairs) - 3)
    return Correlation(len(pairs), r, tanh(atanh(r) - wide), tanh(atanh(r) + wide))


def choice(records: Sequence[Record], tables: Mapping[str, pd.DataFrame | None]) -> str | None:
    """What to say where the best file by CV is not the best on the public board; None where it is, or neither is known."""
    known = [record for record in scored(records) if record.score is not None]
    if len(known) < 2:
        return None
    sign = -1 if known[0].metric and Metric.model_validate(known[0].metric).lower_is_better else 1
    honest = max(known, key=lambda record: sign * (record.score or 0.0))
    shown = max(known, key=lambda record: sign * (record.public or 0.0))
    if honest.sha256 == shown.sha256 and honest.public == shown.public:
        return None
    words = (
        f"best by CV: {day(honest)} ({honest.score:.4f}, public {honest.public:.4f}); best on the board: {day(shown)} "
        f"({shown.score:.4f}, public {shown.public:.4f})"
    )
    found = noise(honest, shown, (tables.get(honest.id), tables.get(shown.id)))
    if found is None:
        return words
    gap = abs((shown.public or 0.0) - (honest.public or 0.0))
    if gap < found.value:
        return f"{words}; the board cannot tell them apart ({found}): choose by CV"
    return f"{words}; the board's difference is beyond its noise ({found}): hand in both"


def scored(records: Sequence[Record]) -> list[Record]:
    """Those with a public score."""
    return [record for record in records if record.public is not None]


def day(record: Record) -> str:
    """`2026-01-05 10:11`."""
    return record.time[:16].replace("T", " ")


def _half(ends: Mapping[str, float | None]) -> float | None:
    low, high = ends.get("low"), ends.get("high")
    return None if low is None or high is None else (high - low) / 2
