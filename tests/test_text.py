"""Counts in messages agree with their verbs and nouns."""

import pytest

from competition.text import same_problem


@pytest.mark.parametrize(
    ("more", "expected"),
    [(0, ""), (1, " 1 more case has the same problem."), (1200, " 1,200 more cases have the same problem.")],
)
def test_further_items_with_the_same_problem(more: int, expected: str) -> None:
    assert same_problem(more, "case") == expected
