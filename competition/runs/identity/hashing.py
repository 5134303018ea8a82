"""Compute the hash of a run from its settings and data; the run's folder is named after this hash.

The hash has two versions. Version 1 covers the paths of the files that the YAML names, version 2 their content (see
`competition.runs.identity.contents`). New runs get their name from version 2; older runs are found by version 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from competition.config.experiment import LAST_AXIS, Experiment
from competition.config.loading import resolve_config
from competition.runs.identity.contents import FOLDS_KEY, get_key, source_name
from competition.runs.kept_settings import drop_execution_keys

# Keys that were added to the YAML after the first runs were made. The hash ignores such a key if it has its default
# value, so that the hashes of older runs stay the same. Keys of `prepare` are also listed in data/cache.py.
KEYS_ADDED_LATER = (
    *(("prepare", key) for key in ("boundary", "rings", "stretch", "long_side")),
    ("optimizer", "encoder_rate"),
    ("training", "freeze_encoder"),
)
SECTIONS_ADDED_LATER = ("gate", "first_stage")
# Keys that do not change the result. A run that was stopped can resume with other values of these keys.
RESUMABLE_KEYS = (("training", "on_nan"), ("training", "on_oom"), ("prepare", "cache_gib"))


def run_hash(
    exp: Experiment, data_hash: str, version: Literal[1, 2] = 1, contents: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return the hash of a run: twelve hexadecimal digits from its YAML, its data and the files that the YAML names.

    The hash ignores `run:`, `study:`, `postprocess:`, the selection of folds (`folds.run`) and the data's folder, so
    that a run can be extended and moved. It also ignores `on_nan` and `on_oom`, so that a run can resume with another
    reaction to non-finite values and to a lack of memory.

    Version 1 of the hash covers the paths of files that the YAML names; version 2 covers their content. Version 2 also
    ignores the test images, the format of the submission, and how often checkpoints and pictures are written. But
    it covers the keys of `submission` that define how a training table of run lengths is read.

    Args:
        exp: the experiment.
        data_hash: hash of the cases, see `competition.runs.extra_cases.combined_data_hash`.
        version: version of the hash.
        contents: digests of files and packages, a result of `run_contents`; used only for version 2.
    """
    plain = hashed_settings(exp, version, contents)
    text = json.dumps(
        [plain, data_hash] if version == 1 else [version, plain, data_hash, dict(contents)], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def hashed_settings(
    exp: Experiment, version: Literal[1, 2], contents: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the part of the resolved YAML that the hash of a run covers; see `run_hash` for the arguments."""
    plain: dict[str, Any] = resolve_config(exp)
    for key in ("run", "study", "postprocess"):
        plain.pop(key, None)
    _remove_extra_keys(plain)
    plain["folds"].pop("run", None)
    for section, key in KEYS_ADDED_LATER:
        if not plain[section][key]:
            del plain[section][key]
    for key in SECTIONS_ADDED_LATER:
        if not plain[key]:
            del plain[key]
    if plain["folds"]["duplicates"] == "exact":  # off
        del plain["folds"]["duplicates"]
    if plain["patch"]["axes"] == [LAST_AXIS]:  # the only axis in versions without this key
        del plain["patch"]["axes"]
    if plain["training"]["soup"] == 1:  # off
        del plain["training"]["soup"]
    for section, key in RESUMABLE_KEYS:
        del plain[section][key]
    drop_execution_keys(plain["training"], kept=True)
    plain["competition"].pop("root", None)
    drop_keys_without_effect(plain["competition"])
    # these keys concern the leaderboard, and how files are written
    for key in ("kaggle", "public_share", "files", "zip", "labels"):
        plain["competition"]["submission"].pop(key, None)
    if version == 2:
        change_to_version_2(plain, resolve_config(exp), contents)
    return plain


def _remove_extra_keys(plain: dict[str, Any]) -> None:
    """Remove the keys of `competition.train`, `pseudo` and `extra` that the run's hash ignores.

    The folders of other runs are replaced by their names, which stay the same if a parent folder is moved.

    Args:
        plain: the resolved YAML; it is changed in place.
    """
    plain["competition"]["train"].pop("cases", None)  # the hash of the data covers the cases
    for key in ("pseudo", "extra"):
        if plain.get(key) is None:
            plain.pop(key, None)
    if (pseudo := plain.get("pseudo")) is not None:  # the name of a run stays the same when its folder is moved
        teachers = pseudo["from"] if isinstance(pseudo["from"], list) else [pseudo["from"]]
        pseudo["from"] = [source_name(teacher) for teacher in teachers]
    if plain.get("first_stage") is not None:
        plain["first_stage"] = source_name(plain["first_stage"])
    extras = plain.get("extra") or []
    for extra in extras if isinstance(extras, list) else [extras]:
        for key in ("root", "test", "submission", "metric"):
            extra["competition"].pop(key, None)
        drop_keys_without_effect(extra["competition"])
        extra["competition"]["train"].pop("cases", None)


def drop_keys_without_effect(plain: dict[str, Any]) -> None:
    """Remove keys of a competition that do not change a run's results, so that they are not part of the run's hash.

    Newer keys with their default value are also removed, so that the hashes of older runs stay valid.

    Args:
        plain: the competition as plain values; changed in place.
    """
    for key in ("array_axes", "spacing", "background"):
        if not plain.get(key):
            plain.pop(key, None)
    if plain["train"].get("missing_masks") == "error":
        del plain["train"]["missing_masks"]
    if plain["train"].get("exif") in (None, "ignore"):
        plain["train"].pop("exif", None)
    for key in ("threshold", "region"):
        if plain["train"].get(key) is None:
            plain["train"].pop(key, None)
    if not plain["train"].get("object_numbers"):
        plain["train"].pop("object_numbers", None)
    for key in ("masks_on_image_grid", "exclude", "weights"):
        # these keys change no case, and the hash of the data covers the selected cases and weights
        plain["train"].pop(key, None)


# What version 2 of the hash covers

# Further keys that do not change the result; only the hash of version 1 includes them. `inference.batch_size` is not
# listed here, because it does change the result: libraries select other algorithms for other batch sizes. On a CPU, 0.2
# to 0.3 % of the probabilities with one window per batch differ in the last bit from those with several windows
# (measured with the networks of experiments/demo2d and demo3d).
KEYS_OF_VERSION_1 = (("training", "checkpoint_minutes"), ("training", "pictures_every"))


def change_to_version_2(plain: dict[str, Any], saved: dict[str, Any], contents: Mapping[str, str]) -> None:
    """Convert the settings that version 1 of the run's hash covers to those that version 2 covers.

    Args:
        plain: the settings of version 1; they are changed in place.
        saved: the complete resolved YAML.
        contents: a result of `run_contents`. If it has the digest of the file that a key of the YAML names, the value
            of this key is replaced by a fixed text, because the hash covers the digest instead.
    """
    for section, key in KEYS_OF_VERSION_1:
        del plain[section][key]
    for hashed, whole in zip(_with_extras(plain), _with_extras(saved), strict=True):
        comp = hashed["competition"]
        comp.pop("test", None)  # the hash of the data covers test images that get pseudo-labels
        comp["submission"] = _settings_of_training_table(whole["competition"])
    if plain["init_from"] is not None:
        plain["init_from"] = source_name(plain["init_from"])
    for key in contents:
        *parents, last = key.split(".")
        parent = get_key(plain, ".".join(parents)) if parents else plain
        if key == FOLDS_KEY:
            plain["folds"].pop("file", None)
        elif isinstance(parent, list) and last.isdecimal() and int(last) < len(parent):
            parent[int(last)] = "a file"
        elif isinstance(parent, dict) and last in parent:
            parent[last] = "a file"


def _with_extras(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all mappings that have a key `competition`: the whole YAML, and each entry of `extra`."""
    extras = plain.get("extra") or []
    return [plain, *(extras if isinstance(extras, list) else [extras])]


def _settings_of_training_table(comp: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of the section `submission` that define how a training table of run lengths is read.

    See `competition.data.rle.tables`.
    """
    submission, train = comp["submission"], comp["train"]
    if train["rle"] is None:
        return {}
    if submission["profile"] is not None:
        return {"profile": submission["profile"]}
    return {"rle": submission["rle"]} if train["rle_format"] is None else {}
