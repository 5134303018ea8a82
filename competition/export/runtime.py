"""Run the command `python bundle/run.py`, which predicts a mounted competition and writes the submission file."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from competition.context import Context
from competition.errors import MaskfoldError
from competition.export.runtime_cases import Bundle, TestCases, find_test_cases, write_empty_submission
from competition.export.runtime_prediction import (
    BundlePrediction,
    PredictionOptions,
    collect,
    count_voxels,
    empty_prediction,
    load_shard,
    parse_devices,
    predict_cases,
    save_result,
)
from competition.export.time_limit import TimeBudget, format_duration
from competition.io import ensure_writable, temporary_folder
from competition.submission.writer import MaskItem, ObjectsItem, write_submission
from competition.text import format_count, has_or_have

# Patterns of hints of `maskfold` that name YAML keys, with the option of this command that replaces each key.
HINTS = (
    (
        r"((leave|skip)( [a-z]+)+ with|set) competition\.on_bad_case=skip",
        "run with --go-on, which gives such cases empty masks",
    ),
    (r"competition\.root(=[^\s,;]*[^\s,;.])?", "--input"),
)


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Run a bundle; print a `MaskfoldError` to standard error.

    Args:
        folder: folder of the bundle.
        arguments: arguments of the command line; None for this process's arguments.

    Returns:
        The exit status: 0 if the command succeeded, 1 if it failed, 2 if the arguments are invalid.
    """
    started = time.monotonic()
    args = _parser().parse_args(arguments)
    try:
        _predict_all(folder, args, started)
    except MaskfoldError as error:
        print(f"error: {error.message} {_translate_hint(error.hint)}", file=sys.stderr)
        return error.status
    return 0


def _translate_hint(hint: str) -> str:
    """Replace the YAML keys in an error's hint by the corresponding options of `run.py`."""
    for pattern, option in HINTS:
        hint = re.sub(pattern, option, hint)
    return hint


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Predict the test cases of a competition, and write the submission file."
    )
    parser.add_argument(
        "--input", type=Path, required=True, help="the folder in which the host mounts the competition's data"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("submission.csv"), help="the CSV to write; default: submission.csv"
    )
    parser.add_argument("--hours", type=float, help="the time limit in hours; by default, there is no limit")
    parser.add_argument(
        "--devices", default="auto", help="auto, a number of GPUs, or a list such as cuda:0,cuda:1 or cpu,cpu"
    )
    parser.add_argument(
        "--onnx", action="store_true", help="predict with onnxruntime; the bundle must have been exported with --onnx"
    )
    parser.add_argument(
        "--go-on",
        action="store_true",
        help="give empty masks to a case that cannot be read or predicted, instead of stopping",
    )
    return parser


def _options(args: argparse.Namespace, started: float) -> PredictionOptions:
    if args.hours is not None and not args.hours > 0:
        raise MaskfoldError(
            f"--hours: found {args.hours:g}, expected a number above 0.", "Set for example --hours 9.", status=2
        )
    return PredictionOptions(None if args.hours is None else args.hours * 3600, started, args.go_on, args.onnx)


def _read_bundle(folder: Path, args: argparse.Namespace, device: str) -> Bundle:
    bundle = Bundle.read(folder, args.input, {"cpu": "cpu", "auto": None}.get(device, "cuda"))
    if args.onnx and not bundle.has_onnx:
        raise MaskfoldError(
            "--onnx requires ONNX files, but this bundle has none.",
            "Export the bundle again with --onnx, or run it without --onnx.",
            status=2,
        )
    return bundle


def _say(line: str) -> None:
    print(line, flush=True)


def _predict_all(folder: Path, args: argparse.Namespace, started: float) -> None:
    """Predict all test cases, in this process or in one process for each device, and write the submission file.

    Args:
        folder: folder of the bundle.
        args: arguments of the command line.
        started: value of `time.monotonic()` at the start of the command.
    """
    options, devices = _options(args, started), parse_devices(args.devices)
    hint = "Give the name of a file, for example --output submission.csv."
    if args.output.is_dir():
        raise MaskfoldError(f"--output: found the folder {args.output}, expected a CSV file.", hint, status=2)
    if args.output.suffix != ".csv":
        raise MaskfoldError(f"--output: found {args.output}, expected a file name that ends in .csv.", hint, status=2)
    ensure_writable(args.output.parent)
    bundle = _read_bundle(folder, args, devices[0])
    found = find_test_cases(bundle.ensemble.comp, bundle.id_suffix, Context(say=_say), args.go_on)
    if not found.test_set.rows:
        rows = write_empty_submission(found, args.output)
        _say(
            f"{args.output}: there is no test image, so every row of the sample submission has an empty mask "
            f"({format_count(rows, 'row')})"
        )
        return
    with temporary_folder(Path(tempfile.gettempdir()) / "maskfold-bundle") as scratch:
        _describe(bundle, found, devices)
        cases = (
            _predict_here(bundle, found, options, scratch)
            if devices in (["auto"], ["cpu"], ["cuda:0"])
            else _predict_in_processes(folder, found, options, devices, args, scratch)
        )
        missed: list[str] = []
        validation = write_submission(
            _masks(cases, found, missed), found.test_set.profile, args.output, sample=found.test_set.sample
        )
    _say(
        f"{args.output}: {format_count(validation.rows, 'row')}, {validation.empty} of them with an empty mask; the "
        f"file is valid; time needed: {format_duration(time.monotonic() - options.started)}"
    )
    if missed:
        _say(
            f"warning: {len(missed)} of {format_count(len(found.test_set.rows), 'case')} {has_or_have(len(missed))} no "
            f"prediction, and therefore empty masks ({missed[0]}{', …' if len(missed) > 1 else ''})"
        )


def _describe(bundle: Bundle, found: TestCases, devices: Sequence[str]) -> None:
    """Print one line with the devices, the precision, and the numbers of networks, runs and cases."""
    from competition.inference.precision import device_context

    context = device_context(bundle.ensemble.runs[0].exp)
    networks = sum(len(run.finished_members()) for run, _ in bundle.ensemble.active)
    device = f"{len(devices)} processes on {', '.join(devices)}" if len(devices) > 1 else str(context.device)
    runs = len(bundle.ensemble.active)
    _say(
        f"{format_count(networks, 'network')} of {format_count(runs, 'run')}, "
        f"{format_count(len(found.test_set), 'test case')}, "
        f"{device}, {context.precision}"
    )


def _predict_here(
    bundle: Bundle, found: TestCases, options: PredictionOptions, scratch: Path
) -> Iterator[BundlePrediction]:
    rows = found.test_set.rows
    predictions = predict_cases(bundle, rows, found.test_set.profile.confidence, scratch, options, _say)
    for number, predicted in enumerate(predictions):
        _print_progress(number, len(rows), predicted.reached)
        yield predicted


def _print_progress(number: int, cases: int, reached: bool) -> None:
    if reached and number and number % max(1, cases // 10) == 0:
        _say(f"{number} of {cases} cases")


def _predict_in_processes(
    folder: Path,
    found: TestCases,
    options: PredictionOptions,
    devices: Sequence[str],
    args: argparse.Namespace,
    scratch: Path,
) -> Iterator[BundlePrediction]:
    rows, sizes = found.test_set.rows, [count_voxels(row) for row in found.test_set.rows]
    deadline = TimeBudget([], [], [], options.limit, options.started).deadline
    confidence = found.test_set.profile.confidence
    predictions = collect(
        partial(_predict_shard, folder, args, options, scratch),
        devices[: len(rows)],
        rows,
        sizes,
        scratch,
        confidence,
        deadline,
    )
    lost, failed = 0, 0
    for number, (row, predicted) in enumerate(zip(rows, predictions, strict=True)):
        lost += predicted is None
        if predicted is not None and predicted.error is not None:
            failed += 1
            if failed == len(devices[: len(rows)]):  # every case of every process
                raise predicted.error
        _print_progress(number, len(rows), predicted is not None and predicted.reached)
        yield predicted if predicted is not None else empty_prediction(row, found.test_set.comp)
    if lost:
        _say(f"time limit: the time is over; {format_count(lost, 'unfinished case')} will get empty masks")


def _predict_shard(
    folder: Path,
    args: argparse.Namespace,
    options: PredictionOptions,
    scratch: Path,
    _worker: None,
    shard: int,
    device: str,
) -> None:
    """Predict the cases that are assigned to one process (its shard); called in each process.

    Args:
        folder: folder of the bundle.
        args: arguments of the command line.
        options: time limit and error handling.
        scratch: folder through which the processes exchange cases and masks.
        shard: index of the shard.
        device: device of the process.
    """
    cases, confidence = load_shard(scratch, shard)
    bundle = _read_bundle(folder, args, device)
    work = Path(tempfile.mkdtemp(prefix="work-", dir=scratch))
    rows = [row for _, row in cases]

    def say(line: str) -> None:
        _say(f"[{shard}] {line}")

    saved = 0
    try:
        predictions = predict_cases(bundle, rows, confidence, work, options, say)
        for (case, _), predicted in zip(cases, predictions, strict=True):
            save_result(scratch, case, predicted)
            saved += 1
    except MaskfoldError as error:
        if not options.continue_on_error:
            raise
        # Every case of this process failed. Only the main process knows whether those of the others failed too.
        say(f"note: {error.message} The remaining cases of this process get empty masks.")
        for case, row in cases[saved:]:
            last = error if row is rows[-1] else None
            save_result(scratch, case, empty_prediction(row, bundle.ensemble.comp)._replace(error=last))


def _masks(cases: Iterator[BundlePrediction], found: TestCases, missed: list[str]) -> Iterator[MaskItem | ObjectsItem]:
    """Yield the masks of all cases for `write_submission`.

    Args:
        cases: the predictions of the cases.
        found: the test cases.
        missed: list to which the ids of cases that were not predicted are appended.
    """
    for predicted in cases:
        if not predicted.reached:
            missed.append(str(predicted.row.id))
        yield from found.test_set.masks(predicted.row, predicted.outcome, predicted.probabilities)
    yield from found.empty_masks()
