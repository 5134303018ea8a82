"""Explicit lists in the YAML: from `{target: …, args: {…}}` to transforms of albumentations or MONAI."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from competition.config.errors import MaskfoldError
from competition.config.experiment import Augment, Target
from competition.config.target import resolve_target

Complete = Callable[[Any, dict[str, Any], str], dict[str, Any]]


def listed_transforms(
    augment: Augment, single: type, group: type, complete: Complete, trust: Sequence[str]
) -> list[Any]:
    """Builds `augment.transforms`. Groups such as `OneOf` hold a list `transforms` of their own, written alike.

    Args:
        augment: the experiment's section.
        single: what a transform has to be derived from.
        group: what a composition of transforms is derived from.
        complete: called with (class, args, key) of each transform, gives the arguments to use.
        trust: packages besides the known ones that a target may name.

    Raises:
        MaskfoldError: status 2; a target or an argument is wrong, or there is a preset as well.
    """
    if augment.preset != "none":
        raise MaskfoldError("`augment` has both a preset and a list of transforms.", "Keep one of them.", status=2)

    def build(item: Target, key: str) -> Any:
        cls = resolve_target(item.target, (single, group), f"{key}.target", trust)
        if issubclass(cls, group):
            children = item.args.get("transforms") or ()
            args = {
                **item.args,
                "transforms": [
                    build(_nested(child, place), place)
                    for place, child in (
                        (f"{key}.args.transforms.{number}", child) for number, child in enumerate(children)
                    )
                ],
            }
        else:
            args = complete(cls, dict(item.args), key)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # albumentations only warns of an argument it does not know
                return cls(**args)
        except (TypeError, ValueError, KeyError, UserWarning) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise MaskfoldError(
                f"{key}.args does not fit {item.target}: {reason}.",
                f"Look up the arguments of {cls.__name__} in {cls.__module__.split('.')[0]}.",
                status=2,
            ) from error

    return [build(item, f"augment.transforms.{number}") for number, item in enumerate(augment.transforms or ())]


def _nested(child: Any, key: str) -> Target:
    if not isinstance(child, dict) or "target" not in child or not set(child) <= {"target", "args"}:
        raise MaskfoldError(f"{key} is no transform.", "Write it as `{target: …, args: {…}}`.", status=2)
    return Target(target=child["target"], args=child.get("args") or {})
