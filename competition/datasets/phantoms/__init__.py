"""Make phantoms: synthetic data that resemble data sets with restricted access.

Folders, formats, sizes and contrasts of phantoms are similar to those of the real data, but all data are computed from
a seed: no pixel, name, date or identifier belongs to a person.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from competition.datasets.demo import make_folder
from competition.errors import MaskfoldError
from competition.text import join_or, nearest_names

__all__ = ["LAYOUTS", "VERSION", "make_phantom", "next_command"]

VERSION = 1  # version of the pixels; increase it when they change
# default numbers of training and test cases by layout; hipmri counts patients, each with one to three weeks
LAYOUTS = {"spleen": (16, 4), "spine": (16, 4), "a02025": (60, 20), "hipmri": (20, 0)}
MODULES = {"a02025": "skin"}  # module of a layout, if its name differs from the layout

Writer = Callable[[Path, int, int, int], None]


def make_phantom(
    layout: str, folder: Path, seed: int = 0, cases: int | None = None, test_cases: int | None = None
) -> bool:
    """Make phantoms: synthetic data in the layout of a real data set.

    If the process is killed, the folder does not exist or has its old content.

    Args:
        layout: `spleen` (CT as DICOM), `spine` (NIfTI), `a02025` (skin photographs) or `hipmri` (MR of the pelvis);
            the docstring of `write` in the module of each layout lists the files.
        folder: the folder to create; it replaces older phantoms of this layout.
        seed: random seed; the same seed gives the same pixels on every machine.
        cases: number of training cases (hipmri: patients); None means the layout's default.
        test_cases: number of test cases; None means the layout's default. hipmri has no test cases.

    Returns:
        True if the phantoms were made, False if the same phantoms already exist.

    Raises:
        MaskfoldError: the layout or a number is invalid (exit status 2), or the folder has other content or cannot be
            written.

    Example:
        >>> make_phantom("spine", Path("data/spine"))  # doctest: +SKIP
        True
    """
    default_cases, default_test_cases = LAYOUTS[_check_layout(layout)]
    case_count = default_cases if cases is None else cases
    test_count = default_test_cases if test_cases is None else test_cases
    valid_test_count = test_count >= 1 if default_test_cases else test_count == 0
    if case_count < 1 or not valid_test_count or seed < 0:
        expected = (
            "at least one training case, one test case" if default_test_cases else "at least one patient, no test cases"
        )
        raise MaskfoldError(
            f"{layout} phantoms: found {case_count} {'training cases' if default_test_cases else 'patients'}, "
            f"{test_count} test cases and seed {seed}, expected {expected} and a seed of at least 0.",
            "On the command line, change --seed. In Python, change the arguments cases, test_cases or seed.",
            status=2,
        )
    write: Writer = import_module(f"{__name__}.{MODULES.get(layout, layout)}").write
    marker = {
        "demo": "phantom",
        "layout": layout,
        "version": VERSION,
        "seed": seed,
        "cases": case_count,
        "test_cases": test_count,
    }
    return make_folder(folder, marker, lambda new_folder: write(new_folder, case_count, test_count, seed))


def next_command(layout: str, folder: Path) -> str:
    """Return the shell command that the user runs next, after the phantoms are made.

    Args:
        layout: the layout, as for `make_phantom`.
        folder: the folder of the phantoms.

    Raises:
        MaskfoldError: the layout does not exist (exit status 2).

    Example:
        >>> next_command("spine", Path("data/spine"))
        'maskfold explore experiments/spine/competition.yaml'
    """
    if _check_layout(layout) == "spleen":

        def convert_command(part: str, images: str) -> str:
            source, output = shlex.quote(str(folder / "dicom" / part)), shlex.quote(str(folder))
            return f"maskfold dicom {source} -o {output} --layout {images}"

        train, test = convert_command("train", "imagesTr"), convert_command("test", "imagesTs")
        return f'{train} --labels "spleen labels" && {test}'
    override = "" if folder == Path("data") / layout else f" root={shlex.quote(str(folder))}"
    return f"maskfold explore experiments/{layout}/competition.yaml{override}"


def _check_layout(layout: str) -> str:
    """Return the layout if it exists.

    Raises:
        MaskfoldError: the layout does not exist (exit status 2).
    """
    if layout not in LAYOUTS:
        matches = nearest_names(layout, LAYOUTS)
        raise MaskfoldError(
            f"--layout: found {layout!r}, expected {join_or(LAYOUTS)}.",
            f"Did you mean {matches[0]}?" if matches else f"Use --layout {join_or(LAYOUTS)}.",
            status=2,
        )
    return layout
