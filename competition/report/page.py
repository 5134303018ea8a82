"""A page that needs nothing but itself: no network, no scripts, pictures and style inside."""

from __future__ import annotations

import re
from pathlib import Path

from competition.config import MaskfoldError
from competition.report.markup import Html, element, joined
from competition.training.checkpoint import write_whole

# The browser too is told that nothing may be loaded from anywhere, whatever a class is called.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
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
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that no HTML document may hold


def place_pictures(output: Path) -> Path:
    """The folder of a page's PNGs, beside it and called like it; it is made.

    Raises:
        MaskfoldError: the page has not the ending .html, so that the two would have one name.
    """
    if output.suffix.lower() not in (".html", ".htm") or output.is_dir():
        raise MaskfoldError(f"{output} is no name for a page.", "Name a file that ends in .html.", status=2)
    folder = output.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MaskfoldError(
            f"The pictures' folder {folder} cannot be made: {error.strerror}.", "Name another file for the page."
        ) from error
    return folder


def write_page(title: str, head: Html, sections: dict[str, tuple[str, Html]], output: Path) -> Path:
    """Writes a page whole or not at all.

    Args:
        title: of the window.
        head: what stands above the list of contents.
        sections: by name, the word in the list of contents and the section.
        output: the file.

    Returns:
        The file.

    Raises:
        MaskfoldError: it cannot be written.
    """
    links = [element("a", word, href=f"#{name}") for name, (word, _) in sections.items()]
    document = joined(
        [
            Html("<!DOCTYPE html>\n"),
            Html('<html lang="en">'),
            element(
                "head",
                element("meta", charset="utf-8"),
                element("meta", http_equiv="Content-Security-Policy", content=POLICY),
                element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                element("title", title),
                element("style", Html(STYLE)),
            ),
            Html("\n"),
            element(
                "body", head, element("nav", *links), Html("\n"), joined([part for _, part in sections.values()], "\n")
            ),
            Html("\n</html>\n"),
        ]
    )
    content = CONTROL.sub("�", document).encode("utf-8", "xmlcharrefreplace")
    write_whole(output, lambda file: file.write(content))
    return output
