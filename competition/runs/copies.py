"""Find copies of one image that have different case ids; put them into the same fold, or tell the user about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from competition.context import Context
from competition.data.duplicates import describe_common_look, find_equal_images, find_similar_images, is_common_look
from competition.data.splits import split
from competition.runs.run import FOLDS_FILE, Run
from competition.text import format_count, is_or_are, join_names

if TYPE_CHECKING:
    import pandas as pd

MAX_NOTES = 10
# If there are no more cases than this, and their arrays have no more bytes than this, near-duplicates are searched even
# if the YAML does not ask for it.
CHEAP_CASES, CHEAP_BYTES = 500, 2**26
EQUAL, SIMILAR = "have the same pixels in different files", "look the same (near-duplicates)"


def keep_copies_together(run: Run, prepared: Mapping[str, Path], context: Context = Context()) -> Run:
    """Put all copies of an image into the same fold, and list the copies in notes for the user.

    Copies are images with equal pixels. If `folds.duplicates` is `near`, near-duplicates also count as copies.
    But if most of the cases look alike, near-duplicates among them do not count, and a note tells the user so.

    If the run already has folds, from an earlier command or from `folds.file`, these folds are not changed. The notes
    then list copies that are in different folds.

    Args:
        run: the run, with all its cases.
        prepared: folder of each preprocessed case, by id.
        context: context whose `say` receives the notes.

    Returns:
        The run with new folds, or `run` itself if its folds did not change.

    Raises:
        MaskfoldError: a preprocessed case is damaged, or too few groups are left for the folds.
    """
    started, near = (run.folder / FOLDS_FILE).exists(), run.exp.folds.duplicates == "near"
    has_own_folds = started or run.exp.folds.scheme == "file"
    all_equal = find_equal_images(prepared)
    equal = in_several_groups(all_equal, run.folds)
    is_cheap = len(prepared) <= CHEAP_CASES and _bytes(prepared) <= CHEAP_BYTES
    similar = find_similar_images(prepared) if not started and (near or is_cheap) else []
    similar, common = _without_common_look(in_several_groups(similar, run.folds), all_equal, len(prepared))
    joined = [*equal, *(similar if near else [])]
    fold_of = run.fold_of()
    if joined and not has_own_folds:
        exp = run.exp
        folds = split(run.cases, exp.competition, exp.folds, exp.seeds[0], joined)
        folds.attrs.update(run.folds.attrs)
        run = replace(run, folds=folds)
        fold_of = run.fold_of()
    _say(context, _notes(equal, EQUAL, fold_of, _advice(run, started, EQUAL)))
    others = similar if near else in_several_groups(similar, run.folds)
    rest = [ids for ids in others if not any(set(ids) <= set(same) for same in equal)]
    _say(context, _notes(rest, SIMILAR, fold_of, _advice(run, started, SIMILAR)))
    for ids in common:
        text = describe_common_look(len(ids), len(prepared), run.exp.competition.dimensions)
        context.say(f"note: {text}{', and folds.duplicates=near does not join these cases' if near else ''}")
    return run


def _without_common_look(
    similar: Sequence[list[str]], equal: Sequence[list[str]], total: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Separate sets of similar cases that may be copies from sets that are too large to be copies.

    A set is too large if it contains most of all cases: if most cases look alike, likeness is no sign of copies.

    Args:
        similar: sets of case ids.
        equal: sets of case ids with equal pixels. Each of these sets counts as one case, because equal images are known
            to be copies.
        total: number of all cases.

    Returns:
        The sets whose cases may be copies; and the sets that are too large.
    """
    copy = {case for ids in equal for case in ids[1:]}
    kept: list[list[str]] = []
    common: list[list[str]] = []
    for ids in similar:
        is_common = is_common_look(sum(case not in copy for case in ids), total - len(copy))
        (common if is_common else kept).append(ids)
    return kept, common


def in_several_groups(sets: Sequence[list[str]], folds: pd.DataFrame) -> list[list[str]]:
    """Return those sets of case ids whose cases belong to more than one group.

    Args:
        sets: sets of case ids.
        folds: the run's table of folds. Its column group has the group of each case.
    """
    group_of = dict(zip(folds["id"], folds["group"], strict=True))
    return [ids for ids in sets if len({group_of[case] for case in ids}) > 1]


def _bytes(prepared: Mapping[str, Path]) -> int:
    return sum((folder / "image.npy").stat().st_size for folder in prepared.values())


def _advice(run: Run, started: bool, what: str) -> str:
    """Return advice to the user about copies that are in different folds.

    Args:
        run: the run.
        started: whether an earlier command has started the run.
        what: kind of the copies, `EQUAL` or `SIMILAR`.
    """
    if run.exp.folds.scheme == "file":
        return "put these cases into the same fold in folds.file"
    if what == SIMILAR and run.exp.folds.duplicates == "exact":
        return "set folds.duplicates=near, which keeps these cases in one fold"
    started_advice = "start another run with --new, which keeps these cases in one fold"
    return started_advice if started else "remove all but one of these cases"


def _notes(sets: Sequence[list[str]], what: str, fold_of: Mapping[str, int], advice: str) -> Iterator[str]:
    for ids in sets:
        names = join_names(ids) if len(ids) <= 8 else f"{', '.join(ids[:8])} and {len(ids) - 8} more"
        if len({fold_of[case] for case in ids}) == 1:
            yield f"the cases {names} {what}, so they are kept in the same fold"
        else:
            yield (
                f"the cases {names} {what}, but are in several folds, which makes their scores optimistic. To "
                f"avoid this: {advice}"
            )


def _say(context: Context, notes: Iterator[str]) -> None:
    lines = list(notes)
    for line in lines[:MAX_NOTES]:
        context.say(f"note: {line}")
    more = len(lines) - MAX_NOTES
    if more > 0:
        context.say(
            f"note: {format_count(more, 'more set')} of cases with equal or similar images {is_or_are(more)} not listed"
        )
