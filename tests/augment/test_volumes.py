"""Augmentation of volumes: batches with one seed per sample, independent of the rest of the batch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from competition.augment.presets import TRANSFORMS, VOLUME_PRESETS
from competition.augment.volume_geometry import Displacement, Flip, Warp, elastic_field, sampling_grid, spline_weights
from competition.augment.volume_intensity import (
    Blur,
    Brightness,
    Contrast,
    Gamma,
    GammaCurve,
    Noise,
    NoiseLevel,
    Softening,
    apply_along_axes,
    contrast,
    downsampling_matrix,
    gamma,
    gaussian_matrix,
)
from competition.augment.volume_transform import GeometricTransform, VolumeTransform
from competition.augment.volumes import VolumeAugment, apply_to_samples
from competition.config.experiment import AugmentConfig

LEVELS = ("light", "medium", "heavy")


def level(name: str, dims: int = 3, **kwargs: object) -> VolumeAugment:
    return VolumeAugment(AugmentConfig(preset=name, **kwargs), dims)  # type: ignore[arg-type]


def geometry_only(augment: VolumeAugment) -> VolumeAugment:
    augment.transforms = tuple(one for one in augment.transforms if isinstance(one, GeometricTransform))
    return augment


def change(transform: VolumeTransform, image: torch.Tensor, *drawn: object) -> None:
    """Apply a transform to a batch in place; one entry for each sample."""
    apply_to_samples(transform, image, torch.zeros(image.shape, dtype=torch.uint8), drawn)


def ball(*shape: int) -> torch.Tensor:
    """(*shape) float32, 1 in an ellipsoid that is not symmetric, else 0."""
    axes = [torch.linspace(-1, 1, length) if length > 1 else torch.zeros(1) for length in shape]
    grid = torch.meshgrid(*axes, indexing="ij")
    return (sum((axis - 0.2 * index) ** 2 * (1 + index) for index, axis in enumerate(grid)) < 0.9).float()  # type: ignore[union-attr]


def rotated(image: torch.Tensor, matrix: np.ndarray) -> torch.Tensor:
    """One sample (1, 1, *spatial) after a warp."""
    image = image.clone()
    change(Warp(), image, Displacement(matrix))
    return image


# The whole


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(
    "shape", [(2, 1, 12, 16, 10), (1, 4, 8, 8, 8), (3, 2, 1, 9, 6), (2, 1, 1, 1, 1), (3, 5, 20, 17), (2, 1, 1, 9)]
)
def test_shapes_and_values_stay(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    image = torch.randn(shape)
    mask = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[torch.randint(4, (shape[0], 2, *shape[2:]))]
    before = image.clone(), mask.clone()
    augment = level(name, len(shape) - 2)
    for first in range(0, 60, shape[0]):
        changed, labels = augment(image, mask, range(first, first + shape[0]))
        assert changed.shape == image.shape and changed.dtype == torch.float32 and torch.isfinite(changed).all()
        assert labels.shape == mask.shape and labels.dtype == torch.uint8
        assert set(labels.unique().tolist()) <= {0, 1, 2, 255}
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1])


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("shape", [(20, 28, 24), (40, 32)])
def test_image_and_mask_move_together(name: str, shape: tuple[int, ...]) -> None:
    augment, solid, moved = geometry_only(level(name, len(shape))), ball(*shape)[None, None], 0
    for seed in range(40):
        image, mask = augment(solid, solid.to(torch.uint8), [seed])
        moved += not torch.equal(mask, solid.to(torch.uint8))
        assert 2 * ((image > 0.5) & (mask > 0)).sum() / ((image > 0.5).sum() + (mask > 0).sum()) > 0.94
    assert moved > 20


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("shape", [(12, 16, 10), (24, 20)])
def test_probabilities_move_with_the_image_and_keep_their_values(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    image, mask = torch.randn(4, 2, *shape), torch.zeros(4, 1, *shape, dtype=torch.uint8)
    added, changed = torch.rand(4, 3, *shape), 0
    for first in range(0, 40, 4):
        seeds = list(range(first, first + 4))
        augment = VolumeAugment(AugmentConfig(preset=name), len(shape), probabilities=3)  # type: ignore[arg-type]
        together = augment(torch.cat([image, added], 1), mask, seeds)[0]
        assert torch.equal(together[:, :2], level(name, len(shape))(image, mask, seeds)[0]), "as without the channels"
        moved = geometry_only(level(name, len(shape)))(torch.cat([image, added], 1), mask, seeds)[0]
        assert torch.equal(together[:, 2:], moved[:, 2:])
        changed += not torch.equal(together[:, :2], moved[:, :2])
    assert changed > 5, "intensities of the image change"


@pytest.mark.parametrize("shape", [(12, 16, 10), (24, 20)])
def test_samples_are_independent_of_the_batch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    image, mask = torch.randn(6, 2, *shape), torch.randint(0, 3, (6, 1, *shape), dtype=torch.uint8)
    augment, seeds = level("heavy", len(shape)), list(range(30, 36))
    together = augment(image, mask, seeds)
    order = [4, 1, 5, 0, 3, 2]
    shuffled = augment(image[order], mask[order], [seeds[index] for index in order])
    for place, index in enumerate(order):
        alone = augment(image[index : index + 1], mask[index : index + 1], [seeds[index]])
        for other in (alone[0][0], shuffled[0][place]):
            torch.testing.assert_close(together[0][index], other, atol=2e-6, rtol=2e-6)
        assert torch.equal(together[1][index], alone[1][0]) and torch.equal(together[1][index], shuffled[1][place])


def test_same_batch_same_bits() -> None:
    torch.manual_seed(0)
    image, mask = torch.randn(4, 1, 12, 10, 8), torch.randint(0, 3, (4, 1, 12, 10, 8), dtype=torch.uint8)
    first, second = (level("heavy")(image, mask, [1, 2, 3, 4]) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    other = level("heavy")(image, mask, [5, 6, 7, 8])
    assert not torch.equal(first[0], other[0])


def test_global_random_state_is_unchanged() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    level("heavy")(
        torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)),
        torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8),
        [1],
    )
    assert torch.equal(torch.rand(3), expected)


def test_autocast_does_not_change_coordinates() -> None:
    image, mask = torch.randn(2, 1, 16, 16, 16), torch.zeros(2, 1, 16, 16, 16, dtype=torch.uint8)
    plain = level("heavy")(image, mask, [11, 12])[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain, level("heavy")(image, mask, [11, 12])[0])


def test_no_preset_no_change() -> None:
    image, mask = torch.randn(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4, dtype=torch.uint8)
    assert level("none")(image, mask, [1, 2])[0] is image


# Results that must not change


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(one.contiguous().numpy().tobytes() for one in tensors)).hexdigest()[:16]


def arithmetic() -> str:
    """A checksum of the library functions that the transforms use: other processors round differently."""
    values = torch.linspace(0.1, 3.0, 2 * 24 * 20).view(2, 1, 24, 20)
    grid = torch.linspace(-0.9, 0.9, 2 * 24 * 20 * 2).view(2, 24, 20, 2)
    rows = values.flatten(1)
    return digest(
        torch.nn.functional.grid_sample(values, grid, padding_mode="border", align_corners=False),
        torch.bmm(values[:, 0], values[:, 0].mT),
        rows.pow(torch.tensor([[1.3], [0.7]])),
        rows.mean(1),
        torch.linalg.vector_norm(rows, dim=1),
        torch.from_numpy(np.exp(rows.double().numpy())),
    )


def augmented(name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """100 samples of a preset: images float32, masks uint8."""
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(shape, generator=generator)
    mask = torch.randint(0, 4, (shape[0], 2, *shape[2:]), generator=generator, dtype=torch.uint8)
    spacing = (1.0, 2.0, 3.0)[: len(shape) - 2]
    augment = VolumeAugment(AugmentConfig(preset=name), len(shape) - 2, spacing)  # type: ignore[arg-type]
    results = [augment(image, mask, range(first, first + shape[0])) for first in range(0, 100, shape[0])]
    return torch.cat([one for one, _ in results]), torch.cat([one for _, one in results])


RECORDED_ARITHMETIC = "e88a6bb343748c29"
# By preset and axes: checksums of images and masks, the mean size of an image's values, the sum of the masks.
RECORDED = {
    ("light", 3): ("726a61a3316f8e56", "da5ea190504b4cf0", 0.676956843, 577569),
    ("light", 2): ("c184eb2eaa43ea73", "58a653a55541d4ad", 0.721582895, 143073),
    ("medium", 3): ("d741bda39d471e40", "8d280f2b558c4179", 0.514141790, 576859),
    ("medium", 2): ("c279875480756b2c", "cebab503d3ddab10", 0.592082938, 143150),
    ("heavy", 3): ("f9e66d347ed2ebbb", "3340d4e6f43d2c37", 0.404427912, 576778),
    ("heavy", 2): ("2e59c7e02d196519", "a8c697aa0e850134", 0.494886723, 142873),
}


@pytest.mark.parametrize(("name", "axes"), RECORDED)
def test_results_are_those_of_the_first_version(name: str, axes: int) -> None:
    """The same seeds give the same samples, so runs with a preset can be repeated after changes of the code."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        image, mask = augmented(name, (4, 2, 12, 16, 10) if axes == 3 else (4, 3, 24, 20))
        exact = arithmetic() == RECORDED_ARITHMETIC
    finally:
        torch.set_num_threads(threads)
    image_sum, mask_sum, size, labels = RECORDED[name, axes]
    assert image.abs().mean(dtype=torch.float64).item() == pytest.approx(size, rel=1e-5)
    assert mask.sum().item() == pytest.approx(labels, rel=1e-3)
    if exact:
        assert (digest(image), digest(mask)) == (image_sum, mask_sum)


@pytest.mark.parametrize("name", LEVELS)
def test_presets_name_transforms_and_their_values(name: str) -> None:
    assert set(VOLUME_PRESETS[name]) <= set(TRANSFORMS.names())
    assert [type(one) for one in level(name).transforms] == [Flip, *(TRANSFORMS.get(one) for one in TRANSFORMS.names())]


# Flips


@pytest.mark.parametrize(("flip", "axes"), [(False, ()), (True, (0, 1, 2)), ([0, 2], (0, 2))])
def test_flips_are_those_allowed(flip: object, axes: tuple[int, ...]) -> None:
    augment = level("light", flip=flip)
    drawn = [augment.sample((4, 4, 4), seed)[0] or () for seed in range(300)]
    assert augment.transforms[0] == Flip(axes) and len(set(drawn)) == 2 ** len(axes)
    for axis in axes:
        assert 110 < sum(axis in one for one in drawn) < 190


def test_a_flip_is_exact() -> None:
    augment = level("light")
    augment.transforms = augment.transforms[:1]
    image, mask = torch.randn(1, 2, 5, 6, 7), torch.randint(0, 9, (1, 1, 5, 6, 7), dtype=torch.uint8)
    for seed in range(20):
        axes = [axis + 2 for axis in augment.sample((5, 6, 7), seed)[0] or ()]
        changed = augment(image, mask, [seed])
        assert torch.equal(changed[0], image.flip(axes)) and torch.equal(changed[1], mask.flip(axes))


# Geometry


def test_untouched_samples_are_bit_identical() -> None:
    image, mask = torch.randn(3, 1, 6, 7, 8), torch.randint(0, 3, (3, 1, 6, 7, 8), dtype=torch.uint8)
    changed, labels = image.clone(), mask.clone()
    for transform, drawn in (
        (Warp(), Displacement(np.eye(3) * 0.7)),
        (Blur(), Softening(1.0)),
        (Noise(), NoiseLevel(1.0, 0)),
        (Brightness(), 2.0),
        (Contrast(), 2.0),
        (Gamma(), GammaCurve(1.3)),
    ):
        apply_to_samples(transform, changed, labels, [None, drawn, None])
    assert torch.equal(changed[[0, 2]], image[[0, 2]]) and torch.equal(labels[[0, 2]], mask[[0, 2]])
    assert not torch.equal(changed[1], image[1])


def test_identity_grid_is_the_identity() -> None:
    image = torch.randn(1, 1, 5, 9, 1)
    torch.testing.assert_close(rotated(image, np.eye(3)), image, atol=1e-5, rtol=0)


def test_quarter_turn_of_an_anisotropic_patch() -> None:
    """Rotation is in voxels, not in the [-1, 1] of the grid: inside the patch the result is the rotated patch."""
    image = torch.randn(1, 1, 21, 11, 7)
    result = rotated(image, np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    expected = torch.rot90(image[:, :, 5:16], -1, (2, 3))
    torch.testing.assert_close(result[:, :, 5:16], expected, atol=1e-4, rtol=0)


def test_zoom_keeps_the_centre_and_grows() -> None:
    solid = ball(31, 31, 31)[None, None]
    small = torch.zeros_like(solid)
    small[..., 10:21, 10:21, 10:21] = 1
    grown = rotated(small, np.eye(3) / 1.5)
    assert abs(grown.sum().item() / small.sum().item() - 1.5**3) < 0.5
    centre = (torch.stack(torch.meshgrid(*[torch.arange(31.0)] * 3, indexing="ij")) * grown[0]).flatten(1).sum(
        1
    ) / grown.sum()
    torch.testing.assert_close(centre, torch.full((3,), 15.0), atol=0.01, rtol=0)


def test_rotation_is_rigid_in_millimetres() -> None:
    """With anisotropic voxels the matrix is orthogonal in millimetres."""
    spacing = (1.0, 3.0, 2.0)
    augment = VolumeAugment(AugmentConfig(preset="medium", flip=False), 3, spacing)
    found = [augment.sample((9, 9, 9), seed)[1] for seed in range(60)]
    matrices = [one.matrix for one in found if one is not None and one.matrix is not None]
    assert 20 < len(matrices) < 45
    scales = []
    for matrix in matrices:
        body = np.diag(spacing) @ matrix @ np.diag(1 / np.array(spacing))
        scale = np.linalg.det(body) ** (1 / 3)
        np.testing.assert_allclose(body @ body.T, scale**2 * np.eye(3), atol=1e-9)
        assert np.degrees(np.arccos(np.clip((np.trace(body / scale) - 1) / 2, -1, 1))) <= 20 * np.sqrt(3) + 1e-6
        scales.append(scale)
    assert 0.79 < min(scales) < 0.95 and 1.05 < max(scales) < 1.26


def test_borders_are_repeated() -> None:
    image = torch.ones(1, 1, 9, 9)
    assert torch.allclose(rotated(image, np.eye(2) * 3), torch.ones(1))


def test_elastic_field_is_a_smooth_partition() -> None:
    for length in (1, 2, 7, 40):
        torch.testing.assert_close(spline_weights(length, torch.device("cpu")).sum(1), torch.ones(length))
    constant = elastic_field(torch.full((2, 3, 7, 7, 7), 2.5), (6, 5, 4))
    torch.testing.assert_close(constant, torch.full((2, 6, 5, 4, 3), 2.5))
    field = elastic_field(torch.randn(1, 2, 7, 7), (60, 50))
    assert (field[:, 1:] - field[:, :-1]).abs().max() < 0.1 * (field.max() - field.min())


def test_elastic_field_moves_by_voxels() -> None:
    knots = np.zeros((3, 7, 7, 7), np.float32)
    knots[1] = 2.0
    image = torch.randn(1, 1, 6, 10, 4)
    moved = image.clone()
    change(Warp(), moved, Displacement(knots=knots))
    torch.testing.assert_close(moved[:, :, :, :8], image[:, :, :, 2:], atol=1e-4, rtol=0)


def test_grid_of_matrix_and_field_add_up() -> None:
    matrix, knots = np.eye(2) * 1.3, np.random.default_rng(0).normal(size=(2, 7, 7)).astype(np.float32)
    shape, device = (8, 12), torch.device("cpu")
    both, turn, bend_only, nothing = (
        sampling_grid([one], shape, device)
        for one in (Displacement(matrix, knots), Displacement(matrix), Displacement(knots=knots), Displacement())
    )
    torch.testing.assert_close(both - turn, bend_only - nothing, atol=1e-5, rtol=0)


# Intensity


def test_blur_is_a_gaussian() -> None:
    from scipy.ndimage import gaussian_filter

    values = torch.randn(1, 1, 17, 19, 15)
    blurred = values.clone()
    change(Blur(), blurred, Softening(1.2))
    expected = gaussian_filter(values[0, 0].numpy(), 1.2, truncate=8)
    np.testing.assert_allclose(blurred[0, 0, 6:-6, 6:-6, 6:-6].numpy(), expected[6:-6, 6:-6, 6:-6], atol=2e-3)
    flat = torch.full((1, 1, 5, 1, 3), 7.0)
    change(Blur(), flat, Softening(2.0, 0.5))
    torch.testing.assert_close(flat, torch.full((1, 1, 5, 1, 3), 7.0))


def test_coarse_picks_and_interpolates() -> None:
    np.testing.assert_allclose(downsampling_matrix(4, 0.5) @ [0, 1, 2, 3], [1, 1.5, 2.5, 3])
    np.testing.assert_array_equal(downsampling_matrix(3, 0.99), np.eye(3))
    np.testing.assert_allclose(downsampling_matrix(9, 0.01) @ np.arange(9), np.full(9, 4))
    np.testing.assert_allclose(gaussian_matrix(9, 1.0).sum(1), 1)


def test_along_axes_is_einsum() -> None:
    values, left, right = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4), torch.randn(2, 7, 5)
    torch.testing.assert_close(
        apply_along_axes(values, [left, right]), torch.einsum("bcxy,bux,bvy->bcuv", values, left, right)
    )


def test_noise_has_its_deviation_and_its_seed() -> None:
    zeros = torch.zeros(2, 1, 30, 30, 30)
    change(Noise(), zeros, NoiseLevel(0.3, 1), NoiseLevel(0.3, 2))
    assert abs(zeros[0].std().item() - 0.3) < 0.01
    assert abs(torch.corrcoef(zeros.flatten(1))[0, 1].item()) < 0.03


def test_contrast_keeps_mean_and_range() -> None:
    values = torch.rand(1, 2, 500) * torch.tensor([1.0, 9.0]).view(1, 2, 1)
    stronger, weaker = contrast(values, torch.tensor(1.5)), contrast(values, torch.tensor(0.5))
    torch.testing.assert_close(weaker.mean(-1), values.mean(-1))
    torch.testing.assert_close(weaker.std(-1), values.std(-1) / 2)
    assert (stronger.amax(-1) == values.amax(-1)).all() and (stronger.amin(-1) == values.amin(-1)).all()


def test_gamma_keeps_moments_and_order() -> None:
    values = torch.randn(1, 2, 400) * 3 + 5
    bent = gamma(values, torch.tensor(1.5))
    torch.testing.assert_close(bent.mean(-1), values.mean(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(bent.std(-1), values.std(-1), atol=1e-4, rtol=0)
    assert torch.equal(bent.argsort(-1), values.argsort(-1))
    assert not torch.allclose(bent, values, atol=0.1)
    constant = torch.full((1, 1, 9), 4.0)
    torch.testing.assert_close(gamma(constant, torch.tensor(0.7)), constant)


def test_inverted_gamma_is_gamma_of_the_negative() -> None:
    values = torch.randn(1, 1, 6, 6, 6)
    plain, inverted = -values.clone(), values.clone()
    change(Gamma(), plain, GammaCurve(1.4))
    change(Gamma(), inverted, GammaCurve(1.4, inverted=True))
    torch.testing.assert_close(inverted, -plain)
