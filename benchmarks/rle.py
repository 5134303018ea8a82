"""Times the run-length codec beside the two that everybody uses: `python benchmarks/rle.py`.

Contenders, each from a C-ordered mask to text and back, column by column:

* maskfold: `competition.rle`, to pairs;
* kaggle: the kernel snippet that most notebooks carry, to pairs;
* pycocotools: its Fortran copy, its encoder, and `decode("ascii")` to its own compressed text (which saves it the
  writing of numbers).

They take turns, so that a busy machine slows them all alike; the printed times are medians. The last columns are
maskfold's time divided by the faster rival's, and the peak of extra memory in bytes per pixel, the result included.
The exit status is 1 when a bar below is missed.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from competition.rle import RleFormat, decode, encode

SIZES = {(256, 1600): 201, (1024, 1024): 101, (8192, 8192): 5}  # shape: rounds
FASTER_WHEN_LARGE = 6.0  # times faster than both rivals at encoding 8192²
NEVER_SLOWER = 1.05  # times the faster rival's time elsewhere
BYTES_PER_PIXEL = 3.0

Mask = NDArray[np.bool_]
FORMAT = RleFormat(order="column", base=1)


def blobs(height: int, width: int, seed: int = 0) -> Mask:
    """Smooth blobs over about a tenth of the picture; about 100,000 runs at 8192²."""
    noise = np.random.default_rng(seed).standard_normal((height, width), dtype=np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 24.0)
    return np.asarray(smooth > np.quantile(smooth, 0.9))


def kaggle_encode(mask: Mask) -> str:
    """https://www.kaggle.com/code/paulorzp/rle-functions-run-lenght-encode-decode (`mask2rle`)."""
    pixels = mask.T.flatten()
    pixels = np.concatenate([[0], pixels, [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def kaggle_decode(text: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The same page's `rle2mask`."""
    words = text.split()
    starts, lengths = (np.asarray(x, dtype=int) for x in (words[0:][::2], words[1:][::2]))
    starts -= 1
    ends = starts + lengths
    flat = np.zeros(shape[0] * shape[1], dtype=np.uint8)
    for low, high in zip(starts, ends, strict=True):
        flat[low:high] = 1
    return flat.reshape(shape[::-1]).T


def coco_encode(mask: Mask) -> str:
    """pycocotools to its own text."""
    return str(coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode("ascii"))


def coco_decode(text: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """pycocotools from its own text."""
    return np.asarray(coco.decode({"size": list(shape), "counts": text.encode("ascii")}))


def medians(contenders: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], float]:
    """Median milliseconds of each, taking turns; and the median of the first's ratio to the fastest of the others."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            begin = time.perf_counter()
            work()
            if turn:  # the first turn warms up
                times[name].append((time.perf_counter() - begin) * 1e3)
    middle = {name: statistics.median(values) for name, values in times.items()}
    first, *others = times
    fastest = min(others, key=middle.__getitem__)
    ratios = [ours / theirs for ours, theirs in zip(times[first], times[fastest], strict=True)]
    return middle, statistics.median(ratios)


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak of memory that Python and NumPy take during a call, its result included."""
    gc.collect()
    tracemalloc.start()
    kept = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del kept
    return peak


def main() -> int:
    """Prints one line per size and direction."""
    print(f"{'size':>11} {'runs':>7} {'':6} {'maskfold':>9} {'kaggle':>9} {'coco':>9}  ms   ratio  bytes/pixel")
    missed = []
    for shape, rounds in SIZES.items():
        mask = blobs(*shape)
        text, counts = kaggle_encode(mask), coco_encode(mask)
        if encode(mask, FORMAT) != text or encode(mask, RleFormat(container="coco")) != counts:
            raise AssertionError("the contenders disagree")
        directions: dict[str, dict[str, Callable[[], object]]] = {
            "encode": {
                "maskfold": partial(encode, mask, FORMAT),
                "kaggle": partial(kaggle_encode, mask),
                "coco": partial(coco_encode, mask),
            },
            "decode": {
                "maskfold": partial(decode, text, shape, FORMAT),
                "kaggle": partial(kaggle_decode, text, shape),
                "coco": partial(coco_decode, counts, shape),
            },
        }
        for direction, contenders in directions.items():
            middle, ratio = medians(contenders, rounds)
            memory = peak_bytes(contenders["maskfold"]) / mask.size
            line = " ".join(f"{value:9.3f}" for value in middle.values())
            name = f"{shape[0]}x{shape[1]}"
            print(f"{name:>11} {text.count(' ') // 2 + 1:7d} {direction} {line}      {ratio:6.3f} {memory:8.2f}")
            bar = 1 / FASTER_WHEN_LARGE if (direction, name) == ("encode", "8192x8192") else NEVER_SLOWER
            missed += [f"{name} {direction}: ratio {ratio:.3f} > {bar:.3f}"] * (ratio > bar)
            missed += [f"{name} {direction}: {memory:.2f} bytes per pixel"] * (memory > BYTES_PER_PIXEL)
    print("\n".join(missed) if missed else "every bar is met")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
