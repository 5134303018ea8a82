"""Labels of another competition in this one's classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from competition.data import masks
from competition.errors import MaskfoldError


def comp(classes, labels="exclusive", name="theirs"):
    return SimpleNamespace(classes=classes, labels=labels, name=name)


@pytest.fixture
def truth(monkeypatch):
    def give(mask):
        monkeypatch.setattr(masks, "load_mask", lambda *_: np.array(mask, np.uint8))

    return give


ROW = SimpleNamespace(id="x")


def test_classes_change_places_and_several_become_one(truth):
    truth([[[0, 1, 2, 3, 255]]])
    theirs = comp(["liver", "tumour", "cyst"])
    found = masks.load_relabelled_mask(
        theirs, ROW, comp(["lesion", "organ"]), {"liver": "organ", "tumour": "lesion", "cyst": "lesion"}
    )
    assert found.tolist() == [[[0, 2, 1, 1, 255]]]
    found = masks.load_relabelled_mask(theirs, ROW, comp(["organ"]), {"liver": "organ"})  # the others are background
    assert found.tolist() == [[[0, 1, 0, 0, 255]]]


def test_where_one_of_our_classes_may_hide_the_background_is_ignored(truth):
    truth([[[0, 1, 2]]])
    found = masks.load_relabelled_mask(comp(["a", "b"]), ROW, comp(["a", "unseen"]), {"a": "a"})
    assert found.tolist() == [[[255, 1, 255]]]
    found = masks.load_relabelled_mask(comp(["a", "b"]), ROW, comp(["b", "unseen"], "overlapping"), {"b": "b"})
    assert found.tolist() == [[[0, 0, 1]], [[255, 255, 255]]]


def test_overlapping_labels_of_theirs(truth):
    truth([[[0, 1, 1, 255]], [[0, 0, 1, 255]]])
    theirs = comp(["whole", "core"], "overlapping")
    assert masks.load_relabelled_mask(theirs, ROW, comp(["tumour"]), {"whole": "tumour"}).tolist() == [[[0, 1, 1, 255]]]
    with pytest.raises(MaskfoldError, match="1 voxel "):
        masks.load_relabelled_mask(theirs, ROW, comp(["x", "y"]), {"whole": "x", "core": "y"})
