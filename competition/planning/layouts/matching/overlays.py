"""Leave out pictures that show the masks over the images, because a network would learn the painted masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from competition.data.readers import read_image
from competition.errors import MaskfoldError
from competition.planning.folder import HostFolder
from competition.planning.layouts.content import dimensions_of, read_mask
from competition.planning.layouts.series import Pair, Series
from competition.planning.words import CHANNEL_WORDS, OVERLAY_WORDS, has_word
from competition.text import format_count

SAMPLE = 4  # cases whose pictures are compared
MIN_CHANGE = 24  # grey levels; JPEG compression changes pixels less
EDGE = 3  # pixels around a mask in which a drawn outline may lie
MIN_INSIDE, MIN_PAINTED = 0.97, 0.03  # share of the changed pixels in the mask; changed pixels per pixel of the mask


def drop_overlays(host: HostFolder, pairs: Sequence[Pair]) -> tuple[list[Pair], list[Series]]:
    """Drop the pairs whose image is an overlay, if another image has the same mask; return the rest and the overlays.

    An overlay has a word such as `overlay` or `vis` in its name, or differs from another image only in and around the
    mask, where it has more colour.
    """
    images_of: dict[str, tuple[Series, dict[str, Series]]] = {}
    for image, mask in pairs:
        images_of.setdefault(mask.pattern, (mask, {}))[1][image.pattern] = image
    found: dict[str, Series] = {}
    for mask, images in images_of.values():
        has_bands = any(has_word(image.label, CHANNEL_WORDS) for image in images.values())
        named = {pattern for pattern in images if is_named_overlay(images[pattern], may_be_light=has_bands)}
        others = [image for pattern, image in images.items() if pattern not in named]
        painted = {
            image.pattern
            for image in others
            if any(other is not image and _is_painted(host, other, image, mask) for other in others)
        }
        overlays = named | painted
        if len(overlays) < len(images):
            found |= {pattern: images[pattern] for pattern in overlays}
    return [(image, mask) for image, mask in pairs if image.pattern not in found], list(found.values())


def is_named_overlay(series: Series, may_be_light: bool = False) -> bool:
    """Return whether the folder or the name of a series says that it shows masks over images.

    Args:
        series: a series of images.
        may_be_light: whether there are images of other bands, so that `vis` may mean visible light.
    """
    return has_word(series.pattern.replace("{id}", " "), OVERLAY_WORDS - ({"vis"} if may_be_light else set()))


def overlay_remarks(overlays: Iterable[Series]) -> list[str]:
    """Return a remark for each series of overlays that is left out."""
    return [
        "pictures that show the masks over the images are not used, because the network would learn the painted masks: "
        f"{format_count(len(series.ids), 'picture')}, such as {series.sample(1)[0]}"
        for series in overlays
    ]


def _is_painted(host: HostFolder, plain: Series, other: Series, mask: Series) -> bool:
    """Return whether, in the sampled cases, `other` is `plain` with the mask or its outline painted on it."""
    if {plain.kind, other.kind, mask.kind} != {"single"}:
        return False
    shared = sorted(plain.ids & other.ids & mask.ids)
    answers = []
    for case_id in shared[:: max(1, len(shared) // SAMPLE)][:SAMPLE]:
        paths = [host.root / item.files[case_id][0] for item in (plain, other, mask)]
        answer = _is_painted_case(*paths) if all(dimensions_of(path) == 2 for path in paths) else False
        if answer is not None:
            answers.append(answer)
    return bool(answers) and all(answers)


def _is_painted_case(plain: Path, other: Path, mask: Path) -> bool | None:
    """Return whether `other` is `plain` with the mask or its outline painted on it; None if the mask is empty."""
    import cv2

    labels = read_mask(mask, 2)
    pixels = [_read_colours(path) for path in (plain, other)]
    if labels is None or pixels[0] is None or pixels[1] is None:
        return False
    if not labels.any():
        return None
    if not labels.shape == pixels[0].shape[:2] == pixels[1].shape[:2]:
        return False
    changed = np.abs(pixels[0] - pixels[1]).max(axis=-1) >= MIN_CHANGE
    kernel = np.ones((2 * EDGE + 1, 2 * EDGE + 1), np.uint8)
    near = cv2.dilate(labels.astype(np.uint8), kernel) > 0
    count = np.count_nonzero(changed)
    if count < MIN_PAINTED * np.count_nonzero(labels) or np.count_nonzero(changed & near) < MIN_INSIDE * count:
        return False
    before, after = (float(np.ptp(colours[changed], axis=-1).mean()) for colours in pixels if colours is not None)
    return after > before


def _read_colours(path: Path) -> np.ndarray | None:
    """Return an 8-bit colour or grey image as (H, W, 3) int16; None for any other image."""
    try:
        array = read_image(path, 2).array
    except MaskfoldError:
        return None
    if array.dtype != np.uint8:
        return None
    colours = array[:3] if len(array) >= 3 else np.repeat(array[:1], 3, axis=0)
    return np.moveaxis(colours, 0, -1).astype(np.int16)
