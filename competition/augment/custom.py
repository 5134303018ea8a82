"""Build the transforms that the YAML lists (albumentations or MONAI), and apply MONAI's transforms to volumes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform, Randomizable
from monai.utils.enums import GridSampleMode, InterpolateMode

from competition.config.construction import ConstructionGuard
from competition.config.experiment import AugmentConfig, TargetConfig
from competition.config.instantiate import resolve_target
from competition.context import Context
from competition.errors import MaskfoldError

Complete = Callable[[Any, dict[str, Any], str], dict[str, Any]]
SPATIAL_MODULES = ("spatial", "croppad")  # modules of monai.transforms whose transforms also apply to the mask
INTENSITY_MODULES = ("intensity", "smooth_field")
MOVES_MASK_EXCEPTIONS = {  # whether a transform also applies to the mask, by class name
    "RandSimulateLowResolutiond": False,
    "RandSmoothDeformd": True,
}
MODE_ARGUMENTS = ("mode", "grid_mode")  # arguments that set the interpolation


def build_explicit_transforms(
    augment: AugmentConfig, single: type, group: type, complete: Complete, context: Context
) -> list[Any]:
    """Build the transforms that `augment.transforms` lists.

    A group such as `OneOf` can contain further transforms, in its own argument `transforms`.

    Args:
        augment: section `augment` of the experiment.
        single: base class of single transforms.
        group: base class of groups of transforms.
        complete: function that receives the class, the arguments and the YAML key of a transform. It returns the final
            arguments.
        context: contains the packages that the user trusts.

    Raises:
        MaskfoldError (exit status 2): a target or an argument is wrong, or the section also sets a preset.
    """
    if augment.preset != "none":
        raise MaskfoldError(
            "augment sets both a preset and a list of transforms, expected only one of them.",
            "Remove augment.preset or augment.transforms.",
            status=2,
        )

    def build(item: TargetConfig, key: str) -> Any:
        cls = resolve_target(item.target, (single, group), f"{key}.target", context.trust)
        if issubclass(cls, group):
            children = item.args.get("transforms") or ()
            built = []
            for index, child in enumerate(children):
                child_key = f"{key}.args.transforms.{index}"
                built.append(build(_nested(child, child_key), child_key))
            args = {**item.args, "transforms": built}
        else:
            args = complete(cls, dict(item.args), key)
        with ConstructionGuard(cls, item.args, f"{key}.args", context.trust):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)  # albumentations would only warn of an unknown argument
                    return cls(**args)
            except (TypeError, ValueError, KeyError, UserWarning) as error:
                reason = " ".join(str(error).split()).rstrip(".")
                raise MaskfoldError(
                    f"{key}.args: {item.target} rejects these arguments: {reason}.",
                    f"Change {key}.args. The documentation of {cls.__module__.split('.')[0]} lists the arguments of "
                    f"{cls.__name__}.",
                    status=2,
                ) from error

    return [build(item, f"augment.transforms.{index}") for index, item in enumerate(augment.transforms or ())]


MEMORY_WORDS = ("allocate memory", "out of memory", "insufficient memory")  # in the messages of torch and OpenCV


@contextmanager
def transform_errors(transform: Any, index: int, shape: tuple[int, ...]) -> Iterator[None]:
    """Convert an exception that a transform of `augment.transforms` raises to a `MaskfoldError` that names the key.

    Args:
        transform: the transform.
        index: position of the transform in `augment.transforms`, counted from 0.
        shape: shape of the image that is transformed, for the message.

    Raises:
        MaskfoldError (exit status 2): the `with` block raised an exception that was no `MaskfoldError`. If memory ran
            out, the original exception is passed on instead.
    """
    try:
        yield
    except (MaskfoldError, MemoryError):
        raise
    except Exception as error:  # transforms raise errors of any type, also from libraries that they use
        if any(words in str(error).lower() for words in MEMORY_WORDS):
            raise
        key, reason = f"augment.transforms.{index}", " ".join(str(error).split())[:200].rstrip(".")
        raise MaskfoldError(
            f"{key}: {type(transform).__name__} cannot transform an image of the shape {shape}: "
            f"{type(error).__name__}: {reason}.",
            f"Change {key}.args, or remove {key}.",
            status=2,
        ) from error


def check_shapes(
    result: tuple[np.ndarray, np.ndarray], given: tuple[np.ndarray, np.ndarray], size: tuple[int, ...]
) -> None:
    """Check that the transforms have not changed the shape of the image or the mask.

    Args:
        result: image and mask after the transforms.
        given: image and mask before the transforms.
        size: length of the image along each spatial axis, for the hint.

    Raises:
        MaskfoldError (exit status 2): a shape has changed.
    """
    for name, array, before in zip(("image", "mask"), result, given, strict=True):
        if array.shape != before.shape:
            raise MaskfoldError(
                f"augment.transforms: the {name} has the shape {array.shape} after the transforms, expected "
                f"{before.shape}.",
                f"End augment.transforms with a crop or a resize to {list(size)}.",
                status=2,
            )


def _nested(child: Any, key: str) -> TargetConfig:
    if not isinstance(child, dict) or "target" not in child or not set(child) <= {"target", "args"}:
        raise MaskfoldError(
            f"{key}: found {str(child)[:60]}, expected a mapping with the key `target` and, if needed, `args`.",
            "Write the transform as `{target: …, args: {…}}`.",
            status=2,
        )
    return TargetConfig(target=child["target"], args=child.get("args") or {})


# MONAI's dictionary transforms, which the loader applies to single volumes (or 2.5D patches)


class MonaiTransforms:
    """Apply the MONAI transforms of `augment.transforms` to an image and its mask.

    The transforms find the two arrays under the keys `image` and `mask`. If the YAML does not set a transform's
    `keys`, a transform that moves voxels is applied to both arrays, and any other transform only to the image. If the
    YAML does not set `mode`, the image gets linear interpolation, and the mask nearest-neighbour interpolation.

    Args:
        augment: section `augment` of the experiment.
        context: contains the packages that the user trusts.

    Raises:
        MaskfoldError (exit status 2): a target or an argument is wrong, or a transform would interpolate between the
            mask's labels.
    """

    def __init__(self, augment: AugmentConfig, context: Context = Context()) -> None:
        self.transforms = build_explicit_transforms(augment, MapTransform, Compose, _complete_args, context)

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Augment image and mask together.

        Args:
            image: (C, *spatial) float32.
            mask: (M, *spatial) uint8.
            seed: seed of this sample. The same seed gives the same result in any process.

        Returns:
            The augmented image (float32) and mask (uint8), with the same shapes as the arguments.

        Raises:
            MaskfoldError (exit status 2): a transform fails, returns several patches, or changes the shape.
        """
        data: dict[str, Any] = {
            "image": torch.from_numpy(np.array(image)),
            "mask": torch.from_numpy(mask.astype(np.float32)),
        }
        seeds = np.random.SeedSequence(seed).generate_state(max(len(self.transforms), 1), np.uint32)
        for index, (transform, child_seed) in enumerate(zip(self.transforms, seeds, strict=False)):
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=int(child_seed))  # a Compose passes its seed to the transforms in it
            with transform_errors(transform, index, image.shape):
                data = transform(data)
            if not isinstance(data, dict):
                raise MaskfoldError(
                    f"augment.transforms.{index}: {type(transform).__name__} returns several patches, expected one.",
                    "Replace it by a transform that returns one patch, such as RandSpatialCropd. To centre more "
                    "patches on foreground, raise patch.foreground.",
                    status=2,
                )
        result = np.asarray(data["image"], np.float32), np.asarray(data["mask"]).round().astype(np.uint8)
        check_shapes(result, (image, mask), image.shape[1:])
        return result


def _complete_args(cls: Any, args: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a transform's arguments; if the YAML does not set `keys` or the interpolation, add defaults.

    Raises:
        MaskfoldError (exit status 2): `keys` is missing for a transform that Maskfold does not know, or contains a name
            other than image and mask; or the mode would interpolate between the mask's labels.
    """
    names = inspect.signature(cls.__init__).parameters
    package, _, part = cls.__module__.removesuffix(".dictionary").rpartition(".")
    known = package == "monai.transforms" and part in SPATIAL_MODULES + INTENSITY_MODULES
    moves = MOVES_MASK_EXCEPTIONS.get(cls.__name__, part in SPATIAL_MODULES) if known else True
    if "keys" in names and "keys" not in args:
        if not known:
            raise MaskfoldError(
                f"{key}.args.keys is missing, and Maskfold cannot know whether {cls.__name__} also transforms the "
                "mask.",
                f"Set {key}.args.keys to [image] if only the image is transformed, or to [image, mask].",
                status=2,
            )
        args["keys"] = ["image", "mask"] if moves else ["image"]
    keys = args.get("keys", [])
    keys = [keys] if isinstance(keys, str) else list(keys)
    if unknown := [name for name in keys if name not in ("image", "mask")]:
        raise MaskfoldError(
            f"{key}.args.keys: found {unknown[0]}, expected image or mask.",
            f"Set {key}.args.keys to image, to mask or to [image, mask], or remove {key}.args.keys.",
            status=2,
        )
    for name, parameter in names.items():
        if (
            not isinstance(parameter.default, (GridSampleMode, InterpolateMode))
            or name not in MODE_ARGUMENTS
            or "mask" not in keys
        ):
            continue  # e.g. the `mode` of a padding, which does not set the interpolation
        # In torch, "nearest" of `interpolate` rounds down, which would shift the mask by half a voxel; "nearest" of
        # `grid_sample` does not.
        nearest = "nearest-exact" if isinstance(parameter.default, InterpolateMode) else "nearest"
        modes = args.setdefault(name, ["bilinear" if data_key == "image" else nearest for data_key in keys])
        mask_mode = modes[keys.index("mask")] if isinstance(modes, list) and len(modes) == len(keys) else modes
        if str(mask_mode) not in ("nearest", "nearest-exact", "0"):
            raise MaskfoldError(
                f"{key}.args.{name}: found {modes}, expected nearest for the mask, because the mask has integer "
                "labels.",
                f"Remove {key}.args.{name}, or set it to a list with one value for each of the keys {keys}. The value "
                f"for mask must be {nearest}.",
                status=2,
            )
    return args
