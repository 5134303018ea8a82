"""Train as in MONAI's tutorials: UNet, Dice loss, Adam, crops around labels, sliding-window prediction.

3D volumes are treated as in the tutorial `3d_segmentation/spleen_segmentation_3d`, but with the median spacing of the
data. The intensities of volumes that are not CT are normalised as in `brats_segmentation_3d`. 2D images are treated as
in `2d_segmentation/torch/unet_training_dict`.

    python benchmarks/rivals/monai_tutorial.py task.json       # benchmarks/accuracy.py writes the task
"""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    CropForegroundd,
    Invertd,
    NormalizeIntensityd,
    Orientationd,
    RandCropByPosNegLabeld,
    RandRotate90d,
    ScaleIntensityd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)
from task import Case, Fold, open_task, patch_size

BOTH = ["image", "label"]


def preparation(fold: Fold, keys: list[str], crop: bool) -> Compose:
    """Return the deterministic transforms, which precede the random ones.

    Args:
        fold: the task's cases.
        keys: names of the arrays to transform, "image" and perhaps "label".
        crop: whether to crop volumes to their foreground.
    """
    if fold.comp.dimensions == 2:
        return Compose([ScaleIntensityd("image")])
    modes = ["bilinear", "nearest"][: len(keys)]
    is_ct = min(float(case.image.min()) for case in fold.train) < -200
    intensity = (
        ScaleIntensityRanged("image", a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True)
        if is_ct
        else NormalizeIntensityd("image", nonzero=True, channel_wise=True)
    )
    spacing = np.median([np.linalg.norm(case.affine[:3, :3], axis=0) for case in fold.train], axis=0)
    transforms = [Orientationd(keys, axcodes="RAS"), Spacingd(keys, pixdim=spacing, mode=modes), intensity]
    if crop:
        transforms.insert(0, CropForegroundd(keys, source_key="image", allow_smaller=True))
    return Compose(transforms)


def as_dict(case: Case, labelled: bool) -> dict[str, MetaTensor]:
    """Return the image, and the label if `labelled` is set, in the form that MONAI's transforms expect."""
    affine = torch.as_tensor(case.affine, dtype=torch.float64)
    data = {"image": MetaTensor(torch.from_numpy(case.image), affine=affine)}
    if labelled:
        data["label"] = MetaTensor(torch.from_numpy(case.label.astype(np.float32)), affine=affine)
    return data


def main() -> None:
    """Train until the processor seconds are used up, then predict."""
    fold = open_task()
    dims = fold.comp.dimensions
    prepare = preparation(fold, BOTH, crop=True)
    cases = [prepare(as_dict(case, labelled=True)) for case in fold.train]
    size = (96,) * dims if dims == 2 else patch_size([case["image"].shape[1:] for case in cases], 96)
    crops = [
        SpatialPadd(BOTH, spatial_size=size),
        RandCropByPosNegLabeld(BOTH, label_key="label", spatial_size=size, pos=1, neg=1, num_samples=4),
    ]
    draw = Compose([*crops, RandRotate90d(BOTH, prob=0.5, spatial_axes=(0, 1))] if dims == 2 else crops)
    draw.set_random_state(fold.task.seed)
    network = UNet(
        spatial_dims=dims,
        in_channels=fold.channels,
        out_channels=fold.outputs,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm="batch",
    )
    loss_of = DiceLoss(to_onehot_y=True, softmax=True) if fold.exclusive else DiceLoss(sigmoid=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3 if dims == 2 else 1e-4)
    prepare_image = preparation(fold, ["image"], crop=False)
    undo = Invertd("logits", prepare_image, orig_keys="image", nearest_interp=False, to_tensor=True)

    @torch.no_grad()
    def predict(case: Case) -> np.ndarray:
        network.eval()
        data = prepare_image(as_dict(case, labelled=False))
        data["logits"] = MetaTensor(sliding_window_inference(data["image"][None], size, 4, network)[0])
        logits = undo(data)["logits"] if dims == 3 else data["logits"]
        return fold.masks(torch.as_tensor(logits))

    fold.measure_prediction(predict)
    order = np.random.default_rng(fold.task.seed)
    while fold.goes_on():
        for batch in np.array_split(
            order.permutation(len(cases)), max(1, len(cases) // 2)
        ):  # a batch has two cases with four crops each
            crops_of_batch = [crop for index in batch for crop in draw(cases[index])]
            images, labels = (torch.stack([crop[key].as_tensor() for crop in crops_of_batch]) for key in BOTH)
            network.train()
            optimizer.zero_grad()
            loss_of(network(images), labels).backward()
            optimizer.step()
            fold.steps += 1
            if not fold.goes_on():
                break
    fold.finish(predict)


if __name__ == "__main__":
    main()
