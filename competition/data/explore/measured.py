"""What is known of one case after it was read: the plain numbers, and a thumbnail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Values:
    """The intensities of one channel of one case, in the file's own units.

    Attributes:
        name: of the channel.
        least, low, median, high, most: minimum, 0.5 %, 50 % and 99.5 % quantile, maximum.
        mean, deviation: of all values.
        contrast: (mean of the foreground - mean of the background) / their common standard deviation, which is Cohen's d
            with equal weights; nan where one of the two is empty or both are of one value.
        front_low, front_high: 5 % and 95 % quantile of the foreground, so that a mask that spills a
            little does not matter; nan without any.
    """

    name: str
    least: float
    low: float
    median: float
    high: float
    most: float
    mean: float
    deviation: float
    contrast: float = float("nan")
    front_low: float = float("nan")
    front_high: float = float("nan")


@dataclass(frozen=True, eq=False)
class Truth:
    """The truth of one case.

    Attributes:
        voxels: (K,) of each class.
        foreground: voxels of any class.
        ignored: voxels that count nowhere.
        total: voxels of the case.
        objects: for each class the voxels of each object.
    """

    voxels: NDArray[np.int64]
    foreground: int
    ignored: int
    total: int
    objects: list[NDArray[np.int64]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Voxels of each object of any class."""
        return np.concatenate([*self.objects, np.empty(0, np.int64)])


@dataclass(eq=False)
class Measured:
    """One case; what could not be read stays None.

    Attributes:
        id, split: which case. images: its files below the root.
        shape, spacing, orientation (axis codes such as RAS), dtype, channels: of the image, from its header.
        values: by channel. colour: whether a picture's red, green and blue differ.
        truth: None for test cases too. label_channels: of its label file. strange: voxels by label value that no class has.
        thumbnail: flat float32; see `thumbnails.thumbnail`.
        group: by `competition.group`.
        image_hash, hash: see `competition.data.table`.
        row: of the case table, to read the case again.
        left_out: by `cv`, since `on_bad_case` is skip.
    """

    id: str
    split: str
    images: list[str] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    orientation: str | None = None
    dtype: str | None = None
    channels: int | None = None
    values: list[Values] | None = None
    colour: bool | None = None
    truth: Truth | None = None
    label_channels: int | None = None
    strange: dict[int, int] = field(default_factory=dict)
    thumbnail: NDArray[np.float32] | None = None
    group: str | None = None
    image_hash: str = ""
    hash: str = ""
    row: Any = None
    left_out: bool = False

    @property
    def readable(self) -> bool:
        """Whether the image was read, not its header only."""
        return self.values is not None

    @property
    def aspect(self) -> float | None:
        """The longest side over the shortest, in mm where the file says."""
        if self.shape is None or self.spacing is None:
            return None
        sides = [n * mm for n, mm in zip(self.shape, self.spacing, strict=True)]
        return max(sides) / min(sides)
