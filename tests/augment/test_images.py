"""Augmentation of 2D images: shapes, labels and randomness of presets and explicit lists."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.augment.images import ImageAugment
from competition.config.experiment import AugmentConfig
from competition.errors import MaskfoldError

LEVELS = ("light", "medium", "heavy")
SEEDS = 40


def blobs(shape: tuple[int, int], channels: int) -> np.ndarray:
    """(H, W, channels) uint8 in {0, 255}: large smooth shapes."""
    rows, columns = np.meshgrid(*map(np.arange, shape), indexing="ij")
    waves = [np.sin(rows / (7 + index)) + np.cos(columns / (9 + 2 * index)) for index in range(channels)]
    return ((np.stack(waves, -1) > 0.3) * 255).astype(np.uint8)


def listed(*items: dict[str, Any]) -> ImageAugment:
    return ImageAugment(AugmentConfig.model_validate({"transforms": list(items)}))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    ("shape", "channels", "masks"),
    [((48, 48), 3, 1), ((40, 56), 1, 1), ((33, 32), 5, 6), ((1, 24), 3, 1), ((24, 1), 2, 2), ((1, 1), 1, 1)],
)
def test_shapes_and_values_stay(level: str, dtype: Any, shape: tuple[int, int], channels: int, masks: int) -> None:
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (*shape, channels), dtype=np.uint8)
    image = image if dtype is np.uint8 else (image / 255).astype(np.float32)
    mask = draw.choice(np.array([0, 1, 2, 255], np.uint8), (*shape, masks))
    augment = ImageAugment(AugmentConfig(preset=level))  # type: ignore[arg-type]
    before = image.copy(), mask.copy()
    for seed in range(SEEDS):
        changed, labels = augment(image, mask, seed)
        assert changed.shape == image.shape and changed.dtype == dtype
        assert labels.shape == mask.shape and labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 1, 2, 255}
        if dtype is np.float32:
            assert changed.min() >= 0 and changed.max() <= 1
    np.testing.assert_array_equal(image, before[0])  # the patch may be shared: it is not changed in place
    np.testing.assert_array_equal(mask, before[1])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("channels", [1, 5])
def test_image_and_mask_move_together(level: str, channels: int) -> None:
    image = blobs((64, 64), channels)
    augment, moved = ImageAugment(AugmentConfig(preset=level)), 0  # type: ignore[arg-type]
    augment.transforms = [one for one in augment.transforms if hasattr(one, "apply_to_mask")]  # geometry and dropout
    augment.transforms = [one for one in augment.transforms if type(one).__name__ != "CoarseDropout"]
    assert len(augment.transforms) >= 4
    for seed in range(SEEDS):
        changed, labels = augment(image, image // 255, seed)
        moved += not np.array_equal(changed, image)
        assert np.mean((changed > 127) == labels) > 0.97
    assert moved > SEEDS / 2


def test_dropout_leaves_the_mask() -> None:
    augment = ImageAugment(AugmentConfig(preset="heavy"))
    augment.transforms = [one for one in augment.transforms if type(one).__name__ == "CoarseDropout"]
    image, mask = np.full((40, 40, 3), 9, np.uint8), np.ones((40, 40, 1), np.uint8)
    results = [augment(image, mask, seed) for seed in range(SEEDS)]
    assert all(labels.all() for _, labels in results)
    assert any(not changed.all() for changed, _ in results)


def test_two_flips_show_all_four_combinations() -> None:
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    augment = listed(
        {"target": "albumentations.HorizontalFlip", "args": {"p": 0.5}},
        {"target": "albumentations.VerticalFlip", "args": {"p": 0.5}},
    )
    counts = np.bincount([augment(image, image, seed)[0][0, 0, 0] for seed in range(400)], minlength=4)
    assert counts.min() > 60  # 100 each, standard deviation 9


def test_nested_transforms_have_their_own_seeds() -> None:
    flip = {"target": "albumentations.HorizontalFlip", "args": {"p": 0.5}}
    both = {"target": "albumentations.VerticalFlip", "args": {"p": 0.5}}
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    augment = listed({"target": "albumentations.Sequential", "args": {"p": 1.0, "transforms": [flip, both]}})
    counts = np.bincount([augment(image, image, seed)[0][0, 0, 0] for seed in range(400)], minlength=4)
    assert counts.min() > 60


def test_one_of_picks_evenly_and_repeats() -> None:
    flip = {"target": "albumentations.HorizontalFlip", "args": {"p": 1.0}}
    both = {"target": "albumentations.VerticalFlip", "args": {"p": 1.0}}
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    augment = listed({"target": "albumentations.OneOf", "args": {"p": 0.5, "transforms": [flip, both]}})
    first = [int(augment(image, image, seed)[0][0, 0, 0]) for seed in range(200)]
    assert first == [int(augment(image, image, seed)[0][0, 0, 0]) for seed in range(200)]
    counts = np.bincount(first, minlength=4)
    assert counts[0] > 70 and min(counts[1], counts[2]) > 25 and counts[3] == 0


@pytest.mark.parametrize("level", LEVELS)
def test_same_seed_same_result(level: str) -> None:
    image, mask = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), blobs((32, 32), 1) // 255
    augment = ImageAugment(AugmentConfig(preset=level))  # type: ignore[arg-type]
    forward = [augment(image, mask, seed) for seed in range(SEEDS)]
    copy = pickle.loads(pickle.dumps(augment))  # as loader processes get it
    for seed in reversed(range(SEEDS)):
        for ours, theirs in zip(forward[seed], copy(image, mask, seed), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len({result[0].tobytes() for result in forward}) > SEEDS * 0.6


def test_same_seed_same_result_in_another_process() -> None:
    program = (
        "import hashlib, numpy as np\n"
        "from competition.augment.images import ImageAugment\n"
        "from competition.config.experiment import AugmentConfig\n"
        "augment, digest = ImageAugment(AugmentConfig(preset='heavy')), hashlib.sha256()\n"
        "image = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)\n"
        "for seed in range(30):\n"
        "    for array in augment(image, image[..., :1] // 64, seed):\n"
        "        digest.update(array.tobytes())\n"
        "print(digest.hexdigest())\n"
    )
    scope: dict[str, Any] = {}
    exec(program, scope)
    root = Path(__file__).resolve().parents[2]
    other = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == scope["digest"].hexdigest()


@pytest.mark.parametrize(
    ("flip", "expected"), [(False, {0}), ([0], {0, 1}), ([1], {0, 2}), (True, {0, 1, 2, 3, 4, 5, 6, 7})]
)
def test_flips_are_those_allowed(flip: Any, expected: set[int]) -> None:
    augment = ImageAugment(AugmentConfig(preset="heavy", flip=flip))
    augment.transforms = [
        one
        for one in augment.transforms
        if type(one).__name__ in ("HorizontalFlip", "VerticalFlip", "RandomRotate90", "Transpose", "D4")
    ]
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    looks = [np.rot90(look, turns) for turns in range(4) for look in (image, image[::-1])]
    looks[:4] = [image, image[::-1], image[:, ::-1], image[::-1, ::-1]]
    looks[4:] = [look.swapaxes(0, 1) for look in looks[:4]]
    seen = set()
    for seed in range(120):
        changed = augment(image, image, seed)[0]
        seen.add(next(index for index, look in enumerate(looks) if np.array_equal(look, changed)))
    assert seen == expected


def test_no_preset_no_change() -> None:
    image = blobs((8, 8), 3)
    np.testing.assert_array_equal(ImageAugment(AugmentConfig())(image, image, 1)[0], image)


# Explicit lists


def test_unknown_argument() -> None:
    with pytest.raises(MaskfoldError, match=r"augment\.transforms\.0\.args.*alpa") as error:
        listed({"target": "albumentations.ElasticTransform", "args": {"alpa": 3}})
    assert error.value.status == 2


def test_impossible_value() -> None:
    with pytest.raises(MaskfoldError, match=r"augment\.transforms\.1\.args.* p"):
        listed(
            {"target": "albumentations.HorizontalFlip"}, {"target": "albumentations.HorizontalFlip", "args": {"p": 3}}
        )


def test_wrong_kind() -> None:
    with pytest.raises(MaskfoldError, match=r"augment\.transforms\.0\.target"):
        listed({"target": "torch.nn.Conv2d"})


def test_nested_item_that_is_not_a_transform() -> None:
    with pytest.raises(MaskfoldError, match=r"augment\.transforms\.0\.args\.transforms\.0: found .*`target`"):
        listed({"target": "albumentations.OneOf", "args": {"transforms": [{"name": "flip"}]}})


def test_preset_and_list() -> None:
    with pytest.raises(MaskfoldError, match="augment sets both"):
        ImageAugment(AugmentConfig(preset="light", transforms=[{"target": "albumentations.NoOp"}]))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("target", "args", "message"),
    [
        ("albumentations.Normalize", {"p": 1}, r"augment\.transforms: .*float.*expected uint8"),
        (
            "albumentations.RandomCrop",
            {"height": 4, "width": 4, "p": 1},
            r"augment\.transforms: the image .*\(4, 4, 3\)",
        ),
        ("albumentations.ToTensorV2", {"p": 1}, r"augment\.transforms: .*torch.*expected uint8"),
    ],
)
def test_list_that_breaks_the_batch(target: str, args: dict[str, Any], message: str) -> None:
    image = blobs((8, 8), 3)
    with pytest.raises(MaskfoldError, match=message):
        listed({"target": target, "args": args})(image, image[..., :1], 0)


@pytest.mark.parametrize(
    ("target", "args"), [("ISONoise", {"p": 1.0}), ("RandomCrop", {"height": 99, "width": 99, "p": 1.0})]
)
def test_a_transform_that_fails_is_named(target: str, args: dict[str, Any]) -> None:
    augment = listed({"target": "albumentations.Transpose"}, {"target": f"albumentations.{target}", "args": args})
    with pytest.raises(MaskfoldError, match=rf"augment\.transforms\.1: {target} cannot transform") as error:
        augment(blobs((32, 32), 1), np.zeros((32, 32, 1), np.uint8), seed=1)
    assert error.value.status == 2


def test_library_still_shares_one_seed() -> None:
    """`reseed` exists because of this; if it fails, the library was fixed."""
    import albumentations as A

    compose = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    image, seen = np.arange(4, dtype=np.uint8).reshape(2, 2, 1), set()
    for seed in range(50):
        compose.set_random_seed(seed)
        seen.add(int(compose(image=image)["image"].flat[0]))
    assert seen == {0, 3}
