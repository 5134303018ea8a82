"""Objects are written, checked and read as runs: the same bytes and messages as with a picture for each object."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from competition.config.profiles import PROFILES, Profile
from competition.data.objects import find_covered
from competition.errors import MaskfoldError
from competition.postprocessing.case import CasePrediction
from competition.rle import decode, decode_labels, decode_overlapping_labels, encode
from competition.rle_text import RleError, RleFormat
from competition.submission import label_files, writer
from competition.submission.mask_file import MaskFile, RowIndex
from competition.submission.reader import IdLookup, decode_object_runs, decode_objects, format_key, open_rows
from competition.submission.testset import TestSet, object_means
from competition.submission.validate import validate_submission
from competition.submission.writer import ObjectsItem, write_submission
from competition.text import format_count
from tests.host import write_text

OBJECT_PROFILES = ["dsb2018", "sartorius", "recodai", "hubmap-vasculature"]
SHAPE = (9, 7)


def _label_images() -> list[np.ndarray]:
    """Return label images with the edge cases: none, one pixel, the last pixel, touching objects, gaps in numbers."""
    rng = np.random.default_rng(5)
    empty, one, last, full = (np.zeros(SHAPE, np.int32) for _ in range(4))
    one[3, 4] = 7
    last[-1, -1], last[0, 0] = 2, 9
    full[:, :3], full[:, 3:] = 4, 1
    images = [empty, one, last, full]
    images += [rng.integers(0, 4, SHAPE).astype(dtype) for dtype in (np.int32, np.uint16, np.int64, np.uint8)]
    images += [np.asfortranarray(rng.integers(0, 3, SHAPE)), np.kron(rng.integers(0, 3, (3, 7)), np.ones((3, 1), int))]
    return images


def _one_by_one(name: str, labels: np.ndarray, means: dict[int, float] | None) -> list[Any]:
    """Return a mask for each object, as the writer received them before, and an empty one that marks the case."""
    items: list[Any] = []
    for number in np.unique(labels[labels != 0]).tolist():
        items.append((name, None, labels == number, *([means[number]] if means else [])))
    return [*items, (name, None, np.zeros(labels.shape, bool))]


@pytest.mark.parametrize("name", OBJECT_PROFILES)
def test_a_label_image_gives_the_bytes_of_its_objects(name: str, tmp_path: Path) -> None:
    images, rng = {f"case{number}": labels for number, labels in enumerate(_label_images())}, np.random.default_rng(1)
    values = {case: rng.random(SHAPE).astype(np.float16) for case in images}
    means = {
        case: {number: float(np.mean(values[case][labels == number], dtype=np.float64)) for number in np.unique(labels)}
        for case, labels in images.items()
    }
    profile = PROFILES[name]
    one_by_one = [item for case, labels in images.items() for item in _one_by_one(case, labels, means[case])]
    write_submission(one_by_one, profile, tmp_path / "old.csv")
    tests = TestSet(SimpleNamespace(classes=["x"], dimensions=2), [], profile, None, {case: [case] for case in images})  # type: ignore[arg-type]
    items = [
        item
        for case, labels in images.items()
        for item in tests.masks(
            SimpleNamespace(id=case), CasePrediction((labels != 0)[None], labels[None]), values[case][None]
        )
    ]
    assert all(isinstance(item, ObjectsItem) for item in items) and len(items) == len(images)
    write_submission(items, profile, tmp_path / "new.csv")
    assert (tmp_path / "new.csv").read_bytes() == (tmp_path / "old.csv").read_bytes()


def test_objects_of_a_volume_and_of_its_slices(tmp_path: Path) -> None:
    labels = np.random.default_rng(2).integers(0, 3, (4, 3, 5))
    labels[-1, -1, -1] = 8
    profile = PROFILES["dsb2018"]
    write_submission(_one_by_one("a", labels, None), profile, tmp_path / "old.csv")
    write_submission([ObjectsItem("a", None, labels)], profile, tmp_path / "new.csv")
    assert (tmp_path / "new.csv").read_bytes() == (tmp_path / "old.csv").read_bytes()

    slices = {"a": [f"a{z}" for z in range(5)]}
    tests = TestSet(SimpleNamespace(classes=["x"], dimensions=2), [], profile, None, slices)  # type: ignore[arg-type]
    prediction = CasePrediction((labels != 0)[None], labels[None].astype(np.int32))
    write_submission(tests.masks(SimpleNamespace(id="a"), prediction), profile, tmp_path / "new.csv")
    old = [item for z, name in enumerate(slices["a"]) for item in _one_by_one(name, labels[..., z], None)]
    write_submission(old, profile, tmp_path / "old.csv")
    assert (tmp_path / "new.csv").read_bytes() == (tmp_path / "old.csv").read_bytes()


def test_objects_on_the_grid_of_the_profile_are_resized_one_by_one(tmp_path: Path) -> None:
    profile = replace(PROFILES["dsb2018"], grid=(3, 3))
    labels = np.kron([[0, 1, 2], [3, 0, 0], [0, 0, 4]], np.ones((4, 4), int))
    write_submission(_one_by_one("a", labels, None), profile, tmp_path / "old.csv")
    write_submission([ObjectsItem("a", None, labels)], profile, tmp_path / "new.csv")
    assert (tmp_path / "new.csv").read_bytes() == (tmp_path / "old.csv").read_bytes()
    assert "6 1\n" not in (tmp_path / "new.csv").read_text() and "4 1\n" in (tmp_path / "new.csv").read_text()


@pytest.mark.parametrize("damage", ["shifted", "overlapping", "missing"])
def test_a_text_that_decodes_to_other_objects_is_found(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = writer.encode_labels

    def wrong(labels: np.ndarray, fmt: RleFormat) -> dict[int, str]:
        texts = true(labels, fmt)
        if damage == "missing":
            return {number: text for number, text in texts.items() if number != 2}
        return {**texts, 1: "2 1" if damage == "shifted" else texts[1] + " 12 1"}

    monkeypatch.setattr(writer, "encode_labels", wrong)
    labels = np.zeros((4, 4), np.int32)
    labels[0, 0], labels[3, 2] = 1, 2  # positions 1 and 12
    with pytest.raises(MaskfoldError, match="encoded"):
        write_submission([ObjectsItem("a", None, labels)], PROFILES["dsb2018"], tmp_path / "s.csv")
    assert list(tmp_path.iterdir()) == []


def test_means_are_summed_in_the_order_of_a_mask() -> None:
    rng = np.random.default_rng(3)
    for dtype in (np.float16, np.float32, np.float64):
        labels, values = rng.integers(0, 5, (60, 300)), rng.random((60, 300)).astype(dtype)
        expected = {k: float(np.mean(values[labels == k], dtype=np.float64)) for k in range(1, 5)}
        assert object_means(labels, values) == expected
    assert object_means(np.zeros((2, 2), int), np.ones((2, 2))) == {}


# Drawing and decoding


def test_objects_are_drawn_in_their_order_whether_they_overlap_or_not() -> None:
    rng = np.random.default_rng(4)
    for fmt in (RleFormat(), RleFormat(order="row", base=0)):
        for count in (0, 1, 3, 6):
            for share in (0.02, 0.2, 0.9):
                masks = [rng.random((5, 6)) < share for _ in range(count)]
                expected = np.zeros((5, 6), np.int32)
                for number, mask in enumerate(masks, start=1):
                    expected[mask] = number
                texts = [encode(mask, fmt) for mask in masks]
                labels, hidden = decode_overlapping_labels(texts, (5, 6), fmt)
                np.testing.assert_array_equal(labels, expected)
                assert labels.dtype == np.int32
                order = "F" if fmt.order == "column" else "C"
                covered = {
                    number: np.flatnonzero((mask & (expected != number)).ravel(order))
                    for number, mask in enumerate(masks, start=1)
                }
                assert {key: value.tolist() for key, value in hidden.items()} == {
                    key: value.tolist() for key, value in covered.items() if len(value)
                }
    assert decode_labels(["1 2"], (0, 3), strict=False).shape == (0, 3)


def _plain_decode(text: str, shape: tuple[int, ...], base: int) -> np.ndarray:
    """Decode pairs by their definition: rising, at least one pixel each, within the mask."""
    numbers, flat, end = list(map(int, text.split())), np.zeros(int(np.prod(shape)), bool), 0
    if len(numbers) % 2:
        raise ValueError
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        first = start - base
        if first < end or length < 1 or first + length > len(flat):
            raise ValueError
        end = first + length
        flat[first:end] = True
    return flat.reshape(shape, order="F")


@pytest.mark.parametrize("pairs", [1, 3, 63, 64, 65, 200])
@pytest.mark.parametrize("base", [0, 1])
def test_the_short_check_accepts_what_the_rules_accept(pairs: int, base: int) -> None:
    rng, fmt, size = np.random.default_rng(pairs), RleFormat(base=base), 8 * pairs  # type: ignore[arg-type]
    for _ in range(40):
        numbers = np.empty((pairs, 2), np.int64)
        numbers[:, 1] = rng.integers(1, 5, pairs)
        numbers[:, 0] = np.concatenate([[0], numbers[:-1, 1].cumsum()]) + rng.integers(0, 3, pairs).cumsum() + base
        if rng.random() < 0.7:  # break one number
            values = (-1, 0, size, size + 1, 2**62, int(rng.integers(0, size)))
            numbers[rng.integers(pairs), rng.integers(2)] = values[rng.integers(len(values))]
        text = " ".join(map(str, numbers.ravel().tolist()))
        try:
            expected = _plain_decode(text, (size,), base)
        except ValueError:
            with pytest.raises(RleError):
                decode(text, (size,), fmt)
        else:
            np.testing.assert_array_equal(decode(text, (size,), fmt), expected)


# Validation


def _pictures_report(path: Path, layout: Profile, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Find the problems of rows with one picture for each object, as the validator did before."""
    problems = []
    names = IdLookup(shapes)
    _, rows = open_rows(path, layout)
    for key, group in groupby(rows, key=lambda row: row.key):
        shape = layout.grid or shapes[str(names.get(key[0]))]
        occupied = None if layout.overlap_allowed else np.zeros(shape, bool)
        empty_lines, all_rows = [], list(group)
        for row in all_rows:
            location, token = f"Line {row.line}, {format_key(key)}", layout.rle.empty
            empty = f"`{token}`" if token else "an empty cell"
            if row.text.strip() == token.strip():
                empty_lines.append(row.line)
            if row.text.strip() == "" and token != "":
                problems.append(f"{location}: an empty mask is written as an empty cell, expected {empty}.")
                continue
            if row.text.strip().lower() in {"nan", "none", "null", "<na>"}:
                problems.append(f"{location}: an empty mask is written as `{row.text.strip()}`, expected {empty}.")
                continue
            try:
                objects = decode_objects(row.text, shape, layout)
            except RleError as error:
                problems.append(f"{location}: {error.message}")
                continue
            if not objects and row.text.strip() != token.strip():
                problems.append(
                    f"{location}: an empty mask is written as run lengths without pixels, expected {empty}."
                )
            for mask in objects if occupied is not None else ():
                assert occupied is not None
                shared = int(np.count_nonzero(occupied & mask))
                if shared:
                    problems.append(
                        f"{location}: the object shares {format_count(shared, 'pixel')} with another object of "
                        "this image."
                    )
                occupied |= mask
        if empty_lines and len(all_rows) > 1:
            problems.append(
                f"Line {empty_lines[0]}: {format_key(key)} has a row with an empty mask in addition to other rows."
            )
    return problems


@pytest.mark.parametrize("name", ["dsb2018", "airbus", "sartorius", "recodai"])
def test_runs_show_the_problems_that_pictures_show(name: str, tmp_path: Path) -> None:
    profile, rng, found = PROFILES[name], np.random.default_rng(6), 0
    texts = ["", "nan", "1 2 3", "9 1 3 1", "0 2", "63 2", "1 63", profile.rle.empty]
    if profile.rle.container == "json":
        texts = ["", "nan", "[1, 2, 3]", "[1, 2];[2, 1]", "[63, 2]", "[]", "[5, 1];[60, 2]", "authentic"]
    for seed in range(30):
        path = tmp_path / f"{seed}.csv"
        with path.open("w", newline="") as stream:
            out = csv.writer(stream)
            out.writerow(profile.columns)
            for case in range(3):
                for _ in range(rng.integers(1, 5) if profile.rows == "object" else 1):
                    mask = rng.random(SHAPE) < rng.choice([0.03, 0.1])
                    text = encode(mask, profile.rle) if rng.random() < 0.7 else texts[rng.integers(len(texts))]
                    out.writerow([f"case{case}", text])
        shapes: dict[str, tuple[int, ...]] = {f"case{case}": SHAPE for case in range(3)}
        expected = _pictures_report(path, profile, shapes)
        assert list(validate_submission(path, profile, None, shapes).problems) == expected[:20]
        found += sum("shares" in problem for problem in expected)
    assert found > 5 or profile.overlap_allowed


def test_rows_before_a_broken_line_are_checked(tmp_path: Path) -> None:
    path = write_text(tmp_path / "s.csv", "ImageId,EncodedPixels\na,1 2\na,2 2\na,9 9 9\na,1 1,\na,1 1\n")
    report = validate_submission(path, PROFILES["dsb2018"], None, {"a": (4, 4)})
    assert report.rows == 3
    assert ["shares 1 pixel" in report.problems[0], "even number" in report.problems[1]] == [True, True]
    assert "line 5: found 3 cells" in report.problems[2] and len(report.problems) == 3


# Reading


def test_a_file_has_the_objects_of_its_pictures(tmp_path: Path) -> None:
    rng, profile = np.random.default_rng(7), PROFILES["dsb2018"]
    index = RowIndex({}, "training", {}, {"a": 0}, {"a": ("a", None)}, {})
    index.rows["a"] = SimpleNamespace(shape="[9, 7]")
    for share in (0.02, 0.1, 0.3):
        masks = [rng.random(SHAPE) < share for _ in range(4)]
        masks = [mask for mask in masks if mask.any()]
        rows = "".join(f"a,{encode(mask, profile.rle)}\n" for mask in masks)
        path = write_text(tmp_path / "s.csv", "ImageId,EncodedPixels\n" + rows)
        labels, hidden = np.zeros(SHAPE, np.int32), []
        for number, mask in enumerate(masks, start=1):
            hidden += list(find_covered(labels, mask)) if labels[mask].any() else []
            labels[mask] = number
        mask, objects = MaskFile.read(path, profile, index, strict=False).class_mask("a", "x", SHAPE)
        assert objects is not None and objects.labels.flags.c_contiguous
        np.testing.assert_array_equal(objects.labels, labels)
        np.testing.assert_array_equal(mask, labels != 0)
        assert [(part.number, part.box, part.mask.tolist()) for part in objects.hidden] == [
            (part.number, part.box, part.mask.tolist()) for part in hidden
        ]


def test_runs_and_masks_of_a_cell_agree() -> None:
    for name, text in (("recodai", "[1, 2];[9, 1]"), ("dsb2018", "3 4"), ("dsb2018", ""), ("recodai", "authentic")):
        masks = decode_objects(text, SHAPE, PROFILES[name])
        runs = decode_object_runs(text, SHAPE, PROFILES[name])
        flat = [np.concatenate([np.arange(*edge) for edge in zip(*one, strict=True)]) for one in runs]
        assert [np.flatnonzero(mask.ravel("F")).tolist() for mask in masks] == [part.tolist() for part in flat]


def test_label_files_number_the_objects_one_by_one() -> None:
    rng = np.random.default_rng(8)
    objects = rng.choice([0, 0, 3, 5, 9], (2, 6, 8)).astype(np.int32)
    expected, number = np.zeros((6, 8), np.uint16), 0
    for index in (0, 1):
        for value in np.unique(objects[index][objects[index] != 0]):
            number += 1
            expected[objects[index] == value] = number
    found = label_files._objects(CasePrediction(objects != 0, objects), [0, 1])
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint16
    many = np.arange(1, 2**16 + 1, dtype=np.int32).reshape(1, 256, 256)
    with pytest.raises(MaskfoldError, match="65,536 objects, expected at most 65,535"):
        label_files._objects(CasePrediction(many != 0, many), [0])
