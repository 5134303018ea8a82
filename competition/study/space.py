"""From the space of a study to the `key=value` words of a trial."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from competition.config import Experiment, MaskfoldError, load_experiment, resolved
from competition.config.study import Dimension, Study

if TYPE_CHECKING:
    import optuna

MISSING = object()


class Source(NamedTuple):
    """Where an experiment comes from, so that a trial can be loaded like it, with a few words more."""

    file: Path
    overrides: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()

    def load(self, words: Sequence[str] = ()) -> Experiment:
        """The experiment, with further `key=value` words.

        Raises:
            MaskfoldError: they do not fit.
        """
        return load_experiment(self.file, [*self.overrides, *words], self.trust)


def suggest(trial: optuna.Trial, study: Study) -> list[str]:
    """The words of a trial; lists and parts of the YAML are stored in Optuna by their labels."""
    words: list[str] = []
    stored: dict[str, Any] = {}
    for key, dimension in study.space.items():
        if not _applies(dimension, stored, study):
            continue
        stored[key] = _ask(trial, key, dimension)
        words.append(word(key, value_of(dimension, stored[key])))
    return words


def own_values(exp: Experiment, study: Study) -> dict[str, Any]:
    """What the YAML itself says, as Optuna stores it: trial 0.

    Raises:
        MaskfoldError: the YAML's own value of a key lies outside its range, or is none of its choices.
    """
    plain = resolved(exp)
    stored: dict[str, Any] = {}
    for key, dimension in study.space.items():
        if not _applies(dimension, stored, study):
            continue
        value = value_at(plain, key)
        if value is MISSING:
            raise MaskfoldError(f"study.space names {key}, which the experiment does not say.",
                                f"Write {key} in the YAML with the value to begin from.", status=2)
        stored[key] = _stored(key, dimension, value)
    return stored


def check_space(source: Source, study: Study) -> None:
    """Loads the experiment with each end and each choice of each key, so that no trial fails on a word.

    Raises:
        MaskfoldError: naming the key and the value that do not fit.
    """
    for key, dimension in study.space.items():
        if key.split(".")[0] in ("competition", "run", "study", "postprocess", "folds"):
            raise MaskfoldError(f"study.space names {key}, which does not change the network.",
                                "Search keys of prepare, patch, augment, model, loss, optimizer, schedule or training.",
                                status=2)
        for value in _extremes(dimension):
            parents = [word(other, _one(study.space[other], wanted)) for other, wanted in dimension.when.items()]
            try:
                source.load([*parents, word(key, value)])
            except MaskfoldError as error:
                raise MaskfoldError(f"study.space: {key} = {json.dumps(value)} does not fit: {error.wrong}",
                                    "Correct the range or the choices.", status=2) from error


def word(key: str, value: Any) -> str:
    """`key=value`, as on the command line."""
    return f"{key}={json.dumps(value)}"


def value_of(dimension: Dimension, stored: Any) -> Any:
    """The YAML's value of what Optuna stores."""
    return dict(dimension.labelled)[stored] if dimension.choices is not None else stored


def value_at(plain: Any, key: str) -> Any:
    """The value of a dotted key in plain data, or MISSING."""
    for part in key.replace("[", ".").replace("]", "").split("."):
        if isinstance(plain, dict) and part in plain:
            plain = plain[part]
        elif isinstance(plain, list) and part.isdecimal() and int(part) < len(plain):
            plain = plain[int(part)]
        else:
            return MISSING
    return plain


def _ask(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        return trial.suggest_categorical(key, dimension.labels)
    if dimension.whole and (dimension.step is None or isinstance(dimension.step, int)):
        assert isinstance(dimension.low, int) and isinstance(dimension.high, int)
        return trial.suggest_int(key, dimension.low, dimension.high, step=int(dimension.step or 1), log=dimension.log)
    assert dimension.low is not None and dimension.high is not None
    return trial.suggest_float(key, float(dimension.low), float(dimension.high), step=dimension.step, log=dimension.log)


def _stored(key: str, dimension: Dimension, value: Any) -> Any:
    if dimension.choices is not None:
        for label, choice in dimension.labelled:
            if choice == value:
                return label
        raise MaskfoldError(f"study.space: the YAML's own {key} is {json.dumps(value)}, which is none of its choices "
                            f"({', '.join(dimension.labels)}).", "Add it: trial 0 is the YAML as it is.", status=2)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not float(dimension.low or 0) <= value <= float(dimension.high or 0):
        raise MaskfoldError(f"study.space: the YAML's own {key} is {json.dumps(value)}, outside of {dimension.low:g} to "
                            f"{dimension.high:g}.", "Widen the range: trial 0 is the YAML as it is.", status=2)
    return value if dimension.whole else float(value)


def _applies(dimension: Dimension, stored: dict[str, Any], study: Study) -> bool:
    """Whether the keys in `when` have the values named there."""
    for other, wanted in dimension.when.items():
        if other not in stored:
            return False
        value, label = value_of(study.space[other], stored[other]), stored[other]
        options = wanted if isinstance(wanted, list) else [wanted]
        if value not in options and label not in options and value != wanted:
            return False
    return True


def _one(dimension: Dimension, wanted: Any) -> Any:
    """A value of a parent key that `when` allows."""
    first = wanted[0] if isinstance(wanted, list) and wanted and wanted not in [v for _, v in dimension.labelled] else wanted
    return dict(dimension.labelled).get(first, first) if isinstance(first, str) else first


def _extremes(dimension: Dimension) -> Iterator[Any]:
    if dimension.choices is not None:
        yield from (value for _, value in dimension.labelled)
    else:
        yield dimension.low
        yield dimension.high
