"""Each loss receives the target it expects, and equals the value of its library."""

from __future__ import annotations

from typing import Any

import monai.losses
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from competition.context import Context
from competition.errors import MaskfoldError
from competition.models.losses import SegmentationLoss, resize_mask, validate_loss
from tests.models import experiment

MONAI = "monai.losses."
SMP = "segmentation_models_pytorch.losses."
SIZE = (8, 6, 4)


def batch(dims: int = 2, exclusive: bool = True, classes: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, C, *s) with a gradient and a mask (2, M, *s) in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    channels = classes + exclusive
    logits = torch.randn(2, channels, *SIZE[:dims], generator=generator).requires_grad_()
    shape = (2, 1 if exclusive else classes, *SIZE[:dims])
    mask = torch.randint(0, classes + 1 if exclusive else 2, shape, generator=generator)
    return logits, mask.to(torch.uint8)


def value(spec: Any, logits: Any, mask: Tensor, **options: Any) -> Tensor:
    exp = experiment(loss=spec, dims=mask.ndim - 2, **options)
    return SegmentationLoss(exp)(logits, mask)[0]


EXCLUSIVE = {
    MONAI + "DiceLoss": lambda x, y: monai.losses.DiceLoss(softmax=True, to_onehot_y=True)(x, y),
    MONAI + "DiceCELoss": lambda x, y: monai.losses.DiceCELoss(softmax=True, to_onehot_y=True)(x, y),
    MONAI + "DiceFocalLoss": lambda x, y: monai.losses.DiceFocalLoss(softmax=True, to_onehot_y=True)(x, y),
    MONAI + "GeneralizedDiceLoss": lambda x, y: monai.losses.GeneralizedDiceLoss(softmax=True, to_onehot_y=True)(x, y),
    MONAI + "GeneralizedDiceFocalLoss": lambda x, y: monai.losses.GeneralizedDiceFocalLoss(
        softmax=True, to_onehot_y=True
    )(x, y),
    MONAI + "TverskyLoss": lambda x, y: monai.losses.TverskyLoss(softmax=True, to_onehot_y=True)(x, y),
    MONAI + "FocalLoss": lambda x, y: monai.losses.FocalLoss(use_softmax=True, to_onehot_y=True)(x, y),
    MONAI + "HausdorffDTLoss": lambda x, y: monai.losses.HausdorffDTLoss(softmax=True, to_onehot_y=True)(x, y),
    MONAI + "SoftDiceclDiceLoss": lambda x, y: monai.losses.SoftDiceclDiceLoss(softmax=True, to_onehot_y=True)(x, y),
    MONAI + "MCCLoss": lambda x, y: monai.losses.MCCLoss(softmax=True, to_onehot_y=True)(x, y),
    SMP + "DiceLoss": lambda x, y: smp.losses.DiceLoss("multiclass")(x, y[:, 0].long()),
    SMP + "JaccardLoss": lambda x, y: smp.losses.JaccardLoss("multiclass")(x, y[:, 0].long()),
    SMP + "LovaszLoss": lambda x, y: smp.losses.LovaszLoss("multiclass")(x, y[:, 0].long()),
    SMP + "FocalLoss": lambda x, y: smp.losses.FocalLoss("multiclass")(x, y[:, 0].long()),
    SMP + "TverskyLoss": lambda x, y: smp.losses.TverskyLoss("multiclass")(x, y[:, 0].long()),
    SMP + "SoftCrossEntropyLoss": lambda x, y: smp.losses.SoftCrossEntropyLoss(smooth_factor=0.0)(x, y[:, 0].long()),
    "torch.nn.CrossEntropyLoss": lambda x, y: nn.CrossEntropyLoss()(x, y[:, 0].long()),
    "torch.nn.BCEWithLogitsLoss": lambda x, y: nn.BCEWithLogitsLoss()(
        x, nn.functional.one_hot(y[:, 0].long(), 3).movedim(-1, 1).float()
    ),
}
OVERLAPPING = {
    MONAI + "DiceLoss": lambda x, y: monai.losses.DiceLoss(sigmoid=True)(x, y),
    MONAI + "DiceFocalLoss": lambda x, y: monai.losses.DiceFocalLoss(sigmoid=True)(x, y),
    MONAI + "GeneralizedDiceLoss": lambda x, y: monai.losses.GeneralizedDiceLoss(sigmoid=True)(x, y),
    MONAI + "TverskyLoss": lambda x, y: monai.losses.TverskyLoss(sigmoid=True)(x, y),
    MONAI + "FocalLoss": lambda x, y: monai.losses.FocalLoss()(x, y),
    MONAI + "HausdorffDTLoss": lambda x, y: monai.losses.HausdorffDTLoss(sigmoid=True, include_background=True)(x, y),
    SMP + "DiceLoss": lambda x, y: smp.losses.DiceLoss("multilabel")(x, y),
    SMP + "JaccardLoss": lambda x, y: smp.losses.JaccardLoss("multilabel")(x, y),
    SMP + "LovaszLoss": lambda x, y: smp.losses.LovaszLoss("multilabel")(x, y),
    SMP + "SoftBCEWithLogitsLoss": lambda x, y: smp.losses.SoftBCEWithLogitsLoss()(x, y),
    SMP + "FocalLoss": lambda x, y: smp.losses.FocalLoss("multilabel")(x, y),
    "torch.nn.BCEWithLogitsLoss": lambda x, y: nn.BCEWithLogitsLoss()(x, y),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("target", EXCLUSIVE)
def test_exclusive(target: str, dims: int) -> None:
    logits, mask = batch(dims)
    ours = value({"target": target}, logits, mask)
    assert ours.item() == pytest.approx(EXCLUSIVE[target](logits, mask).item(), rel=1e-6)
    ours.backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("target", OVERLAPPING)
def test_overlapping(target: str, dims: int) -> None:
    logits, mask = batch(dims, exclusive=False)
    ours = value({"target": target}, logits, mask, labels="overlapping")
    assert ours.item() == pytest.approx(OVERLAPPING[target](logits, mask.float()).item(), rel=1e-6)


def test_one_overlapping_class_takes_binary_cross_entropy() -> None:
    logits, mask = batch(exclusive=False, classes=1)
    ours = value({"target": MONAI + "DiceCELoss"}, logits, mask, labels="overlapping", classes=1)
    theirs = monai.losses.DiceLoss(sigmoid=True)(logits, mask.float()) + nn.BCEWithLogitsLoss()(logits, mask.float())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("DiceCELoss", ["dice", "ce"]),
        ("DiceFocalLoss", ["dice", "focal"]),
        ("GeneralizedDiceFocalLoss", ["generalized_dice", "focal"]),
    ],
)
def test_parts_add_up_with_their_factors(target: str, names: list[str]) -> None:
    logits, mask = batch()
    first, second = (f"lambda_{'gdl' if name == 'generalized_dice' else name}" for name in names)
    args = {first: 0.5, second: 2.0, "include_background": False}
    total, parts = SegmentationLoss(experiment(loss={"target": MONAI + target, "args": args}))(logits, mask)
    library = getattr(monai.losses, target)(softmax=True, to_onehot_y=True, **args)(logits, mask)
    assert list(parts) == names and not any(part.requires_grad for part in parts.values())
    assert total.item() == pytest.approx(library.item(), rel=1e-6)
    assert total.item() == pytest.approx(0.5 * parts[names[0]].item() + 2.0 * parts[names[1]].item(), rel=1e-6)


def test_terms_are_weighted_and_named() -> None:
    logits, mask = batch()
    loss = SegmentationLoss(
        experiment(
            loss=[
                {"target": "torch.nn.CrossEntropyLoss", "weight": 0.25},
                {"target": MONAI + "DiceCELoss"},
                {"target": SMP + "DiceLoss", "name": "overlap", "weight": 3.0},
                {"target": "torch.nn.CrossEntropyLoss"},
            ]
        )
    )
    total, parts = loss(logits, mask)
    assert list(parts) == ["CrossEntropyLoss", "DiceCELoss/dice", "DiceCELoss/ce", "overlap", "CrossEntropyLoss_2"]
    dice_ce = parts["DiceCELoss/dice"] + parts["DiceCELoss/ce"]
    expected = 1.25 * parts["CrossEntropyLoss"] + dice_ce + 3 * parts["overlap"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_deep_supervision_is_the_weighted_mean_over_levels() -> None:
    logits, mask = batch()
    small = torch.randn(2, 3, 4, 3, requires_grad=True)
    spec = {"target": "torch.nn.CrossEntropyLoss"}
    ours = value(spec, [logits, small], mask)
    theirs = 2 / 3 * value(spec, logits, mask) + 1 / 3 * value(spec, small, resize_mask(mask, (4, 3)))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    assert small.grad is not None and small.grad.abs().sum() > 0
    stack = torch.stack([logits, logits, logits], dim=1)
    assert value(spec, stack, mask).item() == pytest.approx(value(spec, logits, mask).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("size", "wanted"), [((8, 6), (4, 3)), ((7, 5), (3, 2)), ((8, 6, 5), (4, 6, 2)), ((4, 4), (8, 9))]
)
def test_masks_are_resized_as_torch_does(size: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    mask = torch.randint(0, 250, (2, 1, *size), dtype=torch.uint8)
    theirs = nn.functional.interpolate(mask.float(), wanted, mode="nearest-exact").to(torch.uint8)
    assert torch.equal(resize_mask(mask, wanted), theirs)
    assert resize_mask(mask, size) is mask


@pytest.mark.parametrize(
    ("labels", "target"),
    [*(("exclusive", target) for target in EXCLUSIVE), *(("overlapping", target) for target in OVERLAPPING)],
)
def test_ignored_pixels_have_no_gradient_and_no_influence(labels: str, target: str) -> None:
    logits, mask = batch(exclusive=labels == "exclusive", seed=1)
    ignored = torch.zeros_like(mask, dtype=torch.bool)
    ignored[0, :, :4] = True
    if labels == "overlapping":
        ignored[0, 1] = False  # one class unknown, the other known
    holed = mask.masked_fill(ignored, 255)
    loss = SegmentationLoss(experiment(loss={"target": target}, labels=labels, ignore=200))
    total, _ = loss(logits, holed)
    total.backward()
    assert logits.grad is not None and torch.isfinite(total)
    hidden = ignored.expand_as(logits)
    assert (logits.grad[hidden] == 0).all() and (logits.grad[~hidden] != 0).any()
    changed = torch.where(hidden, torch.randn_like(logits) * 9, logits.detach())
    assert loss(changed, holed)[0].item() == total.item()
    assert loss(logits, mask)[0].item() != total.item()


def test_a_wholly_ignored_patch_is_finite() -> None:
    logits, mask = batch()
    total, _ = SegmentationLoss(experiment(ignore=200))(logits, torch.full_like(mask, 255))
    total.backward()
    assert torch.isfinite(total) and logits.grad is not None and (logits.grad == 0).all()


def test_ignored_pixels_cost_nothing() -> None:
    logits, mask = batch()
    ignored = mask.clone()
    ignored[:, :, :4] = 255
    loss = SegmentationLoss(experiment(loss={"target": "torch.nn.CrossEntropyLoss"}, ignore=200))
    half = nn.CrossEntropyLoss()(logits[:, :, 4:], mask[:, 0, 4:].long()) / 2
    assert loss(logits, ignored)[0].item() == pytest.approx(half.item(), rel=1e-6)


def test_class_weights_may_be_lists() -> None:
    logits, mask = batch()
    weights = [0.2, 1.0, 3.0]
    ours = value({"target": "torch.nn.CrossEntropyLoss", "args": {"weight": weights}}, logits, mask)
    assert ours.item() == pytest.approx(nn.CrossEntropyLoss(torch.tensor(weights))(logits, mask[:, 0].long()).item())
    ours = value({"target": MONAI + "DiceCELoss", "args": {"weight": weights}}, logits, mask)
    theirs = monai.losses.DiceCELoss(softmax=True, to_onehot_y=True, weight=torch.tensor(weights))(logits, mask)
    assert ours.item() == pytest.approx(theirs.item())
    logits, mask = batch(exclusive=False)
    spec = {"target": "torch.nn.BCEWithLogitsLoss", "args": {"pos_weight": [2.0, 5.0]}}
    ours = value(spec, logits, mask, labels="overlapping")
    theirs = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 5.0]).reshape(2, 1, 1))(logits, mask.float())
    assert ours.item() == pytest.approx(theirs.item())


def test_float32_inside_autocast() -> None:
    logits, mask = batch()
    loss = SegmentationLoss(experiment())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = loss(logits.to(torch.bfloat16), mask)
    assert total.dtype == torch.float32
    assert total.item() == loss(logits.to(torch.bfloat16).float(), mask)[0].item()


class OwnDice(monai.losses.DiceLoss):
    """A loss derived from MONAI's keeps MONAI's conventions."""


class OwnLoss(nn.Module):
    """A user's own loss receives class indices, (B, 1, *s) int64."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        assert target.dtype == torch.int64 and target.shape == (2, 1, *logits.shape[2:])
        return logits.mean()


def test_own_losses() -> None:
    logits, mask = batch()
    for name in ("OwnDice", "OwnLoss"):
        exp = experiment(loss={"target": f"{__name__}.{name}"})
        total, _ = SegmentationLoss(exp, Context((__name__.split(".")[0],)))(logits, mask)
        expected = EXCLUSIVE[MONAI + "DiceLoss"](logits, mask) if name == "OwnDice" else logits.mean()
        assert total.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("labels", "target", "args", "words"),
    [
        ("overlapping", "torch.nn.CrossEntropyLoss", {}, "BCEWithLogitsLoss"),
        ("overlapping", MONAI + "DiceCELoss", {}, "two losses"),
        (
            "overlapping",
            MONAI + "DiceLoss",
            {"softmax": True},
            "loss.args.softmax: found true, expected false.*overlapping",
        ),
        ("overlapping", MONAI + "DiceLoss", {"to_onehot_y": True}, "loss.args.to_onehot_y"),
        ("overlapping", MONAI + "DiceLoss", {"include_background": False}, "loss.args.include_background"),
        ("overlapping", SMP + "DiceLoss", {"mode": "multiclass"}, "loss.args.mode: found multiclass"),
        ("exclusive", MONAI + "DiceLoss", {"to_onehot_y": False}, "loss.args.to_onehot_y: found false"),
        ("exclusive", MONAI + "DiceLoss", {"softmax": False}, "loss.args: .*softmax"),
        ("exclusive", MONAI + "DiceLoss", {"softmax": True, "sigmoid": True}, "Incompatible values"),
        ("exclusive", SMP + "DiceLoss", {"mode": "binary"}, "loss.args.mode: found binary"),
        ("exclusive", SMP + "DiceLoss", {"from_logits": False}, "loss.args.from_logits"),
        ("exclusive", "torch.nn.BCELoss", {}, "BCEWithLogitsLoss"),
        ("exclusive", "torch.nn.NLLLoss", {}, "CrossEntropyLoss"),
        ("exclusive", "torch.nn.CrossEntropyLoss", {"reduction": "none"}, "loss.args.reduction"),
        (
            "exclusive",
            "torch.nn.CrossEntropyLoss",
            {"weight": [1.0, 2.0]},
            "loss.args.weight: found 2 values, expected 3",
        ),
        ("exclusive", MONAI + "DiceLoss", {"sofmax": True}, "sofmax"),
    ],
)
def test_arguments_that_contradict_the_labels_are_errors(
    labels: str, target: str, args: dict[str, Any], words: str
) -> None:
    with pytest.raises(MaskfoldError, match=words) as caught:
        SegmentationLoss(experiment(loss={"target": target, "args": args}, labels=labels))
    assert caught.value.status == 2 and "loss" in str(caught.value)


class NeedsMore(nn.Module):
    def forward(self, logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        return (logits * weights).mean()


def test_a_loss_that_fails_on_a_batch_is_found_before_training() -> None:
    validate_loss(experiment(dims=3))
    validate_loss(experiment(labels="overlapping", loss={"target": "torch.nn.BCEWithLogitsLoss"}))
    with pytest.raises(MaskfoldError, match="weights"):
        validate_loss(experiment(loss={"target": f"{__name__}.NeedsMore"}), Context((__name__.split(".")[0],)))


def test_the_key_of_a_term_in_a_list() -> None:
    terms = [{"target": MONAI + "DiceLoss"}, {"target": "torch.nn.BCELoss"}]
    with pytest.raises(MaskfoldError, match=r"loss\.1\.target"):
        SegmentationLoss(experiment(loss=terms))
