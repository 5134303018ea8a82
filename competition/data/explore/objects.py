"""Voxels and objects of each class in one case."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.data.explore.measured import Truth
from competition.data.masks import IGNORED, load_instances


def measure_truth(comp: Competition, row: Any, mask: np.ndarray, kind: str) -> Truth:
    """Counts.

    Args:
        comp: what the host gave.
        row: of the case table.
        mask: (M, *spatial) as `load_mask` gives it.
        kind: of the truth, see `discovery.find_masks`. Where it numbers objects, they are counted as they are given; else
            an object is a connected component of a class, as `load_instances` says.

    Raises:
        MaskfoldError: objects cannot be read.
    """
    classes = class_layers(mask, comp)
    given = load_instances(comp, row) if kind in ("rle", "instances") else None
    objects = given_objects(given, classes) if given is not None else [component_sizes(layer) for layer in classes]
    front = foreground(mask)
    return Truth(np.array([np.count_nonzero(layer) for layer in classes], np.int64), int(np.count_nonzero(front)),
                 int(np.count_nonzero((mask == IGNORED).any(axis=0))), front.size, objects)


def foreground(mask: np.ndarray) -> NDArray[np.bool_]:
    """Where any class is, of (M, *spatial)."""
    found: NDArray[np.bool_] = ((mask != 0) & (mask != IGNORED)).any(axis=0)
    return found


def class_layers(mask: np.ndarray, comp: Competition) -> list[NDArray[np.bool_]]:
    """(*spatial) of each class."""
    if comp.labels == "overlapping":
        return [channel == 1 for channel in mask]
    return [mask[0] == number for number in range(1, len(comp.classes) + 1)]


def component_sizes(layer: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Voxels of each connected component: 8 neighbours in pictures, 26 in volumes."""
    import cc3d

    if not layer.any():
        return np.empty(0, np.int64)
    # As uint8 and whole: cc3d 4.1 gives wrong labels on some boolean arrays.
    parts = cc3d.connected_components(np.ascontiguousarray(layer).view(np.uint8), connectivity=8 if layer.ndim == 2 else 26)
    return np.bincount(parts[layer]).astype(np.int64)[1:]


def given_objects(instances: NDArray[np.int32], layers: list[NDArray[np.bool_]]) -> list[NDArray[np.int64]]:
    """Voxels of each numbered object, under the class in which most of it lies."""
    numbers = int(instances.max(initial=0)) + 1
    shares = np.array([np.bincount(instances[layer], minlength=numbers)[:numbers] for layer in layers])
    shares[:, 0] = 0
    owner, sizes = shares.argmax(axis=0), shares.max(axis=0)
    return [sizes[(owner == index) & (sizes > 0)].astype(np.int64) for index in range(len(layers))]
