"""One page to look at: what a run, or a study, has found.

from competition.report import write_report
write_report(run, run.folder / "report.html")
"""

from competition.report.run import write_report
from competition.report.study import write_study_page, write_study_report

__all__ = ["write_report", "write_study_page", "write_study_report"]
