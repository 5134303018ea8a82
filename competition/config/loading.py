"""Load YAML files and `key=value` overrides as `Competition` and `Experiment`, and write them back."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from competition.config.arguments import check_argument_values
from competition.config.base import KEY as BASE
from competition.config.base import expand_home, file_exists, folder_of, inline_file, read_experiment_yaml
from competition.config.competition import Competition
from competition.config.experiment import Experiment, TargetConfig
from competition.config.instantiate import check_import_path
from competition.config.messages import format_validation_error
from competition.config.metric import METRICS
from competition.config.postprocess import load_own_step
from competition.config.yaml import (
    COMMAND_LINE,
    FLOAT_PATTERN,
    TAG_PREFIX,
    KeyPath,
    YamlDocument,
    apply_overrides,
    parse_overrides,
    read_yaml,
)
from competition.errors import SURROGATE, MaskfoldError, printable
from competition.text import name_problem

ModelT = TypeVar("ModelT", bound=BaseModel)
# Maximum length of `<competition>-<experiment>`; names of files derived from it are up to 55 bytes longer.
MAX_RUN_NAME_BYTES = 200
# Keys of a competition that may name a CSV next to the YAML
CASE_FILES: tuple[KeyPath, ...] = (("train", "cases"), ("train", "exclude"), ("train", "weights"), ("test", "cases"))

# Keys that apply to one value of another key only: for each key, the other key and this value.
DEPENDENT_KEYS: dict[KeyPath, tuple[KeyPath, str]] = {
    ("folds", "file"): (("folds", "scheme"), "file"),
    ("folds", "shares"): (("folds", "scheme"), "holdout"),
    ("prepare", "window"): (("prepare", "intensity"), "window"),
    ("prepare", "percentiles"): (("prepare", "intensity"), "percentile"),
    ("schedule", "factor"): (("schedule", "name"), "plateau"),
    ("schedule", "patience"): (("schedule", "name"), "plateau"),
    ("schedule", "power"): (("schedule", "name"), "poly"),
}


def load_experiment(path: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] | None = ()) -> Experiment:
    """Load an experiment's YAML and the competition that it refers to.

    The experiment may have a base, see `competition.config.base.read_experiment_yaml`. The competition's path is
    relative to the file that names it; a path from the command line (`competition=other.yaml`) is looked up in the
    working folder first. `competition.root` is searched in the working folder, then in the folder of the YAML that
    sets it, and becomes absolute. The files of `folds.file`, `init_from`, `first_stage` and `encoder_weights` are
    searched in the same folders.

    Args:
        path: the file.
        overrides: `key=value` arguments; a value is YAML and replaces the file's value.
        trust: packages from which a `target` may be imported, in addition to
            `competition.config.instantiate.TRUSTED_PACKAGES`. None skips the check of the packages, for callers that
            only read the settings of a finished run; the user's own post-processing steps are then not imported.

    Returns:
        The experiment. Of its targets, only the user's own post-processing steps are imported;
        `competition.config.instantiate.check_targets` imports and checks the other targets.

    Raises:
        MaskfoldError (exit status 2): the message lists all errors, each with file, line and key.

    Example:
        >>> load_experiment("experiments/demo2d/unet2d.yaml", ["training.epochs=3"])  # doctest: +SKIP
    """
    file = Path(path)
    document = read_experiment_yaml(file, overrides)
    if "competition" not in document.tree and {"dimensions", "classes"} <= document.tree.keys():
        raise MaskfoldError(
            f"{file} describes a competition, not an experiment.",
            "Give the YAML file of an experiment, which has the keys `competition`, `patch`, `model` and `loss`.",
            status=2,
        )
    parsed = [override for override in parse_overrides(overrides) if override.key != BASE]
    apply_overrides(document, [override for override in parsed if override.key == "competition"])
    folder = inline_file(document, ("competition",), file.parent, "a competition")
    _inline_extras(document, file.parent)
    _insert_defaults(document, [override.key for override in parsed])
    apply_overrides(document, [override for override in parsed if override.key != "competition"])
    _inline_extras(document, file.parent)
    _resolve_root(document, ("competition", "root"), folder)
    for place in CASE_FILES:
        _resolve_file(document, ("competition", *place), folder)
    files: list[KeyPath] = [("folds", "file"), ("init_from",), ("first_stage",), ("encoder_weights",)]
    for key in (*files, *_item_keys(document, ("pseudo", "from"))):
        _resolve_file(document, key, file.parent)
    if trust is not None:
        _load_own_steps(document, trust)
    exp = _validate(Experiment, document)
    _check_dependent_keys(exp, document)
    _check_metric_name(exp, document)
    _check_run_name(file, exp.competition.name)
    if trust is not None:
        _check_trust(exp, document, trust)
        exp.competition.metric.trust(trust)
    return exp


def load_competition(
    path: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] | None = None
) -> Competition:
    """Load a competition's YAML.

    Args:
        path: the file.
        overrides: `key=value` arguments, e.g. `root=/elsewhere`.
        trust: additional packages from which `metric.target` may be imported. None skips the check of the package, for
            callers that do not use the metric.

    Returns:
        The competition; its `root` is absolute.

    Raises:
        MaskfoldError (exit status 2): see `load_experiment`.
    """
    file = Path(path)
    document = read_yaml(file)
    if "competition" in document.tree:
        raise MaskfoldError(
            f"{file} describes an experiment, not a competition.",
            "Give the YAML of a competition. The key `competition` of this experiment names one.",
            status=2,
        )
    apply_overrides(document, parse_overrides(overrides))
    _resolve_root(document, ("root",), file.parent)
    for place in CASE_FILES:
        _resolve_file(document, place, file.parent)
    comp = _validate(Competition, document)
    if trust is not None:
        for section, (target, _) in comp.metric.targets.items():
            key = _metric_key((), section)
            check_import_path(target, f"{document.locate((*key, 'target'))}: {'.'.join(map(str, key))}.target", trust)
        comp.metric.trust(trust)
    return comp


def resolve_config(exp: Experiment) -> dict[str, Any]:
    """Return an experiment as plain data, with all defaults and the competition included.

    Loading the data again gives an equal experiment.

    Returns:
        Mappings, lists, text, numbers, booleans and None only.
    """
    plain: dict[str, Any] = exp.model_dump(by_alias=True)
    extras = plain["extra"] or []
    if not isinstance(extras, list):
        extras = [extras]
    for section in (plain, *extras):
        section["competition"]["root"] = str(section["competition"]["root"])
    return plain


def resolve_for_prediction(exp: Experiment) -> dict[str, Any]:
    """Return an experiment as plain data, as `resolve_config` does, but without the user's own metric.

    Prediction does not need this metric, so it does not need the metric's package either.
    """
    plain = resolve_config(exp)
    if exp.competition.metric.has_own_code:
        del plain["competition"]["metric"]
    return plain


def write_yaml(data: Any, path: Path) -> None:
    """Write plain data as YAML atomically: write a temporary file, sync it and rename it.

    Args:
        data: mappings, lists, text, numbers, booleans and None.
        path: the file; an existing file is replaced.

    Raises:
        MaskfoldError: `data` contains a value of another type.
        OSError: the folder is not writable.
    """
    try:
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    except yaml.representer.RepresenterError as error:
        raise MaskfoldError(
            f"{path} cannot be written: {error.args[-1]!r} is not plain data.",
            "Use only numbers, text, booleans, lists and mappings.",
            status=2,
        ) from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a write error (e.g. of a full disk) does not contain the file name
        raise
    finally:
        temporary.unlink(missing_ok=True)


class _Dumper(yaml.SafeDumper):
    """Write YAML without aliases, and quote text that YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent(self, data: Any) -> None:
        """Write each top-level key on a separate line, even if the values are short."""
        node = self.represent_data(data)
        if isinstance(node, yaml.MappingNode):
            node.flow_style = False
        self.serialize(node)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape text with a Unicode line break, which PyYAML would write unescaped."""
        return self.represent_scalar(
            TAG_PREFIX + "str", data, style='"' if re.search("[\x85\u2028\u2029]", data) else None
        )


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_implicit_resolver(TAG_PREFIX + "float", FLOAT_PATTERN, list("-+.0123456789"))


def _inline_extras(document: YamlDocument, folder: Path) -> None:
    """Replace the paths of competition YAMLs in `extra` by the content of the files."""
    for key in _item_keys(document, ("extra",)):
        yaml_folder = inline_file(document, (*key, "competition"), folder, "a competition")
        _resolve_root(document, (*key, "competition", "root"), yaml_folder)
        for place in CASE_FILES:
            _resolve_file(document, (*key, "competition", *place), yaml_folder)


def _item_keys(document: YamlDocument, key: KeyPath) -> list[KeyPath]:
    """Return the key of each item if the value of `key` is a list; otherwise return `key` alone."""
    _, value = _value(document, key)
    return [(*key, number) for number in range(len(value))] if isinstance(value, list) else [key]


def _insert_defaults(document: YamlDocument, keys: Sequence[str]) -> None:
    """Insert the default value of each section that the YAML lacks and that an override changes.

    For example, if the YAML has no section `optimizer`, `optimizer.args.lr=…` then changes the default optimizer.

    Args:
        document: the document; its tree is changed in place.
        keys: the dotted keys of the overrides.
    """
    for key in keys:
        section, _, rest = key.partition(".")
        default = Experiment.model_fields[section].default if section in Experiment.model_fields else None
        if rest and section not in document.tree and isinstance(default, BaseModel):
            document.tree[section] = default.model_dump(by_alias=True)


def _value(document: YamlDocument, key: KeyPath) -> tuple[Any, Any]:
    """Return the mapping or list that contains a key, and the value of the key (None if it is missing)."""
    node = parent = document.tree
    for part in key:
        parent = node
        if isinstance(node, list) and isinstance(part, int):
            node = node[part]
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return parent, node


def _resolve_root(document: YamlDocument, key: KeyPath, folder: Path) -> None:
    """Make the path at `key` absolute.

    A relative path that exists only below the YAML's folder is taken from there. Any other relative path is taken from
    the working folder.
    """
    parent, value = _value(document, key)
    if isinstance(value, str) and value:
        folder = folder_of(document, key, folder)
        path = expand_home(document, key, value)
        if not file_exists(document, key, path) and file_exists(document, key, folder / path):
            path = folder / path
        if SURROGATE.search(absolute := os.path.abspath(path)):
            raise MaskfoldError(
                f"{document.locate(key)}: {'.'.join(map(str, key))}: the path {absolute} is not UTF-8, so Maskfold "
                "cannot save it with a run.",
                "Rename the folder (e.g. with the command mv), so that its name is UTF-8.",
                status=2,
            )
        parent[key[-1]] = absolute


def _check_run_name(file: Path, competition: str) -> None:
    """Check the experiment's name, which forms the folder name `<competition>-<experiment>` of runs and studies.

    Raises:
        MaskfoldError: the name of the experiment's file is not UTF-8 or has control characters, or the folder's name
            would be too long.
    """
    problem = name_problem(file.stem)
    length = len(f"{competition}-{printable(file.stem)}".encode())
    if problem is None and length > MAX_RUN_NAME_BYTES:
        problem = (
            f"is too long together with the competition's name: found {length} bytes, expected at most "
            f"{MAX_RUN_NAME_BYTES}"
        )
    if problem is not None:
        raise MaskfoldError(
            f"The experiment's name {file.stem!r} {problem}.",
            "Give the experiment's YAML file a shorter or simpler name.",
            status=2,
        )


def _resolve_file(document: YamlDocument, key: KeyPath, folder: Path) -> None:
    """Put the YAML's folder before the path at `key`, if the file exists only there and not in the working folder."""
    parent, value = _value(document, key)
    folder = folder_of(document, key, folder)
    if not isinstance(value, str) or not value or file_exists(document, key, Path(value)):
        return
    if file_exists(document, key, folder / value):
        parent[key[-1]] = str(folder / value)


def _validate(model: type[ModelT], document: YamlDocument) -> ModelT:
    try:
        return model.model_validate(document.tree)
    except ValidationError as error:
        raise format_validation_error(error, model, document) from None


def _load_own_steps(document: YamlDocument, trust: Sequence[str]) -> None:
    """Import the user's own post-processing steps, because their fields are the keys that the YAML may have."""
    key: KeyPath = ("postprocess", "steps")
    _, value = _value(document, key)
    lists = {(*key, name): steps for name, steps in value.items()} if isinstance(value, dict) else {key: value}
    for list_key, steps in lists.items():
        for number, step in enumerate(steps if isinstance(steps, list) else ()):
            if isinstance(step, dict) and isinstance(step.get("target"), str):
                place = document.locate((*list_key, number, "target"))
                name = ".".join(map(str, (*list_key, number)))
                load_own_step(step["target"], step.get("args"), f"{place}: {name}", trust)


def _check_dependent_keys(exp: Experiment, document: YamlDocument) -> None:
    """Check that each key that the user set has an effect, e.g. `folds.file`, which needs `folds.scheme: file`.

    A key without effect is accepted if the user also set the key that it needs. For example, an experiment may keep the
    `prepare.window` of its base and replace `prepare.intensity`, or a study may search `prepare.intensity`. But a key
    without effect on the command line is accepted only if the command line sets, or a study searches, the key that it
    needs.

    Raises:
        MaskfoldError (exit status 2): a key has no effect.
    """
    space = exp.study.space if exp.study is not None else {}
    for key, (other, required) in DEPENDENT_KEYS.items():
        place, other_place = document.locations.get(key), document.locations.get(other)
        found, name = getattr(getattr(exp, str(other[0])), str(other[1])), ".".join(map(str, other))
        if place is None or _value(document, key)[1] is None or found == required or name in space:
            continue
        if other_place is not None and (place.line is not None or other_place.line is None):
            continue
        dotted = ".".join(map(str, key))
        raise MaskfoldError(
            f"{place}: {dotted} has no effect, because it applies only to {name}: {required}, but {name} is {found}.",
            f"Set {name} to {required}, or remove {dotted}.",
            status=2,
        )


def _check_metric_name(exp: Experiment, document: YamlDocument) -> None:
    """Check that `metric.name` selects the metric if it replaces a value of the base or of the competition's YAML.

    With `metric.target` or `metric.sum`, the name is only a label. So `competition.metric.name=iou` on the command line
    would change the label of the score, but not the score.

    Raises:
        MaskfoldError (exit status 2): the name is only a label.
    """
    metric, section = exp.competition.metric, ("competition", "metric")
    other = "sum" if metric.sum is not None else "target"
    place, other_place = document.locations.get((*section, "name")), document.locations.get((*section, other))
    if getattr(metric, other) is None or place is None or other_place is None or metric.name not in METRICS.names():
        return
    if place.file != other_place.file and place.file in (COMMAND_LINE.file, document.file) and other_place.line:
        raise MaskfoldError(
            f"{place}: competition.metric.name: {metric.name} would be only a label, because "
            f"competition.metric.{other} ({other_place}) selects the metric.",
            f"To score with {metric.name}, also set competition.metric.{other} to null.",
            status=2,
        )


def _metric_key(above: KeyPath, section: str) -> KeyPath:
    """Return the YAML key of a metric.

    Args:
        above: the key of the section that contains `metric`.
        section: empty for the metric itself; `sum.0` for the first term of a weighted sum.
    """
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in section.split(".") if part]
    return (*above, "metric", *parts)


def _check_trust(exp: Experiment, document: YamlDocument, trust: Sequence[str]) -> None:
    """Check the package and the arguments of every `target`, without importing the target."""
    targets: list[tuple[KeyPath, TargetConfig]] = [(("model",), exp.model), (("optimizer",), exp.optimizer)]
    is_list = isinstance(exp.loss, list)
    targets += [(("loss", number) if is_list else ("loss",), loss) for number, loss in enumerate(exp.losses)]
    targets += [
        (("augment", "transforms", number), transform) for number, transform in enumerate(exp.augment.transforms or [])
    ]
    for name, (target, args) in exp.competition.metric.targets.items():
        targets.append((_metric_key(("competition",), name), TargetConfig(target=target, args=args)))
    for section, config in targets:
        key = (*section, "target")
        check_import_path(config.target, f"{document.locate(key)}: {'.'.join(map(str, key))}", trust)
        args_key = (*section, "args")
        place = f"{document.locate(args_key)}: "
        check_argument_values(config.target, config.args, ".".join(map(str, args_key)), trust, place)
