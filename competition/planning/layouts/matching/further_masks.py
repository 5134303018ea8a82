"""Find images with several masks, such as `x_mask.png` and `x_mask_1.png`, and read all masks of an image together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from competition.data.readers import strip_extension
from competition.planning.folder import HostFolder
from competition.planning.layout import Layout
from competition.planning.layouts.content import dimensions_of, read_mask
from competition.planning.words import MASK_WORDS, has_word
from competition.text import format_count

MAX_SHARED = 0.02  # share of the smaller mask that two masks of different objects have in common at most


def is_further_mask(case_id: str, ids: frozenset[str]) -> bool:
    """Return whether an id is a case's id followed by a word for masks, such as `a_mask_1` for the case `a`."""
    cuts = [match.start() for match in re.finditer(r"[_\-. ]", case_id)]
    return any(case_id[:cut] in ids and has_word(case_id[cut:], MASK_WORDS) for cut in cuts)


def with_further_masks(host: HostFolder, layout: Layout, further: Mapping[str, str]) -> Iterator[Layout]:
    """Yield the ways to read the masks if some images have several masks.

    The first layout reads all masks of an image together. The second reads one mask of each image, and ignores the
    others (the further masks). If masks of an image overlap, both layouts are yielded, otherwise only the first. If the
    masks cannot be read together, see `_together`, only the second is yielded.

    Args:
        host: the scanned folder.
        layout: layout with one mask of each image.
        further: files of further masks. The keys are the ids that these files would have if they were images.
    """
    together = _together(layout, further)
    if together is not None:
        count = format_count(len(further), "further mask")
        yield replace(
            layout.with_remarks(f"{_shown(further)}, so all masks of an image are read together"),
            name=f"{layout.name}, all masks of an image together",
            masks=_pattern(layout),
            mask_files={"": together},
            reasons=layout.reasons
            | {"train.masks": f"{count} of images that already have a mask; `*` matches all masks of an image"},
        )
    if together is None or any(_overlap(host, paths) for paths in together.values() if len(paths) > 1):
        yield layout.with_remarks(
            f"{_shown(further)}. These files are not used; if they are masks, write a single mask for each image"
        ).with_explained(further.values())


def _shown(further: Mapping[str, str]) -> str:
    count, file = format_count(len(further), "file"), min(further.values())
    return f"{count}, such as {file}, may be additional masks of images that already have a mask"


def _pattern(layout: Layout) -> str:
    folder, _, name = str(layout.masks).rpartition("/")
    stem = strip_extension(name)
    return f"{folder}/{stem}*{name[len(stem) :]}".lstrip("/")


def _together(layout: Layout, further: Mapping[str, str]) -> dict[str, list[str]] | None:
    """Return all mask files of each case; None if they cannot be read together.

    They cannot be read together if the name of a further mask does not begin with the name of a mask in the layout, or
    if the layout has stacks of masks or one mask file per class.
    """
    if not isinstance(layout.masks, str) or "{z}" in layout.masks or set(layout.mask_files) != {""}:
        return None
    files = {case_id: list(paths) for case_id, paths in layout.mask_files[""].items()}
    stems = {strip_extension(paths[0]): case_id for case_id, paths in files.items()}
    for path in further.values():
        stem = strip_extension(path)
        owner = next((stems[stem[:cut]] for cut in range(len(stem), 0, -1) if stem[:cut] in stems), None)
        if owner is None:
            return None
        files[owner].append(path)
    return files


def _overlap(host: HostFolder, paths: list[str]) -> bool:
    masks = [read_mask(host.root / path, dimensions_of(host.root / path)) for path in paths]
    known = [mask for mask in masks if mask is not None]
    for number, one in enumerate(known):
        for other in known[:number]:
            shared = np.count_nonzero(one & other) if one.shape == other.shape else 0
            if shared > MAX_SHARED * min(np.count_nonzero(one), np.count_nonzero(other)):
                return True
    return False
