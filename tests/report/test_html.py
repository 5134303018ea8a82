"""Templates escape text, and a page is self-contained."""

from __future__ import annotations

import base64
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from competition.errors import MaskfoldError
from competition.report import html
from competition.report.html import create_figure_folder, write_page
from tests.report.conftest import Page, check_self_contained

REPORT = Path(str(resources.files("competition.report")))
HOSTILE = "</td><script>alert(\"1\")</script><img src='http://x/y' onerror=alert(1)>&amp;\x00\x1b"


def elements(name: str, **values: Any) -> Markup:
    return html.render("elements.html.j2", name, **values)


def test_text_of_every_element_is_escaped(tmp_path):
    table = html.Table([HOSTILE], [[HOSTILE], [html.Cell(HOSTILE, [HOSTILE, HOSTILE])]])
    body = elements("table", table=table) + elements("definitions", values={HOSTILE: HOSTILE})
    page = Page(write_page(HOSTILE, escape(HOSTILE), {"a": (HOSTILE, body)}, tmp_path / "x.html"))
    check_self_contained(page)
    seen = HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}").replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    assert page.text.count(seen) == 10 and "img" not in page.tags


@pytest.mark.parametrize("template", sorted(path.name for path in REPORT.glob("*.html.j2")))
def test_no_template_switches_escaping_off(template):
    """Every template is in the package, and inserts text with autoescape only."""
    source = (REPORT / template).read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe\b|autoescape|\{%-?\s*raw|Markup", source)
    html.ENVIRONMENT.get_template(template)
    assert html.ENVIRONMENT.autoescape is True


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError, match="facts"):
        html.render("explore.html.j2", "head", name="x", faults="")
    with pytest.raises(TypeError, match="colour"):
        html.render("explore.html.j2", "head", name="x", faults="", facts={}, colour="red")


def test_quotes_in_an_attribute_are_escaped(tmp_path):
    Figure(figsize=(3, 2), dpi=100).savefig(tmp_path / "f.png")
    case = {"picture": tmp_path / "f.png", "alt": 'a"b<', "title": "a<b", "text": ""}
    section = html.render("compare.html.j2", "cases", cases=[case])
    assert 'alt="a&#34;b&lt;"' in section and "<strong>a&lt;b</strong>" in section


def test_a_figure_is_embedded(tmp_path):
    Figure(figsize=(3, 2), dpi=100).savefig(tmp_path / "f.png")
    case = {"picture": tmp_path / "f.png", "alt": "alt", "title": "caption <", "text": ""}
    section = html.render("compare.html.j2", "cases", cases=[case])
    path = write_page("t", Markup(), {"f": ("f", section)}, tmp_path / "x.html")
    (tmp_path / "f.png").rename(tmp_path / "g.png")
    page = Page(path)
    image = {name: value for tag, name, value in page.attributes if tag == "img"}
    assert image["width"] == "210" and image["alt"] == "alt" and "caption <" in page.text
    assert base64.b64decode(image["src"].partition(",")[2]) == (tmp_path / "g.png").read_bytes()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (1.0, "1.0000"), (0.12345, "0.1235"), (None, "absent"), (float("nan"), "absent")],
)
def test_missing_scores_are_shown_as_absent(value, text):
    assert html.format_score(value) == text


def test_format_of_intervals():
    assert html.format_interval(0.1, 0.25) == "0.100 – 0.250"
    assert html.format_interval(None, 0.2) == html.format_interval(float("nan"), float("nan")) == ""
    assert html.score_with_interval(0.5, 0.25, 0.75) == html.Cell("0.5000", ["0.250 – 0.750"])
    cell = elements("content", cell=html.score_with_interval(0.5, 0.25, 0.75))
    assert cell == "0.5000<small>0.250 – 0.750</small>"


def test_alignment_of_text_and_numbers():
    table = html.Table(["class", "score"], [["a", "0.5"], ["b", "0.25"]], bold_rows=[1])
    page = elements("table", table=table)
    assert page.count('<td class="word">') == 2 == page.count('<td class="number">')
    assert '<tr class="strong"><td class="word">b</td>' in page


@pytest.mark.parametrize(("name", "found"), [("page", ""), ("page.txt", ""), ("folder.html", "the folder ")])
def test_a_page_must_end_in_html(tmp_path, name, found):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(MaskfoldError, match=re.escape(f"found {found}{tmp_path / name},")) as error:
        create_figure_folder(tmp_path / name)
    assert error.value.status == 2
    assert (
        create_figure_folder(tmp_path / "new" / "page.html") == tmp_path / "new" / "page"
        and (tmp_path / "new" / "page").is_dir()
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskfoldError, match=re.escape(str(tmp_path / "file" / "page"))):
        create_figure_folder(tmp_path / "file" / "page.html")
