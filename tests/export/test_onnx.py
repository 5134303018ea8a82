"""Networks as ONNX."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from competition.errors import MaskfoldError
from competition.export import onnx as writer
from competition.export.bundle import ExportOptions
from competition.export.onnx import OnnxNetwork
from competition.models.build import build_network
from tests.export.bundles import run_bundle

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)

pytestmark = pytest.mark.slow  # torch's exporter takes seconds for the smallest network


@pytest.mark.parametrize("dimensions", [2, 3])
def test_logits_are_torchs_for_any_number_of_patches(tiny, tmp_path, dimensions):
    exp = tiny(dimensions)
    torch.manual_seed(0)
    network = build_network(exp, 1, pretrained=False).eval()
    assert writer.write_onnx(network, 1, exp, tmp_path / "x.onnx") < 1e-4
    other = OnnxNetwork(tmp_path / "x.onnx", 1)
    for count in (1, 3):
        batch = torch.randn(count, 1, *exp.patch.size)
        with torch.no_grad():
            np.testing.assert_allclose(other(batch), network(batch), atol=1e-4)


def test_slices_along_all_axes_are_predicted_by_one_network(finished, tiny, bundled, tmp_path):
    run = finished(tiny(3, "folds.run=[0]", "patch={size: [32, 32], slices: 3, axes: [0, 1, 2]}"), "demo3d-tiny")
    folder, root = bundled([run], options=ExportOptions(onnx=True)), run.exp.competition.root
    assert (
        run_bundle(folder, root, tmp_path / "torch.csv")
        == run_bundle(folder, root, tmp_path / "onnx.csv", "--onnx")
        == 0
    )
    rows = [(tmp_path / name).read_text().splitlines() for name in ("torch.csv", "onnx.csv")]
    assert rows[0] == rows[1] and any(len(line.split(",")[-1]) > 1 for line in rows[0][1:])


def test_a_network_that_differs_is_refused_with_the_figure(tiny, tmp_path, monkeypatch):
    exp = tiny(2)

    class Wrong(OnnxNetwork):
        def forward(self, batch):
            logits = super().forward(batch)
            logits[:, 0] += 0.5
            return logits

    monkeypatch.setattr(writer, "OnnxNetwork", Wrong)
    with pytest.raises(MaskfoldError, match=r"0\.\d+.*\b0\.001\b"):
        writer.write_onnx(build_network(exp, 1, pretrained=False), 1, exp, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_a_bundle_predicts_by_onnxruntime(finished, tiny, bundled, tmp_path):
    run = finished(tiny(2, "folds.run=[0]"))
    folder = bundled([run], options=ExportOptions(onnx=True))
    about = json.loads((folder / "bundle.json").read_text())
    assert about["onnx"] and "onnxruntime" in {one["name"] for one in about["requirements"]}
    root = run.exp.competition.root
    assert (
        run_bundle(folder, root, tmp_path / "torch.csv")
        == run_bundle(folder, root, tmp_path / "onnx.csv", "--onnx")
        == 0
    )
    from competition.config.profiles import profile_of
    from competition.submission.reader import read_submission

    comp = run.exp.competition
    shapes = dict.fromkeys([path.stem for path in (root / "test").glob("*.png")], None)
    from competition.data.readers import (
        load_image,  # noqa: F401
        read_header,
    )

    shapes = {name: read_header(root / "test" / f"{name}.png").shape for name in shapes}
    pair = [list(read_submission(tmp_path / name, profile_of(comp), shapes)) for name in ("torch.csv", "onnx.csv")]
    differing = sum(int((one.mask != other.mask).sum()) for one, other in zip(*pair, strict=True))
    assert any(one.mask.any() for one in pair[0]) and differing <= 1e-3 * sum(one.mask.size for one in pair[0])
