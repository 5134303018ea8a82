"""The review finds planted faults of each kind before the ordinary errors of a network."""

from __future__ import annotations

from competition.review.findings import EXCHANGED
from competition.review.search import review_run
from tests.review.conftest import PlantedRun


def test_the_first_ten_findings_hold_nine_of_ten_planted_faults(planted: PlantedRun) -> None:
    review = review_run(planted.run)
    first = review.findings[:10]
    right = {finding.id for finding in first if planted.planted.get(finding.id) == finding.kind}
    assert len(planted.planted) == 10 and len(right) >= 9, [(one.id, one.kind, one.score) for one in first]
    assert all(0 <= finding.score <= 1 for finding in review.findings)
    pair = {finding.id: finding.partner for finding in first if finding.kind == EXCHANGED}
    assert len(pair) == 2 and all(pair[partner] == case for case, partner in pair.items())
