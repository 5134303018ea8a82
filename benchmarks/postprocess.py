"""Compare the time of the two slowest post-processing steps with scipy: `python benchmarks/postprocess.py`.

Both implementations receive the same mask of smooth blobs and must return the same result:

* largest: return the largest component, with 8 (2D) or 26 (3D) neighbours. Maskfold has `keep_largest`. With scipy, as
  in common notebooks: call `label`, count the pixels of each label, and select those of the largest.
* holes: fill holes. Maskfold has `fill_holes`, scipy has `binary_fill_holes`.

For the table of `all.py`, the function `ratios` also measures cc3d's `largest_k`, and fill_voids and edt if they are
installed. It does not check that the results are equal, because fill_voids 2.1.2 also fills background at the edge of a
volume.

The implementations alternate, so that other load slows both. The printed times are medians. The last column is the
median of scipy's time divided by Maskfold's time in the same round. The exit status is 1 if one of these speed-ups is
lower than `MINIMUM_SPEEDUP`.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from timing import Ratio, compare, missing

from competition.postprocessing.mask_operations import background_distance, fill_holes, keep_largest

SIZES = {(192, 256, 256): 9, (1024, 1024): 101}  # shape: rounds
MINIMUM_SPEEDUP = {"largest": 1.3, "holes": 2.0}

Mask = NDArray[np.bool_]


def blobs(shape: tuple[int, ...], seed: int = 0) -> Mask:
    """Return a mask of smooth blobs that cover 40 % of the image, with small holes in 5 % of their area."""
    rng = np.random.default_rng(seed)
    coarse, fine = (
        ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma) for sigma in (6.0, 1.5)
    )
    return np.asarray((coarse > np.quantile(coarse, 0.6)) & (fine < np.quantile(fine, 0.95)))


def scipy_largest(mask: Mask) -> Mask:
    """Return the mask of the largest component; if several have the same size, that of the first."""
    labels, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


STEPS: dict[str, tuple[Callable[[Mask], Mask], Callable[[Mask], Mask]]] = {
    "largest": (lambda mask: keep_largest(mask, 1), scipy_largest),
    "holes": (fill_holes, ndimage.binary_fill_holes),
}


def ratios(small: bool) -> list[Ratio]:
    """Return the rows for the table of `all.py`: times of post-processing steps.

    Args:
        small: whether to use small masks and only two rounds.
    """
    import cc3d

    rows = []
    for shape in ((24, 32, 32), (96, 96)) if small else ((96, 128, 128), (1024, 1024)):
        mask, rounds, size = blobs(shape), 2 if small else 9, "×".join(map(str, shape))
        inner = np.pad(mask, 1)  # so that every pixel has a background
        rows += compare(
            f"largest component of {size}",
            {
                "Maskfold": lambda mask=mask: keep_largest(mask, 1),
                "scipy": lambda mask=mask: scipy_largest(mask),
                "cc3d largest_k": lambda mask=mask: cc3d.largest_k(mask, k=1, connectivity=8 if mask.ndim == 2 else 26),
            },
            rounds,
        )
        rows += _with_rival(
            f"holes of {size}",
            {
                "Maskfold": lambda mask=mask: fill_holes(mask),
                "scipy": lambda mask=mask: ndimage.binary_fill_holes(mask),
            },
            rounds,
            "fill_voids",
            lambda library, mask=mask: library.fill(mask),
        )
        rows += _with_rival(
            f"distance to the background of {size}",
            {
                "Maskfold": lambda inner=inner: background_distance(inner),
                "scipy": lambda inner=inner: ndimage.distance_transform_edt(inner),
            },
            rounds,
            "edt",
            lambda library, inner=inner: library.edt(inner),
        )
    return rows


def _with_rival(
    subject: str, functions: dict[str, Callable[[], object]], rounds: int, rival: str, call: Callable[[Any], object]
) -> list[Ratio]:
    """Compare the times of functions, also with a library if it is installed.

    Args:
        subject: what is computed.
        functions: functions to compare, by name; the first is Maskfold's.
        rounds: number of calls of each function.
        rival: name of the library.
        call: function that is called with the imported library and computes the same as `functions`.
    """
    try:
        library = importlib.import_module(rival)
    except ImportError:
        found = compare(subject, functions, rounds)
        return [*found, *missing(found, rival)]
    return compare(subject, {**functions, rival: lambda: call(library)}, rounds)


def medians(
    maskfold: Callable[[Mask], Mask], scipy: Callable[[Mask], Mask], mask: Mask, rounds: int
) -> tuple[float, float, float]:
    """Call both functions in alternation, and measure their wall times.

    Returns:
        Median milliseconds of Maskfold, those of scipy, and the median ratio of scipy's time to Maskfold's.
    """
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
    """Print the times of Maskfold and scipy, one line per mask size and step.

    Returns:
        The exit status: 1 if a speed-up is too small, otherwise 0.

    Raises:
        AssertionError: the results differ, or the step changes nothing.
    """
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
