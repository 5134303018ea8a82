"""Measure the peak memory of validating a large volume, from its file to its score and its picture.

    python benchmarks/memory.py                                    # 512×512×400, about ten minutes on two cores
    python benchmarks/memory.py --shape 128 128 100 --patch 64

The volume is a phantom of four classes and background: a NIfTI file of int16 with voxels of 0.7×0.7×1.0 mm. It is
resampled to voxels of 0.8 mm and predicted by a small DynUNet with random weights (5 output channels). The code that
validates a fold then resamples the prediction to the grid of the file, stores it, converts it to masks, scores it and
draws it. All of this runs in this process. Every 20 ms, the script records the resident memory of the process and its
children, including memory maps.

The Dice of the random network is arbitrary. As a check, the true mask is also resampled to 0.8 mm and back; its Dice
must be close to 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

SPACING = (0.7, 0.7, 1.0)
TARGET = [0.8, 0.8, 0.8]
CLASSES = ["a", "b", "c", "d"]


class Memory:
    """Record the peak resident memory of this process and its children, with a thread.

    Attributes:
        peak: peak memory in bytes since the start.
        stage_peak: peak memory in bytes since the start of the current stage.
    """

    def __init__(self) -> None:
        self.peak = 0
        self.stage_peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        import psutil

        this_process = psutil.Process()
        while not self._stop.wait(0.02):
            total = 0
            for process in (this_process, *this_process.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak, self.stage_peak = max(self.peak, total), max(self.stage_peak, total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the body of a `with` statement, and print its name, seconds and peak memory at its end."""
        self.stage_peak, start = 0, time.perf_counter()
        yield
        time.sleep(0.05)
        print(f"{name:<28}{time.perf_counter() - start:8.1f} s {self.stage_peak / 2**30:7.2f} GiB", flush=True)

    def stop(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()


def write_phantom(root: Path, shape: tuple[int, int, int]) -> None:
    """Write image and labels of one case: an ellipsoid per class, with noise in the image; generated slice by slice."""
    import nibabel

    rng = np.random.default_rng(0)
    image, labels = np.empty(shape, np.int16), np.zeros(shape, np.uint8)
    x, y = np.meshgrid(np.arange(shape[0]) / shape[0], np.arange(shape[1]) / shape[1], indexing="ij")
    for z in range(shape[2]):
        plane = np.zeros(shape[:2], np.uint8)
        for index, (cx, cy, cz) in enumerate([(0.3, 0.3, 0.4), (0.7, 0.3, 0.6), (0.3, 0.7, 0.5), (0.7, 0.7, 0.5)]):
            distance = (x - cx) ** 2 + (y - cy) ** 2 + (z / shape[2] - cz) ** 2
            plane[distance < (0.06 + 0.04 * index) ** 2] = index + 1
        labels[..., z] = plane
        image[..., z] = rng.normal(100 * plane - 200, 50).astype(np.int16)
    affine = np.diag([*SPACING, 1.0])
    for folder, array in (("images", image), ("labels", labels)):
        (root / folder).mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), root / folder / "phantom.nii")


def dice(masks: np.ndarray, truth: np.ndarray) -> list[float]:
    """Return the Dice of each class.

    Args:
        masks: class masks (K, *spatial) bool.
        truth: label image (*spatial) with the labels 1 to K.
    """
    intersections, sizes = np.zeros(len(masks)), np.zeros(len(masks))
    for plane in range(truth.shape[0]):
        for index, mask in enumerate(masks):
            true_mask = truth[plane] == index + 1
            intersections[index] += np.count_nonzero(mask[plane] & true_mask)
            sizes[index] += np.count_nonzero(mask[plane]) + np.count_nonzero(true_mask)
    return [float(value) for value in 2 * intersections / np.maximum(sizes, 1)]


def main(shape: tuple[int, int, int], patch: int, overlap: float) -> None:
    """Print seconds and peak memory of each stage and in total.

    Args:
        shape: shape of the volume in voxels.
        patch: side of the windows in voxels.
        overlap: overlap of the windows as a fraction of their side.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        writer = multiprocessing.get_context("spawn").Process(target=write_phantom, args=(root, shape))
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit("the phantom could not be written")
        memory = Memory()
        start = time.perf_counter()
        run(root, patch, overlap, memory)
        memory.stop()
        print(f"{'total':<28}{time.perf_counter() - start:8.1f} s {memory.peak / 2**30:7.2f} GiB")


def run(root: Path, patch: int, overlap: float, memory: Memory) -> None:
    """Prepare, predict, score and draw the phantom, and print seconds and peak memory of each stage.

    Args:
        root: folder of the phantom; results are also written there.
        patch: side of the windows in voxels.
        overlap: overlap of the windows as a fraction of their side.
        memory: the recorder of memory.
    """
    with memory.stage("import"):
        import torch
        from monai.networks.nets.dynunet import DynUNet

        from competition.config.experiment import Experiment
        from competition.data.cache import PreprocessedCase
        from competition.data.cases import case_table
        from competition.data.masks import load_mask
        from competition.data.preprocessing import preprocess_cases
        from competition.inference.masks import to_masks
        from competition.runs.oof import OofStore
        from competition.training.evaluator import Evaluator

    exp = Experiment.model_validate(
        {
            "competition": {
                "name": "phantom",
                "root": root,
                "dimensions": 3,
                "classes": CLASSES,
                "train": {"images": "images/{id}.nii", "masks": "labels/{id}.nii"},
            },
            "prepare": {"spacing": TARGET, "orientation": "LPS"},
            "patch": {"size": [patch] * 3},
            "inference": {"overlap": overlap, "batch_size": 1},
            "model": {"target": "monai.networks.nets.DynUNet"},
            "loss": {"target": "monai.losses.DiceCELoss"},
        }
    )
    torch.manual_seed(0)
    network = DynUNet(3, 1, 5, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 16, 32])
    with memory.stage("case table"):
        table = case_table(exp.competition, "train")
    with memory.stage("prepare"):
        case = PreprocessedCase.open(next(iter(preprocess_cases(table, exp, root / "cache").values())))
    print(f"  {case.geometry.file_shape} at {case.geometry.file_spacing} mm: prepared to {case.geometry.shape}")
    evaluator = Evaluator(exp, table, {case.id: case.folder}, torch.device("cpu"), nullcontext, lambda: None)
    store = OofStore(root / "oof")
    with memory.stage("predict, store and score"):
        scores = evaluator.predict_out_of_fold(network, store, fold=0)
    print("  Dice of a random network: ", " ".join(f"{value:.3f}" for value in scores["dice"]))
    with memory.stage("picture"):
        evaluator.save_best_and_worst(store, scores, root / "pictures", fold=0)
    truth = load_mask(exp.competition, next(table.itertuples()))[0]
    with memory.stage("inverse of the prepared truth"):
        mask = case.mask
        assert mask is not None
        probabilities = np.empty((5, *case.geometry.shape), np.float16)
        for value, channel in enumerate(probabilities):
            channel[:] = mask[0] == value
        restored = case.geometry.inverse(probabilities)
        del probabilities
        masks = to_masks(restored, exp.competition)
        print("  Dice of the truth: ", " ".join(f"{value:.4f}" for value in dice(masks, truth)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--overlap", type=float, default=0.25)
    options = parser.parse_args()
    main(tuple(options.shape), options.patch, options.overlap)
