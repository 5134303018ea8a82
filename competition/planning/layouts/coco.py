"""Read COCO JSON files, and convert the polygons and run lengths of their objects into a table of run lengths."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from competition.data.readers import has_reader, read_header, strip_extension
from competition.errors import MaskfoldError
from competition.io import atomic_write, disk_full_as_error
from competition.planning.folder import HostFolder
from competition.planning.layout import Layout
from competition.planning.words import split_of
from competition.rle import decode, encode
from competition.rle_text import RleFormat
from competition.text import format_count, has_or_have, is_or_are, name_problem

SUFFIX = "-maskfold"  # end of the name of the folder beside the data for converted masks
FORMAT = RleFormat("column", 1)
MAX_BYTES = 2**31


@dataclass(frozen=True)
class CocoFile:
    """Hold the objects of a COCO file.

    Attributes:
        path: path of the file, below the folder.
        names: class name of each category, by id.
        images: path below the folder, height and width of each image, by id.
        objects: category id and segmentation of each object, by id of the image.
        left_out: number of annotations that are not used, because they describe crowds or have no segmentation.
        missing: number of images without a file in the folder, or with several possible files.
    """

    path: str
    names: dict[int, str]
    images: dict[int, tuple[str, int, int]]
    objects: dict[int, list[tuple[int, Any]]]
    left_out: int
    missing: int = 0


def find_coco(host: HostFolder) -> list[Layout]:
    """Return a layout for each COCO file whose images are in the folder."""
    found = []
    for path in host.jsons:
        coco = _read(host, path)
        if coco is not None and coco.objects:
            found.append(_layout(host, coco))
    training = [layout for layout in found if split_of(layout.keys["coco"].path) in ("train", "")]
    if training and len(training) < len(found):
        others = ", ".join(layout.keys["coco"].path for layout in found if layout not in training)
        found = [
            replace(layout, notes=(*layout.notes, f"COCO files of a validation or test split, not used: {others}"))
            for layout in training
        ]
    if len(found) > 1:
        found = [replace(layout, name=f"{layout.name}: {layout.keys['coco'].path}") for layout in found]
    return found


def _read(host: HostFolder, path: str) -> CocoFile | None:
    """Read a COCO file; return None if the file is not COCO or none of its images exists."""
    file = host.root / path
    if file.stat().st_size > MAX_BYTES or not _looks_like_coco(file):
        return None
    try:
        content = json.loads(file.read_bytes())
        names = {int(item["id"]): str(item["name"]) for item in content["categories"]}
        places = _places(host, path, content["images"])
        images = {
            int(item["id"]): (places[item["file_name"]], int(item["height"]), int(item["width"]))
            for item in content["images"]
            if item["file_name"] in places
        }
        objects: dict[int, list[tuple[int, Any]]] = {}
        left_out = 0
        for item in content["annotations"]:
            if int(item["image_id"]) not in images:
                continue
            segmentation = item.get("segmentation")
            if not segmentation or item.get("iscrowd"):
                left_out += 1
                continue
            objects.setdefault(int(item["image_id"]), []).append((int(item["category_id"]), segmentation))
        unknown = {category for items in objects.values() for category, _ in items} - set(names)
        if unknown:
            raise ValueError(
                f"annotations have the category_id {min(unknown)}, but the list `categories` has no such id"
            )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        raise MaskfoldError(
            f"{file} looks like a COCO file, but cannot be read ({type(error).__name__}: {str(error)[:100]}).",
            "Correct the file, or move it out of the folder.",
            status=2,
        ) from error
    missing = len(content["images"]) - len(images)
    return CocoFile(path, names, images, objects, left_out, missing) if images else None


def _looks_like_coco(file: Path) -> bool:
    """Return whether the text of a file contains the three main keys of COCO.

    This check avoids parsing large files that are not COCO.
    """
    content = file.read_bytes()
    return all(f'"{key}"'.encode() in content for key in ("images", "annotations", "categories"))


def _places(host: HostFolder, path: str, images: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Find the images that a COCO file lists; images that are not in the folder are left out.

    Returns:
        File name in the COCO file -> path of the image below the folder.
    """
    known = set(host.images)
    by_name: dict[str, list[str]] = {}
    for image in host.images:
        by_name.setdefault(image.rpartition("/")[2], []).append(image)
    folder = path.rpartition("/")[0]
    places = {}
    for item in images:
        name = str(item["file_name"]).replace("\\", "/").removeprefix("./")
        beside = f"{folder}/{name}" if folder else name
        same = by_name.get(name.rpartition("/")[2], [])
        if name in known or beside in known:
            places[item["file_name"]] = name if name in known else beside
        elif near := _nearest(same, folder):
            places[item["file_name"]] = near
    return places


def _nearest(paths: Sequence[str], folder: str) -> str:
    """Return the only one of the paths that lies below a folder; an empty text if several paths lie below it.

    If no path lies below the folder, its nearest parent folder that has a path below it is used instead.
    """
    while folder and not any(path.startswith(f"{folder}/") for path in paths):
        folder = folder.rpartition("/")[0]
    below = [path for path in paths if not folder or path.startswith(f"{folder}/")]
    return below[0] if len(below) == 1 else ""


def _layout(host: HostFolder, coco: CocoFile) -> Layout:
    used = {category for items in coco.objects.values() for category, _ in items}
    classes = [name for number, name in coco.names.items() if number in used]
    unused = [name for number, name in coco.names.items() if number not in used]
    pattern = _pattern([path for path, _, _ in coco.images.values()])
    ids = tuple(sorted(_id(path) for path, _, _ in coco.images.values()))
    count = sum(map(len, coco.objects.values()))
    problem = next((f"{name!r} {problem}" for name in classes if (problem := name_problem(name))), None)
    if problem is None and len(set(classes)) < len(classes):
        problem = f"two categories have the same name: {max(classes, key=classes.count)}"
    if problem or len(set(ids)) < len(ids):
        raise MaskfoldError(
            f"{host.root / coco.path}: {problem or 'two images have the same name'}.",
            "Correct the names of images and categories in this file.",
            status=2,
        )
    remarks = [f"categories without an object, which are left out: {', '.join(unused[:5])}"] if unused else []
    if coco.left_out:
        remarks.append(
            f"left out: {format_count(coco.left_out, 'annotation')}, because "
            f"{'it describes' if coco.left_out == 1 else 'they describe'} a crowd, or "
            f"{has_or_have(coco.left_out)} neither an outline nor run lengths"
        )
    if coco.missing:
        remarks.append(
            f"{format_count(coco.missing, 'image')} of {coco.path} {is_or_are(coco.missing)} "
            "left out, because the folder has no file with the image's name, or several such files"
        )
    return Layout(
        "COCO annotations",
        host,
        len(ids),
        pattern,
        2,
        keys={"coco": coco, "classes": classes, "instances": True},
        reasons={
            "classes": f"categories of {coco.path}",
            "instances": f"{format_count(count, 'object')}, each with its own annotation",
            "train.images": f"{format_count(len(ids), 'image')} of {coco.path}",
            "dimensions": "COCO describes 2D images",
        },
        remarks=tuple(remarks),
        ids=ids,
    )


def _id(path: str) -> str:
    return strip_extension(path.rpartition("/")[2])


def _pattern(paths: Sequence[str]) -> str:
    """Return a pattern that matches all images. In it, `*` replaces each folder in which the paths differ."""
    extensions = {path[len(strip_extension(path)) :].lower() for path in paths if has_reader(path)}
    extension = extensions.pop() if len(extensions) == 1 else ".*"
    parts = [path.split("/")[:-1] for path in paths]
    if len({len(part) for part in parts}) > 1:
        raise MaskfoldError(
            "The images of a COCO file are in folders of different depths, expected one depth.",
            "Move the images into one folder.",
            status=2,
        )
    common = [names[0] if len(set(names)) == 1 else "*" for names in zip(*parts, strict=True)]
    return "/".join([*common, f"{{id}}{extension}"])


# Conversion


def convert_coco(layout: Layout, name: str) -> Layout:
    """Write the table of run lengths of a COCO layout, and return the layout that reads this table.

    The table is written into a folder beside the data. The name of this folder is the name of the data's folder,
    followed by `-maskfold`. The data's own folder is not changed.

    Args:
        layout: layout of a folder with a COCO file.
        name: the competition's name. The file name of each table contains it, so that the tables of several COCO files
            in one folder do not overwrite each other.

    Raises:
        MaskfoldError: an outline or the size of an image is invalid (exit status 2), or the folder cannot be written.
    """
    coco: CocoFile = layout.keys["coco"]
    folder, place = folder_beside(layout.folder)
    overlap = ""
    rows = []
    for image, (path, height, width) in coco.images.items():
        _check_size(layout.folder.root / path, (height, width), coco.path)
        last: dict[int, np.ndarray] = {}
        for category, segmentation in coco.objects.get(image, []):
            mask = _mask(segmentation, height, width, f"{coco.path}, {path}")
            if not mask.any():
                continue
            if not overlap and any(other != category and bool((seen & mask).any()) for other, seen in last.items()):
                overlap = path
            last[category] = last[category] | mask if category in last else mask
            rows.append((_id(path), coco.names[category], encode(mask, FORMAT)))
    table = f"{name}-masks.csv"
    _write(folder / table, ("id", "class", "rle"), rows)
    keys = {key: value for key, value in layout.keys.items() if key != "coco"}
    labels = "overlapping" if overlap else "exclusive"
    return replace(layout, keys=keys).with_keys(
        {
            "train.rle": f"{place}/{table}",
            "train.cases": write_ids(layout.folder, layout.ids, name),
            "columns": {"id": "id", "class": "class" if len(layout.keys["classes"]) > 1 else None, "mask": "rle"},
            "train.rle_format": {"order": "column", "base": 1},
            "labels": labels,
        },
        {
            "train.rle": f"{coco.path} converted by maskfold init: {format_count(len(rows), 'object')}",
            "train.cases": f"the images that {coco.path} lists",
            "labels": f"classes share pixels, for example in {overlap}" if overlap else "no pixel is in two classes",
            "train.rle_format": "as the converted table is written",
            "columns": "of the converted table",
        },
    )


def folder_beside(host: HostFolder) -> tuple[Path, str]:
    """Return the folder beside the data for the tables of `maskfold init`, and its path relative to the data's root.

    The folder is created if it is missing.
    """
    given = host.given.absolute()
    folder = given.with_name(given.name + SUFFIX)
    with disk_full_as_error(folder):
        folder.mkdir(exist_ok=True)
    place = os.path.relpath(folder, host.root.absolute())
    if (host.root / place).resolve() != folder.resolve():  # the root is a link
        place = str(folder)
    return folder, place


def write_ids(host: HostFolder, ids: Sequence[str], name: str) -> str:
    """Write a table of ids into the folder beside the data; return its path for `train.cases`.

    Args:
        host: the data's folder.
        ids: the ids of the cases.
        name: the competition's name, with which the name of the table begins.
    """
    return write_table(host, f"{name}-cases.csv", ("id",), [(case_id,) for case_id in ids])


def write_table(host: HostFolder, table: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a CSV into the folder beside the data, and return its path relative to the root of the data."""
    folder, place = folder_beside(host)
    _write(folder / table, header, rows)
    return f"{place}/{table}"


def _check_size(image: Path, size: tuple[int, int], described_by: str) -> None:
    """Check that an image has the size that the COCO file states, because the outlines refer to this size.

    Args:
        image: path of the image.
        size: height and width in the COCO file.
        described_by: path of the COCO file, for the message of an error.
    """
    found = read_header(image, 2).shape
    if tuple(found) != size:
        raise MaskfoldError(
            f"{image} has {found[0]}×{found[1]} pixels (height × width), but {described_by} states "
            f"{size[0]}×{size[1]}, so the outlines would not fit the objects.",
            f"Restore the image that was annotated, or scale the outlines and the size of the image in {described_by}.",
            status=2,
        )


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    content = stream.getvalue().encode()
    atomic_write(path, lambda file: file.write(content), len(content))


def _mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Return an object's mask (H, W) bool from its COCO segmentation: polygons, run lengths or compressed run lengths.

    Args:
        segmentation: value of the key `segmentation` of an annotation.
        height: height of the image in pixels.
        width: width of the image in pixels.
        where: the COCO file and the image, for the message of an error.
    """
    try:
        if isinstance(segmentation, list):
            return _draw(segmentation, height, width)
        counts = segmentation["counts"]
        size = tuple(map(int, segmentation.get("size", (height, width))))
        if size != (height, width):
            raise ValueError(f"found the size {size}, expected {(height, width)}, the height and width of the image")
        if isinstance(counts, list):
            return _expand(np.asarray(counts, np.int64), height, width)
        return decode(counts, (height, width), RleFormat("column", container="coco"))
    except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError, MaskfoldError) as error:
        raise MaskfoldError(
            f"{where}: the outline or the run lengths of an object are invalid ({str(error)[:160]}).",
            "Correct the annotation, or remove it.",
            status=2,
        ) from error


def _expand(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    if counts.size and counts.min() < 0:
        raise ValueError(f"counts: found {int(counts.min())}, expected no negative number")
    if counts.size == 0 or counts.sum() != height * width:
        raise ValueError(f"counts: found a sum of {int(counts.sum())}, expected {height * width} pixels")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape((height, width), order="F")


def _draw(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Return the mask (H, W) of an object's polygons.

    A pixel belongs to the object if its centre lies in a polygon. The centre of pixel i is at i + 0.5.
    """
    from skimage.draw import polygon

    mask = np.zeros((height, width), bool)
    for points in _pairs(polygons):
        rows, columns = polygon(points[:, 1] - 0.5, points[:, 0] - 0.5, (height, width))
        mask[rows, columns] = True
    return mask


def _pairs(polygons: Sequence[Sequence[float]]) -> Iterator[np.ndarray]:
    for numbers in polygons:
        points = np.asarray(numbers, np.float64)
        if points.size < 6 or points.size % 2 or not np.isfinite(points).all():
            raise ValueError(f"a polygon has {points.size} numbers, expected an even number of at least 6")
        yield points.reshape(-1, 2)
