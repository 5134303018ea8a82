"""Every format gives the pixels that were written, and every broken file one clear error."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from competition.data.readers import exif_orientation, read_header, read_image, read_labels, strip_extension
from competition.errors import MaskfoldError
from tests.host import write_nifti, write_png

RNG = np.random.default_rng(5)
GREY8 = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
GREY16 = RNG.integers(0, 2**16, (5, 7), dtype=np.uint16)
RGB8 = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGBA8 = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
RGB16 = RNG.integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
RGBA16 = RNG.integers(0, 2**16, (5, 7, 4), dtype=np.uint16)


def channels_first(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


@pytest.mark.parametrize("array", [GREY8, GREY16, RGB8, RGBA8, RGB16, RGBA16], ids=lambda a: f"{a.dtype}{a.shape}")
def test_png_keeps_depth_and_channels(tmp_path: Path, array: np.ndarray) -> None:
    path = write_png(tmp_path / "a.PNG", array)
    picture = read_image(path)
    np.testing.assert_array_equal(picture.array, channels_first(array))
    assert picture.array.dtype == array.dtype
    assert (picture.spacing, picture.affine) == ((1.0, 1.0), None)
    head = read_header(path)
    assert (head.shape, head.channels, head.dtype) == ((5, 7), len(picture.array), str(array.dtype))


@pytest.mark.parametrize("name", ["a.bmp", "a.png", "a.tif"])
def test_lossless_colours(tmp_path: Path, name: str) -> None:
    Image.fromarray(RGB8).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name).array, channels_first(RGB8))


def test_jpeg_is_read_as_stored_whatever_its_exif_says(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (16, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90°
    Image.fromarray(smooth).save(tmp_path / "a.jpg", exif=exif, quality=95)
    picture = read_image(tmp_path / "a.jpg")
    assert picture.array.shape == (1, 16, 32) == (1, *read_header(tmp_path / "a.jpg").shape)
    assert np.abs(picture.array[0].astype(int) - smooth).max() < 8


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied_on_request(tmp_path: Path, orientation: int, name: str) -> None:
    pixels = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    reference = tmp_path / (name if name == "a.jpg" else "reference.png")  # Pillow itself turns TIFF files
    Image.fromarray(pixels).save(reference, exif=exif)
    with Image.open(reference) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    assert exif_orientation(tmp_path / name) == orientation
    np.testing.assert_array_equal(read_image(tmp_path / name, exif=True).array[0], expected)
    np.testing.assert_array_equal(read_labels(tmp_path / name, exif=True)[0], expected)
    assert read_header(tmp_path / name, exif=True).shape == expected.shape
    assert read_header(tmp_path / name).shape == read_image(tmp_path / name).array.shape[1:] == (6, 4)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_lzw_tiff_is_read_as_stored_whatever_its_orientation(tmp_path: Path, orientation: int, depth: type) -> None:
    """Pillow and OpenCV decode LZW, and Pillow turns TIFF files by itself."""
    pixels = RNG.integers(0, np.iinfo(depth).max, (6, 4), dtype=depth)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.tif", exif=exif, compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array[0], pixels)


def test_damaged_exif_says_nothing(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert exif_orientation(tmp_path / "a.jpg") == 1 == exif_orientation(tmp_path / "missing.png")
    assert read_image(tmp_path / "a.jpg", exif=True).array.shape == (1, 3, 4)


def test_palette_is_colours_for_images_and_indices_for_labels(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    colours = [0, 0, 0, 200, 10, 20, 30, 40, 250]
    for name in ("a.png", "a.gif", "a.tif"):
        picture = Image.fromarray(indices)
        picture.putpalette(colours)
        picture.save(tmp_path / name)
        np.testing.assert_array_equal(read_labels(tmp_path / name)[0], indices)
        found = read_image(tmp_path / name)
        np.testing.assert_array_equal(found.array[:3, 0, 1], [200, 10, 20])
        assert read_header(tmp_path / name).channels == len(found.array)


def test_palette_with_transparency(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette([1, 2, 3, 4, 5, 6])
    picture.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").array[:, 0], [[1, 4], [2, 5], [3, 6], [0, 255]])
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png")[0], [[0, 1]])


def test_one_bit_is_0_and_255_for_images_and_0_and_1_for_labels(tmp_path: Path) -> None:
    mask = np.eye(9, dtype=bool)
    for name in ("a.png", "a.tif", "a.bmp"):
        Image.fromarray(mask).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name).array[0], mask * 255)
        if name != "a.bmp":
            np.testing.assert_array_equal(read_labels(tmp_path / name)[0], mask)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bare_png(path: Path, width: int, height: int, depth: int, rows: bytes) -> Path:
    """A grey PNG with the header one likes."""
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )
    return path


def test_labels_of_two_and_four_bits_are_not_stretched(tmp_path: Path) -> None:
    four = bare_png(tmp_path / "a.png", 2, 1, 4, bytes([0, 0x3F]))
    np.testing.assert_array_equal(read_labels(four)[0], [[3, 15]])
    np.testing.assert_array_equal(read_image(four).array, [[[51, 255]]])
    two = bare_png(tmp_path / "b.png", 4, 1, 2, bytes([0, 0b00011011]))
    np.testing.assert_array_equal(read_labels(two)[0], [[0, 1, 2, 3]])


def test_grey_and_alpha(tmp_path: Path) -> None:
    array = np.stack([GREY8, 255 - GREY8], axis=-1)
    Image.fromarray(array).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").array, channels_first(array))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pages_of_a_tiff_are_channels_or_slices(tmp_path: Path, dtype: type) -> None:
    pages = (RNG.random((4, 5, 6)) * 200).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tiff", pages, photometric="minisblack")
    flat, volume = read_image(tmp_path / "a.tiff", 2), read_image(tmp_path / "a.tiff", 3)
    np.testing.assert_array_equal(flat.array, pages)
    np.testing.assert_array_equal(volume.array, np.moveaxis(pages, 0, -1)[None])
    assert (flat.spacing, volume.spacing, volume.array.dtype) == ((1.0, 1.0), (1.0, 1.0, 1.0), np.dtype(dtype))
    heads = read_header(tmp_path / "a.tiff", 2), read_header(tmp_path / "a.tiff", 3)
    assert [(head.shape, head.channels) for head in heads] == [((5, 6), 4), ((5, 6, 4), 1)]
    np.testing.assert_array_equal(
        read_labels(tmp_path / "a.tiff", 3)[0], np.rint(np.moveaxis(pages, 0, -1))
    ) if dtype != np.float32 else None


def test_single_row_pages(tmp_path: Path) -> None:
    pages = RNG.integers(0, 9, (5, 1, 7), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 3).array, np.moveaxis(pages, 0, -1)[None])


@pytest.mark.parametrize("array", [RGB8, RGBA8, RGB16], ids=["rgb8", "rgba8", "rgb16"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour_tiff(tmp_path: Path, array: np.ndarray, planar: str) -> None:
    stored = array if planar == "contig" else np.moveaxis(array, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, compression="zlib")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array, channels_first(array))


def test_colour_pages(tmp_path: Path) -> None:
    pages = RNG.integers(0, 255, (4, 5, 6, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 3).array, np.transpose(pages, (3, 1, 2, 0)))
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.tif", 2).array, np.transpose(pages, (0, 3, 1, 2)).reshape(12, 5, 6)
    )


def test_imagej_names_slices_and_channels(tmp_path: Path) -> None:
    array = RNG.integers(0, 2**16, (5, 2, 6, 7), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "ZCYX"})
    picture = read_image(tmp_path / "a.tif", 3)
    np.testing.assert_array_equal(picture.array, np.transpose(array, (1, 2, 3, 0)))
    assert read_header(tmp_path / "a.tif", 3).channels == 2


def test_lzw_is_read_without_imagecodecs(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.tif"), RGB16[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    assert tifffile.TiffFile(tmp_path / "a.tif").pages[0].compression == 5
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array, channels_first(RGB16))


def test_codes_of_libtiff_keep_bits_and_palettes(tmp_path: Path) -> None:
    mask = np.eye(16, dtype=bool)
    for photometric in (0, 1):
        Image.fromarray(mask ^ (photometric == 0)).save(
            tmp_path / "a.tif", compression="group4", tiffinfo={262: photometric}
        )
        assert tifffile.TiffFile(tmp_path / "a.tif").pages[0].photometric == photometric
        labels, image = read_labels(tmp_path / "a.tif")[0], read_image(tmp_path / "a.tif").array[0]
        np.testing.assert_array_equal(labels * 255, image)
        np.testing.assert_array_equal(labels, np.asarray(Image.open(tmp_path / "a.tif")))
    palette = Image.fromarray(mask.astype(np.uint8))
    palette.putpalette([0, 0, 0, 255, 10, 20])
    palette.save(tmp_path / "b.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_labels(tmp_path / "b.tif")[0], mask)
    assert read_image(tmp_path / "b.tif").array[:, 3, 3].tolist() == [255, 10, 20]
    pages = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in range(3)]
    pages[0].save(tmp_path / "c.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    assert read_image(tmp_path / "c.tif", 3).array[1, 0, 0].tolist() == [0, 1, 2]


def test_sixteen_bits_with_one_transparent_colour(tmp_path: Path) -> None:
    row = struct.pack(">6H", 1000, 65535, 2000, 300, 1, 2)
    head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + png_chunk(b"tRNS", row[:6])
        + png_chunk(b"IDAT", zlib.compress(b"\0" + row))
        + png_chunk(b"IEND", b"")
    )
    assert read_image(tmp_path / "a.png").array[:, 0].tolist() == [[1000, 300], [65535, 1], [2000, 2]]
    assert read_header(tmp_path / "a.png").channels == 3


def test_white_is_zero(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", 255 - GREY8, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array[0], GREY8)


def test_nifti_keeps_integers_and_scales_to_float(tmp_path: Path) -> None:
    array = RNG.integers(-500, 500, (4, 5, 6), dtype=np.int16)
    affine = np.diag([-0.5, 0.5, 2.0, 1.0])
    plain = read_image(write_nifti(tmp_path / "a.nii.gz", array, affine))
    np.testing.assert_array_equal(plain.array[0], array)
    assert plain.array.dtype == np.int16 and plain.spacing == (0.5, 0.5, 2.0)
    np.testing.assert_array_equal(plain.affine, affine)

    image = nibabel.Nifti1Image(array, affine)
    image.header.set_slope_inter(2.0, -7.0)
    nibabel.save(image, tmp_path / "b.nii")
    raw = nibabel.load(tmp_path / "b.nii").dataobj.get_unscaled().astype(np.float64)
    scaled = read_image(tmp_path / "b.nii")
    np.testing.assert_allclose(scaled.array[0], raw * 2 - 7)
    assert scaled.array.dtype == np.float32 and read_header(tmp_path / "b.nii").dtype == "float32"


def test_fourth_axis_of_nifti_is_channels(tmp_path: Path) -> None:
    array = RNG.random((4, 5, 6, 2))
    picture = read_image(write_nifti(tmp_path / "a.nii", array))
    np.testing.assert_array_equal(picture.array, np.moveaxis(array, -1, 0).astype(np.float32))
    assert picture.array.dtype == np.float32
    assert read_header(tmp_path / "a.nii").channels == 2
    five = read_image(write_nifti(tmp_path / "b.nii", array[:, :, :, None]))
    np.testing.assert_array_equal(five.array, picture.array)


def test_flat_nifti_is_a_picture(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", GREY8[..., None], np.diag([0.5, 0.25, 1.0, 1.0]))
    picture = read_image(path, 2)
    np.testing.assert_array_equal(picture.array, GREY8[None])
    assert picture.spacing == (0.5, 0.25)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_nifti_units_become_mm(tmp_path: Path, unit: str, factor: float) -> None:
    picture = read_image(
        write_nifti(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8), np.diag([2.0, 3, 4, 1]), units=unit)
    )
    np.testing.assert_allclose(picture.spacing, np.array([2, 3, 4]) * factor)
    assert picture.affine is not None
    np.testing.assert_allclose(np.diag(picture.affine)[:3], np.array([2, 3, 4]) * factor)


def test_big_endian_nifti(tmp_path: Path) -> None:
    array = RNG.integers(0, 500, (4, 5, 6)).astype(np.int16)
    image = nibabel.Nifti1Image(array.astype(">i2"), np.eye(4), header=nibabel.Nifti1Header(endianness=">"))
    nibabel.save(image, tmp_path / "a.nii")
    picture = read_image(tmp_path / "a.nii")
    np.testing.assert_array_equal(picture.array[0], array)
    assert picture.array.dtype.isnative


def patch_nifti(path: Path, offset: int, data: bytes) -> Path:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    path.write_bytes(raw)
    return path


def test_nifti_without_a_voxel_size_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8))
    patch_nifti(path, 84, struct.pack("<f", 0.0))  # pixdim[2]
    for read in (read_header, read_image):
        with pytest.raises(MaskfoldError, match=r"a\.nii .*voxel size: found 1 × 0 × 1 mm"):
            read(path)


def test_nifti_with_a_singular_affine_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8))
    patch_nifti(path, 280, struct.pack("<12f", 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0))  # srow: two equal columns are 0
    with pytest.raises(MaskfoldError, match=r"a\.nii has an affine"):
        read_header(path)


def test_npy_and_npz(tmp_path: Path) -> None:
    volume = RNG.random((4, 5, 6))
    np.save(tmp_path / "a.npy", volume)
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy", 3).array, volume[None].astype(np.float32))
    np.save(tmp_path / "b.npy", RGB16)
    np.testing.assert_array_equal(read_image(tmp_path / "b.npy").array, channels_first(RGB16))
    np.save(tmp_path / "c.npy", channels_first(RGB16))
    np.testing.assert_array_equal(read_image(tmp_path / "c.npy").array, channels_first(RGB16))
    np.savez_compressed(tmp_path / "d.npz", anything=GREY16)
    np.testing.assert_array_equal(read_image(tmp_path / "d.npz").array[0], GREY16)
    np.savez(tmp_path / "e.npz", image=GREY16, mask=GREY8 > 100)
    np.testing.assert_array_equal(read_image(tmp_path / "e.npz").array[0], GREY16)
    np.testing.assert_array_equal(read_labels(tmp_path / "e.npz")[0], GREY8 > 100)
    assert read_header(tmp_path / "e.npz", labels=True).dtype == "uint8"
    np.savez(tmp_path / "f.npz", one=GREY16, two=GREY16)
    with pytest.raises(MaskfoldError, match="found the arrays one, two"):
        read_image(tmp_path / "f.npz")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", np.array([Trap()], dtype=object), allow_pickle=True)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(MaskfoldError, match="cannot be read"):
            read_image(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_label_file_of_equal_channels(tmp_path: Path) -> None:
    labels = RNG.integers(0, 3, (5, 7), dtype=np.uint8)
    rgb = np.stack([labels] * 3, axis=-1)
    opaque = np.concatenate([rgb, np.full((5, 7, 1), 255, np.uint8)], axis=-1)
    for array in (rgb, opaque):
        np.testing.assert_array_equal(read_labels(write_png(tmp_path / "a.png", array))[0], labels)
    for array in (RGB8, RGBA8, np.concatenate([rgb, GREY8[..., None]], axis=-1)):
        with pytest.raises(MaskfoldError, match=r"a\.png has \d channels"):
            read_labels(write_png(tmp_path / "a.png", array))


def test_float_labels(tmp_path: Path) -> None:
    labels = RNG.integers(0, 3, (3, 4, 5)).astype(np.float32)
    found, affine = read_labels(write_nifti(tmp_path / "a.nii", labels))
    np.testing.assert_array_equal(found, labels)
    assert found.dtype.kind == "i" and affine is not None
    with pytest.raises(MaskfoldError, match=r"b\.nii has label values that are not whole numbers"):
        read_labels(write_nifti(tmp_path / "b.nii", labels + 0.3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.npy", "a.tif"])
def test_values_that_are_not_finite(tmp_path: Path, name: str, bad: float) -> None:
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 2, 3] = bad
    if name.endswith(".gz"):
        write_nifti(tmp_path / name, array)
    elif name.endswith(".npy"):
        np.save(tmp_path / name, array)
    else:
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack")
    with pytest.raises(MaskfoldError, match=rf"{name} has 1 NaN or infinite value.*on_bad_case=skip"):
        read_image(tmp_path / name, 3)


def whole_files(folder: Path) -> list[Path]:
    """One sound file of each format, large enough to lose half of it."""
    noise = RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    deep = RNG.integers(0, 2**16, (64, 64, 3), dtype=np.uint16)
    for name in ("a.png", "a.jpg", "a.bmp", "a.gif"):
        Image.fromarray(noise).save(folder / name)
    write_png(folder / "deep.png", deep)
    tifffile.imwrite(folder / "a.tif", noise, photometric="rgb")
    tifffile.imwrite(folder / "b.tif", noise, photometric="rgb", compression="zlib")
    write_nifti(folder / "a.nii", noise)
    write_nifti(folder / "a.nii.gz", noise)
    np.save(folder / "a.npy", noise)
    np.savez(folder / "a.npz", noise)
    return sorted(folder.iterdir())


def test_files_that_are_cut_off_empty_or_something_else(tmp_path: Path) -> None:
    files = whole_files(tmp_path)
    assert len(files) == 11
    for path in files:
        dimensions = 3 if ".nii" in path.name else 2
        read_image(path, dimensions)
        whole = path.read_bytes()
        for broken in (whole[: len(whole) // 2], whole[:20], b"", b"<html>404 not found</html>" * 40):
            path.write_bytes(broken)
            with pytest.raises(MaskfoldError) as error:
                read_image(path, dimensions)
            assert f"{path} cannot be read" in error.value.message and "on_bad_case=skip" in error.value.hint


def test_absurd_sizes_are_refused_before_they_are_allocated(tmp_path: Path) -> None:
    huge = bare_png(tmp_path / "a.png", 2**31 - 1, 2**31 - 1, 8, b"\0")
    nifti = write_nifti(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.uint8))
    import gzip

    raw = bytearray(gzip.decompress(nifti.read_bytes()))
    raw[42:48] = struct.pack("<3h", 32767, 32767, 32767)
    nifti.write_bytes(gzip.compress(bytes(raw)))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    (tmp_path / "a.npy").write_bytes(header.getvalue() + b"0" * 64)
    for path in (huge, nifti, tmp_path / "a.npy"):
        with pytest.raises(MaskfoldError, match=r"cannot be read \(its header declares [\d,]+ bytes"):
            read_header(path)


def test_bombs_that_pack_well_need_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An honest archive of zeros, on a machine with 1 MB free."""
    import psutil

    class Memory:
        available = 2**20

    np.savez_compressed(tmp_path / "a.npz", np.zeros((2000, 2000), np.uint8))
    Image.fromarray(np.zeros((2000, 2000), np.uint8)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2000, 2000), np.uint8), compression="zlib")
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    for name in ("a.npz", "a.png", "a.tif"):
        with pytest.raises(MaskfoldError, match="GiB of memory are free"):
            read_image(tmp_path / name)


def test_archive_that_lies_about_its_member(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 10**3)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(10**6))
    with pytest.raises(MaskfoldError, match="declares"):
        read_image(tmp_path / "a.npz")


def test_dimensions_that_do_not_fit(tmp_path: Path) -> None:
    png = write_png(tmp_path / "a.png", GREY8)
    tifffile.imwrite(tmp_path / "a.tif", GREY8)
    for path in (png, tmp_path / "a.tif"):
        with pytest.raises(MaskfoldError, match=r"\(5×7\), .*competition.dimensions is 3.*\{z\}"):
            read_header(path, 3)
    nifti = write_nifti(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8))
    with pytest.raises(MaskfoldError, match="competition.dimensions is 2"):
        read_image(nifti, 2)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(MaskfoldError, match=r"a\.png does not exist"):
        read_image(tmp_path / "a.png")
    with pytest.raises(MaskfoldError, match=r"a\.txt .*extension.*\.nii\.gz"):
        read_image(tmp_path / "a.txt")
    with pytest.raises(MaskfoldError, match="maskfold dicom"):
        read_image(tmp_path / "a.dcm")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(MaskfoldError, match=r"b\.png cannot be read"):
        read_image(tmp_path / "b.png")


def test_arrays_of_no_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((0, 5)))
    for read in (read_header, read_image):
        with pytest.raises(MaskfoldError, match="its shape is 0×5"):
            read(tmp_path / "a.npy")


def test_stem_keeps_dots_of_the_name() -> None:
    assert [strip_extension(name) for name in ("a.b.nii.gz", "a.PNG", "a.v2", "a")] == ["a.b", "a", "a.v2", "a"]


def test_a_missing_package_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.int16), np.eye(4))
    for name in [name for name in sys.modules if name.split(".")[0] == "nibabel"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MaskfoldError, match="a.nii.gz .*nibabel.*pip install nibabel") as caught:
        read_image(path)
    assert caught.value.status == 2  # `on_bad_case: skip` leaves out cases, and would all of them


OME = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="6" SizeY="5" SizeZ="2" SizeC="1"
 SizeT="1"><TiffData IFD="0" FirstZ="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>
<TiffData IFD="{ifd}" FirstZ="1" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{number}</UUID></TiffData></Pixels>
</Image></OME>"""


@pytest.mark.parametrize("name", ["b.ome.tif", "../secret.tif", "/etc/secret.tif", "missing.tif", "&#98;.tif"])
def test_an_ome_file_reads_no_pixels_of_other_files(tmp_path: Path, name: str) -> None:
    """tifffile reads them, in any folder, and takes the pixels of a missing file as 0."""
    folder = tmp_path / "images"
    folder.mkdir()
    page = np.arange(30, dtype=np.uint8).reshape(1, 5, 6)
    for path in (folder / "b.ome.tif", tmp_path / "secret.tif"):
        tifffile.imwrite(path, page, metadata=None)
    xml = OME.format(ifd=0, name=name, number=2)
    tifffile.imwrite(folder / "a.ome.tif", page, description=xml.encode(), metadata=None)
    for read in (read_image, read_header, read_labels):
        with pytest.raises(MaskfoldError, match="OME metadata say that the pixels are in"):
            read(folder / "a.ome.tif", 3)


def test_an_ome_file_that_names_itself_is_read(tmp_path: Path) -> None:
    pages = np.arange(60, dtype=np.uint8).reshape(2, 5, 6)
    xml = OME.format(ifd=1, name="a.ome.tif", number=1)
    tifffile.imwrite(tmp_path / "a.ome.tif", pages, description=xml.encode(), metadata=None, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.ome.tif", 3).array[0], pages.transpose(1, 2, 0))
