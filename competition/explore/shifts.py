"""Find differences between training and test cases: sizes, spacings and intensities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from competition.explore.types import CaseStats, Findings

SIGNIFICANCE = 0.01  # probability of a false alarm in any measure; each measure gets an equal part
MIN_DISTANCE = 0.3  # Kolmogorov-Smirnov distance below which a shift is ignored
MIN_CASES = 5  # minimum number of values in each split


@dataclass(frozen=True)
class DistributionShift:
    """Hold the comparison of one measure between training and test cases.

    Attributes:
        measure: name of the measure.
        train_median: median over training cases.
        test_median: median over test cases.
        distance: Kolmogorov-Smirnov distance, 0 to 1.
        p_value: p-value of the distance.
        significant: whether the distance is large enough, and the p-value small enough, for a remark.
    """

    measure: str
    train_median: float
    test_median: float
    distance: float
    p_value: float
    significant: bool


def find_shifts(cases: Sequence[CaseStats], findings: Findings) -> list[DistributionShift]:
    """Compare sizes, spacings and intensities between training and test cases.

    Each measure has one value per case. A remark is added for each significant difference.
    """
    shifts = []
    all_measures = get_measures(cases)
    for name, get in all_measures.items():
        values = {
            split: [value for case in cases if case.split == split and (value := get(case)) is not None]
            for split in ("train", "test")
        }
        if min(map(len, values.values())) >= MIN_CASES:
            shifts.append(_compare(name, values["train"], values["test"], SIGNIFICANCE / len(all_measures)))
    for shift in shifts:
        if shift.significant:
            if shift.test_median == shift.train_median:
                change = "distributed differently"
            else:
                change = "greater" if shift.test_median > shift.train_median else "smaller"
            findings.add_remark(
                "shift",
                "",
                "",
                f"The test cases differ from the training cases: their {shift.measure} is {change} (median "
                f"{shift.test_median:.4g} in test and {shift.train_median:.4g} in training; Kolmogorov-Smirnov "
                f"distance {shift.distance:.2f}, p = {shift.p_value:.1g}).",
                "Expect a lower score on the test set than in cross-validation. Stronger augmentation may help.",
            )
    return shifts


def get_measures(cases: Sequence[CaseStats]) -> dict[str, Callable[[CaseStats], float | None]]:
    """Return the measures to compare, by name.

    Each measure is a function that returns a number for a case, or None if the case has no value of the measure.
    """
    first = next((case for case in cases if case.shape is not None), None)
    functions: dict[str, Callable[[CaseStats], float | None]] = {}
    if first is None or first.shape is None:
        return functions
    for axis in range(len(first.shape)):
        functions[f"size along axis {axis}"] = lambda case, axis=axis: case.shape and float(case.shape[axis])  # type: ignore[misc]
        if any(case.spacing and case.spacing[axis] != 1 for case in cases):
            functions[f"spacing along axis {axis}"] = lambda case, axis=axis: case.spacing and case.spacing[axis]  # type: ignore[misc]
    for name in dict.fromkeys(channel.name for case in cases for channel in case.stats or []):
        subject = "image" if name == "image" else f"channel {name}"
        for label, key in (("brightness", "mean"), ("contrast", "std")):
            functions[f"{label} of {subject} ({key})"] = _channel_measure(name, key)
    return functions


def _channel_measure(name: str, key: str) -> Callable[[CaseStats], float | None]:
    def get(case: CaseStats) -> float | None:
        return next((float(getattr(channel, key)) for channel in case.stats or [] if channel.name == name), None)

    return get


def _compare(measure: str, train: list[float], test: list[float], max_p: float) -> DistributionShift:
    from scipy.stats import ks_2samp

    result = ks_2samp(train, test)
    distance, p_value = float(result.statistic), float(result.pvalue)
    return DistributionShift(
        measure, median(train), median(test), distance, p_value, p_value < max_p and distance >= MIN_DISTANCE
    )
