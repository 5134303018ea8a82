"""Write the HTML page of a review of labels. It shows possible faults with pictures, the most suspect first."""

from __future__ import annotations

import json
from pathlib import Path

from markupsafe import Markup

from competition.context import Context
from competition.data.content.unchanged import load_unchanged_mask
from competition.data.selection import read_answers
from competition.errors import MaskfoldError
from competition.inference.masks import to_masks
from competition.report.html import Table, render, staged_figures, write_page
from competition.review.findings import EXCHANGED, EXTRA, MISSING, SHIFTED, WRONG_CLASS, Finding
from competition.review.search import Review
from competition.review.table import write_review_table
from competition.runs.outputs import check_output, competitions_of
from competition.runs.run import Run
from competition.text import format_count
from competition.viz.overlays import draw_finding
from competition.viz.preview import load_unchanged_picture

TEMPLATE = "review.html.j2"
MAX_ROWS = 300  # maximum number of findings in the table of the page; the CSV has all findings
CLASSES_IN_TABLE = 12  # maximum number of classes in the table of thresholds


def check_review_output(page: Path, run: Run) -> None:
    """Check that the page of a review, its folder and its CSV may be written.

    Args:
        page: path of the page.
        run: the run that is reviewed.

    Raises:
        MaskfoldError: the name of the page does not end in `.html`, files of a run or data would be overwritten, or the
            CSV exists and does not belong to a review (status 2).
    """
    if page.suffix.lower() not in (".html", ".htm"):
        raise MaskfoldError(
            f"--output: found {page}, expected a file name that ends in .html.",
            "Give the name of a file. For example, -o review.html writes the page review.html and the CSV review.csv.",
            status=2,
        )
    table = page.with_suffix(".csv")
    check_output([page, page.with_suffix(""), table], competitions_of([run]))
    if table.exists():
        read_answers(table)


def write_review(review: Review, page: Path, pictures: int = 40, context: Context = Context()) -> tuple[Path, int]:
    """Write the page of a review, a folder with its pictures, and a CSV in which the user can answer the findings.

    Args:
        review: the result of `competition.review.search.review_run`.
        page: path of the page, which ends in `.html`. The folder has the same name without suffix, and the CSV has the
            suffix `.csv`.
        pictures: number of findings to draw, beginning with the most suspect one.
        context: context whose log receives progress messages.

    Returns:
        The path of the CSV, and the number of cases whose answers in an earlier CSV were copied to the new one.

    Raises:
        MaskfoldError: an image, its labels or a prediction have changed or are damaged, or a file cannot be written.
    """
    check_review_output(page, review.run)
    table = page.with_suffix(".csv")
    with staged_figures(page, r"finding_\d+\.png") as folder:
        shown = review.findings[:pictures]
        if shown:
            context.say(f"drawing {format_count(len(shown), 'finding')}, the highest score first")
        sections = {
            "findings": ("Findings", _table_section(review, len(shown))),
            "pictures": ("Pictures", _pictures_section(review, shown, folder)),
            "method": ("Method", _method_section(review)),
        }
        kept = write_review_table(review.findings, table)
        head = render(
            TEMPLATE,
            "head",
            name=review.run.full_name,
            findings=len(review.findings),
            cases=review.cases,
            affected=len({finding.id for finding in review.findings}),
            table=table.name,
        )
        write_page(f"review of {review.run.full_name}", head, sections, page)
    return table, kept


def describe(finding: Finding) -> str:
    """Return a description of a finding in one line, without the case id and the score."""
    slice_text = "" if finding.slice is None else f" in slice {finding.slice}"
    at = f"at row {finding.centre[0]}, column {finding.centre[1]}{slice_text}"
    if finding.kind == EXCHANGED:
        return (
            f"exchanged masks: the mask of {finding.partner} fits this image better, and the mask of this "
            f"image fits {finding.partner} better"
        )
    if finding.kind == SHIFTED:
        what = f"{finding.cls} {finding.object}" if finding.object else "the whole mask"
        return f"shifted: {what} fits if it is moved by {', '.join(f'{step:+d}' for step in finding.move)} pixels, {at}"
    if finding.kind == WRONG_CLASS:
        return f"wrong class: {finding.cls or 'background'} {finding.object} looks like {finding.suggested}, {at}"
    if finding.kind == MISSING:
        return f"missing object: {finding.suggested} is not in the truth, {at}"
    assert finding.kind == EXTRA
    return f"extra object: {finding.cls} {finding.object} looks like background, {at}"


def _table_section(review: Review, drawn: int) -> Markup:
    rows = [
        {
            "number": str(number),
            "id": finding.id,
            "text": describe(finding),
            "score": f"{finding.score:.3f}",
            "picture": number <= drawn,
        }
        for number, finding in enumerate(review.findings[:MAX_ROWS], 1)
    ]
    return render(TEMPLATE, "findings", rows=rows, more=max(0, len(review.findings) - MAX_ROWS))


def _pictures_section(review: Review, shown: list[Finding], folder: Path) -> Markup:
    comp, oof = review.run.exp.competition, review.run.oof()
    rows = oof.rows()
    items: dict[int, dict[str, object]] = {}
    for case in dict.fromkeys(finding.id for finding in shown):  # each case is read once
        row = rows[case]
        picture, truth = load_unchanged_picture(comp, row).array, load_unchanged_mask(comp, row)
        masks = to_masks(oof.read(case), comp)
        for number, finding in enumerate(shown, 1):
            if finding.id != case:
                continue
            path = folder / f"finding_{number}.png"
            spacing = json.loads(row.spacing)
            draw_finding(path, picture, truth, masks, comp, finding.centre, finding.slice, spacing)
            items[number] = {
                "number": number,
                "picture": path,
                "alt": f"{finding.kind} in case {case}",
                "title": f"{number}. {case}",
                "text": f" · {describe(finding)} · score {finding.score:.3f} · fold {oof.fold_of[case]}",
            }
    return render(TEMPLATE, "pictures", items=[items[number] for number in sorted(items)])


def _method_section(review: Review) -> Markup:
    comp = review.run.exp.competition
    exclusive = comp.labels == "exclusive"
    names = ["background", *comp.classes] if exclusive else comp.classes
    header = ["fold", *names[:CLASSES_IN_TABLE]]
    rows = [
        [
            str(fold),
            *(
                f"{value:.3f}"
                for value in (rules[0].thresholds if exclusive else [rule.thresholds[1] for rule in rules])
            ),
        ][: len(header)]
        for fold, rules in sorted(review.rules.items())
    ]
    return render(TEMPLATE, "method", table=Table(header, rows))
