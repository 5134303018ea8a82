"""Schema of post-processing: an ordered list of steps per class, applied to probabilities and masks after inference."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from competition.config.competition import ConfigModel, PositiveInt, UnitInterval


class DoubleThreshold(ConfigModel):
    """Double threshold: the mask is empty unless at least `pixels` pixels exceed `high`; otherwise cut at `low`."""

    high: UnitInterval
    pixels: PositiveInt
    low: UnitInterval


class SplitConfig(ConfigModel):
    """Separate touching objects by watershed; seeds come from the distance to the edge or from the boundary class."""

    distance: Annotated[float, Field(gt=0)] | None = None  # pixels: height of a distance peak above its saddle
    smooth: Annotated[float, Field(ge=0)] = 1.0  # of the distance, in pixels
    boundary: UnitInterval | None = None  # seeds are where the probability of an object's inside is above this
    smallest: PositiveInt = 4  # minimum seed size in pixels

    @model_validator(mode="after")
    def _check_method(self) -> SplitConfig:
        if (self.distance is None) == (self.boundary is None):
            raise ValueError("`split` requires exactly one of `distance` and `boundary`")
        return self


class StepConfig(ConfigModel):
    """One step: a mapping with one key, such as `remove_small: 30`."""

    threshold: UnitInterval | None = None  # instead of argmax, or of 0.5 if classes overlap
    triplet: DoubleThreshold | None = None
    gate: UnitInterval | None = None  # empty if the presence head's probability of the class is below this
    open: PositiveInt | None = None  # radius in pixels
    close: PositiveInt | None = None  # radius in pixels
    fill_holes: Annotated[bool, Field(strict=True)] | None = None
    split: SplitConfig | None = None  # competition.instances only
    remove_small: PositiveInt | None = None  # objects of fewer pixels
    keep_largest: PositiveInt | None = None  # number of components

    @model_validator(mode="after")
    def _check_one_key(self) -> StepConfig:
        if len(self.model_fields_set) != 1 or self.value is None or self.value is False:
            raise ValueError("a step must have exactly one key and its value, e.g. `remove_small: 30`")
        return self

    @model_serializer(mode="plain")
    def _serialize(self) -> dict[str, Any]:
        value = self.value
        return {self.name: value.model_dump() if isinstance(value, ConfigModel) else value}

    @property
    def name(self) -> str:
        """The step's key, e.g. `remove_small`."""
        return next(iter(self.model_fields_set))

    @property
    def value(self) -> Any:
        """The key's value."""
        return getattr(self, self.name)

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, ConfigModel):
            value = ", ".join(f"{key} {number:g}" for key, number in value.model_dump(exclude_none=True).items())
        return self.name.replace("_", " ") + ("" if value is True else f" {value}")


class LabelOrdering(ConfigModel):
    """Assign classes to similar objects in a row by their order; see `competition.postprocessing.ordering`."""

    # The end where the first class is: S means that the first class is the most superior.
    along: Literal["R", "L", "A", "P", "S", "I"]
    classes: Annotated[list[str], Field(min_length=2)]  # in order, e.g. [L1, L2, L3, L4, L5]
    smallest: PositiveInt | None = None  # voxels: smaller objects are not counted; None: a tenth of the largest
    # Split touching objects at cores thicker than this share of the maximum thickness; null: no splitting.
    split: Annotated[float, Field(gt=0, lt=1)] | None = 0.6

    @model_validator(mode="after")
    def _check_classes(self) -> LabelOrdering:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("`number.classes` must not contain duplicates")
        return self


class PostprocessConfig(ConfigModel):
    """Steps for every class, or by class name; `tune` searches them on the out-of-fold predictions."""

    tune: bool = False
    steps: list[StepConfig] | dict[str, list[StepConfig]] = []
    forbid_overlap: bool = False  # overlapping classes: each pixel keeps only its most probable class
    number: LabelOrdering | None = None  # classes by their order in a row, before any step

    @model_validator(mode="after")
    def _check_order(self) -> PostprocessConfig:
        for steps in self.steps.values() if isinstance(self.steps, dict) else [self.steps]:
            if any(step.name in ("threshold", "triplet") for step in steps[1:]):
                raise ValueError("`threshold` and `triplet` create the mask: only the first step may be one of them")
        return self

    def steps_for(self, cls: str) -> tuple[StepConfig, ...]:
        """Return the steps of a class."""
        return tuple(self.steps.get(cls, ()) if isinstance(self.steps, dict) else self.steps)
