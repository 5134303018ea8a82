"""What augmentation costs: batched volumes beside MONAI's per-sample transforms, and pictures.

    python benchmarks/augment.py            # preset medium
    python benchmarks/augment.py heavy 4    # another preset, 4 threads

Volumes are 40 × 56 × 40 voxels, one channel, two classes, 4 to a batch; MONAI gets the same kinds of changes with the same
probabilities and strengths. Both take turns in one process, so that another load hits both; times are per sample. Pictures are 256 × 256, RGB, uint8.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import torch

from competition.augment.pictures import PictureAugment
from competition.augment.presets import VOLUMES
from competition.augment.transforms import VolumeTransforms
from competition.augment.volumes import VolumeAugment
from competition.config.experiment import Augment

BATCH, SHAPE, ROUNDS, WARM = 4, (40, 56, 40), 60, 5


def monai_list(name: str) -> Augment:
    """A preset in MONAI's words."""
    level = VOLUMES[name]
    angle, zoom = np.radians(level.degrees), level.zoom_factor[1] - 1
    flips: list[tuple[str, float, dict[str, object]]] = [
        ("RandFlipd", 0.5, {"spatial_axis": axis}) for axis in range(3)
    ]
    named: list[tuple[str, float, dict[str, object]]] = [
        *flips,
        (
            "RandAffined",
            1 - (1 - level.rotate) * (1 - level.zoom),
            {"rotate_range": [angle] * 3, "scale_range": [zoom] * 3, "padding_mode": "border"},
        ),
        (
            "Rand3DElasticd",
            level.elastic,
            {"sigma_range": [3, 5], "magnitude_range": [20, 80], "padding_mode": "border"},
        ),
        ("RandGaussianSmoothd", level.blur, {}),
        ("RandSimulateLowResolutiond", level.coarse, {"zoom_range": list(level.coarse_factor)}),
        ("RandGaussianNoised", level.noise, {"std": level.noise_deviation[1]}),
        ("RandScaleIntensityd", level.brightness, {"factors": level.brightness_factor[1] - 1}),
        ("RandScaleIntensityFixedMeand", level.contrast, {"factors": level.contrast_factor[1] - 1}),
        ("RandAdjustContrastd", level.gamma, {"gamma": list(level.gamma_exponent), "retain_stats": True}),
    ]
    return Augment.model_validate(
        {
            "transforms": [
                {"target": f"monai.transforms.{target}", "args": {"prob": float(prob), **args}}
                for target, prob, args in named
                if prob > 0
            ]
        }
    )


def interleaved(works: dict[str, Callable[[int], object]], samples: int) -> None:
    """Runs each work in turn, ROUNDS times, and prints milliseconds per sample."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    busy = dict.fromkeys(works, 0.0)
    for number in range(ROUNDS + WARM):
        for name, work in works.items():
            began, cpu = time.perf_counter(), time.process_time()
            work(number)
            if number >= WARM:
                busy[name] += 1000 * (time.process_time() - cpu) / samples / ROUNDS
                seconds[name].append(1000 * (time.perf_counter() - began) / samples)
    for name, values in seconds.items():
        print(
            f"{name:<44} mean {statistics.mean(values):7.2f} ms   median {statistics.median(values):7.2f} ms   "
            f"processor time, all threads {busy[name]:7.2f} ms"
        )


def main(name: str = "medium", threads: str = "2") -> None:
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    image, mask = torch.randn(BATCH, 1, *SHAPE), torch.randint(0, 3, (BATCH, 1, *SHAPE), dtype=torch.uint8)
    batched, listed = VolumeAugment(Augment.model_validate({"preset": name}), 3), VolumeTransforms(monai_list(name))
    samples = [(one.numpy(), labels.numpy()) for one, labels in zip(image, mask, strict=True)]

    def ours(number: int) -> None:
        batched(image, mask, [BATCH * number + index for index in range(BATCH)])

    def monai(number: int) -> None:
        for index, sample in enumerate(samples):
            listed(*sample, BATCH * number + index)

    print(f"preset {name}, {threads} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    interleaved({"volume 40x56x40, batched in torch": ours, "volume 40x56x40, MONAI one by one": monai}, BATCH)
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    labels = picture[..., :1] // 128
    augment = PictureAugment(Augment.model_validate({"preset": name}))
    interleaved(
        {
            "picture 256x256x3 uint8, albumentations": lambda number: [
                augment(picture, labels, BATCH * number + index) for index in range(BATCH)
            ]
        },
        BATCH,
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
