"""Masks lie on their images whatever the two formats are: NIfTI is (column, row, slice), pictures are (row, column)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from pydantic import ValidationError

from competition.config.competition import Competition
from competition.config.profiles import profile_of
from competition.data.cases import case_table
from competition.data.image_types import combined_digest, file_digest
from competition.data.masks import load_instances, load_mask
from competition.data.readers import load_image
from competition.errors import MaskfoldError
from competition.rle import encode
from competition.rle_text import RleFormat
from competition.submission.label_files import _save
from tests.host import competition, write_nifti, write_png, write_text

SIZES = {"square": (14, 14, 6), "oblong": (14, 18, 6)}  # (X, Y, Z)


def phantom(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A bright object off the diagonal of a dark image, and its mask; (X, Y[, Z])."""
    mask = np.zeros(shape, np.uint8)
    mask[(slice(1, 4), slice(5, 12), slice(2, 5))[: len(shape)]] = 1
    return (20 + 100 * mask).astype(np.uint8), mask


def write(root: Path, kind: str, name: str, array: np.ndarray) -> str:
    """Write (X, Y[, Z]) in one format, as any viewer exports it; return the pattern with {id} for `name`."""
    path = root / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "nifti":
        write_nifti(path.with_suffix(".nii.gz"), array)
        return "nifti/{id}.nii.gz"
    if kind == "png" and array.ndim == 3:
        for z in range(array.shape[2]):
            write_png(path / f"s_{z}.png", np.ascontiguousarray(array[:, :, z].T))
        return "png/{id}/s_{z}.png"
    if kind == "png":
        write_png(path.with_suffix(".png"), np.ascontiguousarray(array.T))
        return "png/{id}.png"
    if kind == "tiff":
        tifffile.imwrite(path.with_suffix(".tif"), np.ascontiguousarray(array.T))  # pages (Z, Y, X)
        return "tiff/{id}.tif"
    axes = {"zyx": (2, 1, 0), "xyz": (0, 1, 2), "yxz": (1, 0, 2)}[kind]
    np.save(path.with_suffix(".npy"), array.transpose(axes))
    return f"{kind}/{{id}}.npy"


def host(root: Path, image: str, mask: str, shape: tuple[int, ...], **changes: Any) -> Competition:
    """A competition of one case, image and mask in the two formats."""
    bright, label = phantom(shape)
    train = {"images": write(root / "images", image, "a", bright), "masks": write(root / "masks", mask, "a", label)}
    train = {"images": f"images/{train['images']}", "masks": f"masks/{train['masks']}"}
    return competition(root, dimensions=len(shape), train=train, **changes)


def first_case(comp: Competition, split: str = "train") -> SimpleNamespace:
    return SimpleNamespace(**case_table(comp, split).iloc[0].to_dict())


def dice_with_bright_voxels(comp: Competition) -> float:
    row = first_case(comp)
    bright, mask = load_image(comp, row).array[0] > 70, load_mask(comp, row)[0] == 1
    assert bright.any() and list(mask.shape) == json.loads(row.shape)
    return 2 * np.count_nonzero(bright & mask) / (np.count_nonzero(bright) + np.count_nonzero(mask))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("image", "mask"), [("nifti", "png"), ("nifti", "tiff"), ("png", "nifti"), ("tiff", "nifti"), ("png", "tiff")]
)
def test_a_mask_of_another_format_lies_on_its_volume(tmp_path: Path, image: str, mask: str, size: str) -> None:
    comp = host(tmp_path, image, mask, SIZES[size])
    assert dice_with_bright_voxels(comp) == 1.0
    found = load_image(comp, first_case(comp)).array[0]
    expected = phantom(SIZES[size])[0]
    np.testing.assert_array_equal(found, expected if image == "nifti" else expected.transpose(1, 0, 2))


@pytest.mark.parametrize("shape", [(14, 14), (14, 18)])
@pytest.mark.parametrize(("image", "mask"), [("nifti", "png"), ("nifti", "tiff"), ("png", "nifti"), ("tiff", "png")])
def test_a_mask_of_another_format_lies_on_its_picture(
    tmp_path: Path, image: str, mask: str, shape: tuple[int, ...]
) -> None:
    assert dice_with_bright_voxels(host(tmp_path, image, mask, shape)) == 1.0


def test_masks_of_classes_and_instances_of_another_format(tmp_path: Path) -> None:
    bright, label = phantom((14, 14))
    write(tmp_path, "nifti", "a", bright)
    write_png(tmp_path / "one/a.png", np.ascontiguousarray(label.T))
    write_png(tmp_path / "many/a/x.png", np.ascontiguousarray(label.T))
    for masks in ({"cell": "one/{id}.png"}, "many/{id}/*.png"):
        comp = competition(tmp_path, train={"images": "nifti/{id}.nii.gz", "masks": masks})
        assert dice_with_bright_voxels(comp) == 1.0
        np.testing.assert_array_equal(load_instances(comp, first_case(comp)), label)


@pytest.mark.parametrize("first", ["nifti", "tiff"])
def test_channels_of_two_formats_lie_on_one_another(tmp_path: Path, first: str) -> None:
    bright, label = phantom(SIZES["square"])
    patterns = {kind: write(tmp_path, kind, "a", bright) for kind in ("nifti", "tiff")}
    images = {kind: patterns[kind] for kind in sorted(patterns, key=lambda kind: kind != first)}
    write(tmp_path / "masks", "png", "a", label)
    comp = competition(tmp_path, dimensions=3, train={"images": images, "masks": "masks/png/{id}/s_{z}.png"})
    assert dice_with_bright_voxels(comp) == 1.0
    one, other = load_image(comp, first_case(comp)).array
    np.testing.assert_array_equal(one, other)


def test_test_images_of_another_format_have_the_axes_of_training(tmp_path: Path) -> None:
    """Otherwise the network, trained on (X, Y), would see transposed pictures."""
    comp = host(tmp_path, "nifti", "nifti", (14, 18), test={"images": "test/png/{id}.png"})
    bright, label = phantom((14, 18))
    write(tmp_path / "test", "png", "t", bright)
    row = first_case(comp, "test")
    np.testing.assert_array_equal(load_image(comp, row).array[0], bright)
    assert json.loads(row.shape) == [14, 18]
    written = _save(tmp_path / "out" / "t", label, tmp_path / "test/png/t.png", row, comp)
    import cv2

    np.testing.assert_array_equal(cv2.imread(str(written), cv2.IMREAD_UNCHANGED), label.T)


def test_spacing_and_affine_are_reordered_with_the_axes(tmp_path: Path) -> None:
    bright, _ = phantom(SIZES["oblong"])
    write(tmp_path, "tiff", "a", bright)
    write(tmp_path / "masks", "tiff", "a", bright // 120)
    write_nifti(tmp_path / "test/t.nii.gz", bright, np.diag([0.5, 0.75, 3.0, 1.0]))
    comp = competition(
        tmp_path,
        dimensions=3,
        train={"images": "tiff/{id}.tif", "masks": "masks/tiff/{id}.tif"},
        test={"images": "test/{id}.nii.gz"},
    )
    row = first_case(comp, "test")
    image = load_image(comp, row)
    assert image.spacing == (0.75, 0.5, 3.0) and json.loads(row.spacing) == [0.75, 0.5, 3.0]
    assert image.affine is not None
    np.testing.assert_array_equal(image.affine @ [5, 1, 2, 1], [0.5, 3.75, 6.0, 1.0])


# NPY files do not say the order of their axes


@pytest.mark.parametrize("shape", [(12, 12, 12), (14, 18, 6), (14, 14, 6)])
@pytest.mark.parametrize("image", ["nifti", "tiff", "png"])
def test_npy_of_another_order_is_refused_with_the_key(tmp_path: Path, image: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(MaskfoldError, match=r"order of axes of masks/zyx/a\.npy .*array_axes.*zyx"):
        case_table(host(tmp_path, image, "zyx", shape))
    assert dice_with_bright_voxels(host(tmp_path, image, "zyx", shape, array_axes="zyx")) == 1.0


def test_npy_images_with_masks_of_another_format(tmp_path: Path) -> None:
    with pytest.raises(MaskfoldError, match=r"order of axes of images/zyx/a\.npy"):
        case_table(host(tmp_path, "zyx", "nifti", (12, 12, 12)))
    for mask in ("nifti", "png"):
        assert dice_with_bright_voxels(host(tmp_path, "zyx", mask, (12, 12, 12), array_axes="zyx")) == 1.0


def test_npy_whose_shape_allows_one_order_only(tmp_path: Path) -> None:
    assert dice_with_bright_voxels(host(tmp_path, "nifti", "xyz", (14, 18, 6))) == 1.0
    assert dice_with_bright_voxels(host(tmp_path / "rows", "png", "yxz", (14, 14, 6))) == 1.0
    with pytest.raises(MaskfoldError, match=r"may be xyz or yxz, because images/nifti/a\.nii\.gz"):
        case_table(host(tmp_path / "square", "nifti", "xyz", (14, 14, 6)))


def test_the_key_has_as_many_axes_as_the_images(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="`array_axes` must be xy or yx, because `dimensions` is 2"):
        competition(tmp_path, array_axes="zyx")


# Tables of run lengths


@pytest.mark.parametrize("shape", [(14, 14), (14, 18)])
def test_run_lengths_over_nifti_pictures(tmp_path: Path, shape: tuple[int, int]) -> None:
    """A host counts them down the columns of the picture, in the training table and in the submission."""
    bright, label = phantom(shape)
    write(tmp_path, "nifti", "a", bright)
    text = encode(label.T, RleFormat(order="column"))
    write_text(tmp_path / "train.csv", f"id,rle\na,{text}\n")
    comp = competition(tmp_path, train={"images": "nifti/{id}.nii.gz", "rle": "train.csv"})
    assert dice_with_bright_voxels(comp) == 1.0
    np.testing.assert_array_equal(load_instances(comp, first_case(comp)), label)
    assert encode(load_mask(comp, first_case(comp))[0], profile_of(comp).rle) == text


def test_run_lengths_by_slices_over_nifti_slices(tmp_path: Path) -> None:
    bright, label = phantom(SIZES["square"])
    lines = ["id,rle"]
    for z in range(6):
        write_nifti(tmp_path / f"a/s_{z}.nii", bright[:, :, z])
        lines.append(f"a_s_{z},{encode(label[:, :, z].T, RleFormat())}")
    write_text(tmp_path / "train.csv", "\n".join(lines) + "\n")
    comp = competition(tmp_path, dimensions=3, train={"images": "{id}/s_{z}.nii", "rle": "train.csv"})
    assert dice_with_bright_voxels(comp) == 1.0


def test_run_lengths_of_a_host_with_nifti_only_stay(tmp_path: Path) -> None:
    comp = host(tmp_path, "nifti", "nifti", (14, 18))
    assert profile_of(comp).rle == RleFormat(order="column")


# Written label files


@pytest.mark.parametrize("kind", ["nifti", "png", "tiff", "zyx"])
def test_label_files_of_volumes_lie_on_the_image(tmp_path: Path, kind: str) -> None:
    """A written label file, read as the mask of the same images, is the same mask; its axes are NIfTI's."""
    import nibabel

    shape, axes = SIZES["oblong"], {"array_axes": "zyx"} if kind == "zyx" else {}
    comp = host(tmp_path, kind, kind, shape, spacing=[1.5, 2.5, 3.5], **axes)
    row = first_case(comp)
    source = Path(comp.root) / str(np.ravel(next(iter(json.loads(row.images).values())))[0])
    written = _save(tmp_path / "out" / "a", load_mask(comp, row)[0], source, row, comp)
    np.testing.assert_array_equal(np.asarray(nibabel.load(written).dataobj), phantom(shape)[1])
    expected = {"nifti": [1, 1, 1], "png": [2.5, 1.5, 3.5], "tiff": [2.5, 1.5, 3.5], "zyx": [3.5, 2.5, 1.5]}[kind]
    np.testing.assert_allclose(np.diag(nibabel.load(written).affine)[:3], expected)
    train = {"images": comp.train.images, "masks": "out/{id}.nii.gz"}
    again = competition(tmp_path, dimensions=3, train=train, **axes)
    assert dice_with_bright_voxels(again) == 1.0


@pytest.mark.parametrize("kind", ["nifti", "png"])
def test_label_pictures_lie_on_the_image(tmp_path: Path, kind: str) -> None:
    import cv2

    comp = host(tmp_path, kind, kind, (14, 18))
    row = first_case(comp)
    written = _save(tmp_path / "out" / "a", load_mask(comp, row)[0], tmp_path / "any", row, comp)
    np.testing.assert_array_equal(cv2.imread(str(written), cv2.IMREAD_UNCHANGED), phantom((14, 18))[1].T)


# What stays


def test_slices_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for z in range(12):
        write_png(tmp_path / f"images/a/{z}.png", np.full((5, 6), z, np.uint8))
        write_png(tmp_path / f"masks/a/{z:03}.png", np.full((5, 6), z == 10, np.uint8))
    comp = competition(tmp_path, dimensions=3, train={"images": "images/{id}/{z}.png", "masks": "masks/{id}/{z}.png"})
    row = first_case(comp)
    np.testing.assert_array_equal(load_image(comp, row).array[0, 0, 0], range(12))
    np.testing.assert_array_equal(load_mask(comp, row)[0, 0, 0], np.arange(12) == 10)


@pytest.mark.parametrize("kind", ["nifti", "png", "tiff", "zyx"])
def test_hosts_of_one_format_keep_their_hashes(tmp_path: Path, kind: str) -> None:
    """The hash of the bytes alone, and the arrays as the files have them; mixed formats have another hash."""
    comp = host(tmp_path, kind, kind, SIZES["square"])
    row, root = first_case(comp), Path(comp.root)

    def digest(files: str | list[str]) -> bytes:
        if isinstance(files, str):
            return file_digest(root / files)
        return bytes.fromhex(combined_digest(file_digest(root / path) for path in files))

    image = combined_digest([digest(json.loads(row.images)["image"])])
    assert row.image_hash == image
    assert row.hash == combined_digest([bytes.fromhex(image), digest(json.loads(row.masks)["files"])])
    bright = phantom(SIZES["square"])[0]
    expected = {"nifti": bright, "zyx": bright.T}.get(kind, bright.transpose(1, 0, 2))
    np.testing.assert_array_equal(load_image(comp, row).array[0], expected)


def test_a_case_of_two_formats_has_another_hash_than_its_bytes(tmp_path: Path) -> None:
    """Earlier versions cached its mask transposed, under the hash of the bytes."""
    comp = host(tmp_path, "nifti", "tiff", SIZES["square"])
    row, root = first_case(comp), Path(comp.root)
    bytes_alone = combined_digest([bytes.fromhex(row.image_hash), file_digest(root / json.loads(row.masks)["files"])])
    assert row.hash != bytes_alone
