"""Give the rivals of `benchmarks/accuracy.py` the same cases, folds, time and metric as Maskfold's runs.

A rival is a script whose argument is a JSON file with the fields of `Task`. It writes its result to another JSON file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import torch

from competition.config.competition import Competition
from competition.config.loading import load_competition
from competition.data.cases import case_rows, case_table
from competition.data.masks import load_mask, load_objects
from competition.data.readers import load_image
from competition.data.splits import read_folds
from competition.metrics.scoring import score_case

IGNORED = 255  # value of ignored pixels in a label image
MIN_STEPS = 4  # minimum number of training steps, even if the budget is used up; the same as in Maskfold
# Safety factor: the final prediction is expected to take this many times as long as the measured time per pixel says.
RESERVE = 1.2


@dataclass(frozen=True)
class Task:
    """Describe one fold to train and predict.

    Attributes:
        competition: the competition's YAML.
        root: the folder of the data.
        folds: CSV with the columns id and fold.
        fold: number of the fold that is predicted.
        seed: random seed.
        seconds: processor seconds that the whole process may use, from its start to the last prediction.
        output: the JSON file to which the rival writes its result.
    """

    competition: str
    root: str
    folds: str
    fold: int
    seed: int
    seconds: float
    output: str

    def write(self, path: Path) -> None:
        """Write the task to a JSON file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """Hold a case in memory.

    Attributes:
        row: row of the case table.
        image: image (C, *spatial) float32.
        label: label image (1, *spatial) or class masks (K, *spatial), uint8; ignored pixels are set to 0.
        affine: affine (4, 4) of the file; the identity if the file has none.
        spacing: spacing of the pixels or voxels, per axis.
    """

    row: Any
    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, ...]


Predict = Callable[[Case], np.ndarray]  # a function that returns the class masks (K, *spatial) bool of a case


class Fold:
    """Load the training and held-out cases of a task, and watch its budget of processor seconds.

    Attributes:
        task: the task.
        comp: the competition.
        train: the training cases.
        validation: the held-out cases.
        reserve: processor seconds reserved for the final prediction.
        steps: number of completed training steps; the rival's script counts them.
    """

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(task.seed)
        np.random.seed(task.seed)
        self.task = task
        self.comp: Competition = load_competition(task.competition, [f"root={task.root}"])
        folds = read_folds(Path(task.folds))
        held_out = set(folds.loc[folds["fold"] == task.fold, "id"])
        rows = list(case_rows(case_table(self.comp)))
        self.train = [self._load(row) for row in rows if row.id not in held_out]
        self.validation = [self._load(row) for row in rows if row.id in held_out]
        self.reserve = 0.0
        self.steps = 0

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return int(self.train[0].image.shape[0])

    @property
    def outputs(self) -> int:
        """Number of output channels of the network, including a background if the classes exclude each other."""
        return len(self.comp.classes) + self.exclusive

    @property
    def exclusive(self) -> bool:
        """Whether the classes exclude each other, so that softmax is used instead of sigmoid."""
        return self.comp.labels == "exclusive"

    def masks(self, logits: torch.Tensor) -> np.ndarray:
        """Convert logits (outputs, *spatial) to class masks (K, *spatial) bool."""
        if not self.exclusive:
            return (logits > 0).cpu().numpy()
        labels = logits.argmax(0).cpu().numpy()
        return np.stack([labels == number for number in range(1, self.outputs)])

    def measure_prediction(self, predict: Predict) -> None:
        """Measure the prediction of the largest held-out case, and reserve time to predict all held-out cases."""
        case = max(self.validation, key=lambda one: one.image.size)
        start = time.process_time()
        predict(case)
        per_pixel = (time.process_time() - start) / case.image.size
        self.reserve = RESERVE * per_pixel * sum(one.image.size for one in self.validation)

    def share(self) -> float:
        """Return the used share of the training time, from 0 to 1."""
        return min(1.0, time.process_time() / max(1e-6, self.task.seconds - self.reserve))

    def goes_on(self) -> bool:
        """Return whether there is time for another step."""
        return self.steps < MIN_STEPS or self.share() < 1

    def finish(self, predict: Predict) -> None:
        """Predict and score the held-out cases, and write the result to the task's output file."""
        rows = []
        for case in self.validation:
            objects = load_objects(self.comp, case.row) if self.comp.instances else None
            truth = load_mask(self.comp, case.row)
            for row in score_case(predict(case), truth, self.comp, case.spacing, objects):
                rows.append({"id": case.row.id, **row})
        result = {"steps": self.steps, "processor_seconds": time.process_time(), "cases": rows}
        Path(self.task.output).write_text(json.dumps(result), encoding="utf-8")

    def _load(self, row: Any) -> Case:
        """Load the image and label of a row of the case table."""
        image, label = load_image(self.comp, row), load_mask(self.comp, row)
        array = image.array[:3] if self.comp.dimensions == 2 else image.array  # without alpha
        affine = np.eye(4) if image.affine is None else image.affine
        return Case(row, array.astype(np.float32), np.where(label == IGNORED, 0, label), affine, image.spacing)


def open_task() -> Fold:
    """Read the task file that the command line names, and load its cases."""
    return Fold(Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))


def patch_size(shapes: Sequence[Sequence[int]], largest: int, multiple: int = 16) -> tuple[int, ...]:
    """Return a patch size: the median of the shapes, rounded up to multiples of `multiple` and limited to `largest`."""
    median = np.median(np.array(shapes), axis=0)
    return tuple(int(min(largest, multiple * np.ceil(side / multiple))) for side in median)


def has_bf16() -> bool:
    """Return whether the processor has bf16 instructions, with which autocast to bf16 is faster than float32."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text() if path.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
