"""Train a network as an expert would who chooses network, loss, optimiser and augmentation by hand.

    python benchmarks/rivals/hand_tuned.py task.json       # benchmarks/accuracy.py writes the task

The network is a DynUNet (3D) or a U-Net with ResNet encoder (2D). It is trained in bf16 where the processor supports
this, with AdamW, Dice and cross-entropy, and random flips. Predictions of overlapping windows are blended with a
Gaussian. The voxel spacing and the size of the patches are medians over the training cases. The intensities of each
case are standardised to mean 0 and standard deviation 1, after clipping to a window for CT. The learning rate follows a
cosine that ends when the processor seconds are used up.
"""

from __future__ import annotations

import math

import numpy as np
import segmentation_models_pytorch as smp
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss, DiceLoss
from monai.networks.nets import DynUNet
from task import Case, Fold, has_bf16, open_task, patch_size
from torch import Tensor, nn
from torch.nn.functional import interpolate

RATE, DECAY, WARMUP, FOREGROUND = 2e-3, 1e-4, 0.03, 0.6
BATCH = {2: 8, 3: 2}
CT_WINDOW = (-160.0, 240.0)


def resample(array: np.ndarray, shape: tuple[int, ...], nearest: bool) -> np.ndarray:
    """Resample an array (C, *spatial) to the spatial shape `shape`.

    Args:
        array: the array.
        shape: new spatial shape.
        nearest: whether to use the nearest neighbour, for labels; otherwise, interpolation is linear.
    """
    if array.shape[1:] == shape:
        return array
    tensor = torch.from_numpy(np.ascontiguousarray(array)).float()[None]
    linear = {"mode": "trilinear" if len(shape) == 3 else "bilinear", "align_corners": False}
    return interpolate(tensor, shape, **({"mode": "nearest"} if nearest else linear))[0].numpy()


def axes_to_ras(affine: np.ndarray) -> tuple[list[int], list[int]]:
    """Return how to reorder and flip a file's axes, so that they point to the right, to the front and upwards (RAS).

    Args:
        affine: the file's affine (4, 4).

    Returns:
        For each of R, A and S, the number of the file's axis; and the axes, in the new order, that must be flipped.
    """
    order = [int(np.argmax(np.abs(affine[row, :3]))) for row in range(3)]
    return order, [row for row, axis in enumerate(order) if affine[row, axis] < 0]


class Preparation:
    """Normalise orientation, spacing and intensity of cases, and map predictions back to the grid of a case.

    Attributes:
        dims: number of spatial dimensions, 2 or 3.
        is_ct: whether the images are taken to be CT: they are volumes, and at least one has a value below -200.
        spacing: median spacing of the training cases in mm, to which volumes are resampled.
    """

    def __init__(self, fold: Fold) -> None:
        self.dims = fold.comp.dimensions
        self.is_ct = self.dims == 3 and min(float(case.image.min()) for case in fold.train) < -200
        spacings = [self._spacing(case) for case in fold.train]
        self.spacing = np.median(np.array(spacings), axis=0)

    def _spacing(self, case: Case) -> np.ndarray:
        """Return a case's spacing, for volumes in the order of the axes R, A and S."""
        spacing = np.array(case.spacing)
        return spacing[axes_to_ras(case.affine)[0]] if self.dims == 3 else spacing

    def _turn(self, array: np.ndarray, case: Case) -> np.ndarray:
        """Return an array (C, *spatial) of a case with axes in RAS orientation; 2D arrays are returned unchanged."""
        if self.dims == 2:
            return array
        order, flips = axes_to_ras(case.affine)
        return np.flip(array.transpose(0, *(axis + 1 for axis in order)), [axis + 1 for axis in flips])

    def image(self, case: Case) -> np.ndarray:
        """Return a case's image, reoriented, with normalised intensity, and resampled to the common spacing."""
        image = self._turn(case.image, case)
        if self.is_ct:
            image = np.clip(image, *CT_WINDOW)
        axes = tuple(range(1, image.ndim))
        image = (image - image.mean(axes, keepdims=True)) / (image.std(axes, keepdims=True) + 1e-6)
        return resample(image, self._shape(case, image.shape[1:]), nearest=False).astype(np.float32)

    def label(self, case: Case) -> np.ndarray:
        """Return a case's label, reoriented, and resampled to the common spacing."""
        label = self._turn(case.label, case)
        return resample(label, self._shape(case, label.shape[1:]), nearest=True).astype(np.uint8)

    def back(self, logits: np.ndarray, case: Case) -> np.ndarray:
        """Return logits (outputs, *spatial) on the grid of the case."""
        logits = resample(logits, self._turn(case.image, case).shape[1:], nearest=False)
        if self.dims == 2:
            return logits
        order, flips = axes_to_ras(case.affine)
        logits = np.flip(logits, [axis + 1 for axis in flips])
        return np.ascontiguousarray(logits.transpose(0, *(axis + 1 for axis in np.argsort(order))))

    def _shape(self, case: Case, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spatial shape that a case's array of RAS shape `shape` has at the common spacing."""
        if self.dims == 2:
            return shape
        return tuple(
            max(1, round(side * old / new)) for side, old, new in zip(shape, self._spacing(case), self.spacing)
        )


def draw_patch(image: np.ndarray, label: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> list[Tensor]:
    """Return a random patch of image and label, with random flips, intensity changes and, in 2D, quarter turns.

    With probability `FOREGROUND`, the patch is centred on a random foreground pixel.
    """
    pad = [(0, 0), *((0, max(0, want - side)) for want, side in zip(size, image.shape[1:]))]
    image, label = np.pad(image, pad), np.pad(label, pad)
    starts = [int(rng.integers(0, side - want + 1)) for side, want in zip(image.shape[1:], size)]
    foreground = np.argwhere(label.any(0)) if rng.random() < FOREGROUND else np.empty((0, len(size)))
    if len(foreground):
        point = foreground[rng.integers(len(foreground))]
        limits = [side - want for side, want in zip(image.shape[1:], size)]
        starts = [int(np.clip(at - want // 2, 0, limit)) for at, want, limit in zip(point, size, limits)]
    where = (slice(None), *(slice(start, start + want) for start, want in zip(starts, size)))
    flips = [axis for axis in range(1, image.ndim) if rng.random() < 0.5]
    arrays = [np.flip(array[where], flips) for array in (image, label)]
    if len(size) == 2 and size[0] == size[1]:
        turns = int(rng.integers(4))
        arrays = [np.rot90(array, turns, (1, 2)) for array in arrays]
    arrays[0] = arrays[0] * rng.uniform(0.8, 1.2) + rng.uniform(-0.2, 0.2)
    return [torch.from_numpy(np.ascontiguousarray(array, np.float32)) for array in arrays]


def build(fold: Fold, size: tuple[int, ...]) -> nn.Module:
    """Return the network: a U-Net with ResNet-34 encoder for 2D, a DynUNet with four levels for 3D."""
    if fold.comp.dimensions == 2:
        network: nn.Module = smp.Unet("resnet34", encoder_weights=None, in_channels=fold.channels, classes=fold.outputs)
        return network
    strides = [1, *([[2 if side >= 16 else 1 for side in size]] * 3)]
    return DynUNet(
        3, fold.channels, fold.outputs, [3] * 4, strides, strides[1:], [24, 48, 96, 160], norm_name="instance"
    )


def main() -> None:
    """Train until the processor seconds are used up, then predict."""
    fold = open_task()
    dims, preparation = fold.comp.dimensions, Preparation(fold)
    cases = [(preparation.image(case), preparation.label(case)) for case in fold.train]
    multiple, largest = (32, 256) if dims == 2 else (8, 64)
    size = patch_size([image.shape[1:] for image, _ in cases], largest, multiple)
    network, rng = build(fold, size), np.random.default_rng(fold.task.seed)
    dice_ce = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    dice, bce = DiceLoss(sigmoid=True, batch=True), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    bf16 = has_bf16()

    @torch.no_grad()
    def predict(case: Case) -> np.ndarray:
        network.eval()
        image = torch.from_numpy(preparation.image(case))[None]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = sliding_window_inference(image, size, 4, network, overlap=0.5, mode="gaussian")
        return fold.masks(torch.from_numpy(preparation.back(logits[0].float().numpy(), case)))

    fold.measure_prediction(predict)
    while fold.goes_on():
        share = fold.share()
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = RATE * max(0.01, min(1.0, share / WARMUP) * cosine)
        drawn = [draw_patch(*cases[rng.integers(len(cases))], size, rng) for _ in range(BATCH[dims])]
        images, labels = (torch.stack(tensors) for tensors in zip(*drawn))
        network.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = network(images)
        logits = logits.float()
        loss = dice_ce(logits, labels) if fold.exclusive else dice(logits, labels) + bce(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        fold.steps += 1
    fold.finish(predict)


if __name__ == "__main__":
    main()
