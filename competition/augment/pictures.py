"""Pictures, one by one in loader workers: the only file that imports albumentations.

Its `set_random_seed` hands one seed to all children of a `Compose`, so that two flips of p=0.5 always agree. Here each
transform, nested ones included, gets generators of its own for every sample.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for a newer version

import albumentations as A
import cv2

from competition.augment.listed import listed_transforms
from competition.augment.presets import PICTURES, PictureLevel, preset_flips
from competition.config.errors import MaskfoldError
from competition.config.experiment import Augment

Transform = Any  # A.BasicTransform or A.BaseCompose; the package has no types that mypy could use
BORDER = cv2.BORDER_REFLECT_101
cv2.setNumThreads(0)  # a forked loader worker may wait for ever for OpenCV's threads, and patches gain little from them


class PictureAugment:
    """A preset or an explicit list of albumentations, applied to one picture and its mask.

    Args:
        augment: the experiment's section.
        trust: packages besides the known ones that `augment.transforms` may name.

    Raises:
        MaskfoldError: status 2; a target or an argument in `augment.transforms` is wrong.

    Example:
        >>> augment = PictureAugment(Augment(preset="medium"))
        >>> image, mask = augment(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 1), np.uint8), seed=1)
        >>> image.shape, mask.shape
        ((64, 64, 3), (64, 64, 1))
    """

    def __init__(self, augment: Augment, trust: Sequence[str] = ()) -> None:
        self.listed = bool(augment.transforms)
        if self.listed:
            self.transforms = listed_transforms(
                augment, A.BasicTransform, A.BaseCompose, lambda _, args, key: args, trust
            )
        elif augment.preset == "none":
            self.transforms = []
        else:
            self.transforms = preset_transforms(PICTURES[augment.preset], preset_flips(augment, 2))

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Changes image and mask together.

        Args:
            image: (H, W, C) uint8, or float32 in [0, 1].
            mask: (H, W, M) uint8; no new value appears in it.
            seed: of this sample; the same seed gives the same result in any process.

        Returns:
            The changed image and mask, of the same shapes and dtypes.

        Raises:
            MaskfoldError: status 2; a listed transform changes the shape or the dtype.
        """
        data = {"image": np.ascontiguousarray(image), "mask": np.ascontiguousarray(mask)}
        children = np.random.SeedSequence(seed).generate_state(max(len(self.transforms), 1), np.uint64)
        for transform, child in zip(self.transforms, children, strict=False):
            if self.listed or fits(transform, image.shape):
                reseed(transform, int(child))
                data = transform(**data)
        if type(data["image"]) is not np.ndarray or data["image"].dtype != image.dtype:
            raise MaskfoldError(
                "`augment.transforms` changes the type of a picture's values.",
                "Remove normalising and converting transforms: `prepare.intensity` does that.",
                status=2,
            )
        result = data["image"].reshape(*data["image"].shape[:2], -1), data["mask"].reshape(*data["mask"].shape[:2], -1)
        if result[0].shape != image.shape or result[1].shape != mask.shape:
            raise MaskfoldError(
                f"`augment.transforms` turns a picture of shape {image.shape} into {result[0].shape}.",
                f"End the list with a crop or a resize to {list(image.shape[:2])}.",
                status=2,
            )
        return result


def fits(transform: Transform, shape: tuple[int, ...]) -> bool:
    """Whether a preset's transform works on a patch of this shape: quarter turns need a square, cells a pixel each."""
    if isinstance(transform, A.RandomRotate90):
        return shape[0] == shape[1]
    return not isinstance(transform, A.GridDistortion) or min(shape[:2]) >= transform.num_steps


def reseed(transform: Transform, seed: int) -> None:
    """Gives a transform, and every transform inside of it, generators of its own.

    Both of them: albumentations draws probabilities from Python's generator, fields and noise from numpy's.
    """
    words = np.random.SeedSequence(seed).generate_state(2 + len(getattr(transform, "transforms", ())), np.uint64)
    transform.py_random = random.Random(int(words[0]))
    transform.random_generator = np.random.Generator(np.random.PCG64(int(words[1])))
    for child, word in zip(getattr(transform, "transforms", ()), words[2:], strict=True):
        reseed(child, int(word))


def preset_transforms(level: PictureLevel, flips: tuple[int, ...]) -> list[Transform]:
    """The transforms of a preset: geometry first, then intensity."""
    transforms: list[Transform] = []
    if 0 in flips:
        transforms.append(A.VerticalFlip(p=0.5))
    if 1 in flips:
        transforms.append(A.HorizontalFlip(p=0.5))
    if flips == (0, 1):  # a quarter turn and the flips make all eight symmetries of the square
        transforms.append(A.RandomRotate90(p=0.5))
    transforms += [
        A.Affine(
            scale=level.zoom,
            rotate=(-level.rotate, level.rotate),
            shear=(-level.shear, level.shear),
            keep_ratio=True,
            balanced_scale=True,
            border_mode=BORDER,
            p=level.affine,
        ),
        A.ElasticTransform(alpha=level.elastic_alpha, sigma=8, border_mode=BORDER, p=level.elastic),
        A.GridDistortion(num_steps=5, distort_limit=level.grid_limit, border_mode=BORDER, p=level.grid),
        A.RandomBrightnessContrast(level.brightness_limit, level.contrast_limit, p=level.brightness),
        A.RandomGamma(gamma_limit=level.gamma_limit, p=level.gamma),
        A.GaussianBlur(blur_limit=0, sigma_limit=level.blur_sigma, p=level.blur),
        A.GaussNoise(std_range=level.noise_deviation, p=level.noise),
        A.CoarseDropout(
            num_holes_range=level.dropout_holes,
            hole_height_range=level.dropout_size,
            hole_width_range=level.dropout_size,
            fill=0,
            fill_mask=None,
            p=level.dropout,
        ),
    ]
    return [transform for transform in transforms if transform.p > 0]
