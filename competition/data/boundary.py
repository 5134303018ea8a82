"""The outermost pixels of objects, as a class that keeps touching objects apart."""

from __future__ import annotations

import numpy as np


def boundary(objects: np.ndarray, width: int) -> np.ndarray:
    """The pixels of each object that lie at most `width` pixels from another object or from the background.

    An object too small to keep an inside is given a thinner boundary, down to none: it would else have no pixel of its
    own class. The edge of the picture is no boundary. The idea of such a class is Caicedo et al., "Nucleus segmentation
    across imaging experiments", Nature Methods 2019.

    Args:
        objects: (*spatial) integers, 0 for background.
        width: in pixels, along the axes and diagonals.

    Returns:
        (*spatial) bool.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    edge = np.zeros(objects.shape, np.bool_)
    left = objects != 0
    for thin in range(width, 0, -1):
        size = 2 * thin + 1
        found = left & (maximum_filter(objects, size, mode="nearest") != minimum_filter(objects, size, mode="nearest"))
        inside = np.zeros(int(objects.max(initial=0)) + 1, np.bool_)
        inside[objects[left & ~found]] = True
        whole = inside[objects] & left
        edge |= found & whole
        left &= ~whole
        if not left.any():
            break
    return edge
