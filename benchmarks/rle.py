"""Compare the time of RLE encoding and decoding with a Kaggle notebook and pycocotools: `python benchmarks/rle.py`.

Each implementation encodes the run lengths of a C-ordered mask, column by column, to text, and decodes the text:

* maskfold: `competition.rle`, with pairs of start and length;
* kaggle: the code that most Kaggle notebooks copy, with pairs of start and length;
* pycocotools: COCO's compressed text, so that no numbers are formatted. The time includes the copy of the mask in
  Fortran order and `decode("ascii")`.

The implementations alternate, so that other load slows all of them. The printed times are medians. The column `ratio`
has Maskfold's time divided by that of the fastest alternative. The last column is Maskfold's peak of additional memory
in bytes per pixel, including the result. The exit status is 1 if a time or memory figure exceeds the limit in this
script.
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
from timing import Ratio, compare

from competition.rle import decode, encode
from competition.rle_text import RleFormat

SIZES = {(256, 1600): 201, (1024, 1024): 101, (8192, 8192): 5}  # shape: rounds
LARGE_SPEEDUP = 6.0  # minimum speed-up over the fastest alternative when a mask of 8192² pixels is encoded
MAXIMUM_RATIO = 1.05  # maximum ratio to the time of the fastest alternative, in all other comparisons
BYTES_PER_PIXEL = 3.0  # maximum peak of additional memory

Mask = NDArray[np.bool_]
FORMAT = RleFormat(order="column", base=1)


def blobs(height: int, width: int, seed: int = 0) -> Mask:
    """Return a mask of smooth blobs that cover about 10 % of the image; 8192² pixels have about 100,000 runs."""
    noise = np.random.default_rng(seed).standard_normal((height, width), dtype=np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 24.0)
    return np.asarray(smooth > np.quantile(smooth, 0.9))


def kaggle_encode(mask: Mask) -> str:
    """Encode a mask like `mask2rle` of https://www.kaggle.com/code/paulorzp/rle-functions-run-lenght-encode-decode."""
    pixels = mask.T.flatten()
    pixels = np.concatenate([[0], pixels, [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def kaggle_decode(text: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode a mask like `rle2mask` of the web page that `kaggle_encode` names."""
    values = text.split()
    starts, lengths = (np.asarray(x, dtype=int) for x in (values[0:][::2], values[1:][::2]))
    starts -= 1
    ends = starts + lengths
    flat = np.zeros(shape[0] * shape[1], dtype=np.uint8)
    for low, high in zip(starts, ends, strict=True):
        flat[low:high] = 1
    return flat.reshape(shape[::-1]).T


def coco_encode(mask: Mask) -> str:
    """Encode a mask with pycocotools as COCO's compressed counts."""
    return str(coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode("ascii"))


def coco_decode(text: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode COCO's compressed counts with pycocotools."""
    return np.asarray(coco.decode({"size": list(shape), "counts": text.encode("ascii")}))


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], float]:
    """Call functions in alternation, and measure their wall times.

    Returns:
        Median milliseconds of each function, and the median ratio of the first function's time to that of the fastest
        other function.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_number:  # the first round is a warm-up
                times[name].append((time.perf_counter() - start) * 1e3)
    middle = {name: statistics.median(values) for name, values in times.items()}
    first, *others = times
    fastest = min(others, key=middle.__getitem__)
    ratios = [numerator / denominator for numerator, denominator in zip(times[first], times[fastest], strict=True)]
    return middle, statistics.median(ratios)


def peak_bytes(function: Callable[[], object]) -> int:
    """Return the peak in bytes of the memory that Python and NumPy allocate during a call, including its result."""
    gc.collect()
    tracemalloc.start()
    result = function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del result
    return peak


def ratios(small: bool) -> list[Ratio]:
    """Return the rows for the table of `all.py`: times to encode and to decode run lengths.

    Args:
        small: whether to use only the smallest mask and two rounds.
    """
    rows = []
    for shape, rounds in list(SIZES.items())[: 1 if small else None]:
        mask = blobs(*shape)
        text, counts = kaggle_encode(mask), coco_encode(mask)
        subjects: dict[str, dict[str, Callable[[], object]]] = {
            "encoding": {
                "Maskfold": partial(encode, mask, FORMAT),
                "Kaggle's snippet": partial(kaggle_encode, mask),
                "pycocotools": partial(coco_encode, mask),
            },
            "decoding": {
                "Maskfold": partial(decode, text, shape, FORMAT),
                "Kaggle's snippet": partial(kaggle_decode, text, shape),
                "pycocotools": partial(coco_decode, counts, shape),
            },
        }
        for subject, functions in subjects.items():
            name = f"{subject} a mask of {shape[0]}×{shape[1]} as run lengths"
            rows += compare(name, functions, 2 if small else min(rounds, 31))
    return rows


def main() -> int:
    """Print the times to encode and to decode, one line per mask size and direction.

    Returns:
        The exit status: 1 if a time or memory figure exceeds its limit, otherwise 0.

    Raises:
        AssertionError: the texts of the implementations differ.
    """
    print(f"{'size':>11} {'runs':>7} {'':6} {'maskfold':>9} {'kaggle':>9} {'coco':>9}  ms   ratio  bytes/pixel")
    missed = []
    for shape, rounds in SIZES.items():
        mask = blobs(*shape)
        text, counts = kaggle_encode(mask), coco_encode(mask)
        if encode(mask, FORMAT) != text or encode(mask, RleFormat(container="coco")) != counts:
            raise AssertionError("the implementations differ")
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
        for direction, functions in directions.items():
            middle, ratio = medians(functions, rounds)
            memory = peak_bytes(functions["maskfold"]) / mask.size
            line = " ".join(f"{value:9.3f}" for value in middle.values())
            name = f"{shape[0]}x{shape[1]}"
            print(f"{name:>11} {text.count(' ') // 2 + 1:7d} {direction} {line}      {ratio:6.3f} {memory:8.2f}")
            maximum = 1 / LARGE_SPEEDUP if (direction, name) == ("encode", "8192x8192") else MAXIMUM_RATIO
            missed += [f"{name} {direction}: found ratio {ratio:.3f}, expected {maximum:.3f}"] * (ratio > maximum)
            missed += [f"{name} {direction}: {memory:.2f} bytes per pixel"] * (memory > BYTES_PER_PIXEL)
    print("\n".join(missed) if missed else "all requirements met")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
