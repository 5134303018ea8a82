"""The map between file grid and preprocessed grid can be inverted exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from competition.config.experiment import PreprocessingConfig
from competition.data.geometry import Geometry, nonzero_box, resample, resample_2d, resample_labels
from competition.errors import MaskfoldError


def affine(spacing: tuple[float, ...], codes: str = "RAS") -> np.ndarray:
    """Voxel-to-world of a file whose axes run towards `codes`."""
    matrix = np.zeros((4, 4))
    for axis, code in enumerate(codes):
        world = ["LR", "PA", "IS"].index(next(pair for pair in ("LR", "PA", "IS") if code in pair))
        matrix[world, axis] = spacing[axis] * (1 if code in "RAS" else -1)
    matrix[:3, 3], matrix[3, 3] = (-7.0, 11.0, 3.0), 1
    return matrix


def plan(
    array: np.ndarray,
    mm: tuple[float, ...] = (1.0, 1.0, 1.0),
    codes: str = "RAS",
    background: bool = True,
    **prepare: object,
) -> Geometry:
    if array.ndim == 3:
        return Geometry.plan(array, (1.0, 1.0), None, PreprocessingConfig(**prepare), background, "case_1")
    return Geometry.plan(array, mm, affine(mm, codes), PreprocessingConfig(**prepare), background, "case_1")


def blobs(shape: tuple[int, ...], spacing: tuple[float, ...], voxels: int, classes: int = 2) -> np.ndarray:
    """(*shape) uint8: balls (in mm) of about `voxels` voxels, side by side along the first axis."""
    mask = np.zeros(shape, np.uint8)
    at = np.meshgrid(*[(np.arange(n) + 0.5) * mm for n, mm in zip(shape, spacing, strict=True)], indexing="ij")
    dims = len(shape)
    content = voxels * float(np.prod(spacing))
    radius = (content * 3 / 4 / np.pi) ** (1 / 3) if dims == 3 else (content / np.pi) ** 0.5
    for index in range(classes):
        centre = [n * mm * 0.51 for n, mm in zip(shape, spacing, strict=True)]
        centre[0] = shape[0] * spacing[0] * (index + 0.5) / classes
        distance = sum((x - c) ** 2 for x, c in zip(at, centre, strict=True)) ** 0.5
        mask[distance < radius] = index + 1
    return mask


def one_hot(mask: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([mask == value for value in range(classes + 1)]).astype(np.float32)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL", "SRA"])
@pytest.mark.parametrize("wanted", ["RAS", "LPI", "SAR"])
def test_reorienting_keeps_each_voxel_at_its_place_in_the_world(codes: str, wanted: str) -> None:
    from nibabel.orientations import aff2axcodes

    image = np.arange(4 * 5 * 6, dtype=np.float32).reshape(1, 4, 5, 6)
    geometry = plan(image, (1.0, 2.0, 3.0), codes, orientation=wanted)
    turned = geometry.forward(image, order=1)
    # nibabel as the witness: the same change by its own as_reoriented
    import nibabel

    file = nibabel.Nifti1Image(image[0], affine((1.0, 2.0, 3.0), codes))
    change = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(file.affine), nibabel.orientations.axcodes2ornt(wanted)
    )
    witness = file.as_reoriented(change)
    assert "".join(aff2axcodes(witness.affine)) == wanted
    np.testing.assert_array_equal(turned[0], np.asarray(witness.dataobj))
    np.testing.assert_allclose(geometry.spacing, witness.header.get_zooms())
    np.testing.assert_array_equal(geometry.inverse(turned), image)


@pytest.mark.parametrize(
    "prepare",
    [
        {},
        {"orientation": "PIR"},
        {"crop": "nonzero"},
        {"orientation": "LPS", "crop": "nonzero"},
        {"spacing": [1.0, 1.0, 1.0]},
        {"resize": [7, 11, 10]},
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_without_resampling_the_way_back_is_lossless(prepare: dict[str, object], dtype: type) -> None:
    random = np.random.default_rng(0)
    image = np.zeros((2, 7, 6, 10), np.int16)
    image[:, 1:6, 2:6, 3:8] = random.integers(1, 100, (2, 5, 4, 5))
    geometry = plan(image, codes="LAS", **prepare)
    assert geometry.lossless
    back = geometry.inverse(random.random((3, *geometry.shape)).astype(dtype))
    assert back.shape == (3, 7, 6, 10) and back.dtype == dtype
    mask = (image > 50).astype(np.uint8)
    returned = geometry.inverse(geometry.forward(mask, order=0).astype(dtype))
    np.testing.assert_array_equal(returned[1], mask[1])
    np.testing.assert_array_equal(returned[0][mask[0] == 1], 1)  # beyond a crop channel 0 is 1, which a mask is not


def test_outside_of_the_crop_the_background_is_certain() -> None:
    image = np.zeros((1, 8, 8, 8), np.float32)
    image[0, 2:5, 3:6, 1:7] = 1
    for background in (True, False):
        geometry = plan(image, crop="nonzero", background=background)
        assert geometry.shape == (3, 3, 6)
        back = geometry.inverse(np.full((2, 3, 3, 6), 0.25, np.float16))
        assert back[0, 0, 0, 0] == (1 if background else 0) and back[1, 0, 0, 0] == 0
        assert (back[:, 2:5, 3:6, 1:7] == 0.25).all() and (back == 0.25).sum() == 2 * 3 * 3 * 6


def test_nonzero_box() -> None:
    image = np.zeros((2, 5, 6, 7), np.int16)
    assert nonzero_box(image) == ((0, 5), (0, 6), (0, 7))  # nothing in it: kept whole
    image[0, 1, 2, 3], image[1, 3, 2, 5] = 4, -1
    assert nonzero_box(image) == ((1, 4), (2, 3), (3, 6))
    assert nonzero_box(image[:, 1]) == ((2, 3), (3, 4))


@pytest.mark.parametrize(
    ("shape", "spacing", "prepare"),
    [
        ((40, 20, 40), (1.0, 2.0, 1.0), {"spacing": [1.0, 1.0, 1.0], "orientation": "PIR"}),
        ((40, 40, 14), (0.8, 0.8, 3.0), {"spacing": [0.8, 0.8, 0.8], "orientation": "LPS"}),
        ((40, 40, 14), (0.8, 0.8, 3.0), {"spacing": [1.0, 1.0, 1.0], "orientation": "RAS"}),
        ((40, 40, 20), (1.0, 1.0, 2.0), {"spacing": [1.2, 1.2, 1.2]}),
        ((44, 40, 36), (1.0, 1.0, 1.0), {"resize": [64, 64, 64]}),
        ((36, 36, 36), (1.0, 1.0, 1.0), {"spacing": [0.9, 0.7, 1.0], "crop": "nonzero"}),
    ],
)
def test_resampled_probabilities_come_back(
    shape: tuple[int, ...], spacing: tuple[float, ...], prepare: dict[str, object]
) -> None:
    truth = blobs(shape, spacing, 1000, classes=1)
    image = truth[None].astype(np.float32) + 1
    geometry = plan(image, spacing, "LAS", **prepare)
    assert not geometry.lossless
    soft = geometry.inverse(geometry.forward(one_hot(truth, 1), order=1).astype(np.float16))
    assert soft.shape == (2, *shape) and soft.dtype == np.float16
    np.testing.assert_allclose(soft.astype(np.float32).sum(0), 1, atol=2e-3)
    assert dice(soft.argmax(0) == 1, truth == 1) >= 0.99
    hard = geometry.inverse(one_hot(geometry.forward(truth[None], order=0)[0], 1))
    assert dice(hard.argmax(0) == 1, truth == 1) >= 0.97


@pytest.mark.parametrize("want", [(0.7, 0.7, 0.7), (1.0, 1.0, 0.5), (0.9, 1.0, 1.0)])
def test_masks_on_a_finer_grid_come_back(want: tuple[float, ...]) -> None:
    truth = blobs((60, 30, 30), (1.0, 1.0, 1.0), 1000)
    geometry = plan(truth[None], spacing=list(want))
    back = geometry.inverse(one_hot(geometry.forward(truth[None], order=0)[0], 2)).argmax(0)
    assert min(dice(back == value, truth == value) for value in (1, 2)) >= 0.98


def test_pictures_are_resized_with_their_ratio_and_centred() -> None:
    picture = np.full((3, 50, 100), 200, np.uint8)
    geometry = plan(picture, resize=[64, 64])
    prepared = geometry.forward(picture, order=1)
    assert prepared.shape == (3, 64, 64) and prepared.dtype == np.uint8
    assert (prepared[:, 16:48] == 200).all() and (prepared[:, :16] == 0).all() and (prepared[:, 48:] == 0).all()
    truth = blobs((50, 100), (1.0, 1.0), 1000, classes=1)
    for size in ([64, 64], [128, 200], [40, 90]):
        geometry = plan(picture, resize=size)
        back = geometry.inverse(one_hot(geometry.forward(truth[None], order=0)[0], 1).astype(np.float16))
        assert back.shape == (2, 50, 100) and dice(back.argmax(0) == 1, truth == 1) >= 0.96
        soft = geometry.inverse(geometry.forward(one_hot(truth, 1), order=1))
        assert dice(soft.argmax(0) == 1, truth == 1) >= 0.98


def test_picture_resampling_averages_areas() -> None:
    board = np.indices((8, 8)).sum(0).astype(np.float32) % 2
    np.testing.assert_allclose(resample_2d(board, (4, 4)), 0.5)
    assert resample_2d(board.astype(np.uint8) * 255, (16, 16)).dtype == np.uint8


def test_linear_resampling_aligns_outer_edges() -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, 3, 2))
    halved = resample(ramp, (4, 3, 2))  # a coarse voxel's centre lies between two fine ones
    np.testing.assert_allclose(halved[:, 0, 0], [0.5, 2.5, 4.5, 6.5])
    np.testing.assert_array_equal(halved[:, 1, 1], halved[:, 0, 0])
    same = resample(ramp, (8, 3, 2))
    np.testing.assert_array_equal(same, ramp)
    assert same.flags.writeable and not np.shares_memory(same, ramp)


@pytest.mark.parametrize("shape", [(17, 11, 9), (5, 13, 20)])
def test_labels_are_never_mixed_and_ignore_survives(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    mask = np.kron(random.choice([0, 1, 7, 255], (3, 4, 4)), np.ones((4, 3, 3))).astype(np.uint8)
    assert set(np.unique(resample_labels(mask, shape))) == {0, 1, 7, 255}


@pytest.mark.parametrize("shape", [(6, 10), (6, 10, 4)])
def test_object_numbers_are_resampled(shape: tuple[int, ...]) -> None:
    objects = np.zeros(shape, np.int32)
    objects[:2, :5], objects[4:, 5:] = 1, 2**24 + 1
    finer = resample_labels(objects, tuple(2 * n for n in shape))
    np.testing.assert_array_equal(finer, np.kron(objects, np.ones([2] * len(shape), np.int32)))
    assert finer.dtype == np.int32
    assert set(np.unique(resample_labels(objects, (3, *shape[1:])))) == {0, 1, 2**24 + 1}


def test_a_flipped_axis_of_length_one_can_be_resampled() -> None:
    image = np.arange(48, dtype=np.float32).reshape(1, 6, 8, 1)
    geometry = plan(image, (1.0, 1.0, 5.0), "RAI", orientation="RAS", spacing=[2.0, 2.0, 5.0])
    assert geometry.flips == (False, False, True)
    expected = resample(image[0], (3, 4, 1))
    np.testing.assert_array_equal(geometry.forward(image, order=1)[0], expected)
    assert geometry.forward(np.ones((1, 6, 8, 1), np.uint8), order=0).all()


def test_ties_do_not_remove_thin_structures() -> None:
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[8] = 1  # one voxel thin: exactly half of a voxel that is twice as large
    assert resample_labels(mask, (8, 8, 8)).any() or resample_labels(np.roll(mask, 1, axis=0), (8, 8, 8)).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 5), (3, 1, 1), (2, 2, 40)])
@pytest.mark.parametrize(
    "prepare",
    [
        {"spacing": [3.0, 0.5, 2.0], "orientation": "LPS"},
        {"resize": [4, 5, 6]},
        {"crop": "nonzero"},
        {"spacing": [50.0, 50.0, 50.0]},
    ],
)
def test_tiny_volumes(shape: tuple[int, ...], prepare: dict[str, object]) -> None:
    image = np.ones((1, *shape), np.int16)
    geometry = plan(image, (1.0, 1.0, 1.0), "SRA", **prepare)
    prepared = geometry.forward(image, order=1)
    assert prepared.shape == (1, *geometry.shape) and prepared.dtype == np.float32 and min(geometry.resampled) >= 1
    np.testing.assert_allclose(geometry.inverse(prepared), image)


def test_spacing_follows_the_reoriented_axes_and_equal_ones_stay() -> None:
    image = np.zeros((1, 10, 20, 30), np.float32)
    geometry = plan(image, (1.0, 2.0, 3.0), "SRA", orientation="RAS", spacing=[2.0, 3.0, 4.0])
    assert geometry.axes == (1, 2, 0)
    assert geometry.shape == (20, 30, 2)  # 20 × 2 mm and 30 × 3 mm are as wanted, 10 × 1 mm become 2 × 4 mm
    np.testing.assert_allclose(geometry.spacing, [2.0, 3.0, 5.0])
    nearly = plan(image, (1.0000001, 2.0, 3.0), spacing=[1.0, 2.0, 3.0])
    assert nearly.lossless


def test_json_round_trip() -> None:
    image = np.ones((1, 5, 6, 7), np.float32)
    geometry = plan(image, (1.0, 2.0, 3.0), "LPS", orientation="RAS", spacing=[1.0, 1.0, 1.0], crop="nonzero")
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry
    assert hash(geometry) == hash(Geometry.from_dict(geometry.to_dict()))


def test_errors_name_the_case_and_the_key() -> None:
    image = np.ones((1, 5, 6, 7), np.float32)
    with pytest.raises(MaskfoldError, match=r"case case_9 has none.*Remove `prepare.orientation`"):
        Geometry.plan(image, (1.0, 1.0, 1.0), None, PreprocessingConfig(orientation="RAS"), True, "case_9")
    with pytest.raises(MaskfoldError, match=r"`prepare.orientation`: found RRS") as caught:
        plan(image, orientation="RRS")
    assert caught.value.status == 2
    with pytest.raises(MaskfoldError, match=r"case_1 .* the spacing"):
        plan(image, spacing=[1e-3, 1e-3, 1e-3])
    with pytest.raises(ValueError, match=r"shape \(2, 5, 6, 8\)"):
        plan(image).inverse(np.zeros((2, 5, 6, 8), np.float16))
