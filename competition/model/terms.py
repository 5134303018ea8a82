"""One term of the loss: a library's loss with the arguments and the form of truth that its kind expects.

| kind | exclusive classes | overlapping classes |
|---|---|---|
| monai.losses | (B, 1, *s) class numbers, `to_onehot_y`, `softmax` | (B, K, *s) of 0 and 1, `sigmoid` |
| segmentation_models_pytorch.losses | (B, *s) class numbers, `mode: multiclass` | (B, K, *s), `mode: multilabel` |
| torch.nn.CrossEntropyLoss | (B, *s) class numbers | refused |
| other torch.nn losses, such as BCEWithLogitsLoss | (B, C, *s) of 0 and 1 | (B, K, *s) of 0 and 1 |
| any other class | (B, 1, *s) class numbers, int64 | (B, K, *s) of 0 and 1, float32 |

Arguments in the second and third column are filled in where the YAML is silent, and refused where it contradicts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from competition.config import Experiment, MaskfoldError
from competition.config.experiment import Loss
from competition.config.target import check_args, resolve_target
from competition.model.arguments import constructor_parameters, one_line
from competition.model.truth import Truth

MONAI, SMP, TORCH, OTHER = "monai", "segmentation_models_pytorch", "torch", "other"

# Losses that want probabilities where we have logits, and what to take instead.
PROBABILITIES = {
    (TORCH, "BCELoss"): "torch.nn.BCEWithLogitsLoss",
    (TORCH, "NLLLoss"): "torch.nn.CrossEntropyLoss",
    (SMP, "MCCLoss"): "monai.losses.MCCLoss",
    (MONAI, "AsymmetricUnifiedFocalLoss"): "monai.losses.DiceFocalLoss",
}
NUMBERS = {(TORCH, "CrossEntropyLoss"), (SMP, "SoftCrossEntropyLoss"), (MONAI, "NACLLoss")}  # (B, *s), exclusive only
PARTS = {  # sums of two losses: their parts are computed here, so that they can be logged at no cost
    "DiceCELoss": ("dice", "ce"),
    "DiceFocalLoss": ("dice", "focal"),
    "GeneralizedDiceFocalLoss": ("generalized_dice", "focal"),
}


class Term(nn.Module):
    """One term.

    Args:
        spec: target, arguments and name; its weight is the caller's business.
        exp: the experiment, for the classes and whether they exclude each other.
        key: where the term stands in the YAML, `loss` or `loss.0`.
        trust: packages that a target may come from, besides the trusted ones.

    Raises:
        MaskfoldError: status 2; the target or its arguments are wrong, or contradict the labels.
    """

    def __init__(self, spec: Loss, exp: Experiment, key: str, trust: Sequence[str] = ()) -> None:
        super().__init__()
        cls = resolve_target(spec.target, nn.Module, f"{key}.target", trust)
        self.kind, self.key = kind_of(cls), key
        self.exclusive, self.channels = exp.competition.labels == "exclusive", exp.outputs
        self.name, self.prefix = spec.name or cls.__name__, ""
        args = dict(spec.args)
        self._refuse_hopeless(cls, args)
        if self.kind == MONAI:
            self._complete_monai(cls, args, exp.network_dimensions)
        elif self.kind == SMP:
            self._complete_smp(cls, args)
        check_args(cls, args, f"{key}.args")
        try:
            self.loss = cls(**self._tensors(cls, args, exp.network_dimensions))
        except Exception as error:
            raise MaskfoldError(
                f"{key}.args do not fit {spec.target}: {one_line(error)}.", f"Correct {key}.args.", status=2
            ) from error
        self.form = self._form(cls, args)
        self.parts = PARTS.get(cls.__name__, ()) if cls.__module__.split(".")[0] == MONAI else ()

    def forward(self, logits: Tensor, truth: Truth) -> tuple[Tensor, dict[str, Tensor]]:
        """The term's value, unweighted, and its parts.

        Args:
            logits: (B, C, *spatial) float32.
            truth: of the same spatial size.

        Returns:
            A scalar, and scalars by name: the term itself, or the two losses that it adds up, behind `prefix`.
        """
        target = self.form(truth)
        if not self.parts:
            value: Tensor = self.loss(logits, target)
            return value, {self.name: value}
        loss: Any = self.loss
        first, second = self.parts
        if first == "dice" and second == "focal" and loss.to_onehot_y:
            target = truth.planes  # as the library does it, once for both
        other = loss.bce if second == "ce" and logits.shape[1] == 1 else getattr(loss, second)
        values = getattr(loss, first)(logits, target), other(logits, target)
        share = loss.lambda_gdl if first == "generalized_dice" else loss.lambda_dice
        value = share * values[0] + getattr(loss, f"lambda_{second}") * values[1]
        return value, {f"{self.prefix}{part}": value for part, value in zip(self.parts, values, strict=True)}

    # ── arguments ────────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse(self, wrong: str, cure: str) -> MaskfoldError:
        return MaskfoldError(f"{self.key}{wrong}.", cure, status=2)

    def _refuse_hopeless(self, cls: type, args: dict[str, Any]) -> None:
        """What no argument can mend."""
        instead = PROBABILITIES.get((self.kind, cls.__name__))
        if instead is not None:
            raise self._refuse(
                f".target {cls.__name__} wants probabilities, but the network gives logits", f"Take {instead}."
            )
        if (self.kind, cls.__name__) in NUMBERS and not self.exclusive:
            raise self._refuse(
                f".target {cls.__name__} wants one class per pixel, but classes overlap",
                "Take torch.nn.BCEWithLogitsLoss.",
            )
        if cls.__name__ == "DiceCELoss" and not self.exclusive and self.channels > 1:
            raise self._refuse(
                f".target {cls.__name__} takes its cross-entropy as if classes excluded each other, but "
                "competition.labels is overlapping",
                "Give two terms: monai.losses.DiceLoss and torch.nn.BCEWithLogitsLoss.",
            )
        if args.get("reduction") == "none":
            raise self._refuse(".args.reduction is none, but training needs one number", "Set it to mean.")
        if args.get("from_logits") is False:
            raise self._refuse(".args.from_logits is false, but the network gives logits", "Leave it out.")

    def _demand(self, args: dict[str, Any], parameters: Any, name: str, value: Any) -> None:
        """Fill in an argument that follows from the labels, and refuse another value."""
        if name not in parameters:
            return
        if args.setdefault(name, value) != value:
            labels = "exclusive" if self.exclusive else "overlapping"
            raise self._refuse(
                f".args.{name} is {str(args[name]).lower()}, but competition.labels is {labels}",
                f"Set it to {str(value).lower()}, or leave it out.",
            )

    def _complete_monai(self, cls: type, args: dict[str, Any], dims: int) -> None:
        parameters = constructor_parameters(cls)
        if not self.exclusive:
            for name, value in (
                ("to_onehot_y", False),
                ("softmax", False),
                ("sigmoid", True),
                ("use_softmax", False),
                ("include_background", True),
            ):  # there is no background: a class would be left out
                self._demand(args, parameters, name, value)
            return
        self._demand(args, parameters, "to_onehot_y", True)
        if "softmax" in parameters and "softmax" not in args and "sigmoid" not in args:
            args["softmax"] = True
        if "softmax" in parameters and not (args.get("softmax") or args.get("sigmoid")):
            raise self._refuse(
                ".args ask for neither softmax nor sigmoid, but the network gives logits", "Set softmax to true."
            )
        if "use_softmax" in parameters:
            args.setdefault("use_softmax", True)
        if cls.__name__ == "NACLLoss":
            args.setdefault("classes", self.channels)
            args.setdefault("dim", dims)

    def _complete_smp(self, cls: type, args: dict[str, Any]) -> None:
        if cls.__name__ == "SoftCrossEntropyLoss":
            args.setdefault("smooth_factor", 0.0)  # its own default, None, cannot be computed with
        if "mode" not in constructor_parameters(cls):
            return
        mode = args.setdefault("mode", "multiclass" if self.exclusive else "multilabel")
        if (mode == "multiclass" and not self.exclusive) or (mode == "binary" and self.exclusive):
            labels = "exclusive" if self.exclusive else "overlapping"
            raise self._refuse(
                f".args.mode is {mode}, but competition.labels is {labels}",
                f"Set it to {'multiclass' if self.exclusive else 'multilabel'}, or leave it out.",
            )

    def _tensors(self, cls: type, args: dict[str, Any], dims: int) -> dict[str, Any]:
        """Lists of class weights as the tensors that some constructors insist on."""
        ready = dict(args)
        for name in ("weight", "pos_weight"):
            if isinstance(args.get(name), list) and (self.kind in (TORCH, SMP) or cls.__name__ == "DiceCELoss"):
                if len(args[name]) != self.channels:
                    raise self._refuse(
                        f".args.{name} has {len(args[name])} numbers, but the network gives {self.channels} channels",
                        "Give one for each, the background first where classes are exclusive.",
                    )
                ready[name] = torch.tensor(args[name], dtype=torch.float32)
                if (self.kind, cls.__name__) not in NUMBERS and self.kind in (TORCH, SMP):
                    ready[name] = ready[name].reshape(-1, *[1] * dims)  # against (B, C, *spatial)
        return ready

    def _form(self, cls: type, args: dict[str, Any]) -> Callable[[Truth], Tensor]:
        if (self.kind, cls.__name__) in NUMBERS or args.get("mode") == "multiclass":
            return lambda truth: truth.flat
        if self.kind in (TORCH, SMP):
            return lambda truth: truth.planes
        return lambda truth: truth.native


def kind_of(cls: type) -> str:
    """The library whose conventions a loss follows: its own, or that of the class it is derived from."""
    for base in cls.__mro__:
        root = base.__module__.split(".")[0]
        if base in (nn.Module, object) or base.__name__ in ("_Loss", "_WeightedLoss"):
            continue
        if root in (MONAI, SMP, TORCH):
            return root
    return OTHER
