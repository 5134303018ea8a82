"""From the space of a study to the `key=value` words of a trial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from competition.config import Experiment, MaskfoldError, resolved
from competition.config.nearest import nearest
from competition.config.study import Dimension, Study
from competition.study.source import Source

if TYPE_CHECKING:
    import optuna

MISSING = object()
OTHERS = ("competition", "run", "study", "postprocess", "folds")  # sections that do not change the network


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


def own_values(source: Source, exp: Experiment, study: Study) -> dict[str, Any]:
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
            raise _refusal(
                source,
                key,
                f"the experiment does not say {key}{_meant(plain, key)}",
                f"Write {key} in the YAML with the value to begin from.",
            )
        stored[key] = (
            _label(source, key, dimension, value)
            if dimension.choices is not None
            else _number(source, key, dimension, value)
        )
    return stored


def check_space(source: Source, study: Study) -> None:
    """Loads the experiment with each end and each choice of each key, so that no trial fails on a word.

    Raises:
        MaskfoldError: naming the key and the value that do not fit.
    """
    for key, dimension in study.space.items():
        if key.split(".")[0] in OTHERS:
            raise _refusal(
                source,
                key,
                f"{key} does not change the network",
                "Search keys of prepare, patch, augment, model, loss, optimizer, schedule or training.",
            )
        for value in _extremes(dimension):
            parents = [word(other, _one(study.space[other], wanted)) for other, wanted in dimension.when.items()]
            try:
                source.load([*parents, word(key, value)])
            except MaskfoldError as error:
                wrong = (
                    error.wrong.replace("command line: ", "").strip().rstrip(".")
                )  # the word is ours, not the user's
                raise _refusal(
                    source,
                    key,
                    f"{key} = {json.dumps(value)} does not fit: {wrong}",
                    "Correct the range or the choices.",
                ) from error


def word(key: str, value: Any) -> str:
    """`key=value`, as on the command line."""
    return f"{key}={json.dumps(value)}"


def value_of(dimension: Dimension, stored: Any) -> Any:
    """The YAML's value of what Optuna stores."""
    return dict(dimension.labelled)[stored] if dimension.choices is not None else stored


def value_at(plain: Any, key: str) -> Any:
    """The value of a dotted key in plain data, or MISSING."""
    for part in _parts(key):
        if isinstance(plain, dict) and part in plain:
            plain = plain[part]
        elif isinstance(plain, list) and part.isdecimal() and int(part) < len(plain):
            plain = plain[int(part)]
        else:
            return MISSING
    return plain


def _parts(key: str) -> list[str]:
    return key.replace("[", ".").replace("]", "").split(".")


def _meant(plain: Any, key: str) -> str:
    """The nearest key beside the one that is not there."""
    parts = _parts(key)
    beside = value_at(plain, ".".join(parts[:-1]))
    near = nearest(parts[-1], beside) if isinstance(beside, dict) else []
    return f"; the nearest is {'.'.join([*parts[:-1], near[0]])}" if near else ""


def _refusal(source: Source, key: str, wrong: str, cure: str) -> MaskfoldError:
    return MaskfoldError(f"{source.place('space', key)}: study.space: {wrong}.", cure, status=2)


def _ask(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        return trial.suggest_categorical(key, dimension.labels)
    if dimension.whole and (dimension.step is None or isinstance(dimension.step, int)):
        assert isinstance(dimension.low, int) and isinstance(dimension.high, int)
        return trial.suggest_int(key, dimension.low, dimension.high, step=int(dimension.step or 1), log=dimension.log)
    assert dimension.low is not None and dimension.high is not None
    return trial.suggest_float(key, float(dimension.low), float(dimension.high), step=dimension.step, log=dimension.log)


def _label(source: Source, key: str, dimension: Dimension, value: Any) -> str:
    """The label of the choice that is the YAML's own value; a part of the YAML is compared with its defaults written out."""
    for label, choice in dimension.labelled:
        if choice == value:
            return label
    for label, choice in dimension.labelled:
        try:
            if value_at(resolved(source.load([word(key, choice)])), key) == value:
                return label
        except MaskfoldError:
            continue  # it does not fit the YAML's other values, so it is not what the YAML says
    raise _refusal(
        source,
        key,
        f"the YAML's own {key} is {json.dumps(value)}, which is none of its choices ({', '.join(dimension.labels)})",
        "Add it: trial 0 is the YAML as it is.",
    )


def _number(source: Source, key: str, dimension: Dimension, value: Any) -> int | float:
    """The YAML's own value, where the range can give it."""
    assert dimension.low is not None and dimension.high is not None
    shown = f"the YAML's own {key} is {json.dumps(value)}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not dimension.low <= value <= dimension.high:
        raise _refusal(
            source,
            key,
            f"{shown}, outside of {dimension.low:g} to {dimension.high:g}",
            "Widen the range: trial 0 is the YAML as it is.",
        )
    if not dimension.meets(value):
        raise _refusal(
            source,
            key,
            f"{shown}, which steps of {dimension.step:g} from {dimension.low:g} do not meet",
            "Change low, step or the value: trial 0 is the YAML as it is.",
        )
    if dimension.whole and dimension.step is None and value != int(value):
        raise _refusal(
            source,
            key,
            f"{shown}, and a range with two whole ends holds whole numbers only",
            f"Write low: {float(dimension.low)}, or a whole number in the YAML.",
        )
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
    first = (
        wanted[0]
        if isinstance(wanted, list) and wanted and wanted not in [v for _, v in dimension.labelled]
        else wanted
    )
    return dict(dimension.labelled).get(first, first) if isinstance(first, str) else first


def _extremes(dimension: Dimension) -> Iterator[Any]:
    if dimension.choices is not None:
        yield from (value for _, value in dimension.labelled)
    else:
        yield dimension.low
        yield dimension.high
