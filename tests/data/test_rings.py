"""`prepare.rings`: the rings of objects as a target, and their conversion to interiors and a boundary."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from competition.data.cache import PreprocessedCase
from competition.data.cases import case_rows, case_table
from competition.data.objects import ring_mask
from competition.data.preprocessing import preprocess_case
from competition.errors import MaskfoldError
from competition.inference.sliding_window import merge_rings, predict_image
from competition.models.presence_head import presence_target
from competition.runs.identity.hashing import run_hash


def test_touching_objects_have_their_own_rings_and_the_edge_of_the_image_is_no_edge() -> None:
    objects = np.zeros((6, 10), np.int32)
    objects[:5, :5], objects[:5, 5:10] = 1, 7
    found = ring_mask(objects, 3)
    # The first object ends at the second object and at row 5; above and on the left the image ends.
    # Distances 5, 4, 3, 2, 1 to the nearest end, in thirds of 5, rounded up.
    expected = np.array([[3, 3, 2, 2, 1], [3, 3, 2, 2, 1], [2, 2, 2, 2, 1], [2, 2, 2, 2, 1], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(found[:5, :5], expected)
    np.testing.assert_array_equal(found[:5, 5:], expected[:, ::-1])
    assert not found[5].any() and found.dtype == np.uint8


def test_every_object_has_a_centre() -> None:
    objects = np.zeros((9, 9), np.int32)
    objects[0, 0], objects[8, 8], objects[2:4, 2:7], objects[6, 1:4] = 1, 2, 3, 4
    found = ring_mask(objects, 5)
    for number in (1, 2, 3, 4):
        assert found[objects == number].max() == 5
    np.testing.assert_array_equal(found != 0, objects != 0)


def test_an_object_without_outside_and_an_empty_image() -> None:
    assert (ring_mask(np.ones((4, 5), np.int32), 4) == 4).all()
    assert not ring_mask(np.zeros((4, 5), np.int32), 4).any()


def test_rings_of_volumes() -> None:
    objects = np.zeros((9, 9, 9), np.int32)
    objects[1:8, 1:8, 1:8] = 1
    found = ring_mask(objects, 4)
    assert [int(found[x, 4, 4]) for x in range(9)] == [0, 1, 2, 3, 4, 3, 2, 1, 0]


def test_rings_become_interiors_and_a_boundary() -> None:
    probabilities = torch.rand(2, 1 + 2 * 4, 3, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    found = merge_rings(probabilities, 4)
    assert found.shape == (2, 4, 3, 5)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 3, 5))
    torch.testing.assert_close(found[:, 0], probabilities[:, 0])
    depths = torch.tensor([0.25, 0.5, 0.75, 1.0])
    for index in range(2):
        rings = probabilities[:, 1 + 4 * index : 5 + 4 * index]
        torch.testing.assert_close(found[:, 1 + index], torch.einsum("brxy,r->bxy", rings, depths))
    sure = torch.zeros(1, 5, 1, 2)
    sure[0, 4, 0, 0], sure[0, 1, 0, 1] = 1, 1
    torch.testing.assert_close(merge_rings(sure, 4)[0, :, 0].T, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.25, 0.75]]))


def test_masks_of_preprocessed_cases(nuclei, tmp_path) -> None:
    exp = nuclei("prepare={rings: 4}")
    assert (exp.network_channels, exp.output_channels) == (5, 3)
    row = case_rows(case_table(exp.competition, "train"))[0]
    case = PreprocessedCase.open(preprocess_case(row, exp, tmp_path / "cache"))
    plain = PreprocessedCase.open(preprocess_case(row, nuclei("prepare={}"), tmp_path / "cache"))
    assert set(np.unique(case.mask)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(case.mask != 0, plain.mask != 0)
    np.testing.assert_array_equal(case.foreground, plain.foreground)  # patches are drawn by class, not by ring


@pytest.mark.parametrize("key", ["rings: 4", "boundary: 1"])
def test_objects_are_resampled_with_their_mask(nuclei, key: str, tmp_path) -> None:
    plain, exp = (nuclei(f"prepare={{long_side: 40{keys}}}") for keys in ("", f", {key}"))
    row = case_rows(case_table(exp.competition, "train"))[0]
    before, after = (PreprocessedCase.open(preprocess_case(row, each, tmp_path / "cache")) for each in (plain, exp))
    assert max(after.mask.shape) == 40 and len(np.unique(after.mask)) > 2
    assert after.mask[before.mask != 0].all()


def test_a_network_of_rings_predicts_interiors(nuclei) -> None:
    exp = nuclei("prepare={rings: 4}")
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).view(1, 5, 1, 1)

    class Constant(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return logits.expand(len(batch), -1, *batch.shape[2:])

    network = Constant()
    found = predict_image([network], np.zeros((1, 40, 48), np.float32), exp)
    expected = merge_rings(logits.softmax(1), 4)[0, :, 0, 0].numpy()
    assert found.shape == (3, 40, 48)
    np.testing.assert_allclose(found[:, 20, 20], expected, atol=1e-3)


def test_the_presence_of_an_object_is_known_from_any_ring(nuclei) -> None:
    mask = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    mask[0, 0, 1, 1], mask[1, 0, 2, 2] = 4, 255
    target, known = presence_target(mask, nuclei("prepare={rings: 4}").competition)
    assert target.tolist() == [[1.0], [0.0], [0.0]] and known.all()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("prepare={rings: 4, boundary: 1}", "`boundary` and `rings` both"),
        ("prepare={rings: 2}", "prepare.rings: expected at least 3, found 2"),
        ("competition.instances=false", "prepare.rings"),
    ],
)
def test_settings_that_contradict_rings(nuclei, override: str, words: str) -> None:
    with pytest.raises(MaskfoldError, match=words):
        nuclei("prepare={rings: 4}", override)


def test_too_many_outputs(nuclei) -> None:
    names = json.dumps([f"class{number}" for number in range(20)])
    with pytest.raises(MaskfoldError, match="needs 321 outputs of the network, expected at most 254"):
        nuclei("prepare={rings: 16}", f"competition.classes={names}", "competition.train.columns.class=Class")


def test_rings_are_part_of_the_hash_only_if_set(nuclei) -> None:
    assert len({run_hash(nuclei(f"prepare={{{keys}}}"), "data") for keys in ("", "rings: 4", "rings: 5")}) == 3
    assert run_hash(nuclei("prepare={rings: null}"), "data") == run_hash(nuclei("prepare={}"), "data")
