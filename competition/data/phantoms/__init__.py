"""Phantoms: drawn data with the folders, formats, sizes, spacings, contrast and difficulty of data that cannot be had.

Everything in them is drawn by formulas from a seed: no pixel, name, date or identifier comes from a person.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest, one_of
from competition.data.demo_folder import make_folder

__all__ = ["LAYOUTS", "VERSION", "make_phantom", "next_command"]

VERSION = 1  # of the pixels; raise it when they change
LAYOUTS = {  # training cases and test cases; the numbers of hipmri are patients, who come for one to three weeks
    "spleen": (16, 4), "spine": (16, 4), "a02025": (60, 20), "hipmri": (20, 0),
}
MODULES = {"a02025": "skin"}  # named as the layout where it is not here

Filler = Callable[[Path, int, int, int], None]


def make_phantom(layout: str, folder: Path, seed: int = 0, cases: int | None = None, test_cases: int | None = None) -> bool:
    """Make phantoms, whole or not at all.

    Args:
        layout: `spleen` (CT as DICOM), `spine` (NIfTI), `a02025` (skin pictures) or `hipmri` (MR of the pelvis); each
            one's files are described by `write` in its module.
        folder: where they will lie. Older phantoms of this layout are replaced.
        seed: the same seed gives the same pixels on every machine.
        cases: number of training cases (hipmri: patients); None is the layout's own.
        test_cases: number of test cases; None is the layout's own. hipmri has none.

    Returns:
        True if they were made, False if the same ones were there already.

    Raises:
        MaskfoldError: there is no such layout or no such number (status 2), the folder holds something else, or it
            cannot be written.

    Example:
        >>> make_phantom("spine", Path("data/spine"))  # doctest: +SKIP
        True
    """
    usual = LAYOUTS[_known(layout)]
    counts = (usual[0] if cases is None else cases, usual[1] if test_cases is None else test_cases)
    if counts[0] < 1 or (counts[1] != 0 if not usual[1] else counts[1] < 1) or seed < 0:
        least = "one case of each kind" if usual[1] else "one patient, for no test case,"
        raise MaskfoldError(f"{counts[0]} training and {counts[1]} test cases in the layout of {layout} with the seed {seed} "
                            "cannot be made.", f"Ask for at least {least} and a seed that is not negative.", status=2)
    write: Filler = import_module(f"{__name__}.{MODULES.get(layout, layout)}").write
    marker = {"demo": "phantom", "layout": layout, "version": VERSION, "seed": seed, "cases": counts[0],
              "test_cases": counts[1]}
    return make_folder(folder, marker, lambda new: write(new, *counts, seed))


def next_command(layout: str, folder: Path) -> str:
    """What to type after the phantoms were made, ready for a shell.

    Args:
        layout: as for `make_phantom`.
        folder: where the phantoms lie.

    Raises:
        MaskfoldError: there is no such layout (status 2).

    Example:
        >>> next_command("spine", Path("data/spine"))
        'maskfold explore experiments/spine/competition.yaml'
    """
    if _known(layout) == "spleen":
        def line(part: str, images: str) -> str:
            return f"maskfold dicom {shlex.quote(str(folder / 'dicom' / part))} -o {shlex.quote(str(folder))} --layout {images}"

        return f'{line("train", "imagesTr")} --labels "spleen labels" && {line("test", "imagesTs")}'
    elsewhere = "" if folder == Path("data") / layout else f" root={shlex.quote(str(folder))}"
    return f"maskfold explore experiments/{layout}/competition.yaml{elsewhere}"


def _known(layout: str) -> str:
    """The layout's name, if there is one.

    Raises:
        MaskfoldError: otherwise (status 2).
    """
    if layout not in LAYOUTS:
        near = nearest(layout, LAYOUTS)
        raise MaskfoldError(f"There are no phantoms in the layout of {layout!r}.",
                            f"Did you mean {near[0]}?" if near else f"Take {one_of(LAYOUTS)}.", status=2)
    return layout
