"""Which image a segmentation or a label series belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from competition.data.dicom.grid import Grid
from competition.data.dicom.refused import Refused
from competition.data.dicom.scan import Instance
from competition.data.dicom.series import Series
from competition.data.dicom.stack import Stack


@dataclass(frozen=True, eq=False)
class Image:
    """An image series that was converted."""

    id: str
    stack: Stack


class Pairing:
    """Finds images by what other files say of them.

    Args:
        series: all image series of the folder.
        images: those that were converted, by SeriesInstanceUID.
    """

    def __init__(self, series: list[Series], images: dict[str, Image]) -> None:
        self._images = images
        self._known = {one.uid: one.uid for one in series} | {
            instance.sop: one.uid for one in series for instance in one.instances if instance.sop}

    def image_of(self, instance: Instance, misfit: Callable[[Grid], str], strict: bool) -> Image:
        """Finds the one image of a mask.

        Args:
            instance: a file of the mask.
            misfit: says why the mask is not on an image's grid; empty where it is.
            strict: the images that the file names must be there; else those of its study will do.

        Returns:
            The image that the file names and whose grid is its own; where it names none, the only one of its study and
            frame of reference with its grid.

        Raises:
            Refused: there is no such image, or more than one.
        """
        named = {self._known[uid] for uid in instance.sources if uid in self._known}
        if named:
            pool = [self._images[uid] for uid in sorted(named) if uid in self._images]
            if not pool:
                raise Refused("the image series that it names was refused")
        elif instance.sources and strict:
            raise Refused("the image series that it names is not in the folder")
        else:
            pool = [image for image in self._images.values() if _together(image.stack.series.first, instance)]
            if not pool:
                raise Refused("no image of its study and frame of reference was converted")
        reasons = {image.id: misfit(image.stack.grid) for image in pool}
        fitting = [image for image in pool if not reasons[image.id]]
        if len(fitting) > 1:
            ids = ", ".join(sorted(image.id for image in fitting))
            raise Refused(f"several images have its grid and it names none of them alone: {ids}")
        if not fitting:
            case, reason = min(reasons.items())
            more = f" (and {len(pool) - 1} more images do not fit)" if len(pool) > 1 else ""
            raise Refused(f"not on the grid of {case}: {reason}{more}")
        return fitting[0]


def _together(image: Instance, mask: Instance) -> bool:
    """One study, and not two frames of reference."""
    frames = {image.frame_of_reference, mask.frame_of_reference} - {""}
    return image.study == mask.study and len(frames) < 2
