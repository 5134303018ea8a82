"""What a study searches: any keys of the experiment, each with its range or its choices."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from competition.config.competition import Positive, Section


class Dimension(Section):
    """One key's range (`low`, `high`, `log`, `step`; whole numbers where both ends are) or its choices.

    Choices are a list, or a mapping from a label to the value, which may be a whole part of the YAML. With `when` the key
    is searched only where other keys of the space have the values named there.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    choices: Annotated[list[Any], Field(min_length=1)] | dict[str, Any] | None = None
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _range_or_choices(self) -> Dimension:
        if (self.choices is None) == (self.low is None and self.high is None):
            raise ValueError("a key of the space has either `low` and `high`, or `choices`")
        if self.choices is not None:
            if self.log or self.step is not None:
                raise ValueError("`log` and `step` belong to a range, not to `choices`")
            if len(self.labels) != len(set(self.labels)):
                raise ValueError("`choices` names one value twice")
            return self
        if self.low is None or self.high is None or self.low >= self.high:
            raise ValueError("a range needs `low` and `high`, the lower first")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("`log` needs a `low` above 0 and no `step`")
        if self.step is not None and self.step <= 0:
            raise ValueError("`step` is more than 0")
        if self.step is not None and not self.meets(self.high):
            reached = _exact(self.high) - (_exact(self.high) - _exact(self.low)) % _exact(self.step)
            raise ValueError(
                f"`high` {self.high:g} is never reached from {self.low:g} in steps of {self.step:g}; "
                f"the last is {float(reached):g}"
            )
        return self

    @property
    def whole(self) -> bool:
        """Whether the range is one of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def meets(self, value: int | float) -> bool:
        """Whether a number is one that a range with steps can give, counted from `low`."""
        assert self.low is not None
        return self.step is None or (_exact(value) - _exact(self.low)) % _exact(self.step) == 0

    @property
    def labels(self) -> list[str]:
        """The choices' names, as they are stored and shown."""
        return [label for label, _ in self.labelled]

    @property
    def labelled(self) -> list[tuple[str, Any]]:
        """(label, value) of each choice."""
        if isinstance(self.choices, dict):
            return list(self.choices.items())
        return [(value if isinstance(value, str) else json.dumps(value), value) for value in self.choices or []]


def _exact(value: int | float) -> Fraction:
    """The number as it was written: 0.3 is three tenths, which no float is."""
    return Fraction(str(value))


class Study(Section):
    """A search over keys of the experiment; each trial is one cross-validation run."""

    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    trials: Positive = 30
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    pruner: Literal["wilcoxon", "median", "hyperband", "none"] = "wilcoxon"
    startup_trials: Positive = 8  # that are drawn at random before the sampler begins, and before median prunes
    p_value: Annotated[float, Field(gt=0, lt=1)] = 0.01  # wilcoxon
    objectives: Annotated[list[str], Field(min_length=1)] = ["score"]
    constraints: dict[str, float] = {}  # an objective's name to its upper bound, e.g. inference_seconds: 2.0

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError("`objectives` names one twice")
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError("several `objectives` cannot be pruned: set `pruner: none`")
        for key, dimension in self.space.items():
            for other in dimension.when:
                if other not in self.space:
                    raise ValueError(f"`when` of {key} names {other}, which is no key of the space")
                if list(self.space).index(other) >= list(self.space).index(key):
                    raise ValueError(f"`when` of {key} names {other}, which has to stand before it")
        return self
