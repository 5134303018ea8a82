"""The viewer's data hold slices, truth and prediction; the page stays small; the Methods cite what was used."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from competition.config.loading import load_experiment, resolve_config
from competition.config.metric import METRICS
from competition.data.geometry import find_axes, reorient
from competition.data.masks import load_mask
from competition.data.readers import load_image
from competition.inference.masks import to_masks
from competition.report import viewer
from competition.report.methods import _inference, _slices, find_reference, load_references
from competition.report.results import RunResults
from competition.report.viewer import LIMITS, MAX_CASES, TOTAL_BYTES, encode_runs, select_slices, viewer_cases
from tests.conftest import ROOT
from tests.report.conftest import report


def decode_runs(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """Decode run lengths as the script of the page does."""
    content, values, place = base64.b64decode(text), [], 0
    while place < len(content):
        value, length, shift = content[place], 0, 0
        while True:
            place += 1
            length |= (content[place] & 127) << shift
            shift += 7
            if content[place] < 128:
                break
        place += 1
        values.append(np.full(length, value, np.uint8))
    return np.concatenate(values).reshape(shape)


@pytest.mark.parametrize("size", [1, 127, 128, 129, 16383, 16384, 300_000])
def test_run_lengths(size: int) -> None:
    values = np.repeat(np.array([3, 0, 255], np.uint8), [size, 1, 5])
    assert (decode_runs(encode_runs(values), values.shape) == values).all()
    noise = np.random.default_rng(0).integers(0, 3, (4, 9, 7)).astype(np.uint8)
    assert (decode_runs(encode_runs(noise), noise.shape) == noise).all()


def test_the_data_of_a_volume(made: Callable[..., Any], tiny: Callable[..., Any]) -> None:
    run = made(tiny(3))
    page, oof, comp = report(run), run.oof(), run.exp.competition
    data = json.loads(page.scripts[0])
    results = RunResults.load(run)
    cases = viewer_cases(results, oof)
    assert len(data["cases"]) == len(cases) == len(run.cases) and data["classes"] == comp.classes
    links = [int(value) for tag, name, value in page.attributes if (tag, name) == ("a", "data-case")]
    assert links == list(range(len(cases))), "the table of the worst cases has the viewer's order"
    row, item = oof.rows()[cases[0]], data["cases"][0]
    order, flips = find_axes(load_image(comp, row).affine, 3, "LAS", "")
    truth, masks = (reorient(one, order, flips) for one in (load_mask(comp, row), to_masks(oof.read(row.id), comp)))
    shape = (len(item["slices"]), item["height"], item["width"])
    sets = [(), *map(tuple, item["sets"])]
    for name, layers in (("truth", [truth[0] == 1 + k for k in range(len(comp.classes))]), ("prediction", masks)):
        found = decode_runs(item[name], shape)
        for index, layer in enumerate(layers):
            member = np.array([index in one for one in sets])[found]
            for number, position in enumerate(item["slices"]):
                place = layer.shape[2] - 1 - position if flips[2] else position
                expected = np.flip(layer[:, :, place].T, 0)
                assert (member[number] == expected).all(), (name, index, position)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(item["image"].partition(",")[2]), np.uint8), 0)
    assert picture.shape == (shape[0] * shape[1], shape[2]) and picture.std() > 5


def test_slices_are_chosen_and_reduced(tiny: Callable[..., Any]) -> None:
    comp = tiny(3).competition
    truth = np.zeros((1, 90, 70, 60), np.uint8)
    truth[0, 20:50, 20:50, 20:41] = 1
    masks = np.stack([truth[0] == 1 + k for k in range(len(comp.classes))])
    masks[0, 20:50, 20:40, 27] = False  # the slice in which they differ most
    image = np.random.default_rng(0).normal(size=(1, 90, 70, 60)).astype(np.float32)
    slices = select_slices(image, truth, masks, comp, 40, 8, [1, 1, 1])
    assert len(slices.numbers) == 8 and 27 in slices.numbers and min(slices.numbers) == 18 and max(slices.numbers) == 42
    assert max(slices.image.shape[1:3]) <= 40 and slices.image.shape[:3] == (8, *slices.truth.shape[2:])
    (number,) = [place for place, one in enumerate(slices.numbers) if one == 27]
    assert slices.truth[number, 0].sum() > slices.masks[number, 0].sum() > 0


def test_ignored_pixels_do_not_choose_slices(tiny: Callable[..., Any]) -> None:
    comp = tiny(3).competition
    truth = np.zeros((1, 30, 30, 60), np.uint8)
    truth[0, 5:15, 5:15, 10:21], truth[0, 20:, 20:] = 1, 255
    masks = np.stack([truth[0] == 1 + k for k in range(len(comp.classes))])
    masks[0, 20:, 20:, 30:50] = True  # a prediction where nothing is labelled
    masks[0, 5:9, 5:9, 13] = False
    slices = select_slices(np.zeros(truth.shape, np.float32), truth, masks, comp, 40, 4, [1, 1, 1])
    assert 13 in slices.numbers and min(slices.numbers) == 8 and max(slices.numbers) == 22


def test_two_hundred_cases_of_any_size_stay_below_20_mb(tiny: Callable[..., Any]) -> None:
    """Noise is the image that JPEG packs worst."""
    comp = tiny(3).competition
    rng = np.random.default_rng(0)
    truth = np.zeros((1, 300, 280, 90), np.uint8)
    truth[0, 60:200, 60:200, 10:80] = 1 + (rng.random((140, 140, 70)) < 0.001)
    masks = np.stack([np.roll(truth[0] == 1 + k, 9, 0) for k in range(len(comp.classes))])
    image = rng.normal(size=truth.shape).astype(np.float32)
    sizes = [
        len(json.dumps(viewer._encode(select_slices(image, truth, masks, comp, side, count, [1, 1, 1]))))
        for side, count in LIMITS[-3:]
    ]
    assert min(sizes) <= TOTAL_BYTES // MAX_CASES, sizes


def test_the_worst_of_many_cases_are_shown(
    made: Callable[..., Any], tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tiny(2))
    results, oof = RunResults.load(run), run.oof()
    every = viewer_cases(results, oof)
    monkeypatch.setattr(viewer, "MAX_CASES", 8)  # the worst 6, and 2 of the other 4
    few = viewer_cases(results, oof)
    assert few == [*every[:7], every[9]]
    monkeypatch.setattr(viewer, "MAX_VOXELS", 1)
    monkeypatch.setattr(viewer, "MAX_CASES", 200)
    assert viewer_cases(results, oof) == every[:10]


def test_the_methods_name_settings_and_references(made: Callable[..., Any], tiny: Callable[..., Any]) -> None:
    run = made(tiny(2, "loss={target: monai.losses.DiceCELoss}", "training.ema=0.5", "augment.preset=light"))
    page = report(run)
    words = " ".join(page.text.split())
    assert "We segmented ring and grain in 10 2D images of demo2d; the classes exclude each other." in words
    assert "trained and validated by 2-fold cross-validation with folds stratified by the classes" in words
    assert "The network was BasicUNet of MONAI" in words and "the optimiser AdamW [" in words
    assert "decay of 0.5 [" in words and f"was {RunResults.load(run).score().value:.4f}" in words
    (table,) = [table for table in page.tables if table[0] == ["number", "used for", "reference"]]
    assert [row[0] for row in table[1:]] == [str(number) for number in range(1, len(table))]
    assert {"network", "loss", "optimiser", "metric"} <= {row[1] for row in table[1:]}
    assert any("arXiv:1711.05101" in row[2] for row in table)
    # ten cases: the interval of few cases, see docs/board.md
    assert "Bayesian bootstrap interval over cases and one imagined case [" in words
    assert any("arXiv:1905.06208" in row[2] for row in table)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["inference.tta=auto", "augment.flip=false"], ""),
        (["inference.tta=auto", "augment.flip=[1]"], "2 views of the image (test-time augmentation by flips)"),
        (["inference.tta=[rotate90]"], "4 views of the image (test-time augmentation by quarter turns)"),
        (
            ["inference.tta=[flip, rotate90]"],
            "8 views of the image (test-time augmentation by flips and quarter turns)",
        ),
    ],
)
def test_the_methods_name_the_views_that_were_averaged(
    tiny: Callable[..., Any], settings: list[str], said: str
) -> None:
    text = _inference(tiny(2, "augment.preset=light", *settings))
    assert said in text if said else "test-time" not in text


@pytest.mark.parametrize(
    ("axes", "orientation", "slices", "averaged"),
    [
        ([2], "null", "slices", ""),
        ([2], "LPS", "axial slices", ""),
        ([0], "null", "slices along axis 0 of the volume", ""),
        ([2, 0], "RAS", "sagittal or axial slices", "2 axes"),
        ([0, 1, 2], "ASR", "coronal, axial or sagittal slices", "3 axes"),
        ([0, 1, 2], "null", "slices along one of the axes 0, 1 and 2 of the volume", "3 axes"),
    ],
)
def test_the_methods_name_the_planes_of_slices(
    tiny: Callable[..., Any], axes: list[int], orientation: str, slices: str, averaged: str
) -> None:
    words = [f"patch={{size: [32, 32], slices: 3, axes: {axes}}}", f"prepare.orientation={orientation}"]
    assert _slices(tiny(3, *words)) == slices
    text = _inference(tiny(3, *words, "inference.tta=[flip]", "augment.flip=true"))
    assert averaged in text and f"{4 * len(axes)} views of the image (test-time augmentation by flips)" in text
    assert "test-time" not in _inference(tiny(3, *words))


def test_the_shipped_experiments_have_references() -> None:
    for path in sorted((ROOT / "experiments").glob("*/*.yaml")):
        if not {"model", "base"} & yaml.safe_load(path.read_text()).keys():
            continue
        plain = resolve_config(load_experiment(path, trust=None))
        losses = plain["loss"] if isinstance(plain["loss"], list) else [plain["loss"]]
        named = [loss["target"] for loss in losses if not loss["target"].startswith("torch.")]
        for target in [plain["model"]["target"], *named]:
            assert find_reference(target), f"{path}: {target}"
    for key, words in (
        ("competition.models.muon.Muon", "Jordan"),
        ("boundary", "Caicedo"),
        ("rings", "Bai and Urtasun"),
    ):
        assert words in (find_reference(key) or "")
    assert len(load_references()) == sum(len(entry["keys"]) for entry in _entries())
    assert find_reference("torch.optim.Unknown") is None


def _entries() -> list[dict[str, Any]]:
    from importlib import resources

    return list(yaml.safe_load((resources.files("competition.report") / "references.yaml").read_text(encoding="utf-8")))


def test_the_references_of_metrics_have_their_names() -> None:
    named = [key.removeprefix("metric ") for key in load_references() if key.startswith("metric ")]
    assert {"cl_dice", "voi", "betti_error"} <= set(named)
    assert sorted(set(named) - set(METRICS.names())) == []
