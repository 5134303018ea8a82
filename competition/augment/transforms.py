"""MONAI's dictionary transforms from an explicit list, applied to one volume (or 2.5D patch) in the loader."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform, Randomizable
from monai.utils.enums import GridSampleMode, InterpolateMode

from competition.augment.listed import listed_transforms
from competition.config.errors import MaskfoldError
from competition.config.experiment import Augment

GEOMETRY = ("spatial", "croppad")  # parts of monai.transforms whose transforms move the mask as well
INTENSITY = ("intensity", "smooth_field")
EXCEPTIONS = {"RandSimulateLowResolutiond": False, "RandSmoothDeformd": True}  # of that rule
MODES = ("mode", "grid_mode")  # how a transform's argument for interpolation may be called


class VolumeTransforms:
    """`augment.transforms` of MONAI on the keys `image` and `mask`.

    Where the YAML leaves `keys` out, transforms that move voxels get both, others the image; where it leaves `mode` out,
    the image is interpolated linearly and the mask by the nearest neighbour.

    Args:
        augment: the experiment's section.
        trust: packages besides the known ones that a target may name.

    Raises:
        MaskfoldError: status 2; a target or an argument is wrong, or a transform would mix the mask's labels.
    """

    def __init__(self, augment: Augment, trust: Sequence[str] = ()) -> None:
        self.transforms = listed_transforms(augment, MapTransform, Compose, _complete, trust)

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Changes image and mask together.

        Args:
            image: (C, *spatial) float32.
            mask: (M, *spatial) uint8.
            seed: of this sample; the same seed gives the same result in any process.

        Raises:
            MaskfoldError: status 2; a transform changes the shape.
        """
        data: dict[str, Any] = {
            "image": torch.from_numpy(np.array(image)),
            "mask": torch.from_numpy(mask.astype(np.float32)),
        }
        words = np.random.SeedSequence(seed).generate_state(max(len(self.transforms), 1), np.uint32)
        for transform, word in zip(self.transforms, words, strict=False):
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=int(word))  # a Compose hands children of its own seeds on
            data = transform(data)
        result = np.asarray(data["image"], np.float32), np.asarray(data["mask"]).round().astype(np.uint8)
        if result[0].shape != image.shape or result[1].shape != mask.shape:
            raise MaskfoldError(
                f"`augment.transforms` turns a patch of shape {image.shape} into {result[0].shape}.",
                f"End the list with a crop or a resize to {list(image.shape[1:])}.",
                status=2,
            )
        return result


def _complete(cls: Any, args: dict[str, Any], key: str) -> dict[str, Any]:
    """Fills in `keys` and the mode of interpolation; refuses a mode that would mix the mask's labels."""
    names = inspect.signature(cls.__init__).parameters
    package, _, part = cls.__module__.removesuffix(".dictionary").rpartition(".")
    known = package == "monai.transforms" and part in GEOMETRY + INTENSITY
    moves = EXCEPTIONS.get(cls.__name__, part in GEOMETRY) if known else True
    if "keys" in names and "keys" not in args:
        if not known:
            raise MaskfoldError(
                f"{key}.args lacks `keys`, and {cls.__name__} does not say whether it moves the mask.",
                f"Add {key}.args.keys: [image], or [image, mask].",
                status=2,
            )
        args["keys"] = ["image", "mask"] if moves else ["image"]
    keys = args.get("keys", [])
    keys = [keys] if isinstance(keys, str) else list(keys)
    if wrong := [name for name in keys if name not in ("image", "mask")]:
        raise MaskfoldError(
            f"{key}.args.keys names {wrong[0]}, which a sample does not have.",
            "Name `image`, `mask` or both, or leave `keys` out.",
            status=2,
        )
    for name, parameter in names.items():
        if (
            not isinstance(parameter.default, (GridSampleMode, InterpolateMode))
            or name not in MODES
            or "mask" not in keys
        ):
            continue  # the `mode` of a padding is another thing
        # interpolate's "nearest" rounds down, half a voxel off from the linear image; grid_sample's does not
        exact = "nearest-exact" if isinstance(parameter.default, InterpolateMode) else "nearest"
        modes = args.setdefault(name, ["bilinear" if one == "image" else exact for one in keys])
        of_mask = modes[keys.index("mask")] if isinstance(modes, list) and len(modes) == len(keys) else modes
        if str(of_mask) not in ("nearest", "nearest-exact", "0"):
            raise MaskfoldError(
                f"{key}.args.{name} is {modes}, which would interpolate between the mask's labels.",
                f"Write [bilinear, {exact}] for the keys {keys}, or leave `{name}` out.",
                status=2,
            )
    return args
