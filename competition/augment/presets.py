"""Define the values of the presets light, medium and heavy.

Each probability is the probability that one transform is applied to one sample. The values lie in the range that
nnU-Net uses for volumes (Isensee et al., Nature Methods 2021, supplementary note 4) and that winners of 2D
competitions report. If in doubt, use medium.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from competition.config.experiment import AugmentConfig
from competition.config.registry import Registry
from competition.errors import MaskfoldError

Range = tuple[float, float]


@dataclass(frozen=True)
class ImagePreset:
    """Hold a preset for 2D images: the probability and the strength of each transform.

    The fields `affine`, `elastic`, `grid`, `brightness`, `gamma`, `noise`, `blur` and `dropout` are probabilities. The
    fields after each of them are the strengths of that transform.
    """

    affine: float
    rotate: float  # maximum angle in either direction, degrees
    zoom: Range  # factor by which the image is enlarged
    shear: float  # maximum angle in either direction, degrees
    elastic: float
    elastic_alpha: float  # factor of the displacement, pixels; a Gaussian of 8 pixels smooths the displacement field
    grid: float
    grid_limit: float  # maximum displacement of a grid line, as a fraction of a cell's width
    brightness: float  # probability that brightness and contrast change
    brightness_limit: float  # maximum value that is added or subtracted, as a fraction of the dtype's range
    contrast_limit: float  # maximum distance of the factor from 1
    gamma: float
    gamma_limit: Range  # exponent in percent: 100 leaves the image unchanged
    noise: float
    noise_deviation: Range  # standard deviation, as a fraction of the dtype's range
    blur: float
    blur_sigma: Range  # standard deviation of the Gaussian, pixels
    # Dropout sets rectangles of the image to 0. The mask stays unchanged, so that the network learns to use context.
    dropout: float
    dropout_holes: tuple[int, int]  # smallest and largest number of rectangles
    dropout_size: Range  # fraction of the image's height and width


IMAGE_PRESETS = {
    "light": ImagePreset(
        affine=0.3,
        rotate=15,
        zoom=(0.9, 1.1),
        shear=0,
        elastic=0,
        elastic_alpha=0,
        grid=0,
        grid_limit=0,
        brightness=0.3,
        brightness_limit=0.1,
        contrast_limit=0.1,
        gamma=0,
        gamma_limit=(100, 100),
        noise=0,
        noise_deviation=(0, 0),
        blur=0,
        blur_sigma=(0, 0),
        dropout=0,
        dropout_holes=(1, 1),
        dropout_size=(0, 0),
    ),
    "medium": ImagePreset(
        affine=0.5,
        rotate=30,
        zoom=(0.8, 1.25),
        shear=5,
        elastic=0.1,
        elastic_alpha=60,
        grid=0.1,
        grid_limit=0.2,
        brightness=0.5,
        brightness_limit=0.2,
        contrast_limit=0.2,
        gamma=0.3,
        gamma_limit=(70, 140),
        noise=0.15,
        noise_deviation=(0.01, 0.05),
        blur=0.15,
        blur_sigma=(0.5, 1.5),
        dropout=0,
        dropout_holes=(1, 1),
        dropout_size=(0, 0),
    ),
    "heavy": ImagePreset(
        affine=0.8,
        rotate=45,
        zoom=(0.6, 1.5),
        shear=10,
        elastic=0.25,
        elastic_alpha=120,
        grid=0.25,
        grid_limit=0.3,
        brightness=0.7,
        brightness_limit=0.3,
        contrast_limit=0.3,
        gamma=0.5,
        gamma_limit=(60, 170),
        noise=0.3,
        noise_deviation=(0.01, 0.1),
        blur=0.25,
        blur_sigma=(0.5, 2.5),
        dropout=0.25,
        dropout_holes=(1, 6),
        dropout_size=(0.05, 0.2),
    ),
}

# 3D transforms by name, in the order of sampling and application: first geometry, then intensities in the order of a
# scanner (optics, noise, amplifier).
TRANSFORMS: Registry[Callable[..., Any]] = Registry(
    "3D transform",
    modules={
        "warp": "competition.augment.volume_geometry",
        "blur": "competition.augment.volume_intensity",
        "noise": "competition.augment.volume_intensity",
        "brightness": "competition.augment.volume_intensity",
        "contrast": "competition.augment.volume_intensity",
        "gamma": "competition.augment.volume_intensity",
    },
    ordered=True,
)
# Presets for volumes (and 2.5D patches): preset -> transform -> values of the fields of the transform's class.
VOLUME_PRESETS: dict[str, dict[str, dict[str, float | Range]]] = {
    "light": {
        "warp": {"rotate": 0.2, "degrees": 10, "zoom": 0.2, "zoom_factor": (0.85, 1.15)},
        "noise": {"probability": 0.1, "deviation": (0, 0.1)},
        "brightness": {"probability": 0.15, "factor": (0.9, 1.1)},
        "contrast": {"probability": 0.15, "factor": (0.9, 1.1)},
        "gamma": {"probability": 0.15, "exponent": (0.8, 1.25)},
    },
    "medium": {
        "warp": {
            "rotate": 0.3,
            "degrees": 20,
            "zoom": 0.3,
            "zoom_factor": (0.8, 1.25),
            "elastic": 0.2,
            "elastic_size": 0.03,
        },
        "blur": {"blur": 0.15, "blur_sigma": (0.5, 1.0), "low_resolution": 0.15, "low_resolution_factor": (0.5, 1.0)},
        "noise": {"probability": 0.15, "deviation": (0, 0.15)},
        "brightness": {"probability": 0.2, "factor": (0.75, 1.25)},
        "contrast": {"probability": 0.2, "factor": (0.75, 1.25)},
        "gamma": {"probability": 0.3, "exponent": (0.7, 1.5)},
    },
    "heavy": {
        "warp": {
            "rotate": 0.5,
            "degrees": 30,
            "zoom": 0.5,
            "zoom_factor": (0.7, 1.4),
            "elastic": 0.3,
            "elastic_size": 0.05,
        },
        "blur": {"blur": 0.25, "blur_sigma": (0.5, 1.5), "low_resolution": 0.25, "low_resolution_factor": (0.4, 1.0)},
        "noise": {"probability": 0.3, "deviation": (0, 0.3)},
        "brightness": {"probability": 0.3, "factor": (0.6, 1.4)},
        "contrast": {"probability": 0.3, "factor": (0.6, 1.5)},
        "gamma": {"probability": 0.4, "exponent": (0.6, 1.7)},
    },
}


def preset_flips(augment: AugmentConfig, dims: int) -> tuple[int, ...]:
    """Return the spatial axes that a preset flips: all axes, the axes in `augment.flip`, or none.

    Args:
        augment: section `augment` of the experiment.
        dims: number of spatial axes of a patch.

    Raises:
        MaskfoldError (exit status 2): `augment.flip` contains an axis that patches do not have.
    """
    if augment.preset == "none" or augment.flip is False:
        return ()
    if augment.flip is True:
        return tuple(range(dims))
    if invalid := [axis for axis in augment.flip if axis >= dims]:
        raise MaskfoldError(
            f"augment.flip: found axis {invalid[0]}, expected axes from 0 to {dims - 1}, because patch.size has "
            f"{dims} values.",
            f"Set augment.flip to a list of axes from 0 to {dims - 1}, or to true or false.",
            status=2,
        )
    return tuple(sorted(set(augment.flip)))


def explicit_flips(augment: AugmentConfig, dims: int) -> tuple[int, ...]:
    """Return the spatial axes that the transforms in `augment.transforms` flip independently of each other.

    Args:
        augment: section `augment` of the experiment.
        dims: number of spatial axes of a patch.
    """
    flips: set[int] = set()
    for item in augment.transforms or ():
        name, axis = item.target.rpartition(".")[2], item.args.get("spatial_axis")
        if name == "HorizontalFlip":
            flips.add(1)
        elif name == "VerticalFlip":
            flips.add(0)
        elif name in ("D4", "SquareSymmetry", "RandAxisFlipd", "RandAxisFlipD", "RandAxisFlipDict"):
            flips.update(range(dims))
        elif name in ("RandFlipd", "RandFlipD", "RandFlipDict"):
            axes = axis if isinstance(axis, list) else [axis]
            # This transform flips several axes together, so no axis is flipped independently.
            if len(axes) == 1 and isinstance(axes[0], int):
                flips.add(axes[0] % dims)
    return tuple(sorted(flips))
