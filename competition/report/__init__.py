"""HTML pages of runs, studies, comparisons, ledgers and data explorations.

Example:
    >>> write_report(run, run.folder / "report.html")  # doctest: +SKIP
"""

from competition.report.run import write_report
from competition.report.study import write_study_page, write_study_report

__all__ = ["write_report", "write_study_page", "write_study_report"]
