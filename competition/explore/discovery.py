"""Find the files of each case with `competition.data.case_files`; record each error, and continue the search."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from competition.config.competition import Competition
from competition.data.case_files import ImagesByChannel, find_images, find_masks
from competition.data.patterns import (
    check_ids_differ_by_more_than_case,
    match_cases,
    match_files,
    matches_many_files,
    unmatched_images,
)
from competition.data.rle.tables import find_blank_rows
from competition.errors import MaskfoldError
from competition.explore.types import ErrorCollector, Findings
from competition.io import temporary_folder
from competition.tables import read_csv
from competition.text import fold_name, format_count, has_or_have

LINE_PATTERN = re.compile(r", line (\d+): ")
SCRATCH = Path(gettempdir()) / "maskfold-explore"  # base of the names of temporary folders
MAX_ATTEMPTS = 100  # maximum number of attempts to read a table; each attempt removes one unknown class or bad row


def find_cases(
    comp: Competition, split: str, findings: Findings
) -> tuple[dict[str, ImagesByChannel], dict[str, dict[str, Any]]]:
    """Find the images of all cases and the truth of training cases; add errors to `findings` and continue.

    The search uses only the names of the files. If the search fails because of duplicate ids, it is repeated without
    these ids, in temporary folders with empty files of the same names. Ids that differ only in upper and lower case
    then get separate temporary folders.

    Args:
        comp: the competition.
        split: train or test.
        findings: receives missing channels, masks and images, duplicate ids, and rows without a case.

    Returns:
        Images and masks by id, from `find_images` and `find_masks` of `competition.data.case_files`. A case may have
        no truth.

    Raises:
        MaskfoldError: the root folder of the competition does not exist, or no image matches the pattern (exit status
            2).
    """
    if unmatched := unmatched_images(comp, split):
        findings.add_remark(
            "files",
            split,
            "",
            f"The folder of {split}.images has {format_count(len(unmatched), 'image file')} that no pattern matches, "
            f"such as {unmatched[0]}.",
            f"If such a file is a case, change the pattern {split}.images.",
        )
    try:
        return _discover(comp, [comp], split, findings, set())
    except MaskfoldError as error:
        if error.status == 2:
            raise
        discovery_error = error
    duplicate_ids = _find_duplicate_ids(comp, split, findings)
    case_twins = _find_case_twins(comp, split, findings)
    if not duplicate_ids and not case_twins:
        raise discovery_error
    with temporary_folder(SCRATCH) as folder:
        roots = [folder / str(number) for number in range(1 + max(map(len, case_twins), default=0))]
        _mirror_names(comp, split, duplicate_ids, roots[0])
        for kept, root in enumerate(roots[1:]):
            excluded = {case_id for ids in case_twins for index, case_id in enumerate(ids) if index != kept}
            _mirror_names(comp, split, duplicate_ids | excluded, root)
        copies = [comp.model_copy(update={"root": root}) for root in roots]
        try:
            return _discover(comp, copies, split, findings, duplicate_ids)
        except MaskfoldError as error:
            if error.status != 2 or not any(finding.severity == "fault" for finding in findings.all):
                raise
            return {}, {}  # all cases have duplicate ids, which are recorded already, so no case is left to measure


def _discover(
    comp: Competition, copies: Sequence[Competition], split: str, findings: Findings, duplicate_ids: set[str]
) -> tuple[dict[str, ImagesByChannel], dict[str, dict[str, Any]]]:
    """Find the images and masks of all cases; record errors as findings.

    Args:
        comp: the competition.
        copies: the competition itself, or copies of it on temporary folders. The first copy has all files. Each
            further copy has only one of several ids that differ in upper and lower case.
        split: train or test.
        findings: receives the errors.
        duplicate_ids: ids whose errors are recorded already.
    """
    collector = ErrorCollector(comp)
    images = _discover_images(copies[1:] or copies, split, collector)
    masks: dict[str, dict[str, Any]] = {}
    if split == "train":
        try:
            if comp.train.rle is None:
                masks = find_masks(copies[0], images, collector)
            else:
                masks = _read_rows(comp, images, collector)
                _find_empty_objects(comp, images, findings)
        except MaskfoldError as error:
            if comp.train.rle is None and error.status != 2:
                raise  # two files have the same id
            findings.add_fault("table" if comp.train.rle else "files", split, "", error)
    for add, errors in ((findings.add_fault, collector.fatal_errors), (findings.add_bad_case, collector.errors)):
        for case_id, case_error in errors:
            is_row = comp.train.rle is not None and LINE_PATTERN.search(case_error.message)
            # A duplicate id is recorded already. Its rows have no image only because this copy excludes the id.
            if case_id not in duplicate_ids:
                add("table" if is_row else "files", split, case_id, case_error)
    return images, masks


def _find_empty_objects(comp: Competition, images: dict[str, ImagesByChannel], findings: Findings) -> None:
    """Add a remark about table rows without a mask, if the same image also has rows with a mask.

    This is done only for competitions that score objects, because each row of their tables is an object.
    """
    if not comp.instances:
        return
    rows = find_blank_rows(comp, {case_id: next(iter(channels.values())) for case_id, channels in images.items()})
    if rows:
        first, lines = next(iter(rows.items()))
        count = sum(map(len, rows.values()))
        findings.add_remark(
            "objects",
            "train",
            ", ".join(rows),
            f"In {comp.train.rle}, {format_count(count, 'row')} {has_or_have(count)} no mask, although other rows of "
            f"the same image have a mask. An example is line {lines[0]}, id {first}.",
            "Remove these rows, or add their masks. At present, they do not count as objects.",
        )


def _discover_images(
    copies: Sequence[Competition], split: str, collector: ErrorCollector
) -> dict[str, ImagesByChannel]:
    """Find the images in each copy of the competition, and return them by case id."""
    images = find_images(copies[0], split, collector)
    for copy in copies[1:]:
        try:
            images |= find_images(copy, split, collector)
        except MaskfoldError as error:  # in this copy, no case has one of the channels
            if error.status != 2:
                raise
    return {case_id: images[case_id] for case_id in sorted(images)}


def _patterns(comp: Competition, split: str) -> Iterator[tuple[str, str]]:
    """Yield the YAML key and the pattern of the images, then those of the masks if `split` is `train`.

    This is the order in which discovery searches for files.
    """
    section = comp.train if split == "train" else comp.test
    images = section.images if section is not None else {}
    masks = comp.train.masks if split == "train" and comp.train.masks is not None else {}
    for key, patterns in ((f"{split}.images", images), ("train.masks", masks)):
        if isinstance(patterns, str):
            yield key, patterns
        else:
            is_named = len(patterns) > 1 or key == "train.masks"
            yield from ((f"{key}.{name}" if is_named else key, pattern) for name, pattern in patterns.items())


def _find_duplicate_ids(comp: Competition, split: str, findings: Findings) -> set[str]:
    """Return the ids for which one pattern matches two files; `cv` stops at such ids."""
    root = Path(comp.root)
    duplicate_ids: set[str] = set()
    for key, pattern in _patterns(comp, split):
        for case_id, paths in _all_files(root, pattern, key).items():
            if len(paths) > 1 and not _allows_many_files(key, pattern):
                with temporary_folder(SCRATCH) as folder:
                    _touch(folder, paths)
                    duplicate_ids |= _failing(partial(match_cases, folder, pattern, key), [case_id], split, findings)
    return duplicate_ids


def _find_case_twins(comp: Competition, split: str, findings: Findings) -> list[list[str]]:
    """Return sets of ids that differ only in upper and lower case, and add a fault for each set.

    `cv` stops at such ids, but each case can be measured.
    """
    keys = [(key, pattern) for key, pattern in _patterns(comp, split) if key.startswith(f"{split}.images")]
    by_folded: dict[str, set[str]] = {}
    for key, pattern in keys:
        for case_id in _all_files(Path(comp.root), pattern, key):
            by_folded.setdefault(fold_name(case_id), set()).add(case_id)
    sets = [sorted(ids) for ids in by_folded.values()]
    return [
        ids
        for ids in sets
        if _failing(partial(check_ids_differ_by_more_than_case, ids, f"{split}.images"), ids, split, findings)
    ]


def _allows_many_files(key: str, pattern: str) -> bool:
    """Return whether several files of one case may match a pattern.

    This is the case if the pattern finds masks, and its file name contains `*`.
    """
    return key.startswith("train.masks") and matches_many_files(pattern)


def _failing(check: Callable[[], object], ids: list[str], split: str, findings: Findings) -> set[str]:
    """Run a check of cases, and return the set of their ids if it raises an error, else an empty set.

    The error is added to `findings` as a fault.

    Args:
        check: function that checks the cases.
        ids: ids of the cases.
        split: train or test.
        findings: receives the fault.
    """
    try:
        check()
    except MaskfoldError as error:
        findings.add_fault("files", split, ", ".join(ids), error)
        return set(ids)
    return set()


def _all_files(root: Path, pattern: str, key: str) -> dict[str, list[str]]:
    """Return, by case id, all files that a pattern matches.

    If no file matches, return an empty dictionary instead of raising an error, because `find_cases` reports it.
    """
    try:
        return match_files(root, pattern, key)
    except MaskfoldError:
        return {}


def _mirror_names(comp: Competition, split: str, excluded: set[str], folder: Path) -> None:
    """Create empty files in `folder` with the names of the competition's files, except files of excluded ids."""
    for key, pattern in _patterns(comp, split):
        for case_id, paths in _all_files(Path(comp.root), pattern, key).items():
            if case_id in excluded:
                continue
            _touch(folder, paths)
            parent = pattern.replace("{id}", case_id).rpartition("/")[0]
            if not paths and "*" not in parent:  # the folder of instances is empty
                (folder / parent).mkdir(parents=True, exist_ok=True)


def _touch(folder: Path, paths: list[str]) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


def _read_rows(
    comp: Competition, images: dict[str, ImagesByChannel], collector: ErrorCollector
) -> dict[str, dict[str, Any]]:
    """Read the masks of each case from the table of run lengths; record each invalid row, and continue without it.

    Some invalid rows raise an error that ends the reading of the whole table. If so, record the error, blank the row in
    a temporary copy of the table, and read the copy, at most `MAX_ATTEMPTS` times in all.

    Raises:
        MaskfoldError: the whole table is invalid.
    """
    path, row_error = Path(comp.root) / str(comp.train.rle), None
    with temporary_folder(SCRATCH) as folder:
        copy = folder / path.name
        current, table = comp, None
        for _ in range(MAX_ATTEMPTS):
            attempt = ErrorCollector(comp)
            try:
                all_masks = find_masks(current, images, attempt)
            except MaskfoldError as error:
                row_error = _with_original_path(error, copy, path)
                if error.status == 2 or not LINE_PATTERN.search(error.message):
                    raise row_error from error
                table = _read_with_blank_lines(path) if table is None else table
                _blank_rows(comp, table, row_error, collector)
                table.to_csv(copy, index=False)
                current = comp.model_copy(update={"train": comp.train.model_copy(update={"rle": str(copy)})})
            else:
                collector.errors += [(case_id, _with_original_path(e, copy, path)) for case_id, e in attempt.errors]
                collector.reasons |= attempt.reasons
                return {case_id: {**masks, "table": comp.train.rle} for case_id, masks in all_masks.items()}
    raise row_error or ValueError("MAX_ATTEMPTS must be at least 1")


def _read_with_blank_lines(path: Path) -> Any:
    """Read the table with its blank lines, so that a copy of the table has the same line numbers."""
    table = read_csv(path, {})
    return table.reindex(range(2, int(table.index.max()) + 1), fill_value="")


def _blank_rows(comp: Competition, table: Any, error: MaskfoldError, collector: ErrorCollector) -> None:
    """Blank the row that an error message names, e.g. because its class is unknown; record an error for this row.

    If the table has a column of classes, do the same for all other rows with the same class.
    """
    match = LINE_PATTERN.search(error.message)
    line, column = int(match.group(1)) if match else 0, comp.train.columns.cls
    lines = [line]
    if column in table.columns:
        lines = table.index[table[column] == table.at[line, column]].tolist()
    for number in lines:
        text = error.message.replace(f", line {line}: ", f", line {number}: ", 1)
        name = str(table.at[number, comp.train.columns.id]) if comp.train.columns.id in table.columns else ""
        collector.fatal_errors.append((name, MaskfoldError(text, error.hint)))
    table.loc[lines] = ""


def _with_original_path(error: MaskfoldError, copy: Path, path: Path) -> MaskfoldError:
    """Return the error, with the path of the original table instead of the path of its copy."""
    return MaskfoldError(error.message.replace(str(copy), str(path)), error.hint, status=error.status)
