"""Make demo competitions: small synthetic data sets, whose pixels depend only on a seed.

The folder of a demo contains what the host of a competition provides: training cases with masks, test cases without
masks, and `sample_submission.csv`. The folder also contains `solution.csv`, the hidden truth of the test cases, so that
users can score a submission. Training, inference and tuning never read this file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np

from competition.config.competition import Competition
from competition.config.yaml import parse_overrides
from competition.errors import MaskfoldError
from competition.io import atomic_write, ensure_writable, temporary_folder

MARKER = ".maskfold-demo.json"
PLACEHOLDER = "1 1"  # text that hosts write into the mask column of the sample submission

Array = np.ndarray[Any, Any]


def make_folder(folder: Path, marker: dict[str, Any], fill: Callable[[Path], None]) -> bool:
    """Make a folder atomically: fill a temporary folder next to it, write a marker file, and rename the folder.

    Args:
        folder: the folder to create. If it contains another demo (for phantoms: other phantoms of the same layout), the
            content is replaced.
        marker: description of the content (name, version, seed, numbers of cases). Folders with equal markers have
            equal files.
        fill: function that receives the path of an empty folder and writes all files there.

    Returns:
        True if the folder was made, False if it already contains an equal marker.

    Raises:
        MaskfoldError: the folder has other content, or cannot be written.
    """
    try:
        if _is_up_to_date(folder, marker):
            return False
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as temporary:
            new = temporary / "new"
            new.mkdir()
            fill(new)
            (new / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
            if folder.exists():
                folder.rename(temporary / "old")
            new.rename(folder)
    except OSError as error:
        if _read_marker(folder) == marker:  # another process made the folder at the same time
            return False
        raise MaskfoldError(
            f"The demo data cannot be written to {folder}: {error.strerror or error}.",
            "Choose a folder with write permission, or free some space.",
        ) from error
    return True


def shuffled_case_ids(prefix: str, count: int, seed: int) -> list[str]:
    """Return shuffled case ids, so that an id reveals neither the content of a case nor whether it is a test case."""
    numbers = np.random.default_rng([seed, 0]).permutation(count) + 1
    return [f"{prefix}_{number:03d}" for number in numbers]


def write_png(path: Path, array: Array) -> None:
    """Write a (H, W) uint8 array as PNG."""
    import cv2

    _, data = cv2.imencode(".png", array)
    path.write_bytes(data.tobytes())


def write_nifti(path: Path, array: Array, affine: Array) -> None:
    """Write an (X, Y, Z) array as NIfTI, with its affine (4, 4) in mm."""
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def write_tables(
    folder: Path,
    truth: dict[str, Array],
    classes: Sequence[str],
    seed: int,
    columns: Sequence[str] = ("id", "class", "predicted"),
) -> None:
    """Write `sample_submission.csv` and `solution.csv`: one row per test case and class, in the same shuffled order.

    Args:
        folder: the folder to which the files are written.
        truth: label array (*spatial) of each test case, by case id; the label 1 is the first of `classes`.
        classes: names of the classes.
        seed: random seed of the order of the rows.
        columns: names of the columns. If there are only two names, the tables have no class column.
    """
    from competition.rle import encode
    from competition.rle_text import RleFormat

    rows = [(case, number, name) for case in sorted(truth) for number, name in enumerate(classes, 1)]
    order = np.random.default_rng([seed, 1]).permutation(len(rows))
    rle_format = RleFormat()  # column order, base 1, empty text for an empty mask
    for file, is_solution in (("sample_submission.csv", False), ("solution.csv", True)):
        with open(folder / file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            for case, number, name in (rows[index] for index in order):
                text = encode(truth[case] == number, rle_format) if is_solution else PLACEHOLDER
                writer.writerow((case, name, text) if len(columns) == 3 else (case, text))


def _is_up_to_date(folder: Path, marker: dict[str, Any]) -> bool:
    """Return whether the content of a folder's marker file, which describes the demo in the folder, equals `marker`.

    Raises:
        MaskfoldError: the folder has content that is not a demo, or phantoms of another layout.
        OSError: the folder cannot be read.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / MARKER).is_file():
        raise MaskfoldError(
            f"{folder} exists and was not written by maskfold demo, so it is not replaced.",
            f"Choose another folder, or move {folder} away.",
        )
    existing = _read_marker(folder)
    if existing is not None and existing.get("layout") != marker.get("layout"):
        content = _content(existing)
        raise MaskfoldError(
            f"{folder} contains {content}, expected {_content(marker)} or no data.",
            f"Choose another folder, or delete {folder}.",
        )
    return existing == marker


def _content(marker: dict[str, Any]) -> str:
    """Describe for messages what a folder contains, according to its marker file, e.g. `the demo 2d`."""
    layout = marker.get("layout")
    return f"phantoms in the layout of {layout}" if layout else f"the demo {marker.get('demo')}"


def _read_marker(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's marker file, which describes the demo; None for a missing or damaged file."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return marker if isinstance(marker, dict) else None


# Demo competitions

VERSION = 1  # version of the pixels; increase it when they change
DEFAULT_SEED = 0
# Folder and experiment of each demo and each layout of phantoms, in `experiments` and, with the same content, in
# `competition/datasets/yaml`.
EXPERIMENTS = {
    "2d": ("demo2d", "unet2d.yaml"),
    "3d": ("demo3d", "unet3d.yaml"),
    "gate": ("demo_gate", "unet2d.yaml"),
    "spleen": ("spleen", "unet3d.yaml"),
    "spine": ("spine", "unet3d.yaml"),
    "a02025": ("a02025", "unet2d.yaml"),
    "hipmri": ("hipmri", "unet3d.yaml"),
}


def make_demo(
    name: str, folder: Path, seed: int = DEFAULT_SEED, cases: int | None = None, test_cases: int | None = None
) -> bool:
    """Make a demo competition.

    If the process is killed before the end, the folder does not exist or has its old content.

    Args:
        name: `2d`, `3d` or `gate`.
        folder: the folder to create; it replaces an older demo.
        seed: random seed; the same seed gives the same competition.
        cases: number of training cases; None means the demo's default.
        test_cases: number of test cases; None means the demo's default.

    Returns:
        True if the demo was made, False if the same demo already exists.

    Raises:
        MaskfoldError: the demo is unknown, or the folder has other content or cannot be written.

    Example:
        >>> make_demo("2d", Path("data/demo2d"))  # doctest: +SKIP
        True
    """
    if name not in DEMOS:
        raise MaskfoldError(
            f"There is no demo {name!r}, expected one of {', '.join(EXPERIMENTS)}.",
            f"Use one of these names, e.g. `maskfold demo spine`. To write phantoms to data/{name}, use `maskfold demo "
            f"{name} --layout spine`.",
            status=2,
        )
    maker, (default_cases, default_test_cases) = DEMOS[name]
    case_count = default_cases if cases is None else cases
    test_count = default_test_cases if test_cases is None else test_cases
    if min(case_count, test_count) < 1 or seed < 0:
        raise MaskfoldError(
            f"The demo {name} cannot be made: found {case_count} training cases, {test_count} test cases and seed "
            f"{seed}, expected at least one training case, one test case and a seed of at least 0.",
            "On the command line, change --seed. In Python, change the arguments cases, test_cases or seed.",
            status=2,
        )
    marker = {"demo": name, "version": VERSION, "seed": seed, "cases": case_count, "test_cases": test_count}
    return make_folder(folder, marker, lambda new_folder: maker(new_folder, case_count, test_count, seed))


def is_demo(comp: Competition) -> bool:
    """Return whether a competition is a demo, by its name: demo2d, demo3d or demogate."""
    return comp.name.removeprefix("demo") in DEMOS and comp.name.startswith("demo")


def ensure_demo(comp: Competition, overrides: Sequence[str] = ()) -> bool:
    """Make the data of a competition if it is a demo and its root folder does not exist.

    Args:
        comp: the competition.
        overrides: the `key=value` arguments with which the competition was loaded. If an override sets the root, no
            data are made, because the path may be mistyped.

    Returns:
        True if the data were made.
    """
    root_is_set = any(override.key == "competition.root" for override in parse_overrides(overrides))
    if not is_demo(comp) or comp.root.exists() or root_is_set:
        return False
    return make_demo(comp.name.removeprefix("demo"), comp.root)


def write_demo_experiment(name: str, experiments: Path = Path("experiments")) -> Path:
    """Write the missing YAML files of a demo or of phantoms, and return the path of the experiment.

    Args:
        name: `2d`, `3d` or `gate`, or a layout of `competition.datasets.phantoms`.
        experiments: folder that contains a folder for each competition; existing files in it are kept.

    Raises:
        MaskfoldError: a file cannot be written.
    """
    folder, experiment = EXPERIMENTS[name]
    for source in (resources.files("competition.datasets") / "yaml" / folder).iterdir():
        path, content = experiments / folder / source.name, source.read_bytes()
        if not path.exists():
            ensure_writable(path.parent)
            atomic_write(path, partial(_write_bytes, content))
    return experiments / folder / experiment


def _write_bytes(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def make_demo_2d(folder: Path, cases: int = 72, test_cases: int = 24, seed: int = DEFAULT_SEED) -> None:
    """Write the 2D demo into an existing, empty folder.

    The files are `images/{id}.png` (uint8 grey, mixed sizes) with `masks/{id}.png` (uint8: 0 background, 1 ring, 2
    grain), `test/{id}.png`, `sample_submission.csv` and `solution.csv`.
    """
    from competition.datasets.demo_images import CLASSES, KINDS, draw_image

    def draw(index: int, index_in_split: int) -> tuple[Array, Array]:
        return draw_image(np.random.default_rng([seed, 2, index]), KINDS[index_in_split % len(KINDS)])

    truth = _write_images(folder, shuffled_case_ids("picture", cases + test_cases, seed), cases, draw)
    write_tables(folder, truth, CLASSES, seed)


def make_demo_3d(folder: Path, cases: int = 24, test_cases: int = 8, seed: int = DEFAULT_SEED) -> None:
    """Write the 3D demo into an existing, empty folder.

    The files are `imagesTr/{id}.nii.gz` (int16, anisotropic, mixed orientations) with `labelsTr/{id}.nii.gz` (uint8: 0
    background, 1 liver, 2 spleen), `imagesTs/{id}.nii.gz`, `sample_submission.csv` and `solution.csv`. As in most
    competitions, the run lengths in the tables use the order of the axes in the image file.
    """
    from competition.datasets.demo_volumes import CLASSES, KINDS, ORIENTATIONS, draw_volume, random_affine, reorient

    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir()
    truth: dict[str, Array] = {}
    for index, case in enumerate(shuffled_case_ids("scan", cases + test_cases, seed)):
        index_in_split = index if index < cases else index - cases
        rng = np.random.default_rng([seed, 3, index])
        image, labels, spacing = draw_volume(rng, KINDS[index_in_split % len(KINDS)])
        affine, codes = random_affine(rng, image.shape, spacing), ORIENTATIONS[index % len(ORIENTATIONS)]
        image, file_affine = reorient(image, affine, codes)
        labels, _ = reorient(labels, affine, codes)
        if index < cases:
            write_nifti(folder / "imagesTr" / f"{case}.nii.gz", image, file_affine)
            write_nifti(folder / "labelsTr" / f"{case}.nii.gz", labels, file_affine)
        else:
            write_nifti(folder / "imagesTs" / f"{case}.nii.gz", image, file_affine)
            truth[case] = labels
    write_tables(folder, truth, CLASSES, seed)


def make_demo_gate(folder: Path, cases: int = 120, test_cases: int = 30, seed: int = DEFAULT_SEED) -> None:
    """Write the demo of the presence head into an existing, empty folder.

    A presence head predicts whether an image has a lesion; a third of the images have none. The files are
    `images/{id}.png` (uint8 grey) with `masks/{id}.png` (uint8: 0 background, 1 lesion), `test/{id}.png`,
    `sample_submission.csv` and `solution.csv`.
    """
    from competition.datasets.demo_images import GATE_CLASSES, GATE_KINDS, draw_gate_image

    def draw(index: int, index_in_split: int) -> tuple[Array, Array]:
        return draw_gate_image(np.random.default_rng([seed, 4, index]), GATE_KINDS[index_in_split % len(GATE_KINDS)])

    truth = _write_images(folder, shuffled_case_ids("scan", cases + test_cases, seed), cases, draw)
    write_tables(folder, truth, GATE_CLASSES, seed)


def _write_images(
    folder: Path, ids: Sequence[str], cases: int, draw: Callable[[int, int], tuple[Array, Array]]
) -> dict[str, Array]:
    """Draw and write the cases; return the label maps of the test cases by id.

    Args:
        folder: folder of the demo.
        ids: ids of the training cases, then of the test cases.
        cases: number of training cases.
        draw: function that draws the image and the label map of a case. It receives two indices of the case: among
            all cases, and among the training cases or the test cases.
    """
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
# function, default number of training cases and default number of test cases of each demo
DEMOS: dict[str, tuple[Maker, tuple[int, int]]] = {
    "2d": (make_demo_2d, (72, 24)),
    "3d": (make_demo_3d, (24, 8)),
    "gate": (make_demo_gate, (120, 30)),
}
