"""Read a bundle, find the test cases, and predict them; `competition.export.runtime` uses these functions.

A bundle predicts the test images that exist when it runs. In many competitions, the real test set is hidden: while the
notebook is written, the sample submission is empty or contains only dummy cases.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.config.experiment import Experiment
from competition.config.loading import load_experiment
from competition.config.postprocess import PostprocessConfig
from competition.config.profiles import Profile, profile_of
from competition.context import Context
from competition.data.cases import case_rows, case_table
from competition.data.patterns import unmatched_images
from competition.data.readers import strip_extension
from competition.ensembling.ensemble import EnsemblePredictor
from competition.errors import MaskfoldError
from competition.export.predictor import EXPERIMENT_FILE, adapt_to_machine, empty_case_table, folds_table
from competition.export.time_limit import Clock, DegradableEnsemble, TimeBudget
from competition.io import atomic_write, ensure_writable, open_synced
from competition.postprocessing.case import CasePrediction
from competition.postprocessing.pipeline import postprocess
from competition.process import ProcessPool
from competition.runs.blend import Ensemble
from competition.runs.run import Run
from competition.submission.reader import IdLookup, RowKey, SampleSubmission, format_row, open_rows, read_sample
from competition.submission.testset import TestSet, add_suffix, row_names
from competition.submission.writer import MaskItem
from competition.text import format_count, join_or

BUNDLE_FILE, BUNDLE_FORMAT = "bundle.json", 1
ROWS_FILE = "rows.json"  # file with the cases of each process
GRACE_SECONDS = 20.0  # after the deadline, a process may finish its present case within this time (s)


# The bundle


@dataclass(frozen=True)
class Bundle:
    """Hold the content of a bundle, adapted to the folder in which the competition's data are mounted.

    Attributes:
        folder: folder of the bundle.
        ensemble: the runs of the bundle and their weights; the runs are in subfolders of the bundle.
        settings: the post-processing.
        id_suffix: suffix that the host's ids have after the case id, e.g. `.png`; may be empty.
        trust: names of the user's own packages in the bundle.
        has_onnx: whether the bundle contains the networks also as ONNX files.
    """

    folder: Path
    ensemble: Ensemble
    settings: PostprocessConfig
    id_suffix: str
    trust: tuple[str, ...]
    has_onnx: bool

    @classmethod
    def read(cls, folder: Path, root: Path, accelerator: str | None = None) -> Bundle:
        """Read a bundle for a competition whose data are mounted at `root`.

        Args:
            folder: folder of the bundle.
            root: the competition's data folder.
            accelerator: cpu or cuda. None for the accelerator in the YAML of each run, if this machine has it, and
                otherwise `auto`.

        Raises:
            MaskfoldError: a file is missing or has another format.
        """
        try:
            plain: dict[str, Any] = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
            if plain["format"] != BUNDLE_FORMAT:
                raise ValueError(f"found format {plain['format']}, expected {BUNDLE_FORMAT}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise MaskfoldError(
                f"{folder / BUNDLE_FILE} cannot be read: {error}.", "Export the bundle again."
            ) from error
        trust = tuple(plain["trust"])
        runs = []
        for entry in plain["runs"]:
            run_folder = folder / entry["folder"]
            exp = _at_root(
                adapt_to_machine(load_experiment(run_folder / EXPERIMENT_FILE, trust=trust)), root, accelerator
            )
            runs.append(Run(run_folder, exp, empty_case_table(), folds_table(run_folder), entry["name"]))
        ensemble = Ensemble(tuple(runs), tuple(float(entry["weight"]) for entry in plain["runs"]))
        settings = PostprocessConfig.model_validate(plain["postprocess"])
        return cls(folder, ensemble, settings, plain["ending"], trust, plain["onnx"])


def _at_root(exp: Experiment, root: Path, accelerator: str | None) -> Experiment:
    comp = exp.competition.model_copy(update={"root": root.absolute()})
    run = exp.run if accelerator is None else exp.run.model_copy(update={"accelerator": accelerator})
    return exp.model_copy(update={"competition": comp, "run": run})


# Test cases


@dataclass(frozen=True)
class TestCases:
    """Hold the test cases to predict.

    Attributes:
        test_set: the cases, and the rows of the submission file. If there are no test images, there are no cases.
        rows_without_images: rows of the sample submission whose image does not exist; they get empty masks.
    """

    test_set: TestSet
    rows_without_images: tuple[RowKey, ...] = ()

    def empty_masks(self) -> Iterator[MaskItem]:
        """Yield an empty mask for each row of the sample submission whose image is missing."""
        for name, cls in self.rows_without_images:
            yield name, cls, np.zeros((1, 1), np.bool_)


def find_test_cases(comp: Competition, suffix: str, context: Context) -> TestCases:
    """Find the test images, and the rows that the submission file must have.

    The rows depend on how the host's sample submission fits the images:

    - If the sample has exactly the rows of the images, the sample's rows are returned.
    - If none of its ids has an image, the sample is ignored as a dummy. The rows follow from the images, sorted by id
      (and slice) and class.
    - Otherwise, the rows of the sample come first, in its order; those without an image get empty masks. The rows of
      all other images follow, sorted by id (and slice) and class.

    Args:
        comp: the competition; its `root` is the folder in which the host's files are mounted.
        suffix: suffix that the host's ids have after the case id, e.g. `.png`; used only if the sample has no rows.
        context: context whose log receives messages for the user.

    Raises:
        MaskfoldError: `root` does not contain the data of this competition, or an image or the sample cannot be read.
    """
    rows = _read_rows(comp, context)
    profile, sample = _read_sample(comp, context)
    sample_keys = sample.keys if sample is not None else ()
    if not rows:
        return TestCases(TestSet(comp, [], profile, sample, {}), sample_keys)
    names = row_names(rows, profile, sample)
    if comp.submission.sample is None:
        full_names = {case_id: [add_suffix(name, suffix) for name in of_case] for case_id, of_case in names.items()}
        return TestCases(TestSet(comp, rows, profile, None, full_names))
    lookup = IdLookup([name for case_names in names.values() for name in case_names])
    known_keys = [key for key in sample_keys if lookup.get(key[0]) is not None]
    if not known_keys:  # the names in a dummy sample do not show how real cases are named
        names = row_names(rows, profile, None)
    suffix = id_suffix(sample_keys) or suffix
    known = {(lookup.get(image), cls) for image, cls in known_keys}
    spelling = {lookup.get(image): image for image, _ in known_keys}
    added_keys = [
        (spelling.get(name, add_suffix(name, suffix)), cls)
        for row in rows
        for name in names[row.id]
        for cls in (profile.classes or (None,))
        if (name, cls) not in known
    ]
    without_images = tuple(key for key in sample_keys if lookup.get(key[0]) is None) if known_keys else ()
    if sample_keys and not added_keys and not without_images:  # the sample is complete
        return TestCases(TestSet(comp, rows, profile, sample, names))
    _report_differences(comp, sample_keys, known_keys, added_keys, without_images, len(rows), context)
    kept_keys = [key for key in sample_keys if key in without_images or lookup.get(key[0]) is not None]
    completed = SampleSubmission(Path(comp.root) / comp.submission.sample, profile, (*kept_keys, *added_keys))
    return TestCases(TestSet(comp, rows, profile, completed, names), without_images)


def write_empty_submission(found: TestCases, path: Path) -> int:
    """Write a submission file with an empty mask in each row of the sample; without a sample, write only the header.

    A notebook needs such a file when it is saved, because the real test set does not exist at that time.

    Args:
        found: the test cases, with no images.
        path: path of the file.

    Returns:
        The number of rows.
    """
    profile = found.test_set.profile
    ensure_writable(path.parent)
    with open_synced(path) as stream:
        lines = io.TextIOWrapper(stream, "utf-8", newline="")
        out = csv.writer(lines, lineterminator="\n")
        out.writerow(profile.columns)
        for key in found.rows_without_images:
            out.writerow(format_row(profile, key, profile.rle.empty, (1, 1)))
        lines.detach()
    return len(found.rows_without_images)


def id_suffix(keys: tuple[RowKey, ...]) -> str:
    """Return the extension, e.g. `.png`, that all ids of a sample have; empty if they have none or different ones."""
    suffixes = {image[len(strip_extension(image)) :] for image, _ in keys}
    return suffixes.pop() if len(suffixes) == 1 else ""


def _read_sample(comp: Competition, context: Context) -> tuple[Profile, SampleSubmission | None]:
    """Return the format of the submission file, and the host's sample.

    If the file of the sample is missing or has no rows, the sample is None.
    """
    profile = profile_of(comp)
    if comp.submission.sample is None:
        return profile, None
    path = Path(comp.root) / comp.submission.sample
    if not path.is_file():
        context.say(
            f"note: the sample {comp.submission.sample} does not exist, so the file gets the rows of all test images"
        )
        return profile, None
    layout, rows = open_rows(path, profile)
    if next(rows, None) is None:
        return layout, None
    sample = read_sample(path, profile)
    return sample.profile, sample


def _read_rows(comp: Competition, context: Context) -> list[Any]:
    """Return the rows of the test cases in the case table.

    If the data folder belongs to the competition, but has no test images, return an empty list.

    Raises:
        MaskfoldError: the data folder does not belong to the competition, or an image cannot be read.
    """
    try:
        return list(case_rows(case_table(comp, "test")))
    except MaskfoldError as error:
        if comp.test is None or not Path(comp.root).is_dir() or _any_test_image(comp) or not _is_root(comp):
            raise
        if others := unmatched_images(comp, "test"):
            raise MaskfoldError(
                "test.images: the pattern matches no file, although the folder has "
                f"{format_count(len(others), 'other image file')}, such as {others[0]}.",
                "Rename the files, or export the bundle again with the right test.images.",
            ) from error
        context.say(f"note: {error.message}")
        return []


def _any_test_image(comp: Competition) -> bool:
    """Return whether any file, readable or not, matches a pattern of the test images."""
    from competition.data.patterns import match_cases

    patterns = comp.test.images if comp.test is not None else ""
    for pattern in [patterns] if isinstance(patterns, str) else patterns.values():
        try:
            match_cases(Path(comp.root), pattern, "test.images")
        except MaskfoldError:
            continue
        return True
    return False


def _is_root(comp: Competition) -> bool:
    """Return whether the data folder contains the host's sample submission, or a folder of images from the YAML."""
    root = Path(comp.root)
    if comp.submission.sample is not None and (root / comp.submission.sample).is_file():
        return True
    sources = (comp.train.images, comp.test.images if comp.test is not None else {})
    patterns = [pattern for source in sources for pattern in ([source] if isinstance(source, str) else source.values())]
    folders = [pattern.split("{")[0].rpartition("/")[0] for pattern in patterns]
    return any(folder and (root / folder).is_dir() for folder in folders)


def _report_differences(
    comp: Competition,
    sample_keys: tuple[RowKey, ...],
    known_keys: list[RowKey],
    added_keys: list[RowKey],
    without_images: tuple[RowKey, ...],
    cases: int,
    context: Context,
) -> None:
    """Tell the user how the sample submission and the test images differ.

    Args:
        comp: the competition.
        sample_keys: keys of the rows of the sample.
        known_keys: those keys whose image exists.
        added_keys: keys of rows that are added for images that the sample lacks.
        without_images: keys of rows whose image does not exist.
        cases: number of test cases.
        context: context whose log receives the messages.
    """
    name = comp.submission.sample
    if sample_keys and not known_keys:
        context.say(
            f"note: {name} is not used, because it is a dummy: none of its ids has an image "
            f"({sample_keys[0][0]}, …). The file gets the rows of the {cases} test cases"
        )
    elif sample_keys and added_keys:
        context.say(
            f"note: {name} lacks {format_count(len(added_keys), 'row')} of the {cases} test cases, added at the end"
        )
    elif not sample_keys and name is not None and (Path(comp.root) / name).is_file():
        context.say(f"note: {name} has no rows, so the file gets the rows of the {cases} test cases")
    if without_images:
        context.say(
            f"note: {format_count(len(without_images), 'row')} of {name} without an image ({without_images[0][0]}, …); "
            "such a row gets an empty mask"
        )


# Prediction


class TimeUp(BaseException):
    """Interrupt the prediction of a case at the deadline.

    This is a BaseException, so that `except Exception` in libraries does not catch it.
    """


class BundlePrediction(NamedTuple):
    """Hold a case and its predicted masks.

    Attributes:
        row: row of the case table.
        outcome: masks and objects of the case.
        probabilities: (K, *spatial) probabilities of the classes, if the submission file has a confidence for each
            object; otherwise None.
        reached: whether the case was predicted; if not, its masks are empty.
    """

    row: Any
    outcome: CasePrediction
    probabilities: NDArray[Any] | None
    reached: bool = True


@dataclass(frozen=True)
class PredictionOptions:
    """Hold the options of a prediction.

    Attributes:
        limit: time limit in seconds; None for no limit.
        started: start of this time, on the clock `clock`.
        continue_on_error: whether to continue with empty masks if a case cannot be read or predicted; if not, the
            prediction stops.
        use_onnx: whether to predict with onnxruntime.
        clock: function that returns the time in seconds.
    """

    limit: float | None = None
    started: float = 0.0
    continue_on_error: bool = False
    use_onnx: bool = False
    clock: Clock = time.monotonic


def predict_cases(
    bundle: Bundle,
    rows: Sequence[Any],
    confidence: bool,
    scratch: Path,
    options: PredictionOptions,
    say: Callable[[str], None],
) -> Iterator[BundlePrediction]:
    """Predict cases in order, and yield their masks.

    If the time limit is too short for all cases, parts of the ensemble are dropped, see
    `competition.export.time_limit`. Cases that are not reached get empty masks.

    Args:
        bundle: the bundle with the networks.
        rows: rows of the case table.
        confidence: whether the submission file has a confidence for each object.
        scratch: folder for preprocessed cases.
        options: time limit and error handling.
        say: function that receives messages for the user.

    Raises:
        MaskfoldError: a case cannot be read or predicted. With `options.continue_on_error`, the error is raised only if
            every case fails.
    """
    comp = bundle.ensemble.comp
    reducible = DegradableEnsemble(_load_networks(bundle, rows, scratch, options), options.clock)
    sizes = [count_voxels(row) for row in rows]
    budget = TimeBudget(reducible.levels, reducible.views, sizes, options.limit, options.started, options.clock)
    failed = 0
    for number, row in enumerate(rows):
        start = options.clock()
        try:
            with _stop_at_deadline(budget):
                probabilities, presence = reducible.predictor.predict(row)
                outcome = postprocess(probabilities, comp, bundle.settings, row, presence)
        except TimeUp:
            say(f"time limit: the time is over; {len(rows) - number} of {len(rows)} cases get empty masks")
            yield from (empty_prediction(remaining, comp) for remaining in rows[number:])
            return
        except MaskfoldError as error:
            failed += 1
            if not options.continue_on_error or failed == len(rows):
                raise
            say(f"note: {error.message} The case {row.id} gets empty masks.")
            yield empty_prediction(row, comp)
        else:
            class_probabilities = probabilities[len(probabilities) - len(comp.classes) :] if confidence else None
            yield BundlePrediction(row, outcome, class_probabilities)
        lines = budget.record(options.clock() - start, reducible.pop_seconds())
        if lines:
            reducible.set_level(budget.level)
        for line in lines:
            say(line)


def empty_prediction(row: Any, comp: Competition) -> BundlePrediction:
    """Return empty masks for a case that was not predicted; `row` is its row in the case table."""
    return BundlePrediction(
        row, CasePrediction(np.zeros((len(comp.classes), *json.loads(row.shape)), np.bool_), None), None, False
    )


def _load_networks(bundle: Bundle, rows: Sequence[Any], scratch: Path, options: PredictionOptions) -> EnsemblePredictor:
    """Load the networks of a bundle, with the number of input channels of the first case that can be read.

    With `options.continue_on_error`, cases before it are skipped.
    """
    for number, row in enumerate(rows):
        try:
            predictor = EnsemblePredictor(bundle.ensemble, row, Context(bundle.trust), scratch)
            break
        except MaskfoldError:
            if not options.continue_on_error or number + 1 == len(rows):
                raise
    if options.use_onnx:
        from competition.export.onnx import use_onnx_networks

        use_onnx_networks(predictor)
    return predictor


def count_voxels(row: Any) -> int:
    """Return the number of voxels of a case, to which its prediction time is assumed to be proportional."""
    return int(np.prod(json.loads(row.shape)))


@contextmanager
def _stop_at_deadline(budget: TimeBudget) -> Iterator[None]:
    """Raise `TimeUp` when the deadline passes during the `with` block, or at once if it has already passed.

    The block is interrupted by a signal. This works only in the main thread, with the real clock, and not on Windows;
    otherwise, the block is not interrupted.
    """
    if budget.is_over():
        raise TimeUp
    no_alarm = budget.deadline is None or budget.clock is not time.monotonic or not hasattr(signal, "setitimer")
    if no_alarm or threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_time_up(_number: int, _frame: Any) -> None:
        raise TimeUp

    previous = signal.signal(signal.SIGALRM, raise_time_up)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, (budget.deadline or 0.0) - budget.clock()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# Several processes


def assign_shards(sizes: Sequence[int], shards: int) -> list[list[int]]:
    """Distribute cases over several processes, so that all have about the same number of voxels.

    The part of one process is called a shard. From the largest case to the smallest, each case goes to the shard that
    has the fewest voxels so far.

    Args:
        sizes: number of voxels of each case.
        shards: number of shards.

    Returns:
        For each shard, the indices of its cases in ascending order.
    """
    assigned: list[list[int]] = [[] for _ in range(shards)]
    total = [0] * shards
    for case in sorted(range(len(sizes)), key=lambda case: (-sizes[case], case)):
        smallest = min(range(shards), key=lambda shard: (total[shard], shard))
        assigned[smallest].append(case)
        total[smallest] += sizes[case]
    return [sorted(cases) for cases in assigned]


def parse_devices(text: str) -> list[str]:
    """Return the names of the devices that the option `--devices` selects.

    Args:
        text: `auto` (all GPUs, otherwise the CPU), a number of GPUs, or a list such as `cuda:0,cuda:1` or `cpu,cpu`.

    Returns:
        Names such as `cuda:0` and `cpu`. `auto` without a GPU gives `["auto"]`.

    Raises:
        MaskfoldError: the text is invalid, or names a GPU that does not exist (status 2).
    """
    import torch

    gpus = torch.cuda.device_count()
    if text == "auto":
        return [f"cuda:{index}" for index in range(gpus)] or ["auto"]
    available = ["cpu", *(f"cuda:{index}" for index in range(gpus))]
    names = [f"cuda:{index}" for index in range(int(text))] if text.isdigit() else text.split(",")
    for name in names:
        kind, _, index = name.partition(":")
        if name != "cpu" and not (kind == "cuda" and index.isdigit() and int(index) < gpus):
            raise MaskfoldError(
                f"--devices {text}: found {name}, expected {join_or(available)}, the devices of this machine.",
                "Set auto, a number of GPUs, or a list such as cuda:0,cuda:1 or cpu,cpu.",
                status=2,
            )
    if not names:
        raise MaskfoldError(
            f"--devices {text}: found no device, expected at least one.", "Set auto, or a number from 1.", status=2
        )
    return names


def collect(
    predict_shard: Callable[[None, int, str], None],
    devices: Sequence[str],
    rows: Sequence[Any],
    sizes: Sequence[int],
    folder: Path,
    confidence: bool,
    deadline: float | None,
) -> Iterator[BundlePrediction | None]:
    """Predict cases in one process for each device, and yield them in order.

    Args:
        predict_shard: function that predicts the cases of a process and stores each with `save_result`. Its arguments
            are None, the index of the shard (see `assign_shards`), and the name of the device.
        devices: device of each process.
        rows: rows of the case table.
        sizes: number of voxels of each case.
        folder: empty folder through which the processes exchange cases and masks.
        confidence: whether the submission file has a confidence for each object.
        deadline: time at which the prediction must end, on the clock of `time.monotonic()`; None for no deadline.

    Yields:
        The predicted case; None for a case that no process has finished before the deadline.

    Raises:
        MaskfoldError: a process failed.
    """
    shards = assign_shards(sizes, len(devices))
    shard_of = {case: shard for shard, cases in enumerate(shards) for case in cases}
    content = json.dumps(
        {"rows": [vars(row) for row in rows], "hands": shards, "confidence": confidence}, default=int
    ).encode()
    atomic_write(folder / ROWS_FILE, lambda file: file.write(content), len(content))
    with ExitStack() as stack:
        tasks: list[tuple[ProcessPool, Future[None]]] = []
        for shard, device in enumerate(devices):  # one pool per device, because their environments differ
            name, environment = _environment(device, len(devices))
            pool = ProcessPool(
                None, 1, "predicted test cases", "Run with --devices cpu, or with one device.", environment
            )
            stack.enter_context(pool)
            tasks.append((pool, pool.submit(predict_shard, shard, name)))
        for case, row in enumerate(rows):
            yield _wait_for_case(folder, case, row, *tasks[shard_of[case]], deadline)


def load_shard(folder: Path, shard: int) -> tuple[list[tuple[int, Any]], bool]:
    """Return the cases that are assigned to one process.

    Args:
        folder: folder through which the processes exchange cases and masks.
        shard: index of the shard.

    Returns:
        (index, row of the case table) of each case; and whether the submission file has a confidence for each object.
    """
    plain = json.loads((folder / ROWS_FILE).read_text(encoding="utf-8"))
    return [(case, SimpleNamespace(**plain["rows"][case])) for case in plain["hands"][shard]], plain["confidence"]


def save_result(folder: Path, case: int, predicted: BundlePrediction) -> None:
    """Store the masks of a case for the main process.

    Args:
        folder: folder through which the processes exchange cases and masks.
        case: index of the case.
        predicted: the masks.
    """
    masks, objects = predicted.outcome.masks, predicted.outcome.objects
    arrays: dict[str, Any] = {
        "masks": np.packbits(masks),
        "shape": np.array(masks.shape),
        "reached": np.array(predicted.reached),
    }
    if objects is not None:
        arrays["objects"] = objects
    if predicted.probabilities is not None:
        arrays["probabilities"] = predicted.probabilities
    atomic_write(folder / f"{case}.npz", lambda file: np.savez_compressed(file, **arrays))


def _environment(device: str, count: int) -> tuple[str, dict[str, str]]:
    """Return the device and the environment variables of a process.

    The process can use only its own GPU or, on the CPU, its share of the threads.

    Args:
        device: the device, e.g. `cuda:1`.
        count: number of processes.
    """
    if device == "cpu":
        threads = max(1, (os.cpu_count() or 1) // count)
        return "cpu", {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    index = device.partition(":")[2]
    gpu = visible.split(",")[int(index)] if visible else index
    return "cuda:0", {"CUDA_VISIBLE_DEVICES": gpu}


def _wait_for_case(
    folder: Path, case: int, row: Any, pool: ProcessPool, task: Future[None], deadline: float | None
) -> BundlePrediction | None:
    path = folder / f"{case}.npz"
    while not path.exists():
        if task.done() and not path.exists():
            pool.result(task)  # raises the error of the process, if there is one
            raise MaskfoldError(
                f"The process that predicts case {row.id} ended before it had written the masks.",
                "Run with --devices cpu, or with one device.",
            )
        if deadline is not None and time.monotonic() > deadline + GRACE_SECONDS:
            return None
        time.sleep(0.05)
    with np.load(path, allow_pickle=False) as arrays:
        shape = tuple(arrays["shape"])
        masks = np.unpackbits(arrays["masks"], count=int(np.prod(shape))).astype(np.bool_).reshape(shape)
        outcome = CasePrediction(masks, arrays.get("objects"))
        predicted = BundlePrediction(row, outcome, arrays.get("probabilities"), bool(arrays["reached"]))
    path.unlink()
    return predicted
