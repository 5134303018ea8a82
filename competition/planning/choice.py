"""Choose between the layouts that fit a folder; if there are several, ask the user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from competition.errors import MaskfoldError
from competition.planning.layout import Layout
from competition.planning.words import REGION_WORDS, has_word
from competition.text import format_count

MIN_OBJECT_NUMBER = 1000  # classes rarely have label values from this one on
Ask = Callable[[Sequence[str]], int]  # function that shows numbered lines, and returns the number that the user chose


def choose_layout(layouts: Sequence[Layout], number: int | None, ask: Ask | None) -> Layout:
    """Return the only layout that fits, or the layout that the user chooses.

    Args:
        layouts: the layouts that fit, at least one.
        number: value of `--layout`: the number of a layout, counted from 1; None if the user did not set `--layout`.
        ask: function that asks the user on a terminal; None without a terminal.

    Raises:
        MaskfoldError (exit status 2): no layout has this number, or several layouts fit and there is no terminal on
            which to ask for a number.
    """
    candidates = order_candidates(layouts)
    lines = describe_candidates(candidates)
    if number is not None:
        if not 1 <= number <= len(candidates):
            raise MaskfoldError(
                f"--layout: found {number}, expected a number from 1 to {len(candidates)}:\n" + "\n".join(lines) + "\n",
                "Choose one of the layouts by its number.",
                status=2,
            )
        return candidates[number - 1]
    if len(candidates) == 1:
        return candidates[0]
    if ask is None:
        raise MaskfoldError(
            f"Maskfold can read the folder in {len(candidates)} ways:\n" + "\n".join(lines) + "\n",
            "Choose one of them by its number, for example --layout 1.",
            status=2,
        )
    return candidates[ask(lines) - 1]


def order_candidates(layouts: Sequence[Layout]) -> list[Layout]:
    """Return the layouts from which the user may choose, those with the most cases first.

    Layouts whose masks are named like a field of view come last, because a network would learn the region instead of
    the objects in it. If layouts have equally many cases, those whose label values seem to be object numbers come last.
    Only the layouts with the lowest `Layout.rank` are returned. If two layouts have the same patterns and keys, only
    one of them is returned.
    """
    best = min(layout.rank for layout in layouts)
    kept: dict[str, Layout] = {}
    for layout in layouts:
        if layout.rank == best:
            kept.setdefault(f"{layout.folder.root} {layout.images} {layout.masks} {layout.keys}", layout)
    return sorted(kept.values(), key=lambda layout: (_is_region(layout), -layout.cases, _has_object_numbers(layout)))


def _is_region(layout: Layout) -> bool:
    """Return whether the pattern of the masks has a word for a field of view, such as `fov` or `roi`."""
    return isinstance(layout.masks, str) and has_word(layout.masks, REGION_WORDS)


def _has_object_numbers(layout: Layout) -> bool:
    """Return whether a label value is so high (26001 in Cityscapes) that it is probably the number of an object."""
    values = layout.keys.get("label_values", [])
    return any(isinstance(value, int) and value >= MIN_OBJECT_NUMBER for value in values)


def describe_candidates(candidates: Sequence[Layout]) -> list[str]:
    """Return a numbered line for each candidate, with its name, number of cases and patterns.

    If a candidate has advice for the user (`Layout.advice`), the first advice follows the last line of the list.
    """
    differ = len({layout.folder.name for layout in candidates}) > 1
    texts = []
    for layout in candidates:
        place = f" in {layout.folder.name}" if differ else ""
        test = "" if layout.test is None else "; with test images"
        texts.append(f"{layout.name}{place}, {format_count(layout.cases, 'case')}: {layout.summary}{test}")
    texts = [f"{text}{_differences(layout, candidates, texts)}" for layout, text in zip(candidates, texts, strict=True)]
    lines = [f"  {number}. {text}" for number, text in enumerate(texts, start=1)]
    if advice := next((layout.advice for layout in candidates if layout.advice), ""):
        lines[-1] += f"\n  {advice}"
    return lines


def _differences(layout: Layout, candidates: Sequence[Layout], texts: Sequence[str]) -> str:
    """Return the keys and values that distinguish a layout from the other candidates with the same describing text.

    Several candidates can have the same text, because a text leaves out most channels and classes, all label values,
    and the parent folders.

    Args:
        layout: one of the candidates.
        candidates: all candidates.
        texts: the text that describes each candidate, in the order of `candidates`.

    Returns:
        The keys and values as text; empty if no other candidate has the same text.
    """
    text = texts[candidates.index(layout)]
    values = [_values(other) for other, same in zip(candidates, texts, strict=True) if same == text]
    own = _values(layout)
    differing = [key for key in own if any(other.get(key) != own[key] for other in values)]
    return "".join(f"; {key}: {own[key]}" for key in differing)


def _values(layout: Layout) -> dict[str, str]:
    """Return the root folder, the patterns and the other keys of a layout, as texts by key."""
    values: dict[str, Any] = {"root": layout.folder.root, **layout.keys}
    for key, patterns in (("train.images", layout.images), ("train.masks", layout.masks)):
        named = patterns if isinstance(patterns, dict) else {"": patterns}
        values |= {f"{key}.{name}".strip("."): pattern for name, pattern in named.items()}
    return {key: str(value) for key, value in values.items()}
