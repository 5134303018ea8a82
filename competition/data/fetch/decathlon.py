"""The ten tasks of the Medical Segmentation Decathlon, where MONAI gets them, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass

from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest
from competition.data.fetch.download import Source

LICENCE = "CC-BY-SA 4.0"
HOME = "http://medicaldecathlon.com"


@dataclass(frozen=True)
class Task:
    """One data set.

    Attributes:
        name: as it is typed, and the name of its folder here.
        folder: its name in the Decathlon; the archive holds this folder.
        megabytes: of the archive, in 10⁶ bytes, rounded; unpacked it is about as large, since its files are compressed.
        holds: what is to be seen.
    """

    name: str
    folder: str
    megabytes: int
    holds: str

    @property
    def size(self) -> int:
        """Bytes, about."""
        return self.megabytes * 10**6


TASKS = (
    Task("braintumour", "Task01_BrainTumour", 7600, "MRI of four sequences; oedema and two parts of the tumour"),
    Task("heart", "Task02_Heart", 460, "MRI; left atrium"),
    Task("liver", "Task03_Liver", 28900, "CT; liver and tumours"),
    Task("hippocampus", "Task04_Hippocampus", 28, "MRI; anterior and posterior part"),
    Task("prostate", "Task05_Prostate", 240, "MRI of two sequences; peripheral and transition zone"),
    Task("lung", "Task06_Lung", 9200, "CT; tumours"),
    Task("pancreas", "Task07_Pancreas", 12200, "CT; pancreas and tumours"),
    Task("hepaticvessel", "Task08_HepaticVessel", 9400, "CT; vessels and tumours"),
    Task("spleen", "Task09_Spleen", 1600, "CT; spleen"),
    Task("colon", "Task10_Colon", 6300, "CT; tumours"),
)


def find_task(name: str) -> Task:
    """A task by its name, in any capitals; `Task09_Spleen` and `task09` mean the spleen too.

    Raises:
        MaskfoldError: there is no such task (status 2).
    """
    wanted = name.casefold()
    for task in TASKS:
        if wanted in (task.name, task.folder.casefold(), task.folder.casefold().partition("_")[0]):
            return task
    near = nearest(name, [task.name for task in TASKS], count=1)
    meant = f"; did you mean {near[0]}?" if near else "."
    raise MaskfoldError(f"No data set is called {name}{meant}",
                        "`maskfold fetch list` shows them all; kaggle's are written kaggle:COMPETITION.", status=2)


def source_of(task: Task) -> Source:
    """Where MONAI gets a task, with the checksum that it knows.

    Imports MONAI (seconds).
    """
    from monai.apps.datasets import DecathlonDataset

    return Source(DecathlonDataset.resource[task.folder], task.size, DecathlonDataset.md5[task.folder])
