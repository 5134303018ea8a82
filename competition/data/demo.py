"""Demo competitions: small, made on the spot, the same pixels for a seed on every machine.

A demo's folder looks like one that a host gave: training cases with their masks, test cases without, and
`sample_submission.csv`. It also holds `solution.csv`, the hidden truth of the test cases, so that a submission can be
scored on the spot. Training, inference and tuning never read that file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.demo_folder import MARKER, case_ids, make_folder, write_nifti, write_png, write_tables

__all__ = ["DEFAULT_SEED", "DEMOS", "MARKER", "VERSION", "ensure_demo", "is_demo", "make_demo", "make_demo_2d", "make_demo_3d",
           "make_demo_gate"]

VERSION = 1  # of the pictures; raise it when they change
DEFAULT_SEED = 0

Array = np.ndarray[Any, Any]


def make_demo(name: str, folder: Path, seed: int = DEFAULT_SEED, cases: int | None = None,
              test_cases: int | None = None) -> bool:
    """Make a demo competition, whole or not at all.

    Args:
        name: `2d`, `3d` or `gate`.
        folder: where it will lie. An older demo there is replaced.
        seed: the same seed gives the same competition.
        cases: number of training cases; None is the demo's own.
        test_cases: number of test cases; None is the demo's own.

    Returns:
        True if it was made, False if the same one was there already.

    Raises:
        MaskfoldError: there is no such demo, the folder holds something else, or it cannot be written.

    Example:
        >>> make_demo("2d", Path("data/demo2d"))  # doctest: +SKIP
        True
    """
    if name not in DEMOS:
        raise MaskfoldError(f"There is no demo {name!r}.", f"Take one of: {', '.join(DEMOS)}; or give the layout of real data "
                            f"that phantoms shall have, e.g. `maskfold demo {name} --layout spine`.", status=2)
    maker, usual = DEMOS[name]
    counts = (usual[0] if cases is None else cases, usual[1] if test_cases is None else test_cases)
    if min(counts) < 1 or seed < 0:
        raise MaskfoldError(f"A demo of {counts[0]} training and {counts[1]} test cases with the seed {seed} cannot be made.",
                            "Ask for at least one case of each and a seed that is not negative.", status=2)
    marker = {"demo": name, "version": VERSION, "seed": seed, "cases": counts[0], "test_cases": counts[1]}
    return make_folder(folder, marker, lambda new: maker(new, *counts, seed))


def is_demo(comp: Competition) -> bool:
    """Whether a competition is one of ours."""
    return comp.name.removeprefix("demo") in DEMOS and comp.name.startswith("demo")


def ensure_demo(comp: Competition) -> bool:
    """Make the demo that a competition stands for, if it is one and its root is not there yet.

    Returns:
        True if it was made.
    """
    if not is_demo(comp) or comp.root.exists():
        return False
    return make_demo(comp.name.removeprefix("demo"), comp.root)


def make_demo_2d(folder: Path, cases: int = 72, test_cases: int = 24, seed: int = DEFAULT_SEED) -> None:
    """Write the 2D demo into an existing, empty folder.

    `images/{id}.png` (uint8 grey, mixed sizes) with `masks/{id}.png` (uint8: 0 background, 1 ring, 2 grain),
    `test/{id}.png`, `sample_submission.csv` and `solution.csv`.
    """
    from competition.data.demo2d import CLASSES, KINDS, picture

    truth = _pictures(folder, case_ids("picture", cases + test_cases, seed), cases,
                      lambda index, place: picture(np.random.default_rng([seed, 2, index]), KINDS[place % len(KINDS)]))
    write_tables(folder, truth, CLASSES, seed)


def make_demo_3d(folder: Path, cases: int = 24, test_cases: int = 8, seed: int = DEFAULT_SEED) -> None:
    """Write the 3D demo into an existing, empty folder.

    `imagesTr/{id}.nii.gz` (int16, anisotropic, orientations mixed) with `labelsTr/{id}.nii.gz` (uint8: 0 background,
    1 liver, 2 spleen), `imagesTs/{id}.nii.gz`, `sample_submission.csv` and `solution.csv`. Runs count along the array
    as the file stores it, as hosts do.
    """
    from competition.data.demo3d import CLASSES, KINDS, ORIENTATIONS, affine_of, stored, volume

    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir()
    truth: dict[str, Array] = {}
    for index, case in enumerate(case_ids("scan", cases + test_cases, seed)):
        place = index if index < cases else index - cases
        rng = np.random.default_rng([seed, 3, index])
        image, labels, spacing = volume(rng, KINDS[place % len(KINDS)])
        affine, codes = affine_of(rng, image.shape, spacing), ORIENTATIONS[index % len(ORIENTATIONS)]
        image, file_affine = stored(image, affine, codes)
        labels, _ = stored(labels, affine, codes)
        if index < cases:
            write_nifti(folder / "imagesTr" / f"{case}.nii.gz", image, file_affine)
            write_nifti(folder / "labelsTr" / f"{case}.nii.gz", labels, file_affine)
        else:
            write_nifti(folder / "imagesTs" / f"{case}.nii.gz", image, file_affine)
            truth[case] = labels
    write_tables(folder, truth, CLASSES, seed)


def make_demo_gate(folder: Path, cases: int = 120, test_cases: int = 30, seed: int = DEFAULT_SEED) -> None:
    """Write the demo of the empty gate, a third of whose cases are empty, into an existing, empty folder.

    `images/{id}.png` (uint8 grey) with `masks/{id}.png` (uint8: 0 background, 1 lesion), `test/{id}.png`,
    `sample_submission.csv` and `solution.csv`.
    """
    from competition.data.demo_gate import CLASSES, KINDS, picture

    truth = _pictures(folder, case_ids("scan", cases + test_cases, seed), cases,
                      lambda index, place: picture(np.random.default_rng([seed, 4, index]), KINDS[place % len(KINDS)]))
    write_tables(folder, truth, CLASSES, seed)


def _pictures(folder: Path, ids: Sequence[str], cases: int, draw: Callable[[int, int], tuple[Array, Array]]) -> dict[str, Array]:
    """Draw the cases by (index, place in its part) and write them; the label maps of the test cases, by id."""
    for part in ("images", "masks", "test"):
        (folder / part).mkdir()
    truth: dict[str, Array] = {}
    for index, case in enumerate(ids):
        image, labels = draw(index, index if index < cases else index - cases)
        if index < cases:
            write_png(folder / "images" / f"{case}.png", image)
            write_png(folder / "masks" / f"{case}.png", labels)
        else:
            write_png(folder / "test" / f"{case}.png", image)
            truth[case] = labels
    return truth


Maker = Callable[[Path, int, int, int], None]
DEMOS: dict[str, tuple[Maker, tuple[int, int]]] = {"2d": (make_demo_2d, (72, 24)), "3d": (make_demo_3d, (24, 8)),
                                               "gate": (make_demo_gate, (120, 30))}
