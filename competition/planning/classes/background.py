"""Find the label value of the background, if the masks suggest a value other than 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from competition.planning.layouts.content import LabelValues

MIN_EDGE_SHARE = 0.6  # a value that covers this share of the masks' edges may be the background
ASKED_EDGE_SHARE = 0.95  # from this share on, the user is asked
NAMES = ("background", "bg", "_background_", "__background__")


@dataclass(frozen=True)
class Doubt:
    """Describe a label value other than 0 that may be the background.

    Attributes:
        value: the label value.
        remark: text that asks the user to check the background.
        asks: whether the user must choose the background, because the evidence is strong. If False, the remark is
            enough.
    """

    value: int
    remark: str
    asks: bool


def doubt_background(found: Sequence[LabelValues]) -> Doubt | None:
    """Return the label value other than 0 that may be the background; None if the masks suggest no such value.

    If no mask has a 0, this is the most frequent value. Otherwise it is the most frequent value of the outermost pixels
    of the masks, if at least the share `MIN_EDGE_SHARE` of these pixels has this value.

    Args:
        found: label values of each mask.
    """
    whole: Counter[int] = Counter()
    edges: Counter[int] = Counter()
    for item in found:
        whole.update(dict(item.counts))
        edges.update(dict(item.edges))
    most, count = (whole if 0 not in whole else edges).most_common(1)[0]
    if 0 not in whole:
        return Doubt(
            most,
            f"no mask has the value 0, so each value is read as a class. The most frequent value is {most} "
            f"({count / whole.total():.0%} of the pixels). If {most} is the background, set background: "
            f"{most}, and remove the class of {most} from `classes` and {most} from `label_values`",
            len(whole) > 1,
        )
    share = count / edges.total()
    if most == 0 or share < MIN_EDGE_SHARE:
        return None
    return Doubt(
        most,
        f"0 is read as the background, but the value {most} covers {share:.0%} of the outermost pixels "
        f"of the masks. If {most} is the background, set background: {most}, and write 0 instead of "
        f"{most} in `label_values`",
        share >= ASKED_EDGE_SHARE and whole.most_common(1)[0][0] == most,
    )


def may_be_background(found: Sequence[LabelValues], value: int) -> bool:
    """Return whether a label value that usually marks ignored pixels, such as 255, may be the background.

    The value may be the background if no mask has a 0, if it is the most frequent value, or if at least the share
    `MIN_EDGE_SHARE` of the outermost pixels of the masks has this value.

    Args:
        found: label values of each mask.
        value: the label value.
    """
    whole: Counter[int] = Counter()
    edges: Counter[int] = Counter()
    for item in found:
        whole.update(dict(item.counts))
        edges.update(dict(item.edges))
    return (
        0 not in whole or whole.most_common(1)[0][0] == value or edges[value] >= MIN_EDGE_SHARE * max(1, edges.total())
    )


def named_background(names: Sequence[str]) -> int | None:
    """Return the index of the class name that means background.

    Return None if no name means background, or if several names do.
    """
    places = [place for place, name in enumerate(names) if name.casefold() in NAMES]
    return places[0] if len(places) == 1 else None
