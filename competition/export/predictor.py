"""Predict masks with a registered model, from arrays, paths, or a table of arrays or paths."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.axes import competition_axes, file_axes, permutation
from competition.config.competition import Competition
from competition.config.experiment import Experiment
from competition.config.loading import load_experiment
from competition.config.postprocess import PostprocessConfig
from competition.data.image_types import Image, channels_first
from competition.data.readers import read_image
from competition.ensembling.ensemble import EnsemblePredictor, InMemoryCase
from competition.errors import MaskfoldError
from competition.postprocessing.pipeline import postprocess
from competition.records import damaged_error, read_record
from competition.runs.blend import Ensemble
from competition.runs.fold import RESULT_FILE
from competition.runs.run import Run
from competition.submission.label_files import Labels, label_arrays

EXPERIMENT_FILE, POSTPROCESS_FILE = "experiment.yaml", "postprocess.json"
FORMAT_HINT = "Give a list of arrays or paths, or a table with a column `image`."
ITEM_KEYS = ("image", "spacing", "affine")


class Predictor:
    """Predict masks with the networks in a folder that `competition.export.mlflow_model.write_predictor_folder` wrote.

    The environment variable `MASKFOLD_TRUST` can list packages that the `target` keys of the YAML may name, in
    addition to Maskfold's own list.

    Args:
        folder: folder with `experiment.yaml` and `postprocess.json`. It also has one folder for each network, e.g.
            `fold_0`, with the weights and `result.json`.

    Raises:
        MaskfoldError: a file is missing or damaged, or a target is not trusted.

    Example:
        >>> Predictor(Path("model")).predict([array])  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        exp = adapt_to_machine(load_experiment(folder / EXPERIMENT_FILE))
        self.settings = _read_settings(folder / POSTPROCESS_FILE)
        self.ensemble = Ensemble((Run(folder, exp, empty_case_table(), folds_table(folder), folder.name),), (1.0,))
        self._predictor: EnsemblePredictor | None = None

    def predict(self, images: Any) -> list[Labels]:
        """Predict images, and return the labels on the grid of each image.

        Args:
            images: the images, in one of the forms that `iter_images` accepts.

        Returns:
            One array (*spatial) for each image, with the values that `maskfold predict` writes: uint8 or uint16 label
            values or, if `competition.instances` is true, the number of the object at each pixel. If classes overlap,
            the array is (K, *spatial) for K classes.

        Raises:
            MaskfoldError: an image cannot be read or predicted.
        """
        exp, comp = self.ensemble.runs[0].exp, self.ensemble.comp
        masks: list[Labels] = []
        for image in iter_images(images, exp):
            if self._predictor is None:  # the first image defines the number of channels
                self._predictor = EnsemblePredictor(self.ensemble, image, scratch=Path(tempfile.gettempdir()))
            probabilities, presence = self._predictor.predict(image)
            labels = label_arrays(postprocess(probabilities, comp, self.settings, image, presence), comp)
            masks.append(labels[""] if "" in labels else np.stack(list(labels.values())))
        return masks


def _read_settings(path: Path) -> PostprocessConfig:
    hint = "Copy the complete folder of the run or of the model again."
    try:
        return PostprocessConfig.model_validate(read_record(path, hint)["settings"])
    except (OSError, ValueError, LookupError) as error:  # pydantic's errors are ValueErrors
        raise damaged_error(path, error, hint) from error


def adapt_to_machine(exp: Experiment) -> Experiment:
    """Return the experiment with settings for prediction on this machine.

    The returned experiment uses one device. If this machine does not have the accelerator that the YAML names, the
    accelerator is `auto`.
    """
    import torch

    accelerator = exp.run.accelerator
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(accelerator, True)
    return exp.model_copy(
        update={"run": exp.run.model_copy(update={"devices": 1, "accelerator": accelerator if available else "auto"})}
    )


def folds_table(folder: Path) -> Any:
    """Return a table with the column fold: the fold numbers, read from the names of the networks' folders."""
    import pandas as pd

    matches = [re.match(r"fold_(\d+)", path.parent.name) for path in sorted(folder.glob(f"*/{RESULT_FILE}"))]
    return pd.DataFrame({"fold": sorted({int(match.group(1)) for match in matches if match})}, dtype="int64")


def empty_case_table() -> Any:
    """Return a case table without cases, for runs that only predict and need no training cases."""
    import pandas as pd

    return pd.DataFrame({"id": []})


# The images


def iter_images(images: Any, exp: Experiment) -> Iterator[InMemoryCase]:
    """Convert images in different forms to `InMemoryCase` objects, and yield them one after the other.

    Args:
        images: a list, or a pandas table with the column `image` and optionally `spacing` and `affine`. An item of
            the list, or of the column `image`, is

            - an array: (H, W), (H, W, C) or (C, H, W) for a 2D image; (X, Y, Z), (X, Y, Z, C) or (C, X, Y, Z) for a
              volume. If there is a channel axis, it must be the shorter of the first and the last axis;
            - the path of a file that `maskfold predict` can read;
            - a dictionary from names of channels (as in `images` of the YAML) to arrays or paths;
            - a list of the slices of a volume, each as an array or the path of a 2D image;
            - a dictionary with `image` (in one of the forms above) and optionally `spacing` (voxel size in mm along
              each axis) and `affine` (4×4 matrix from voxel indices to world coordinates in mm).

            If an image has no spacing, it gets `competition.spacing` or, if that is not set, 1 mm. If a volume has no
            affine, it is assumed to have the orientation `prepare.orientation`.
        exp: the experiment.

    Raises:
        MaskfoldError: an item has none of these forms, or cannot be read.
    """
    comp = exp.competition
    for number, item in enumerate(_items(images, comp), start=1):
        name = f"image {number}"
        plain = item if isinstance(item, Mapping) and "image" in item else {"image": item}
        if unknown := [key for key in plain if key not in ITEM_KEYS]:
            raise MaskfoldError(
                f"Dictionary of {name}: found the key `{unknown[0]}`, expected {', '.join(ITEM_KEYS)}.",
                "Remove this key from the dictionary.",
            )
        image = _read(plain["image"], comp, name)
        if comp.spacing is not None and not image.has_spacing:
            image = replace(image, spacing=tuple(comp.spacing))
        image = _set_geometry(image, plain.get("spacing"), plain.get("affine"), name)
        yield InMemoryCase(name, _set_default_affine(image, exp.prepare.orientation))


def _items(images: Any, comp: Competition) -> list[Any]:
    """Return a list of images from a list, from a table with the column `image`, or from an array with a batch axis.

    Such an array has the shape (N, C, *spatial) or (N, *spatial, C).
    """
    if hasattr(images, "to_dict") and hasattr(images, "columns"):
        if "image" not in images.columns:
            raise MaskfoldError(
                f"Table of images: found the columns {', '.join(map(str, images.columns))}, expected a column `image`.",
                FORMAT_HINT,
            )
        return list(images[[name for name in ITEM_KEYS if name in images.columns]].to_dict("records"))
    if isinstance(images, np.ndarray) and images.ndim == comp.dimensions + 2:
        return list(images)
    if not isinstance(images, list | tuple):
        shape = f" of shape {images.shape}" if isinstance(images, np.ndarray) else ""
        raise MaskfoldError(f"Images: found a {type(images).__name__}{shape}, expected a list.", FORMAT_HINT)
    return list(images)


def _read(image: Any, comp: Competition, name: str) -> Image:
    """Return one image from an array, a path, a dictionary of channels or a list of slices.

    Args:
        image: the image in one of these forms.
        comp: the competition.
        name: name of the image in messages.
    """
    if isinstance(image, Mapping):
        channels = list(comp.train.images) if isinstance(comp.train.images, dict) else []
        if not channels or set(image) != set(channels):
            expected = f"the channels {', '.join(channels)}" if channels else ", ".join(ITEM_KEYS)
            raise MaskfoldError(
                f"Dictionary of {name}: found the keys {', '.join(map(str, image))}, expected {expected}.",
                "Correct the keys of the dictionary.",
            )
        return _join_channels([_read(image[channel], comp, f"{channel} of {name}") for channel in channels], name)
    files = [item for item in (image if isinstance(image, list | tuple) else [image]) if isinstance(item, str | Path)]
    for path in files:
        source = file_axes(comp, [str(path)] if isinstance(image, list | tuple) else str(path))
        if (order := permutation(source, competition_axes(comp))) is not None:
            raise MaskfoldError(
                f"{name}: the arrays of {path} have the axes {source}, expected {competition_axes(comp)}, as in the "
                "files of training.",
                f"Read the file yourself, and give its array transposed by {order}. The predicted labels then have the "
                "axes of this array. Or use `maskfold predict`, which turns the axes.",
            )
    if isinstance(image, list | tuple) and comp.dimensions == 3:
        slices = [
            _read_single(item, 2, f"slice {z} of {name}", comp.applies_exif).array for z, item in enumerate(image)
        ]
        if not slices or len({array.shape for array in slices}) > 1:
            shapes = ", ".join(sorted({str(array.shape) for array in slices})) or "no slice"
            raise MaskfoldError(
                f"Slices of {name}: found {shapes}, expected one or more slices of the same shape.",
                "Give slices of the same size.",
            )
        return Image(np.stack(slices, axis=-1), (1.0, 1.0, 1.0))
    return _read_single(image, comp.dimensions, name, comp.applies_exif)


def _read_single(image: Any, dimensions: int, name: str, exif: bool) -> Image:
    """Return an image from an array or a path.

    Args:
        image: the array or path.
        dimensions: number of spatial axes.
        name: name of the image in messages.
        exif: whether to rotate a picture as its EXIF data say.
    """
    if isinstance(image, str | Path):
        return read_image(image, dimensions, exif)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "biuf" or image.size == 0:
        kind = (
            f"an array of {image.dtype}, shape {image.shape}"
            if isinstance(image, np.ndarray)
            else f"a {type(image).__name__}"
        )
        raise MaskfoldError(f"{name}: found {kind}, expected a numeric array or a path.", FORMAT_HINT)
    array = channels_first(image, dimensions, Path(name))
    if array.dtype.kind in "bf":
        array = array.astype(np.uint8 if array.dtype.kind == "b" else np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise MaskfoldError(f"{name} contains NaN or infinite values.", "Correct the image, or leave it out.")
    return Image(np.ascontiguousarray(array, array.dtype.newbyteorder("=")), (1.0,) * dimensions)


def _join_channels(channels: list[Image], name: str) -> Image:
    """Join images that have the channels of one image, as `competition.data.readers.load_image` joins files."""
    if len(shapes := {part.array.shape[1:] for part in channels}) > 1:
        raise MaskfoldError(
            f"The channels of {name} have different shapes: {', '.join(sorted(map(str, shapes)))}.",
            "Resample the channels to the same grid.",
        )
    array = np.concatenate([part.array for part in channels])
    return replace(channels[0], array=array.astype(np.float32) if array.dtype == np.float64 else array)


def _set_geometry(image: Image, spacing: Any, affine: Any, name: str) -> Image:
    """Return an image with the given spacing and affine; values that are missing leave the image unchanged.

    If only the affine is given, the spacing follows from it.

    Args:
        image: the image.
        spacing: voxel size in mm along each axis, or a missing value (see `_is_missing`).
        affine: 4×4 matrix from voxel indices to world coordinates in mm, or a missing value.
        name: name of the image in messages.
    """
    if not _is_missing(affine):
        matrix = np.asarray(affine, np.float64)
        voxel_sizes = np.linalg.norm(matrix[:3, :3], axis=0) if matrix.shape == (4, 4) else np.zeros(3)
        if (
            not np.isfinite(matrix).all()
            or not voxel_sizes.all()
            or abs(np.linalg.det(matrix[:3, :3])) <= 1e-6 * voxel_sizes.prod()
        ):
            raise MaskfoldError(
                f"Affine of {name}: found {matrix.tolist()}, expected a 4×4 matrix that can be inverted.",
                "Set `affine` to the matrix that maps voxels to world coordinates in mm.",
            )
        image = Image(image.array, tuple(map(float, voxel_sizes))[: image.array.ndim - 1], matrix)
    if not _is_missing(spacing):
        sizes = tuple(float(step) for step in spacing)
        if len(sizes) != image.array.ndim - 1 or not all(np.isfinite(step) and step > 0 for step in sizes):
            raise MaskfoldError(
                f"Spacing of {name}: found {sizes}, expected {image.array.ndim - 1} positive numbers (mm).",
                "Correct the spacing, or leave it out.",
            )
        image = Image(image.array, sizes, image.affine)
    return image


def _set_default_affine(image: Image, orientation: str | None) -> Image:
    """Return the image with an affine that has the axis directions of `orientation`, e.g. RAS.

    If the image already has an affine, or `orientation` is None, the image is returned unchanged.
    """
    if image.affine is not None or orientation is None:
        return image
    from nibabel.orientations import axcodes2ornt

    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(axcodes2ornt(orientation)):
        affine[int(world), axis] = sign * image.spacing[axis]
    return Image(image.array, image.spacing, affine)


def _is_missing(value: Any) -> bool:
    """Return whether a value is missing: None for an absent key, or nan for an empty cell of a table."""
    return value is None or (isinstance(value, float) and np.isnan(value))
