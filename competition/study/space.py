"""Convert the search space of a study to the `key=value` overrides of a trial."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from competition.config.base import read_experiment_yaml
from competition.config.experiment import Experiment
from competition.config.loading import load_experiment, resolve_config
from competition.config.study import SearchDimension, StudyConfig
from competition.config.yaml import COMMAND_LINE, SourceLocation, apply_overrides, parse_overrides
from competition.errors import MaskfoldError
from competition.text import nearest_names

if TYPE_CHECKING:
    import optuna


MISSING = object()  # result of `get_by_key` for a key that does not exist
# Sections of the YAML whose keys cannot be searched, because they do not change the network.
EXCLUDED_SECTIONS = ("competition", "run", "study", "postprocess", "folds")


class ExperimentSource(NamedTuple):
    """Hold what is needed to load the experiment of a study and the experiments of its trials.

    Attributes:
        file: YAML file of the experiment.
        overrides: `key=value` overrides of the command line.
        trust: packages that the `target` keys of the YAML may name, in addition to Maskfold's own list.
    """

    file: Path
    overrides: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()

    def load(self, overrides: Sequence[str] = ()) -> Experiment:
        """Load the experiment with the overrides of the command line, and further `key=value` overrides of a trial.

        Raises:
            MaskfoldError: an override is invalid.
        """
        return load_experiment(self.file, [*self.overrides, *overrides], self.trust)

    def locate(self, *keys: str) -> SourceLocation:
        """Return where a key of the section `study` is set (a line of the file, or the command line), for messages.

        Args:
            keys: the parts of the key, without `study`.
        """
        document = read_experiment_yaml(self.file, self.overrides)
        overrides = parse_overrides(self.overrides)
        apply_overrides(document, [override for override in overrides if override.key.startswith("study")])
        path = ("study", *keys)
        is_overridden = any(
            key[: len(path)] == path and location == COMMAND_LINE for key, location in document.locations.items()
        )
        return COMMAND_LINE if is_overridden else document.locate(path)


def suggest_overrides(trial: optuna.Trial, config: StudyConfig) -> list[str]:
    """Sample the values of a trial with Optuna, and return them as `key=value` overrides.

    For a key with `choices`, Optuna stores the label of the sampled choice. Keys whose condition `when` is not
    fulfilled are left out.

    Args:
        trial: Optuna's trial.
        config: section `study` of the experiment.
    """
    overrides: list[str] = []
    stored: dict[str, Any] = {}
    for key, dimension in config.space.items():
        if not _applies(dimension, stored, config):
            continue
        stored[key] = _sample(trial, key, dimension)
        overrides.append(format_override(key, decode_stored_value(dimension, stored[key])))
    return overrides


def values_from_yaml(source: ExperimentSource, exp: Experiment, config: StudyConfig) -> dict[str, Any]:
    """Return the values of all searched keys in the unchanged YAML, as Optuna stores them; trial 0 uses these values.

    Keys whose condition `when` is not fulfilled are left out.

    Args:
        source: the experiment's file and overrides.
        exp: the experiment.
        config: section `study` of the experiment.

    Raises:
        MaskfoldError: the YAML does not set a searched key, or its value is outside the range or not among the choices.
    """
    plain = resolve_config(exp)
    stored: dict[str, Any] = {}
    for key, dimension in config.space.items():
        if not _applies(dimension, stored, config):
            continue
        value = get_by_key(plain, key)
        if value is MISSING:
            raise _space_error(
                source,
                key,
                f"{key} is not set in the YAML{_describe_nearest(plain, key)}",
                f"Correct the key in study.space. Or set {key} in the YAML to the value that trial 0 shall have.",
            )
        stored[key] = (
            _choice_label(source, key, dimension, value)
            if dimension.choices is not None
            else _range_value(source, key, dimension, value)
        )
    return stored


def validate_space(source: ExperimentSource, config: StudyConfig) -> None:
    """Check the search space of a study, so that invalid values are found before the first trial.

    For each key, the experiment is loaded with both ends of the key's range, or with each of the key's choices.

    Args:
        source: the experiment's file and overrides.
        config: section `study` of the experiment.

    Raises:
        MaskfoldError: a key or a value is invalid, or a key has no effect on the training of the network (status 2).
    """
    for key, dimension in config.space.items():
        if key.split(".")[0] in EXCLUDED_SECTIONS:
            raise _space_error(
                source,
                key,
                f"{key} has no effect on the trained network",
                "Search only keys of prepare, patch, augment, model, loss, optimizer, schedule or training.",
            )
        for value in _extremes(dimension):
            parents = [
                format_override(parent, _allowed_value(config.space[parent], allowed))
                for parent, allowed in dimension.when.items()
            ]
            try:
                source.load([*parents, format_override(key, value)])
            except MaskfoldError as error:
                # The message says that the override is on the command line, but this function has made it.
                problem = error.message.replace("command line: ", "").strip().rstrip(".")
                raise _space_error(
                    source,
                    key,
                    f"the value {key} = {json.dumps(value)} is not valid: {problem}",
                    "Correct the range or the choices.",
                ) from error


def format_override(key: str, value: Any) -> str:
    """Return an override `key=value` as on the command line, with the value as JSON."""
    return f"{key}={json.dumps(value)}"


def decode_stored_value(dimension: SearchDimension, stored: Any) -> Any:
    """Convert the value that Optuna stores for a key, such as the label of a choice, to the value in the YAML.

    Args:
        dimension: range or choices of the key.
        stored: the value that Optuna stores.
    """
    return dict(dimension.labelled_choices)[stored] if dimension.choices is not None else stored


def get_by_key(plain: Any, key: str) -> Any:
    """Return the value of a dotted key in nested dictionaries and lists; `MISSING` if the key does not exist."""
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


def _describe_nearest(plain: Any, key: str) -> str:
    """Return the existing key that is most similar to a wrong key, as text in parentheses for a message.

    If no key is similar, return an empty text.
    """
    *section, name = _parts(key)
    siblings = get_by_key(plain, ".".join(section))
    similar = nearest_names(name, siblings) if isinstance(siblings, dict) else []
    return f" (nearest: {'.'.join([*section, similar[0]])})" if similar else ""


def _space_error(source: ExperimentSource, key: str, message: str, hint: str) -> MaskfoldError:
    return MaskfoldError(f"{source.locate('space', key)}: study.space: {message}.", hint, status=2)


def _sample(trial: optuna.Trial, key: str, dimension: SearchDimension) -> Any:
    if dimension.choices is not None:
        return trial.suggest_categorical(key, dimension.choice_labels)
    if dimension.is_integer and (dimension.step is None or isinstance(dimension.step, int)):
        assert isinstance(dimension.low, int) and isinstance(dimension.high, int)
        return trial.suggest_int(key, dimension.low, dimension.high, step=int(dimension.step or 1), log=dimension.log)
    assert dimension.low is not None and dimension.high is not None
    return trial.suggest_float(key, float(dimension.low), float(dimension.high), step=dimension.step, log=dimension.log)


def _choice_label(source: ExperimentSource, key: str, dimension: SearchDimension, value: Any) -> str:
    """Return the label of the choice that equals the value in the YAML.

    A choice that is a section is compared after its missing keys are filled with their defaults.

    Args:
        source: the experiment's file and overrides.
        key: the searched key.
        dimension: choices of the key.
        value: value of the key in the resolved YAML.

    Raises:
        MaskfoldError: no choice equals the value (status 2).
    """
    for label, choice in dimension.labelled_choices:
        if choice == value:
            return label
    for label, choice in dimension.labelled_choices:
        try:
            if get_by_key(resolve_config(source.load([format_override(key, choice)])), key) == value:
                return label
        except MaskfoldError:
            continue  # a choice that conflicts with other values of the YAML cannot be the YAML's value
    raise _space_error(
        source,
        key,
        f"{key} in the YAML: found {json.dumps(value)}, expected one of the choices of the study "
        f"({', '.join(dimension.choice_labels)})",
        "Add this value to the choices, because trial 0 is the unchanged YAML.",
    )


def _range_value(source: ExperimentSource, key: str, dimension: SearchDimension, value: Any) -> int | float:
    """Check that the value of a key in the YAML is within the search range of the key, and return the value.

    Raises:
        MaskfoldError: the value is not a number, is outside the range, or does not fit `step` (status 2).
    """
    assert dimension.low is not None and dimension.high is not None
    found = f"{key} in the YAML: found {json.dumps(value)}, expected"
    if isinstance(value, bool) or not isinstance(value, int | float) or not dimension.low <= value <= dimension.high:
        raise _space_error(
            source,
            key,
            f"{found} a number from {dimension.low:g} to {dimension.high:g}",
            "Change the range or the value in the YAML, because trial 0 is the unchanged YAML.",
        )
    if not dimension.contains(value):
        raise _space_error(
            source,
            key,
            f"{found} {dimension.low:g} plus a multiple of {dimension.step:g}",
            "Change low, step or the value in the YAML, because trial 0 is the unchanged YAML.",
        )
    if dimension.is_integer and dimension.step is None and value != int(value):
        raise _space_error(
            source,
            key,
            f"{found} an integer, because both ends of the range are integers",
            f"Set low: {float(dimension.low)} for numbers with decimals, or set a whole number in the YAML.",
        )
    return value if dimension.is_integer else float(value)


def _applies(dimension: SearchDimension, stored: dict[str, Any], config: StudyConfig) -> bool:
    """Return whether a key is searched in a trial, because its conditions in `when` are fulfilled.

    Args:
        dimension: range or choices of the key, with its conditions.
        stored: values of the keys that the search space lists before this key, as Optuna stores them.
        config: section `study` of the experiment.
    """
    for parent, allowed in dimension.when.items():
        if parent not in stored:
            return False
        value, label = decode_stored_value(config.space[parent], stored[parent]), stored[parent]
        options = allowed if isinstance(allowed, list) else [allowed]
        if value not in options and label not in options and value != allowed:
            return False
    return True


def _allowed_value(parent: SearchDimension, allowed: Any) -> Any:
    """Return a value of a key that fulfils the condition `when` of another key.

    For example, if the other key has `when: {optimizer.target: [sgd, adam]}`, return the value of the choice `sgd`.

    Args:
        parent: range or choices of the key whose value is returned, in the example `optimizer.target`.
        allowed: the entry of this key in `when`: one value, the label of one choice, or a list of several values and
            labels, of which the first is used.
    """
    is_list_of_options = (
        isinstance(allowed, list) and allowed and allowed not in [choice for _, choice in parent.labelled_choices]
    )
    first = allowed[0] if is_list_of_options else allowed
    return dict(parent.labelled_choices).get(first, first) if isinstance(first, str) else first


def _extremes(dimension: SearchDimension) -> Iterator[Any]:
    if dimension.choices is not None:
        yield from (value for _, value in dimension.labelled_choices)
    else:
        yield dimension.low
        yield dimension.high
