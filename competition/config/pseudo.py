"""What training folds learn besides the labelled cases: pseudo-labels of a finished run, cases of another competition."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from competition.config.competition import Competition, Section, Share

Weight = Annotated[float, Field(gt=0, le=100)]


class Confidence(Section):
    """Which predictions teach. A voxel in doubt counts nowhere; a case in doubt is left out."""

    lower: Share = 0.3  # a voxel is sure where one class (or the background) is at least as probable as `upper`
    upper: Share = (
        0.7  # and no other is more probable than `lower`; of overlapping classes each is at or beyond one of the two
    )
    dice: Share | None = (
        0.8  # a case teaches if the Dice of its probabilities with its own mask is at least this; null: any case
    )
    entropy: Share | None = (
        None  # and if the mean entropy of its predicted foreground is at most this; 1 is not knowing at all
    )

    @model_validator(mode="after")
    def _consistent(self) -> Confidence:
        if self.lower > self.upper:
            raise ValueError("`lower` is above `upper`; the band of doubt lies between them")
        return self


class Pseudo(Section):
    """Predictions of finished runs on images without labels, for the training folds only."""

    teachers: str | Annotated[list[str], Field(min_length=1)] = Field(
        alias="from"
    )  # a run as `maskfold predict` takes it
    images: str | dict[str, str] | None = (
        None  # a pattern below competition.root; None: the test images. Labelled ones are left out
    )
    weight: Weight = 0.5  # how often an image is drawn for each time that a labelled case is
    confidence: Confidence = Confidence()

    @property
    def words(self) -> list[str]:
        """The teachers, as the user named them."""
        return [self.teachers] if isinstance(self.teachers, str) else list(self.teachers)


class Extra(Section):
    """Labelled cases of another competition, for the training folds only."""

    competition: Competition  # its YAML
    weight: Weight = 1.0  # how often a case is drawn for each time that one of our own is
    classes: dict[str, str | None] | None = None  # theirs: ours; null: background. None: classes of the same name

    def mapping(self, ours: list[str]) -> dict[str, str]:
        """Their class to ours, for those that have one."""
        if self.classes is None:
            return {name: name for name in self.competition.classes if name in ours}
        return {theirs: name for theirs, name in self.classes.items() if name is not None}

    def why_unfit(self, comp: Competition) -> str | None:
        """What keeps its cases from teaching a network of `comp`; None: nothing."""
        theirs = self.competition
        if theirs.dimensions != comp.dimensions:
            return f"`extra.competition` has {theirs.dimensions} dimensions, and competition.dimensions is {comp.dimensions}"
        channels = [list(one.train.images) if isinstance(one.train.images, dict) else [] for one in (theirs, comp)]
        if channels[0] != channels[1]:
            return "`extra.competition` has other channels in `train.images` than the competition"
        for name in self.classes or {}:
            if name not in theirs.classes:
                return f"`extra.classes` names their class {name}, and their classes are {', '.join(theirs.classes)}"
        found = self.mapping(comp.classes)
        for name in found.values():
            if name not in comp.classes:
                return f"`extra.classes` names our class {name}, and our classes are {', '.join(comp.classes)}"
        if not found:
            return (
                f"`extra`: none of their classes ({', '.join(theirs.classes)}) is one of ours ({', '.join(comp.classes)}); "
                "say which is which in `extra.classes`"
            )
        return None
