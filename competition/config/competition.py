"""What the host gave: one immutable `Competition`, written once and shared by every experiment on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from competition.config.names import why_unfit


class Section(BaseModel):
    """A part of a YAML file: strict types, no unknown keys, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Columns(Section):
    """The names of a table's columns."""

    id: str = "id"
    cls: str | None = Field(default=None, alias="class")  # None: the table has one class
    mask: str = "rle"

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Rle(Section):
    """How run lengths are written; see `competition.rle.RleFormat`."""

    order: Literal["row", "column"] = "column"
    base: Literal[0, 1] = 1
    relative: bool = False
    empty: str = ""


class Train(Section):
    """Where the training images and their truth are. `{id}` is the case, `{z}` a slice of its stack.

    Exactly one of `masks` and `rle` is given. `masks` is a label file per case (`"masks/{id}.png"`), one file per
    class (`{liver: "liver/{id}.png", …}`), or a folder of instance masks (`"{id}/masks/*.png"`, a `*` in the name).
    """

    images: str | dict[str, str]
    masks: str | dict[str, str] | None = None
    rle: str | None = None
    columns: Columns = Columns()
    rle_format: Rle | None = None  # None: as in `submission.rle`
    cases: str | Annotated[list[str], Field(min_length=1)] | None = (
        None  # only these ids, or a CSV with the column id; None: all
    )

    @model_validator(mode="after")
    def _one_truth(self) -> Train:
        if (self.masks is None) == (self.rle is None):
            raise ValueError("give exactly one of `masks` and `rle`")
        return self


class Test(Section):
    """Where the test images are."""

    images: str | dict[str, str]


class Metric(Section):
    """The host's metric, computed by `competition.scoring`.

    `average` says how cases and classes are put together: `case_class` the mean over all (case, class) pairs, `class`
    the mean over classes of each class's mean, `global` one score per class over all pixels, then the mean.
    `both_empty` is the score of a class that is in neither truth nor prediction; null leaves the pair out.
    """

    name: Literal["dice", "iou", "mean_ap", "tgs_ap", "fbeta", "f2_iou", "uw_madison", "surface_dice"] = "dice"
    average: Literal["case_class", "class", "global"] = "case_class"
    both_empty: float | None = 1.0
    beta: float = 1.0
    tolerance_mm: float = 1.0

    @model_validator(mode="after")
    def _countable(self) -> Metric:
        if self.average == "global" and self.name not in ("dice", "iou", "fbeta"):
            raise ValueError(
                f"`average: global` adds up pixels, which {self.name} does not count; use case_class or class"
            )
        return self

    @property
    def lower_is_better(self) -> bool:
        """Whether less is better: of no metric here, since distances enter them as shares."""
        return False


class Submission(Section):
    """The file the host wants."""

    profile: str | None = None  # a known competition, e.g. uw-madison-gi-tract
    sample: str | None = None  # path below `root`
    columns: Columns = Columns()
    rle: Rle = Rle()
    kaggle: str | None = None  # the competition's name in Kaggle's address, for `maskfold upload`
    public_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of the test cases, those that the public board scores


class Competition(Section):
    """What the host gave."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    root: Annotated[Path, Field(strict=False)]  # relative to the working folder, else to the YAML's folder
    dimensions: Literal[2, 3]
    classes: Annotated[list[str], Field(min_length=1, max_length=250)]
    # The value of each class in label files, or its values; None: 1, 2, … Overlapping classes may share values.
    label_values: list[int | Annotated[list[int], Field(min_length=1)]] | None = None
    labels: Literal["exclusive", "overlapping"] = "exclusive"  # softmax and argmax, or sigmoid and a threshold each
    ignore: int | None = None  # a label value that counts nowhere
    instances: bool = False  # one submission row per object
    train: Train
    test: Test | None = None
    group: str | None = None  # a regular expression on the id (its first group), or `file.csv:column`
    stratum: str | None = None  # the same, for folds.scheme stratified
    on_bad_case: Literal["stop", "skip"] = "stop"
    metric: Metric = Metric()
    submission: Submission = Submission()

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="after")
    def _consistent(self) -> Competition:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("`classes` names one class twice")
        for name in self.classes:
            if (why := why_unfit(name)) is not None:
                raise ValueError(f"the class {name!r} in `classes` {why}")
        every = [value for values in self.class_values for value in values]
        shared = len(set(every)) != len(every) and (self.labels == "exclusive" or self.train.rle is not None)
        if len(self.class_values) != len(self.classes) or 0 in every or shared:
            raise ValueError(
                "`label_values` needs one value, or a list of values, for each class, all different and none 0"
            )
        if self.ignore is not None and self.ignore in (0, *every):
            raise ValueError("`ignore` is also the label value of a class or of the background")
        if isinstance(self.train.masks, dict) and set(self.train.masks) != set(self.classes):
            raise ValueError("`train.masks` needs one entry for each of `classes`, by name")
        return self

    @property
    def class_values(self) -> list[list[int]]:
        """The values of each class in label files."""
        given = range(1, len(self.classes) + 1) if self.label_values is None else self.label_values
        return [value if isinstance(value, list) else [value] for value in given]

    @property
    def values(self) -> list[int]:
        """The value of each class in label files that we write: the first of its values."""
        return [values[0] for values in self.class_values]

    @property
    def outputs(self) -> int:
        """Channels the network gives: background too where classes are exclusive."""
        return len(self.classes) + (self.labels == "exclusive")
