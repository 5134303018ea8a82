"""The case table: one row per case with its files, geometry, group and content hash."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data import groups
from competition.data.agreement import check_case, label_files
from competition.data.discovery import Images, find_images, find_masks
from competition.data.hashes import file_digest, joined
from competition.data.images import load_image
from competition.data.masks import load_instances, load_mask
from competition.data.rle_table import row_text
from competition.data.skipped import Skipped

if TYPE_CHECKING:
    import pandas

__all__ = ["COLUMNS", "case_table", "data_hash", "load_image", "load_instances", "load_mask"]

COLUMNS = ("id", "split", "images", "masks", "group", "stratum", "shape", "spacing", "channels", "slices", "hash",
           "image_hash")


def case_table(comp: Competition, split: str = "train") -> pandas.DataFrame:
    """Finds and checks all cases, by file names, headers and tables; pixels are read by `load_image` and `load_mask`.

    With `on_bad_case: skip` each case is read whole once, so that only cases which can be used are in the table.

    Args:
        comp: what the host gave.
        split: train or test.

    Returns:
        Sorted by id, with the columns

        - id, split;
        - images: JSON, channel to path below the root, or to the paths of a stack's slices;
        - masks: JSON, see `discovery.find_masks`; null for test cases;
        - group: by `competition.group`; the id itself where there is none. stratum: likewise; empty where there is none;
        - shape, spacing (mm): JSON lists along the spatial axes. channels: their number;
        - slices: JSON, the text that stood for {z} in each slice; null for other cases;
        - image_hash: SHA-256 (hexadecimal) of the image files' bytes. hash: of these and of the truth's.

        ``attrs["skipped"]`` lists (id, reason) of cases that were left out.

    Raises:
        MaskfoldError: the patterns or tables are wrong, or a case is bad and `on_bad_case` is stop; or none is left.
    """
    import pandas

    skipped = Skipped(comp)
    images = find_images(comp, split, skipped)
    masks = find_masks(comp, images, skipped) if split == "train" else {}
    rows = []
    for case_id in images:
        if case_id not in skipped.reasons:
            try:
                rows.append(case_row(comp, split, case_id, images[case_id], masks.get(case_id)))
            except MaskfoldError as error:
                skipped.add(case_id, error)
    if not rows:
        first, reason = next(iter(skipped.reasons.items()))
        raise MaskfoldError(f"All {len(skipped.reasons)} cases are left out; the first is {first}: {reason}",
                            "Correct the files or the competition's YAML.")
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    if split == "train":
        for key in ("group", "stratum"):
            table[key] = groups.values(comp, table["id"].tolist(), key) or table[key]
    table.attrs["skipped"] = sorted(skipped.reasons.items())
    return table


def data_hash(table: pandas.DataFrame) -> str:
    """SHA-256 (hexadecimal) of all that a case table says but for where the files are."""
    columns = ("id", "split", "group", "stratum", "hash")
    lines = sorted("\0".join(map(str, row)) for row in table[list(columns)].itertuples(index=False))
    return joined(line.encode() for line in lines)


def case_row(comp: Competition, split: str, case_id: str, images: Images, masks: dict[str, Any] | None) -> dict[str, Any]:
    """One row of the case table; its group and stratum are not known yet.

    Raises:
        MaskfoldError: the case's files do not agree, or one cannot be read.
    """
    head = check_case(comp, case_id, images, masks)
    image_hash = joined(_digests(Path(comp.root), [case.files for case in images.values()]))
    stack = next(iter(images.values())).slices
    row = {
        "id": case_id, "split": split,
        "images": json.dumps({name: case.files for name, case in images.items()}, ensure_ascii=False),
        "masks": json.dumps(masks, ensure_ascii=False),
        "group": case_id, "stratum": "",
        "shape": json.dumps(head.shape), "spacing": json.dumps(head.spacing), "channels": head.channels,
        "slices": json.dumps([one.z for one in stack] or None),
        "hash": joined([bytes.fromhex(image_hash), *_truth(comp, masks)]), "image_hash": image_hash,
    }
    if comp.on_bad_case == "skip":
        load_image(comp, SimpleNamespace(**row))
        if masks is not None:
            load_mask(comp, SimpleNamespace(**row))
    return row


def _digests(root: Path, files: list[str | list[str]]) -> list[bytes]:
    """Digests of files in order; a stack's are joined to one."""
    return [file_digest(root / one) if isinstance(one, str)
            else bytes.fromhex(joined(file_digest(root / path) for path in one)) for one in files]


def _truth(comp: Competition, masks: dict[str, Any] | None) -> list[bytes]:
    """What the content hash knows of the truth: digests of its files, or the rows' text."""
    if masks is None:
        return []
    if masks["kind"] == "rle":
        return [f"{cls}\0{index}\0{row_text(comp, line)}".encode() for line, cls, index in masks["rows"]]
    return _digests(Path(comp.root), label_files(masks))
