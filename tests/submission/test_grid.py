"""Label files have the grid of their images, whatever the preprocessing."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from competition.submission.label_files import predict_images


@pytest.mark.parametrize(
    "prepare",
    [
        "{orientation: PIR, spacing: [1.3, 0.9, 1.1], crop: foreground, intensity: zscore}",
        "{orientation: LPS, resize: [20, 24, 16], stretch: true, crop: nonzero, intensity: zscore}",
    ],
)
def test_a_predictions_affine_is_its_images(finished, tiny, tmp_path, prepare):
    run = finished(tiny(3, f"prepare={prepare}"), "demo3d-tiny")
    (tmp_path / "scans").mkdir()
    random = np.random.default_rng(0)
    sources = {}
    for name, codes in (("oblique", "LSA"), ("flipped", "RPI")):
        tilt, _ = np.linalg.qr(np.eye(3) + 0.1 * random.normal(size=(3, 3)))
        matrix = np.eye(4)
        signs = [1 if code in "RAS" else -1 for code in codes]
        worlds = ["RL", "AP", "SI"]
        turned = np.zeros((3, 3))
        for axis, (code, sign) in enumerate(zip(codes, signs, strict=True)):
            turned[next(place for place, pair in enumerate(worlds) if code in pair), axis] = sign
        matrix[:3, :3] = tilt * np.sign(np.diag(tilt)) @ turned @ np.diag([0.8, 1.7, 1.2])
        matrix[:3, 3] = (-12.5, 40.25, 7.125)
        image = nibabel.Nifti1Image(random.integers(0, 300, (21, 17, 26)).astype(np.int16), matrix)
        image.set_qform(matrix, 1)
        image.set_sform(matrix, 2)
        nibabel.save(image, tmp_path / "scans" / f"{name}.nii.gz")
        sources[name] = matrix
    for one in predict_images([run], tmp_path / "scans", tmp_path / "out"):
        found = nibabel.load(one.files[0])
        np.testing.assert_allclose(found.affine, sources[one.case_id], atol=1e-5)
        np.testing.assert_allclose(found.get_qform(), sources[one.case_id], atol=1e-5)
        assert found.shape == (21, 17, 26) and found.header.get_zooms() == pytest.approx((0.8, 1.7, 1.2))
