"""Whether the test cases come from another distribution than the training cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from competition.data.explore.findings import Findings
from competition.data.explore.measured import Measured

CHANCE = 0.01  # of calling any shift where there is none, shared by all comparisons
LEAST = 0.3  # of the Kolmogorov-Smirnov distance: less is true perhaps, and small
FEWEST = 5  # cases on either side


@dataclass(frozen=True)
class Shift:
    """One measure of train against test cases.

    Attributes:
        what: the measure. train, test: its medians.
        distance: of Kolmogorov and Smirnov, 0 to 1: how far the two distributions are apart.
        chance: p-value of that distance.
    """

    what: str
    train: float
    test: float
    distance: float
    chance: float
    clear: bool


def find_shifts(cases: Sequence[Measured], findings: Findings) -> list[Shift]:
    """Compares sizes, spacings and intensities, one number a case; a clear difference is listed."""
    found = []
    wanted = measures(cases)
    for what, of in wanted.items():
        sides = {split: [value for case in cases if case.split == split and (value := of(case)) is not None]
                 for split in ("train", "test")}
        if min(map(len, sides.values())) >= FEWEST:
            found.append(_shift(what, sides["train"], sides["test"], CHANCE / len(wanted)))
    for shift in found:
        if shift.clear:
            more = "greater" if shift.test > shift.train else "smaller" if shift.test < shift.train else "differently spread"
            findings.remark("shift", "", "", f"The test cases differ from the training cases: their {shift.what} is {more} "
                            f"(median {shift.test:.4g} against {shift.train:.4g}; Kolmogorov-Smirnov distance "
                            f"{shift.distance:.2f}, p = {shift.chance:.1g}).",
                            "Expect less of the test set than cross-validation says; stronger augmentation of that kind helps.")
    return found


def measures(cases: Sequence[Measured]) -> dict[str, Callable[[Measured], float | None]]:
    """What is compared, and how it is read from a case."""
    first = next((case for case in cases if case.shape is not None), None)
    found: dict[str, Callable[[Measured], float | None]] = {}
    if first is None or first.shape is None:
        return found
    for axis in range(len(first.shape)):
        found[f"size along axis {axis}"] = lambda case, axis=axis: case.shape and float(case.shape[axis])  # type: ignore[misc]
        if any(case.spacing and case.spacing[axis] != 1 for case in cases):
            found[f"spacing along axis {axis}"] = lambda case, axis=axis: case.spacing and case.spacing[axis]  # type: ignore[misc]
    for name in dict.fromkeys(one.name for case in cases for one in case.values or []):
        for words, key in (("brightness", "mean"), ("contrast", "deviation")):
            found[f"{words} of {name} ({key})"] = _of_channel(name, key)
    return found


def _of_channel(name: str, key: str) -> Callable[[Measured], float | None]:
    def of(case: Measured) -> float | None:
        return next((float(getattr(one, key)) for one in case.values or [] if one.name == name), None)
    return of


def _shift(what: str, train: list[float], test: list[float], chance: float) -> Shift:
    from scipy.stats import ks_2samp

    result = ks_2samp(train, test)
    distance, p = float(result.statistic), float(result.pvalue)
    return Shift(what, median(train), median(test), distance, p, p < chance and distance >= LEAST)
