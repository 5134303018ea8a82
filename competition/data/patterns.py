"""Match file patterns such as `imagesTr/{id}.nii.gz` in the competition's folder."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from competition.config.competition import Competition
from competition.data.readers import extension_of, has_reader, strip_extension
from competition.data.selection import SkippedCases
from competition.errors import SURROGATE, MaskfoldError, printable
from competition.io import MAX_NAME_BYTES
from competition.text import fold_name, name_problem, nearest_names

PLACEHOLDER = re.compile(r"\{([^{}]*)\}|\*")
OOF_SUFFIX = ".zarr.zip"  # extension of a case's out-of-fold prediction
MAX_LISTED_FILES = 5000  # number of files that are searched for similar names
HIDDEN_TEST_HINT = (
    "If only the host has the test set (a code competition), write a bundle that predicts in the host's "
    "notebook: maskfold export RUN -o bundle."
)


@dataclass(frozen=True)
class SliceFile:
    """Hold one file of a stack of slices.

    Attributes:
        z: the text that {z} matched.
        path: the path below competition.root.
    """

    z: str
    path: str


@dataclass
class CaseFiles:
    """Hold the files that one pattern matches for one id.

    Attributes:
        paths: for a pattern without {z}, the one path below the root, with forward slashes; empty for a stack.
        slices: slices of a pattern with {z}, sorted by z as a number.
    """

    paths: list[str] = field(default_factory=list)
    slices: list[SliceFile] = field(default_factory=list)

    @property
    def files(self) -> str | list[str]:
        """The path of the case's file; for a stack, the list of its paths in the order of z."""
        return [item.path for item in self.slices] if self.slices else self.paths[0]


T = TypeVar("T", CaseFiles, list[str])


def match_cases(root: Path, pattern: str, key: str) -> dict[str, CaseFiles]:
    """Find the file, or the stack of slices, of each id that a pattern matches.

    `{id}` matches any text within one name, `{z}` and `{c}` match digits, and `*` matches anything within one name. If
    `{id}`, `{z}` or `{c}` occurs several times in a pattern, it matches the same text each time. The extension matches
    in upper and lower case: `{id}.png` matches a.PNG. Names that begin with a dot are ignored.

    Args:
        root: the competition's folder.
        pattern: path pattern below the root, with forward slashes.
        key: the pattern's key in the YAML, for messages.

    Returns:
        Cases by id, sorted by id. For a pattern with {c}, each case has the files of its first channel.

    Raises:
        MaskfoldError: the pattern is invalid (exit status 2), the root is not a folder, no file matches, or two files
            match the same id (and slice).
    """
    if "{c}" in pattern:
        first: dict[str, CaseFiles] = {}
        for channel in match_channels(root, pattern, key).values():
            first = channel | first
        return {case_id: first[case_id] for case_id in sorted(first)}
    cases = _group_by_id(_matches(root, pattern, key), pattern, key)
    if not cases:
        raise no_match_error(root, pattern, key)
    return cases


def match_channels(root: Path, pattern: str, key: str) -> dict[str, dict[str, CaseFiles]]:
    """Find the file, or the stack of slices, of each id and channel that a pattern with {c} matches.

    Returns:
        A mapping from each channel (the text that {c} matched, sorted by number) to its cases by id, sorted by id.

    Raises:
        MaskfoldError: as for `match_cases`.
    """
    matches: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for path, bound in _matches(root, pattern, key):
        matches.setdefault(bound["c"], []).append((path, bound))
    if not matches:
        raise no_match_error(root, pattern, key)
    seen: dict[tuple[str, int, str], tuple[str, str]] = {}
    for channel, found in matches.items():
        for path, bound in found:  # `a_2.png` and `a_02.png` are the same channel, as they are the same slice
            text, first = seen.setdefault((bound["id"], int(channel), bound.get("z", "")), (channel, path))
            if text != channel:
                raise _two_files_error(bound["id"], [first, path], pattern, key)
    return {
        channel: _group_by_id(matches[channel], pattern, key)
        for channel in sorted(matches, key=lambda text: (int(text), text))
    }


def _group_by_id(matches: Iterable[tuple[str, dict[str, str]]], pattern: str, key: str) -> dict[str, CaseFiles]:
    """Group the matches of a pattern into cases, sorted by id. A case may have one file, or one file per slice."""
    cases: dict[str, CaseFiles] = {}
    is_stack = "{z}" in pattern
    for path, bound in matches:
        case = cases.setdefault(bound["id"], CaseFiles())
        if is_stack:
            case.slices.append(SliceFile(bound["z"], path))
        else:
            case.paths.append(path)
    for case_id, case in cases.items():
        case.slices.sort(key=lambda item: (int(item.z), item.path))
        _check_unique(case_id, case, pattern, key)
    return {case_id: cases[case_id] for case_id in sorted(cases)}


def match_files(root: Path, pattern: str, key: str) -> dict[str, list[str]]:
    """Find all files of each id that a pattern of instance masks, such as `{id}/masks/*.png`, matches.

    Returns:
        Sorted paths by id; an empty list for an id whose folder exists but has no matching file.

    Raises:
        MaskfoldError: as for `match_cases`.
    """
    paths: dict[str, list[str]] = {}
    for path, bound in _matches(root, pattern, key):
        paths.setdefault(bound["id"], []).append(path)
    folder = pattern.rpartition("/")[0]
    if "{id}" in folder:
        for _, bound in _matches(root, folder, key, folders=True):
            paths.setdefault(bound["id"], [])
    if not paths:
        raise no_match_error(root, pattern, key)
    return {case_id: sorted(paths[case_id]) for case_id in sorted(paths)}


def matches_many_files(pattern: str) -> bool:
    """Return whether the last part of a mask pattern contains `*`, so that several files of one case can match."""
    return "*" in pattern.rpartition("/")[2]


def match_path(pattern: str, path: str, case_id: str) -> dict[str, str] | None:
    """Return the text that each placeholder of a pattern matches in a path; None if the path does not match.

    Args:
        pattern: as for `match_cases`.
        path: path below the root, with forward slashes.
        case_id: the text that {id} must match.
    """
    # A pattern with no other placeholder is compared directly, because a regular expression for each case is slow.
    if pattern.replace("{id}", case_id) == path:
        return {"id": case_id}
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    names, bound = path.split("/"), {"id": case_id}
    if len(parts) != len(names):
        return None
    for part, name in zip(parts, names, strict=True):
        match = re.fullmatch(_expression(part, bound), name)
        if match is None:
            return None
        bound |= match.groupdict()
    return bound


def slice_aliases(case_id: str, item: SliceFile) -> list[str]:
    """Return the names that a competition's table may use for a slice, starting with the longest name.

    Example:
        >>> slice_aliases("case1_day2", SliceFile("0003", "case1_day2/scans/slice_0003_266.png"))[0]
        'case1_day2_slice_0003'
    """
    name = strip_extension(item.path.rpartition("/")[2])
    head, number, _ = name.partition(item.z)
    names = [f"{case_id}_{head}{number}", f"{case_id}_{name}", f"{case_id}_{item.z}", name]
    return list(dict.fromkeys(names))


# Checks and errors


def check_root(root: Path) -> None:
    """Check that the competition's root is a folder.

    Raises:
        MaskfoldError: the root is not a folder.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise MaskfoldError(
            f"The competition's folder {root} {what}, expected the folder with the data.",
            "Unpack the data there, or set competition.root=/path/to/the/data.",
            status=2,
        )


def check_ids_differ_by_more_than_case(ids: list[str], key: str) -> None:
    """Check that no two ids differ only in upper and lower case or in Unicode form.

    Ids become file names, and some file systems cannot distinguish such names.

    Raises:
        MaskfoldError: two ids differ only in upper and lower case, or in the Unicode form of a letter.
    """
    seen: dict[str, str] = {}
    for case_id in ids:
        first = seen.setdefault(fold_name(case_id), case_id)
        if first != case_id:
            how = (
                "in upper and lower case"
                if first.casefold() == case_id.casefold()
                else "in the Unicode form of a letter (NFC or NFD)"
            )
            raise MaskfoldError(
                f"{key} matches two ids that differ only {how}: {first} and {case_id}. Some file systems cannot "
                "distinguish them.",
                "Rename one of the two files.",
            )


def drop_undecodable(cases: Mapping[str, T], key: str, root: Path, skipped: SkippedCases) -> dict[str, T]:
    """Return the cases whose file names are all UTF-8. Names from old zip files may have another encoding.

    Args:
        cases: the files by id, from `match_cases` or `match_files`.
        key: the pattern's key in the YAML, for messages.
        root: the competition's folder, for the hint.
        skipped: receives the cases that are not returned.
    """
    kept: dict[str, T] = {}
    for case_id, case in cases.items():
        undecodable = next((path for path in _all_paths(case) if SURROGATE.search(path)), None)
        if undecodable is None and not SURROGATE.search(case_id):
            kept[case_id] = case
            continue
        skipped.add(
            printable(case_id),
            MaskfoldError(
                f"A file name is not UTF-8: found {undecodable or case_id} ({key}).",
                "Rename the file with mv. To rename all such files at once: convmv -r -f latin1 -t utf8 --notest "
                f"{shlex.quote(str(root))} (for zip files of Windows, cp437 instead of latin1). Or skip such cases "
                "with competition.on_bad_case=skip.",
            ),
        )
    return kept


def _all_paths(case: CaseFiles | list[str]) -> list[str]:
    return case if isinstance(case, list) else [*case.paths, *(item.path for item in case.slices)]


def oof_file_name(case_id: str) -> str:
    """Return the file name of a case's out-of-fold prediction: the id, with unusual characters percent-encoded."""
    quoted = "".join(letter if letter.isalnum() or letter in "-_. " else quote(letter, safe="") for letter in case_id)
    return quoted + OOF_SUFFIX


def id_problem(comp: Competition, case_id: str) -> str | None:
    """Return what is wrong with a case id, for a message, e.g. "is too long"; None if the id is valid.

    Files for out-of-fold predictions (see `competition.runs.oof.OofStore.path`) and label files are named after the
    id. So the id must be short enough for their suffixes.
    """
    if (problem := name_problem(case_id)) is not None:
        return problem
    names = [oof_file_name(case_id), f"{case_id}.nii.gz"]
    if comp.labels == "overlapping":
        names += [f"{case_id}_{name}.nii.gz" for name in comp.classes]
    longest = max(len(name.encode()) for name in names)
    if longest <= MAX_NAME_BYTES:
        return None
    return (
        f"is too long: the names of files that contain it would have up to {longest} bytes, expected at most "
        f"{MAX_NAME_BYTES}"
    )


def no_match_error(root: Path, pattern: str, key: str) -> MaskfoldError:
    """Return the error for a pattern without a match; its message names the most similar files."""
    files = []
    for path in _some_files(root):
        files.append(path)
        if len(files) == MAX_LISTED_FILES:
            break
    if not files:
        return MaskfoldError(
            f"{key}: the pattern `{pattern}` matches no file, because {root} contains no images or tables.",
            "Unpack the competition's archive there, or set competition.root=/path/to/the/data.",
            status=2,
        )
    near = nearest_names(pattern, sorted(files), count=3, cutoff=0.0)  # files of every type show the folder's layout
    hidden = f" {HIDDEN_TEST_HINT}" if key.startswith("test.") else ""
    return MaskfoldError(
        f"{key}: the pattern `{pattern}` matches no file below {root}. The most similar paths are {', '.join(near)}.",
        f"Correct {key} or competition.root in the YAML.{hidden}",
        status=2,
    )


def _check_pattern(pattern: str, parts: list[str], key: str) -> None:
    """Raise `MaskfoldError` (exit status 2) for an invalid pattern."""
    problem = None
    names = {match.group(1) for match in PLACEHOLDER.finditer(pattern)} - {None}
    if pattern.startswith("/") or re.match(r"[A-Za-z]:", pattern):
        problem = "is an absolute path, which leads out of competition.root; expected a path below this folder"
    elif names - {"id", "z", "c"}:
        problem = f"has {{{min(names - {'id', 'z', 'c'})}}}, expected only {{id}}, {{z}} and {{c}}"
    elif "c" in names and not key.endswith("images"):
        problem = "has {c}, which stands for channels and is allowed only in patterns of images"
    elif "**" in pattern:
        problem = "has `**`, which Maskfold does not support; write each folder, with `*` where its name varies"
    elif "id" not in names:
        problem = "has no {id}, so Maskfold cannot distinguish the cases"
    elif not parts:
        problem = "is empty"
    if problem:
        raise MaskfoldError(
            f"{key}: the pattern `{pattern}` {problem}.",
            "Write a path below competition.root such as `images/{id}.png`.",
            status=2,
        )


def _check_unique(case_id: str, case: CaseFiles, pattern: str, key: str) -> None:
    """Raise `MaskfoldError` if two files match the same id, or the same slice of an id."""
    pair = case.paths[:2] if len(case.paths) > 1 else None
    for item, following in zip(case.slices, case.slices[1:], strict=False):
        if int(item.z) == int(following.z):
            pair = [item.path, following.path]
            break
    if pair:
        raise _two_files_error(case_id, pair, pattern, key)


def _two_files_error(case_id: str, pair: list[str], pattern: str, key: str) -> MaskfoldError:
    return MaskfoldError(
        f"{key}: the pattern `{pattern}` matches two files for the id {case_id}: {pair[0]} and {pair[1]}.",
        "Remove one of the files, or correct the pattern so that it matches only one. If the two files are channels "
        "of one image, give a pattern for each channel: {a: pattern, b: …}.",
    )


def _some_files(root: Path) -> Iterator[str]:
    for folder, inner, names in os.walk(root):
        inner.sort()
        for name in sorted(names):
            path = Path(folder, name).relative_to(root).as_posix()
            if not name.startswith(".") and (has_reader(name) or name.endswith(".csv")):
                yield path


# Matching


def _matches(root: Path, pattern: str, key: str, folders: bool = False) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the path below the root of each matching file, and the text that each placeholder matched.

    If `folders` is true, yield matching folders instead of files.
    """
    check_root(root)
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    _check_pattern(pattern, parts, key)
    yield from _descend(root, "", parts, {}, folders)


def _descend(
    root: Path, above: str, parts: list[str], bound: dict[str, str], folders: bool
) -> Iterator[tuple[str, dict[str, str]]]:
    part, rest = parts[0], parts[1:]
    for name in _names(root / above, part, bound, folders=bool(rest) or folders):
        path = f"{above}/{name}" if above else name
        match = re.fullmatch(_expression(part, bound), name)
        matched = {**bound, **(match.groupdict() if match else {})}
        if rest:
            yield from _descend(root, path, rest, matched, folders)
        else:
            yield path, matched


def _names(folder: Path, part: str, bound: dict[str, str], folders: bool) -> list[str]:
    """Return the sorted names in a folder that match one part of a pattern.

    If the part ends in `*` and files are wanted, only files are returned whose extension Maskfold can read.

    Args:
        folder: the folder.
        part: the part of the pattern between two slashes.
        bound: for each placeholder of earlier parts, such as `id`, the text that it matched.
        folders: whether to return the names of folders instead of files.
    """
    literal = PLACEHOLDER.sub(lambda match: bound.get(match.group(1) or "*", match.group(0)), part)
    # If the name is known, the folder is listed only because the extension may have upper- and lower-case letters.
    if not PLACEHOLDER.search(literal):
        path = folder / literal
        if path.is_dir() if folders else path.is_file() or path.is_symlink():
            return [literal]
        if folders or not has_reader(literal):
            return []
    expression = re.compile(_expression(part, bound))
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if expression.fullmatch(entry.name)
            and entry.is_dir() == folders
            and (not entry.name.startswith(".") or part.startswith("."))
            and (folders or not part.endswith("*") or has_reader(entry.name))
        )


def _expression(part: str, bound: dict[str, str]) -> str:
    """Build a regular expression for one part of a pattern (between two slashes).

    Args:
        part: the part.
        bound: for each placeholder of earlier parts, such as `id`, the text that it matched.
    """
    # (?s): names with a line break match too, and the check of ids rejects them later.
    text, last, named = "(?s)", 0, set(bound)
    for match in PLACEHOLDER.finditer(part):
        text += re.escape(part[last : match.start()])
        name, last = match.group(1), match.end()
        if name is None:
            text += ".*"
        elif name in bound:
            text += re.escape(bound[name])
        elif name in named:
            text += f"(?P={name})"
        else:
            text += f"(?P<{name}>{'.+' if name == 'id' else '[0-9]+'})"
            named.add(name)
    return text + _escape_extension(part[last:])


def _escape_extension(tail: str) -> str:
    """Return a regular expression for the end of a name; an image's extension matches in upper and lower case."""
    name = f"_{tail}"  # `.png` alone would be a hidden file without an extension
    length = len(extension_of(name)) if has_reader(name) else 0
    return re.escape(tail[: len(tail) - length]) + (f"(?i:{re.escape(tail[-length:])})" if length else "")


# Files that no pattern matches


def unmatched_images(comp: Competition, split: str) -> list[str]:
    """Find image files that lie in the folders of a split's images, but match none of the competition's patterns.

    Args:
        comp: the competition.
        split: train or test.

    Returns:
        Sorted paths below the root.
    """
    root = Path(comp.root)
    section = comp.train if split == "train" else comp.test
    unmatched: set[str] = set()
    for pattern in list_patterns(section.images if section is not None else None):
        *above, _ = (part for part in pattern.split("/") if part not in ("", "."))
        folders = [path for path, _ in _descend(root, "", above, {}, folders=True)] if above else [""]
        for folder in folders:
            paths = [f"{folder}/{name}" if folder else name for name in os.listdir(root / folder)]
            images = (path for path in paths if has_reader(path) and not path.rpartition("/")[2].startswith("."))
            unmatched.update(without_pattern(comp, images))
    return sorted(map(printable, unmatched))


def without_pattern(comp: Competition, paths: Iterable[str]) -> list[str]:
    """Return the paths below the root that match none of the competition's patterns."""
    return without_match(patterns_of(comp), paths)


def without_match(patterns: Iterable[str], paths: Iterable[str]) -> list[str]:
    """Return the paths below the root that match none of the given patterns."""
    expressions = [re.compile(_path_expression(pattern)) for pattern in patterns]
    return [path for path in paths if not any(expression.fullmatch(path) for expression in expressions)]


def patterns_of(comp: Competition) -> list[str]:
    """Return the patterns of a competition's images, masks and regions."""
    tests = (comp.test.images, comp.test.region) if comp.test is not None else ()
    return [
        pattern
        for source in (comp.train.images, comp.train.masks, comp.train.region, *tests)
        for pattern in list_patterns(source)
    ]


def is_in_pattern_folder(root: Path, pattern: str, path: str) -> bool:
    """Return whether a path matches a pattern, or belongs to a folder that the pattern names.

    A folder with a placeholder in its name, as in `{id}/image.png`, belongs to the pattern only if a file in this
    folder matches.

    Args:
        root: the competition's folder.
        pattern: as for `match_cases`.
        path: path below the root, with forward slashes; it need not exist.
    """
    whole = re.compile(_path_expression(pattern))
    if whole.fullmatch(path):
        return True
    *folder_parts, _ = (part for part in pattern.split("/") if part not in ("", "."))
    if not folder_parts:  # The pattern's files are in the root itself, which may contain any other file.
        return path == "."
    match = re.match(f"{_path_expression('/'.join(folder_parts))}(?=/|$)", path)
    if match is None or not any(map(PLACEHOLDER.search, folder_parts)):
        return match is not None
    folder = match.group()
    return (root / folder).is_dir() and any(whole.fullmatch(f"{folder}/{name}") for name in os.listdir(root / folder))


def list_patterns(source: str | dict[str, str] | None) -> list[str]:
    """Return the patterns of a YAML key: one pattern, or one for each channel or class; none if the key is not set."""
    return list(source.values()) if isinstance(source, dict) else [source] if source else []


def _path_expression(pattern: str) -> str:
    """Build a regular expression for whole paths, in which {id} may match different texts in different places."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    text, last, path = "(?s)", 0, "/".join(parts)
    for match in PLACEHOLDER.finditer(path):
        text += re.escape(path[last : match.start()]) + ("[0-9]+" if match.group(1) in ("z", "c") else "[^/]*")
        last = match.end()
    return text + _escape_extension(path[last:])
