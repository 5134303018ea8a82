"""Self-contained HTML pages: no network, no scripts, embedded images and style."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from competition.errors import MaskfoldError
from competition.io import atomic_write

ABSENT_LABEL = "absent"  # score of a class that no case has: neither 0 nor 1
VOID_TAGS = ("meta", "img", "br")


class Html(str):
    """Text that is HTML; only `element` and `join_html` create it."""

    __slots__ = ()


Content = str | Html


def element(tag: str, *content: Content, **attributes: str) -> Html:
    """Return an element; content and attribute values are escaped. `class_` sets the attribute class.

    Example:
        >>> element("p", "a < b", class_="note")
        '<p class="note">a &lt; b</p>'
    """
    attribute_text = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value, quote=True)}"' for name, value in attributes.items()
    )
    return Html(f"<{tag}{attribute_text}>" + ("" if tag in VOID_TAGS else f"{join_html(content)}</{tag}>"))


def join_html(parts: Iterable[Content], separator: str = "") -> Html:
    """Join parts; those that are not HTML are escaped."""
    return Html(escape(separator).join(part if isinstance(part, Html) else escape(part, quote=False) for part in parts))


def paragraph(*content: Content, note: bool = False) -> Html:
    """Return a paragraph, in smaller letters for a note."""
    return element("p", *content, class_="note") if note else element("p", *content)


def html_table(
    header: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    text_columns: Sequence[int] = (0,),
    bold_rows: Sequence[int] = (),
) -> Html:
    """Return a table that scrolls horizontally if it is too wide.

    Args:
        header: names of the columns.
        rows: cells.
        text_columns: columns aligned left; the others contain numbers and are aligned right.
        bold_rows: rows to emphasise, e.g. the sum.
    """

    def cells(tag: str, row: Sequence[Content]) -> Html:
        return join_html(
            element(tag, cell, class_="word" if column in text_columns else "number") for column, cell in enumerate(row)
        )

    lines = [
        element("tr", cells("td", row), class_="strong") if index in bold_rows else element("tr", cells("td", row))
        for index, row in enumerate(rows)
    ]
    head = element("thead", element("tr", cells("th", header)))
    return element("div", element("table", head, element("tbody", *lines)), class_="scroll")


def embedded_figure(path: Path, caption: Content, alt: str, scale: float = 0.7) -> Html:
    """Return a PNG embedded in the page, with a caption.

    Args:
        path: the PNG.
        caption: text below the figure.
        alt: text for screen readers.
        scale: displayed size of a PNG pixel, so that all figures have the same font size; limited by the page's width.
    """
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # in the PNG's first chunk, IHDR
    image = element(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}",
        alt=alt,
        width=str(round(width * scale)),
    )
    return element("figure", image, element("figcaption", caption))


def definition_list(pairs: Mapping[str, Content]) -> Html:
    """Return a list of names and values, side by side."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in pairs.items()))


def section(name: str, title: str, *content: Content) -> Html:
    """Return a section with a heading that the navigation links to."""
    return element("section", element("h2", title), *content, id=name)


def format_score(value: float | None, digits: int = 4) -> str:
    """Format a score; `absent` for None or nan (no case has the class)."""
    return ABSENT_LABEL if value is None or math.isnan(value) else f"{value:.{digits}f}"


def format_interval(low: float | None, high: float | None) -> str:
    """Format an interval; empty if an end is None or nan."""
    return "" if low is None or high is None or math.isnan(low) or math.isnan(high) else f"{low:.3f} – {high:.3f}"


def score_with_interval(value: float, low: float, high: float) -> Html:
    """Format a score with its interval in small letters below."""
    ends = format_interval(low, high)
    return join_html([format_score(value), element("small", ends)]) if ends else join_html([format_score(value)])


# The browser must not load external content, whatever a class is called.
CONTENT_SECURITY_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5d6877; --line: #e1e5ea; --shade: #f5f7f9; --mark: #0b62a8; }
* { box-sizing: border-box; }
html { background: #eef1f4; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 3rem 4rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .8rem; padding-bottom: .35rem; border-bottom: 1px solid var(--line); font-size: 1.3rem; }
h3 { margin: 1.8rem 0 .5rem; font-size: 1.02rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: .6rem 0; overflow-wrap: anywhere; }
.sub, .note, figcaption { color: var(--soft); }
.note, figcaption { font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 1.2rem 0 0; font-size: .95rem; }
nav a { color: var(--mark); text-decoration: none; }
nav a:hover { text-decoration: underline; }
.score { margin: 1.6rem 0 .4rem; }
.score b { font-size: 2.6rem; font-weight: 650; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.score span { margin-left: .8rem; color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .9rem 1.5rem; margin: 1.4rem 0; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .8rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem 1.1rem .38rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: .2rem; }
th { color: var(--soft); font-size: .85rem; font-weight: 600; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
.word { text-align: left; max-width: 24rem; overflow-wrap: anywhere; }
tr.strong td { font-weight: 650; border-top: 2px solid var(--line); background: var(--shade); }
td small { display: block; color: var(--soft); font-size: .8rem; font-weight: 400; }
figure { margin: 1.4rem 0; }
img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .4rem; max-width: 50rem; overflow-wrap: anywhere; }
pre { margin: .8rem 0; padding: .9rem 1.1rem; overflow-x: auto; border: 1px solid var(--line); border-radius: 6px;
  background: var(--shade); font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre .add { color: #116329; background: #e6f6ea; }
pre .cut { color: #9a1c24; background: #fdecec; }
pre .at { color: var(--mark); }
.warn { padding: .6rem 1rem; border-left: 4px solid #d08700; background: #fff7e6; max-width: none; }
@media (max-width: 45rem) { body { padding: 1.2rem; } }
@media print { html { background: #fff; } figure, tr { break-inside: avoid; } }
"""
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that HTML does not allow


def create_figure_folder(output: Path) -> Path:
    """Create and return the folder of a page's PNGs, named like the page without its suffix.

    Raises:
        MaskfoldError: the page does not end in .html, so that page and folder would have the same name (status 2); or
            the folder cannot be created.
    """
    if output.suffix.lower() not in (".html", ".htm") or output.is_dir():
        raise MaskfoldError(
            f"invalid page: found {output}, expected a file name that ends in .html.",
            "Change the output file.",
            status=2,
        )
    folder = output.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MaskfoldError(
            f"cannot create the image folder {folder}: {error.strerror}.", "Set another output file for the page."
        ) from error
    return folder


def write_page(title: str, head: Html, sections: dict[str, tuple[str, Html]], output: Path) -> Path:
    """Write a page atomically.

    Args:
        title: title of the browser window.
        head: content above the navigation.
        sections: link text and section, by section id.
        output: the file.

    Returns:
        The file.

    Raises:
        MaskfoldError: the file cannot be written.
    """
    links = [element("a", text, href=f"#{name}") for name, (text, _) in sections.items()]
    body = join_html([content for _, content in sections.values()], "\n")
    document = join_html(
        [
            Html("<!DOCTYPE html>\n"),
            Html('<html lang="en">'),
            element(
                "head",
                element("meta", charset="utf-8"),
                element("meta", http_equiv="Content-Security-Policy", content=CONTENT_SECURITY_POLICY),
                element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                element("title", title),
                element("style", Html(STYLE)),
            ),
            Html("\n"),
            element("body", head, element("nav", *links), Html("\n"), body),
            Html("\n</html>\n"),
        ]
    )
    content = CONTROL_CHARACTERS.sub("�", document).encode("utf-8", "xmlcharrefreplace")
    atomic_write(output, lambda file: file.write(content))
    return output
