"""What the presets light, medium and heavy do, in numbers.

Probabilities are per sample and change. The values lie in the range that nnU-Net uses for volumes (Isensee et al., Nature
Methods 2021, supplementary note 4) and that winners of picture competitions report; medium is the one to begin with.
"""

from __future__ import annotations

from dataclasses import dataclass

from competition.config.errors import MaskfoldError
from competition.config.experiment import Augment

Range = tuple[float, float]


@dataclass(frozen=True)
class PictureLevel:
    """Pictures: a probability for each change, and how strong it is."""

    affine: float
    rotate: float  # degrees, to either side
    zoom: Range  # factors
    shear: float  # degrees, to either side
    elastic: float
    elastic_alpha: float  # pixels, times a field of noise that is smoothed by 8 pixels
    grid: float
    grid_limit: float  # share of a cell's width
    brightness: float
    brightness_limit: float  # share of the range, added
    contrast_limit: float  # share, multiplied
    gamma: float
    gamma_limit: Range  # percent
    noise: float
    noise_deviation: Range  # share of the range
    blur: float
    blur_sigma: Range  # pixels
    dropout: float  # of rectangles; the mask stays, so that the network has to guess what lies there
    dropout_holes: tuple[int, int]
    dropout_size: Range  # share of the picture's height and width


@dataclass(frozen=True)
class VolumeLevel:
    """Volumes (and 2.5D): a probability for each change, and how strong it is."""

    rotate: float
    degrees: float  # to either side, about each axis
    zoom: float
    zoom_factor: Range
    elastic: float
    elastic_size: float  # largest standard deviation of a control point, as a share of the patch's extent
    blur: float
    blur_sigma: Range  # voxels
    coarse: float  # low resolution: fewer voxels, then interpolated back
    coarse_factor: Range  # share of the voxels along each axis
    noise: float
    noise_deviation: Range  # standard deviations of a normalised image
    brightness: float
    brightness_factor: Range
    contrast: float
    contrast_factor: Range
    gamma: float
    gamma_exponent: Range


PICTURES = {
    "light": PictureLevel(
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
    "medium": PictureLevel(
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
    "heavy": PictureLevel(
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

VOLUMES = {
    "light": VolumeLevel(
        rotate=0.2,
        degrees=10,
        zoom=0.2,
        zoom_factor=(0.85, 1.15),
        elastic=0,
        elastic_size=0,
        blur=0,
        blur_sigma=(0, 0),
        coarse=0,
        coarse_factor=(1, 1),
        noise=0.1,
        noise_deviation=(0, 0.1),
        brightness=0.15,
        brightness_factor=(0.9, 1.1),
        contrast=0.15,
        contrast_factor=(0.9, 1.1),
        gamma=0.15,
        gamma_exponent=(0.8, 1.25),
    ),
    "medium": VolumeLevel(
        rotate=0.3,
        degrees=20,
        zoom=0.3,
        zoom_factor=(0.8, 1.25),
        elastic=0.2,
        elastic_size=0.03,
        blur=0.15,
        blur_sigma=(0.5, 1.0),
        coarse=0.15,
        coarse_factor=(0.5, 1.0),
        noise=0.15,
        noise_deviation=(0, 0.15),
        brightness=0.2,
        brightness_factor=(0.75, 1.25),
        contrast=0.2,
        contrast_factor=(0.75, 1.25),
        gamma=0.3,
        gamma_exponent=(0.7, 1.5),
    ),
    "heavy": VolumeLevel(
        rotate=0.5,
        degrees=30,
        zoom=0.5,
        zoom_factor=(0.7, 1.4),
        elastic=0.3,
        elastic_size=0.05,
        blur=0.25,
        blur_sigma=(0.5, 1.5),
        coarse=0.25,
        coarse_factor=(0.4, 1.0),
        noise=0.3,
        noise_deviation=(0, 0.3),
        brightness=0.3,
        brightness_factor=(0.6, 1.4),
        contrast=0.3,
        contrast_factor=(0.6, 1.5),
        gamma=0.4,
        gamma_exponent=(0.6, 1.7),
    ),
}


def preset_flips(augment: Augment, dims: int) -> tuple[int, ...]:
    """The spatial axes that a preset flips: all, those that `augment.flip` names, or none.

    Raises:
        MaskfoldError: status 2; `augment.flip` names an axis that the network's patches do not have.
    """
    if augment.preset == "none" or augment.flip is False:
        return ()
    if augment.flip is True:
        return tuple(range(dims))
    if wrong := [axis for axis in augment.flip if axis >= dims]:
        raise MaskfoldError(
            f"`augment.flip` names axis {wrong[0]}, but `patch.size` has {dims} numbers.",
            f"Name axes from 0 to {dims - 1}, or set true or false.",
            status=2,
        )
    return tuple(sorted(set(augment.flip)))


def listed_flips(augment: Augment, dims: int) -> tuple[int, ...]:
    """The spatial axes that an explicit list flips one by one, as far as the transforms' names tell."""
    found: set[int] = set()
    for item in augment.transforms or ():
        name, axis = item.target.rpartition(".")[2], item.args.get("spatial_axis")
        if name == "HorizontalFlip":
            found.add(1)
        elif name == "VerticalFlip":
            found.add(0)
        elif name in ("D4", "SquareSymmetry", "RandAxisFlipd", "RandAxisFlipD", "RandAxisFlipDict"):
            found.update(range(dims))
        elif name in ("RandFlipd", "RandFlipD", "RandFlipDict"):
            axes = axis if isinstance(axis, list) else [axis]
            if len(axes) == 1 and isinstance(axes[0], int):  # several axes turn over together: none of them alone
                found.add(axes[0] % dims)
    return tuple(sorted(found))
