"""Which augmentation an experiment gets, and which axes it flips; loader workers change nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from competition.augment import device_augment, flips, loader_augment
from competition.augment.pictures import PictureAugment
from competition.augment.transforms import VolumeTransforms
from competition.augment.volumes import VolumeAugment
from competition.config.errors import MaskfoldError
from competition.config.experiment import Augment
from competition.data.patches import PatchDataset, StepSampler
from tests.data.prepared import experiment, prepared_case

FLIP: dict[str, Any] = {"target": "monai.transforms.RandFlipd", "args": {"spatial_axis": 0}}


@pytest.mark.parametrize(
    ("dimensions", "augment", "loader", "device"),
    [
        (2, {}, type(None), type(None)),
        (3, {}, type(None), type(None)),
        (2, {"preset": "light"}, PictureAugment, type(None)),
        (3, {"preset": "light"}, type(None), VolumeAugment),
        (2, {"transforms": [{"target": "albumentations.NoOp"}]}, PictureAugment, type(None)),
        (3, {"transforms": [FLIP]}, VolumeTransforms, type(None)),
        (3, {"transforms": []}, type(None), type(None)),
    ],
)
def test_who_augments(dimensions: int, augment: Any, loader: type, device: type) -> None:
    exp = experiment(dimensions, [8] * dimensions, augment=augment)
    assert type(loader_augment(exp)) is loader and type(device_augment(exp)) is device


def test_slices_are_augmented_in_their_plane() -> None:
    exp = experiment(3, [8, 8], patch={"slices": 3}, augment={"preset": "light"}, prepare={"spacing": [1.0, 2.0, 5.0]})
    augment = device_augment(exp)
    assert augment is not None and augment.dims == 2 and augment.spacing == (1.0, 2.0) and augment.flips == (0, 1)


def test_preset_and_list() -> None:
    exp = experiment(3, [8, 8, 8], augment={"preset": "light", "transforms": [FLIP]})
    with pytest.raises(MaskfoldError, match="both a preset and a list"):
        loader_augment(exp)


@pytest.mark.parametrize(
    ("augment", "dims", "expected"),
    [
        (Augment(), 2, ()),
        (Augment(preset="light"), 2, (0, 1)),
        (Augment(preset="heavy"), 3, (0, 1, 2)),
        (Augment(preset="light", flip=False), 3, ()),
        (Augment(preset="light", flip=[2, 0, 2]), 3, (0, 2)),
        (Augment(transforms=[FLIP]), 3, (0,)),  # type: ignore[list-item]
        (Augment(transforms=[{"target": "monai.transforms.RandFlipd"}]), 3, ()),  # type: ignore[list-item]
        (Augment(transforms=[{"target": "monai.transforms.RandAxisFlipd"}]), 3, (0, 1, 2)),  # type: ignore[list-item]
        (Augment(transforms=[{"target": "albumentations.VerticalFlip"}]), 2, (0,)),  # type: ignore[list-item]
        (Augment(transforms=[{"target": "albumentations.HorizontalFlip"}]), 2, (1,)),  # type: ignore[list-item]
    ],
)
def test_flips(augment: Augment, dims: int, expected: tuple[int, ...]) -> None:
    assert flips(augment, dims) == expected


def test_axis_that_is_not_there() -> None:
    with pytest.raises(MaskfoldError, match=r"names axis 2"):
        flips(Augment(preset="light", flip=[2]), 2)


def test_asking_for_flips_imports_nothing_heavy() -> None:
    program = (
        "import sys; import competition.augment; from competition.augment import flips; "
        "print(*[name for name in ('torch', 'albumentations', 'cv2', 'monai') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("dimensions", [2, 3])
def test_loader_workers_change_nothing(tmp_path: Path, dimensions: int) -> None:
    transforms = {"transforms": [FLIP, {"target": "monai.transforms.RandGaussianNoised", "args": {"prob": 0.5}}]}
    exp = experiment(dimensions, [8] * dimensions, augment={"preset": "heavy"} if dimensions == 2 else transforms)
    draw, folders = np.random.default_rng(0), []
    for number in range(3):
        image = draw.integers(0, 256, (1, *[12] * dimensions), dtype=np.uint8)
        folders.append(prepared_case(tmp_path, str(number), image, image // 100, exp))
    dataset = PatchDataset(folders, exp, 0, 1, loader_augment(exp))

    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(dataset, batch_sampler=StepSampler(0, 4, 2, 2), num_workers=workers)  # type: ignore[arg-type]
        return list(loader)

    alone = batches(0)
    plain = PatchDataset(folders, exp, 0, 1)
    assert any(not np.array_equal(plain[0, index]["image"], alone[0]["image"][index]) for index in range(2))
    for workers in (1, 2):
        for first, second in zip(alone, batches(workers), strict=True):
            assert all(torch.equal(first[key], second[key]) for key in first)
