"""MONAI's transforms from an explicit list."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from monai.transforms.transform import MapTransform

from competition.augment.custom import MonaiTransforms
from competition.config.experiment import AugmentConfig
from competition.context import Context
from competition.errors import MaskfoldError

MANY: list[tuple[str, dict[str, Any]]] = [
    ("RandFlipd", {"prob": 0.5, "spatial_axis": 0}),
    ("RandAxisFlipd", {"prob": 0.5}),
    ("RandRotate90d", {"prob": 0.5}),
    ("RandAffined", {"prob": 0.7, "rotate_range": [0.3, 0.3, 0.3], "scale_range": [0.1, 0.1, 0.1]}),
    ("RandRotated", {"prob": 0.7, "range_x": 0.3}),
    ("RandZoomd", {"prob": 0.7, "min_zoom": 0.8, "max_zoom": 1.3}),
    ("Rand3DElasticd", {"prob": 0.7, "sigma_range": [2, 3], "magnitude_range": [5, 20]}),
    ("RandGridDistortiond", {"prob": 0.7}),
    ("RandSmoothDeformd", {"prob": 0.7, "spatial_size": [12, 12, 12], "rand_size": [4, 4, 4]}),
    ("RandGaussianNoised", {"prob": 0.7}),
    ("RandGaussianSmoothd", {"prob": 0.7}),
    ("RandScaleIntensityd", {"prob": 0.7, "factors": 0.3}),
    ("RandAdjustContrastd", {"prob": 0.7}),
    ("RandBiasFieldd", {"prob": 0.7}),
    ("RandSimulateLowResolutiond", {"prob": 0.7}),
    ("RandCoarseDropoutd", {"prob": 0.7, "holes": 2, "spatial_size": 3}),
]


def listed(*items: tuple[str, dict[str, Any]]) -> MonaiTransforms:
    targets = [{"target": name if "." in name else f"monai.transforms.{name}", "args": args} for name, args in items]
    return MonaiTransforms(AugmentConfig(transforms=targets))  # type: ignore[arg-type]


def sample() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    mask = np.zeros((1, 12, 12, 12), np.uint8)
    mask[:, 3:9, 2:8, 4:11], mask[:, 5:8, 5:7], mask[:, 11] = 1, 2, 255
    return (mask + draw.random((1, 12, 12, 12)) / 4).astype(np.float32), mask


@pytest.mark.parametrize(("name", "args"), MANY, ids=[name for name, _ in MANY])
def test_each_is_deterministic_and_keeps_labels(name: str, args: dict[str, Any]) -> None:
    augment, (image, mask) = listed((name, args)), sample()
    before = image.copy(), mask.copy()
    results = [augment(image, mask, seed) for seed in range(8)]
    copy = pickle.loads(pickle.dumps(augment))  # as loader processes get it
    for seed in reversed(range(8)):
        for ours, theirs in zip(results[seed], copy(image, mask, seed), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len({result[0].tobytes() for result in results}) > 1
    for changed, labels in results:
        assert type(changed) is np.ndarray and changed.shape == image.shape and changed.dtype == np.float32
        assert labels.dtype == np.uint8 and set(np.unique(labels)) <= {0, 1, 2, 255}
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


@pytest.mark.parametrize(("name", "args"), MANY[:9], ids=[name for name, _ in MANY[:9]])
def test_image_and_mask_move_together(name: str, args: dict[str, Any]) -> None:
    _, mask = sample()
    solid = (mask == 1).astype(np.uint8)
    for seed in range(6):
        changed, labels = listed((name, args))(solid.astype(np.float32), solid, seed)
        assert np.mean((changed > 0.5) == labels) > 0.93


@pytest.mark.parametrize(("name", "args"), MANY[9:], ids=[name for name, _ in MANY[9:]])
def test_intensities_leave_the_mask(name: str, args: dict[str, Any]) -> None:
    image, mask = sample()
    assert all(np.array_equal(listed((name, args))(image, mask, seed)[1], mask) for seed in range(6))


def test_two_flips_show_all_four_combinations() -> None:
    args: list[dict[str, Any]] = [{"prob": 0.5, "spatial_axis": axis} for axis in (0, 1)]
    image = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    plain = listed(*[("RandFlipd", one) for one in args])
    nested = listed(
        ("Compose", {"transforms": [{"target": "monai.transforms.RandFlipd", "args": one} for one in args]})
    )
    for augment in (plain, nested):
        corners = [int(augment(image, image.astype(np.uint8), seed)[0][0, 0, 0]) for seed in range(200)]
        assert np.bincount(corners, minlength=4).min() > 25  # 50 each, standard deviation 6


def test_one_of_repeats() -> None:
    flips = [{"target": "monai.transforms.RandFlipd", "args": {"prob": 1.0, "spatial_axis": axis}} for axis in (0, 1)]
    augment, image = listed(("OneOf", {"transforms": flips})), np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    first = [int(augment(image, image.astype(np.uint8), seed)[0][0, 0, 0]) for seed in range(60)]
    assert first == [int(augment(image, image.astype(np.uint8), seed)[0][0, 0, 0]) for seed in range(60)]
    assert set(first) == {1, 2}


# Invalid settings


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("RandAffined", {"mode": "bilinear"}, r"mode: .*expected nearest"),
        ("RandZoomd", {"mode": ["trilinear", "trilinear"]}, r"mode: .*expected nearest"),
        ("RandFlipd", {"keys": ["image", "label"]}, r"keys: found label"),
        ("RandFlipd", {"probability": 0.5}, r"augment\.transforms\.0\.args"),
        ("RandFlip", {}, r"augment\.transforms\.0\.target"),
        ("Lambdad", {"func": "x"}, r"augment\.transforms\.0\.args\.keys is missing"),
    ],
)
def test_invalid_arguments_are_errors(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(MaskfoldError, match=message) as error:
        listed((name, args))
    assert error.value.status == 2


def test_modes_that_are_fine() -> None:
    listed(
        ("RandAffined", {"mode": ["bilinear", "nearest"]}),
        ("RandZoomd", {"mode": "nearest"}),
        ("RandAffined", {"keys": "image", "mode": "bilinear"}),
    )


def test_padding_has_a_mode_of_its_own() -> None:
    augment = listed(
        ("RandSpatialCropd", {"roi_size": [8, 8, 8], "random_size": False}),
        ("SpatialPadd", {"spatial_size": [12, 12, 12]}),
    )
    image, mask = augment(*sample(), seed=0)
    assert image.shape == (1, 12, 12, 12) and not image[:, :2].any() and not mask[:, :2].any()


def test_changed_shape() -> None:
    crop = {"roi_size": [5, 5, 5], "random_size": False}
    for keys, name in ((["image", "mask"], "image"), (["image"], "image"), (["mask"], "mask")):
        expected = rf"the {name} has the shape \(1, 5, 5, 5\) after the transforms, expected \(1, 12, 12, 12\)"
        with pytest.raises(MaskfoldError, match=expected):
            listed(("RandSpatialCropd", {**crop, "keys": keys}))(*sample(), seed=0)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("RandFlipd", {"spatial_axis": 5, "prob": 1.0}, r"transforms\.1: RandFlipd cannot transform.*IndexError"),
        (
            "RandSpatialCropSamplesd",
            {"roi_size": [12] * 3, "num_samples": 1},
            r"transforms\.1: .*returns several patches",
        ),
    ],
)
def test_a_transform_that_fails_is_named(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(MaskfoldError, match=message) as error:
        listed(("RandAxisFlipd", {}), (name, args))(*sample(), seed=0)
    assert error.value.status == 2


class OwnTransform(MapTransform):
    """A user's own transform."""

    def __call__(self, data: Any) -> Any:
        return {**data, "image": data["image"] + 1}


def test_a_users_own_transform() -> None:
    target = {"target": f"{__name__}.OwnTransform", "args": {"keys": ["image"]}}
    augment = MonaiTransforms(AugmentConfig(transforms=[target]), Context((__name__.split(".")[0],)))  # type: ignore[list-item]
    image, mask = sample()
    np.testing.assert_array_equal(augment(image, mask, 0)[0], image + 1)
