"""Write the CSV of a review: one row per finding, with two empty columns for the user's answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from competition.data.selection import EXCLUDE, WEIGHT, read_answers
from competition.review.findings import Finding
from competition.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "id", "slice", "class", "object", "kind", "score", "suggested", "row", "column", "pixels", "partner", "move",
    EXCLUDE, WEIGHT,
)  # fmt: skip


def write_review_table(findings: Sequence[Finding], path: Path) -> int:
    """Write the findings as CSV; if the file exists, copy the user's answers from it.

    Args:
        findings: the findings, in the order of the rows.
        path: the CSV. If the file exists, the answers for each case move to the first row of the case. Cases with
            answers, but without a finding, get a row at the end.

    Returns:
        The number of cases with answers in the existing file.

    Raises:
        MaskfoldError: the existing file is not the CSV of a review, or the file cannot be written.
    """
    import pandas as pd

    answers = read_answers(path) if path.exists() else {}
    rows, left = [], dict(answers)
    for finding in findings:
        answer = left.pop(finding.id, ("", ""))
        rows.append([*_cells(finding), *answer])
    for case, answer in left.items():
        rows.append([case, *[""] * (len(COLUMNS) - 3), *answer])
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    write_table(table, path)
    return len(answers)


def _cells(finding: Finding) -> list[str]:
    return [
        finding.id,
        "" if finding.slice is None else str(finding.slice),
        finding.cls,
        str(finding.object or ""),
        finding.kind,
        f"{finding.score:.4f}",
        finding.suggested,
        str(finding.centre[0]),
        str(finding.centre[1]),
        str(finding.pixels),
        finding.partner,
        " ".join(map(str, finding.move)),
    ]
