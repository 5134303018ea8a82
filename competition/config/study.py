"""Define the schema of a study: the keys of the experiment to search, each with a range or choices."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from competition.config.competition import ConfigModel, PositiveInt


class SearchDimension(ConfigModel):
    """Set the search range of one key (`low`, `high`, `log`, `step`), or its choices.

    If both bounds are integers, the range consists of integers. Choices are a list, or a mapping from labels to values;
    a value may be a whole section of the YAML. With `when`, the key is searched only if other keys of `study.space`
    have the values that `when` lists.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    choices: Annotated[list[Any], Field(min_length=1)] | dict[str, Any] | None = None
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check_range_or_choices(self) -> SearchDimension:
        if (self.choices is None) == (self.low is None and self.high is None):
            raise ValueError("a key of `space` must have either both `low` and `high`, or `choices`")
        if self.choices is not None:
            if self.log or self.step is not None:
                raise ValueError("`log` and `step` require a range (`low` and `high`), found `choices`")
            if len(self.choice_labels) != len(set(self.choice_labels)):
                raise ValueError("`choices` must not contain duplicates")
            return self
        if self.low is None or self.high is None or self.low >= self.high:
            raise ValueError("a range requires `low` and `high`, with `low` below `high`")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("`log` requires `low` above 0 and no `step`")
        if self.step is not None and self.step <= 0:
            raise ValueError("`step` must be more than 0")
        if self.step is not None and not self.contains(self.high):
            last = _exact(self.high) - (_exact(self.high) - _exact(self.low)) % _exact(self.step)
            raise ValueError(
                f"`high` {self.high:g} cannot be reached from {self.low:g} in steps of {self.step:g}; "
                f"the last value is {float(last):g}"
            )
        return self

    @property
    def is_integer(self) -> bool:
        """Whether the range consists of integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def contains(self, value: int | float) -> bool:
        """Return whether the difference between `value` and `low` is a multiple of `step`.

        Without `step`, every value is accepted. The bounds are not checked.
        """
        assert self.low is not None
        return self.step is None or (_exact(value) - _exact(self.low)) % _exact(self.step) == 0

    @property
    def choice_labels(self) -> list[str]:
        """The labels of the choices, which Optuna stores and which figures show."""
        return [label for label, _ in self.labelled_choices]

    @property
    def labelled_choices(self) -> list[tuple[str, Any]]:
        """The label and value of each choice."""
        if isinstance(self.choices, dict):
            return list(self.choices.items())
        return [(value if isinstance(value, str) else json.dumps(value), value) for value in self.choices or []]


def _exact(value: int | float) -> Fraction:
    """Return a number as the exact fraction that its decimal notation denotes.

    A float cannot represent most decimal numbers, such as 0.3, exactly.
    """
    return Fraction(str(value))


class StudyConfig(ConfigModel):
    """Set up a search over keys of the experiment. Each trial is one cross-validation run."""

    space: Annotated[dict[str, SearchDimension], Field(min_length=1)]
    trials: PositiveInt = 30
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    pruner: Literal["wilcoxon", "median", "hyperband", "none"] = "wilcoxon"
    startup_trials: PositiveInt = 8  # random trials before the sampler starts, and before the median pruner starts
    p_value: Annotated[float, Field(gt=0, lt=1)] = 0.01  # wilcoxon
    objectives: Annotated[list[str], Field(min_length=1)] = ["score"]
    constraints: dict[str, float] = {}  # upper bound of each objective by its name, e.g. inference_seconds: 2.0

    @model_validator(mode="after")
    def _check_consistency(self) -> StudyConfig:
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError("`objectives` must not contain duplicates")
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError(
                f"`pruner` must have the value none if there are several `objectives`, found {self.pruner}"
            )
        keys = list(self.space)
        for key, dimension in self.space.items():
            for condition in dimension.when:
                if condition not in self.space:
                    raise ValueError(f"the condition `when` of {key} names {condition}, which is not a key of `space`")
                if keys.index(condition) >= keys.index(key):
                    raise ValueError(
                        f"the condition `when` of {key} names {condition}, so {condition} must come before {key} in "
                        "`space`"
                    )
        return self
