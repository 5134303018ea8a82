"""Hold the data of one case during post-processing: its probabilities, masks and objects."""

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
        objects: (*spatial) int32 label image of the objects: 0 for background, numbers from 1. None if no step has made
            objects; the objects are then the connected components of the mask.
    """

    mask: Mask
    objects: Labels | None = None

    def labels(self) -> Labels:
        """Return the label image of the objects, (*spatial) int32 with 0 for background.

        If no step has made objects, these are the connected components of the mask.
        """
        return connected_components(self.mask).astype(np.int32) if self.objects is None else self.objects

    @classmethod
    def from_objects(cls, objects: Labels) -> ClassMask:
        """Return the objects of a label image, with a mask of all their pixels.

        Args:
            objects: (*spatial) int32, 0 for background.
        """
        return cls(objects != 0, objects)

    def restrict(self, mask: Mask) -> ClassMask:
        """Return the mask and the objects, cut to the pixels of a smaller mask.

        Args:
            mask: (*spatial) bool, the new mask. All its pixels must be in the current mask.
        """
        return replace(self, mask=mask, objects=None if self.objects is None else np.where(mask, self.objects, 0))


@dataclass(frozen=True)
class CaseProbabilities:
    """Hold the probabilities of one case, which the steps of all classes share.

    Args:
        probabilities: (P, *spatial) float16. The channels are the background (only if classes are exclusive), the
            classes, and the boundary class (if there is one).
        comp: the competition.
        presence: for each of K classes, the probability that the case contains it, (K, 1, …) float32; see
            `competition.inference.predict.Prediction`. Only the step `gate` uses these probabilities. None if the
            network has no presence head.
    """

    probabilities: NDArray[Any]
    comp: Competition
    presence: NDArray[Any] | None = None

    @cached_property
    def masks(self) -> Mask:
        """Masks of all classes before the first step, (K, *spatial) bool.

        With exclusive classes, each pixel gets its most probable class. With overlapping classes, a mask contains the
        pixels whose probability is above 0.5.
        """
        # Imported here, so that a YAML with steps can be read without importing the inference package.
        from competition.inference.masks import to_masks

        return to_masks(self.probabilities, self.comp)

    @cached_property
    def class_probabilities(self) -> NDArray[Any]:
        """Probabilities without a boundary class, (`comp.output_channels`, *spatial).

        If the network has a boundary class, its probability is distributed over the other classes.
        """
        from competition.inference.masks import merge_boundary_class

        return merge_boundary_class(self.probabilities, self.comp) if self.has_boundary else self.probabilities

    @property
    def empty(self) -> ClassMask:
        """An empty mask of one class: (*spatial) bool, False everywhere."""
        return ClassMask(np.zeros(self.probabilities.shape[1:], np.bool_))

    @property
    def has_boundary(self) -> bool:
        """Whether the probabilities include a boundary class."""
        return len(self.probabilities) > self.comp.output_channels

    def probability(self, index: int) -> NDArray[Any]:
        """Return the probability of the class with this index, (*spatial); see `class_probabilities`."""
        return np.asarray(self.class_probabilities[index + (self.comp.labels == "exclusive")])

    def interior(self, index: int) -> NDArray[Any]:
        """Return the probability that a pixel is in an object of a class, but not on the object's boundary, (*spatial).

        Without a boundary class, this is the probability of the class.

        Args:
            index: index of the class.
        """
        return np.asarray(self.probabilities[index + (self.comp.labels == "exclusive")])

    def present(self, index: int, threshold: float) -> NDArray[Any]:
        """Return whether the probability that the case contains a class reaches a threshold.

        Args:
            index: index of the class.
            threshold: the threshold.

        Returns:
            (1, …) bool, one value for the case; or one value per slice, if the presence was predicted per slice. The
            shape broadcasts to the masks.

        Raises:
            MaskfoldError: the prediction has no class presence.
        """
        if self.presence is None:
            raise MaskfoldError(
                "The step `gate` requires a presence head, but the network of this run has none.",
                "Remove `gate` from postprocess.steps, or use a run that was trained with the section `gate`.",
            )
        return np.asarray(self.presence[index] >= threshold)

    def above_threshold(self, index: int, threshold: float) -> Mask:
        """Return the pixels in which the probability of a class exceeds a threshold, (*spatial) bool.

        With exclusive classes, pixels in which another class is more probable are left out. The background does not
        count as another class, so it may be more probable.

        Args:
            index: index of the class.
            threshold: the threshold.
        """
        probability = self.probability(index)
        mask = np.asarray(probability > threshold)
        if self.comp.labels == "exclusive":
            for other in range(len(self.comp.classes)):
                if other < index:  # of two equally probable classes, the pixel gets the first, as with argmax
                    mask &= probability > self.probability(other)
                elif other > index:
                    mask &= probability >= self.probability(other)
        return mask


@dataclass(frozen=True)
class CasePrediction:
    """Hold the masks and objects of one case after post-processing.

    Attributes:
        masks: (K, *spatial) bool for K classes.
        objects: (K, *spatial) int32 label images of the objects of each class. None if no step has made objects; the
            objects are then the connected components of the masks.
    """

    masks: Mask
    objects: Labels | None

    def object_labels(self, index: int) -> NDArray[np.integer[Any]]:
        """Return the label image of the objects of a class, (*spatial) integers with 0 for background.

        Some numbers may be unused.

        Args:
            index: index of the class.
        """
        return connected_components(self.masks[index]) if self.objects is None else self.objects[index]

    def object_masks(self, index: int) -> Iterator[Mask]:
        """Yield the mask of each object of a class, (*spatial) bool, in the order of the objects' numbers."""
        labels = self.object_labels(index)
        for number in np.unique(labels[labels != 0]):
            yield np.asarray(labels == number)
