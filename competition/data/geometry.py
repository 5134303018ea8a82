"""What preparation does to a case's grid, recorded so that it can be undone on probabilities."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from competition.config.errors import MaskfoldError
from competition.config.experiment import Prepare
from competition.data.boxes import crop_box

MOST_VOXELS = 2**31  # of one channel; more is a wrong spacing rather than a big image


@dataclass(frozen=True)
class Geometry:
    """The way from a file's grid to the prepared grid: reorient, crop, resample, pad, in this order.

    Attributes:
        file_shape: spatial shape of the file.
        file_spacing: mm per axis of the file (1.0 for pictures).
        affine: the file's 4×4 voxel-to-world matrix, rows of numbers; None where the format has none.
        axes: prepared axis i is the file's axis `axes[i]`.
        flips: whether prepared axis i runs against the file's.
        crop: (start, stop) per axis of the reoriented grid.
        resampled: the shape that the crop is resampled to, with the outer edges of the first and last voxels aligned.
        pad: (before, after) per axis, added last.
        background: whether channel 0 of probabilities is the background, which then fills what was cropped away.
    """

    file_shape: tuple[int, ...]
    file_spacing: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...] | None
    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    crop: tuple[tuple[int, int], ...]
    resampled: tuple[int, ...]
    pad: tuple[tuple[int, int], ...]
    background: bool = True

    @classmethod
    def plan(cls, array: np.ndarray, spacing: tuple[float, ...], affine: np.ndarray | None, prepare: Prepare,
             background: bool = True, case: str = "") -> Geometry:
        """Decides the grid of one case.

        Args:
            array: the image, (C, *file shape); read only for `prepare.crop`.
            spacing: mm per axis of the file.
            affine: 4×4 voxel-to-world, or None.
            prepare: the experiment's section.
            background: see the class.
            case: the id, for messages.

        Raises:
            MaskfoldError: an orientation is wanted of a file without an affine, or the grid would be absurdly large.
        """
        shape = array.shape[1:]
        axes, flips = axes_of(affine, len(shape), prepare.orientation, case)
        view = reorient(array, axes, flips)
        crop = crop_box(view, prepare)
        size = tuple(stop - start for start, stop in crop)
        now = [spacing[axis] for axis in axes]
        resampled, pad = _planned(size, now, prepare)
        if resampled != size and np.prod([float(n) for n in resampled]) > MOST_VOXELS:
            raise MaskfoldError(f"Case {case} has spacing {now} mm and would become {resampled} voxels.",
                                "Choose a coarser `prepare.spacing` or a smaller size, or correct the file's header.")
        rows = None if affine is None else tuple(tuple(float(x) for x in row) for row in affine)
        return cls(tuple(shape), tuple(float(mm) for mm in spacing), rows, axes, flips, crop, resampled, pad,
                   background)

    @property
    def shape(self) -> tuple[int, ...]:
        """The prepared spatial shape."""
        return tuple(n + sum(pair) for n, pair in zip(self.resampled, self.pad, strict=True))

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm per axis of the prepared grid."""
        return tuple(self.file_spacing[axis] * (stop - start) / n
                     for axis, (start, stop), n in zip(self.axes, self.crop, self.resampled, strict=True))

    @property
    def lossless(self) -> bool:
        """Whether nothing is resampled."""
        return self.resampled == tuple(stop - start for start, stop in self.crop)

    def forward(self, array: np.ndarray, order: int) -> np.ndarray:
        """Takes an image or a mask to the prepared grid, padded with zeros.

        Args:
            array: (C, *file shape).
            order: 1 interpolates linearly (pictures keep their dtype, volumes become float32);
                0 resamples label values, of which each voxel gets the one with the largest share.

        Returns:
            (C, *prepared shape).
        """
        return np.stack([self.frame(self.grid(channel, order)) for channel in array])

    def grid(self, channel: np.ndarray, order: int) -> np.ndarray:
        """One channel (*file shape) on the resampled grid, before padding. See `forward`."""
        view = self.cropped(channel)
        if order == 0:
            return resample_labels(view, self.resampled)
        return resample_picture(view, self.resampled) if view.ndim == 2 else resample(view, self.resampled)

    def cropped(self, channel: np.ndarray) -> np.ndarray:
        """A view of one channel (*file shape), reoriented and cropped."""
        return reorient(channel[None], self.axes, self.flips)[0][self._crop()]

    def frame(self, channel: np.ndarray) -> np.ndarray:
        """One channel of the resampled grid, padded with zeros to the prepared shape."""
        return channel if channel.shape == self.shape else np.pad(channel, self.pad)

    def undo(self, probabilities: np.ndarray) -> np.ndarray:
        """Takes probabilities back to the file's grid: the exact inverse of `forward`, channel by channel.

        Outside of a crop the background is certain.

        Args:
            probabilities: (P, *prepared shape) float16 or float32.

        Returns:
            (P, *file shape), the same dtype.
        """
        if probabilities.shape[1:] != self.shape:
            raise ValueError(f"probabilities of shape {probabilities.shape} do not fit the prepared shape {self.shape}")
        whole = np.empty((len(probabilities), *self.file_shape), probabilities.dtype)
        inner = tuple(slice(before, before + n) for (before, _), n in zip(self.pad, self.resampled, strict=True))
        size = tuple(stop - start for start, stop in self.crop)
        everything = size == tuple(self.file_shape[axis] for axis in self.axes)
        for index, channel in enumerate(probabilities):
            if not everything:
                whole[index] = 1 if self.background and index == 0 else 0
            view = reorient(whole[index:index + 1], self.axes, self.flips)[0]  # a view: writing to it fills `whole`
            view[self._crop()] = channel[inner] if self.lossless else resample(channel[inner], size)
        return whole

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Geometry:
        """The inverse of `to_dict`, also after JSON made lists of the tuples."""
        return cls(**{name: _tuples(value) for name, value in values.items()})

    def _crop(self) -> tuple[slice, ...]:
        return tuple(slice(start, stop) for start, stop in self.crop)


def resample(channel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Linear interpolation of (*spatial), 2 or 3 axes, to `shape`, outer edges aligned; a new float32 array.

    Axes whose length stays are copied exactly (their weights are 0 and 1).
    """
    source = np.array(channel, dtype=np.float32, order="C", copy=True if channel.shape == tuple(shape) else None)
    if channel.shape == tuple(shape):
        return source
    import torch
    import torch.nn.functional as functional

    mode = "bilinear" if channel.ndim == 2 else "trilinear"
    with torch.no_grad():
        return functional.interpolate(_tensor(source)[None, None], size=tuple(shape), mode=mode,
                                      align_corners=False)[0, 0].numpy()


def resample_picture(channel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One channel (H, W), uint8 or float32, at another size: area means when it shrinks, else linear; dtype kept."""
    import cv2

    source = np.ascontiguousarray(channel)
    if source.shape == tuple(shape):
        return source
    shrinks = all(new <= old for new, old in zip(shape, source.shape, strict=True))
    size = (int(shape[1]), int(shape[0]))  # OpenCV wants (width, height)
    return cv2.resize(source, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resample_labels(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Label values of (*spatial) uint8 on another grid: each voxel gets the label with the largest interpolated share.

    Closer to the truth than nearest neighbours: a ball of 1,000 voxels of 1 mm that goes to 1.1 mm and back keeps a
    Dice of 0.984 instead of 0.965. Where shares tie, the nearest voxel's label wins, so that thin structures do not
    vanish as a rule. Values are never mixed, so an ignore value survives. Labels of another dtype, the numbers of
    objects, take the nearest voxel's.
    """
    source = np.ascontiguousarray(mask)
    if source.shape == tuple(shape):
        return source
    import torch
    import torch.nn.functional as functional

    with torch.no_grad():
        nearest = functional.interpolate(_tensor(source)[None, None], size=tuple(shape),
                                         mode="nearest-exact")[0, 0].numpy()
    if source.dtype != np.uint8:  # numbers of objects, of which there may be thousands
        return nearest.astype(source.dtype)
    labels, best = nearest.copy(), np.zeros(shape, np.float32)
    for value in _values(source):
        share = resample(source == value, tuple(shape))
        share[nearest == value] += 1e-4
        better = share > best
        np.copyto(best, share, where=better)
        labels[better] = value
    return labels


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _values(mask: np.ndarray) -> list[int]:
    """The label values that occur, rising; np.unique would sort the whole volume."""
    counts = np.zeros(256, np.int64)
    for plane in mask:
        counts += np.bincount(plane.ravel(), minlength=256)
    return [int(value) for value in np.flatnonzero(counts)]


def _planned(size: tuple[int, ...], now: list[float], prepare: Prepare) -> tuple[tuple[int, ...],
                                                                                tuple[tuple[int, int], ...]]:
    """The shape that a crop of `size` voxels of `now` mm is resampled to, and the padding of each axis."""
    none = tuple((0, 0) for _ in size)
    if prepare.spacing is not None:
        return tuple(_resampled(n, mm, want) for n, mm, want in zip(size, now, prepare.spacing, strict=True)), none
    if prepare.long_side is not None:
        ratio = prepare.long_side / max(size)
        return tuple(max(1, round(n * ratio)) for n in size), none
    if prepare.resize is None:
        return size, none
    if prepare.stretch:
        return tuple(prepare.resize), none
    ratio = min(want / n for n, want in zip(size, prepare.resize, strict=True))
    resampled = tuple(min(want, max(1, round(n * ratio))) for n, want in zip(size, prepare.resize, strict=True))
    return resampled, tuple(((want - n) // 2, want - n - (want - n) // 2)
                            for n, want in zip(resampled, prepare.resize, strict=True))


def _resampled(length: int, spacing: float, wanted: float) -> int:
    """Voxels of an axis at the wanted spacing; unchanged where the spacing is the same to a thousandth of a voxel."""
    return length if abs(spacing / wanted - 1) * length < 1e-3 else max(1, round(length * spacing / wanted))


def axes_of(affine: np.ndarray | None, dims: int, wanted: str | None,
            case: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The file axis of each prepared axis, and whether it is reversed, for axis codes such as "RAS"."""
    if wanted is None:
        return tuple(range(dims)), (False,) * dims
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    if sorted(next(pair for pair in ("RL", "AP", "SI") if code in pair) for code in wanted) != ["AP", "RL", "SI"]:
        raise MaskfoldError(f"`prepare.orientation` {wanted} is no orientation.",
                            "Name each of R or L, A or P, and S or I once.", status=2)
    if affine is None:
        raise MaskfoldError(f"Case {case} has no affine, so that `prepare.orientation` {wanted} cannot be made.",
                            "Remove `prepare.orientation`, or use a format that says how the patient lies.")
    now = io_orientation(np.asarray(affine))
    if np.isnan(now).any():
        raise MaskfoldError(f"The affine of case {case} is singular.", "Correct the file's header.")
    change = ornt_transform(now, axcodes2ornt(wanted))
    order = np.argsort(change[:, 0])
    return tuple(int(axis) for axis in order), tuple(bool(change[axis, 1] < 0) for axis in order)


def reorient(array: np.ndarray, axes: tuple[int, ...], flips: tuple[bool, ...]) -> np.ndarray:
    """A view of (C, *file shape) with the prepared order and direction of axes."""
    turned = array.transpose(0, *(axis + 1 for axis in axes))
    return turned[(slice(None), *(slice(None, None, -1) if flip else slice(None) for flip in flips))]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
