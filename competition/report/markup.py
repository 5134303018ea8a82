"""Pieces of HTML. What is not marked as HTML is text, and is escaped: a class may be called <script>."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

ABSENT = "absent"  # a class that is nowhere: neither 0 nor 1
VOID = ("meta", "img", "br")


class Html(str):
    """Text that is HTML already; only `element` and `joined` make it."""

    __slots__ = ()


Content = str | Html


def element(tag: str, *content: Content, **attributes: str) -> Html:
    """An element; its content and the values of its attributes are escaped. `class_` is the attribute class.

    Example:
        >>> element("p", "a < b", class_="note")
        '<p class="note">a &lt; b</p>'
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value, quote=True)}"' for name, value in attributes.items()
    )
    return Html(f"<{tag}{named}>" + ("" if tag in VOID else f"{joined(content)}</{tag}>"))


def joined(parts: Iterable[Content], between: str = "") -> Html:
    """Parts side by side; those that are not HTML are escaped."""
    return Html(escape(between).join(part if isinstance(part, Html) else escape(part, quote=False) for part in parts))


def paragraph(*content: Content, note: bool = False) -> Html:
    """A paragraph; a note is smaller."""
    return element("p", *content, class_="note") if note else element("p", *content)


def table(
    header: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    words: Sequence[int] = (0,),
    strong: Sequence[int] = (),
) -> Html:
    """A table in a box that scrolls where it is too wide.

    Args:
        header: names of the columns.
        rows: cells.
        words: the columns aligned left; the others hold numbers and are aligned right.
        strong: rows to emphasise, e.g. the sum.
    """

    def cells(tag: str, row: Sequence[Content]) -> Html:
        return joined(
            element(tag, cell, class_="word" if place in words else "number") for place, cell in enumerate(row)
        )

    lines = [
        element("tr", cells("td", row), class_="strong") if number in strong else element("tr", cells("td", row))
        for number, row in enumerate(rows)
    ]
    head = element("thead", element("tr", cells("th", header)))
    return element("div", element("table", head, element("tbody", *lines)), class_="scroll")


def figure(path: Path, caption: Content, alt: str, scale: float = 0.7) -> Html:
    """A PNG inside of the page, with a caption.

    Args:
        path: the PNG.
        caption: below it.
        alt: what it shows, for who cannot see it.
        scale: how large a pixel of it is shown, as far as the page is wide enough: letters are then of one size in all.
    """
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # of the PNG's first chunk, IHDR
    image = element(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}",
        alt=alt,
        width=str(round(width * scale)),
    )
    return element("figure", image, element("figcaption", caption))


def facts(pairs: Mapping[str, Content]) -> Html:
    """Names and what they are, side by side."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in pairs.items()))


def section(name: str, title: str, *content: Content) -> Html:
    """A section with a heading that the list of contents points at."""
    return element("section", element("h2", title), *content, id=name)


def number(value: float | None, digits: int = 4) -> str:
    """A score; `absent` where it is unknown, since the class is nowhere."""
    return ABSENT if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval; empty where it is unknown."""
    return "" if low is None or high is None or math.isnan(low) or math.isnan(high) else f"{low:.3f} – {high:.3f}"


def with_interval(value: float, low: float, high: float) -> Html:
    """A score, and its interval in small letters below."""
    ends = interval(low, high)
    return joined([number(value), element("small", ends)]) if ends else joined([number(value)])
