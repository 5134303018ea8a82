"""The memory that a large volume takes when it is validated: from its file to its score and its picture.

    python benchmarks/memory.py                                    # 512×512×400, about ten minutes on two cores
    python benchmarks/memory.py --shape 128 128 100 --patch 64

A phantom of four classes and background, int16 NIfTI with voxels of 0.7×0.7×1.0 mm, is prepared on a grid of 0.8 mm,
predicted by a small DynUNet with random weights (5 output channels), taken back to its own grid, kept on disk, made into
masks, scored and drawn by the very code that validates a fold; all of it in this process, whose resident memory (memory
maps included, children too) is sampled every 20 ms. The Dice of a random network means nothing. That of the truth
itself, prepared and taken back, must be near 1.
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
    """Samples the resident memory of this process and its children in a thread."""

    def __init__(self) -> None:
        self.peak = 0
        self.stage_peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._stop.wait(0.02):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak, self.stage_peak = max(self.peak, total), max(self.stage_peak, total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Prints the seconds and the peak of a stage."""
        self.stage_peak, began = 0, time.perf_counter()
        yield
        time.sleep(0.05)
        print(f"{name:<28}{time.perf_counter() - began:8.1f} s {self.stage_peak / 2**30:7.2f} GiB", flush=True)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def write_phantom(root: Path, shape: tuple[int, int, int]) -> None:
    """Image and labels of one case: an ellipsoid per class, in noise, made slice by slice."""
    import nibabel

    random = np.random.default_rng(0)
    image, labels = np.empty(shape, np.int16), np.zeros(shape, np.uint8)
    x, y = np.meshgrid(np.arange(shape[0]) / shape[0], np.arange(shape[1]) / shape[1], indexing="ij")
    for z in range(shape[2]):
        plane = np.zeros(shape[:2], np.uint8)
        for index, (cx, cy, cz) in enumerate([(0.3, 0.3, 0.4), (0.7, 0.3, 0.6), (0.3, 0.7, 0.5), (0.7, 0.7, 0.5)]):
            distance = (x - cx) ** 2 + (y - cy) ** 2 + (z / shape[2] - cz) ** 2
            plane[distance < (0.06 + 0.04 * index) ** 2] = index + 1
        labels[..., z] = plane
        image[..., z] = random.normal(100 * plane - 200, 50).astype(np.int16)
    affine = np.diag([*SPACING, 1.0])
    for folder, array in (("images", image), ("labels", labels)):
        (root / folder).mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), root / folder / "phantom.nii")


def dice(masks: np.ndarray, truth: np.ndarray) -> list[float]:
    """Dice of each class of (K, *spatial) bool against label values 1..K, plane by plane."""
    both, sizes = np.zeros(len(masks)), np.zeros(len(masks))
    for plane in range(truth.shape[0]):
        for index, mask in enumerate(masks):
            wanted = truth[plane] == index + 1
            both[index] += np.count_nonzero(mask[plane] & wanted)
            sizes[index] += np.count_nonzero(mask[plane]) + np.count_nonzero(wanted)
    return [float(value) for value in 2 * both / np.maximum(sizes, 1)]


def main(shape: tuple[int, int, int], patch: int, overlap: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        maker = multiprocessing.get_context("spawn").Process(target=write_phantom, args=(root, shape))
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit("the phantom could not be written")
        memory = Memory()
        began = time.perf_counter()
        run(root, patch, overlap, memory)
        memory.stop()
        print(f"{'in all':<28}{time.perf_counter() - began:8.1f} s {memory.peak / 2**30:7.2f} GiB")


def run(root: Path, patch: int, overlap: float, memory: Memory) -> None:
    with memory.stage("import"):
        import torch
        from monai.networks.nets.dynunet import DynUNet

        from competition.config import Experiment
        from competition.data.prepare import PreparedCase, prepare_cases
        from competition.data.table import case_table, load_mask
        from competition.inference.masks import to_masks
        from competition.inference.store import OofStore
        from competition.training.validation import Judge

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
        case = PreparedCase.open(next(iter(prepare_cases(table, exp, root / "cache").values())))
    print(f"  {case.geometry.file_shape} at {case.geometry.file_spacing} mm became {case.geometry.shape}")
    judge = Judge(exp, table, {case.id: case.folder}, torch.device("cpu"), nullcontext, lambda: None)
    store = OofStore(root / "oof")
    with memory.stage("predict, keep and score"):
        scores = judge.predict_out_of_fold(network, store, fold=0)
    print("  Dice of a random network: ", " ".join(f"{value:.3f}" for value in scores["dice"]))
    with memory.stage("picture"):
        judge.draw_extremes(store, scores, root / "pictures", fold=0)
    truth = load_mask(exp.competition, next(table.itertuples()))[0]
    with memory.stage("undo of the prepared truth"):
        mask = case.mask
        assert mask is not None
        certain = np.empty((5, *case.geometry.shape), np.float16)
        for value, channel in enumerate(certain):
            channel[:] = mask[0] == value
        back = case.geometry.undo(certain)
        del certain
        masks = to_masks(back, exp.competition)
        print("  Dice of the truth itself: ", " ".join(f"{value:.4f}" for value in dice(masks, truth)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--overlap", type=float, default=0.25)
    words = parser.parse_args()
    main(tuple(words.shape), words.patch, words.overlap)
