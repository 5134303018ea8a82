"""List the ten tasks of the Medical Segmentation Decathlon, with their sizes and MONAI's URLs."""

from __future__ import annotations

from dataclasses import dataclass

from competition.datasets.download import RemoteFile
from competition.errors import MaskfoldError
from competition.text import nearest_names

LICENCE = "CC-BY-SA 4.0"
HOMEPAGE = "http://medicaldecathlon.com"


@dataclass(frozen=True)
class DecathlonTask:
    """Describe one task, which is one data set.

    Attributes:
        name: name of the task on the command line, and of its local folder.
        folder: name of the task in the Decathlon; the archive contains this folder.
        megabytes: approximate size of the archive in 10⁶ bytes. The unpacked size is about the same, because the
            archive contains compressed files (.nii.gz).
        description: modality and classes.
    """

    name: str
    folder: str
    megabytes: int
    description: str

    @property
    def size(self) -> int:
        """The approximate size of the archive in bytes."""
        return self.megabytes * 10**6


TASKS = (
    DecathlonTask(
        "braintumour", "Task01_BrainTumour", 7600, "MRI of four sequences; oedema and two parts of the tumour"
    ),
    DecathlonTask("heart", "Task02_Heart", 460, "MRI; left atrium"),
    DecathlonTask("liver", "Task03_Liver", 28900, "CT; liver and tumours"),
    DecathlonTask("hippocampus", "Task04_Hippocampus", 28, "MRI; anterior and posterior part"),
    DecathlonTask("prostate", "Task05_Prostate", 240, "MRI of two sequences; peripheral and transition zone"),
    DecathlonTask("lung", "Task06_Lung", 9200, "CT; tumours"),
    DecathlonTask("pancreas", "Task07_Pancreas", 12200, "CT; pancreas and tumours"),
    DecathlonTask("hepaticvessel", "Task08_HepaticVessel", 9400, "CT; vessels and tumours"),
    DecathlonTask("spleen", "Task09_Spleen", 1600, "CT; spleen"),
    DecathlonTask("colon", "Task10_Colon", 6300, "CT; tumours"),
)


def find_task(name: str) -> DecathlonTask:
    """Return a task by name, in upper or lower case: `spleen`, `Task09_Spleen` and `task09` name the same task.

    Raises:
        MaskfoldError: no task has this name (exit status 2).
    """
    key = name.casefold()
    for task in TASKS:
        if key in (task.name, task.folder.casefold(), task.folder.casefold().partition("_")[0]):
            return task
    matches = nearest_names(name, [task.name for task in TASKS], count=1)
    suggestion = f" Did you mean {matches[0]}?" if matches else ""
    raise MaskfoldError(
        f"There is no data set {name}.{suggestion}",
        "To list all data sets, run: maskfold fetch list. For the data of a Kaggle competition, run: maskfold fetch "
        "kaggle:COMPETITION.",
        status=2,
    )


def remote_file_of(task: DecathlonTask) -> RemoteFile:
    """Return a task's archive: its URL and MD5 from MONAI, and its approximate size from `task`.

    This function imports MONAI, which takes seconds.
    """
    from monai.apps.datasets import DecathlonDataset

    return RemoteFile(DecathlonDataset.resource[task.folder], task.size, DecathlonDataset.md5[task.folder])
