"""Define metrics and their registry: a metric has a name, a function and a direction (whether higher is better).

The decorator `metric` adds a metric to the registry `METRICS`, which contains the metrics of `competition.metrics`.
`WeightedSum` is the function of `metric: {sum: [{name: surface_dice, weight: 0.35}, …]}`. All comparisons of scores
use `Direction`.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import inf, isfinite
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from competition.config.instantiate import NAMED_KINDS, resolve_target
from competition.config.registry import Registry
from competition.errors import MaskfoldError
from competition.text import join_names, join_or, nearest_names

# The inputs that a metric may compare, for one class of one case. If a parameter of the metric's function has one of
# these names, it receives that input.
INPUTS = {
    "mask": "(*spatial) bool: the prediction",
    "truth": "(*spatial) bool",
    "spacing": "mm along each axis; 1 where unknown",
    "tp": "number of pixels in mask and truth",
    "fp": "number of pixels in the mask only",
    "fn": "number of pixels in the truth only",
    "predicted_objects": "(*spatial) integers: 0 for background, one label per predicted object",
    "true_objects": "(*spatial) integers: 0 for background, one label per true object",
    "distances": "distances between the borders of mask and truth, `competition.metrics.distances.BorderDistances`",
    "predicted_hidden": "pixels of predicted objects that later ones cover, `competition.data.objects.HiddenPixels`",
    "true_hidden": "pixels of true objects that later ones cover, `competition.data.objects.HiddenPixels`",
}
COUNTS = ("tp", "fp", "fn")
OBJECTS = ("predicted_objects", "true_objects")
Declared = TypeVar("Declared", bound=Callable[..., Any])


class Direction(enum.Enum):
    """State whether higher or lower scores are better. Every comparison of scores uses a method of this class.

    An undefined score (nan or infinite, e.g. because all cases lack the class) is worse than every defined score. It is
    not better than another undefined score.
    """

    HIGHER = 1
    LOWER = -1

    @property
    def worst(self) -> float:
        """The worst possible score: -inf if higher is better, inf if lower is better."""
        return -inf * self.value

    def rank(self, score: float) -> float:
        """Return a sort key that is higher for a better score; -inf for an undefined score."""
        return self.value * score if isfinite(score) else -inf

    def is_better(self, new: float, old: float, margin: float = 0.0) -> bool:
        """Return whether `new` is better than `old` by more than `margin`."""
        return self.rank(new) > self.rank(old) + margin


class PooledScore(NamedTuple):
    """Hold the score of one class of one case, for a metric that is a weighted mean of two terms.

    The pooled term is averaged over the items (e.g. slices) of all cases. The second term is averaged over cases and
    classes.

    Attributes:
        pooled: mean of the pooled term over the items of this class in this case.
        items: number of these items.
        rest: the second term.
    """

    pooled: float
    items: int
    rest: float


@dataclass(frozen=True)
class Metric:
    """Hold a metric: a name, a function, and whether higher or lower scores are better.

    Attributes:
        name: the metric's name in tables and messages.
        function: a function that returns the score of one class of one case, or a class whose objects can be called
            like such a function; see `metric`.
        direction: whether higher or lower scores are better.
        from_counts: whether the function takes only pixel counts (`tp`, `fp`, `fn`) and settings. The counts may be
            numbers or arrays.
        pooled_share: share of the pooled term in the score, if the function returns a `PooledScore`; otherwise 0.
    """

    name: str
    function: Callable[..., Any]
    direction: Direction
    from_counts: bool = False
    pooled_share: float = 0.0

    @classmethod
    def from_declaration(cls, declared: Any, name: str) -> Metric:
        """Make a metric from a function or class whose attribute `higher_is_better` states the direction.

        Raises:
            ValueError: `declared` has no attribute `higher_is_better`.
        """
        higher = getattr(declared, "higher_is_better", None)
        if not isinstance(higher, bool):
            raise ValueError(
                f"{getattr(declared, '__name__', name)} does not state whether higher scores are better; expected the "
                "decorator @metric(higher_is_better=…), or an attribute higher_is_better that is true or false"
            )
        from_counts = bool(getattr(declared, "from_counts", False))
        pooled_share = float(getattr(declared, "pooled_share", 0.0))
        return cls(name, declared, Direction.HIGHER if higher else Direction.LOWER, from_counts, pooled_share)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs, such as `mask` and `truth`, that the metric's function takes."""
        if (known := getattr(self.function, "inputs", None)) is not None:  # a sum of metrics
            return tuple(known)
        return tuple(name for name in _parameters(self.function, called=True) if name in INPUTS)

    @property
    def has_sums(self) -> bool:
        """Whether the metric is a class with the method `sums`, whose results are added up over cases; see `metric`."""
        return getattr(self.function, "sums", None) is not None

    @property
    def sum_count(self) -> int:
        """The number of values that the method `sums` returns."""
        if not self.has_sums:
            return len(COUNTS)
        if isinstance(known := getattr(self.function, "sum_count", None), int):  # a sum of metrics
            return known
        return len(inspect.signature(self.function).parameters)

    @property
    def supports_global(self) -> bool:
        """Whether the metric can be computed over the pixels or objects of all cases: `average: global`."""
        return self.from_counts or self.has_sums

    @property
    def needs_objects(self) -> bool:
        """Whether the metric compares the objects of prediction and truth instead of their masks."""
        return bool(set(self.inputs) & set(OBJECTS))

    @property
    def settings(self) -> list[str]:
        """The names of the function's parameters that are not inputs; for a class, those of its constructor."""
        return [name for name in _parameters(self.function) if name not in INPUTS]

    def bind(self, args: Mapping[str, Any], defaults: Mapping[str, Any]) -> Metric:
        """Return the metric with fixed values of its settings, such as `tolerance_mm`.

        Args:
            args: values of settings by name.
            defaults: values for settings that `args` lacks. Names in `defaults` that are not settings are ignored.

        Raises:
            ValueError: a name in `args` is not a setting, a setting has no value, or a value is not one of those that
                the function's annotation lists.
        """
        settings = self.settings
        for name in args:
            if name not in settings:
                near = nearest_names(name, settings)
                known = f"its settings are {join_names(settings)}" if settings else "it has no settings"
                hint = f"did you mean {near[0]}?" if near else known
                raise ValueError(f"`args.{name}` is not a setting of the metric {self.name}; {hint}")
        values = {name: args.get(name, defaults.get(name)) for name in settings if name in args or name in defaults}
        parameters = _parameters(self.function)
        for name in settings:
            if name not in values and parameters[name].default is inspect.Parameter.empty:
                raise ValueError(f"`args.{name}` is missing, but the metric {self.name} requires it")
        for name, allowed in _listed_values(self.function).items():
            if name in values and values[name] not in allowed:
                raise ValueError(f"`args.{name}` is {values[name]!r}, expected {join_or([str(v) for v in allowed])}")
        if isinstance(self.function, type):
            return replace(self, function=self.function(**values))
        return replace(self, function=partial(self.function, **values)) if values else self

    def __call__(self, **inputs: Any) -> Any:
        """Return the score of one class of one case.

        `inputs` may contain more inputs than the function takes; only those that its parameters name are passed on.
        """
        selected = {name: inputs[name] for name in self.inputs}
        function: Any = self.function
        return function(*function.sums(**selected)) if self.has_sums else function(**selected)

    def sums(self, **inputs: Any) -> tuple[float, ...]:
        """Return the numbers of one class of one case, e.g. pixel counts, that `average: global` adds up over cases."""
        if not self.has_sums:
            return tuple(float(inputs[name]) for name in COUNTS)
        function: Any = self.function
        return tuple(float(value) for value in function.sums(**{name: inputs[name] for name in self.inputs}))

    def score_sums(self, *sums: Any) -> Any:
        """Return the score from the numbers of `sums`, added up over cases. Each argument is a number or an array."""
        if self.has_sums:
            return self.function(*sums)
        return self.function(**dict(zip(COUNTS, sums, strict=True)))


METRICS: Registry[Metric] = Registry("metric", "competition.metrics")


def metric(
    name: str = "", *, higher_is_better: bool, from_counts: bool = False, pooled_share: float = 0.0
) -> Callable[[Declared], Declared]:
    """Declare a function as a metric of one class of one case.

    The names of the function's parameters determine what the function receives. A parameter with a name in `INPUTS`
    receives this input. Each other parameter is a setting: a key of the YAML section `metric` (`beta`,
    `tolerance_mm`), or of `metric.args`. A class may replace the function: its constructor takes the settings, and its
    objects are called with the inputs. A new object is made for every score.

    A metric over all cases (`average: global`) is a class with two methods: `sums` takes inputs of one class of one
    case and returns a tuple of numbers. `__call__` takes these numbers, added up over cases, and returns the score. It
    must accept arrays of sums, and return nan where nothing was counted. The score of a single case is computed from
    the sums of that case.

    If mask and truth are both empty (for a metric of objects: both without objects), the function is not called, and
    the score is `metric.both_empty`. Its default is the best score: 1, or 0 if lower is better. For a metric of another
    package, the default is null, which means no score.

    If only one of the two is empty, the function must return a finite number: 0 for a share of pixels or objects, and
    the image's diagonal in mm for a distance. The diagonal is the largest possible distance; a smaller number would
    reward empty masks.

    A function in a module of `competition.metrics` is added to `METRICS`, and a YAML names it in `metric.name`. A
    function of another package is named by its import path in `metric.target`.

    Args:
        name: the name in the YAML; the function's name if left out.
        higher_is_better: whether a higher score is better. Scores are stored as the function returns them.
        from_counts: whether the function takes only `tp`, `fp`, `fn` and settings, and accepts arrays of counts. Such a
            metric supports `average: global`.
        pooled_share: share of the pooled term in the score, if the function returns a `PooledScore`; otherwise 0. Only
            functions in `competition.metrics` may return a `PooledScore`.

    Returns:
        The decorator; it returns the function unchanged, with the direction as an attribute.

    Raises:
        ValueError: another metric already has this name.

    Example:
        >>> @metric("error_rate", higher_is_better=False, from_counts=True)
        ... def error_rate(tp, fp, fn):
        ...     return (fp + fn) / (tp + fp + fn)
        >>> error_rate.higher_is_better
        False
    """

    def declare(function: Declared) -> Declared:
        function.higher_is_better = higher_is_better  # type: ignore[attr-defined]
        function.from_counts = from_counts  # type: ignore[attr-defined]
        function.pooled_share = pooled_share  # type: ignore[attr-defined]
        if function.__module__.startswith(f"{METRICS.package}."):
            METRICS.add(name or function.__name__, Metric.from_declaration(function, name or function.__name__))
        return function

    return declare


def load_own_metric(target: str, name: str, trust: Sequence[str], key: str) -> Metric:
    """Import the metric that `metric.target` names.

    Args:
        target: the import path of a function or class.
        name: the metric's name in tables.
        trust: additional trusted packages.
        key: the key of the import path, for messages.

    Raises:
        MaskfoldError (exit status 2): the target is not trusted, cannot be imported, or states no direction.
    """
    try:
        found = Metric.from_declaration(resolve_target(target, None, key, trust), name)
    except ValueError as error:
        raise MaskfoldError(f"{key}: {error}.", "See the section on metrics in CONTRIBUTING.md.", status=2) from error
    if found.pooled_share:  # because tables of scores are averaged without an import of the user's package
        raise MaskfoldError(
            f"{key}: {name} has pooled_share={found.pooled_share}, expected 0. Only the metrics that are built into "
            "Maskfold may have a term that is pooled over all cases.",
            "Return one score for each case, or add the metric to competition/metrics (see CONTRIBUTING.md).",
            status=2,
        )
    return found


def _parameters(function: Any, called: bool = False) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a function or class.

    Args:
        function: the function or class.
        called: for a class, whether to return the parameters of its method `sums`, or of `__call__` if it has no method
            `sums`. False returns the parameters of its constructor.
    """
    if called and isinstance(function, type):
        # the bound method, whose parameters do not include `self`
        function = partial(getattr(function, "sums", function.__call__), None)
    elif called:
        function = getattr(function, "sums", function)
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in NAMED_KINDS}


def _listed_values(function: Any) -> dict[str, tuple[Any, ...]]:
    """Return the allowed values of the parameters that are annotated with `Literal`, by name."""
    try:
        hints = get_type_hints(vars(function).get("__init__", function) if isinstance(function, type) else function)
    except (NameError, TypeError, AttributeError):  # an annotation that only type checkers can evaluate
        return {}
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


class WeightedSum:
    """Compute a weighted sum of metrics, as the `function` of a `Metric`.

    A term that compares objects gives nan if neither mask nor truth has an object. If another term has a score, this
    nan is replaced by the best score of the term that gave it: 1, or 0 if lower scores are better.

    Args:
        terms: pairs of weight and metric, whose settings are bound.
    """

    def __init__(self, terms: Sequence[tuple[float, Metric]]) -> None:
        self.terms = tuple(terms)
        self.inputs = tuple(dict.fromkeys(name for _, metric in self.terms for name in metric.inputs))
        self.sum_count = sum(metric.sum_count for _, metric in self.terms)
        self.sums = self._sums if all(metric.supports_global for _, metric in self.terms) else None

    def __call__(self, *sums: Any, **inputs: Any) -> Any:
        """Return the weighted sum for one class, from the inputs of one case or from `sums` added up over cases."""
        import numpy as np  # inside, because commands that only read a YAML do not need it

        if sums:
            ends = np.cumsum([metric.sum_count for _, metric in self.terms])
            parts = [sums[end - metric.sum_count : end] for (_, metric), end in zip(self.terms, ends, strict=True)]
            values = [metric.score_sums(*part) for (_, metric), part in zip(self.terms, parts, strict=True)]
        else:
            values = [metric(**inputs) for _, metric in self.terms]
        scores = [np.asarray(value, np.float64) for value in values]
        defined = ~np.all([np.isnan(score) for score in scores], axis=0)
        total = np.zeros(())
        for (weight, metric), score in zip(self.terms, scores, strict=True):
            if metric.needs_objects and not _has_objects(inputs):
                score = np.where(np.isnan(score) & defined, best_score(metric), score)
            total = total + weight * score
        return total if total.ndim else float(total)

    def _sums(self, **inputs: Any) -> tuple[float, ...]:
        return tuple(value for _, metric in self.terms for value in metric.sums(**inputs))


def sum_direction(terms: Sequence[tuple[float, str, Direction]]) -> Direction:
    """Return whether higher or lower values of a weighted sum are better.

    Args:
        terms: weight, name and direction of each term.

    Raises:
        ValueError: a higher sum means that one term is better, but that another term is worse.
    """
    values = [direction.value * (1 if weight > 0 else -1) for weight, _, direction in terms]
    if len(set(values)) > 1:
        rising, falling = (
            join_names(list(dict.fromkeys(name for (_, name, _), value in zip(terms, values) if value == side)))
            for side in (1, -1)
        )
        raise ValueError(
            f"a higher sum means a better {rising}, but a worse {falling}; give a negative weight to each term "
            "whose lower scores are better, such as `{name: hd95, weight: -0.01}`"
        )
    return Direction(values[0])


def best_score(metric: Metric) -> float:
    """Return the score of a correct empty prediction: 1, or 0 if lower scores are better."""
    return 1.0 if metric.direction is Direction.HIGHER else 0.0


def _has_objects(inputs: Mapping[str, Any]) -> bool:
    return any(inputs[name].any() for name in OBJECTS if name in inputs)
