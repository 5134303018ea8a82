"""Define the schema of post-processing: per class, an ordered list of steps, which are applied after inference."""

from __future__ import annotations

import hashlib
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, create_model, model_serializer, model_validator
from pydantic.fields import FieldInfo

from competition.config.competition import ConfigModel, PositiveInt
from competition.config.instantiate import TRUST_VARIABLE, resolve_target
from competition.config.registry import Registry
from competition.errors import MaskfoldError
from competition.text import join_names, nearest_names

if TYPE_CHECKING:
    from competition.config.experiment import Experiment


class Step(ConfigModel):
    """Define the interface of a post-processing step; `competition.postprocessing.steps` has Maskfold's own steps.

    The pydantic fields of a step are its keys in the YAML. A step whose only field is `value` is written
    `remove_small: 30`; any other step is written as a mapping: `triplet: {high: 0.75, pixels: 100, low: 0.4}`. A
    user's own step is written `{target: my_steps.Erode, args: {radius: 1}}`.

    Attributes:
        creates_mask: whether the step makes the mask from the probabilities. Only the first step may do so.
        needs_presence: whether the step requires the output of the presence head.
        slot: name of a group of alternative steps. The search (`postprocess.tune`) uses only one step of a group at a
            time, unless `combines` is true. None if the step has no alternatives.
        combines: whether the search tries the step alone, and in addition after each other step of its group.
        searched_again: whether the search tries the steps of this group again after all other groups, until nothing
            changes.
    """

    creates_mask: ClassVar[bool] = False
    needs_presence: ClassVar[bool] = False
    slot: ClassVar[str | None] = None
    combines: ClassVar[bool] = False
    searched_again: ClassVar[bool] = False

    @abstractmethod
    def apply(self, current: Any, case: Any, index: int) -> Any:
        """Return the mask and objects of one class after this step. Implementations must not change the arguments.

        Args:
            current: `ClassMask` of `competition.postprocessing.case`, the mask and objects before this step.
            case: `CaseProbabilities`, the probabilities of the case.
            index: the class, from 0.

        Returns:
            A `ClassMask` of the same shape.
        """

    @classmethod
    def candidates(cls, search: Any) -> Sequence[Step] | None:
        """Return the settings of this step that `postprocess.tune` tries, in order.

        The search also tries to omit the step.

        Args:
            search: `SearchContext` of `competition.postprocessing.steps`.

        Returns:
            Instances of this class with the values to try; None if the search does not use this step.
        """
        return None

    def find_problem(self, exp: Experiment) -> str | None:
        """Return why the step does not fit other sections of the experiment; None if it fits."""
        return None

    @classmethod
    def is_scalar(cls) -> bool:
        """Return whether the step's only field is `value`; the YAML then has a plain value instead of a mapping."""
        return set(cls.model_fields) == {"value"}


class UntrustedStep(Step):
    """Hold the import path and arguments of a user's own step whose code was not imported.

    Such a step cannot be applied.
    """

    target: str
    args: dict[str, Any] = {}

    def __hash__(self) -> int:
        return hash(self.target)

    def apply(self, current: Any, case: Any, index: int) -> Any:
        """Raise an error, because the code of the step was not imported: its package is not trusted."""
        package = self.target.split(".")[0]
        raise MaskfoldError(
            f"postprocess.steps: the step {self.target} is not in a trusted package, so it is not run.",
            f"If you trust {package}, add --trust {package} or set {TRUST_VARIABLE}={package}.",
            status=2,
        )


STEPS: Registry[type[Step]] = Registry("post-processing step", "competition.postprocessing.steps", ordered=True)
OWN_STEPS: dict[str, type[Step]] = {}  # the user's own steps that this process has imported, by import path


def load_own_step(target: str, args: Any, key: str, trust: Sequence[str]) -> None:
    """Import a user's own step, so that `StepConfig` can build it. The names of the step's arguments are checked.

    Args:
        target: the import path of a subclass of `Step`.
        args: the step's arguments in the YAML.
        key: the key of the step in the YAML, for error messages.
        trust: additional trusted packages.

    Raises:
        MaskfoldError (exit status 2): the target is not trusted, cannot be imported, is not a step or has no `apply`,
            or an argument is unknown.
    """
    cls = resolve_target(target, Step, f"{key}.target", trust)
    if inspect.isabstract(cls):
        raise MaskfoldError(
            f"{key}.target: the step {target} has no method `apply`.",
            "Write a method `def apply(self, current, case, index)`; CONTRIBUTING.md shows an example.",
            status=2,
        )
    known = list(cls.model_fields)
    for name in args if isinstance(args, dict) else ():
        if name not in known:
            near = nearest_names(str(name), known)
            has = f"The arguments of {cls.__name__} are {join_names(known)}." if known else "Remove this argument."
            hint = f"Did you mean {near[0]}?" if near else has
            raise MaskfoldError(f"{key}.args.{name} is not an argument of {cls.__name__}.", hint, status=2)
    OWN_STEPS[target] = cls


def own_step_digest(target: str) -> str | None:
    """Return the SHA-256 of the file that defines a user's own step, as hexadecimal text.

    The result is None if the step was not imported.
    """
    if target not in OWN_STEPS:
        return None
    return hashlib.sha256(Path(inspect.getfile(OWN_STEPS[target])).read_bytes()).hexdigest()


class StepConfig(ConfigModel):
    """Hold one entry of a list of steps: a mapping with one key, such as `remove_small: 30`, or a user's own step.

    Attributes:
        name: the key, e.g. `remove_small`, or the import path of a user's own step.
        step: the step with its arguments.

    Example:
        >>> StepConfig(remove_small=30).name, StepConfig(remove_small=30).value
        ('remove_small', 30)
    """

    name: str
    step: Step

    def __init__(self, **keys: Any) -> None:  # arguments are the YAML's keys, which differ from the fields
        super().__init__(**keys)

    @classmethod
    def of(cls, name: str, step: Step) -> StepConfig:
        """Build an entry of a list of steps.

        Args:
            name: the step's key, e.g. `remove_small`; for a user's own step, its import path.
            step: the step with its arguments.
        """
        return cls(name=name, step=step)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, data: Any) -> Any:
        """Convert an entry of the YAML, such as `remove_small: 30`, to the name and the object of the step.

        Pydantic adds the location of the key to errors in the value.
        """
        if not isinstance(data, dict) or isinstance(data.get("step"), Step):
            return data
        values = _yaml_model(**{name: STEPS.get(name) for name in STEPS.names()}).model_validate(data)
        keys = values.model_fields_set - ({"args"} if "target" in data else set())
        name = next(iter(keys), "")
        value = getattr(values, name, None)
        if len(keys) != 1 or name == "args" or value is None or value is False:
            raise ValueError("a step must have exactly one key and its value, e.g. `remove_small: 30`")
        if name == "target":
            return {"name": value, "step": _build_own_step(value, data.get("args", {}))}
        step = value if isinstance(value, Step) else STEPS.get(name).model_validate({"value": value})
        return {"name": name, "step": step}

    @classmethod
    def yaml_fields(cls) -> dict[str, FieldInfo]:
        """Return the keys that an entry may have, for error messages."""
        return _yaml_model(**{name: STEPS.get(name) for name in STEPS.names()}).model_fields

    @model_serializer(mode="plain")
    def _serialize(self) -> dict[str, Any]:
        if isinstance(self.step, UntrustedStep):
            return self.step.model_dump()
        if self.is_own:
            return {"target": self.name, "args": self.step.model_dump()}
        return {self.name: self.step.model_dump() if isinstance(self.value, Step) else self.value}

    @property
    def is_own(self) -> bool:
        """Whether the entry is a user's own step."""
        return "." in self.name

    @property
    def value(self) -> Any:
        """The value of the key: a number or a boolean; for a step with several fields, the step itself."""
        return self.step.value if self.step.is_scalar() else self.step  # type: ignore[attr-defined]

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, Step):
            value = ", ".join(
                f"{key} {item:g}" if isinstance(item, int | float) else f"{key} {item}"
                for key, item in value.model_dump(exclude_none=True).items()
            )
        name = self.name if self.is_own else self.name.replace("_", " ")
        return name if value is True or value == "" else f"{name} {value}"


@lru_cache(maxsize=8)
def _yaml_model(**steps: type[Step]) -> type[ConfigModel]:
    """Return a model whose fields are the keys that an entry of a list of steps may have."""
    fields: dict[str, Any] = {}
    for name, cls in steps.items():
        kind: Any = cls
        if cls.is_scalar():
            info = cls.model_fields["value"]
            kind = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        fields[name] = (kind | None, None)
    fields |= {"target": (str | None, None), "args": (dict[str, Any], {})}
    return create_model("StepConfig", __base__=ConfigModel, **fields)


def _build_own_step(target: str, args: dict[str, Any]) -> Step:
    if target not in OWN_STEPS:
        return UntrustedStep(target=target, args=args)
    # so that error messages name the key `args`
    model = create_model("StepConfig", __base__=ConfigModel, args=(OWN_STEPS[target], ...))
    step: Step = model.model_validate({"args": args}).args  # type: ignore[attr-defined]
    return step


class LabelOrdering(ConfigModel):
    """Assign classes to objects by their order in a row, e.g. vertebrae; see `competition.postprocessing.ordering`."""

    # The end of the row at which the first class lies: S if the first class is the most superior one.
    along: Literal["R", "L", "A", "P", "S", "I"]
    classes: Annotated[list[str], Field(min_length=2)]  # in order, e.g. [L1, L2, L3, L4, L5]
    smallest: PositiveInt | None = None  # voxels; smaller objects are not counted; None: a tenth of the largest object
    # Split touching objects at cores thicker than this share of the maximum thickness; null: no splitting.
    split: Annotated[float, Field(gt=0, lt=1)] | None = 0.6

    @model_validator(mode="after")
    def _check_classes(self) -> LabelOrdering:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("`number.classes` must not contain duplicates")
        return self


class PostprocessConfig(ConfigModel):
    """Set the post-processing steps, for all classes or for each class by name.

    If `tune` is true, Maskfold searches for the best steps on the out-of-fold predictions.
    """

    tune: bool = False
    steps: list[StepConfig] | dict[str, list[StepConfig]] = []
    forbid_overlap: bool = False  # overlapping classes: each pixel keeps only its most probable class
    number: LabelOrdering | None = None  # assign classes by the order of the objects in a row, before all steps

    @model_validator(mode="after")
    def _check_order(self) -> PostprocessConfig:
        for steps in self.steps.values() if isinstance(self.steps, dict) else [self.steps]:
            if any(step.step.creates_mask for step in steps[1:]):
                creating = [f"`{name}`" for name in STEPS.names() if STEPS.get(name).creates_mask]
                raise ValueError(
                    f"each of the steps {join_names(creating)} makes the mask from probabilities, so the list may have "
                    "only one such step, and only as its first step"
                )
        return self

    def steps_for(self, cls: str) -> tuple[StepConfig, ...]:
        """Return the steps of a class."""
        return tuple(self.steps.get(cls, ()) if isinstance(self.steps, dict) else self.steps)

    @property
    def has_own_steps(self) -> bool:
        """Whether the YAML sets post-processing that changes masks: `steps`, `number` or `forbid_overlap`."""
        lists = self.steps.values() if isinstance(self.steps, dict) else [self.steps]
        return any(lists) or self.forbid_overlap or self.number is not None

    @property
    def is_scored(self) -> bool:
        """Whether the masks of a submission may have another score than the masks of the network."""
        return self.tune or self.has_own_steps

    @property
    def own_targets(self) -> list[str]:
        """The import paths of the user's own steps."""
        lists = self.steps.values() if isinstance(self.steps, dict) else [self.steps]
        return list(dict.fromkeys(step.name for steps in lists for step in steps if step.is_own))
