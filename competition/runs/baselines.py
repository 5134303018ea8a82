"""Compute two baselines that need no training: the Dice of the best constant mask and of the best threshold."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.competition import MetricConfig
from competition.data.content.unchanged import load_unchanged_image, load_unchanged_mask
from competition.io import sha256_of_file
from competition.metrics.baseline import ThresholdBaseline, best_threshold
from competition.metrics.bootstrap import cv_score, paired_gain
from competition.metrics.constant_mask import CoarseTruth, constant_mask_dice
from competition.metrics.scoring import IGNORE_LABEL, split_classes
from competition.records import is_unedited, parse_json_object, with_own_digest, write_json
from competition.runs.run import Run
from competition.runs.summary import SCORES_FILE, read_run_scores
from competition.seeding import rng
from competition.text import format_count

if TYPE_CHECKING:
    import pandas as pd

BASELINES_FILE = "baselines.json"  # file in a run's folder
MAX_CASES = 200
MAX_SECONDS = 20.0  # time for reading the cases
MAX_VALUES = 8_000_000  # maximum number of values (pixels × channels) of all cases on which thresholds are compared
DICE = MetricConfig(name="dice", both_empty=None)


def baseline_lines(run: Run, clock: Callable[[], float] = time.monotonic) -> list[str]:
    """Return the comparison of a run with two baselines that need no training, as lines of text.

    If `baselines.json` in the run's folder has the lines, and `scores.csv` has not changed since, they are read from
    this file. Otherwise, `compare_with_baselines` computes the lines, and they are stored in this file.

    Args:
        run: the run, with finished folds.
        clock: function that returns the time in seconds, to limit the time for reading cases.

    Returns:
        Lines for the user; an empty list if the run has no `scores.csv`.

    Raises:
        ChangedDataError: the cases have changed since the run began.
        MaskfoldError: a case cannot be read.
    """
    path, scores = run.folder / BASELINES_FILE, run.folder / SCORES_FILE
    if not scores.exists():
        return []
    digest = sha256_of_file(scores)
    try:
        record = parse_json_object(path.read_bytes())
        if record["scores"] == digest and is_unedited(record, BASELINES_FILE):
            return [str(line) for line in record["lines"]]
    except (OSError, ValueError, LookupError, TypeError):
        pass  # the record is missing or damaged, and is written again
    lines = compare_with_baselines(run, clock)
    with contextlib.suppress(OSError):  # if the folder cannot be written, the lines are computed each time
        write_json(path, with_own_digest({"scores": digest, "lines": lines}, BASELINES_FILE))
    return lines


def compare_with_baselines(run: Run, clock: Callable[[], float] = time.monotonic) -> list[str]:
    """Compare a run's out-of-fold predictions with the best constant mask and the best threshold, by their Dice.

    Only (case, class) pairs in which the labels of the case contain the class are compared. Both baselines are
    optimistic. They are selected on the same labels with which they are scored, and the threshold baseline knows which
    classes each case contains.

    Args:
        run: the run, with finished folds.
        clock: function that returns the time in seconds, to limit the time for reading cases.

    Returns:
        Lines for the user, warnings last; an empty list if no fold is finished.

    Raises:
        ChangedDataError: the cases have changed since the run began.
        MaskfoldError: a case cannot be read.
    """
    comp = run.exp.competition
    folds = {result.fold for result in run.results()}
    fold_of = run.fold_of()
    cases = run.cases[[fold_of.get(case, -1) >= 0 and fold_of[case] in folds for case in run.cases["id"]]]
    if cases.empty:
        return []
    order = rng(run.exp.seeds[0], 0, 0, 4, "bootstrap").permutation(len(cases))[:MAX_CASES]
    values = MAX_VALUES // min(len(cases), MAX_CASES)
    rows, samples, coarse, begin = list(cases.itertuples(index=False)), [], [], clock()
    used: list[str] = []
    for index in order:
        if used and clock() - begin > MAX_SECONDS:
            break
        row = rows[index]
        image, mask = load_unchanged_image(comp, row).array, load_unchanged_mask(comp, row)
        coarse.append(CoarseTruth.from_masks(split_classes(mask, comp), (mask != IGNORE_LABEL).all(axis=0)))
        stride = _stride(image.shape, values)
        samples.append((image[(slice(None), *stride)].copy(), mask[(slice(None), *stride)].copy()))
        used.append(str(row.id))
    threshold, constant = best_threshold(samples, comp), constant_mask_dice(coarse)
    network = _network_dice(run, used)
    lines = _table_of_dice(run, threshold, constant, network, used, len(cases))
    if network is None:
        return lines
    return lines + [
        warning
        for name, dice in (("constant mask", constant), (f"threshold ({threshold.name})", threshold.case_dice))
        if (warning := _warning(name, _table(dice, used, run), network, run)) is not None
    ]


def _table_of_dice(
    run: Run,
    threshold: ThresholdBaseline,
    constant: np.ndarray[Any, Any],
    network: pd.DataFrame | None,
    used: list[str],
    count: int,
) -> list[str]:
    """Return the lines of a printed table that compares the Dice of the network and of both baselines.

    Args:
        run: the run.
        threshold: the best threshold and its Dice.
        constant: (cases, K) floats, the Dice of the best constant mask for each compared case and class.
        network: a result of `_network_dice`. If it is None, the printed table has no line for the network.
        used: ids of the compared cases.
        count: number of all out-of-fold cases.
    """
    own = [] if network is None else [("the network", cv_score(network, DICE))]
    own.append((f"without training: best threshold ({threshold.name})", _mean(threshold.case_dice, used, run)))
    if np.isfinite(constant).any():
        own.append(("without training: best constant mask, the same for all cases", _mean(constant, used, run)))
    width = max(len(name) for name, _ in own)
    cases = f"the same {format_count(count, 'out-of-fold case')}"
    if len(used) < count:
        cases = f"the same {len(used)} of {format_count(count, 'out-of-fold case')}"
    lines = [
        f"Dice of each method on {cases}, averaged over the classes that a case has:",
        *(f"  {name.ljust(width)}  {value:.4f}" for name, value in own),
    ]
    if len(run.exp.competition.classes) > 1:
        name, value = list(threshold.scores.items())[-1]
        lines.append(f"  all classes as one foreground, without training: {name} {value:.4f}")
    return lines


def _warning(name: str, baseline: pd.DataFrame, network: pd.DataFrame, run: Run) -> str | None:
    """Return a warning if the network is not clearly better than a baseline, else None.

    The network is clearly better if its mean Dice is higher and the 95 % interval of the difference is above 0.

    Args:
        name: name of the baseline in the warning.
        baseline: table of the baseline's Dice, a result of `_table`.
        network: table of the network's Dice, a result of `_network_dice`.
        run: the run.
    """
    baseline = baseline.merge(network[["id", "class"]], on=["id", "class"])  # the same pairs, in the same order
    network = network.merge(baseline[["id", "class"]], on=["id", "class"])
    if network["dice"].notna().sum() == 0:
        return None
    gain = paired_gain(baseline, network, DICE, seed=run.exp.seeds[0], groups=run.groups())
    if gain.value > 0 and not gain.low <= 0:
        return None
    interval = f", 95 % {gain.low:+.4f} to {gain.high:+.4f}" if math.isfinite(gain.low) else ""
    return (
        f"warning: the network is not clearly better than the best {name} (Dice of the network minus Dice "
        f"of the {name}: {gain.value:+.4f}{interval}). Look at metrics.jsonl and the pictures in the folders of the "
        "folds: does the loss fall, and do the masks lie on their images?"
    )


def _network_dice(run: Run, ids: list[str]) -> pd.DataFrame | None:
    """Return the network's Dice for each case and each class that the labels of the case contain.

    Returns:
        Table with the columns id, class, score and dice, sorted by id and class; score and dice are both the Dice. None
        if there are no such scores.
    """
    try:
        scores = read_run_scores(run.folder)
    except FileNotFoundError:
        return None
    if not {"tp", "fn"} <= set(scores.columns):
        return None
    scores = scores[scores["id"].isin(ids) & (scores["tp"] + scores["fn"] > 0)]
    scores = scores.assign(score=scores["dice"]).sort_values(["id", "class"], kind="stable")
    return None if scores.empty else scores[["id", "class", "score", "dice"]]


def _table(dice: np.ndarray[Any, Any], ids: list[str], run: Run) -> pd.DataFrame:
    """Convert a baseline's Dice, an array (cases, K), to a table with one row per case and class.

    Values that are not finite are left out. The columns are id, class, score and dice; score and dice are both the
    Dice.
    """
    import pandas as pd

    rows = [
        {"id": case, "class": name, "score": float(value), "dice": float(value)}
        for case, values in zip(ids, dice, strict=True)
        for name, value in zip(run.exp.competition.classes, values, strict=True)
        if np.isfinite(value)
    ]
    return pd.DataFrame(rows, columns=["id", "class", "score", "dice"]).sort_values(["id", "class"], kind="stable")


def _mean(dice: np.ndarray[Any, Any], ids: list[str], run: Run) -> float:
    return cv_score(_table(dice, ids, run), DICE)


def _stride(shape: tuple[int, ...], values: int) -> tuple[slice, ...]:
    """Return an index that selects about `values` values of an image: one Python `slice` object per spatial axis.

    All `slice` objects have the same step.

    Args:
        shape: shape (C, *spatial) of the image.
        values: number of values to select, over all channels.
    """
    factor = math.prod(shape) / max(1, values)
    step = max(1, math.ceil(factor ** (1 / (len(shape) - 1)) - 1e-9))
    return (slice(None, None, step),) * (len(shape) - 1)
