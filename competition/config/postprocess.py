"""What is done to probabilities and masks after inference: a short, ordered list of steps for each class."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from competition.config.competition import Positive, Section, Share


class Triplet(Section):
    """Empty unless the area above `high` reaches `pixels`; else cut at `low`."""

    high: Share
    pixels: Positive
    low: Share


class Split(Section):
    """Touching objects are parted by a watershed, from seeds by the distance to the edge or by the boundary class."""

    distance: Annotated[float, Field(gt=0)] | None = None  # how far, in pixels, a peak stands above its saddle
    smooth: Annotated[float, Field(ge=0)] = 1.0  # of the distance, in pixels
    boundary: Share | None = None  # seeds are where the probability of an object's inside is above this
    smallest: Positive = 4  # pixels of a seed

    @model_validator(mode="after")
    def _one_way(self) -> Split:
        if (self.distance is None) == (self.boundary is None):
            raise ValueError("`split` needs either `distance` or `boundary`")
        return self


class Step(Section):
    """One step: a mapping with one key, such as `remove_small: 30`."""

    threshold: Share | None = None  # in place of argmax, or of 0.5 where classes overlap
    triplet: Triplet | None = None
    gate: Share | None = None  # empty where the network's gate for the class is below it
    open: Positive | None = None  # radius in pixels
    close: Positive | None = None  # radius in pixels
    fill_holes: Annotated[bool, Field(strict=True)] | None = None
    split: Split | None = None  # competition.instances only
    remove_small: Positive | None = None  # objects of fewer pixels
    keep_largest: Positive | None = None  # so many components

    @model_validator(mode="after")
    def _one_key(self) -> Step:
        if len(self.model_fields_set) != 1 or self.value is None or self.value is False:
            raise ValueError("a step has one key and its value, e.g. `remove_small: 30`")
        return self

    @model_serializer(mode="plain")
    def _one_key_again(self) -> dict[str, Any]:
        value = self.value
        return {self.name: value.model_dump() if isinstance(value, Section) else value}

    @property
    def name(self) -> str:
        """What the step does: its key."""
        return next(iter(self.model_fields_set))

    @property
    def value(self) -> Any:
        """How: the key's value."""
        return getattr(self, self.name)

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, Section):
            value = ", ".join(f"{key} {inner:g}" for key, inner in value.model_dump(exclude_none=True).items())
        return self.name.replace("_", " ") + ("" if value is True else f" {value}")


class Number(Section):
    """Objects in a row that look alike get their classes by their order: see `competition.submission.number`."""

    along: Literal[
        "R", "L", "A", "P", "S", "I"
    ]  # the end where the first class is: S means the first is the most superior
    classes: Annotated[list[str], Field(min_length=2)]  # in order, e.g. [L1, L2, L3, L4, L5]
    smallest: Positive | None = None  # voxels: smaller objects are not counted; None: a tenth of the largest
    split: Annotated[float, Field(gt=0, lt=1)] | None = (
        0.6  # share of the thickest that an object's core has; null parts none
    )

    @model_validator(mode="after")
    def _each_once(self) -> Number:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("`number.classes` names one class twice")
        return self


class Postprocess(Section):
    """Steps of every class, or of each by its name; `tune` searches them on the out-of-fold predictions."""

    tune: bool = False
    steps: list[Step] | dict[str, list[Step]] = []
    forbid_overlap: bool = False  # overlapping classes: a pixel stays in the most probable one
    number: Number | None = None  # classes by their order in a row, before any step

    @model_validator(mode="after")
    def _masks_first(self) -> Postprocess:
        for steps in self.steps.values() if isinstance(self.steps, dict) else [self.steps]:
            if any(step.name in ("threshold", "triplet") for step in steps[1:]):
                raise ValueError(
                    "`threshold` and `triplet` make the mask, so one of them may stand first and nowhere else"
                )
        return self

    def of(self, cls: str) -> tuple[Step, ...]:
        """The steps of a class."""
        return tuple(self.steps.get(cls, ()) if isinstance(self.steps, dict) else self.steps)
