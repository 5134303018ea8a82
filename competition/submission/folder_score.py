"""Score a folder of label files against a folder of true label files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import MetricConfig
from competition.config.metric import METRICS, Direction, Metric, WeightedSum
from competition.data.geometry import check_same_grid
from competition.data.readers import has_reader, read_header, read_labels, strip_extension
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import bootstrap_interval, cv_score
from competition.metrics.overlap import count_overlap
from competition.metrics.scoring import is_empty, metric_inputs
from competition.metrics.surface import surface_dices
from competition.text import and_more, format_count, name_problem

if TYPE_CHECKING:
    import pandas as pd

Labels = NDArray[np.integer[Any]]
DEFAULT_METRICS = ("dice", "hd95", "nsd")
DEFAULT_TOLERANCES = (1.0, 2.0, 3.0)
MAX_VALUES = 50  # a file with more values counts as an image
SHOWN_IDS = 5


@dataclass(frozen=True)
class FolderScores:
    """Hold the scores of a folder of label files.

    Attributes:
        table: a row per case and class: id, class, a column per metric (nan if neither file has the class), and the
            pixel counts tp, fp and fn.
        metrics: the section of each metric, by the name of its column.
        missing: ids of true files without a prediction.
        extra: ids of predictions without a true file.
    """

    table: pd.DataFrame
    metrics: dict[str, MetricConfig]
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the table."""
        return list(self.table["class"].unique())

    def estimate(self, column: str, cls: str = "") -> tuple[float, float, float, int]:
        """Return the mean of a metric, its 95 % interval and the number of cases that have the class.

        Args:
            column: the metric's column.
            cls: name of a class; empty: the mean over all pairs of case and class.
        """
        rows = self.table if not cls else self.table[self.table["class"] == cls]
        rows = rows.assign(score=rows[column], dice=rows[column])
        rows = rows[rows["score"].notna()]
        if not len(rows):
            return nan, nan, nan, 0
        metric = self.metrics[column]
        return cv_score(rows, metric), *bootstrap_interval(rows, metric), int(rows["id"].nunique())


def score_folder(
    predictions: Path,
    truth: Path,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    classes: str | None = None,
    ignore: int | None = None,
    dimensions: int | None = None,
    missing: Literal["error", "skip", "empty"] = "error",
    trust: Sequence[str] = (),
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda items, _: items,
) -> FolderScores:
    """Score the label files of a folder; one case is in memory at a time.

    Files with the same name, apart from the extension, are one case. A class that is in neither file of a case has no
    score there, and does not count in means. If only one of the files has the class, the score is that of the metric
    for one empty mask.

    Args:
        predictions: folder of label files.
        truth: folder of true label files.
        metrics: names of metrics, or import paths of the user's own; `nsd` gives one column per tolerance.
        tolerances: tolerances of `nsd` in mm.
        classes: the classes, such as `1,2` or `liver=1,tumour=2+3`; None: every value other than 0 is a class.
        ignore: value in true files of pixels that do not count.
        dimensions: number of spatial axes; None: 3 for NIfTI and ITK's formats, else 2.
        missing: what to do if one of the folders lacks a case: stop; leave the case out; or count a missing prediction
            as empty (a prediction without truth is left out).
        trust: packages from which metrics may be imported.
        progress: shows the progress of an iteration of known length.

    Returns:
        The scores.

    Raises:
        MaskfoldError: a folder, a metric or a file is invalid, or the files of a case differ in shape or affine.
    """
    import pandas as pd

    sections = _sections(metrics, tolerances, trust)
    chosen = None if classes is None else parse_classes(classes)
    predicted, true = (_files(folder, option) for folder, option in ((predictions, "PREDICTIONS"), (truth, "--truth")))
    absent = [case for case in true if case not in predicted]
    extra = [case for case in predicted if case not in true]
    _check_missing(predictions, truth, absent, extra, missing, len(true))
    cases = [case for case in true if case in predicted or missing == "empty"]
    rows: list[dict[str, Any]] = []
    seen: tuple[set[int], set[int]] = (set(), set())
    for case in progress(iter(cases), len(cases)):
        labels, spacing = _read_pair(case, predicted.get(case), true[case], dimensions)
        values = [
            _values(array, file, chosen) for array, file in zip(labels, (predicted.get(case), true[case]), strict=True)
        ]
        for found, part in zip(seen, values, strict=True):
            found.update(part - {ignore})
        masks = chosen or {str(value): [value] for value in sorted(values[0] | values[1]) if value != ignore}
        ignored = None if ignore is None else labels[1] == ignore
        rows += [
            {"id": case, "class": name, **_score_masks(labels, numbers, ignored, spacing, sections, case, name)}
            for name, numbers in masks.items()
        ]
    _check_values(*seen, chosen)
    names = list(chosen) if chosen else [str(value) for value in sorted(seen[0] | seen[1])]
    blank = {**dict.fromkeys(sections, nan), "tp": 0, "fp": 0, "fn": 0}
    by_key = {(row["id"], row["class"]): row for row in rows}
    table = pd.DataFrame(
        [by_key.get((case, name), {"id": case, "class": name, **blank}) for case in cases for name in names],
        columns=["id", "class", *sections, "tp", "fp", "fn"],
    )
    return FolderScores(table, sections, absent, extra)


def parse_classes(text: str) -> dict[str, list[int]]:
    """Parse `1,2` or `liver=1,tumour=2+3` into the label values of each class.

    Raises:
        MaskfoldError: status 2; the text has another form, or a name or value occurs twice.

    Example:
        >>> parse_classes("liver=1,tumour=2+3")
        {'liver': [1], 'tumour': [2, 3]}
    """
    found: dict[str, list[int]] = {}
    for part in text.split(","):
        name, _, values = part.strip().rpartition("=")
        if not re.fullmatch(r"\d+(\+\d+)*", values) or (name or values) in found:
            raise MaskfoldError(
                f"--classes: found `{part.strip()}`, expected a value or NAME=VALUE, each once.",
                "Write e.g. --classes 1,2 or --classes liver=1,tumour=2+3.",
                status=2,
            )
        found[name or values] = [int(value) for value in values.split("+")]
    if any(0 in values for values in found.values()):
        raise MaskfoldError("--classes: found 0, which is the background.", "Name values above 0.", status=2)
    return found


def _sections(names: Sequence[str], tolerances: Sequence[float], trust: Sequence[str]) -> dict[str, MetricConfig]:
    """Return the configuration of each metric by the name of its column in the table of scores."""
    sections: dict[str, MetricConfig] = {}
    for name in names:
        if name == "nsd":
            for tolerance in tolerances:
                config = MetricConfig(name="surface_dice", tolerance_mm=float(tolerance), both_empty=None)
                sections[f"nsd_{tolerance:g}mm"] = config
            continue
        try:
            if "." in name:
                config = MetricConfig.model_validate({"target": name})
                config.trust(trust)
            else:
                METRICS.check(name)
                config = MetricConfig(name=name, both_empty=None)
        except ValueError as error:
            raise MaskfoldError(
                f"--metrics: {error}.", "Name metrics, or import paths of your own.", status=2
            ) from error
        if config.resolve().pooled_share:
            raise MaskfoldError(
                f"--metrics: {name} is averaged over the slices of all cases, and has no score of a single case.",
                "Score a CSV with --competition instead.",
                status=2,
            )
        sections[config.name] = config
    return sections


def _files(folder: Path, option: str) -> dict[str, Path]:
    """Return the label files of a folder by id.

    Raises:
        MaskfoldError: status 2; there is no such folder or no file, or two files have one id.
    """
    if not folder.is_dir():
        raise MaskfoldError(f"{option}: {folder} is not a folder.", "Name a folder of label files.", status=2)
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith(".") or not has_reader(path.name):
            continue
        if (problem := name_problem(case := strip_extension(path.name))) is not None:
            raise MaskfoldError(f"{option}: the name {path.name!r} {problem}.", "Rename the file.", status=2)
        if case in files:
            raise MaskfoldError(
                f"{option}: the id {case} has two files, {files[case].name} and {path.name}.", "Remove one.", status=2
            )
        files[case] = path
    if not files:
        raise MaskfoldError(
            f"{option}: {folder} has no file that can be read as labels.",
            "Name the folder that directly contains the files, such as case.nii.gz or case.png.",
            status=2,
        )
    return files


def _check_missing(
    predictions: Path, truth: Path, absent: list[str], extra: list[str], missing: str, count: int
) -> None:
    if len(absent) == count:
        raise MaskfoldError(
            f"No file of {predictions} has the name of a file of {truth}: found e.g. {_listed(extra)}, expected "
            f"{_listed(absent)}.",
            "Name the files alike; only the extensions may differ.",
            status=2,
        )
    if missing == "error" and (absent or extra):
        parts = [f"{format_count(len(absent), 'case')} without a prediction: {_listed(absent)}"] if absent else []
        parts += [f"{format_count(len(extra), 'prediction')} without truth: {_listed(extra)}"] if extra else []
        raise MaskfoldError(
            f"{predictions} and {truth} have different cases: {'; '.join(parts)}.",
            "Add --missing empty to count missing predictions as empty, or --missing skip to leave these cases out.",
            status=2,
        )


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN_IDS]) + and_more(len(ids), SHOWN_IDS, "id") if ids else "none"


def _read_pair(
    case: str, predicted: Path | None, true: Path, dimensions: int | None
) -> tuple[tuple[Labels, Labels], tuple[float, ...]]:
    """Read the labels of a case, and their spacing; a missing prediction is empty.

    Raises:
        MaskfoldError: a file is unreadable, or the files differ in shape or affine.
    """
    header = read_header(true, dimensions, labels=True)
    if predicted is not None:
        own = read_header(predicted, dimensions, labels=True)
        try:
            check_same_grid(case, (str(true), header), (str(predicted), own), is_mask=False)
        except MaskfoldError as error:
            raise MaskfoldError(
                error.message, "Predict on the grid of the truth, or resample the prediction to it."
            ) from error
    labels, _ = read_labels(true, dimensions)
    if predicted is None:
        return (np.zeros_like(labels), labels), header.spacing
    return (read_labels(predicted, dimensions)[0], labels), header.spacing


def _values(labels: Labels, file: Path | None, chosen: Mapping[str, list[int]] | None) -> set[int]:
    """Return the values of a label array except 0.

    Raises:
        MaskfoldError: without chosen classes, there are too many or negative values.
    """
    values = {int(value) for value in np.unique(labels)} - {0}
    if chosen is None and (len(values) > MAX_VALUES or min(values, default=0) < 0):
        raise MaskfoldError(
            f"{file} has {len(values)} values from {min(values)} to {max(values)}, expected label values above 0, at "
            f"most {MAX_VALUES} of them.",
            "Name label files, not images or object numbers, or set the values that are classes with --classes.",
        )
    return values


def _check_values(predicted: set[int], true: set[int], chosen: Mapping[str, list[int]] | None) -> None:
    """Check that predictions and truth share a label value, or that a file has a value of the `chosen` classes."""
    if chosen is None and predicted and true and not predicted & true:
        first, second = (", ".join(map(str, sorted(values)[:SHOWN_IDS])) for values in (predicted, true))
        raise MaskfoldError(
            f"The predictions have the values {first}, the true files {second}; no value is in both.",
            f"List the values of each class, e.g. --classes object={min(predicted)}+{min(true)}.",
            status=2,
        )
    known = {value for values in (chosen or {}).values() for value in values}
    if chosen is not None and not known & (predicted | true):
        raise MaskfoldError(
            f"--classes: no file has one of the values {', '.join(map(str, sorted(known)))}; the files have "
            f"{', '.join(map(str, sorted(predicted | true)[:SHOWN_IDS])) or 'no value'}.",
            "Name values that the files have.",
            status=2,
        )


def _score_masks(
    labels: tuple[Labels, Labels],
    values: Sequence[int],
    ignored: NDArray[np.bool_] | None,
    spacing: Sequence[float],
    sections: Mapping[str, MetricConfig],
    case: str,
    cls: str,
) -> dict[str, float]:
    """Return the metrics and counts of one class of one case; distances, objects and surfaces are computed once."""
    mask, truth = (np.isin(array, values) for array in labels)
    if ignored is not None:
        mask, truth = mask & ~ignored, truth & ~ignored
    counts = count_overlap(mask, truth)
    metrics = {column: config.resolve() for column, config in sections.items()}
    together = Metric("all", WeightedSum([(1.0, metric) for metric in metrics.values()]), Direction.HIGHER)
    inputs = metric_inputs(together, mask, truth, counts, spacing)
    surfaces = {name: config.tolerance_mm for name, config in sections.items() if config.name == "surface_dice"}
    scores: dict[str, float] = dict.fromkeys(sections, nan)
    if any(counts) and surfaces:
        scores |= dict(zip(surfaces, surface_dices(mask, truth, spacing, list(surfaces.values())), strict=True))
    for column, metric in metrics.items():
        if column in surfaces or is_empty(metric, inputs, counts):
            continue
        scores[column] = float(metric(**inputs))
        if not isfinite(scores[column]):
            raise MaskfoldError(
                f"The metric {column} of the class {cls} of case {case} is {scores[column]}, expected a finite number.",
                "Return the worst possible score, e.g. the image's diagonal, if only one mask is empty.",
            )
    return {**scores, **counts._asdict()}
