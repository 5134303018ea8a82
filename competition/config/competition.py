"""Define the schema of competition.yaml: the data, classes, metric and submission format of the host."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from competition.config.metric import (
    METRICS,
    Direction,
    Metric,
    WeightedSum,
    best_score,
    load_own_metric,
    sum_direction,
)
from competition.errors import MaskfoldError
from competition.text import fold_name, join_or, name_problem

DEFAULT_METRIC = "dice"


class ConfigModel(BaseModel):
    """Define the rules of all YAML sections: strict types, no unknown keys, no change after construction.

    This is the base class of all sections.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


PositiveInt = Annotated[int, Field(gt=0)]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]


class TableColumns(ConfigModel):
    """Set the column names of a table of run-length encoded masks."""

    id: str = "id"
    cls: str | None = Field(default=None, alias="class")  # None: the table has one class
    mask: str = "rle"

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class RleConfig(ConfigModel):
    """Set the format of run-length encoded masks; see `competition.rle_text.RleFormat`."""

    order: Literal["row", "column"] = "column"
    base: Literal[0, 1] = 1
    relative: bool = False
    empty: str = ""


class TrainFiles(ConfigModel):
    """Set the paths of the training images and their ground truth.

    In a path, `{id}` stands for the case, `{z}` for a slice of the case's stack, and `{c}` for a channel.

    Exactly one of `masks` and `rle` (a table of run lengths) is set. `masks` names one label file per case
    (`"masks/{id}.png"`), one file per class (`{liver: "liver/{id}.png", …}`), or one file per object. With one file per
    object, the file name contains a `*` (`"{id}/masks/*.png"`).
    """

    images: str | dict[str, str]
    masks: str | dict[str, str] | None = None
    rle: str | None = None
    columns: TableColumns = TableColumns()
    rle_format: RleConfig | None = None  # None: same as `submission.rle`
    # `empty`: if there is one file per class, a missing file means that the case does not have this class.
    missing_masks: Literal["error", "empty"] = "error"
    # True: assume that masks and images have the same voxel grid, and ignore the affines in the masks' headers.
    masks_on_image_grid: bool = False
    # `apply`: rotate images and label files by their EXIF orientation; `ignore` and None: read pixels as they are
    # stored. With None, a remark names the images that have an orientation.
    exif: Literal["ignore", "apply"] | None = None
    # For JPEG masks: values at or above the threshold are the class, lower values are background. Requires one class,
    # or one file per class.
    threshold: PositiveInt | None = None
    # True: the values of a label file number the objects of its case, so each value above 0 is an object of the only
    # class. Requires `instances`, one class, and one label file per case.
    object_numbers: bool = False
    # One region mask per case: pixels where it is 0 are excluded from training and scoring.
    region: str | None = None
    # Use only these ids, or the ids in a CSV's column `id`; None: all cases.
    cases: str | Annotated[list[str], Field(min_length=1)] | None = None
    # Cases to leave out: ids, or a CSV. If the CSV has a column `exclude`, only the cases that are marked in it are
    # left out.
    exclude: str | list[str] | None = None
    # How often a case is drawn, relative to other cases (weight 1): a mapping of ids, or a CSV with the columns `id`
    # and `weight`.
    weights: str | dict[str, Annotated[float, Field(gt=0.0, le=100.0)]] | None = None

    @model_validator(mode="after")
    def _check_truth(self) -> TrainFiles:
        if (self.masks is None) == (self.rle is None):
            raise ValueError("set exactly one of `masks` and `rle`")
        if self.threshold is not None and self.masks is None:
            raise ValueError("`threshold` needs mask files, so it requires the key `masks`")
        if self.missing_masks == "empty" and not isinstance(self.masks, dict):
            raise ValueError("`missing_masks: empty` needs one mask file per class: set `masks: {class: pattern, …}`")
        return self

    @property
    def selects_cases(self) -> bool:
        """Whether `train.cases` or `train.exclude` is set.

        If so, masks and table rows that belong to no selected case are not an error.
        """
        return self.cases is not None or self.exclude is not None


class TestFiles(ConfigModel):
    """Set the paths of the test images."""

    images: str | dict[str, str]
    # Use only these ids, or the ids in a CSV's column `id`, for example if training images match the pattern too; None:
    # all cases.
    cases: str | Annotated[list[str], Field(min_length=1)] | None = None
    # One region mask per test case: predictions in pixels where it is 0 are set to background.
    region: str | None = None

    @model_serializer(mode="wrap")
    def _omit_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit keys that are not set, so that the stored settings of older runs, and their hashes, stay valid."""
        plain: dict[str, Any] = handler(self)
        return {key: value for key, value in plain.items() if value is not None}


class MetricTerm(ConfigModel):
    """Set one term of a weighted sum of metrics: a metric with its settings, and its weight."""

    name: str | None = None  # with `target`, only a label, by default the last part of the path
    weight: float = 1.0
    beta: float = 1.0
    tolerance_mm: float = 1.0
    target: str | None = None
    args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check_term(self) -> MetricTerm:
        if self.name is None and self.target is None:
            raise ValueError("each term of `sum` needs `name` or `target`, found neither of the two keys")
        if self.weight == 0:
            raise ValueError("`weight` must not be 0")
        if self.target is None and METRICS.get(str(self.name)).pooled_share:
            raise ValueError(
                f"`name`: {self.name} cannot be part of a sum, because one part of its score is a mean over all slices "
                "instead of a mean over cases"
            )
        self.config()
        return self

    @property
    def label(self) -> str:
        """The name of the term's metric in error messages and tables."""
        return self.name or str(self.target).rpartition(".")[2]

    def config(self, trust: Sequence[str] = ()) -> MetricConfig:
        """Return a section `metric` with the metric of this term alone, without the term's weight.

        Args:
            trust: additional packages from which `target` may be imported.
        """
        values = self.model_dump(include={"beta", "tolerance_mm", "target", "args"})
        section = MetricConfig.model_validate({"name": self.label, **values})
        section.trust(trust)
        return section


class MetricConfig(ConfigModel):
    """Set the host's metric: a metric of `competition.metrics`, the user's own metric, or a weighted sum of metrics.

    `average` sets how scores are averaged. `case_class` is the mean over all pairs of case and class. `class` takes
    the mean of each class, then the mean over classes. `global` scores each class on all pixels (or objects) of all
    cases, then takes the mean over classes.

    `both_empty` is the score of a class in a case in which neither truth nor prediction has the class. With null, this
    pair of case and class is left out of the mean. The default is the best score: 1.0, or 0.0 if lower scores are
    better. For a sum, the default is the weighted sum of the terms' best scores. For the user's own metric, and for a
    sum that contains one, the default is null.
    """

    # with `target` or `sum`, only a label; by default the last part of the path, or the names of the terms
    name: str = DEFAULT_METRIC
    average: Literal["case_class", "class", "global"] = "case_class"
    both_empty: float | None = 1.0
    beta: float = 1.0
    tolerance_mm: float = 1.0
    target: str | None = None  # import path of the user's own metric
    args: dict[str, Any] = {}  # settings of the metric that are not keys above
    sum: Annotated[list[MetricTerm], Field(min_length=1)] | None = None  # terms of a weighted sum, instead of a metric

    _trust: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def _insert_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        target, name = data.get("target"), data.get("name")
        if isinstance(data.get("sum"), list):
            return _sum_defaults(data["sum"]) | data
        if isinstance(target, str):
            return {"name": target.rpartition(".")[2], "both_empty": None, **data}
        if isinstance(name, str) and "both_empty" not in data and _lower_is_better(name):
            return {**data, "both_empty": 0.0}
        return data

    @model_validator(mode="after")
    def _check_metric(self) -> MetricConfig:
        if self.sum is not None:
            self._check_sum(self.sum)
        elif self.target is None and (self.name != DEFAULT_METRIC or self.args):
            try:
                metric = METRICS.get(self.name)
            except ValueError as error:
                raise ValueError(f"`name`: {error}") from error
            for name in self.args:
                if name in YAML_SETTINGS:
                    raise ValueError(
                        f"`args.{name}`: {name} is a key of the section `metric` itself; set `metric.{name}` instead"
                    )
            metric.bind(self.args, self._yaml_settings())
        if self.average == "global" and not self.has_own_code and not self.resolve().supports_global:
            raise ValueError(self._global_problem())
        return self

    def _check_sum(self, terms: list[MetricTerm]) -> None:
        if self.target is not None or self.args:
            raise ValueError(
                "`sum` cannot be combined with `target` or with `args`; write these keys in a term of the sum"
            )
        if not self.has_own_code:  # the direction of a `target` is known only after its import
            sum_direction([(term.weight, term.label, term.config().direction) for term in terms])

    def _global_problem(self) -> str:
        names = [name for name in METRICS.names() if METRICS.get(name).supports_global]
        return (
            f"`average: global` is not possible for {self.name}, only for a metric that is computed from sums over "
            f"cases ({join_or(names)}); set `average` to case_class or class"
        )

    @model_serializer(mode="wrap")
    def _omit_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `target`, `args` and `sum` if they are not set.

        So for runs that are older than these keys, the stored settings and their hashes stay valid.
        """
        plain: dict[str, Any] = handler(self)
        return {key: value for key, value in plain.items() if value or key not in ("target", "args", "sum")}

    def __eq__(self, other: object) -> bool:
        """Return whether all keys are equal. Trusted packages are not compared."""
        return isinstance(other, MetricConfig) and self.__dict__ == other.__dict__

    def trust(self, packages: Sequence[str]) -> None:
        """Trust additional packages, from which `target` may be imported when the metric is first used."""
        self._trust = tuple(packages)

    def resolve(self) -> Metric:
        """Return the metric with its settings.

        Raises:
            MaskfoldError (exit status 2): one of these problems.

                - `target` cannot be imported, is not trusted, or does not accept `args`.
                - The user's own metric does not support `average: global`.
                - A higher sum means that one term of `sum` is better, but that another term is worse.
        """
        if self.sum is not None:
            terms = [(term.weight, term.config(self._trust).resolve()) for term in self.sum]
            metric = Metric(self.name, WeightedSum(terms), self.direction)
        elif self.target is None:
            return METRICS.get(self.name).bind(self.args, self._yaml_settings())
        else:
            metric = load_own_metric(self.target, self.name, self._trust, "competition.metric.target")
            try:
                metric = metric.bind(self.args, self._yaml_settings())
            except ValueError as error:
                raise MaskfoldError(
                    f"competition.metric: {error}.",
                    "Correct competition.metric.args or, if the metric is a term of a sum, `args` of this term.",
                    status=2,
                ) from error
        if self.average == "global" and self.has_own_code and not metric.supports_global:
            raise MaskfoldError(
                f"competition.metric: {self._global_problem()}.",
                "To write a metric with one score over all cases, see the section on metrics in CONTRIBUTING.md.",
                status=2,
            )
        return metric

    @property
    def direction(self) -> Direction:
        """Whether higher or lower scores are better."""
        if self.sum is not None:
            terms = [(term.weight, term.label, term.config(self._trust).direction) for term in self.sum]
            try:
                return sum_direction(terms)
            except ValueError as error:
                raise MaskfoldError(
                    f"competition.metric.sum: {error}.",
                    "Change the sign of a weight, so that an improvement of each term changes the sum in the same "
                    "direction.",
                    status=2,
                ) from error
        if self.target is None:
            return METRICS.get(self.name).direction
        return load_own_metric(self.target, self.name, self._trust, "competition.metric.target").direction

    @property
    def label(self) -> str:
        """The metric's name for tables and axes; if lower scores are better, the name says so."""
        return self.name if self.direction is Direction.HIGHER else f"{self.name}, lower is better"

    @property
    def targets(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The import path and the arguments of each metric that is the user's own code, by its key below `metric`.

        The key is empty for `metric.target`, and e.g. `sum.0` for the first term of `metric.sum`.
        """
        found = {"": (self.target, self.args)} if self.target is not None else {}
        for number, term in enumerate(self.sum or ()):
            if term.target is not None:
                found[f"sum.{number}"] = (term.target, term.args)
        return found

    @property
    def has_own_code(self) -> bool:
        """Whether the metric, or a term of it, is the user's own function or class."""
        return bool(self.targets)

    @property
    def is_share(self) -> bool:
        """Whether the metric guarantees scores between 0 and 1."""
        return self.sum is None and not self.has_own_code and self.direction is Direction.HIGHER

    @property
    def has_pooled_term(self) -> bool:
        """Whether one part of the metric's score is a mean over the slices (or other items) of all cases together."""
        # see `load_own_metric` and `MetricTerm`
        return self.target is None and self.sum is None and METRICS.get(self.name).pooled_share > 0

    def _yaml_settings(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in YAML_SETTINGS}


YAML_SETTINGS = ("beta", "tolerance_mm")  # settings that are keys of `metric`; others are in `args`


def _lower_is_better(name: str) -> bool:
    try:
        return name != DEFAULT_METRIC and METRICS.get(name).direction is Direction.LOWER
    except ValueError:
        return False  # `_check_metric` reports an unknown name


def _sum_defaults(terms: list[Any]) -> dict[str, Any]:
    """Return the default values of `name` and `both_empty` for a weighted sum.

    The result is empty if the terms of the sum are invalid. Pydantic then reports the invalid terms.
    """
    names, total = [], 0.0
    for term in terms:
        if isinstance(term, MetricTerm):
            term = term.model_dump()
        if not isinstance(term, dict) or not isinstance(weight := term.get("weight", 1.0), int | float):
            return {}
        target, name = term.get("target"), term.get("name")
        names.append(str(name or str(target).rpartition(".")[2]))
        if target is not None:
            total = nan
        elif not isinstance(name, str) or name not in METRICS.names():
            return {}
        else:
            total += weight * best_score(METRICS.get(name))
    return {"name": " + ".join(names), "both_empty": None if isnan(total) else round(total, 12)}


LABEL_FILE_EXTENSIONS = (".nii.gz", ".nii", ".mha", ".tif", ".tiff", ".png")


class SubmissionFormat(ConfigModel):
    """Set the format of the submission: a CSV, or label files (`files`)."""

    profile: str | None = None  # name of a known format, e.g. uw-madison-gi-tract
    sample: str | None = None  # path below `root`
    columns: TableColumns = TableColumns()
    rle: RleConfig = RleConfig()
    kaggle: str | None = None  # the competition's name in Kaggle's URL, for `maskfold upload`
    # share of the test cases that the public leaderboard scores
    public_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    # Name of each case's label file, for hosts that want files: `{id}.nii.gz`, or `{class}/{id}.png` with one file per
    # class. None: a CSV.
    files: str | None = None
    zip: bool = False  # with `files`: one archive of all files
    labels: list[Annotated[int, Field(ge=1, le=65535)]] | None = None  # values in the files; None: `label_values`

    @model_validator(mode="after")
    def _check_files(self) -> SubmissionFormat:
        if self.files is None:
            if self.zip or self.labels is not None:
                raise ValueError(
                    '`zip` and `labels` apply only to label files, so they require `files`, e.g. `files: "{id}.nii.gz"`'
                )
            return self
        parts = self.files.replace("\\", "/").split("/")
        if "{id}" not in parts[-1] or not self.files.lower().endswith(LABEL_FILE_EXTENSIONS):
            raise ValueError(
                f"`files` must be a file name with {{id}}, and must end in {join_or(LABEL_FILE_EXTENSIONS)}, found "
                f"{self.files}"
            )
        if parts[0] in ("", "~") or ".." in parts or ":" in self.files:
            raise ValueError(f"`files` must be a relative path without `..`, `~` or colons, found {self.files}")
        return self

    @model_serializer(mode="wrap")
    def _omit_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `files`, `zip` and `labels` if they are not set.

        So for runs that are older than these keys, the stored settings and their hashes stay valid.
        """
        plain: dict[str, Any] = handler(self)
        return {key: value for key, value in plain.items() if value or key not in ("files", "zip", "labels")}


class Competition(ConfigModel):
    """Hold all settings that the host defines; all experiments on a competition share them."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    root: Annotated[Path, Field(strict=False)]  # relative to the working folder, otherwise to the YAML's folder
    dimensions: Literal[2, 3]
    classes: Annotated[list[str], Field(min_length=1, max_length=250)]
    # The label value or values of each class in label files; None: 1, 2, … Overlapping classes may share values.
    label_values: list[int | Annotated[list[int], Field(min_length=1)]] | None = None
    # Exclusive: softmax and argmax; overlapping: sigmoid and thresholds.
    labels: Literal["exclusive", "overlapping"] = "exclusive"
    ignore: int | None = None  # label value of pixels that are excluded from loss and score
    # The label value of pixels without a class. If it is not 0, then 0 is a class, the ignored value, or unused.
    background: Annotated[int, Field(ge=0, le=65535)] = 0
    instances: bool = False  # whether the submission has one row per object
    # Order of axes of NPY and NPZ files; None: the order of the case's other files.
    array_axes: Literal["xy", "yx", "xyz", "yxz", "zyx"] | None = None
    # mm along each axis of the arrays, for files that do not store it; None: 1 mm.
    spacing: list[Annotated[float, Field(gt=0.0)]] | None = None
    train: TrainFiles
    test: TestFiles | None = None
    # Group of each case: `file.csv:column`, or a regular expression whose first group matches the group in the id.
    group: str | None = None
    stratum: str | None = None  # written like `group`; used by `folds.scheme: stratified`
    on_bad_case: Literal["stop", "skip"] = "stop"
    metric: MetricConfig = MetricConfig()
    submission: SubmissionFormat = SubmissionFormat()

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @field_validator("classes", mode="before")
    @classmethod
    def _check_names(cls, classes: Any) -> Any:
        if isinstance(classes, list) and classes and all(type(name) is int for name in classes):
            raise ValueError(
                f"`classes` must be names, found {classes}; write the label values in `label_values: {classes}` and a "
                f"name for each in `classes`, such as [{', '.join(f'class_{name}' for name in classes[:2])}, …]"
            )
        return classes

    @model_validator(mode="after")
    def _check_consistency(self) -> Competition:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("`classes` must not contain duplicates")
        if len(set(map(fold_name, self.classes))) != len(self.classes):
            raise ValueError(
                (
                    "`classes` must differ in more than upper and lower case or Unicode form, because files are named "
                    "after classes; found "
                )
                + ", ".join(self.classes)
            )
        for name in self.classes:
            if (problem := name_problem(name)) is not None:
                raise ValueError(f"the class {name!r} in `classes` {problem}")
        all_values = [value for values in self.class_values for value in values]
        has_duplicates = len(set(all_values)) != len(all_values)
        must_be_unique = self.labels == "exclusive" or self.train.rle is not None
        is_class = self.background in all_values
        if len(self.class_values) != len(self.classes) or is_class or (has_duplicates and must_be_unique):
            raise ValueError(
                "`label_values` must have one value or one list of values for each class; the values must differ "
                f"from each other and from the label value of the background, {self.background}; found "
                f"{self.class_values} for {len(self.classes)} classes"
            )
        if self.ignore is not None and self.ignore in (self.background, *all_values):
            raise ValueError(
                f"`ignore` must differ from the label values of all classes and of the background ({self.background}), "
                f"found {self.ignore}"
            )
        if self.background and (
            not isinstance(self.train.masks, str)
            or self.instances
            or self.train.threshold is not None
            or self.labels == "overlapping"
        ):
            raise ValueError(
                f"`background: {self.background}` requires one label file per case (`train.masks` with one pattern) "
                "and `labels: exclusive`; it cannot be combined with `instances: true` or with `train.threshold`"
            )
        if self.train.object_numbers:
            self._check_object_numbers()
        if self.train.threshold is not None:
            if isinstance(self.train.masks, str) and len(self.classes) > 1:
                raise ValueError(
                    "`train.threshold` requires one class, or one file per class (`masks: {class: pattern, …}`)"
                )
            if self.ignore is not None:
                raise ValueError(
                    "`train.threshold` and `ignore` cannot be combined; to ignore pixels, set `train.region`"
                )
        if self.array_axes is not None and len(self.array_axes) != self.dimensions:
            expected = "xy or yx" if self.dimensions == 2 else "xyz, yxz or zyx"
            raise ValueError(
                f"`array_axes` must be {expected}, because `dimensions` is {self.dimensions}, found {self.array_axes}"
            )
        if self.spacing is not None and len(self.spacing) != self.dimensions:
            raise ValueError(
                f"`spacing` must have {self.dimensions} numbers (mm), because `dimensions` is {self.dimensions}, "
                f"found {len(self.spacing)}"
            )
        if (files := self.submission.files) is not None:
            if self.dimensions == 3 and files.lower().endswith(".png"):
                raise ValueError(
                    "`submission.files` cannot be PNG, because a PNG cannot contain a volume; use .nii.gz, .mha or .tif"
                )
            count = 0 if self.submission.labels is None else len(self.submission.labels)
            if count not in (0, len(self.classes)):
                raise ValueError(
                    f"`submission.labels` must have one value per class, found {count} for {len(self.classes)} classes"
                )
            if count and self.instances:
                raise ValueError(
                    "`submission.labels` and `instances: true` cannot be combined, because label files of instances "
                    "contain object numbers; remove `submission.labels`"
                )
        if isinstance(self.train.masks, dict) and set(self.train.masks) != set(self.classes):
            raise ValueError(
                "`train.masks` must have exactly one pattern for each class in `classes`, with the class name as key"
            )
        return self

    def _check_object_numbers(self) -> None:
        masks = self.train.masks
        if not self.instances:
            raise ValueError("`train.object_numbers` requires `instances: true`")
        if len(self.classes) != 1:
            raise ValueError(
                "`train.object_numbers` requires one class, because an object's number does not tell its class; found "
                f"{len(self.classes)}: {', '.join(self.classes)}"
            )
        if not isinstance(masks, str) or "*" in masks.rpartition("/")[2]:
            raise ValueError(
                "`train.object_numbers` requires one label file per case, that is `train.masks` with one pattern "
                f"without * in the file name, found {masks}"
            )
        if self.label_values is not None or self.train.threshold is not None:
            raise ValueError(
                "`train.object_numbers` cannot be combined with `label_values` or with `train.threshold`, because each "
                "value above 0 is an object; to leave out a value, set `ignore`"
            )

    @property
    def applies_exif(self) -> bool:
        """Whether images and label files are rotated by their EXIF orientation."""
        return self.train.exif == "apply"

    @property
    def class_values(self) -> list[list[int]]:
        """The values of each class in label files."""
        values = range(1, len(self.classes) + 1) if self.label_values is None else self.label_values
        return [value if isinstance(value, list) else [value] for value in values]

    @property
    def values_separate_objects(self) -> bool:
        """Whether pixels of different values in a label file belong to different objects of the only class."""
        if not self.instances or len(self.classes) > 1 or self.train.threshold is not None:
            return False
        return isinstance(self.train.masks, str) and (self.train.object_numbers or len(self.class_values[0]) > 1)

    @property
    def has_ignored_pixels(self) -> bool:
        """Whether the truth may contain ignored pixels, which loss and score exclude."""
        return self.ignore is not None or self.train.region is not None

    @property
    def output_label_values(self) -> list[int]:
        """The label value of each class in the label files that Maskfold writes: the first of the class's values."""
        return [values[0] for values in self.class_values]

    @property
    def output_channels(self) -> int:
        """Number of network output channels: one per class, plus background if classes are exclusive."""
        return len(self.classes) + (self.labels == "exclusive")
