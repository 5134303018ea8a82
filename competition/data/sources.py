"""Patterns such as `imagesTr/{id}.nii.gz`, matched against the host's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest
from competition.data.readers import known, stem

PLACEHOLDER = re.compile(r"\{([^{}]*)\}|\*")
SHOWN_FROM = 5000  # files of a folder that are looked at to show what is there


@dataclass(frozen=True)
class Slice:
    """One file of a stack: the text that stood for {z}, and the path below the root."""

    z: str
    path: str


@dataclass
class Case:
    """The files that one pattern finds for one id.

    Attributes:
        paths: below the root, with forward slashes; one for a plain file.
        slices: for a pattern with {z}, in the order of z as a number.
    """

    paths: list[str] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)

    @property
    def files(self) -> str | list[str]:
        """The path, or a stack's paths in order."""
        return [one.path for one in self.slices] if self.slices else self.paths[0]


def find(root: Path, pattern: str, key: str) -> dict[str, Case]:
    """Finds one file, or one stack of slices, per id.

    `{id}` and `{z}` (digits) stand for the same text wherever they occur, in folders and in the name; `*` stands for
    anything within one name. Names that begin with a dot are passed over.

    Args:
        root: the competition's folder.
        pattern: below the root, with forward slashes.
        key: the pattern's key in the YAML, for messages.

    Returns:
        Cases by id, sorted by id.

    Raises:
        MaskfoldError: the pattern is wrong (status 2), the root is no folder, nothing matches, or two files match
            one id (and slice).
    """
    cases: dict[str, Case] = {}
    sliced = "{z}" in pattern
    for path, bound in _matches(root, pattern, key):
        case = cases.setdefault(bound["id"], Case())
        if sliced:
            case.slices.append(Slice(bound["z"], path))
        else:
            case.paths.append(path)
    if not cases:
        raise nothing_found(root, pattern, key)
    for case_id, case in cases.items():
        case.slices.sort(key=lambda one: (int(one.z), one.path))
        _refuse_doubles(case_id, case, pattern, key)
    return {case_id: cases[case_id] for case_id in sorted(cases)}


def find_many(root: Path, pattern: str, key: str) -> dict[str, list[str]]:
    """Finds any number of files per id, for a folder of instance masks such as `{id}/masks/*.png`.

    Returns:
        Sorted paths by id; an empty list for an id whose folder is there and holds no file of the pattern.

    Raises:
        MaskfoldError: as for `find`.
    """
    found: dict[str, list[str]] = {}
    for path, bound in _matches(root, pattern, key):
        found.setdefault(bound["id"], []).append(path)
    folder = pattern.rpartition("/")[0]
    if "{id}" in folder:
        for _, bound in _matches(root, folder, key, folders=True):
            found.setdefault(bound["id"], [])
    if not found:
        raise nothing_found(root, pattern, key)
    return {case_id: sorted(found[case_id]) for case_id in sorted(found)}


def is_folder_of_instances(pattern: str) -> bool:
    """Whether a pattern of masks means many files per case: a `*` in the name."""
    return "*" in pattern.rpartition("/")[2]


def refuse_case_twins(ids: list[str], key: str) -> None:
    """Refuses ids that differ in capitals only: results are kept in folders named after the id.

    Raises:
        MaskfoldError: naming the two ids.
    """
    seen: dict[str, str] = {}
    for case_id in ids:
        other = seen.setdefault(case_id.casefold(), case_id)
        if other != case_id:
            raise MaskfoldError(f"{key} finds the ids {other} and {case_id}, which differ in capitals only.",
                                "Rename one of the files; some file systems cannot tell the two apart.")


def slice_names(case_id: str, one: Slice) -> list[str]:
    """The names under which a host's table may speak of a slice, the most explicit first.

    Example:
        >>> slice_names("case1_day2", Slice("0003", "case1_day2/scans/slice_0003_266.png"))[0]
        'case1_day2_slice_0003'
    """
    name = stem(one.path.rpartition("/")[2])
    head, found, _ = name.partition(one.z)
    names = [f"{case_id}_{head}{found}", f"{case_id}_{name}", f"{case_id}_{one.z}", name]
    return list(dict.fromkeys(names))


def nothing_found(root: Path, pattern: str, key: str) -> MaskfoldError:
    """The error for a pattern without a match; shows the files that come nearest."""
    there = []
    for path in _some_files(root):
        there.append(path)
        if len(there) == SHOWN_FROM:
            break
    if not there:
        return MaskfoldError(f"{root} holds no files, so {key} `{pattern}` finds nothing.",
                             "Unpack the host's archive there, or set competition.root=/path/to/the/data.", status=2)
    near = nearest(pattern, sorted(there), count=3, cutoff=0.0)
    return MaskfoldError(f"{key} `{pattern}` finds no file below {root}; nearest are {', '.join(near)}.",
                         f"Correct {key} in the YAML, or competition.root.", status=2)


def check_root(root: Path) -> None:
    """Raises:
    MaskfoldError: the competition's root is no folder.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise MaskfoldError(f"The competition's folder {root} {what}.",
                            "Unpack the data there, or say where it is with competition.root=/path/to/the/data.",
                            status=2)


def _matches(root: Path, pattern: str, key: str, folders: bool = False) -> Iterator[tuple[str, dict[str, str]]]:
    """(path below the root, what the placeholders stand for) of each file (or folder) that fits."""
    check_root(root)
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    _refuse_pattern(pattern, parts, key)
    yield from _descend(root, "", parts, {}, folders)


def _descend(root: Path, above: str, parts: list[str], bound: dict[str, str], folders: bool,
             ) -> Iterator[tuple[str, dict[str, str]]]:
    part, rest = parts[0], parts[1:]
    for name in _names(root / above, part, bound, folders=bool(rest) or folders):
        here = f"{above}/{name}" if above else name
        fit = re.fullmatch(_expression(part, bound), name)
        now = {**bound, **(fit.groupdict() if fit else {})}
        if rest:
            yield from _descend(root, here, rest, now, folders)
        else:
            yield here, now


def _names(folder: Path, part: str, bound: dict[str, str], folders: bool) -> list[str]:
    """Names in a folder that fit one part of a pattern, sorted; where the extension is open, only what a reader knows."""
    literal = PLACEHOLDER.sub(lambda found: bound.get(found.group(1) or "*", found.group(0)), part)
    if not PLACEHOLDER.search(literal):  # nothing left to guess: no need to list the folder
        path = folder / literal
        return [literal] if (path.is_dir() if folders else path.is_file() or path.is_symlink()) else []
    expression = re.compile(_expression(part, bound))
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries
                      if expression.fullmatch(entry.name) and entry.is_dir() == folders
                      and (not entry.name.startswith(".") or part.startswith("."))
                      and (folders or not part.endswith("*") or known(entry.name)))


def _expression(part: str, bound: dict[str, str]) -> str:
    """A regular expression for one part; what is bound already must occur as it is."""
    text, last, named = "(?s)", 0, set(bound)  # a name with a line break is found too, to be refused by name
    for found in PLACEHOLDER.finditer(part):
        text += re.escape(part[last: found.start()])
        name, last = found.group(1), found.end()
        if name is None:
            text += ".*"
        elif name in bound:
            text += re.escape(bound[name])
        elif name in named:
            text += f"(?P={name})"
        else:
            text += f"(?P<{name}>{'.+' if name == 'id' else '[0-9]+'})"
            named.add(name)
    return text + re.escape(part[last:])


def _refuse_pattern(pattern: str, parts: list[str], key: str) -> None:
    """Raises `MaskfoldError` (status 2) for a pattern that cannot work."""
    wrong = None
    names = {found.group(1) for found in PLACEHOLDER.finditer(pattern)} - {None}
    if pattern.startswith("/") or re.match(r"[A-Za-z]:", pattern):
        wrong = "is not below competition.root"
    elif names - {"id", "z"}:
        wrong = f"holds {{{min(names - {'id', 'z'})}}}, and only {{id}} and {{z}} are known"
    elif "**" in pattern:
        wrong = "holds `**`; name each folder, with `*` where its name varies"
    elif "id" not in names:
        wrong = "holds no {id}, so it cannot tell cases apart"
    elif not parts:
        wrong = "is empty"
    if wrong:
        raise MaskfoldError(f"{key} `{pattern}` {wrong}.",
                            "Write a path below competition.root such as `images/{id}.png`.", status=2)


def _refuse_doubles(case_id: str, case: Case, pattern: str, key: str) -> None:
    """Raises `MaskfoldError` where two files claim one id, or one slice of it."""
    pair = case.paths[:2] if len(case.paths) > 1 else None
    for one, other in zip(case.slices, case.slices[1:], strict=False):
        if int(one.z) == int(other.z):
            pair = [one.path, other.path]
            break
    if pair:
        raise MaskfoldError(f"{key} `{pattern}` finds two files for the id {case_id}: {pair[0]} and {pair[1]}.",
                            "Remove one of them, or write the pattern so that it fits one.")


def _some_files(root: Path) -> Iterator[str]:
    for folder, inner, names in os.walk(root):
        inner.sort()
        for name in sorted(names):
            path = Path(folder, name).relative_to(root).as_posix()
            if not name.startswith(".") and (known(name) or name.endswith(".csv")):
                yield path
