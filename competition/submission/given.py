"""Images as a caller of a registered model gives them: arrays, paths, or both in dictionaries or a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from competition.config import Competition, Experiment, MaskfoldError
from competition.data.readers import Picture, read_image
from competition.data.readers_types import channels_first
from competition.submission.members import Loose

CURE = "Give a list of arrays or of paths, or a table with a column `image`."
KEYS = ("image", "spacing", "affine")


def given(images: Any, exp: Experiment) -> Iterator[Loose]:
    """Reads images one after the other.

    Args:
        images: a list, or a pandas table with the columns `image` and, if wanted, `spacing` and `affine`. An item is

            - an array: (H, W), (H, W, C) or (C, H, W) of a picture; (X, Y, Z), (X, Y, Z, C) or (C, X, Y, Z) of a volume;
              the shorter of the first and the last axis holds the channels;
            - a path of a file that `maskfold predict` can read;
            - a dictionary of channels by their names in the YAML's `images`, each an array or a path;
            - a list of the slices of a volume, each an array or a path of a picture;
            - a dictionary `{"image": one of these, "spacing": mm along each axis, "affine": 4×4, voxel to world in mm}`.

            Without a spacing it is 1 mm. Without an affine a volume is taken to lie as `prepare.orientation` asks for.
        exp: the experiment.

    Raises:
        MaskfoldError: an item is none of these, or cannot be read.
    """
    comp = exp.competition
    for number, item in enumerate(_items(images, comp), start=1):
        name = f"image {number}"
        plain = item if isinstance(item, Mapping) and "image" in item else {"image": item}
        if strange := [key for key in plain if key not in KEYS]:
            raise MaskfoldError(
                f"The dictionary of {name} has the key `{strange[0]}`.", f"Its keys are {', '.join(KEYS)}."
            )
        picture = _picture(plain["image"], comp, name)
        placed = _placed(picture, plain.get("spacing"), plain.get("affine"), name)
        yield Loose(name, _upright(placed, exp.prepare.orientation))


def _items(images: Any, comp: Competition) -> list[Any]:
    """The items of a list, of a table, or of a batch (N, …) with an axis of channels, as servers hand it over."""
    if hasattr(images, "to_dict") and hasattr(images, "columns"):
        if "image" not in images.columns:
            raise MaskfoldError(f"The table has the columns {', '.join(map(str, images.columns))}.", CURE)
        return list(images[[name for name in KEYS if name in images.columns]].to_dict("records"))
    if isinstance(images, np.ndarray) and images.ndim == comp.dimensions + 2:
        return list(images)
    if not isinstance(images, list | tuple):
        shape = f" of shape {images.shape}" if isinstance(images, np.ndarray) else ""
        raise MaskfoldError(f"The images are a {type(images).__name__}{shape} and not a list.", CURE)
    return list(images)


def _picture(image: Any, comp: Competition, name: str) -> Picture:
    """One image, whatever its parts are."""
    if isinstance(image, Mapping):
        wanted = list(comp.train.images) if isinstance(comp.train.images, dict) else []
        if not wanted or set(image) != set(wanted):
            raise MaskfoldError(
                f"The dictionary of {name} has the keys {', '.join(map(str, image))}.",
                f"Its keys are the channels {', '.join(wanted)}." if wanted else f"Its keys are {', '.join(KEYS)}.",
            )
        return _joined([_picture(image[channel], comp, f"{channel} of {name}") for channel in wanted], name)
    if isinstance(image, list | tuple) and comp.dimensions == 3:
        slices = [_part(one, 2, f"slice {z} of {name}").array for z, one in enumerate(image)]
        if not slices or len({one.shape for one in slices}) > 1:
            raise MaskfoldError(f"The slices of {name} differ in size, or there is none.", "Give slices of one size.")
        return Picture(np.stack(slices, axis=-1), (1.0, 1.0, 1.0))
    return _part(image, comp.dimensions, name)


def _part(image: Any, dimensions: int, name: str) -> Picture:
    """An array, or what a file holds."""
    if isinstance(image, str | Path):
        return read_image(image, dimensions)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "biuf" or image.size == 0:
        kind = (
            f"an array of {image.dtype}, shape {image.shape}"
            if isinstance(image, np.ndarray)
            else f"a {type(image).__name__}"
        )
        raise MaskfoldError(f"What was given as {name} is {kind}.", CURE)
    array = channels_first(image, dimensions, Path(name))
    if array.dtype.kind in "bf":
        array = array.astype(np.uint8 if array.dtype.kind == "b" else np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise MaskfoldError(f"{name} holds values that are NaN or infinite.", "Repair it, or leave it out.")
    return Picture(np.ascontiguousarray(array, array.dtype.newbyteorder("=")), (1.0,) * dimensions)


def _joined(parts: list[Picture], name: str) -> Picture:
    """Channels side by side, as `competition.data.images.load_image` puts them."""
    if len({part.array.shape[1:] for part in parts}) > 1:
        raise MaskfoldError(f"The channels of {name} differ in size.", "Bring them to one grid.")
    array = np.concatenate([part.array for part in parts])
    return Picture(array.astype(np.float32) if array.dtype == np.float64 else array, parts[0].spacing, parts[0].affine)


def _placed(picture: Picture, spacing: Any, affine: Any, name: str) -> Picture:
    """The picture where its caller says it lies; an affine alone says the spacing too."""
    if not _is_missing(affine):
        matrix = np.asarray(affine, np.float64)
        lengths = np.linalg.norm(matrix[:3, :3], axis=0) if matrix.shape == (4, 4) else np.zeros(3)
        if (
            not np.isfinite(matrix).all()
            or not lengths.all()
            or abs(np.linalg.det(matrix[:3, :3])) <= 1e-6 * lengths.prod()
        ):
            raise MaskfoldError(
                f"The affine of {name} is no 4×4 matrix that can be inverted.", "Give voxel to world, in mm."
            )
        picture = Picture(picture.array, tuple(map(float, lengths))[: picture.array.ndim - 1], matrix)
    if not _is_missing(spacing):
        steps = tuple(float(step) for step in spacing)
        if len(steps) != picture.array.ndim - 1 or not all(np.isfinite(step) and step > 0 for step in steps):
            raise MaskfoldError(
                f"The spacing {steps} of {name} is not one positive number (mm) for each of its "
                f"{picture.array.ndim - 1} axes.",
                "Correct it, or leave it out.",
            )
        picture = Picture(picture.array, steps, picture.affine)
    return picture


def _upright(picture: Picture, orientation: str | None) -> Picture:
    """A volume that nobody placed, with the affine of one that lies as `orientation` says already."""
    if picture.affine is not None or orientation is None:
        return picture
    from nibabel.orientations import axcodes2ornt

    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(axcodes2ornt(orientation)):
        affine[int(world), axis] = sign * picture.spacing[axis]
    return Picture(picture.array, picture.spacing, affine)


def _is_missing(value: Any) -> bool:
    """Whether a key is absent, or a cell of a table is empty."""
    return value is None or (isinstance(value, float) and np.isnan(value))
