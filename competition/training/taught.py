"""Prepared cases that nobody labelled for us: an image with its pseudo-label, a case with another competition's labels."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config import Experiment
from competition.data.cache import RECORD, PreparedCase, cache_key, fetch
from competition.training.teachers import Classroom

if TYPE_CHECKING:
    from competition.config.pseudo import Extra


def label(folder: Path, row: Any, room: Classroom, exp: Experiment, cache: Path) -> dict[str, Any]:
    """One image with its pseudo-label, or only the record of an image in doubt: `build` of `competition.data.cache.fetch`.

    Args:
        folder: empty; takes the files of a prepared case.
        row: a row of the case table.
        room: the teachers.
        exp: the experiment that learns.
        cache: the folder of prepared cases.

    Returns:
        What `case.json` shall say; `pseudo.doubt` is empty for an image that teaches.

    Raises:
        MaskfoldError: the image cannot be read or predicted.
    """
    from competition.data.prepare import prepare_case, write_mask
    from competition.inference.confidence import foreground_entropy, pseudo_mask, self_dice

    assert exp.pseudo is not None
    rule, comp = exp.pseudo.confidence, exp.competition
    probabilities = room.probabilities(row)
    mask = pseudo_mask(probabilities, comp, rule)
    dice, entropy = self_dice(probabilities, comp), foreground_entropy(probabilities, comp)
    doubt = (
        "dice"
        if rule.dice is not None and dice < rule.dice
        else (
            "entropy"
            if rule.entropy is not None and entropy > rule.entropy
            else ("ignored" if (mask == 255).all() else "")
        )
    )
    said = {"pseudo": {"doubt": doubt, "dice": dice, "entropy": entropy, "ignored": float((mask == 255).mean())}}
    if doubt:
        return {"id": row.id, **said}
    source = PreparedCase.open(prepare_case(row, exp, cache))
    _link(source.folder / "image.npy", folder / "image.npy")
    write_mask(folder, mask, source.geometry, exp, row.id, _objects(mask, exp))
    record = json.loads((source.folder / RECORD).read_bytes())
    record.pop("sizes")
    return {**record, **said}


def extra_case(row: Any, extra: Extra, exp: Experiment, cache: Path) -> Path:
    """One case of another competition, prepared as ours are, with our classes.

    Args:
        row: a row of the other competition's case table.
        extra: the section that names it.
        exp: the experiment that learns.
        cache: the folder of prepared cases.

    Returns:
        The folder for `PreparedCase.open`.

    Raises:
        MaskfoldError: the case cannot be read or prepared.
    """
    from competition.data.geometry import Geometry
    from competition.data.prepare import write_image, write_mask
    from competition.data.relabel import relabelled
    from competition.data.table import load_image, load_instances

    theirs, ours = extra.competition, exp.competition
    mapping = extra.mapping(ours.classes)
    known = theirs.model_dump(mode="json", exclude={"root", "test", "submission", "metric", "group", "stratum", "name"})
    parts = ["extra", 1, cache_key(row, exp), known, mapping]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def build(folder: Path) -> dict[str, Any]:
        record = write_image(folder, load_image(theirs, row), exp, str(row.id))
        objects = load_instances(theirs, row) if exp.prepare.boundary else None
        write_mask(
            folder,
            relabelled(theirs, row, ours, mapping),
            Geometry.from_dict(record["geometry"]),
            exp,
            str(row.id),
            objects,
        )
        return record

    return fetch(cache, key, build)


def _objects(mask: np.ndarray, exp: Experiment) -> np.ndarray | None:
    """The objects of a pseudo-label, for the boundary between them: connected components of each class."""
    if exp.prepare.boundary is None:
        return None
    import cc3d

    sure = np.where(mask[0] == 255, 0, mask[0]).astype(np.uint8)
    return np.asarray(cc3d.connected_components(sure, connectivity=8 if sure.ndim == 2 else 26)).astype(np.int32)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, where the disk can; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
