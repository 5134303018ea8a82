"""Measurements against independent calculations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats

from competition import text
from competition.explore import explore
from competition.explore.cases import (
    SAMPLE_SIZE,
    Sample,
    cohens_d,
    component_sizes,
    instance_sizes,
    mean_width,
    measure_channels,
)
from competition.explore.contrasts import rank_contrasts
from competition.explore.shifts import find_shifts
from competition.explore.summary import (
    case_rows,
    class_header,
    class_rows,
    finding_rows,
    format_counts,
    format_number,
    format_range,
    overview_rows,
    truth_rows,
)
from competition.explore.types import CaseStats, ChannelStats, Findings
from tests.explore.planted import SOUND, picture, plant, sound
from tests.host import competition, write_nifti, write_png, write_text


def test_the_mean_width() -> None:
    """A line has its own width, a square half of its side; the edges of the image belong to the outline."""
    layer = np.zeros((100, 100), bool)
    assert mean_width(layer) == 0
    layer[:, 40:43] = True  # a line of 100×3 pixels: area 300, outline 206
    assert mean_width(layer) == pytest.approx(600 / 206)
    layer[:], layer[10:30, 10:30] = False, True
    assert mean_width(layer) == 10


@pytest.mark.parametrize("shape", [(40, 50), (12, 13, 14)])
def test_objects_equal_scipy(shape: tuple[int, ...]) -> None:
    layer = np.random.default_rng(len(shape)).random(shape) < 0.25
    labels, count = ndimage.label(layer, np.ones([3] * len(shape)))
    expected = sorted(ndimage.sum_labels(layer, labels, range(1, count + 1)).astype(int).tolist())
    assert sorted(component_sizes(layer).tolist()) == expected
    assert component_sizes(np.zeros(shape, bool)).size == 0
    assert sorted(component_sizes(np.swapaxes(layer, 0, 1)).tolist()) == expected


def test_given_objects_belong_to_the_class_with_most_of_their_voxels() -> None:
    instances = np.array([[1, 1, 1, 0], [2, 2, 0, 3]], np.int32)
    layers = [np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool), np.array([[0, 0, 1, 0], [1, 1, 0, 1]], bool)]
    assert [one.tolist() for one in instance_sizes(instances, layers)] == [[2], [2, 1]]


def test_statistics_of_a_channel() -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(50, 10, (2, 30, 40)).astype(np.float32)
    front = np.zeros((30, 40), bool)
    front[:10] = True
    counted = np.ones((30, 40), bool)
    counted[-5:] = False
    image[1, :10] += 30
    first, second = measure_channels(image, ["a", "b"], front, counted)
    assert (first.name, second.name) == ("a", "b")
    inside, behind = image[1, :10].astype(float), image[1, 10:25].astype(float)
    assert second.contrast == pytest.approx(
        (inside.mean() - behind.mean()) / math.sqrt((inside.var() + behind.var()) / 2)
    )
    assert abs(first.contrast) < 0.2 < 2 < second.contrast
    np.testing.assert_allclose(
        [second.low, second.median, second.high, second.foreground_low, second.foreground_high],
        [*np.percentile(image[1], (0.5, 50, 99.5)), *np.percentile(image[1, :10], (5, 95))],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        [second.minimum, second.maximum, second.mean, second.std],
        [image[1].min(), image[1].max(), image[1].mean(), image[1].std()],
        rtol=1e-5,
    )
    assert math.isnan(measure_channels(image, ["a", "b"], np.zeros((30, 40), bool))[0].contrast)
    assert math.isnan(cohens_d(np.ones(3), np.zeros(4)))  # no spread at all


def test_grey_is_measured_for_colour_images() -> None:
    image = np.zeros((3, 4, 4), np.uint8)
    image[0], image[1], image[2] = 100, 50, 10
    image[:, 0, 0] = 0
    names = [one.name for one in measure_channels(image, ["red", "green", "blue"], None)]
    assert names == ["red", "green", "blue", "grey"]
    grey = measure_channels(image, ["red", "green", "blue"], None)[3]
    assert grey.maximum == pytest.approx(0.299 * 100 + 0.587 * 50 + 0.114 * 10, abs=0.01)


def test_a_sample_contains_all_columns() -> None:
    values = np.tile(np.arange(512, dtype=np.uint16), 4096)  # a step of 8 would see every eighth value only
    sample = Sample(values.size)
    for part in np.array_split(values, 7):
        sample.add(part)
    assert sample.values().size <= SAMPLE_SIZE and len(np.unique(sample.values())) == 512


def value(name: str, contrast: float = math.nan, mean: float = 0.0) -> ChannelStats:
    return ChannelStats(name, 0, 0, 0, 1, 1, mean, 1, contrast)


def test_channels_are_ranked_by_their_median_contrast() -> None:
    cases = [
        CaseStats(
            str(number), "train", stats=[value("red", one), value("green", two), value("blue"), value("grey", -0.1)]
        )
        for number, (one, two) in enumerate([(0.5, -2.0), (-0.7, -1.0), (0.6, 9.0)])
    ]
    ranked = rank_contrasts(cases)
    assert [(one.name, one.channel, one.effect_size, one.n_cases) for one in ranked] == [
        ("green", 1, 2.0, 3),
        ("red", 0, 0.6, 3),
        ("grey", None, 0.1, 3),
    ]
    assert ranked[0].brighter_share == pytest.approx(1 / 3)


@pytest.mark.parametrize(("offset", "named"), [(0.0, False), (2.5, True)])
def test_only_a_real_shift_is_reported(offset: float, named: bool) -> None:
    rng = np.random.default_rng(3)
    means = {"train": rng.normal(100, 1, 80), "test": rng.normal(100 + offset, 1, 40)}
    cases = [
        CaseStats(f"{split}{number}", split, shape=(5, 6), spacing=(1.0, 1.0), stats=[value("image", mean=mean)])
        for split, side in means.items()
        for number, mean in enumerate(side)
    ]
    findings = Findings()
    found = {one.measure: one for one in find_shifts(cases, findings)}
    expected = stats.ks_2samp(means["train"], means["test"])
    assert found["brightness of image (mean)"].distance == pytest.approx(expected.statistic)
    assert bool(findings.all) == named
    if named:
        assert "brightness of image (mean) is greater" in findings.all[0].message
    assert not found["size along axis 0"].significant


def test_few_cases_give_no_shift() -> None:
    cases = [
        CaseStats(f"{split}{number}", split, shape=(5, 6), spacing=(1.0, 1.0), stats=[value("image", mean=mean)])
        for split, side in {"train": [1, 2, 3, 4, 9, 10], "test": [5, 6, 7, 8, 11]}.items()
        for number, mean in enumerate(side)
    ]
    findings = Findings()
    found = {one.measure: one for one in find_shifts(cases, findings)}
    assert found["brightness of image (mean)"].distance > 0.5 and findings.all == []


@pytest.mark.parametrize(
    ("values", "text"), [([3, 1, 2], "1 / 2 / 3"), ([4, 4], "4"), ([], "–"), ([0.5, 1500], "0.5 / 750.2 / 1,500")]
)
def test_format_of_minimum_median_and_maximum(values: list[float], text: str) -> None:
    assert format_range(values) == text


def test_format_of_cells() -> None:
    assert (
        format_counts(["a", "b", "a"]) == "a in 2, b in 1" and format_counts([1, 1]) == "1" and format_counts([]) == "–"
    )
    assert format_counts("abcdefa") == "a in 2, b in 1, c in 1, d in 1 and 2 more"
    assert format_number(1388.0) == "1,388" and format_number(0.6875) == "0.6875"


def test_rows_of_the_printed_tables(tmp_path: Path) -> None:
    comp = competition(plant(tmp_path), group="^([a-z]+)_", test={"images": "test/{id}.png"})
    found = explore(comp)
    rows = {row[0]: row[1:] for row in overview_rows(found)}
    assert (
        rows["cases"] == ["20", "5"] and rows["with truth"] == ["17", "–"] and rows["size along axis 1"] == ["64", "64"]
    )
    assert rows["groups in train and test"] == ["1", "1"]
    assert {row[0]: row[1] for row in truth_rows(found)}["empty masks"] == "1 of 17"
    first, strange = class_rows(found)
    assert first[:3] == ["cell", "1", "16 of 17"] and strange[:3] == ["not declared", "7", "1 (not read)"]
    table = case_rows(found).set_index(["split", "id"])
    p_0 = table.loc[("train", "p_0")]
    image, mask = picture(0)
    assert (p_0["foreground"], p_0["objects"], p_0["size_0"]) == (
        int(mask.sum()),
        ndimage.label(mask, np.ones((3, 3)))[1],
        48,
    )
    assert p_0["image_mean"] == pytest.approx(image.mean()) and p_0["faults"] == 0
    assert table.loc[("train", "seven_1"), "faults"] == 1 and table.loc[("train", "seven_1"), "strange_labels"] == "7"
    assert table.loc[("train", "torn_1"), "faults"] == 1
    assert len(finding_rows(found)) == len(found.findings) and set(finding_rows(found)["weight"]) == {"fault", "remark"}


@pytest.mark.parametrize(("dimensions", "word"), [(2, "pixel"), (3, "voxel")])
def test_units_of_counts(tmp_path: Path, dimensions: int, word: str) -> None:
    for name, spots in (("a", 1), ("b", 25)):
        labels = np.zeros((8, 8) if dimensions == 2 else (8, 8, 8), np.uint8)
        labels.flat[:spots] = 7 if name == "a" else 9
        image = np.random.default_rng(spots).integers(0, 99, labels.shape).astype(np.uint8)
        for folder, array in (("im", image), ("la", labels)):
            if dimensions == 2:
                write_png(tmp_path / folder / f"{name}.png", array)
            else:
                write_nifti(tmp_path / folder / f"{name}.nii.gz", array)
    end = "png" if dimensions == 2 else "nii.gz"
    found = explore(
        competition(tmp_path, dimensions=dimensions, train={"images": f"im/{{id}}.{end}", "masks": f"la/{{id}}.{end}"})
    )
    assert f"of all {word}s" in class_header(found)
    assert [(row[1], row[5]) for row in class_rows(found)[1:]] == [("7", f"1 {word}"), ("9", f"25 {word}s")]


def test_format_of_sentences() -> None:
    assert [text.format_count(count, "case") for count in (0, 1, 2, 1200)] == [
        "0 cases",
        "1 case",
        "2 cases",
        "1,200 cases",
    ]
    assert [text.join_names(list(names)) for names in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
    long = "0123456789ab" + "-" * 40 + "cdefghijklmn"
    assert text.shorten_id(long) == "0123456789ab…cdefghijklmn" and text.shorten_id("p_0") == "p_0"
    assert (
        text.format_listed_case("p_0", "im/p_0.png")
        == text.format_single_case("p_0", "im/p_0.png")
        == "p_0 (im/p_0.png)"
    )
    assert (
        text.format_single_case(long, f"im/{long}.png") == long
        and text.format_single_case(long, "z.png") == f"{long} (z.png)"
    )


def test_counts_of_cases_agree(tmp_path: Path) -> None:
    """One colour image, and three images whose header is readable but whose pixels are not."""
    sound(tmp_path)
    grey, mask = picture(0)
    write_png(tmp_path / "images" / "p_0.png", np.stack([grey, grey[::-1], grey], axis=-1))
    for name in ("p_1", "q_0", "q_1"):
        path = tmp_path / "images" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:400])
    for case_id in SOUND[1:]:
        if case_id not in ("p_1", "q_0", "q_1"):
            write_png(tmp_path / "images" / f"{case_id}.png", np.stack([picture(SOUND.index(case_id))[0]] * 3, axis=-1))
    found = explore(competition(tmp_path))
    rows = {row[0]: row[1] for row in overview_rows(found)}
    assert (rows["cases"], rows["readable"], rows["colour images"], rows["channels"]) == ("12", "9", "1 of 9", "3")
    assert "9 cases without groups" in found.snippet and "1 of 9 images has colours" in found.snippet


def test_rows_of_a_table_are_objects(tmp_path: Path) -> None:
    """Two touching RLE rows are two objects, although they are one component of the mask."""
    for case_id in "ab":
        write_png(tmp_path / "images" / f"{case_id}.png", picture(1)[0])
    write_text(tmp_path / "train.csv", "id,rle\na,1 4 49 4\na,97 4\nb,200 3\n")
    found = explore(competition(tmp_path, train={"images": "images/{id}.png", "rle": "train.csv"}))
    assert [case.truth.object_sizes.tolist() for case in found.cases if case.truth] == [[8, 4], [3]]


def test_overlapping_classes_and_ignored_voxels(tmp_path: Path) -> None:
    root = sound(tmp_path)
    mask = np.zeros((48, 64), np.uint8)
    mask[:4, :5], mask[4:6, :5], mask[40:, :] = 1, 2, 9
    write_png(root / "masks" / "p_0.png", mask)
    found = explore(
        competition(root, classes=["whole", "part"], labels="overlapping", label_values=[[1, 2], 2], ignore=9)
    )
    truth = found.cases[SOUND.index("p_0")].truth
    assert truth is not None and (truth.voxels.tolist(), truth.foreground, truth.ignored) == ([30, 10], 30, 8 * 64)
    assert [one.tolist() for one in truth.objects] == [[30], [10]]


def test_orientation_and_spacing_of_volumes(tmp_path: Path) -> None:
    affine = np.diag([-0.5, -0.5, 3.0, 1.0])
    for case_id in "ab":
        write_nifti(
            tmp_path / "im" / f"{case_id}.nii.gz", np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8), affine
        )
        write_nifti(tmp_path / "la" / f"{case_id}.nii.gz", np.ones((6, 7, 8), np.uint8), affine)
    found = explore(competition(tmp_path, dimensions=3, train={"images": "im/{id}.nii.gz", "masks": "la/{id}.nii.gz"}))
    case = found.cases[0]
    assert (case.orientation, case.spacing, case.shape, case.dtype) == ("LPS", (0.5, 0.5, 3.0), (6, 7, 8), "int16")
    assert case.aspect == pytest.approx(24 / 3)
    assert "orientation: RAS" in found.snippet
