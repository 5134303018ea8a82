"""Test-time augmentation: every view is inverted, and no view occurs twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from competition.errors import MaskfoldError
from competition.inference.sliding_window import predict_image
from competition.inference.tta import TTAView, tta_views
from tests.inference.networks import Local, Pointwise, experiment


@pytest.mark.parametrize(
    "view", [TTAView(), TTAView((0,)), TTAView((0, 1)), TTAView((), 1), TTAView((1,), 3), TTAView((0, 1), 3)]
)
def test_undo_is_the_inverse(view: TTAView) -> None:
    batch = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(view.undo(view.apply(batch)), batch)
    if view != TTAView():
        assert not torch.equal(view.apply(batch), batch)


@pytest.mark.parametrize(
    ("tta", "flip", "count"),
    [
        (["flip"], True, 4),
        (["flip"], [1], 2),
        (["rotate90"], True, 4),
        (["flip", "rotate90"], True, 8),
        (["flip", "rotate90"], [1], 8),
        ([], True, 1),
    ],
)
def test_all_views_differ(tta: list[str], flip: object, count: int) -> None:
    all_views = tta_views(experiment(2, (8, 8), flip=flip, tta=tta))
    batch = torch.arange(25.0).reshape(1, 1, 5, 5)
    seen = {tuple(view.apply(batch).flatten().tolist()) for view in all_views}
    assert len(all_views) == len(seen) == count and all_views[0] == TTAView()


def test_flips_of_volumes_are_all_subsets_of_the_allowed_axes() -> None:
    assert {look.flips for look in tta_views(experiment(tta=["flip"]))} == {
        (),
        (0,),
        (1,),
        (2,),
        (0, 1),
        (0, 2),
        (1, 2),
        (0, 1, 2),
    }
    assert {look.flips for look in tta_views(experiment(tta=["flip"], flip=[0, 2]))} == {(), (0,), (2,), (0, 2)}
    assert {look.flips for look in tta_views(experiment(3, (8, 8), slices=3, tta=["flip"]))} == {(), (0,), (1,), (0, 1)}


def test_auto_takes_the_flips_of_training() -> None:
    assert tta_views(experiment(2, (8, 8), tta="auto", preset="none")) == [TTAView()]
    assert len(tta_views(experiment(2, (8, 8), tta="auto", preset="heavy", flip=[0]))) == 2
    assert tta_views(experiment(tta="auto", preset="heavy", flip=False)) == [TTAView()]


@pytest.mark.parametrize(
    "exp",
    [experiment(tta=["rotate90"]), experiment(2, (8, 16), tta=["rotate90"]), experiment(tta=["flip"], flip=False)],
)
def test_impossible_views_are_errors(exp: object) -> None:
    with pytest.raises(MaskfoldError, match=r"inference.tta") as caught:
        tta_views(exp)  # type: ignore[arg-type]
    assert caught.value.status == 2


@pytest.mark.parametrize("tta", [["flip"], ["rotate90"], ["flip", "rotate90"]])
def test_an_equivariant_network_changes_nothing(tta: list[str]) -> None:
    array = np.random.default_rng(0).normal(size=(1, 19, 23)).astype(np.float32)
    network = Pointwise(1, 3, 2)
    np.testing.assert_allclose(
        predict_image([network], array, experiment(2, (8, 8), tta=tta)),
        predict_image([network], array, experiment(2, (8, 8))),
        atol=1e-3,
    )


def test_another_network_becomes_equivariant() -> None:
    array = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
    network: nn.Module = Local(1, 3, 2)
    turned = np.rot90(array, axes=(1, 2)).copy()

    def gap(*tta: str) -> float:
        exp = experiment(2, (8, 8), tta=list(tta))
        there = predict_image([network], turned, exp).astype(np.float32)
        back = np.rot90(there, -1, axes=(1, 2))
        return float(np.abs(back - predict_image([network], array, exp)).max())

    assert gap() > 0.1 and gap("rotate90") < 2e-3 and gap("flip", "rotate90") < 2e-3
