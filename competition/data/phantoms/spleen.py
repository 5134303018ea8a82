"""Phantoms of the spleen in CT, as a hospital's archive exports them: DICOM with DICOM-SEG.

What is phantom: the abdomen is drawn (`abdomen.py`), slices have 96 rows and columns in place of 512 and pixels of 3.3 to 3.8
mm in place of 0.65 to 0.8, a study has 24 to 40 slices. What is as in real data: Hounsfield units and their noise,
neighbours as bright as the spleen, DICOM's tags, geometry and file names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from competition.data.demo_folder import case_ids, write_nifti
from competition.data.phantoms.abdomen import Abdomen
from competition.data.phantoms.dicom_seg import write_seg
from competition.data.phantoms.dicom_series import Stack, Study, write_series
from competition.data.phantoms.shapes import Array, grain

CLASSES = ("spleen",)
LABELS = "spleen labels"  # description of the series that hold labels in place of a DICOM-SEG
ORIGINAL, LABEL_TYPE = ("ORIGINAL", "PRIMARY", "AXIAL"), ("DERIVED", "SECONDARY", "AXIAL")
OBLIQUE, TURN = 3, (6.0, 14.0)  # each eighth patient lies turned, by degrees about the z and the x axis
LABEL_SERIES = 2  # each fourth patient's labels are a second series


def write(folder: Path, cases: int, test_cases: int, seed: int) -> None:
    """Write the phantoms into an existing, empty folder.

    - `dicom/train/{patient}/{study}/{8 digits}`: a CT series (int16, RescaleIntercept -1024) of each patient, a DICOM-SEG
      of the spleen for three patients in four, for the others a second series `spleen labels` with values 0 and 1;
      some studies also hold a localiser or a second reconstruction without labels;
    - `dicom/test/{patient}/{study}/{8 digits}`: CT series (some with a localiser), no labels;
    - `solution/{patient}.nii.gz`: the hidden spleens of the test patients (uint8), on their CT's grid.
    """
    (folder / "solution").mkdir()
    for index, patient in enumerate(case_ids("PAT", cases + test_cases, seed)):
        write_patient(folder, patient.replace("_", "-"), index, index if index < cases else None, seed)


def write_patient(folder: Path, patient: str, index: int, place: int | None, seed: int) -> None:
    """Write one patient's study.

    Args:
        folder: of the phantoms.
        patient: its id.
        index: among all patients, what is drawn follows from it.
        place: among the training patients, which kind of labels follows from it; None for a test patient.
        seed: of the phantoms.
    """
    rng = np.random.default_rng([seed, 4, index])
    anatomy = Abdomen(rng)
    stack = _stack(rng, index)
    image, mask = scan(rng, anatomy, stack)
    part = "test" if place is None else "train"
    study = Study(folder / "dicom" / part / patient / f"{rng.integers(10**7, 10**8)}", patient, rng, seed)
    backwards = bool(index % 2)
    if index % 3 == 0:
        flat, side = _localiser(stack, image)
        write_series(study, "localiser", "Topogram 0.6 T20s", side, flat, ("ORIGINAL", "PRIMARY", "LOCALIZER"))
    write_series(study, "ct", f"ABD {stack.spacing[0]:g} B30f", stack, image, ORIGINAL, backwards)
    if place is None:
        write_nifti(folder / "solution" / f"{patient}.nii.gz", *stack.nifti(mask))
        return
    if place % 4 == LABEL_SERIES:
        write_series(study, "labels", LABELS, stack, mask, LABEL_TYPE, not backwards, intercept=0)
    else:
        write_seg(study, "ct", stack, mask, backwards, all_frames=place % 3 == 1)
    if place % 5 == 1:  # another kernel and field of view, of which no labels were drawn
        other = Stack.around(np.array([20.0, 5.0, 0.0]), (stack.shape[0], 80, 80), (stack.spacing[0], 3.0, 3.0))
        sharp, _ = scan(rng, anatomy, other, noise=45.0)
        write_series(study, "sharp", f"ABD {stack.spacing[0]:g} B70f", other, sharp, ORIGINAL, backwards)


def scan(rng: np.random.Generator, anatomy: Abdomen, stack: Stack, noise: float | None = None) -> tuple[Array, Array]:
    """See an anatomy on a grid.

    Args:
        rng: source of the noise.
        anatomy: the patient.
        stack: the grid.
        noise: its deviation, HU; None draws it.

    Returns:
        Hounsfield units (slices, rows, columns) float64, and the spleen (slices, rows, columns) uint8.
    """
    values, mask = anatomy.at(stack.points())
    level = rng.uniform(14.0, 28.0) if noise is None else noise
    values = values + level * grain(rng, stack.shape, axes=(1, 2))
    return np.clip(np.rint(values), -1024, 3071), mask


def _stack(rng: np.random.Generator, index: int) -> Stack:
    """The grid of a CT: 24 to 40 slices of 5 mm for most."""
    thick = float(rng.choice([5.0, 5.0, 5.0, 4.0, 6.0]))
    pixel = float(rng.choice([3.3, 3.5, 3.6, 3.8]))
    count = int(np.clip(rng.integers(140, 190) // thick, 24, 40))
    centre = rng.uniform((-8.0, -4.0, 4.0), (8.0, 14.0, 20.0))
    return Stack.around(centre, (count, 96, 96), (thick, pixel, pixel), TURN if index % 8 == OBLIQUE else (0.0, 0.0))


def _localiser(stack: Stack, image: Array) -> tuple[Array, Stack]:
    """The view from the front that a scan is planned on: one picture (1, rows, columns) and its grid."""
    down = np.stack([stack.axes[1], -stack.axes[0], stack.axes[2]])  # slices to the back, rows to the feet
    first = stack.position(stack.shape[0] - 1) + stack.axes[1] * stack.spacing[1] * (stack.shape[1] - 1) / 2
    picture = np.maximum(image, -1000.0).mean(axis=1)[None, ::-1]
    return picture, Stack((1, stack.shape[0], stack.shape[2]), (stack.spacing[1], stack.spacing[0], stack.spacing[2]),
                          np.round(first, 4), down)
