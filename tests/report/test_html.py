"""Text is escaped, and a page is self-contained."""

from __future__ import annotations

import base64
import re

import pytest
from matplotlib.figure import Figure

from competition.errors import MaskfoldError
from competition.report import html
from competition.report.html import create_figure_folder, write_page
from tests.report.conftest import Page, loads_nothing

HOSTILE = "</td><script>alert(\"1\")</script><img src='http://x/y' onerror=alert(1)>&amp;\x00\x1b"


def test_text_is_escaped(tmp_path):
    body = html.section(
        "a",
        HOSTILE,
        html.html_table([HOSTILE], [[HOSTILE], [html.element("b", HOSTILE, title=HOSTILE)]]),
        html.paragraph(HOSTILE, "more"),
        html.element("pre", HOSTILE),
        html.definition_list({HOSTILE: HOSTILE}),
    )
    page = Page(write_page(HOSTILE, html.element("h1", HOSTILE), {"a": (HOSTILE, body)}, tmp_path / "x.html"))
    loads_nothing(page)
    seen = HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}").replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    assert page.text.count(seen) == 11 and "img" not in page.tags
    assert [value for tag, name, value in page.attributes if name == "title"] == [seen]


def test_only_html_elements_are_not_escaped():
    assert html.join_html(["<b>", html.element("b", "<")]) == "&lt;b&gt;<b>&lt;</b>"
    assert html.element("img", alt='a"b') == '<img alt="a&quot;b">'


def test_a_figure_is_embedded(tmp_path):
    Figure(figsize=(3, 2), dpi=100).savefig(tmp_path / "f.png")
    path = write_page(
        "t",
        html.join_html([]),
        {"f": ("f", html.embedded_figure(tmp_path / "f.png", "caption <", "alt", scale=0.5))},
        tmp_path / "x.html",
    )
    (tmp_path / "f.png").rename(tmp_path / "g.png")
    page = Page(path)
    image = {name: value for tag, name, value in page.attributes if tag == "img"}
    assert image["width"] == "150" and image["alt"] == "alt" and "caption <" in page.text
    assert base64.b64decode(image["src"].partition(",")[2]) == (tmp_path / "g.png").read_bytes()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (1.0, "1.0000"), (0.12345, "0.1235"), (None, "absent"), (float("nan"), "absent")],
)
def test_unknown_scores_are_absent(value, text):
    assert html.format_score(value) == text


def test_intervals():
    assert html.format_interval(0.1, 0.25) == "0.100 – 0.250"
    assert html.format_interval(None, 0.2) == html.format_interval(float("nan"), float("nan")) == ""
    assert html.score_with_interval(0.5, 0.25, 0.75) == "0.5000<small>0.250 – 0.750</small>"


def test_columns_of_text_and_numbers():
    page = html.html_table(["class", "score"], [["a", "0.5"], ["b", "0.25"]], bold_rows=[1])
    assert page.count('<td class="word">') == 2 == page.count('<td class="number">')
    assert '<tr class="strong"><td class="word">b</td>' in page


@pytest.mark.parametrize("name", ["page", "page.txt", "folder.html"])
def test_a_page_must_end_in_html(tmp_path, name):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(MaskfoldError, match=rf"{re.escape(name)}.*\.html") as error:
        create_figure_folder(tmp_path / name)
    assert error.value.status == 2
    assert (
        create_figure_folder(tmp_path / "new" / "page.html") == tmp_path / "new" / "page"
        and (tmp_path / "new" / "page").is_dir()
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskfoldError, match=re.escape(str(tmp_path / "file" / "page"))):
        create_figure_folder(tmp_path / "file" / "page.html")
