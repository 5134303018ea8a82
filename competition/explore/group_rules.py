"""Guess which cases belong to one patient, from patient numbers and repeated prefixes in the ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date

BEGINNINGS = (
    r"^(.+)[_-][^_-]+$",  # the id without its last part
    r"^([A-Za-z]*[_-]?[0-9]+)[_-].+$",  # the id up to its first number
)
COLLECTION_WORDS = r"site|cent(?:er|re)|exp|experiment|batch|plate|fold|part|set|cohort|study|year"
# A beginning such as `site3`, `exp2` or a year, which several patients have in common
COLLECTION = re.compile(rf"(?i)(?:{COLLECTION_WORDS})[_-]?\d+|(?:19|20)\d\d")
PERSON_WORDS = r"patient|pat|pt|pid|subject|subj|sub|person|participant|volunteer|donor|animal|mouse"
# A patient's number anywhere in an id, with the site before it; `p` alone may also mean a page or a position
PERSON = re.compile(
    rf"(?i)(?:^|[_\-. ])(?:(?P<site>{COLLECTION_WORDS})[_-]?\d+[_\-. ])?(?P<word>{PERSON_WORDS}|p(?=\d))[_-]?\d+"
    r"(?![A-Za-z0-9])"
)
SUBJECT = r"^((?:sub|subj|subject|patient|pat)[_-]?[A-Za-z0-9]+)[_-].+$"  # `sub-CC0016_ses-1`
TILE = r"^([^_]+)_(?:[A-Za-z]{0,3}\d+_)+[A-Za-z]{0,3}\d+$"  # `M-33-20-D_0_3`, `scene-4_r12_c3`
MIN_GROUPS, MAX_GROUP_SHARE, MIN_REPEATED = 3, 0.8, 0.5  # groups; groups per case; share of cases in repeated groups

# Dates, with the places of year, month and day; 20190301, 2019-03-01, 31-12-2019, 12/31/2019, 31.12.19
_MARK = r"[_.\- ]"
_DATES = (
    (rf"(?P<y>(?:19|20)\d\d)(?P<m>{_MARK}?)(?P<a>\d\d)(?P=m)(?P<b>\d\d)(?:T\d{{4,6}})?", 0),
    (rf"(?P<a>\d\d)(?P<m>{_MARK}?)(?P<b>\d\d)(?P=m)(?P<y>(?:19|20)\d\d)", 0),
    (rf"(?P<a>\d\d)(?P<m>{_MARK})(?P<b>\d\d)(?P=m)(?P<y>\d\d)", 2000),
)
DATES = [(re.compile(rf"(?<!\d){text}(?!\d)"), century) for text, century in _DATES]
MONTH = re.compile(r"(?:19|20)\d\d[_.-](?:0[1-9]|1[0-2])")  # 2019-03
SHORT_ORDERS = ("ymd", "dmy", "mdy")  # 190301, 010319, 030119
MAX_SHORT_YEAR = 50  # a higher number is no year of the 2000s

Rule = tuple[str, Counter[str]]  # a regular expression, and the number of ids in each group


def guess_group_rule(ids: Sequence[str]) -> Rule | None:
    """Return a regular expression that groups the ids by patient, and the number of ids in each group.

    If all ids contain the number of a patient, as `scan_PAT012_week3` does, the patient is the group. Otherwise, the
    group is a repeated prefix of the ids. If several prefixes repeat, the prefix that gives the fewest groups is used:
    if `patient1_view1_ED` were grouped by patient and view, a patient could be in two folds. A prefix that names a
    collection (`site1`, `2007`) or a date is used only if no other prefix repeats. If no prefix repeats, ids such as
    `sub-CC0016_ses-1` are grouped by subject; for other ids, return None.
    """
    found: list[Rule] = []
    for rule in BEGINNINGS:
        matches = [match for case_id in ids if (match := re.match(rule, case_id))]
        counts = Counter(match[1] for match in matches)
        is_whole = are_dates(list(counts)) or not _cut_dates(matches)
        if ids and len(matches) == len(ids) and _repeat(counts) and is_whole:
            found.append((rule, counts))
    found += _by_tile(ids)
    person = _by_person(ids)
    if person is not None:  # the simplest expression of the same groups
        return next((rule for rule in found if _divide_equally(rule[0], person[0], ids)), person)
    individuals = [(rule, counts) for rule, counts in found if not _are_shared(counts)]
    if not found:
        return _by_subject(ids)
    return min(individuals or found[:1], key=lambda item: len(item[1]))


def _divide_equally(rule: str, other: str, ids: Sequence[str]) -> bool:
    """Return whether two regular expressions that match all ids divide them into the same groups."""
    pairs = {tuple(re.search(text, case_id)[1] for text in (rule, other)) for case_id in ids}  # type: ignore[index]
    return all(len({pair[place] for pair in pairs}) == len(pairs) for place in (0, 1))


def kind_of(names: Iterable[str]) -> str:
    """Guess whether the names of groups stand for something other than patients.

    Return `dates` if most of the names are dates. Return `kinds of cases` if most of them are years, collections
    (`site3`) or names without a digit (`Abyssinian`). Otherwise, return an empty text.
    """
    names = list(names)
    if are_dates(names):
        return "dates"
    kinds = sum(COLLECTION.fullmatch(name) is not None or not any(map(str.isdigit, name)) for name in names)
    return "kinds of cases" if kinds > 0.5 * len(names) else ""


def are_dates(names: Sequence[str]) -> bool:
    """Return whether most names have a date and no other number, or all are short dates (190301).

    The date may begin with the year (20190301, 2019-03-01, 2019-03), the day (31-12-2019) or the month. Numbers of six
    digits may also be patient numbers, so a single number that is no date means that none of them is a date.
    """
    long = sum(MONTH.fullmatch(name) is not None or _is_dated(name) for name in names)
    short = (all(_is_short_date(name, order) for name in names) for order in SHORT_ORDERS)
    return long > 0.5 * len(names) or any(short)


def _is_short_date(name: str, order: str) -> bool:
    """Return whether a name is a date of six digits, in an order of year, month and day such as `ymd`."""
    if not re.fullmatch(r"\d{6}", name):
        return False
    numbers = {letter: int(name[2 * place : 2 * place + 2]) for place, letter in enumerate(order)}
    try:
        date(2000 + numbers["y"], numbers["m"], numbers["d"])
    except ValueError:
        return False
    return numbers["y"] < MAX_SHORT_YEAR


def _is_dated(name: str) -> bool:
    """Return whether a name has a date, and no other digit."""
    spans = _date_spans(name)
    rest = "".join(letter for place, letter in enumerate(name) if not any(start <= place < end for start, end in spans))
    return bool(spans) and not any(map(str.isdigit, rest))


def _date_spans(text: str) -> list[tuple[int, int]]:
    """Return the start and the end of each date in a text."""
    matches = ((match, century) for expression, century in DATES for match in expression.finditer(text))
    return [match.span() for match, century in matches if _is_date(match, century)]


def _is_date(match: re.Match[str], century: int) -> bool:
    """Return whether the numbers of a match form a date: a year, and a day and a month in either order."""
    year, one, other = century + int(match["y"]), int(match["a"]), int(match["b"])
    for month, day in ((one, other), (other, one)):
        try:
            date(year, month, day)
        except ValueError:
            continue
        return True
    return False


def _cut_dates(matches: Sequence[re.Match[str]]) -> bool:
    """Return whether most prefixes end within a date: the prefix `31` of `31-12-2019_MR1` is no patient."""
    cut = sum(any(start < match.end(1) < end for start, end in _date_spans(match.string)) for match in matches)
    return cut > 0.5 * len(matches)


def _are_shared(counts: Counter[str]) -> bool:
    """Return whether all names are collections (`site1`), or most are dates, which several patients share."""
    return all(map(COLLECTION.fullmatch, counts)) or are_dates(list(counts))


def _repeat(counts: Counter[str]) -> bool:
    """Return whether there are several groups, and enough cases share their group with another case."""
    repeated = sum(count for count in counts.values() if count > 1)
    total = counts.total()
    return MIN_GROUPS <= len(counts) <= MAX_GROUP_SHARE * total and repeated >= MIN_REPEATED * total


def _by_person(ids: Sequence[str]) -> Rule | None:
    """Return a regular expression for the patient's number in the ids, with the site before it; None if there is none.

    All ids must have a word such as `patient` with a number, and at least one of several patients must have several
    cases. Instead of a word, the ids may have the letter `p`, which may also mean a page (`book3_p1`). Such ids must
    meet more conditions: many patients have several cases, text follows the patient's number, and no number except a
    site or a date precedes it.
    """
    matches = [match for case_id in ids if (match := PERSON.search(case_id))]
    if not ids or len(matches) < len(ids):
        return None
    words, sites = ({match[name] for match in matches} for name in ("word", "site"))
    word = words.pop() if len(words) == 1 else f"(?i:{PERSON_WORDS}|p)"
    collection = str(*sites) if len(sites) == 1 else f"(?i:{COLLECTION_WORDS})"
    site = rf"{collection}[_-]?\d+[_\-. ]" if None not in sites else ""
    rule = rf"(?:^|[_\-. ])({site}{word}[_-]?\d+)(?![A-Za-z0-9])"
    groups = [match[1] if (match := re.search(rule, case_id)) else "" for case_id in ids]
    counts = Counter(groups)
    if "" in counts or len(counts) < 2 or max(counts.values()) == 1:
        return None
    if any(match["word"].casefold() == "p" for match in matches):
        is_clear = all(match.end() < len(match.string) and _has_no_number(match) for match in matches)
        return (rule, counts) if is_clear and _repeat(counts) else None
    return rule, counts


def _has_no_number(match: re.Match[str]) -> bool:
    """Return whether the text before a patient's number (and before its site, if any) has digits only in dates."""
    before = match.string[: match.start()]
    return not any(map(str.isdigit, before)) or _is_dated(before)


def _by_tile(ids: Sequence[str]) -> list[Rule]:
    """Return a list with a regular expression that groups tiles by their image; empty if the ids do not name tiles.

    In `M-33-20-D_0_3`, the tile's row and column follow the name of the image, which ends before the first `_`.
    """
    matches = [re.match(TILE, case_id) for case_id in ids]
    counts = Counter(match[1] for match in matches if match)
    is_possible = bool(ids) and all(matches) and _repeat(counts) and not _are_shared(counts) and not kind_of(counts)
    return [(TILE, counts)] if is_possible else []


def _by_subject(ids: Sequence[str]) -> Rule | None:
    """Return a regular expression for the subject in ids such as `sub-CC0016_ses-1`.

    All ids must begin with a word for a subject, and at least one of several subjects must have several ids. Otherwise,
    return None.
    """
    matches = [re.match(SUBJECT, case_id) for case_id in ids]
    counts = Counter(match[1] for match in matches if match)
    return (SUBJECT, counts) if all(matches) and len(counts) > 1 and max(counts.values()) > 1 else None
