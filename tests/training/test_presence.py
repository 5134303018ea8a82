"""A fold with a presence head: resumed bit for bit, its loss term, its values in the out-of-fold predictions."""

from __future__ import annotations

import json

import cv2
import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from competition.config.postprocess import StepConfig
from competition.errors import MaskfoldError
from competition.models.build import build_network
from competition.postprocessing.case import CaseProbabilities
from competition.postprocessing.pipeline import run_steps
from competition.runs.checkpoint import load_weights
from competition.runs.oof import OofPredictions, OofStore
from competition.training.fold import run_fold
from tests.training.test_fold import Killed, killed_after, one_thread, start

__all__ = ["one_thread"]

WHOLE = (
    "patch.size=[192,192]",
    "inference.tta=[]",
    "training.batch_size=1",
    "prepare.intensity=minmax",
)  # a picture is one window


def test_a_killed_fold_with_a_gate_ends_the_same_and_says_the_same(tiny, tmp_path, monkeypatch):
    exp = tiny(2, "training.checkpoint_minutes=0", "gate={weight: 0.5, dropout: 0.2}", "training.ema=0.9", *WHOLE)
    run, job = start(exp, tmp_path / "whole", tmp_path / "cache")
    run_fold(job, say=lambda line: None)
    run2, job2 = start(exp, tmp_path / "killed", tmp_path / "cache")
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        try:
            run_fold(job2, say=lambda line: None)
        except Killed:
            pass
        else:
            raise AssertionError("it was not killed")
    run_fold(job2, say=lambda line: None)
    one, two = load_file(job.folder / "weights.safetensors"), load_file(job2.folder / "weights.safetensors")
    assert "head.1.weight" in one and all(torch.equal(one[name], two[name]) for name in one)
    metrics = [json.loads(line)["metrics"] for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    gates = [line["train/gate"] for line in metrics if "train/loss" in line]
    assert len(gates) == 2 and all(0 < value < 5 for value in gates)
    first, second = OofStore(job.folder / "oof"), OofStore(job2.folder / "oof")
    assert first.ids() and all(np.array_equal(first.presence(case), second.presence(case)) for case in first.ids())

    network = build_network(exp, 1, pretrained=False)  # what was kept is what the network says of the padded picture
    load_weights(network, job.folder / "weights.safetensors")
    case = first.ids()[0]
    picture = cv2.imread(str(exp.competition.root / "images" / f"{case}.png"), cv2.IMREAD_GRAYSCALE).astype(np.float32)
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    gaps = [192 - side for side in picture.shape]
    padded = np.pad(picture, [(gap // 2, gap - gap // 2) for gap in gaps], mode="edge")
    with torch.no_grad():
        said = torch.sigmoid(network.eval()(torch.from_numpy(padded)[None, None])[1])[0]
    kept = OofPredictions(run).presence(case)
    assert kept.shape == (2, 1, 1) and np.allclose(kept.ravel(), said.numpy(), atol=1e-5)


def test_weights_without_a_gate_do_not_start_one_with_it(tiny, tmp_path):
    network = build_network(tiny(2), 1, pretrained=False)
    from competition.runs.checkpoint import save_weights

    save_weights(tmp_path / "weights.safetensors", network.state_dict())
    try:
        load_weights(build_network(tiny(2, "gate={}"), 1, pretrained=False), tmp_path / "weights.safetensors")
    except MaskfoldError as error:
        assert "conv.weight is missing" in error.message
    else:
        raise AssertionError("they were taken")
    load_weights(build_network(tiny(2), 1, pretrained=False), tmp_path / "weights.safetensors")


@pytest.mark.parametrize(("axes", "letters"), [([2], "SI"), ([0], "RL"), ([0, 1, 2], None)])
def test_slices_have_a_gate_each(tiny, tmp_path, axes, letters):
    exp = tiny(
        3,
        "gate={}",
        f"patch={{size: [32, 32], slices: 3, axes: {axes}}}",
        "folds.k=3",
        "training.epochs=1",
        "training.steps_per_epoch=1",
        "prepare.orientation=RAS",
    )
    run, job = start(exp, tmp_path / "runs", tmp_path / "cache")
    run_fold(job, say=lambda line: None)
    store = OofStore(job.folder / "oof")
    for case in store.ids():
        gate, probabilities = store.presence(case), store.read(case)
        assert gate.ndim == 4
        certain = np.zeros_like(probabilities)
        certain[1] = 1
        value = float(np.median(gate[0]))
        mask = run_steps(CaseProbabilities(certain, exp.competition, gate), 0, (StepConfig(gate=value),)).mask
        np.testing.assert_array_equal(mask, np.broadcast_to(gate[0] >= value, mask.shape))
        if letters is None:  # a voxel is in a slice along each axis, so that the case has one value
            assert gate.shape[1:] == (1, 1, 1)
            continue
        assert sum(n > 1 for n in gate.shape[1:]) == 1
        axis = int(np.argmax(gate.shape[1:])) + 1
        assert gate.shape[axis] == probabilities.shape[axis] and np.unique(gate[0]).size > 1
        image = nibabel.load(exp.competition.root / "imagesTr" / f"{case}.nii.gz")
        assert nibabel.aff2axcodes(image.affine)[axis - 1] in letters
