"""Cases that are left out, and why."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)


class Skipped:
    """Collects bad cases under `on_bad_case: skip`, and stops at the first under `stop`.

    Attributes:
        reasons: what is wrong, by id.
    """

    def __init__(self, comp: Competition) -> None:
        self.allowed = comp.on_bad_case == "skip"
        self.reasons: dict[str, str] = {}

    def add(self, case_id: str, error: MaskfoldError) -> None:
        """Raises:
        MaskfoldError: the error, unless the competition says that bad cases are left out.
        """
        if not self.allowed:
            raise error
        self.reasons.setdefault(case_id, error.wrong)


def told(table: pandas.DataFrame) -> pandas.DataFrame:
    """The case table, after a warning for each case that it left out: where nothing else would say so."""
    for case_id, reason in table.attrs.get("skipped", []):
        log.warning("Case %s is left out: %s", case_id, reason)
    return table
