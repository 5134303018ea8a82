"""Estimate the noise of public leaderboard scores, and their agreement with cross-validation.

The public score is computed on a few cases only. So two equally good files have different public scores by chance. The
noise is the size of such differences, see `ScoreNoise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import atanh, isfinite, nan, sqrt, tanh
from typing import TYPE_CHECKING

import numpy as np

from competition.leaderboard.ledger import UploadRecord, metric_of_record
from competition.leaderboard.upload import table_groups
from competition.metrics.bootstrap import paired_difference_noise
from competition.text import format_count

if TYPE_CHECKING:
    import pandas as pd

MIN_FILES = 4  # minimum number of files for a correlation, because Fisher's interval requires more than three
Z_95 = 1.959964  # 95 % quantile of the normal distribution (two-sided)
NOISE_FORMULA = (
    "noise: by chance, the public scores of two equally good files differ by less than this value with a probability "
    "of 95 %. N is the number of public cases. If the two files share out-of-fold cases, samples of N of these cases "
    "are drawn many times, and the noise follows from the score differences on these samples. For a mean over cases, "
    "the noise is about 1.96 s/√N, where s is the standard deviation of the differences per case. If the files share "
    "no out-of-fold cases, the noise is √(h₁² + h₂²), where h is half the width of a file's 95 % interval for N cases. "
    "This formula assumes that the two files are scored on different cases, so it overestimates the noise"
)


@dataclass(frozen=True)
class ScoreNoise:
    """Hold the noise of the difference between two public scores.

    Attributes:
        value: the noise: for two equally good files, 95 % of the differences between public scores are smaller.
        cases: number of cases of the public leaderboard.
        paired: number of cases for which both files have an out-of-fold score, if the noise was estimated from these
            scores. 0 if the noise was computed from the prediction intervals of the two files.
    """

    value: float
    cases: int
    paired: int

    def __str__(self) -> str:
        how = f"from {self.paired} common out-of-fold cases" if self.paired else "from the 95 % intervals of both files"
        return f"±{self.value:.4f} on {self.cases} public cases, {how}"


@dataclass(frozen=True)
class Correlation:
    """Hold the correlation between out-of-fold and public scores: Pearson's r, with Fisher's 95 % interval.

    Attributes:
        files: number of files with both scores.
        r: Pearson's r; nan if there are fewer than `MIN_FILES` files, or if `constant` is not empty.
        low: lower end of the interval; nan if `r` is nan.
        high: upper end of the interval; nan if `r` is nan.
        constant: the score that is equal for all files, `CV` or `public`; an empty text if both scores vary.
    """

    files: int
    r: float
    low: float
    high: float
    constant: str = ""

    def __str__(self) -> str:
        if self.files < MIN_FILES:
            return (
                f"correlation of CV and public score: found {self.files} file{'s' * (self.files != 1)} with "
                f"both scores, expected at least {MIN_FILES}"
            )
        if not isfinite(self.r):
            return (
                f"correlation of CV and public score: undefined, because all files have the same {self.constant} score"
            )
        text = (
            f"correlation of CV and public score: r {self.r:+.3f} (95 % interval {self.low:+.3f} to "
            f"{self.high:+.3f}, by Fisher's method, {format_count(self.files, 'file')})"
        )
        if self.low <= 0 <= self.high:
            text += "; the interval contains 0, so there is no evidence yet that the two scores agree"
        return text


def public_score_noise(
    earlier: UploadRecord, later: UploadRecord, tables: tuple[pd.DataFrame | None, pd.DataFrame | None]
) -> ScoreNoise | None:
    """Return the noise of the difference between the public scores of two files.

    If both uploads have out-of-fold scores of common cases, the noise is estimated from the differences of these
    scores. Otherwise it is computed from the prediction intervals of the two files, which overestimates it. If these
    intervals or the number of public cases are unknown, return None.

    Args:
        earlier: the earlier upload.
        later: the later upload.
        tables: out-of-fold scores of the earlier and the later upload, one row per case and class; None if unknown.
    """
    cases = later.public_cases or earlier.public_cases
    if cases is None:
        return None
    first, second = tables
    if first is not None and second is not None and earlier.metric == later.metric and later.metric:
        shared = set(first["id"]) & set(second["id"])
        if len(shared) > 1 and set(first["class"]) == set(second["class"]):
            pair = [table[table["id"].isin(shared)] for table in (first, second)]
            value = paired_difference_noise(
                pair[0], pair[1], metric_of_record(later.metric), cases, groups=table_groups(pair[1])
            )
            if isfinite(value):
                return ScoreNoise(value, cases, len(shared))
    halves = [_half(record.expected) for record in (earlier, later)]
    if halves[0] is None or halves[1] is None:
        return None
    return ScoreNoise(sqrt(halves[0] ** 2 + halves[1] ** 2), cases, 0)


def public_overfit(records: Sequence[UploadRecord], tables: Mapping[str, pd.DataFrame | None]) -> list[str]:
    """Return a warning for each public score that differs from the score of the previous file by less than the noise.

    Args:
        records: the uploads, the oldest first.
        tables: out-of-fold scores of each upload, by the id of its record; None for unknown scores.
    """
    lines = []
    previous: UploadRecord | None = None
    for record in with_public_score(records):
        if previous is not None and previous.sha256 == record.sha256 and record.sha256:
            continue
        if previous is not None and record.public is not None and previous.public is not None:
            change = record.public - previous.public
            score_noise = public_score_noise(previous, record, (tables.get(previous.id), tables.get(record.id)))
            if score_noise is not None and abs(change) < score_noise.value:
                lines.append(
                    f"{format_time(record)}: the public score differs from that of the previous file by {change:+.4f}, "
                    f"which is less than the noise ({score_noise}). If you select files by this difference, you "
                    "overfit the public leaderboard"
                )
        previous = record
    return lines


def cv_lb_disagreements(records: Sequence[UploadRecord]) -> list[str]:
    """Return a warning for each public score outside of its 95 % prediction interval from cross-validation."""
    lines = []
    for record in with_public_score(records):
        low, high = record.expected.get("low"), record.expected.get("high")
        if record.public is not None and low is not None and high is not None and not low <= record.public <= high:
            lines.append(
                f"{format_time(record)}: the public score is {record.public:.4f}. The CV score predicts {low:.4f} to "
                f"{high:.4f} for 95 % of test sets of {record.public_cases} cases. So the test cases probably differ "
                "from the training cases, or the folds leak"
            )
    return lines


def cv_lb_correlation(records: Sequence[UploadRecord]) -> Correlation:
    """Return the correlation between out-of-fold and public scores, over all files that have both.

    A file that was uploaded several times is included once.
    """
    pairs = list(
        {
            record.sha256 or record.id: (record.score, record.public)
            for record in with_public_score(records)
            if record.score is not None
        }.values()
    )
    if len(pairs) < MIN_FILES:
        return Correlation(len(pairs), nan, nan, nan)
    x, y = np.array(pairs, np.float64).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(len(pairs), nan, nan, nan, "CV" if np.ptp(x) == 0 else "public")
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
    if abs(r) > 1 - 1e-12:
        return Correlation(len(pairs), r, r, r)
    half_width = Z_95 / sqrt(len(pairs) - 3)
    return Correlation(len(pairs), r, tanh(atanh(r) - half_width), tanh(atanh(r) + half_width))


def selection_advice(records: Sequence[UploadRecord], tables: Mapping[str, pd.DataFrame | None]) -> str | None:
    """Return advice on which file to select, if the best file by CV is not the best one on the public leaderboard.

    Return None if one file is the best in both, if fewer than two uploads have both scores, or if it is unknown whether
    higher or lower scores are better.

    Args:
        records: the uploads, the oldest first.
        tables: out-of-fold scores of each upload, by the id of its record; None for unknown scores.
    """
    candidates = [record for record in with_public_score(records) if record.score is not None]
    if len(candidates) < 2:
        return None
    direction = candidates[0].direction
    if direction is None:
        return None
    best_cv = max(candidates, key=lambda record: direction.rank(record.score or 0.0))
    best_public = max(candidates, key=lambda record: direction.rank(record.public or 0.0))
    if best_cv.sha256 == best_public.sha256 and best_cv.public == best_public.public:
        return None
    text = (
        f"best by CV score: the file of {format_time(best_cv)} (CV {best_cv.score:.4f}, public "
        f"{best_cv.public:.4f}); best by public score: the file of {format_time(best_public)} (CV "
        f"{best_public.score:.4f}, public {best_public.public:.4f})"
    )
    score_noise = public_score_noise(best_cv, best_public, (tables.get(best_cv.id), tables.get(best_public.id)))
    if score_noise is None:
        return text
    gap = abs((best_public.public or 0.0) - (best_cv.public or 0.0))
    if gap < score_noise.value:
        return f"{text}. Their public scores differ by less than the noise ({score_noise}), so choose by CV score"
    return f"{text}. Their public scores differ by more than the noise ({score_noise}), so submit both as final files"


def with_public_score(records: Sequence[UploadRecord]) -> list[UploadRecord]:
    """Return the records that have a public score."""
    return [record for record in records if record.public is not None]


def format_time(record: UploadRecord) -> str:
    """Return the time of a record as text, e.g. `2026-01-05 10:11`."""
    return record.time[:16].replace("T", " ")


def _half(ends: Mapping[str, float | None]) -> float | None:
    low, high = ends.get("low"), ends.get("high")
    return None if low is None or high is None else (high - low) / 2
