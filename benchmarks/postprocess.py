"""Time of the two slowest post-processing steps compared with scipy: `python benchmarks/postprocess.py`.

Both implementations receive the same mask of smooth blobs and must return the same result:

* largest: the largest component, with 8 or 26 neighbours. maskfold: `keep_largest`; scipy: `label`, a count of the
  labels, and a comparison with the largest, as in common notebooks.
* holes: maskfold: `fill_holes`; scipy: `binary_fill_holes`.

They alternate, so other load slows both. The printed times are medians; the last column is the median of scipy's time
divided by maskfold's in the same round. The exit status is 1 if a required speed-up below is missed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from competition.postprocessing.mask_operations import fill_holes, keep_largest

SIZES = {(192, 256, 256): 9, (1024, 1024): 101}  # shape: rounds
MINIMUM_SPEEDUP = {"largest": 1.3, "holes": 2.0}

Mask = NDArray[np.bool_]


def blobs(shape: tuple[int, ...], seed: int = 0) -> Mask:
    """Return smooth blobs on 40 % of the image, with small holes in 5 % of them."""
    rng = np.random.default_rng(seed)
    coarse, fine = (
        ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma) for sigma in (6.0, 1.5)
    )
    return np.asarray((coarse > np.quantile(coarse, 0.6)) & (fine < np.quantile(fine, 0.95)))


def scipy_largest(mask: Mask) -> Mask:
    """Return the largest component; of equal ones the first."""
    labels, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


STEPS: dict[str, tuple[Callable[[Mask], Mask], Callable[[Mask], Mask]]] = {
    "largest": (lambda mask: keep_largest(mask, 1), scipy_largest),
    "holes": (fill_holes, ndimage.binary_fill_holes),
}


def medians(
    maskfold: Callable[[Mask], Mask], scipy: Callable[[Mask], Mask], mask: Mask, rounds: int
) -> tuple[float, float, float]:
    """Return the median milliseconds of both, called in alternation, and the median of scipy / maskfold."""
    times: list[tuple[float, float]] = []
    for round_number in range(rounds + 1):
        start = time.perf_counter()
        maskfold(mask)
        middle = time.perf_counter()
        scipy(mask)
        if round_number:  # the first round is a warm-up
            times.append(((middle - start) * 1e3, (time.perf_counter() - middle) * 1e3))
    maskfold_times, scipy_times = zip(*times, strict=True)
    ratio = statistics.median(scipy_time / maskfold_time for maskfold_time, scipy_time in times)
    return statistics.median(maskfold_times), statistics.median(scipy_times), ratio


def main() -> int:
    """Print one line per size and step."""
    print(f"{'size':>11} {'step':>8} {'maskfold':>9} {'scipy':>9}  ms   times faster")
    missed = []
    for shape, rounds in SIZES.items():
        mask = blobs(shape)
        name = "x".join(map(str, shape))
        for step, (maskfold, scipy) in STEPS.items():
            result = maskfold(mask)
            if not np.array_equal(result, scipy(mask)) or np.array_equal(result, mask):
                raise AssertionError(f"{name} {step}: the results differ, or the step changes nothing")
            maskfold_time, scipy_time, ratio = medians(maskfold, scipy, mask, rounds)
            print(f"{name:>11} {step:>8} {maskfold_time:9.2f} {scipy_time:9.2f}      {ratio:12.2f}")
            minimum = MINIMUM_SPEEDUP[step]
            missed += [f"{name} {step}: found {ratio:.2f} times faster, expected {minimum}"] * (ratio < minimum)
    print("\n".join(missed) if missed else "all requirements met")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
