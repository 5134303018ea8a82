"""Measure the time to write a picture's objects as rows of a submission, and to check the rows.

    python benchmarks/objects.py [--smallest]

The script compares three ways to encode one row per object; the first two must write the same bytes:

* labels: call `write_submission` with one `ObjectsItem`, i.e. with a label image of all objects;
* masks: call `write_submission` with a mask for each object;
* plain: write no file, but encode a mask for each object, decode the text, and compare the masks, as in a notebook.

The last column is the time that `validate_submission` needs per row of the finished file. Times are processor times.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from competition.config.profiles import PROFILES
from competition.rle import decode, encode
from competition.submission.validate import validate_submission
from competition.submission.writer import ObjectsItem, write_submission

SIZES = {256: 40, 1024: 615, 2048: 2000}  # pixels along each axis: objects
MOST_BY_MASKS = 1000  # maximum number of objects for which `masks` and `plain` are measured; more would take minutes


def discs(size: int, count: int) -> NDArray[np.int32]:
    """Return a label image (size, size) int32 with about `count` discs on a grid, which have the labels 1, 2, …."""
    labels = np.zeros((size, size), np.int32)
    step = size // int(np.ceil(np.sqrt(count)))
    radius = max(1, step // 3)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = y * y + x * x <= radius * radius
    number = 0
    for top in range(0, size - 2 * radius - 1, step):
        for left in range(0, size - 2 * radius - 1, step):
            number += 1
            labels[top : top + 2 * radius + 1, left : left + 2 * radius + 1][disc] = number
    return labels


def seconds(function: Callable[[], object]) -> float:
    """Call a function, and return the processor time in seconds."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    """Print the times to write and to check the objects, one line per size of the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smallest", action="store_true", help="only the smallest size")
    sizes = dict(list(SIZES.items())[:1]) if parser.parse_args().smallest else SIZES
    profile = PROFILES["dsb2018"]
    print(f"{'size':>10} {'objects':>8} {'labels':>9} {'masks':>9} {'plain':>9}  ms   {'check':>7} µs a row")
    for size, count in sizes.items():
        labels = discs(size, count)
        numbers = np.unique(labels[labels != 0]).tolist()

        def plain(labels: NDArray[np.int32] = labels, numbers: list[int] = numbers) -> None:
            for number in numbers:
                mask = labels == number
                assert np.array_equal(decode(encode(mask), mask.shape), mask)

        with tempfile.TemporaryDirectory() as folder:
            new, old = Path(folder) / "labels.csv", Path(folder) / "masks.csv"
            item = [ObjectsItem("a", None, labels)]
            times = [seconds(lambda new=new, item=item: write_submission(item, profile, new))]  # type: ignore[misc]
            if len(numbers) <= MOST_BY_MASKS:
                masks = (("a", None, labels == number) for number in numbers)
                times.append(seconds(lambda old=old, masks=masks: write_submission(masks, profile, old)))  # type: ignore[misc]
                times.append(seconds(plain))
                assert new.read_bytes() == old.read_bytes()
            shapes: dict[str, tuple[int, ...]] = {"a": labels.shape}
            check = seconds(lambda new=new, shapes=shapes: validate_submission(new, profile, None, shapes))  # type: ignore[misc]
        row = " ".join(f"{1e3 * value:9.1f}" for value in times) + " " * (10 * (3 - len(times)))
        print(f"{size:>5}x{size:<4} {len(numbers):8d} {row}       {1e6 * check / len(numbers):7.1f}")


if __name__ == "__main__":
    main()
