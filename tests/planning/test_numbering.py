"""Label files whose values number objects, with and without gaps, and maps of classes that look similar."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from competition.errors import MaskfoldError
from competition.planning.choice import order_candidates
from competition.planning.classes.numbering import parts_of
from competition.planning.find import find_layouts
from competition.planning.folder import scan_folder
from competition.planning.layout import Layout
from tests.host import write_nifti, write_png, write_text

SIZE = (128, 128)
Make = Callable[[np.random.Generator, int], np.ndarray]  # the mask of a case, from its number


def discs(rng: np.random.Generator, radii: Iterable[float]) -> list[np.ndarray]:
    """Return discs (H, W) bool of these radii that do not overlap, without those for which no place is found."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    used, found = np.zeros(SIZE, bool), []
    for radius in radii:
        for row, column in rng.uniform(radius, SIZE[0] - radius, (50, 2)):
            disc = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
            if not (used & disc).any():
                used |= disc
                found.append(disc)
                break
    return found


def drawn(parts: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint16)
    for value, part in parts:
        mask[part] = value
    return mask


def objects(low: int, high: int, removed: float, first: int = 1) -> Make:
    """Return a function that draws `low` to `high` numbered discs of random sizes, and removes a share of them."""

    def make(rng: np.random.Generator, number: int) -> np.ndarray:
        found = discs(rng, rng.uniform(2.5, 6, rng.integers(low, high)))
        kept = [(value, disc) for value, disc in enumerate(found, first) if rng.random() >= removed]
        return drawn(kept or [(first, found[0])])

    return make


def crops(rng: np.random.Generator, number: int) -> np.ndarray:
    return drawn(enumerate(discs(rng, rng.uniform(2.5, 6, rng.integers(12, 30))), 1 + 40 * number))


def with_border(make: Make) -> Make:
    """Return a function that surrounds the objects of another with 255, as Pascal VOC does."""

    def bordered(rng: np.random.Generator, number: int) -> np.ndarray:
        mask = make(rng, number)
        near = sum(np.roll(mask > 0, shift, axis) for axis in (0, 1) for shift in (-1, 1)) > 0
        return np.where(near & (mask == 0), 255, mask).astype(np.uint8)

    return bordered


def organs(rng: np.random.Generator, number: int) -> np.ndarray:
    """Draw about two thirds of 12 organs, each with its own size, as in scans of different parts of a body."""
    sizes = np.linspace(3, 12, 12)[np.random.default_rng(5).permutation(12)]
    chosen = [value for value in range(1, 13) if rng.random() < 0.65] or [1]
    return drawn(zip(chosen, discs(rng, sizes[np.array(chosen) - 1] * rng.uniform(0.95, 1.05)), strict=False))


def vertebrae(rng: np.random.Generator, number: int) -> np.ndarray:
    """Draw a run of the vertebrae 1 to 24; the lower ones are larger."""
    mask, row, first = np.zeros(SIZE, np.uint8), 3, int(rng.integers(1, 15))
    for value in range(first, min(25, first + int(rng.integers(5, 10)))):
        height = 5 + value // 4
        mask[row : row + height, 40 : 60 + value] = value
        row += height + 2
    return mask


def scene(rng: np.random.Generator, number: int) -> np.ndarray:
    """Draw several parts of each of 7 of 20 classes."""
    values = rng.permutation(20)[:7] + 1
    return drawn((int(value), disc) for value in values for disc in discs(rng, rng.uniform(4, 12, 4)))


def spaced(*values: int) -> Make:
    def make(rng: np.random.Generator, number: int) -> np.ndarray:
        chosen = [value for value in values if rng.random() < 0.7] or [values[0]]
        return drawn(zip(chosen, discs(rng, rng.uniform(4, 14, len(chosen))), strict=False))

    return make


def candidates(root: Path, make: Make, masks: str = "masks", cases: int = 14) -> list[Layout]:
    rng = np.random.default_rng(11)
    for number in range(cases):
        mask = make(rng, number)
        image = np.clip(rng.normal(90, 12, SIZE) + 70 * (mask > 0), 0, 255).astype(np.uint8)
        write_png(root / "images" / f"c{number:02d}.png", image)
        write_png(root / masks / f"c{number:02d}.png", mask)
    return order_candidates(find_layouts(scan_folder(root)))


def kinds(layouts: list[Layout]) -> list[str]:
    return [
        ("objects" if layout.keys.get("train.object_numbers") else "classes")
        + (" but 255" if "ignore" in layout.keys else "")
        for layout in layouts
    ]


@pytest.mark.parametrize(
    "make", [objects(5, 40, 0), objects(4, 60, 0.3), crops], ids=["without gaps", "with gaps", "parts of one image"]
)
def test_values_that_count_number_objects(make: Make, tmp_path: Path) -> None:
    (layout,) = candidates(tmp_path, make)
    assert layout.keys["train.object_numbers"] and layout.keys["instances"] and "label_values" not in layout.keys
    assert layout.keys["classes"] == ["foreground"]


@pytest.mark.parametrize(
    "make",
    [spaced(50, 100, 255), spaced(10, 20), spaced(10, 20, 40, 80), scene],
    ids=["grey levels", "10 and 20", "10 to 80", "scenes"],
)
def test_maps_of_classes_are_no_objects(make: Make, tmp_path: Path) -> None:
    found = kinds(candidates(tmp_path, make))
    assert found and not any(kind.startswith("objects") for kind in found)


@pytest.mark.parametrize(
    "make",
    [objects(2, 6, 0.2), objects(20, 26, 0.2), organs, vertebrae],
    ids=["few objects", "similar counts", "organs", "vertebrae"],
)
def test_values_that_may_be_objects_or_classes_are_a_question(make: Make, tmp_path: Path) -> None:
    layouts = candidates(tmp_path, make)
    assert kinds(layouts) == ["classes", "objects"]
    assert "each value is a class" in layouts[0].name and "number the objects" in layouts[1].name


def test_a_border_of_255_around_objects_is_a_question(tmp_path: Path) -> None:
    assert kinds(candidates(tmp_path, with_border(objects(3, 14, 0)))) == ["objects but 255", "objects"]


def test_a_folder_that_says_instances_settles_it(tmp_path: Path) -> None:
    assert kinds(candidates(tmp_path / "few", objects(2, 6, 0.2), "instance_masks")) == ["objects"]
    assert kinds(candidates(tmp_path / "sem", objects(4, 60, 0.3), "semantic_masks")) == ["classes"]


def test_a_file_with_the_name_of_each_value_settles_it(tmp_path: Path) -> None:
    write_text(tmp_path / "classes.txt", "".join(f"{value}: organ {value}\n" for value in range(1, 13)))
    (layout,) = candidates(tmp_path, organs)
    assert layout.keys["classes"] == [f"organ {value}" for value in range(1, 13)]


def test_too_many_values_for_classes_are_refused_unless_they_number_objects(tmp_path: Path) -> None:
    def tracks(rng: np.random.Generator, number: int) -> np.ndarray:
        values = rng.permutation(np.arange(1, 400))[:40]
        return drawn((int(value), disc) for value, disc in zip(values, discs(rng, 2 + values / 80), strict=False))

    with pytest.raises(MaskfoldError, match="expected at most 250 classes") as caught:
        candidates(tmp_path / "tracks", tracks, cases=30)
    assert caught.value.status == 2 and "train.object_numbers: true" in caught.value.hint
    assert kinds(candidates(tmp_path / "named", tracks, "instances", cases=30)) == ["objects"]


@pytest.mark.parametrize("stacked", [False, True], ids=["volumes", "slices"])
def test_objects_of_volumes_are_numbered_over_all_slices(stacked: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for number in range(6):
        mask = np.zeros((48, 48, 12), np.uint16)
        for value, corner in enumerate(rng.permutation(32)[: 6 + 5 * number], start=1):
            row, column, z = corner % 4 * 12, corner // 4 % 4 * 12, corner // 16 * 6
            mask[row : row + rng.integers(6, 11), column : column + 10, z : z + 5] = value
        mask[mask % 4 == 2] = 0
        image = np.clip(rng.normal(90, 12, mask.shape) + 70 * (mask > 0), 0, 255).astype(np.uint8)
        for folder, array in (("images", image), ("masks", mask)):
            if not stacked:
                write_nifti(tmp_path / folder / f"c{number}.nii.gz", array.astype(np.int16))
            for z in range(12 if stacked else 0):
                write_png(tmp_path / folder / f"c{number}" / f"slice_{z}.png", array[:, :, z])
    (layout,) = order_candidates(find_layouts(scan_folder(tmp_path)))
    assert layout.keys["train.object_numbers"] and layout.dimensions == 3 and layout.cases == 6


def test_parts() -> None:
    mask = np.zeros((20, 20), np.int64)
    mask[2:6, 2:6], mask[10, 10], mask[0:3, 12:15], mask[8:10, 2:4], mask[15:17, 2:4] = 3, 3, 70000, 9, 9
    found = {part.value: part for part in parts_of(mask)}
    assert [found[value].size for value in (3, 9, 70000)] == [17, 8, 9]
    assert found[3].is_single is False and found[9].is_single is False and found[70000].is_single
    assert found[3].is_inner and not found[70000].is_inner
    assert [part.value for part in parts_of(mask, ignored=9)] == [3, 70000]
    assert [part.value for part in parts_of(mask + 1)] == [1, 4, 10, 70001]
