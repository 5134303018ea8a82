"""List the files of a competition's folder; skip files that operating systems and archive programs add."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from competition.data.readers import extension_of, has_reader
from competition.errors import SURROGATE, MaskfoldError
from competition.text import nearest_names

IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "ehthumbs.db"}
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
TABLES = (".csv", ".tsv")
PATTERN_CHARACTERS = set("{}*\\")  # a pattern cannot contain a name with one of these characters


@dataclass(frozen=True)
class HostFolder:
    """Hold a competition's folder and the files below it.

    Attributes:
        root: the folder with the files. If the folder that the user named contains only one other folder, this is the
            inner folder.
        files: paths below the root with forward slashes, sorted.
        given: the folder that the user named; Maskfold writes nothing into it.
        broken: links whose target is missing.
    """

    root: Path
    files: tuple[str, ...]
    given: Path
    broken: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the folder, for messages."""
        return self.root.name

    @cached_property
    def images(self) -> tuple[str, ...]:
        """Paths of the files with an extension that Maskfold can read as images."""
        return tuple(path for path in self.files if has_reader(path) and not PATTERN_CHARACTERS & set(path))

    @cached_property
    def tables(self) -> tuple[str, ...]:
        """Paths of the tables of comma- or tab-separated values."""
        return tuple(path for path in self.files if path.lower().endswith(TABLES))

    @cached_property
    def jsons(self) -> tuple[str, ...]:
        """Paths of the JSON files."""
        return tuple(path for path in self.files if path.lower().endswith(".json"))

    @cached_property
    def folders(self) -> dict[str, list[str]]:
        """Names of the images that lie directly in each folder, by folder; the root has the key ""."""
        names: dict[str, list[str]] = {}
        for path in self.images:
            folder, _, name = path.rpartition("/")
            names.setdefault(folder, []).append(name)
        return names

    @cached_property
    def children(self) -> dict[str, dict[str, list[str]]]:
        """Paths of the images below each subfolder.

        The first key is the path of a folder, the second key the name of a subfolder in it. The paths are relative to
        this subfolder.
        """
        below: dict[str, dict[str, list[str]]] = {}
        for path in self.images:
            parts = path.split("/")
            for depth in range(len(parts) - 1):
                parent = "/".join(parts[:depth])
                below.setdefault(parent, {}).setdefault(parts[depth], []).append("/".join(parts[depth + 1 :]))
        return below


def scan_folder(path: Path) -> HostFolder:
    """List the files of a folder, without hidden files, `__MACOSX`, `Thumbs.db` and the like.

    If the folder contains nothing but one folder, the inner folder is listed instead.

    Raises:
        MaskfoldError (exit status 2): the path does not exist, is a file, or has no files.
    """
    if not path.is_dir():
        raise _not_a_folder(path)
    if SURROGATE.search(str(path.absolute())):
        raise MaskfoldError(
            f"The path {path.absolute()} has characters that are not valid UTF-8.",
            "Rename the folder, for example with the command mv.",
            status=2,
        )
    root = path
    while len(entries := _entries(root)) == 1 and entries[0].is_dir():
        root = entries[0]
    broken: list[str] = []
    files = sorted(_walk(root, "", set(), broken))
    if not files:
        raise MaskfoldError(
            f"The folder {path} contains no files; hidden files do not count.",
            "Unpack the competition's archive there.",
            status=2,
        )
    return HostFolder(root, tuple(files), path, tuple(sorted(broken)))


def _not_a_folder(path: Path) -> MaskfoldError:
    if path.exists():
        hint = "Give the folder that contains this file."
        if path.suffix.lower() in ARCHIVES:
            hint = "Unpack this file, and give the folder with its content."
        elif path.suffix.lower() in (".yaml", ".yml"):
            hint = "Give the folder with the data. To check a YAML that exists already, run maskfold explore on it."
        return MaskfoldError(f"{path} is a file, expected a folder.", hint, status=2)
    near: list[str] = []
    if path.absolute().parent.is_dir():
        siblings = [entry.name for entry in path.absolute().parent.iterdir() if entry.is_dir()]
        near = nearest_names(path.name, siblings)
    hint = f"Did you mean {path.parent / near[0]}?" if near else "Give the folder with the files of the competition."
    return MaskfoldError(f"The folder {path} does not exist.", hint, status=2)


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not _is_ignored(entry.name))


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def _walk(folder: Path, above: str, parents: set[str], broken: list[str]) -> Iterator[str]:
    """Yield the files below a folder, and add broken links to `broken`; do not follow links to a parent folder."""
    real = os.path.realpath(folder)
    if real in parents:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if _is_ignored(entry.name) or SURROGATE.search(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{above}{entry.name}/", parents | {real}, broken)
            elif entry.is_file():
                yield f"{above}{entry.name}"
            elif entry.is_symlink():
                broken.append(f"{above}{entry.name}")


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, by its extension or by the letters DICM after its first 128 bytes."""
    extension = extension_of(path.name)
    if extension in (".dcm", ".dicom", ".ima"):
        return True
    if extension and not extension[1:].isdigit():  # DICOM files often have no extension, or are named by their UID
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
