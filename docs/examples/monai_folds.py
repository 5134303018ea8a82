"""Train a small MONAI network on exported folds, without Maskfold, and write its predictions for `maskfold import`.

    maskfold folds experiments/hippocampus/unet3d.yaml --to nnunet -o splits_final.json
    python docs/examples/monai_folds.py data/hippocampus splits_final.json predictions --steps 300
    maskfold import predictions --competition experiments/hippocampus/competition.yaml --name monai

The script expects the folders of the Medical Segmentation Decathlon: imagesTr, labelsTr, imagesTs. It writes the
probabilities of the validation cases as nnU-Net does, `fold_0/validation/ID.npz` with the axes (C, Z, Y, X), and those
of the test cases, the mean over the folds, as NIfTI with the axes (X, Y, Z, C).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet

PATCH, BATCH = (32, 32, 32), 2


def load(path: Path) -> np.ndarray:
    """Return the array of a NIfTI file, (X, Y, Z) float32."""
    return np.asarray(nibabel.load(path).dataobj, np.float32)


def normalise(image: np.ndarray) -> np.ndarray:
    """Return an image with mean 0 and standard deviation 1."""
    return (image - image.mean()) / (image.std() + 1e-6)


def random_patch(image: np.ndarray, label: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a patch around a random voxel of the foreground, padded with 0 at the border."""
    pad = [(size // 2, size // 2) for size in PATCH]
    centre = random.choice(np.argwhere(label > 0))
    window = tuple(slice(start, start + size) for start, size in zip(centre, PATCH, strict=True))
    return np.pad(image, pad)[window], np.pad(label, pad)[window]


def train(cases: list[tuple[np.ndarray, np.ndarray]], classes: int, steps: int, seed: int) -> torch.nn.Module:
    """Train a network for a number of steps."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = SegResNet(spatial_dims=3, in_channels=1, out_channels=classes, init_filters=8, blocks_down=(1, 1, 1),
                        blocks_up=(1, 1))  # fmt: skip
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps) ** 0.9
        pairs = [random_patch(*cases[random.integers(len(cases))], random) for _ in range(BATCH)]
        images, labels = (torch.from_numpy(np.stack(parts))[:, None] for parts in zip(*pairs, strict=True))
        loss = loss_function(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def predict(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Return the probabilities of an image, (C, X, Y, Z) float32."""
    logits = sliding_window_inference(torch.from_numpy(normalise(image))[None, None], PATCH, 4, network, overlap=0.25)
    return torch.softmax(logits, 1)[0].numpy()


def main() -> None:
    """Train each fold, and write the predictions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("splits", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=300, help="training steps of a fold")
    parser.add_argument("--classes", type=int, default=3, help="number of classes with the background")
    args = parser.parse_args()
    tests = sorted((args.data / "imagesTs").glob("*.nii.gz"))
    sums: dict[Path, np.ndarray] = {}
    splits = json.loads(args.splits.read_text())
    for number, fold in enumerate(splits):
        cases = [
            (
                normalise(load(args.data / "imagesTr" / f"{case}.nii.gz")),
                load(args.data / "labelsTr" / f"{case}.nii.gz"),
            )
            for case in fold["train"]
        ]
        network = train(cases, args.classes, args.steps, number)
        folder = args.output / f"fold_{number}" / "validation"
        folder.mkdir(parents=True, exist_ok=True)
        for case in fold["val"]:
            probabilities = predict(network, load(args.data / "imagesTr" / f"{case}.nii.gz"))
            np.savez_compressed(
                folder / f"{case}.npz", probabilities=probabilities.transpose(0, 3, 2, 1).astype(np.float16)
            )
        for path in tests:
            sums[path] = sums.get(path, 0) + predict(network, load(path)) / len(splits)
        print(f"fold {number}: trained on {len(cases)} cases, predicted {len(fold['val'])}", flush=True)
    (args.output / "test").mkdir(exist_ok=True)
    for path, probabilities in sums.items():
        image = nibabel.Nifti1Image(probabilities.transpose(1, 2, 3, 0), nibabel.load(path).affine)
        nibabel.save(image, args.output / "test" / path.name)


if __name__ == "__main__":
    main()
