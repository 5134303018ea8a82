"""Which files make up each case: what `competition.data.discovery` finds, also where it would stop."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.csv_table import read_csv
from competition.data.discovery import Images, find_images, find_masks
from competition.data.explore.findings import Collector, Findings
from competition.data.sources import find, find_many, is_folder_of_instances, refuse_case_twins

LINE = re.compile(r", line (\d+): ")
MOST_TRIES = 100  # rows of a table, each with a class of its own that nobody knows


def find_cases(comp: Competition, split: str, findings: Findings) -> tuple[dict[str, Images], dict[str, dict[str, Any]]]:
    """Finds the images of every case, and of the training cases the truth; lists what is wrong and goes on.

    Args:
        comp: what the host gave.
        split: train or test.
        findings: takes missing channels, masks and images, files that claim one id, rows that belong to no case.

    Returns:
        By id, as `discovery.find_images` and `discovery.find_masks` give them. A case may have images and no truth.

    Raises:
        MaskfoldError: there is nothing to explore: no folder, or no image fits the pattern (status 2).
    """
    try:
        return _found(comp, [comp], split, findings, set())
    except MaskfoldError as error:
        if error.status == 2:
            raise
        stopped = error
    bad = _claimed_twice(comp, split, findings)
    twins = _twins(comp, split, findings)
    if not bad and not twins:
        raise stopped
    with TemporaryDirectory() as folder:
        roots = [Path(folder) / str(number) for number in range(1 + max(map(len, twins), default=0))]
        _shadow(comp, split, bad, roots[0])
        for place, root in enumerate(roots[1:]):
            _shadow(comp, split, bad | {case_id for ids in twins for at, case_id in enumerate(ids) if at != place}, root)
        return _found(comp, [comp.model_copy(update={"root": root}) for root in roots], split, findings, bad)


def _found(comp: Competition, names: Sequence[Competition], split: str, findings: Findings,
           bad: set[str]) -> tuple[dict[str, Images], dict[str, dict[str, Any]]]:
    """What discovery finds.

    `names` may have other roots, since discovery looks at the names of files only: the first with all files; where there
    are more, ids that differ in capitals only are each in another of these.
    """
    collector = Collector(comp)
    images = _images(names[1:] or names, split, collector)
    masks: dict[str, dict[str, Any]] = {}
    if split == "train":
        try:
            masks = find_masks(names[0], images, collector) if comp.train.rle is None else _rows(comp, images, collector)
        except MaskfoldError as error:
            if comp.train.rle is None and error.status != 2:
                raise  # two files claim one id
            findings.fault("table" if comp.train.rle else "files", split, "", error)
    for tell, errors in ((findings.fault, collector.stops), (findings.bad_case, collector.errors)):
        for case_id, refused in errors:
            table = comp.train.rle is not None and LINE.search(refused.wrong)
            if case_id not in bad:  # listed already; its rows have no image only because it was left out here
                tell("table" if table else "files", split, case_id, refused)
    return images, masks


def _images(names: Sequence[Competition], split: str, collector: Collector) -> dict[str, Images]:
    """The images of every case, of all roots together."""
    images = find_images(names[0], split, collector)
    for other in names[1:]:
        try:
            images |= find_images(other, split, collector)
        except MaskfoldError as error:  # a twin without one of the channels that nobody else has here
            if error.status != 2:
                raise
    return {case_id: images[case_id] for case_id in sorted(images)}


def _patterns(comp: Competition, split: str) -> Iterator[tuple[str, str]]:
    """Key and pattern of each kind of file, as discovery calls them."""
    section = comp.train if split == "train" else comp.test
    images = section.images if section is not None else {}
    masks = comp.train.masks if split == "train" and comp.train.masks is not None else {}
    for key, patterns in ((f"{split}.images", images), ("train.masks", masks)):
        if isinstance(patterns, str):
            yield key, patterns
        else:
            several = len(patterns) > 1 or key == "train.masks"
            yield from ((f"{key}.{name}" if several else key, pattern) for name, pattern in patterns.items())


def _claimed_twice(comp: Competition, split: str, findings: Findings) -> set[str]:
    """Ids that two files claim: `cv` cannot tell which is meant."""
    root = Path(comp.root)
    bad: set[str] = set()
    for key, pattern in _patterns(comp, split):
        every = _every(root, pattern, key)
        for case_id, paths in every.items():
            if len(paths) > 1 and not _many(key, pattern):
                with TemporaryDirectory() as folder:
                    _touch(Path(folder), paths)
                    bad |= _refused(partial(find, Path(folder), pattern, key), [case_id], split, findings)
    return bad


def _twins(comp: Competition, split: str, findings: Findings) -> list[list[str]]:
    """Sets of ids that differ in capitals only: `cv` stops at them, and each can be measured."""
    keys = [(key, pattern) for key, pattern in _patterns(comp, split) if key.startswith(f"{split}.images")]
    alike: dict[str, set[str]] = {}
    for key, pattern in keys:
        for case_id in _every(Path(comp.root), pattern, key):
            alike.setdefault(case_id.casefold(), set()).add(case_id)
    sets = [sorted(ids) for ids in alike.values()]
    return [ids for ids in sets if _refused(partial(refuse_case_twins, ids, f"{split}.images"), ids, split, findings)]


def _many(key: str, pattern: str) -> bool:
    """Whether many files of one case are meant; a `*` in an image's name means nothing of the kind."""
    return key.startswith("train.masks") and is_folder_of_instances(pattern)


def _refused(look: Callable[[], object], ids: list[str], split: str, findings: Findings) -> set[str]:
    """The ids where looking raises, which is listed."""
    try:
        look()
    except MaskfoldError as error:
        findings.fault("files", split, ", ".join(ids), error)
        return set(ids)
    return set()


def _every(root: Path, pattern: str, key: str) -> dict[str, list[str]]:
    """All files of each id; nothing where the pattern fits none, which is listed by discovery."""
    try:
        return find_many(root, pattern, key)
    except MaskfoldError:
        return {}


def _shadow(comp: Competition, split: str, without: set[str], folder: Path) -> None:
    """Fills a folder with empty files that have the names of all files, but for some ids'."""
    for key, pattern in _patterns(comp, split):
        for case_id, paths in _every(Path(comp.root), pattern, key).items():
            if case_id in without:
                continue
            _touch(folder, paths)
            above = pattern.replace("{id}", case_id).rpartition("/")[0]
            if not paths and "*" not in above:  # a folder of instances with nothing in it
                (folder / above).mkdir(parents=True, exist_ok=True)


def _touch(folder: Path, paths: list[str]) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


def _rows(comp: Competition, images: dict[str, Images], collector: Collector) -> dict[str, dict[str, Any]]:
    """The rows of each case; a row at which discovery stops is listed, and blanked in a copy of the table.

    Raises:
        MaskfoldError: something is wrong with the table as a whole.
    """
    path, stopped = Path(comp.root) / str(comp.train.rle), None
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        now, table = comp, None
        for _ in range(MOST_TRIES):
            attempt = Collector(comp)
            try:
                found = find_masks(now, images, attempt)
            except MaskfoldError as error:
                stopped = _named(error, copy, path)
                if error.status == 2 or not LINE.search(error.wrong):
                    raise stopped from error
                table = _whole(path) if table is None else table
                _blank(comp, table, stopped, collector)
                table.to_csv(copy, index=False)
                now = comp.model_copy(update={"train": comp.train.model_copy(update={"rle": str(copy)})})
            else:
                collector.errors += [(case_id, _named(refused, copy, path)) for case_id, refused in attempt.errors]
                collector.reasons |= attempt.reasons
                return {case_id: {**masks, "table": comp.train.rle} for case_id, masks in found.items()}
    raise stopped or ValueError("a table is tried at least once")


def _whole(path: Path) -> Any:
    """The table with its blank lines, so that every row keeps its number in a copy."""
    table = read_csv(path, {})
    return table.reindex(range(2, int(table.index.max()) + 1), fill_value="")


def _blank(comp: Competition, table: Any, error: MaskfoldError, collector: Collector) -> None:
    """Empties the row that an error names, and all with the same class; lists each of them."""
    found = LINE.search(error.wrong)
    line, column = int(found.group(1)) if found else 0, comp.train.columns.cls
    lines = [line]
    if column in table.columns:
        lines = table.index[table[column] == table.at[line, column]].tolist()
    for one in lines:
        text = error.wrong.replace(f", line {line}: ", f", line {one}: ", 1)
        name = str(table.at[one, comp.train.columns.id]) if comp.train.columns.id in table.columns else ""
        collector.stops.append((name, MaskfoldError(text, error.cure)))
    table.loc[lines] = ""


def _named(error: MaskfoldError, copy: Path, path: Path) -> MaskfoldError:
    """The error with the table's own name."""
    return MaskfoldError(error.wrong.replace(str(copy), str(path)), error.cure, status=error.status)
