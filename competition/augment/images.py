"""Augment 2D images with albumentations, one by one in the data loader's worker processes.

In albumentations, `set_random_seed` gives the same seed to all transforms of a `Compose`. Two flips with p=0.5 would
then always make the same decision. Therefore, this module gives each transform, also each nested one, its own random
generators for each sample.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np

# Without this variable, the import searches the internet for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2

from competition.augment.custom import build_explicit_transforms, check_shapes, transform_errors
from competition.augment.presets import IMAGE_PRESETS, ImagePreset, preset_flips
from competition.config.experiment import AugmentConfig
from competition.context import Context
from competition.errors import MaskfoldError

Transform = Any  # A.BasicTransform or A.BaseCompose; the package has no types that mypy could use
BORDER = cv2.BORDER_REFLECT_101
cv2.setNumThreads(0)  # OpenCV's threads can deadlock a forked loader worker, and patches gain little from them


class ImageAugment:
    """Apply a preset, or the albumentations transforms that the YAML lists, to one 2D image and its mask.

    Args:
        augment: section `augment` of the experiment.
        context: contains the packages that the user trusts, for `augment.transforms`.

    Raises:
        MaskfoldError (exit status 2): a target or an argument in `augment.transforms` is wrong.

    Example:
        >>> augment = ImageAugment(AugmentConfig(preset="medium"))
        >>> image, mask = augment(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 1), np.uint8), seed=1)
        >>> image.shape, mask.shape
        ((64, 64, 3), (64, 64, 1))
    """

    def __init__(self, augment: AugmentConfig, context: Context = Context()) -> None:
        self.is_explicit_list = bool(augment.transforms)
        if self.is_explicit_list:
            self.transforms = build_explicit_transforms(
                augment, A.BasicTransform, A.BaseCompose, lambda _, args, key: args, context
            )
        elif augment.preset == "none":
            self.transforms = []
        else:
            self.transforms = preset_transforms(IMAGE_PRESETS[augment.preset], preset_flips(augment, 2))

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Augment image and mask together.

        Args:
            image: (H, W, C) uint8, or float32 in [0, 1].
            mask: (H, W, M) uint8. A preset never adds a value that the mask does not contain.
            seed: seed of this sample. The same seed gives the same result in any process.

        Returns:
            The augmented image and mask, of the same shapes and dtypes.

        Raises:
            MaskfoldError (exit status 2): a transform in `augment.transforms` fails, or changes the shape or the dtype.
        """
        data = {"image": np.ascontiguousarray(image), "mask": np.ascontiguousarray(mask)}
        children = np.random.SeedSequence(seed).generate_state(max(len(self.transforms), 1), np.uint64)
        for index, (transform, child) in enumerate(zip(self.transforms, children, strict=False)):
            if self.is_explicit_list:
                reseed(transform, int(child))
                with transform_errors(transform, index, image.shape):
                    data = transform(**data)
            elif is_applicable(transform, image.shape):
                reseed(transform, int(child))
                data = transform(**data)
        if type(data["image"]) is not np.ndarray or data["image"].dtype != image.dtype:
            raise MaskfoldError(
                f"augment.transforms: the image has the type {_type_name(data['image'])} after the transforms, "
                f"expected {image.dtype}.",
                "From augment.transforms, remove the transforms that normalise the image or convert its type; "
                "prepare.intensity normalises images.",
                status=2,
            )
        result = data["image"].reshape(*data["image"].shape[:2], -1), data["mask"].reshape(*data["mask"].shape[:2], -1)
        check_shapes(result, (image, mask), image.shape[:2])
        return result


def _type_name(array: Any) -> str:
    return str(getattr(array, "dtype", type(array).__name__))


def is_applicable(transform: Transform, shape: tuple[int, ...]) -> bool:
    """Return whether a preset's transform can be applied to a patch of this shape.

    A quarter turn needs a square patch. A grid distortion needs at least one pixel per grid cell.
    """
    if isinstance(transform, A.RandomRotate90):
        return shape[0] == shape[1]
    return not isinstance(transform, A.GridDistortion) or min(shape[:2]) >= transform.num_steps


def reseed(transform: Transform, seed: int) -> None:
    """Give a transform and each of its nested transforms new random generators, seeded from `seed`.

    Each transform gets two generators. Albumentations draws probabilities from a generator of Python's `random`. It
    draws deformation fields and noise from a generator of numpy.
    """
    seeds = np.random.SeedSequence(seed).generate_state(2 + len(getattr(transform, "transforms", ())), np.uint64)
    transform.py_random = random.Random(int(seeds[0]))
    transform.random_generator = np.random.Generator(np.random.PCG64(int(seeds[1])))
    for child, child_seed in zip(getattr(transform, "transforms", ()), seeds[2:], strict=True):
        reseed(child, int(child_seed))


def preset_transforms(preset: ImagePreset, flips: tuple[int, ...]) -> list[Transform]:
    """Return the transforms of a preset in the order of application: geometry first, then intensity.

    Args:
        preset: values of the preset.
        flips: axes of the image that are flipped, 0 (rows) and 1 (columns).
    """
    transforms: list[Transform] = []
    if 0 in flips:
        transforms.append(A.VerticalFlip(p=0.5))
    if 1 in flips:
        transforms.append(A.HorizontalFlip(p=0.5))
    if flips == (0, 1):  # a quarter turn and the flips generate all eight symmetries of the square
        transforms.append(A.RandomRotate90(p=0.5))
    transforms += [
        A.Affine(
            scale=preset.zoom,
            rotate=(-preset.rotate, preset.rotate),
            shear=(-preset.shear, preset.shear),
            keep_ratio=True,
            balanced_scale=True,
            border_mode=BORDER,
            p=preset.affine,
        ),
        A.ElasticTransform(alpha=preset.elastic_alpha, sigma=8, border_mode=BORDER, p=preset.elastic),
        A.GridDistortion(num_steps=5, distort_limit=preset.grid_limit, border_mode=BORDER, p=preset.grid),
        A.RandomBrightnessContrast(preset.brightness_limit, preset.contrast_limit, p=preset.brightness),
        A.RandomGamma(gamma_limit=preset.gamma_limit, p=preset.gamma),
        A.GaussianBlur(blur_limit=0, sigma_limit=preset.blur_sigma, p=preset.blur),
        A.GaussNoise(std_range=preset.noise_deviation, p=preset.noise),
        A.CoarseDropout(
            num_holes_range=preset.dropout_holes,
            hole_height_range=preset.dropout_size,
            hole_width_range=preset.dropout_size,
            fill=0,
            fill_mask=None,
            p=preset.dropout,
        ),
    ]
    return [transform for transform in transforms if transform.p > 0]
