"""Affines are compared in voxels; the spacing comes from the affine of NIfTI, the metadata of TIFF, or a key."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pydantic import ValidationError

from competition.config.competition import Competition
from competition.data.cache import cache_key
from competition.data.cases import case_table
from competition.data.geometry import corner_distance
from competition.data.image_types import combined_digest, file_digest
from competition.data.readers import load_image, read_header, read_image
from competition.errors import MaskfoldError
from competition.explore import explore
from competition.export.predictor import iter_images
from competition.runs.identity.hashing import run_hash
from tests.host import competition, write_nifti, write_png

VOLUMES = {"images": "im/{id}.nii.gz", "masks": "la/{id}.nii.gz"}


def patched(path: Path, **fields: Any) -> Path:
    """Overwrite fields of a header: pixdim, qcode, scode, srow (4×4)."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    if "pixdim" in fields:
        struct.pack_into("<3f", raw, 80, *fields["pixdim"])
    if "qcode" in fields:
        struct.pack_into("<h", raw, 252, fields["qcode"])
    if "scode" in fields:
        struct.pack_into("<h", raw, 254, fields["scode"])
    if "srow" in fields:
        struct.pack_into("<12f", raw, 280, *np.asarray(fields["srow"])[:3].ravel())
    path.write_bytes(gzip.compress(bytes(raw)))
    return path


def host(root: Path, image: np.ndarray, mask: np.ndarray, shape: tuple[int, ...], **header: Any) -> Competition:
    """A case whose two files have these affines."""
    array = np.zeros(shape, np.uint8)
    array[2:4, 2:4, 2:4] = 1
    write_nifti(root / "im/a.nii.gz", array, image, **header)
    write_nifti(root / "la/a.nii.gz", array, mask, **header)
    return competition(root, dimensions=3, train=VOLUMES)


# Affines of images and masks

MICRON = np.diag([0.4, 0.4, 0.4, 1.0])
MM = np.diag([0.9766, 0.9766, 1.0, 1.0])
SHIFTED = MM + np.array([[0, 0, 0, 0.0015], *3 * [[0] * 4]])


@pytest.mark.parametrize(
    ("image", "mask", "units", "words"),
    [
        (
            MICRON,
            np.diag([-0.4, 0.4, 0.4, 1.0]),
            "micron",
            r"im/a\.nii\.gz has the orientation RAS, but la/a\.nii\.gz has LAS",
        ),
        (MICRON, np.diag([0.8, 0.8, 0.8, 1.0]), "micron", r"voxel \(511, 63, 7\) in .* are 515 voxels"),
        (MM, np.diag([0.9775, 0.9775, 1.0009, 1.0]), "mm", r"voxel \(511, 63, 7\) in .* are 0\.47\d voxels"),
    ],
)
def test_masks_in_another_place_are_refused(
    tmp_path: Path, image: np.ndarray, mask: np.ndarray, units: str, words: str
) -> None:
    comp = host(tmp_path, image, mask, (512, 64, 8), units=units)
    with pytest.raises(MaskfoldError, match=words) as caught:
        case_table(comp)
    assert "train.masks_on_image_grid=true" in caught.value.hint
    [fault] = explore(comp).faults
    assert fault.message == caught.value.message
    trusting = comp.model_copy(update={"train": comp.train.model_copy(update={"masks_on_image_grid": True})})
    assert len(case_table(trusting)) == 1 and not explore(trusting).faults


def test_the_key_is_about_masks_only(tmp_path: Path) -> None:
    write_nifti(tmp_path / "two/a.nii.gz", np.zeros((20, 24, 16), np.uint8), np.diag([-1.0, 1, 1, 1]))
    host(tmp_path, np.eye(4), np.eye(4), (20, 24, 16))
    images = {"one": "im/{id}.nii.gz", "two": "two/{id}.nii.gz"}
    train = {"images": images, "masks": "la/{id}.nii.gz", "masks_on_image_grid": True}
    with pytest.raises(MaskfoldError, match=r"im/a\.nii\.gz has the orientation RAS, but two/a\.nii\.gz has LAS"):
        case_table(competition(tmp_path, dimensions=3, train=train))


@pytest.mark.parametrize("mask", [SHIFTED, MM + 1e-6])
def test_masks_a_thousandth_of_a_voxel_away_are_accepted(tmp_path: Path, mask: np.ndarray) -> None:
    mask = mask.copy()
    mask[3] = [0, 0, 0, 1]
    comp = host(tmp_path, MM, mask, (20, 24, 16))
    assert len(case_table(comp)) == 1 and not explore(comp).faults


def test_a_header_without_codes_says_nothing_of_its_place(tmp_path: Path) -> None:
    comp = host(tmp_path, np.eye(4), np.eye(4), (20, 24, 16))
    patched(tmp_path / "la/a.nii.gz", qcode=0, scode=0)
    with pytest.raises(MaskfoldError, match=r"la/a\.nii\.gz has no orientation .*, but im/a\.nii\.gz has RAS"):
        case_table(comp)
    patched(tmp_path / "im/a.nii.gz", qcode=0, scode=0)
    assert len(case_table(comp)) == 1
    exploration = explore(comp)
    assert [case.orientation for case in exploration.cases] == [None]
    assert "prepare: {orientation" not in exploration.snippet.replace("\n", " ")


def test_explore_remarks_on_cases_without_an_orientation_among_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for folder in ("im", "la"):
            write_nifti(
                tmp_path / folder / f"{name}.nii.gz", np.eye(8, dtype=np.uint8)[:, :, None] * np.ones(4, np.uint8)
            )
    for folder in ("im", "la"):
        patched(tmp_path / folder / "b.nii.gz", qcode=0, scode=0)
    exploration = explore(competition(tmp_path, dimensions=3, train=VOLUMES))
    assert any(
        "differ in orientation: 1 case has RAS, 1 case has no orientation" in remark.message
        for remark in exploration.remarks
    )


def test_the_distance_is_that_of_the_farthest_corner_in_voxels() -> None:
    assert corner_distance(np.eye(4), np.eye(4), (4, 5, 6)) == (0.0, (3, 4, 5))
    turned = np.diag([2.0, 2.0, 2.0, 1.0])
    turned[:2, :2] = 2 * np.array([[0, -1], [1, 0]])
    distance, corner = corner_distance(np.diag([2.0, 2.0, 2.0, 1.0]), turned, (4, 5))
    assert distance == pytest.approx(np.hypot(3 + 4, 4 - 3)) and corner == (3, 4)


# pixdim and affine


TRUE = np.diag([0.8, 0.8, 3.0, 1.0])
SHEARED = TRUE + np.array([[0, 0, 1.2, 0], *3 * [[0] * 4]])


@pytest.mark.parametrize(
    ("fields", "spacing", "remark"),
    [
        ({}, (0.8, 0.8, 3.0), False),
        ({"pixdim": (1, 1, 1), "qcode": 0}, (0.8, 0.8, 3.0), True),
        ({"srow": np.eye(4)}, (1.0, 1.0, 1.0), True),
        ({"srow": np.diag([0.8, 0.8, 4.0, 1.0])}, (0.8, 0.8, 4.0), True),
        ({"srow": np.diag([0.8, 0.8, 3.01, 1.0])}, (0.8, 0.8, 3.01), False),
        ({"scode": 0, "qcode": 0}, (0.8, 0.8, 3.0), False),
        ({"srow": SHEARED, "qcode": 0}, (0.8, 0.8, float(np.hypot(3, 1.2))), True),
    ],
)
def test_the_affine_is_the_one_source_of_the_spacing(
    tmp_path: Path, fields: dict[str, Any], spacing: tuple[float, ...], remark: bool
) -> None:
    comp = host(tmp_path, TRUE, TRUE, (8, 9, 12))
    before = case_table(comp).iloc[0]
    for folder in ("im", "la"):
        patched(tmp_path / folder / "a.nii.gz", **fields)
    image = read_image(tmp_path / "im/a.nii.gz")
    assert image.affine is not None
    np.testing.assert_allclose(image.spacing, spacing, rtol=1e-6)
    np.testing.assert_allclose(image.spacing, np.linalg.norm(image.affine[:3, :3], axis=0), rtol=1e-6)
    np.testing.assert_allclose(json.loads(case_table(comp).iloc[0]["spacing"]), spacing, rtol=1e-6)
    found = [item.message for item in explore(comp).remarks if "the voxel size differ" in item.message]
    assert bool(found) == remark
    assert before.id == "a"


def test_only_a_contradictory_header_changes_the_hash(tmp_path: Path) -> None:
    """Equal headers keep pixdim's own numbers and their hash; others were cached with another spacing."""
    rotated = np.array([[0.7, -0.2, 0.1, 3], [0.21, 0.69, 0.3, 4], [0, 0.1, 2.9, 5], [0, 0, 0, 1]])
    rotated[:3, :3] = np.linalg.qr(rotated[:3, :3])[0] * [0.7, 0.7031, 2.5]
    comp = host(tmp_path, rotated, rotated, (8, 9, 12))

    def bytes_alone() -> str:
        image = combined_digest([file_digest(tmp_path / "im/a.nii.gz")])
        return combined_digest([bytes.fromhex(image), file_digest(tmp_path / "la/a.nii.gz")])

    header = read_header(tmp_path / "im/a.nii.gz")
    assert header.spacing == tuple(float(np.float32(mm)) for mm in (0.7, 0.7031, 2.5))
    assert case_table(comp).iloc[0]["hash"] == bytes_alone()
    patched(tmp_path / "im/a.nii.gz", pixdim=(0.7, 0.7031, 5.0))
    assert case_table(comp).iloc[0]["hash"] != bytes_alone()


# TIFF metadata, and the key for files that say nothing


def write_volume(path: Path, kind: str, array: np.ndarray) -> None:
    """Write (H, W, Z) of 0.5 × 0.25 × 2 mm as pages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = np.ascontiguousarray(array.transpose(2, 0, 1))
    if kind == "imagej":
        metadata = {"spacing": 2.0, "unit": "mm", "axes": "ZYX"}
        tifffile.imwrite(path, pages, imagej=True, resolution=(1 / 0.25, 1 / 0.5), metadata=metadata)
    elif kind == "imagej-micron":
        metadata = {"spacing": 2000.0, "unit": "\\u00B5m", "axes": "ZYX"}
        tifffile.imwrite(path, pages, imagej=True, resolution=(1 / 250, 1 / 500), metadata=metadata)
    elif kind == "ome":
        sizes = {"X": (250, "µm"), "Y": (500, "µm"), "Z": (2, "mm")}
        metadata = {"axes": "ZYX"}
        for axis, (size, unit) in sizes.items():
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
        tifffile.imwrite(path, pages, ome=True, metadata=metadata)
    elif kind == "pixels":  # ImageJ's unit of an uncalibrated stack
        tifffile.imwrite(path, pages, imagej=True, metadata={"spacing": 2.0, "unit": "pixel", "axes": "ZYX"})
    else:  # a scanner's resolution is no voxel size
        tifffile.imwrite(path, pages, resolution=(300, 300), resolutionunit="INCH")


def tiff_host(root: Path, kind: str, **changes: Any) -> Competition:
    array = np.zeros((6, 7, 5), np.uint8)
    array[2:4, 2:4, 1:3] = 1
    for folder in ("im", "la"):
        write_volume(root / folder / "a.tif", kind, array)
    return competition(root, dimensions=3, train={"images": "im/{id}.tif", "masks": "la/{id}.tif"}, **changes)


@pytest.mark.parametrize("kind", ["imagej", "imagej-micron", "ome"])
def test_voxel_size_of_tiff_volumes(tmp_path: Path, kind: str) -> None:
    comp = tiff_host(tmp_path, kind, spacing=[9.0, 9.0, 9.0])
    row = case_table(comp).iloc[0]
    assert json.loads(row["spacing"]) == [0.5, 0.25, 2.0] and load_image(comp, row).spacing == (0.5, 0.25, 2.0)
    assert explore(comp).cases[0].spacing == (0.5, 0.25, 2.0)
    image = combined_digest([file_digest(tmp_path / "im/a.tif")])
    assert row["hash"] != combined_digest([bytes.fromhex(image), file_digest(tmp_path / "la/a.tif")])


@pytest.mark.parametrize("kind", ["pixels", "plain"])
def test_tiff_volumes_that_do_not_say_their_voxel_size(tmp_path: Path, kind: str) -> None:
    plain = case_table(tiff_host(tmp_path, kind)).iloc[0]
    assert json.loads(plain["spacing"]) == [1.0, 1.0, 1.0]
    image = combined_digest([file_digest(tmp_path / "im/a.tif")])
    assert plain["hash"] == combined_digest([bytes.fromhex(image), file_digest(tmp_path / "la/a.tif")])
    comp = tiff_host(tmp_path, kind, spacing=[0.5, 0.5, 4.0])
    row = case_table(comp).iloc[0]
    assert json.loads(row["spacing"]) == [0.5, 0.5, 4.0] and load_image(comp, row).spacing == (0.5, 0.5, 4.0)
    assert row["hash"] != plain["hash"]


def test_the_key_holds_for_stacks_and_arrays_but_not_for_nifti(tmp_path: Path) -> None:
    for z in range(3):
        write_png(tmp_path / f"im/a/{z}.png", np.full((5, 6), z, np.uint8))
        write_png(tmp_path / f"la/a/{z}.png", np.eye(5, 6, dtype=np.uint8))
    train = {"images": "im/{id}/{z}.png", "masks": "la/{id}/{z}.png"}
    comp = competition(tmp_path, dimensions=3, train=train, spacing=[0.5, 0.5, 4])
    assert load_image(comp, case_table(comp).iloc[0]).spacing == (0.5, 0.5, 4.0)
    nifti = host(tmp_path, np.diag([2.0, 2, 2, 1]), np.diag([2.0, 2, 2, 1]), (8, 9, 12))
    nifti = nifti.model_copy(update={"spacing": [0.5, 0.5, 4.0]})
    assert load_image(nifti, case_table(nifti).iloc[0]).spacing == (2.0, 2.0, 2.0)
    with pytest.raises(ValidationError, match="`spacing` must have 3 numbers"):
        competition(tmp_path, dimensions=3, train=train, spacing=[1.0])


def test_arrays_in_memory_get_the_spacing_of_the_key(tmp_path: Path, tiny: Any) -> None:
    exp = tiny(3)
    comp = exp.competition.model_copy(update={"spacing": [0.5, 0.5, 4.0]})
    exp = exp.model_copy(update={"competition": comp})
    array = np.zeros((5, 6, 7), np.float32)
    cases = list(iter_images([array, {"image": array, "spacing": (1, 2, 3)}], exp))
    assert [case.image.spacing for case in cases] == [(0.5, 0.5, 4.0), (1.0, 2.0, 3.0)]


def test_keys_at_their_off_value_change_no_hash(tiny: Any) -> None:
    """tests/faults/test_moved.py has the hash itself; a key that is on changes it, unless it changes no array."""
    exp = tiny(3)
    row = type("Row", (), {"id": "a", "split": "train", "hash": "0"})

    def with_keys(**keys: Any) -> Any:
        return exp.model_copy(update={"competition": exp.competition.model_copy(update=keys)})

    trusting = with_keys(train=exp.competition.train.model_copy(update={"masks_on_image_grid": True}))
    assert run_hash(trusting, "0") == run_hash(exp, "0") and cache_key(row, trusting) == cache_key(row, exp)
    for keys in ({"array_axes": "zyx"}, {"spacing": [1.0, 1.0, 2.0]}):
        assert run_hash(with_keys(**keys), "0") != run_hash(exp, "0")
