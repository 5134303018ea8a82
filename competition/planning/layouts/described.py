"""Read folders that a `dataset.json` describes: Medical Segmentation Decathlon, nnU-Net version 1 and version 2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from competition.data.readers import has_reader
from competition.errors import MaskfoldError
from competition.planning.folder import HostFolder
from competition.planning.layout import Layout, Patterns
from competition.planning.layouts.content import dimensions_of
from competition.records import read_record
from competition.text import format_count, name_some

FILE = "dataset.json"
CHANNEL = re.compile(r"(.+)_(\d{4})")


def find_described(host: HostFolder) -> list[Layout]:
    """Return a layout for each `dataset.json` of Decathlon or nnU-Net, in the root or in a folder in the root."""
    found = []
    for path in host.jsons:
        if path.rpartition("/")[2] == FILE and path.count("/") <= 1:
            record = _read(host.root / path)
            if record is not None:
                found.append(_described(_part(host, path.rpartition("/")[0]), record))
    return [layout for layout in found if layout is not None]


def _part(host: HostFolder, folder: str) -> HostFolder:
    """Return a `HostFolder` with only the files of `host` below the subfolder `folder`."""
    if not folder:
        return host
    start = f"{folder}/"
    return HostFolder(
        host.root / folder, tuple(path[len(start) :] for path in host.files if path.startswith(start)), host.given
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = read_record(path, f"Restore {FILE}, which lists the channels and labels.")
    except MaskfoldError as error:
        raise MaskfoldError(error.message, error.hint, status=2) from error
    return record if isinstance(record.get("labels"), dict) else None


def _described(host: HostFolder, record: Mapping[str, Any]) -> Layout | None:
    version2 = "channel_names" in record or "file_ending" in record
    channels = record.get("channel_names") or record.get("modality") or {}
    names = [str(channels[key]) for key in sorted(channels, key=_number)] if isinstance(channels, dict) else []
    ending = str(record.get("file_ending") or "")
    masks = _files(host, "labelsTr", ending)
    if not masks:
        return None
    ending = ending or _common_ending(masks)
    numbered = any(CHANNEL.fullmatch(_stem(name, ending)) for name in _files(host, "imagesTr", ending))
    mask_ids = {_stem(name, ending) for name in masks}
    numbered = numbered and not mask_ids & {_stem(name, ending) for name in _files(host, "imagesTr", ending)}
    kind = "nnU-Net, version 2" if version2 else "nnU-Net, version 1" if numbered else "Medical Segmentation Decathlon"
    images, ids, remarks = _images(host, "imagesTr", ending, names, numbered)
    found, test_ids, _ = _images(host, "imagesTs", ending, names, numbered)
    test = found if test_ids and isinstance(images, dict) == isinstance(found, dict) else None
    training = sorted(ids & mask_ids)
    if not training:
        return None
    keys, reasons = _labels(record["labels"])
    dimensions = dimensions_of(host.root / "labelsTr" / f"{training[0]}{ending}")
    reasons |= {
        "train.images": f"{format_count(len(training), 'case')}"
        + (f"; {FILE} names the channels {', '.join(names)}" if names else "")
        + ("; nnU-Net writes the number of the channel after the id" if numbered else ""),
        "train.masks": f"{FILE} declares {record.get('numTraining', 'no number of')} training cases",
        "dimensions": f"the files are {'2D images' if dimensions == 2 else 'volumes'} ({ending})",
        "test.images": format_count(len(test_ids), "case"),
    }
    if isinstance(record.get("numTraining"), int) and record["numTraining"] != len(training):
        remarks.append(f"{FILE} declares {record['numTraining']} training cases, but the folder has {len(training)}")
    layout = Layout(
        f"{kind} ({FILE})",
        host,
        len(training),
        images,
        dimensions,
        f"labelsTr/{{id}}{ending}",
        test,
        keys,
        reasons,
        tuple(remarks),
        rank=0,
        mask_files={"": {case_id: [f"labelsTr/{case_id}{ending}"] for case_id in training}},
        ids=tuple(training),
    )
    validation = _files(host, "labelsVa", ending)
    if validation:
        note = f"{format_count(len(validation), 'labelled case')} in imagesVa: not used"
        layout = replace(layout, notes=(*layout.notes, note))
    if ids - mask_ids:
        unlabelled = format_count(len(ids - mask_ids), "image")
        layout = replace(layout, listed=tuple(training)).with_remarks(
            f"{unlabelled} without a mask ({name_some(sorted(ids - mask_ids))}): left out of training (train.cases)"
        )
    return layout


def _number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (10**9, text)


def _files(host: HostFolder, folder: str, ending: str) -> list[str]:
    start = f"{folder}/"
    names = [path[len(start) :] for path in host.images if path.startswith(start)]
    return [name for name in names if "/" not in name and (name.endswith(ending) if ending else has_reader(name))]


def _common_ending(names: list[str]) -> str:
    name = names[0]
    return ".nii.gz" if name.endswith(".nii.gz") else "." + name.rpartition(".")[2]


def _stem(name: str, ending: str) -> str:
    return name.removesuffix(ending)


def _images(
    host: HostFolder, folder: str, ending: str, names: list[str], numbered: bool
) -> tuple[Patterns, set[str], list[str]]:
    """Return the patterns and ids of the images in a folder, and remarks about them.

    Args:
        host: the scanned folder.
        folder: imagesTr or imagesTs.
        ending: extension of the files.
        names: names of the channels in `dataset.json`.
        numbered: whether file names end in the number of a channel, as in nnU-Net.
    """
    stems = {_stem(name, ending) for name in _files(host, folder, ending)}
    if not numbered:
        return f"{folder}/{{id}}{ending}", stems, []
    matches = [match for stem in stems if (match := CHANNEL.fullmatch(stem))]
    numbers = sorted({match[2] for match in matches})
    ids = [{match[1] for match in matches if match[2] == number} for number in numbers]
    remarks: list[str] = []
    if len(numbers) == 1:  # one channel, or a colour picture with several channels in one file
        return f"{folder}/{{id}}_{numbers[0]}{ending}", ids[0], remarks
    labels = [names[int(number)] if int(number) < len(names) else f"channel_{int(number)}" for number in numbers]
    if len(set(labels)) < len(labels):
        labels = [f"{label}_{int(number)}" for label, number in zip(labels, numbers, strict=True)]
    if names and len(names) != len(numbers):
        remarks.append(
            f"{FILE} names {format_count(len(names), 'channel')}, but the files of {folder} have {len(numbers)}"
        )
    patterns = {label: f"{folder}/{{id}}_{number}{ending}" for label, number in zip(labels, numbers, strict=True)}
    return patterns, set().union(*ids), remarks


def _labels(labels: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Convert the labels in a `dataset.json` to keys of competition.yaml.

    nnU-Net version 1 maps each value to a name, version 2 maps each name to a value.

    Returns:
        The keys, and the reason for each key.

    Raises:
        MaskfoldError: the labels are neither names by value nor values by name (exit status 2).
    """
    values: dict[str, list[int]] = {}
    ignore = None
    for key, value in labels.items():
        name, raw = (str(value), key) if str(key).lstrip("-").isdigit() and not _is_value(value) else (str(key), value)
        try:
            numbers = [int(item) for item in (raw if isinstance(raw, list) else [raw])]
        except (TypeError, ValueError) as error:
            raise MaskfoldError(
                f"{FILE}: the label {key!r} has the value {value!r}, expected a whole number or a list of whole "
                "numbers.",
                f"Correct `labels` in {FILE}.",
                status=2,
            ) from error
        if name.casefold() == "ignore" and len(numbers) == 1:
            ignore = numbers[0]
        elif numbers != [0]:
            values[name] = numbers
    regions = any(len(numbers) > 1 for numbers in values.values())
    flat = [numbers[0] if len(numbers) == 1 else numbers for numbers in values.values()]
    used = [number for numbers in values.values() for number in numbers]
    keys: dict[str, Any] = {"classes": list(values)}
    reasons = {"classes": f"{FILE} names them"}
    if flat != list(range(1, len(flat) + 1)):
        keys["label_values"] = flat
        reasons["label_values"] = f"from {FILE}" + (": some regions have several values" if regions else "")
    overlapping = len(set(used)) < len(used)
    keys["labels"] = "overlapping" if overlapping else "exclusive"
    reasons["labels"] = "regions share label values" if overlapping else "each label value belongs to one class"
    if ignore is not None:
        keys["ignore"] = ignore
        reasons["ignore"] = f"{FILE} says that this value is ignored"
    return keys, reasons


def _is_value(value: Any) -> bool:
    return isinstance(value, int | list) or (isinstance(value, str) and value.lstrip("-").isdigit())
