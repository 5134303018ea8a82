"""Hold the data of one case during post-processing: probabilities, masks and objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.errors import MaskfoldError
from competition.metrics.instances import connected_components

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class ClassMask:
    """Hold the mask and objects of one class between two post-processing steps.

    Attributes:
        mask: (*spatial) bool.
        objects: (*spatial) int32, 0 for background, objects from 1; None: the mask's connected components.
    """

    mask: Mask
    objects: Labels | None = None

    def labels(self) -> Labels:
        """Return the label image of the objects.

        If no step has set objects, label the connected components of the mask.
        """
        return connected_components(self.mask).astype(np.int32) if self.objects is None else self.objects

    @classmethod
    def from_objects(cls, objects: Labels) -> ClassMask:
        """Build the mask and objects from a label image of the objects.

        Args:
            objects: (*spatial) int32, 0 for background.
        """
        return cls(objects != 0, objects)

    def restrict(self, mask: Mask) -> ClassMask:
        """Return the mask and the objects without the pixels outside a smaller mask.

        Args:
            mask: (*spatial) bool; it must not have pixels outside the current mask.
        """
        return replace(self, mask=mask, objects=None if self.objects is None else np.where(mask, self.objects, 0))


@dataclass(frozen=True)
class CaseProbabilities:
    """Hold the probabilities of one case, which the steps of all classes share.

    Args:
        probabilities: (P, *spatial) float16; the boundary class, if any, is last.
        comp: the competition.
        presence: (K, 1, …), probability that the case contains each class, see `competition.inference.predict`; only
            the step `gate` uses it.
    """

    probabilities: NDArray[Any]
    comp: Competition
    presence: NDArray[Any] | None = None

    @cached_property
    def masks(self) -> Mask:
        """Masks (K, *spatial) bool: by argmax, or by the threshold 0.5 if classes overlap."""
        # This import stays inside, because a YAML with steps must be readable without it.
        from competition.inference.masks import to_masks

        return to_masks(self.probabilities, self.comp)

    @cached_property
    def class_probabilities(self) -> NDArray[Any]:
        """Probabilities (comp.output_channels, *spatial), with the boundary class merged into the classes."""
        from competition.inference.masks import merge_boundary_class

        return merge_boundary_class(self.probabilities, self.comp) if self.has_boundary else self.probabilities

    @property
    def empty(self) -> ClassMask:
        """Empty mask of one class, (*spatial) bool."""
        return ClassMask(np.zeros(self.probabilities.shape[1:], np.bool_))

    @property
    def has_boundary(self) -> bool:
        """Whether there is a boundary class."""
        return len(self.probabilities) > self.comp.output_channels

    def probability(self, index: int) -> NDArray[Any]:
        """Return the probability of a class, (*spatial)."""
        return np.asarray(self.class_probabilities[index + (self.comp.labels == "exclusive")])

    def interior(self, index: int) -> NDArray[Any]:
        """Return the probability that a pixel is in an object of a class and not on its boundary, (*spatial)."""
        return np.asarray(self.probabilities[index + (self.comp.labels == "exclusive")])

    def present(self, index: int, threshold: float) -> NDArray[Any]:
        """Return whether a class's presence probability reaches a threshold: one bool (1, …) or one bool per slice.

        Raises:
            MaskfoldError: the prediction has no class presence.
        """
        if self.presence is None:
            raise MaskfoldError(
                "The step `gate` requires a presence head, but the prediction has none.",
                "Remove `gate` from postprocess.steps, or use a run that was trained with `gate`.",
            )
        return np.asarray(self.presence[index] >= threshold)

    def above_threshold(self, index: int, threshold: float) -> Mask:
        """Return a class's mask (*spatial): the pixels in which its probability exceeds a threshold.

        If classes are exclusive, pixels in which another class is more probable are not in the mask.
        """
        probability = self.probability(index)
        mask = np.asarray(probability > threshold)
        if self.comp.labels == "exclusive":
            for other in range(len(self.comp.classes)):
                if other < index:  # in a tie the first class wins, as with argmax
                    mask &= probability > self.probability(other)
                elif other > index:
                    mask &= probability >= self.probability(other)
        return mask


@dataclass(frozen=True)
class CasePrediction:
    """Hold the masks of one case.

    Attributes:
        masks: (K, *spatial) bool.
        objects: (K, *spatial) int32, the objects of each class; None: the connected components of the masks.
    """

    masks: Mask
    objects: Labels | None

    def object_labels(self, index: int) -> NDArray[np.integer[Any]]:
        """Return the objects of a class, (*spatial) integers: 0 for background; numbers may have gaps."""
        return connected_components(self.masks[index]) if self.objects is None else self.objects[index]

    def object_masks(self, index: int) -> Iterator[Mask]:
        """Yield the objects of a class in the order of their numbers, one mask at a time."""
        labels = self.object_labels(index)
        for number in np.unique(labels[labels != 0]):
            yield np.asarray(labels == number)
