"""Random changes of training samples: pictures one by one in the loader, volumes as batches on the training device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from competition.augment.presets import listed_flips, preset_flips
from competition.config.experiment import Augment, Experiment

if TYPE_CHECKING:
    import numpy as np

    from competition.augment.volumes import VolumeAugment


def loader_augment(
    exp: Experiment, trust: Sequence[str] = ()
) -> Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]] | None:
    """What the loader does to each sample, for `PatchDataset(augment=…)`: albumentations on pictures, an explicit list of
    MONAI's transforms on volumes. None where it does nothing.

    Raises:
        MaskfoldError: status 2; `augment` does not make sense.
    """
    if exp.augment.preset == "none" and not exp.augment.transforms:
        return None
    if exp.competition.dimensions == 2:
        from competition.augment.pictures import PictureAugment

        return PictureAugment(exp.augment, trust)
    if exp.augment.transforms:
        from competition.augment.transforms import VolumeTransforms

        return VolumeTransforms(exp.augment, trust)
    return None


def device_augment(exp: Experiment) -> VolumeAugment | None:
    """What the training device does to each batch: a preset on volumes. None where it does nothing.

    Raises:
        MaskfoldError: status 2; `augment` does not make sense.
    """
    if exp.competition.dimensions == 2 or exp.augment.transforms or exp.augment.preset == "none":
        return None
    from competition.augment.volumes import VolumeAugment

    dims, spacing = exp.network_dimensions, exp.prepare.spacing
    return VolumeAugment(exp.augment, dims, spacing[:dims] if spacing else None)


def flips(augment: Augment, dims: int) -> tuple[int, ...]:
    """The spatial axes that training flips, each on its own: those that `inference.tta: auto` may flip as well.

    Args:
        augment: the experiment's section.
        dims: spatial axes of a patch.
    """
    return listed_flips(augment, dims) if augment.transforms else preset_flips(augment, dims)
