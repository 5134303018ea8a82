"""Read files of equal names in several folders as different cases, such as `siteA/001.png` and `siteB/001.png`.

No pattern gives these files different ids. So this module makes a folder of links to the files. The name of each link
contains the names of the folders, such as `images/siteA_001.png`. This folder is then searched for layouts.
"""

from __future__ import annotations

import itertools
import os
import shutil
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp

from competition.errors import MaskfoldError
from competition.io import disk_full_as_error
from competition.planning.folder import HostFolder
from competition.planning.layout import Layout
from competition.planning.layouts.coco import folder_beside
from competition.planning.words import (
    IMAGE_WORDS,
    MASK_WORDS,
    TEST_WORDS,
    TRAIN_WORDS,
    VALIDATION_WORDS,
    has_word,
    is_role_name,
    tokens,
    without_role_words,
)
from competition.text import format_count

MIN_REPEATED = 0.5  # share of the files whose name occurs in several folders
MAYBE = "\0"  # begins a name that may be no place
Divided = tuple[tuple[str, ...], tuple[str, ...]]  # names of roles, names of places
SPLIT_WORDS = TRAIN_WORDS | TEST_WORDS | VALIDATION_WORDS


@dataclass(frozen=True)
class LinkedFolder(HostFolder):
    """Hold a folder of links to the files of a host.

    Attributes:
        sources: path of the file to which each link points, below the host's root.
        host: the folder with these files.
        places: for the link of each image, the folder names that its own name contains, from outer to inner.
    """

    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    host: HostFolder | None = None
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """Name of the folder to which the links point."""
        return (self.host or self).root.name


def link_equal_names(host: HostFolder) -> LinkedFolder | None:
    """Return a temporary folder of links, if many files of different folders have equal names.

    The folder is deleted when nothing refers to the result any more. Return None if few names repeat, or if the names
    of the links would not be unique.
    """
    divided = _certain_places({path: _divide(path) for path in host.images})
    kept = _varying({path: places for path, (_, places) in divided.items()})
    names = Counter((roles, path.rpartition("/")[2]) for path, (roles, _) in divided.items())
    repeated = sum(count for count in names.values() if count > 1)
    if not any(kept.values()) or repeated < MIN_REPEATED * len(host.images):
        return None
    links = {
        path: "/".join([*divided[path][0], "_".join([*places, path.rpartition("/")[2]])])
        for path, places in kept.items()
    }
    images = set(links.values())
    if len(images) < len(links):
        return None
    sources = {link: path for path, link in links.items()}
    sources |= {path: path for path in host.files if path not in links and path not in images}
    root = Path(mkdtemp(prefix="maskfold-links-"))
    places_of = {links[path]: places for path, places in kept.items()}
    folder = LinkedFolder(root, tuple(sorted(sources)), host.given, host.broken, sources, host, places_of)
    weakref.finalize(folder, shutil.rmtree, root, ignore_errors=True)
    _link(folder, absolute=True)
    return folder


def _divide(path: str) -> Divided:
    """Divide the folders of a path into names of roles and splits (`images`, `train`), and names of places (`siteA`).

    A name such as `siteA_masks` contains both. Its place begins with `MAYBE`, because the rest of such a name may be no
    place, as `left` in `left_frames` beside `ground_truth`.
    """
    roles, places = [], []
    for name in path.split("/")[:-1]:
        has_digit = any(map(str.isdigit, name))
        place = without_role_words(name)
        is_mixed = place not in ("", name) and has_word(name, MASK_WORDS | IMAGE_WORDS)
        if is_role_name(name) and (not has_digit or has_word(name, SPLIT_WORDS)):
            roles.append(name)
        elif is_mixed and not place.replace("_", "").isdigit():
            roles.append("_".join(word for word in tokens(name) if word in MASK_WORDS | IMAGE_WORDS | SPLIT_WORDS))
            places.append(MAYBE + place)
        else:
            places.append(name)
    return tuple(roles), tuple(places)


def _certain_places(divided: Mapping[str, Divided]) -> dict[str, Divided]:
    """Return the roles and places of each path; drop a `MAYBE` place that all folders of a role share."""
    same: dict[tuple[str, ...], set[str]] = {}
    for roles, places in divided.values():
        same.setdefault(roles, set()).update(name for name in places if name.startswith(MAYBE))
    return {
        path: (roles, tuple(name.removeprefix(MAYBE) for name in places if name[:1] != MAYBE or len(same[roles]) > 1))
        for path, (roles, places) in divided.items()
    }


def _varying(places: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the places of each path without those that all paths share."""
    start = _common(places.values())
    rest = {path: names[start:] for path, names in places.items()}
    end = _common(names[::-1] for names in rest.values())
    return {path: names[: len(names) - end] for path, names in rest.items()}


def _common(rows: Iterable[tuple[str, ...]]) -> int:
    """Return how many names all rows have in common at their beginning."""
    columns = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*rows, strict=False))
    return sum(1 for _ in columns)


def _link(folder: LinkedFolder, absolute: bool) -> None:
    """Create the links of `folder.sources` on the disk.

    Args:
        folder: the links and the files to which they point.
        absolute: whether the links contain absolute paths; if False, they contain relative paths.
    """
    assert folder.host is not None
    with disk_full_as_error(folder.root):
        for link, source in folder.sources.items():
            place = folder.root / link
            place.parent.mkdir(parents=True, exist_ok=True)
            target = folder.host.root.absolute() / source
            place.symlink_to(target if absolute else os.path.relpath(target.resolve(), place.parent.resolve()))


def prefer_linked(layouts: Sequence[Layout], linked: Sequence[Layout]) -> list[Layout]:
    """Return the layouts of `linked` with the most cases, if each has more cases than every layout of `layouts`.

    Args:
        layouts: the layouts of the folder itself.
        linked: the layouts of the folder of links, see `link_equal_names`.
    """
    most = max(layout.cases for layout in layouts)
    best = max((layout.cases for layout in linked), default=0)
    return [
        replace(
            layout.with_keys(
                {}, {"root": "links to the files, with the names of the folders in the names of the links"}
            ),
            name=f"{layout.name}, all folders together, with their names in the ids ({max(layout.ids, key=len)})",
        )
        for layout in linked
        if layout.cases == best > most
    ]


def keep_links(layout: Layout, name: str) -> Layout:
    """Write the links of the chosen layout into the folder beside the data; return a layout without links unchanged.

    The links are relative, so that the data and the folder beside them may be moved together.

    Args:
        layout: the chosen layout.
        name: the competition's name, with which the name of the folder begins.

    Raises:
        MaskfoldError: the folder exists and has files that are no links (exit status 2), or cannot be written.
    """
    old = layout.folder
    if not isinstance(old, LinkedFolder):
        return layout
    root = folder_beside(old)[0] / f"{name}-links"
    own = next((path for path in sorted(root.rglob("*")) if not path.is_symlink() and not path.is_dir()), None)
    if own is not None:
        raise MaskfoldError(
            f"{root} is the folder for the links to the data, but contains a file that is no link: "
            f"{own.relative_to(root)}.",
            "Move this file out of that folder, or choose another name with --name NAME.",
            status=2,
        )
    shutil.rmtree(root, ignore_errors=True)
    folder = replace(old, root=root)
    _link(folder, absolute=False)
    count = format_count(len(old.places), "link")
    return replace(layout, folder=folder, notes=(*layout.notes, f"{count} to the images are in {root}"))


def places_of_cases(layout: Layout) -> dict[str, tuple[str, ...]]:
    """Return, for each training case, the folder names that its id contains, followed by the rest of the id.

    Return an empty dictionary if the layout has no links.
    """
    folder = layout.folder
    if not isinstance(folder, LinkedFolder):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for by_id in layout.mask_files.values():
        for case_id, paths in by_id.items():
            places = folder.places.get(paths[0], ()) if paths else ()
            rest = case_id.removeprefix("_".join([*places, ""]))
            found.setdefault(case_id, places if case_id == "_".join(places) else (*places, rest))
    return {case_id: names for case_id, names in found.items() if case_id in set(layout.ids)}
