"""Score a folder of predicted label files against a folder of true label files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from competition.config.axes import NIFTI, PICTURE, permutation
from competition.config.competition import MetricConfig
from competition.config.metric import METRICS, Direction, Metric, WeightedSum
from competition.data.geometry import check_same_grid
from competition.data.image_types import Header
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
MAX_VALUES = 50  # a file with more different values is taken for an image, which is an error
SHOWN_IDS = 5  # maximum number of ids or label values in a message


@dataclass(frozen=True)
class FolderScores:
    """Hold the scores of a folder of label files.

    Attributes:
        table: table with one row per case and class. Columns: id, class, one column per metric, and the pixel counts
            tp, fp and fn. A metric is nan if neither the predicted nor the true label file of the case contains the
            class.
        metrics: configuration of each metric, by the name of its column.
        missing: ids of true label files without a prediction.
        extra: ids of predictions without a true label file.
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
        """Return the mean of a metric with its 95 % interval, and the number of cases that have a value.

        Args:
            column: column of the metric.
            cls: name of a class. Empty for the mean over all pairs of a case and a class.

        Returns:
            Mean, lower end, upper end, and number of cases; nan, nan, nan, 0 if there are no values.
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
    """Score the label files of a folder against true label files; one case is in memory at a time.

    Two files with the same name, apart from the extension, belong to the same case. If neither file of a case contains
    a class, the class has no score in this case, and the case is left out of the mean. If only one of the files
    contains the class, the score is what the metric returns for one empty mask.

    Args:
        predictions: folder of predicted label files.
        truth: folder of true label files.
        metrics: names of metrics, or import paths of the user's own metrics. `nsd` (normalised surface Dice) gives one
            column per tolerance.
        tolerances: tolerances of `nsd` in mm.
        classes: label values of the classes, such as `1,2` or `liver=1,tumour=2+3`, see `parse_classes`. None makes
            every value other than 0 a class.
        ignore: pixels that have this value in a true label file are left out of all metrics; None keeps all pixels.
        dimensions: number of spatial axes; None for 3 in NIfTI files and ITK's formats, and 2 in other files.
        missing: what to do if only one of the folders contains a case. `error` raises an error. `skip` leaves the case
            out. `empty` treats a missing prediction as empty, and leaves out a prediction without a true label file.
        trust: packages from which metrics may be imported.
        progress: function that wraps the iteration over the cases, e.g. with a progress bar. It receives an iterator
            and the number of cases, and returns an iterator.

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
    """Parse the option `--classes`, e.g. `1,2` or `liver=1,tumour=2+3`, and return the label values of each class.

    Raises:
        MaskfoldError: the text has another form, a class occurs twice, or a value is 0 (status 2).

    Example:
        >>> parse_classes("liver=1,tumour=2+3")
        {'liver': [1], 'tumour': [2, 3]}
    """
    found: dict[str, list[int]] = {}
    for part in text.split(","):
        name, _, values = part.strip().rpartition("=")
        if not re.fullmatch(r"\d+(\+\d+)*", values) or (name or values) in found:
            raise MaskfoldError(
                f"--classes: found `{part.strip()}`, expected VALUE or NAME=VALUE, and each class once.",
                "Write for example --classes 1,2 or --classes liver=1,tumour=2+3.",
                status=2,
            )
        found[name or values] = [int(value) for value in values.split("+")]
    if any(0 in values for values in found.values()):
        raise MaskfoldError(
            "--classes: found 0, which is the background, expected values above 0.",
            "Write only values above 0.",
            status=2,
        )
    return found


def _sections(names: Sequence[str], tolerances: Sequence[float], trust: Sequence[str]) -> dict[str, MetricConfig]:
    """Return the configuration of each metric, by the name of its column in the table of scores.

    Args:
        names: names or import paths of the metrics.
        tolerances: tolerances of `nsd` in mm.
        trust: packages from which metrics may be imported.

    Raises:
        MaskfoldError: a metric is unknown, or has no value for a single case (status 2).
    """
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
                f"--metrics: {error}.", "Give the names of metrics, or import paths of your own metrics.", status=2
            ) from error
        if config.resolve().pooled_share:
            raise MaskfoldError(
                f"--metrics: {name} cannot score label files, because this metric is pooled over the slices of all "
                "cases.",
                "Score a CSV with --competition instead.",
                status=2,
            )
        sections[config.name] = config
    return sections


def _files(folder: Path, option: str) -> dict[str, Path]:
    """Return the label files in a folder, by id; subfolders are not searched.

    The id is the name of the file without its extension.

    Args:
        folder: the folder.
        option: name of the command's option or argument, for messages.

    Raises:
        MaskfoldError: the folder does not exist or contains no label file, the name of a file is invalid, or two files
            have the same id (status 2).
    """
    if not folder.is_dir():
        raise MaskfoldError(
            f"{option}: {folder} is a file or does not exist, expected a folder.",
            "Give a folder of label files.",
            status=2,
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith(".") or not has_reader(path.name):
            continue
        if (problem := name_problem(case := strip_extension(path.name))) is not None:
            raise MaskfoldError(f"{option}: the name {path.name!r} {problem}.", "Rename the file.", status=2)
        if case in files:
            raise MaskfoldError(
                f"{option}: two files have the id {case}: {files[case].name} and {path.name}, expected one file.",
                "Remove one of the two files.",
                status=2,
            )
        files[case] = path
    if not files:
        raise MaskfoldError(
            f"{option}: {folder} has no label file that Maskfold can read.",
            "Give the folder that directly contains the files, such as case.nii.gz or case.png.",
            status=2,
        )
    return files


def _check_missing(
    predictions: Path, truth: Path, absent: list[str], extra: list[str], missing: str, count: int
) -> None:
    if len(absent) == count:
        raise MaskfoldError(
            f"No file of {predictions} has the same name as a file of {truth}. The predictions have the ids "
            f"{_listed(extra)}; the true label files have the ids {_listed(absent)}.",
            "Give the two files of a case the same name; only their extensions may differ.",
            status=2,
        )
    if missing == "error" and (absent or extra):
        parts = [f"no prediction for {format_count(len(absent), 'case')}: {_listed(absent)}"] if absent else []
        parts += [f"no true labels for {format_count(len(extra), 'prediction')}: {_listed(extra)}"] if extra else []
        raise MaskfoldError(
            f"{predictions} and {truth} have different cases: {'; '.join(parts)}.",
            "To count missing predictions as empty, add --missing empty. To leave these cases out, add --missing skip.",
            status=2,
        )


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN_IDS]) + and_more(len(ids), SHOWN_IDS, "id") if ids else "none"


def _read_pair(
    case: str, predicted: Path | None, true: Path, dimensions: int | None
) -> tuple[tuple[Labels, Labels], tuple[float, ...]]:
    """Read the predicted and the true labels of a case, and the voxel size of the true labels in mm.

    The arrays have the order of axes of the true labels, even if the two files have different formats.

    Args:
        case: id of the case.
        predicted: file of the prediction; None if it is missing, which gives an empty prediction.
        true: file of the true labels.
        dimensions: number of spatial axes; None to decide by the format.

    Raises:
        MaskfoldError: a file is unreadable, or the files differ in shape or affine.
    """
    header = read_header(true, dimensions, labels=True)
    order = None
    if predicted is not None:
        own = read_header(predicted, dimensions, labels=True)
        order = permutation(_axes(predicted, own), _axes(true, header))
        if order is not None:  # only pictures have another order, and they have no affine
            own = replace(own, shape=tuple(own.shape[axis] for axis in order), affine=None)
        try:
            check_same_grid(case, (str(true), header), (str(predicted), own), is_mask=False)
        except MaskfoldError as error:
            raise MaskfoldError(
                error.message, "Predict on the grid of the true label file, or resample the prediction to this grid."
            ) from error
    labels, _ = read_labels(true, dimensions)
    if predicted is None:
        return (np.zeros_like(labels), labels), header.spacing
    own_labels, _ = read_labels(predicted, dimensions)
    return (own_labels if order is None else own_labels.transpose(order), labels), header.spacing


def _axes(path: Path, header: Header) -> str | None:
    """Return the order of axes of a file, such as `xyz`; None for NPY and NPZ files, which do not store it."""
    axes = "xyz" if NIFTI.search(path.name) else "yxz" if PICTURE.search(path.name) else None
    return axes if axes is None or len(header.shape) == 3 else axes.replace("z", "")


def _values(labels: Labels, file: Path | None, chosen: Mapping[str, list[int]] | None) -> set[int]:
    """Return the different values of a label array, except 0.

    Args:
        labels: the array.
        file: file that contains the array, for messages.
        chosen: label values of each class, if the user has selected classes. None makes every value a class.

    Raises:
        MaskfoldError: `chosen` is None, and the array has more than `MAX_VALUES` values or a negative value.
    """
    values = {int(value) for value in np.unique(labels)} - {0}
    if chosen is None and (len(values) > MAX_VALUES or min(values, default=0) < 0):
        raise MaskfoldError(
            f"{file} has {len(values)} different values other than 0, from {min(values)} to {max(values)}; expected "
            f"label values above 0, and at most {MAX_VALUES} different ones.",
            "Give label files instead of images or object numbers. Or list the label values, as in --classes 1,2.",
        )
    return values


def _check_values(predicted: set[int], true: set[int], chosen: Mapping[str, list[int]] | None) -> None:
    """Check that the label values of predictions and true label files match.

    If the user has selected classes, at least one file must contain a value of these classes. Otherwise, predictions
    and true label files must have a value in common.

    Args:
        predicted: values in all predictions.
        true: values in all true label files.
        chosen: label values of each class that the user has selected; None if every value is a class.

    Raises:
        MaskfoldError: the label values do not match (status 2).
    """
    if chosen is None and predicted and true and not predicted & true:
        first, second = (_listed_values(values) for values in (predicted, true))
        raise MaskfoldError(
            f"No label value is in both folders: the predictions have {first}, and the files of --truth have {second}.",
            f"Use --classes to join values that mean the same class. For example, --classes object={min(predicted)}+"
            f"{min(true)} makes {min(predicted)} and {min(true)} one class with the name object.",
            status=2,
        )
    known = {value for values in (chosen or {}).values() for value in values}
    if chosen is not None and not known & (predicted | true):
        raise MaskfoldError(
            f"--classes: no file has one of the values {', '.join(map(str, sorted(known)))}. The files have "
            f"{_listed_values(predicted | true) or 'no value above 0'}.",
            "Give --classes label values that the files have.",
            status=2,
        )


def _listed_values(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)[:SHOWN_IDS])) + and_more(len(values), SHOWN_IDS, "value")


def _score_masks(
    labels: tuple[Labels, Labels],
    values: Sequence[int],
    ignored: NDArray[np.bool_] | None,
    spacing: Sequence[float],
    sections: Mapping[str, MetricConfig],
    case: str,
    cls: str,
) -> dict[str, float]:
    """Return the metrics and pixel counts of one class of one case.

    Distances, objects and surfaces are computed once for all metrics.

    Args:
        labels: predicted and true labels of the case, each (*spatial) integers.
        values: label values of the class.
        ignored: (*spatial) bool, True for pixels to leave out; None to leave out none.
        spacing: voxel size in mm along each axis.
        sections: configuration of each metric, by the name of its column.
        case: id of the case, for messages.
        cls: name of the class, for messages.
    """
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
                "If only one of the two masks is empty, the metric must return its worst possible score, such "
                "as the diagonal of the image for a distance.",
            )
    return {**scores, **counts._asdict()}
