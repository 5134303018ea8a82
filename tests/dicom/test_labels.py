"""A second series as labels: matched with the image of its study, frame of reference and grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from competition.dicom.convert import convert_folder
from tests.dicom.files import OBLIQUE, positions, uid, volume, write_segmentation, write_series

SHAPE = (7, 5, 6)
TRUTH = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)


def image(folder: Path, **changes: Any) -> None:
    write_series(folder / "image", volume(SHAPE), **changes)


def labels(folder: Path, array: np.ndarray = TRUTH, **changes: Any) -> None:
    write_series(
        folder / "labels",
        array,
        **{"series": "labels", "SeriesNumber": 2, "SeriesDescription": "Organs seg", **changes},
    )


@pytest.mark.parametrize("layout", ["imagesTr", "imagesTs"])
def test_values_are_unchanged(tmp_path: Path, layout: str) -> None:
    image(tmp_path / "in", orientation=OBLIQUE)
    labels(
        tmp_path / "in",
        TRUTH.astype(np.uint16) + 1000,
        orientation=OBLIQUE,
        backwards=True,
        rescale=[(1.0, -1000.0)] * 6,
    )
    done = convert_folder(tmp_path / "in", tmp_path / "out", layout, "(?i)SEG$")
    assert [(row.id, row.status, row.description) for row in done.rows] == [
        ("P1", "converted", "Abdomen"),
        ("P1", "label", "Organs seg"),
    ]
    mask = nibabel.load(tmp_path / "out" / layout.replace("images", "labels") / "P1.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), TRUTH)
    assert mask.get_data_dtype() == np.uint8
    assert done.segments == {1: "value 1", 2: "value 2", 3: "value 3"}


def test_without_the_expression_they_are_images(tmp_path: Path) -> None:
    image(tmp_path / "in")
    labels(tmp_path / "in")
    lines: list[str] = []
    done = convert_folder(tmp_path / "in", tmp_path / "out", labels="nothing", say=lines.append)
    assert [row.id for row in done.with_status("converted")] == ["P1_s1", "P1_s2"]
    assert "no series has a description that matches --labels nothing" in lines


def test_slices_turned_round_and_fewer_of_them(tmp_path: Path) -> None:
    """Normal and rows point the other way: pixel (r, c) of the slice at z is the voxel (c, 4 − r, z)."""
    image(tmp_path / "in")
    places = positions(6) + np.array([0, 0.7 * 4, 0])
    labels(tmp_path / "in", TRUTH[:, ::-1, 1:5], places=places[1:5], orientation=(1, 0, 0, 0, -1, 0))
    convert_folder(tmp_path / "in", tmp_path / "out", labels="seg")
    expected = TRUTH.copy()
    expected[:, :, [0, 5]] = 0
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(tmp_path / "out/labelsTr/P1.nii.gz").dataobj), expected)


@pytest.mark.parametrize(
    ("array", "changes", "reason"),
    [
        (TRUTH.astype(np.int16) - 1, {}, "its values are no labels: found -1 to 2"),
        (TRUTH.astype(np.int16) * 100, {}, "its values are no labels: found 0 to 300"),
        (TRUTH, {"rescale": [(0.5, 0.0)] * 6}, "its values are no labels: found 0.5, expected"),
        (
            TRUTH,
            {"spacing": (1.4, 1.6)},
            "not on the grid of P1: its voxels differ from those of the image in size or direction",
        ),
        (
            TRUTH,
            {"places": positions(6) + np.array([0.32, 0, 0])},
            "not on the grid of P1: its voxels are shifted by up to 0.4 voxels",
        ),
        (TRUTH, {"places": positions(6) + np.array([0, 0, 5.0])}, "labelled voxels outside of the image"),
        (
            TRUTH,
            {"FrameOfReferenceUID": uid("another")},
            "no image of the same study and frame of reference was converted",
        ),
        (TRUTH, {"study": "another", "FrameOfReferenceUID": uid("P1", "study", "frame")}, "no image of the same study"),
    ],
)
def test_a_label_series_that_does_not_match_is_refused(
    tmp_path: Path, array: np.ndarray, changes: dict[str, Any], reason: str
) -> None:
    image(tmp_path / "in")
    labels(tmp_path / "in", array, **changes)
    done = convert_folder(tmp_path / "in", tmp_path / "out", labels="seg")
    assert reason in done.with_status("refused")[0].reason
    assert len(done.with_status("converted")) == 1
    assert not (tmp_path / "out/labelsTr").exists()


def test_several_candidates_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "in/a")
    image(tmp_path / "in/b", series="b", SeriesNumber=3)
    labels(tmp_path / "in")
    done = convert_folder(tmp_path / "in", tmp_path / "out", labels="seg")
    assert (
        done.with_status("refused")[0].reason
        == "several images have the grid of the mask, and the mask does not refer to exactly one of them: P1_s1, P1_s3"
    )
    labels(tmp_path / "more")
    image(tmp_path / "more")
    labels(tmp_path / "more/again", series="again", SeriesNumber=4)
    done = convert_folder(tmp_path / "more", tmp_path / "out2", labels="seg")
    assert [row.reason for row in done.with_status("refused")] == [
        "2 label series belong to the image P1, expected one; write a narrower expression for --labels"
    ] * 2


def test_a_segmentation_takes_precedence(tmp_path: Path) -> None:
    image(tmp_path / "in")
    labels(tmp_path / "in")
    places = positions(6)
    write_segmentation(
        tmp_path / "in/seg",
        [(1, places[2], TRUTH[:, :, 2].T == 1)],
        {1: "spleen"},
        image_series=uid("P1", "study", "series"),
    )
    done = convert_folder(tmp_path / "in", tmp_path / "out", labels="seg")
    assert done.with_status("refused")[0].reason == "P1 already has a mask from a DICOM-SEG file"
    assert np.asanyarray(nibabel.load(tmp_path / "out/labelsTr/P1.nii.gz").dataobj).sum() == (TRUTH[:, :, 2] == 1).sum()
