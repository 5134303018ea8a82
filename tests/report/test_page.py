"""What is text stays text, and a page needs nothing but itself."""

from __future__ import annotations

import base64

import pytest
from matplotlib.figure import Figure

from competition.config import MaskfoldError
from competition.report import markup as html
from competition.report.page import place_pictures, write_page
from tests.report.conftest import Page, loads_nothing

HOSTILE = "</td><script>alert(\"1\")</script><img src='http://x/y' onerror=alert(1)>&amp;\x00\x1b"


def test_whatever_is_text_is_escaped(tmp_path):
    body = html.section(
        "a",
        HOSTILE,
        html.table([HOSTILE], [[HOSTILE], [html.element("b", HOSTILE, title=HOSTILE)]]),
        html.paragraph(HOSTILE, "more"),
        html.element("pre", HOSTILE),
        html.facts({HOSTILE: HOSTILE}),
    )
    page = Page(write_page(HOSTILE, html.element("h1", HOSTILE), {"a": (HOSTILE, body)}, tmp_path / "x.html"))
    loads_nothing(page)
    seen = HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}").replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    assert page.text.count(seen) == 11 and "img" not in page.tags
    assert [value for tag, name, value in page.attributes if name == "title"] == [seen]


def test_only_pieces_of_html_are_taken_as_html():
    assert html.joined(["<b>", html.element("b", "<")]) == "&lt;b&gt;<b>&lt;</b>"
    assert html.element("img", alt='a"b') == '<img alt="a&quot;b">'


def test_a_figure_is_inside_of_the_page(tmp_path):
    Figure(figsize=(3, 2), dpi=100).savefig(tmp_path / "f.png")
    path = write_page(
        "t",
        html.joined([]),
        {"f": ("f", html.figure(tmp_path / "f.png", "caption <", "alt", scale=0.5))},
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
    assert html.number(value) == text


def test_intervals():
    assert html.interval(0.1, 0.25) == "0.100 – 0.250"
    assert html.interval(None, 0.2) == html.interval(float("nan"), float("nan")) == ""
    assert html.with_interval(0.5, 0.25, 0.75) == "0.5000<small>0.250 – 0.750</small>"


def test_columns_of_words_and_of_numbers():
    page = html.table(["class", "score"], [["a", "0.5"], ["b", "0.25"]], strong=[1])
    assert page.count('<td class="word">') == 2 == page.count('<td class="number">')
    assert '<tr class="strong"><td class="word">b</td>' in page


@pytest.mark.parametrize("name", ["page", "page.txt", "folder.html"])
def test_a_page_has_the_ending_html(tmp_path, name):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(MaskfoldError, match=r"ends in \.html") as refused:
        place_pictures(tmp_path / name)
    assert refused.value.status == 2
    assert (
        place_pictures(tmp_path / "new" / "page.html") == tmp_path / "new" / "page"
        and (tmp_path / "new" / "page").is_dir()
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskfoldError, match="cannot be made"):
        place_pictures(tmp_path / "file" / "page.html")
