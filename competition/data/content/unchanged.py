"""Read the cases of a run, and check that their files have not changed since the run began.

The case table of a run contains digests of the files. All code that reads an image or a truth again (validation, tuning
of post-processing, reports) uses the functions of this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.competition import Competition
from competition.data.cases import case_rows
from competition.data.content.digests import (
    OBJECT_COUNTS,
    Digest,
    Files,
    FileStamp,
    case_digest,
    file_stamp,
    image_digest,
    label_files,
    reading_parts,
    remembered_digest,
    truth_parts,
)
from competition.data.content.open_once import file_below, keep_contents
from competition.data.image_types import Image, file_digest
from competition.data.masks import load_mask, load_objects
from competition.data.objects import CaseObjects
from competition.data.patterns import match_path
from competition.data.readers import display_name, get_column, get_json, load_image, read_case_header, row_axes
from competition.data.rle.tables import current_rows
from competition.errors import ChangedDataError, MaskfoldError

if TYPE_CHECKING:
    import pandas


def load_unchanged_image(comp: Competition, row: Any) -> Image:
    """Read the image of a case with `load_image`, and check that its files have not changed since the run began.

    Raises:
        ChangedDataError: a file has changed.
        MaskfoldError: as for `load_image`.
    """
    with unchanged_files(comp, row, truth=False):
        return load_image(comp, row)


def load_unchanged_mask(comp: Competition, row: Any) -> np.ndarray:
    """Read the truth of a case with `load_mask`, and check that its files have not changed since the run began.

    Raises:
        ChangedDataError: a file has changed.
        MaskfoldError: as for `load_mask`.
    """
    with unchanged_files(comp, row, image=False):
        return load_mask(comp, row)


def load_unchanged_objects(comp: Competition, row: Any) -> CaseObjects:
    """Read the objects of a case with `load_objects`, and check that its files have not changed since the run began.

    Raises:
        ChangedDataError: a file has changed.
        MaskfoldError: as for `load_objects`.
    """
    with unchanged_files(comp, row, image=False):
        return load_objects(comp, row)


@contextmanager
def unchanged_files(
    comp: Competition, row: Any, *, image: bool = True, truth: bool = True, fresh: bool = False
) -> Iterator[None]:
    """Check that a case's files match the case table, and do not change while a `with` block reads them.

    Most files are read twice: once for decoding and once for hashing. If a file changes between the two reads, its
    stamp changes (see `file_stamp`). So the function takes the stamps first, and compares them with the stamps after
    the files are decoded and hashed. It does not notice a change that restores all values of the stamp. If `fresh` is
    true, small files are read only once (see `keep_contents`).

    Args:
        comp: the competition.
        row: a row of the case table, which contains digests of the files.
        image: whether to check the image.
        truth: whether to check the truth, if the case has one.
        fresh: if True, all files are hashed after the block. If False, the files are hashed before the block, except
            files that this process has hashed before and that have the same stamp.

    Raises:
        ChangedDataError: the digest of a file differs from the case table, or the file changed inside the
            block.
        MaskfoldError: an error of the block, or a file cannot be read.
    """
    masks = get_json(row, "masks") if truth else None
    checks = [*([_check_image] if image else []), *([_check_truth] if masks is not None else [])]
    paths = [*(_image_paths(comp, row) if image else []), *_truth_paths(comp, masks)]
    before = _stamps(paths)
    if not fresh:
        for check in checks:
            check(comp, row, remembered_digest)
    with keep_contents() if fresh else nullcontext():
        try:
            yield
        except MaskfoldError:
            for check in checks:  # if a file has changed, this explains most errors better
                check(comp, row, file_digest)
            raise
        try:
            for check in checks if fresh else ():
                check(comp, row, file_digest)
        finally:  # a file that changed in the block explains a wrong digest better
            changed = next((path for path, stamp in _stamps(paths).items() if before[path] != stamp), None)
            if changed is not None:
                raise _changed_error(f"{changed} of case {get_column(row, 'id')} changed while Maskfold read it.")


def check_truth_unchanged(comp: Competition, rows: Iterable[Any]) -> int:
    """Check that the truth of cases has not changed since the run began.

    Call this function before stored results are used without reading the masks again.

    Args:
        comp: the competition.
        rows: rows of the case table.

    Returns:
        The number of cases that cannot be checked because a file of their truth is missing. Missing files are no
        error, because a copied run may be used without its training data.

    Raises:
        ChangedDataError: the truth of a case has changed since the run began.
    """
    missing = 0
    for row in rows:
        if all(path.exists() for path in _truth_paths(comp, get_json(row, "masks"))):
            _check_truth(comp, row, remembered_digest)
        else:
            missing += 1
    return missing


def _check_image(comp: Competition, row: Any, digest: Digest) -> None:
    channels = list(get_json(row, "images").values())
    if image_digest(comp, channels, digest) != get_column(row, "image_hash"):
        names = ", ".join(display_name(files) for files in channels)
        raise _changed_error(
            f"The image of case {get_column(row, 'id')} ({names}) has changed since the run was started."
        )


def _check_truth(comp: Competition, row: Any, digest: Digest) -> None:
    """Check that the truth of a case gives the `hash` in the case table; the images are not hashed again.

    Args:
        comp: the competition.
        row: a row of the case table. `hash` is computed again from its `image_hash` and the files of the truth as they
            are now.
        digest: as for `file_digests`.

    Raises:
        ChangedDataError: the truth has changed.
    """
    masks, case_id = get_json(row, "masks"), get_column(row, "id")
    channels = list(get_json(row, "images").values())
    names = ", ".join(display_name(files) for files in label_files(masks)[:3]) or str(comp.train.rle)
    error = _changed_error(f"The mask of case {case_id} ({names}) has changed since the run was started.")
    try:
        parts = truth_parts(comp, masks, digest)
        has_other_rows = masks["kind"] == "rle" and current_rows(comp, row) != masks["rows"]
    except KeyError:  # the table of run lengths has fewer lines
        raise error from None
    image_hash, expected = get_column(row, "image_hash"), get_column(row, "hash")
    # For most cases `reading_parts` is empty, so the header need not be read.
    if not has_other_rows and case_digest(image_hash, parts) == expected:
        return
    reading = reading_parts(comp, read_case_header(comp, channels[0], False, row_axes(comp, row)), channels, masks)
    former = [part for part in reading if not part.startswith(OBJECT_COUNTS)]  # of runs before this part was added
    accepted = {case_digest(image_hash, [*parts, *further]) for further in (reading, former)}
    if has_other_rows or expected not in accepted:
        raise error


def _image_paths(comp: Competition, row: Any) -> list[Path]:
    return _paths(comp, list(get_json(row, "images").values()))


def _truth_paths(comp: Competition, masks: dict[str, Any] | None) -> list[Path]:
    table = [Path(comp.root) / str(comp.train.rle)] if masks is not None and masks["kind"] == "rle" else []
    return table + _paths(comp, label_files(masks))


def _paths(comp: Competition, files: list[Files]) -> list[Path]:
    return [file_below(comp.root, path) for item in files for path in ([item] if isinstance(item, str) else item)]


def _stamps(paths: list[Path]) -> dict[Path, FileStamp]:
    return {path: file_stamp(path) for path in paths}


def _changed_error(message: str) -> ChangedDataError:
    return ChangedDataError(
        message, "Restore the file. To train on the changed data, repeat `maskfold cv`, which starts another run."
    )


def check_files_belong(comp: Competition, table: pandas.DataFrame) -> None:
    """Check that each path in a run's case table fits the case's id and the YAML's pattern of the channel or class.

    The contents of the files are not checked here, but when the files are read.

    Args:
        comp: the competition of the table.
        table: case table of the training cases.

    Raises:
        MaskfoldError: the table assigns the file of another case, channel or class to a case.
        ValueError, TypeError, AttributeError: a cell is damaged.
    """
    images, masks = comp.train.images, comp.train.masks
    image_patterns = images if isinstance(images, dict) else {"image": images}
    mask_patterns = masks if isinstance(masks, dict) else {comp.classes[0]: str(masks)}
    first_pattern = next(iter(image_patterns.values()))
    for row in case_rows(table):
        truth = json.loads(row.masks)
        if (truth["kind"] == "rle") != (comp.train.rle is not None):
            expected = "rle" if comp.train.rle is not None else "label files"
            raise ValueError(f"the masks of case {row.id} are of the kind {truth['kind']}, expected {expected}")
        channels = json.loads(row.images)
        is_shared = "{c}" in first_pattern  # one pattern for all channels
        named = {"train.images": (channels, dict.fromkeys(channels, first_pattern) if is_shared else image_patterns)}
        if comp.train.region is not None:
            named["train.region"] = ({"region": truth["region"]}, {"region": comp.train.region})
        if truth["kind"] == "labels":
            named["train.masks"] = ({comp.classes[0]: truth["files"]}, mask_patterns)
        elif truth["kind"] != "rle":
            named["train.masks"] = (truth["files"], mask_patterns)
        texts = json.loads(row.slices)
        for key, (files_of, patterns) in named.items():
            for name, files in files_of.items():
                _check_file_names(row.id, key, patterns.get(name), files, name, texts)


def _check_file_names(
    case_id: str, key: str, pattern: str | None, files: str | list[str], channel: str, texts: list[str] | None
) -> None:
    """Check that a pattern matches the files of a case.

    Args:
        case_id: id of the case.
        key: key of the pattern in the YAML, for the message.
        pattern: the pattern; None if the YAML has no pattern for these files.
        files: path below the root, or the paths of a stack's slices.
        channel: name of the channel or class.
        texts: the texts that {z} matched in the image's slices; None for a case without slices.
    """
    paths = [files] if isinstance(files, str) else files
    for index, path in enumerate(paths):
        bound = None if pattern is None else match_path(pattern, path, case_id)
        is_other_slice = bound is not None and "z" in bound and (texts is None or int(bound["z"]) != int(texts[index]))
        if bound is None or is_other_slice or bound.get("c", channel) != channel:
            conflict = (
                f"the YAML has no pattern {key} for {channel}"
                if pattern is None
                else f"this file does not match {key} `{pattern}` for this case"
            )
            raise MaskfoldError(
                f"The case {case_id} has the file {path[:200]} in the case table, but {conflict}.",
                "Copy the run's folder again from its origin, or start another run with --new.",
            )
