"""The pelvis: real file names, similar weeks of a patient, small organs, a coil's bias field."""

from __future__ import annotations

import re
from collections import defaultdict

import nibabel
import numpy as np

from competition.datasets.phantoms import hipmri

NAME = re.compile(r"(Case_\d{3})_Week(\d)_(LFOV|SEMANTIC)\.nii\.gz")


def arrays(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_names_are_those_of_the_real_data_and_pair(phantoms):
    root, weeks = phantoms["hipmri"], defaultdict(list)
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["semantic_MRs", "semantic_labels_only"]
    for path in (root / "semantic_MRs").iterdir():
        case, week, kind = NAME.fullmatch(path.name).groups()
        assert kind == "LFOV"
        weeks[case].append(week)
        image, labels = (
            nibabel.load(path),
            nibabel.load(root / "semantic_labels_only" / f"{case}_Week{week}_SEMANTIC.nii.gz"),
        )
        assert np.array_equal(image.affine, labels.affine) and image.shape == labels.shape
        assert (image.get_data_dtype(), labels.get_data_dtype()) == (np.int16, np.uint8)
        assert set(np.unique(np.asarray(labels.dataobj))) == {0, 1, 2, 3, 4, 5}
    assert len(list((root / "semantic_labels_only").iterdir())) == sum(map(len, weeks.values()))
    assert sorted(len(set(names)) for names in weeks.values()) == [1, 1, 2, 3]


def test_organs_are_small_and_in_anatomical_position(phantoms):
    for path in (phantoms["hipmri"] / "semantic_labels_only").iterdir():
        labels, affine = arrays(path), nibabel.load(path).affine
        body, bone, bladder, rectum, prostate = (
            nibabel.affines.apply_affine(affine, np.argwhere(labels == number)).mean(axis=0) for number in range(1, 6)
        )
        assert rectum[1] < prostate[1] - 8 and bladder[2] > prostate[2] + 8  # mm, behind and above it
        assert abs(prostate[0] - body[0]) < 15 and abs(bone[0] - body[0]) < 15
        sizes = np.bincount(labels.reshape(-1), minlength=6)
        assert 80 < sizes[5] < 800 and 150 < sizes[4] < 2500 and sizes[1] > 50 * sizes[5]


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_weeks_of_a_patient_resemble_each_other_more_than_patients_do():
    def draw(patient: int, week: int) -> np.ndarray:
        pelvis = hipmri.Pelvis(np.random.default_rng([9, 7, patient]))
        return hipmri.draw_volume(np.random.default_rng([9, 8, patient, week]), pelvis, hipmri.SHAPES[0])[1] == 2

    own = [dice(draw(patient, 0), draw(patient, 1)) for patient in range(8)]
    other = [dice(draw(patient, 0), draw((patient + 1) % 8, 1)) for patient in range(8)]
    assert np.mean(own) > np.mean(other) + 0.03


def test_no_window_of_brightness_finds_the_organs(phantoms):
    for number in (4, 5):
        best = []
        for path in (phantoms["hipmri"] / "semantic_labels_only").iterdir():
            truth = arrays(path) == number
            image = arrays(path.parents[1] / "semantic_MRs" / path.name.replace("SEMANTIC", "LFOV"))
            levels = np.percentile(image, np.arange(0, 101, 5))
            best.append(
                max(dice(truth, (image >= low) & (image < high)) for low in levels for high in levels if high > low)
            )
        assert max(best) < 0.4


def test_brightness_drifts_across_the_volume(phantoms):
    ratios = []
    for path in (phantoms["hipmri"] / "semantic_MRs").iterdir():
        image = arrays(path)
        labels = arrays(path.parents[1] / "semantic_labels_only" / path.name.replace("LFOV", "SEMANTIC"))
        places = np.argwhere(labels == 1)[:, 0]  # the body is the same on both sides, a coil is not
        left, right = (np.mean(image[labels == 1][side]) for side in (places < places.mean(), places > places.mean()))
        ratios.append(abs(np.log(left / right)))
    assert len(ratios) == 7 and np.mean(ratios) > 0.06
