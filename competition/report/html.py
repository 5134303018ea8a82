"""Write HTML pages from jinja2 templates.

The pages contain their images and styles, so that they need no network. A page has no script, or a single one that the
caller passes to `write_page`. The security policy of the page contains the hash of this script, so that no other script
can run.

`page.html.j2` is the document, and `elements.html.j2` contains elements that all pages share. The template of a page,
such as `run.html.j2`, has one macro for each section: `render("run.html.j2", "scores", …)`.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from competition.errors import MaskfoldError
from competition.io import atomic_write, remove_all_stale_temp, remove_stale_temp, temporary_folder
from competition.runs.lock import ensure_lock

LOCK_PATIENCE = 3.0  # maximum time in seconds to wait for the lock of a folder; see `competition.cli.train`
NO_SCRIPT = Markup("")
ABSENT_LABEL = "absent"  # text for the score of a class that no case has


class Cell(NamedTuple):
    """Hold a table cell: its text, and lines in small letters below the text."""

    text: str
    small: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Hold a table of a page.

    Attributes:
        header: names of the columns.
        rows: cells of each row.
        text_columns: indices of columns that contain text and are aligned left; all others are aligned right.
        bold_rows: indices of rows in bold letters, e.g. a row with totals.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    text_columns: Sequence[int] = (0,)
    bold_rows: Sequence[int] = ()

    def alignment(self, column: int) -> str:
        """Return the CSS class for the cells of a column, which sets their alignment."""
        return "word" if column in self.text_columns else "number"


def format_score(value: float | None, digits: int = 4) -> str:
    """Return a score as text; `absent` for None or nan, because these mean that no case has the class."""
    return ABSENT_LABEL if value is None or math.isnan(value) else f"{value:.{digits}f}"


def format_interval(low: float | None, high: float | None) -> str:
    """Return an interval as text; an empty text if one of its ends is None or nan."""
    return "" if low is None or high is None or math.isnan(low) or math.isnan(high) else f"{low:.3f} – {high:.3f}"


def score_with_interval(value: float, low: float, high: float) -> Cell:
    """Return a table cell with a score, and its interval in small letters below."""
    ends = format_interval(low, high)
    return Cell(format_score(value), [ends] if ends else [])


def png_data_uri(path: Path) -> str:
    """Return the content of a PNG file as a `data:` URI, which embeds the image in a page."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def png_width(path: Path) -> int:
    """Return the width of a PNG file in pixels."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(20)[16:], "big")  # the width is in the PNG's first chunk, IHDR


def _load_template(name: str) -> str:
    return (resources.files("competition.report") / name).read_text(encoding="utf-8")


ENVIRONMENT = Environment(
    loader=FunctionLoader(_load_template),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters.update(png_data_uri=png_data_uri, png_width=png_width)


def render(template: str, macro: str, **values: Any) -> Markup:
    """Return the HTML of one macro of a template.

    Args:
        template: file name of the template.
        macro: name of the macro.
        values: arguments of the macro. Texts are escaped; `Markup` objects are inserted unchanged.

    Example:
        >>> render("elements.html.j2", "definitions", values={"a": "1 < 2"})
        Markup('<dl><div><dt>a</dt><dd>1 &lt; 2</dd></div></dl>')
    """
    return Markup(getattr(ENVIRONMENT.get_template(template).module, macro)(**values))


CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that HTML does not allow


def create_figure_folder(output: Path) -> Path:
    """Create the folder for the figures of a page, and return its path, which is the page's path without the suffix.

    Temporary files that a killed process has left in the folder are removed.

    Args:
        output: path of the page.

    Raises:
        MaskfoldError: the name of the page does not end in `.html` or `.htm`, so that page and folder could have the
            same name (status 2); or the folder cannot be created.
    """
    if output.suffix.lower() not in (".html", ".htm") or output.is_dir():
        raise MaskfoldError(
            f"--output: found {'the folder ' if output.is_dir() else ''}{output}, expected a file name that "
            "ends in .html.",
            "Give the name of a file, for example --output report.html.",
            status=2,
        )
    folder = output.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_all_stale_temp(folder)
        remove_stale_temp(output.parent, output.name)
    except OSError as error:
        raise MaskfoldError(
            f"The folder {folder} for the figures of the page cannot be created: {error.strerror}.",
            "Set another output file with --output.",
        ) from error
    return folder


@contextmanager
def staged_figures(output: Path, old_names: str) -> Iterator[Path]:
    """Collect the figures of a page in a temporary folder, and move them to the page's folder after the `with` block.

    If the block fails, e.g. because the data have changed, the figures of an earlier page stay unchanged.

    Args:
        output: path of the page.
        old_names: regular expression for the names of figures. If the name of an earlier page's figure matches, and the
            block has not written this figure again, the figure is removed.

    Yields:
        The temporary folder.

    Raises:
        MaskfoldError: the name of the page is not valid (status 2), or the folder cannot be created.
    """
    was_there = output.with_suffix("").exists()
    final = create_figure_folder(output)
    try:
        with temporary_folder(final) as folder:
            yield folder
            written = sorted(folder.iterdir())
            for path in written:
                os.replace(path, final / path.name)
        for path in list(final.iterdir()):
            if re.fullmatch(old_names, path.name) and path.name not in {new.name for new in written}:
                path.unlink()
    finally:
        if not was_there:
            with suppress(OSError):  # the folder contains files
                final.rmdir()


@contextmanager
def output_lock(folder: Path, output: Path) -> Iterator[None]:
    """Hold the lock of a run's or study's folder during the `with` block, if a page is written into this folder.

    Args:
        folder: folder of the run or study.
        output: path of the page. If it is outside of the folder, no lock is needed.

    Raises:
        MaskfoldError: another process works in the folder.
    """
    if not output.resolve().is_relative_to(folder.resolve()):
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(ensure_lock(folder, LOCK_PATIENCE, lambda _: None))
        except MaskfoldError as error:
            raise MaskfoldError(
                error.message,
                "Wait until the other process has ended, or write the page to another folder, such as the current one: "
                f"-o {output.name}.",
                status=error.status,
            ) from error
        yield


def write_page(
    title: str, head: Markup, sections: dict[str, tuple[str, Markup]], output: Path, script: Markup = NO_SCRIPT
) -> Path:
    """Write an HTML page atomically.

    Args:
        title: title of the browser window.
        head: HTML above the navigation.
        sections: (text of the link to the section, HTML of the section), by the id of the section.
        output: path of the page.
        script: JavaScript that runs at the end of the page; it must not contain `</script`.

    Returns:
        The path of the page.

    Raises:
        MaskfoldError: the file cannot be written.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() if script else ""
    document = ENVIRONMENT.get_template("page.html.j2").render(
        title=title, head=head, sections=sections, script=script, digest=digest
    )
    content = CONTROL_CHARACTERS.sub("�", document).encode("utf-8", "xmlcharrefreplace")
    atomic_write(output, lambda file: file.write(content))
    return output
