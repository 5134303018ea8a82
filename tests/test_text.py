"""Counts in messages agree with their verbs and nouns."""

import pytest

from competition.text import format_amount, format_count, same_problem


@pytest.mark.parametrize(
    ("more", "expected"),
    [(0, ""), (1, " 1 more case has the same problem."), (1200, " 1,200 more cases have the same problem.")],
)
def test_further_items_with_the_same_problem(more: int, expected: str) -> None:
    assert same_problem(more, "case") == expected


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (1, "case", "1 case"),
        (0, "case", "0 cases"),
        (1200, "pixel", "1,200 pixels"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (3, "patch", "3 patches"),
        (2, "study", "2 studies"),
        (2, "day", "2 days"),
    ],
)
def test_counts(count: int, noun: str, expected: str) -> None:
    assert format_count(count, noun) == expected


@pytest.mark.parametrize(
    ("amount", "spec", "expected"),
    [(1.0, "g", "1 minute"), (0.5, "g", "0.5 minutes"), (1.2, ".0f", "1 minute"), (1.0, ".1f", "1.0 minutes")],
)
def test_amounts_are_singular_if_they_are_shown_as_1(amount: float, spec: str, expected: str) -> None:
    assert format_amount(amount, "minute", spec) == expected
