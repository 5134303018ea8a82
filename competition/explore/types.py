"""Define the results of an exploration: findings, and measurements of one case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.data.selection import SkippedCases
from competition.errors import MaskfoldError

Severity = Literal["fault", "remark"]
MAX_SHOWN_IDS = 5
SKIPPED_HINT = "`maskfold cv` skips this case (on_bad_case: skip)."


def limit_ids(ids: Sequence[str]) -> list[str]:
    """Return the first ids, followed by a text with the number of the remaining ids."""
    return list(ids) if len(ids) <= MAX_SHOWN_IDS else [*ids[:MAX_SHOWN_IDS], f"and {len(ids) - MAX_SHOWN_IDS} more"]


@dataclass(frozen=True)
class Finding:
    """Hold a fault or a remark.

    Attributes:
        severity: `fault` or `remark`; a fault stops `cv` or makes its score wrong, a remark may be intended.
        kind: files, image, mask, table, group, class, conflict, duplicate, near-duplicate, empty, mixed, objects,
            metric, exif, shift or left out.
        split: train or test; empty for both.
        case: id, or ids separated by commas; empty for all cases.
        message: the problem in one sentence, with the file or row.
        hint: solution in one sentence.
    """

    severity: Severity
    kind: str
    split: str
    case: str
    message: str
    hint: str


@dataclass
class Findings:
    """Collect findings in order, without duplicates.

    Attributes:
        all: the findings.
        skip: whether the competition sets `on_bad_case: skip`.
        skipped: split and id of each bad case that `cv` skips because of this setting.
    """

    all: list[Finding] = field(default_factory=list)
    skip: bool = False
    skipped: set[tuple[str, str]] = field(default_factory=set)

    def add_fault(self, kind: str, split: str, case: str, error: MaskfoldError) -> None:
        """Add an error that stops `cv`, as a fault."""
        self.add(Finding("fault", kind, split, case, error.message, error.hint))

    def add_bad_case(self, kind: str, split: str, case: str, error: MaskfoldError) -> None:
        """Add an error of one case: as a remark if `cv` skips the case (`on_bad_case: skip`), otherwise as a fault."""
        if not self.skip:
            self.add_fault(kind, split, case, error)
            return
        self.skipped.add((split, case))
        self.add_remark("left out", split, case, error.message, SKIPPED_HINT)

    def add_remark(self, kind: str, split: str, case: str, message: str, hint: str) -> None:
        """Add a remark."""
        self.add(Finding("remark", kind, split, case, message, hint))

    def add(self, finding: Finding) -> None:
        """Add a finding unless the same finding was added before."""
        if finding not in self.all:
            self.all.append(finding)


class ErrorCollector(SkippedCases):
    """Collect all errors of discovery, regardless of `on_bad_case`.

    Attributes:
        errors: id and error of each bad case.
        fatal_errors: id and error of the cases that stop `cv` even if `on_bad_case` is `skip`.
    """

    def __init__(self, comp: Competition) -> None:
        super().__init__(comp)
        self.allowed = True
        self.errors: list[tuple[str, MaskfoldError]] = []
        self.fatal_errors: list[tuple[str, MaskfoldError]] = []

    def add(self, case_id: str, error: MaskfoldError) -> None:
        """Record the error of a bad case."""
        super().add(case_id, error)
        self.errors.append((case_id, error))


@dataclass(frozen=True)
class ChannelStats:
    """Hold statistics of the intensities of one channel of one case, in the file's units.

    Attributes:
        name: name of the channel.
        minimum: smallest value.
        low: 0.5 % quantile.
        median: 50 % quantile.
        high: 99.5 % quantile.
        maximum: largest value.
        mean: mean of all values.
        std: standard deviation of all values.
        contrast: Cohen's d, (mean of the foreground - mean of the background) / pooled standard deviation; nan if one
            of the two is empty or both are constant.
        foreground_low: 5 % quantile of the foreground, robust to imprecise masks; nan without foreground.
        foreground_high: 95 % quantile of the foreground.
    """

    name: str
    minimum: float
    low: float
    median: float
    high: float
    maximum: float
    mean: float
    std: float
    contrast: float = float("nan")
    foreground_low: float = float("nan")
    foreground_high: float = float("nan")


@dataclass(frozen=True, eq=False)
class TruthStats:
    """Hold statistics of the truth of one case.

    Attributes:
        voxels: (K,) number of voxels of each class.
        foreground: number of voxels of any class.
        ignored: number of ignored voxels.
        total: number of voxels of the case.
        objects: number of voxels of each object, one array per class.
        covered: number of objects that share voxels with a later object.
        copies: number of the objects in `covered` that are identical to another object.
        empty_objects: number of objects without a voxel.
        frequency: (K, *cells) share of each cell of a coarse grid that each class fills; see
            `competition.explore.symmetry`.
        widths: (K,) 2D: mean width of each class in pixels, see `competition.explore.cases.mean_width`; 0 for a class
            without pixels. None for volumes.
    """

    voxels: NDArray[np.int64]
    foreground: int
    ignored: int
    total: int
    objects: list[NDArray[np.int64]]
    covered: int = 0
    copies: int = 0
    empty_objects: int = 0
    frequency: NDArray[np.float32] | None = None
    widths: NDArray[np.float64] | None = None

    @property
    def object_sizes(self) -> NDArray[np.int64]:
        """Number of voxels of each object of any class."""
        return np.concatenate([*self.objects, np.empty(0, np.int64)])


@dataclass(eq=False)
class CaseStats:
    """Hold the measurements of one case; measurements that need an unreadable file are None.

    Attributes:
        id: id of the case.
        split: train or test.
        images: image files of the case, relative to the root.
        shape: shape of the image, from its header.
        spacing: voxel size along each axis in mm, from the header.
        pixdim: voxel size along each axis in mm, from pixdim of a NIfTI header; None if the affine gives the same size.
        orientation: axis codes such as RAS, from the header; None if the header does not store the orientation.
        dtype: data type of the image, from the header.
        channels: number of channels, from the header.
        stats: intensities of each channel.
        is_colour: whether the red, green and blue channels differ.
        truth: statistics of the truth; None for test cases.
        label_channels: number of channels of the label file.
        undeclared_labels: number of voxels of each label value that belongs to no class.
        thumbnail: float32; see `competition.data.duplicates.make_thumbnail`.
        group: group from `competition.group`.
        image_hash, hash: columns of the case table, see `competition.data.cases.case_table`.
        row: row of the case table, to read the case again.
        skipped: whether `cv` skips the case because of `on_bad_case: skip`.
    """

    id: str
    split: str
    images: list[str] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    pixdim: tuple[float, ...] | None = None
    orientation: str | None = None
    dtype: str | None = None
    channels: int | None = None
    stats: list[ChannelStats] | None = None
    is_colour: bool | None = None
    truth: TruthStats | None = None
    label_channels: int | None = None
    undeclared_labels: dict[int, int] = field(default_factory=dict)
    thumbnail: NDArray[np.float32] | None = None
    group: str | None = None
    image_hash: str = ""
    hash: str = ""
    row: Any = None
    skipped: bool = False

    @property
    def readable(self) -> bool:
        """Whether the image was read, and not only its header."""
        return self.stats is not None

    @property
    def aspect(self) -> float | None:
        """Ratio of the longest side of the image to the shortest, both in mm."""
        if self.shape is None or self.spacing is None:
            return None
        sides = [n * mm for n, mm in zip(self.shape, self.spacing, strict=True)]
        return max(sides) / min(sides)
