"""Cases shared out among processes, one for each device; each leaves its masks in a folder, in which they are found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from competition.config import MaskfoldError
from competition.data.files import write_whole
from competition.submission.offline.predict import Predicted
from competition.submission.postprocess import Outcome

ROWS = "rows.json"
GRACE = 20.0  # seconds after the deadline in which a process may still bring a case to its end


def deal(sizes: Sequence[int], shards: int) -> list[list[int]]:
    """Which cases each shard predicts: from the largest to the smallest, always to the one with the least so far.

    Args:
        sizes: of the cases.
        shards: how many.

    Returns:
        Places of cases in order, for each shard.
    """
    hands: list[list[int]] = [[] for _ in range(shards)]
    total = [0] * shards
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        least = min(range(shards), key=lambda shard: (total[shard], shard))
        hands[least].append(place)
        total[least] += sizes[place]
    return [sorted(hand) for hand in hands]


def devices_of(text: str) -> list[str]:
    """The devices that `--devices` names: `auto`, a number of GPUs, or a list such as `cuda:0,cuda:1` or `cpu,cpu`.

    Raises:
        MaskfoldError: status 2; it names something else, or a GPU that is not there.
    """
    import torch

    there = torch.cuda.device_count()
    if text == "auto":
        return [f"cuda:{index}" for index in range(there)] or ["auto"]
    names = [f"cuda:{index}" for index in range(int(text))] if text.isdigit() else text.split(",")
    for name in names:
        kind, _, index = name.partition(":")
        if not names or (name != "cpu" and not (kind == "cuda" and index.isdigit() and int(index) < there)):
            raise MaskfoldError(
                f"--devices {text} names {name}, and this machine has {there} GPUs.",
                "Write auto, a number of GPUs, or a list such as cuda:0,cuda:1 or cpu,cpu.",
                status=2,
            )
    if not names:
        raise MaskfoldError(f"--devices {text} names no device.", "Write auto, or a number from 1.", status=2)
    return names


def gather(
    script: Path,
    words: Sequence[str],
    devices: Sequence[str],
    rows: Sequence[Any],
    sizes: Sequence[int],
    folder: Path,
    confidence: bool,
    deadline: float | None,
) -> Iterator[Predicted | None]:
    """Starts a process for each device and gives the cases in order, as they come; None for one that never came.

    Args:
        script: the bundle's `run.py`.
        words: its arguments.
        devices: one process each.
        rows: rows of the case table.
        sizes: their voxels.
        folder: an empty one, for the masks on their way.
        confidence: whether the file has a confidence for each object.
        deadline: on `time.monotonic`; None: none.

    Raises:
        MaskfoldError: a process failed.
    """
    hands = deal(sizes, len(devices))
    shard_of = {place: shard for shard, hand in enumerate(hands) for place in hand}
    content = json.dumps(
        {"rows": [vars(row) for row in rows], "hands": hands, "confidence": confidence}, default=int
    ).encode()
    write_whole(folder / ROWS, lambda file: file.write(content), len(content))
    processes = [
        _start(script, [*words, "--shard", str(shard), "--scratch", str(folder)], device, len(devices))
        for shard, device in enumerate(devices)
    ]
    try:
        for place, row in enumerate(rows):
            yield _wait(folder, place, row, processes[shard_of[place]], deadline)
    finally:
        for process in processes:
            process.kill()  # all that it has to give lies in the folder; one that hangs may not listen to less
        for process in processes:
            process.wait()


def mine(folder: Path, shard: int) -> tuple[list[tuple[int, Any]], bool]:
    """The cases of a shard, with their places; and whether the file has a confidence for each object."""
    plain = json.loads((folder / ROWS).read_text(encoding="utf-8"))
    return [(place, SimpleNamespace(**plain["rows"][place])) for place in plain["hands"][shard]], plain["confidence"]


def put(folder: Path, place: int, found: Predicted) -> None:
    """Leaves a case's masks in the folder."""
    masks, objects = found.outcome.masks, found.outcome.objects
    arrays: dict[str, Any] = {
        "masks": np.packbits(masks),
        "shape": np.array(masks.shape),
        "reached": np.array(found.reached),
    }
    if objects is not None:
        arrays["objects"] = objects
    if found.shown is not None:
        arrays["shown"] = found.shown
    write_whole(folder / f"{place}.npz", lambda file: np.savez_compressed(file, **arrays))


def _start(script: Path, words: Sequence[str], device: str, count: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if device == "cpu":
        threads = max(1, (os.cpu_count() or 1) // count)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        name = "cpu"
    else:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        index = device.partition(":")[2]
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(index)] if visible else index
        name = "cuda:0"
    return subprocess.Popen([sys.executable, "-B", str(script), *words, "--devices", name], env=environment)


def _wait(
    folder: Path, place: int, row: Any, process: subprocess.Popen[bytes], deadline: float | None
) -> Predicted | None:
    path = folder / f"{place}.npz"
    while not path.exists():
        if process.poll() is not None and not path.exists():
            raise MaskfoldError(
                f"The process that predicts the case {row.id} ended with status {process.returncode}.",
                "Its own words are above; run with --devices cpu, or with one device, to see more.",
            )
        if deadline is not None and time.monotonic() > deadline + GRACE:
            return None
        time.sleep(0.05)
    with np.load(path, allow_pickle=False) as arrays:
        shape = tuple(arrays["shape"])
        masks = np.unpackbits(arrays["masks"], count=int(np.prod(shape))).astype(np.bool_).reshape(shape)
        found = Predicted(row, Outcome(masks, arrays.get("objects")), arrays.get("shown"), bool(arrays["reached"]))
    path.unlink()
    return found
