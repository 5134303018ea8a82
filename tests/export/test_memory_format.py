"""A run's memory format goes with it: submit, a bundle and a registered model predict the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from competition.ensembling.ensemble import EnsemblePredictor, InMemoryCase
from competition.export.mlflow_model import write_predictor_folder
from competition.export.predictor import Predictor
from competition.export.runtime_cases import Bundle
from competition.runs.blend import Ensemble
from competition.runs.run import load_run
from tests.export.bundles import run_bundle


@pytest.mark.parametrize("layout", ["channels_last", "channels_first", "auto"])
def test_export_gives_the_probabilities_of_submit(finished, tiny, bundled, tmp_path, monkeypatch, layout):
    made = finished(tiny(2, f"training.memory_format={layout}", "inference.tta=[flip, rotate90]"))
    bundle = Bundle.read(bundled([made]), made.exp.competition.root, "cpu")
    write_predictor_folder(made, tmp_path / "packed")
    ensembles = {
        "submit": Ensemble((load_run(made.folder),), (1.0,)),
        "bundle": bundle.ensemble,
        "model": Predictor(tmp_path / "packed").ensemble,
    }
    layouts: set[bool] = set()
    real = nn.Conv2d.forward

    def spy(self, image):
        if min(image.shape[2:]) > 1:
            layouts.add(image.stride(1) == 1)
        return real(self, image)

    monkeypatch.setattr(nn.Conv2d, "forward", spy)
    from competition.data.image_types import Image

    image = np.random.default_rng(0).integers(0, 255, (1, 70, 45), np.uint8)
    case = InMemoryCase("noise", Image(image, (1.0, 1.0)))
    found = {}
    for name, ensemble in ensembles.items():
        layouts.clear()
        found[name] = EnsemblePredictor(ensemble, case, scratch=tmp_path / name).probabilities(case)
        if layout == "channels_last":
            assert layouts == {True}, name
        else:
            assert False in layouts, name
    np.testing.assert_array_equal(found["bundle"], found["submit"])
    np.testing.assert_array_equal(found["model"], found["submit"])
    assert found["submit"].std() > 0


def test_a_bundle_in_channels_last_writes_what_submit_writes(finished, tiny, bundled, tmp_path):
    from competition.submission.submit import submit

    run = finished(tiny(2, "training.memory_format=channels_last"))
    done = submit([run], output=tmp_path / "submit.csv")
    folder = bundled([run])
    assert run_bundle(folder, run.exp.competition.root, tmp_path / "bundle.csv") == 0
    assert (tmp_path / "bundle.csv").read_bytes() == done.path.read_bytes()
    assert done.validation.empty < done.validation.rows
