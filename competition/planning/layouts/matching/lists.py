"""Divide the cases by the host's lists, such as `train.txt` and `test.txt`, or a table's column `split`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from competition.data.readers import strip_extension
from competition.errors import MaskfoldError
from competition.planning.folder import HostFolder
from competition.planning.layout import Layout
from competition.planning.layouts.matching.held_out import test_ids
from competition.planning.words import MASK_WORDS, Split, has_word, split_of, words
from competition.tables import read_csv
from competition.text import format_count, is_or_are, join_names, name_some

MIN_KNOWN = 0.8  # share of the lines of a list that name a case
MAX_BYTES = 2**24
LISTS = (".txt", ".lst")
WHOLE = words("trainval train_val train-val")  # lists of training and validation cases together
COLUMNS = words("split set subset partition fold_type")
LABELS = words("1 0 -1")  # in `ImageSets/Main`, whether an image has an object of a class
Places = dict[str, list[int]]  # id -> numbers of the lines that name it
Lists = dict[Split, dict[str, Places]]  # split -> path -> ids


def apply_lists(layout: Layout) -> Layout:
    """Use only the training cases that the host's lists name, and read the cases of a test list as test cases.

    Cases of a validation list are read as training cases, because each fold has its own validation cases. A case that
    the lists name for both training and test is a training case only. A remark states the lines that name this case.
    """
    if layout.masks is None:
        return layout
    known = {strip_extension(case_id): case_id for case_id in (*layout.ids, *layout.unlabelled)}
    known |= {case_id: case_id for case_id in (*layout.ids, *layout.unlabelled)}
    lists = _text_lists(layout.folder, known) or _table_lists(layout.folder, known)
    if not lists:
        return layout
    # without a training list, all cases that are not for test are training cases
    own = _ids_of(lists, "train") | _ids_of(lists, "val") if "train" in lists else set()
    test = _ids_of(lists, "test") - test_ids(layout)  # equal names in a test folder are other images
    named = " and ".join(dict.fromkeys(next(iter(by_path)) for by_path in lists.values()))
    if own & test:
        layout = layout.with_remarks(_overlap_remark(lists, sorted(own & test)))
        test -= own
    kept = [case_id for case_id in layout.ids if (case_id in own if own else case_id not in test)]
    if not kept:
        return layout
    if len(kept) < len(layout.ids):
        reason = f"the cases with a mask that are for training according to {named}"
        count = format_count(len(layout.ids) - len(kept), "case")
        remark = f"{count} with a mask: left out of training, according to {named}"
        layout = layout.with_cases(kept, reason).with_remarks(remark)
    unlabelled = tuple(case_id for case_id in layout.unlabelled if (case_id in own or not own) and case_id not in test)
    layout = replace(layout, unlabelled=unlabelled)
    if test and layout.test is None:
        listed = tuple(sorted(test))
        reason = f"the cases that {next(iter(lists['test']))} lists for the test"
        reasons = layout.reasons | {"test.images": "the same folder", "test.cases": reason}
        return replace(layout, test=layout.images, test_listed=listed, reasons=reasons)
    return layout


def _ids_of(lists: Lists, split: Split) -> set[str]:
    return {case_id for places in lists.get(split, {}).values() for case_id in places}


def _overlap_remark(lists: Lists, ids: Sequence[str]) -> str:
    """Return a remark on cases that the lists name for both training and test, with the lines that name them."""
    paths = list(dict.fromkeys(path for by_path in lists.values() for path in by_path))

    def lines(case_id: str) -> str:
        numbers = {
            path: sorted(line for by_path in lists.values() for line in by_path.get(path, {}).get(case_id, ()))
            for path in paths
        }
        texts = {
            path: f"line{'s' if len(own) > 1 else ''} {join_names(list(map(str, own)))}"
            for path, own in numbers.items()
            if own
        }
        return ", ".join(text if len(paths) == 1 else f"{text} of {path}" for path, text in texts.items())

    places = name_some([f"{case_id} ({lines(case_id)})" for case_id in ids])
    where, files = (paths[0], "table") if len(paths) == 1 else ("the host's lists", "lists")
    return (
        f"{format_count(len(ids), 'case')} {is_or_are(len(ids))} in both the training and the test set of {where}, and "
        f"{is_or_are(len(ids))} used for training only: {places}. Correct the {files} and run init again"
    )


def _text_lists(host: HostFolder, known: Mapping[str, str]) -> Lists:
    """Return the case ids in text files that are named after splits, such as `train.txt`, by split.

    Only the files of one folder are used: preferably a folder whose path contains a word for masks, otherwise the
    folder nearest to the root. Folders whose text files contain no case id are skipped.

    Args:
        host: the scanned folder.
        known: case id for each name by which a list may refer to a case.
    """
    by_folder: dict[str, list[tuple[str, Split]]] = {}
    for path in host.files:
        folder, _, name = path.rpartition("/")
        stem, dot, extension = name.rpartition(".")
        split: Split = "train" if stem.casefold() in WHOLE else split_of(stem)
        if f"{dot}{extension}".lower() in LISTS and split:
            by_folder.setdefault(folder, []).append((path, split))
    folders = sorted(by_folder, key=lambda folder: (not has_word(folder, MASK_WORDS), folder.count("/"), folder))
    for folder in folders:
        found: Lists = {}
        for path, split in by_folder[folder]:
            ids = _ids_of_lines(host.root / path, known)
            if ids:
                found.setdefault(split, {})[path] = ids
        if found:
            return found
    return {}


def _ids_of_lines(path: Path, known: Mapping[str, str]) -> Places:
    """Return the case ids in a text file with one id per line, each with the numbers of its lines.

    Return an empty dictionary for any other file.

    Args:
        path: the text file.
        known: case id for each name by which the file may refer to a case.
    """
    if path.stat().st_size > MAX_BYTES:
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return {}
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    if any(line.split()[-1] in LABELS and len(line.split()) > 1 for line in lines.values()):
        return {}
    ids: Places = {}
    for number, line in lines.items():
        case_id = known.get(line) or known.get(_name(line)) or known.get(_name(line.replace(",", " ").split()[0]))
        if case_id is not None:
            ids.setdefault(case_id, []).append(number)
    return ids if lines and len(ids) >= MIN_KNOWN * len(lines) else {}


def _name(text: str) -> str:
    """Return the name in a path, without folders and extension."""
    return strip_extension(text.rpartition("/")[2])


def _table_lists(host: HostFolder, known: Mapping[str, str]) -> Lists:
    """Return the case ids by split, from a table with a column of ids and a column such as `split`.

    The second column must have the name of a split in every row. Return an empty dictionary if no table has both.

    Args:
        host: the scanned folder.
        known: case id for each name by which the table may refer to a case.
    """
    for path in host.tables:
        if (host.root / path).stat().st_size > MAX_BYTES:
            continue
        try:
            table = read_csv(host.root / path, {})
        except MaskfoldError:
            continue
        for column in table.columns:
            splits: Sequence[Split] = [split_of(value) for value in table[column]]
            if str(column).strip().casefold() not in COLUMNS or not splits or "" in splits:
                continue
            for other in table.columns:
                ids = [known.get(value) or known.get(_name(value)) for value in table[other]]
                if other != column and sum(case_id is not None for case_id in ids) >= MIN_KNOWN * len(ids):
                    found: Lists = {}
                    for line, case_id, split in zip(table.index.tolist(), ids, splits, strict=True):
                        if case_id is not None:
                            found.setdefault(split, {}).setdefault(path, {}).setdefault(case_id, []).append(line)
                    return found
    return {}
