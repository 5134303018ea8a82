"""`python bundle/run.py`: from a mounted competition to the host's file."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from competition.config import MaskfoldError
from competition.data.files import writable
from competition.submission.offline.bundle import Bundle
from competition.submission.offline.cases import FoundSet, find_cases, write_without_images
from competition.submission.offline.hours import Watch, minutes
from competition.submission.offline.predict import Order, Predicted, empty, predict, voxels
from competition.submission.offline.shards import devices_of, gather, mine, put
from competition.submission.writer import Masked, write_submission

# Cures in this command's words: patterns, and the option that `key=value` of `maskfold` is here.
CURES = (
    (
        r"(leave (the case|such cases|such rows) out with|set) competition\.on_bad_case=skip",
        "run with --go-on, which gives such cases empty masks",
    ),
    (r"competition\.root(=[^\s,;]*[^\s,;.])?", "--input"),
)


def main(folder: Path, words: Sequence[str] | None = None) -> int:
    """Runs a bundle; errors a user can cause are two sentences on standard error.

    Args:
        folder: the bundle.
        words: the command line; None: that of this process.

    Returns:
        The exit status: 0 done, 1 the work failed, 2 the words are wrong.
    """
    given = list(sys.argv[1:] if words is None else words)
    wanted = _parser().parse_args(given)
    try:
        if wanted.shard is not None:
            _one_shard(folder, wanted)
        else:
            _whole(folder, wanted, given)
    except MaskfoldError as error:
        print(f"error: {error.wrong} {_here(error.cure)}", file=sys.stderr)
        return error.status
    return 0


def _here(cure: str) -> str:
    """A cure in this command's words: what is `key=value` for `maskfold` is an option here."""
    for pattern, words in CURES:
        cure = re.sub(pattern, words, cure)
    return cure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Predicts the test cases of a competition, and writes the host's file."
    )
    parser.add_argument("--input", type=Path, required=True, help="the competition's folder, as it is mounted")
    parser.add_argument("--output", type=Path, default=Path("submission.csv"), help="the CSV; default submission.csv")
    parser.add_argument("--hours", type=float, help="the time limit; without it nothing is left out")
    parser.add_argument("--devices", default="auto", help="auto, a number of GPUs, or a list: cuda:0,cuda:1 or cpu,cpu")
    parser.add_argument(
        "--onnx", action="store_true", help="by onnxruntime; the bundle must have been exported with --onnx"
    )
    parser.add_argument(
        "--go-on",
        action="store_true",
        help="a case that cannot be read or predicted gets empty masks instead of ending everything",
    )
    parser.add_argument("--shard", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=time.monotonic(), help=argparse.SUPPRESS)
    return parser


def _order(wanted: argparse.Namespace) -> Order:
    if wanted.hours is not None and not wanted.hours > 0:
        raise MaskfoldError(f"--hours {wanted.hours:g} is no time.", "Give a number above 0, e.g. --hours 9.", status=2)
    return Order(None if wanted.hours is None else wanted.hours * 3600, wanted.started, wanted.go_on, wanted.onnx)


def _read(folder: Path, wanted: argparse.Namespace, device: str) -> Bundle:
    bundle = Bundle.read(folder, wanted.input, {"cpu": "cpu", "auto": None}.get(device, "cuda"))
    if wanted.onnx and not bundle.onnx:
        raise MaskfoldError(
            "--onnx, but the bundle holds no ONNX files.", "Export it with --onnx, or run without.", status=2
        )
    return bundle


def _say(line: str) -> None:
    print(line, flush=True)


def _whole(folder: Path, wanted: argparse.Namespace, given: Sequence[str]) -> None:
    """All cases, in this process or shared out."""
    order, devices = _order(wanted), devices_of(wanted.devices)
    if wanted.output.suffix != ".csv" or wanted.output.is_dir():
        raise MaskfoldError(
            f"{wanted.output} is not the name of a CSV.", "Give --output a name that ends in .csv.", status=2
        )
    writable(wanted.output.parent)
    bundle = _read(folder, wanted, devices[0])
    found = find_cases(bundle.blend.comp, bundle.ending, _say)
    if not found.tests.rows:
        rows = write_without_images(found, wanted.output)
        _say(f"{wanted.output}: no test image is there, so it holds the {rows} rows of the sample with empty masks")
        return
    scratch = Path(tempfile.mkdtemp(prefix="maskfold-"))
    try:
        _describe(bundle, found, devices)
        cases = (
            _alone(bundle, found, order, scratch)
            if devices in (["auto"], ["cpu"], ["cuda:0"])
            else _shared(folder, found, order, devices, [*given, "--started", str(order.started)], scratch)
        )
        missed: list[str] = []
        verdict = write_submission(
            _masks(cases, found, missed), found.tests.profile, wanted.output, sample=found.tests.sample
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _say(
        f"{wanted.output}: {verdict.rows} rows, {verdict.empty} of them empty; valid; {minutes(time.monotonic() - order.started)}"
    )
    if missed:
        _say(
            f"warning: {len(missed)} of {len(found.tests.rows)} cases were not predicted and have empty masks ({missed[0]}, …)"
        )


def _describe(bundle: Bundle, found: FoundSet, devices: Sequence[str]) -> None:
    from competition.inference.place import place_of
    from competition.training.find import finished

    place = place_of(bundle.blend.runs[0].exp)
    networks = sum(len(finished(run)) for run, _ in bundle.blend.active)
    where = f"{len(devices)} processes on {', '.join(devices)}" if len(devices) > 1 else str(place.device)
    runs = len(bundle.blend.active)
    _say(
        f"{networks} networks of {runs} run{'s' * (runs > 1)}, {len(found.tests)} test cases, {where}, {place.precision}"
    )


def _alone(bundle: Bundle, found: FoundSet, order: Order, scratch: Path) -> Iterator[Predicted]:
    rows = found.tests.rows
    for number, one in enumerate(predict(bundle, rows, found.tests.profile.confidence, scratch, order, _say)):
        _count(number, len(rows), one.reached)
        yield one


def _count(number: int, cases: int, reached: bool) -> None:
    if reached and number and number % max(1, cases // 10) == 0:
        _say(f"{number} of {cases} cases")


def _shared(
    folder: Path, found: FoundSet, order: Order, devices: Sequence[str], words: Sequence[str], scratch: Path
) -> Iterator[Predicted]:
    rows, sizes = found.tests.rows, [voxels(row) for row in found.tests.rows]
    deadline = Watch([], [], [], order.limit, order.started).deadline
    lost = 0
    brought = gather(
        folder / "run.py", words, devices[: len(rows)], rows, sizes, scratch, found.tests.profile.confidence, deadline
    )
    for number, (row, one) in enumerate(zip(rows, brought, strict=True)):
        lost += one is None
        _count(number, len(rows), one is not None and one.reached)
        yield one if one is not None else empty(row, found.tests.comp)
    if lost:
        _say(f"time: over; {lost} cases that no process brought get empty masks")


def _one_shard(folder: Path, wanted: argparse.Namespace) -> None:
    """The cases of one process among several."""
    from competition.training.ranks import die_with

    die_with(os.getppid())
    cases, confidence = mine(wanted.scratch, wanted.shard)
    bundle, head = _read(folder, wanted, wanted.devices), f"[{wanted.shard}]"
    work = Path(tempfile.mkdtemp(prefix="work-", dir=wanted.scratch))
    found = predict(
        bundle, [row for _, row in cases], confidence, work, _order(wanted), lambda line: _say(f"{head} {line}")
    )
    for (place, _), one in zip(cases, found, strict=True):
        put(wanted.scratch, place, one)


def _masks(cases: Iterator[Predicted], found: FoundSet, missed: list[str]) -> Iterator[Masked]:
    """The masks of all cases; `missed` takes those that were not predicted."""
    for one in cases:
        if not one.reached:
            missed.append(str(one.row.id))
        yield from found.tests.masks(one.row, one.outcome, one.shown)
    yield from found.ghosts()
