"""Define a finding, which is a possible fault of a label, and the kinds of faults."""

from __future__ import annotations

from dataclasses import dataclass

MISSING = "missing object"  # the network is certain of an object that the truth does not have
EXTRA = "extra object"  # the truth has an object where the network is certain that there is none
WRONG_CLASS = "wrong class"  # the network is certain that an object has another class
SHIFTED = "shifted"  # truth and prediction agree after one of them is moved
EXCHANGED = "exchanged masks"  # two cases: the truth of each case fits the prediction of its partner


@dataclass(frozen=True)
class Finding:
    """Hold a possible fault of a label, which is one row of the review.

    Attributes:
        id: id of the case.
        kind: the kind of fault, e.g. a missing or shifted object.
        score: suspicion in [0, 1], see `docs/review.md`.
        cls: class of the object in the truth or, if the truth lacks the object, in the prediction. Empty for a finding
            about the whole mask of a case with several classes.
        suggested: class that the network suggests: a class name, `background`, or empty if it suggests none.
        slice: index of the slice along the last axis in which the fault is largest; None for 2D images.
        object: number of the object among the connected components of its class in this slice, from 1. The components
            of the truth are numbered or, if the truth lacks the object, those of the prediction. 0 for a finding about
            the whole mask.
        centre: (row, column) of the fault in the slice, the first two axes of the file.
        pixels: number of pixels in which the network confidently contradicts the truth.
        partner: id of the case whose mask fits better, for exchanged masks.
        move: for shifted masks, the translation with which the truth fits the prediction, in pixels along each axis of
            the file.
    """

    id: str
    kind: str
    score: float
    cls: str = ""
    suggested: str = ""
    slice: int | None = None
    object: int = 0
    centre: tuple[int, int] = (0, 0)
    pixels: int = 0
    partner: str = ""
    move: tuple[int, ...] = ()
