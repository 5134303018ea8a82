"""Times the two costly steps of post-processing beside scipy's: `python benchmarks/postprocess.py`.

Both contenders take the same mask of smooth blobs and must return the same one:

* largest: the largest component, at 8 or 26 neighbours. maskfold: `keep_largest`; scipy: `label`, a count of the
  labels, and a comparison with the largest, as notebooks have it.
* holes: maskfold: `fill_holes`; scipy: `binary_fill_holes`.

They take turns, so that a busy machine slows both alike; the printed times are medians, and the last column is the
median of scipy's time divided by maskfold's in the same turn. The exit status is 1 when a bar below is missed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from competition.submission.steps import fill_holes, keep_largest

SIZES = {(192, 256, 256): 9, (1024, 1024): 101}  # shape: rounds
TIMES_FASTER = {"largest": 1.3, "holes": 2.0}

Mask = NDArray[np.bool_]


def blobs(shape: tuple[int, ...], seed: int = 0) -> Mask:
    """Smooth blobs over four tenths of the picture, with small holes over a twentieth of them."""
    rng = np.random.default_rng(seed)
    coarse, fine = (ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), one) for one in (6.0, 1.5))
    return np.asarray((coarse > np.quantile(coarse, 0.6)) & (fine < np.quantile(fine, 0.95)))


def scipy_largest(mask: Mask) -> Mask:
    """The largest component, the first of equals."""
    labels, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


STEPS: dict[str, tuple[Callable[[Mask], Mask], Callable[[Mask], Mask]]] = {
    "largest": (lambda mask: keep_largest(mask, 1), scipy_largest),
    "holes": (fill_holes, ndimage.binary_fill_holes),
}


def medians(
    ours: Callable[[Mask], Mask], theirs: Callable[[Mask], Mask], mask: Mask, rounds: int
) -> tuple[float, float, float]:
    """Median milliseconds of both, taking turns, and the median of their ratio, theirs to ours."""
    times: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        begin = time.perf_counter()
        ours(mask)
        middle = time.perf_counter()
        theirs(mask)
        if turn:  # the first turn warms up
            times.append(((middle - begin) * 1e3, (time.perf_counter() - middle) * 1e3))
    mine, others = zip(*times, strict=True)
    return statistics.median(mine), statistics.median(others), statistics.median(b / a for a, b in times)


def main() -> int:
    """Prints one line per size and step."""
    print(f"{'size':>11} {'step':>8} {'maskfold':>9} {'scipy':>9}  ms   times faster")
    missed = []
    for shape, rounds in SIZES.items():
        mask = blobs(shape)
        name = "x".join(map(str, shape))
        for step, (ours, theirs) in STEPS.items():
            result = ours(mask)
            if not np.array_equal(result, theirs(mask)) or np.array_equal(result, mask):
                raise AssertionError(f"{name} {step}: the contenders disagree, or there is nothing to do")
            mine, others, ratio = medians(ours, theirs, mask, rounds)
            print(f"{name:>11} {step:>8} {mine:9.2f} {others:9.2f}      {ratio:12.2f}")
            bar = TIMES_FASTER[step]
            missed += [f"{name} {step}: {ratio:.2f} times as fast, not {bar}"] * (ratio < bar)
    print("\n".join(missed) if missed else "every bar is met")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
