"""Describe a layout: where a folder has its images, masks and test images, and which classes the masks have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from competition.planning.folder import HostFolder
from competition.planning.layouts.content import Role, common_role, role_of_file
from competition.planning.layouts.series import Series

ROLE_SAMPLE = 6  # number of files that are read to see what a series contains
Patterns = str | dict[str, str]
Rank = Literal[0, 1]


@dataclass(frozen=True)
class Layout:
    """Describe one way to read a folder as a competition.

    Attributes:
        name: name of the layout in the list from which the user chooses.
        folder: the scanned folder, or the part of it that the layout describes.
        cases: number of training cases.
        images: pattern of the images, or patterns by channel.
        dimensions: 2 or 3.
        masks: pattern of the masks, or patterns by class; None if a table of run lengths replaces mask files.
        test: patterns of the test images; None without test images.
        keys: other keys of competition.yaml, by dotted path.
        reasons: reasons for the values of these keys, by dotted path.
        remarks: remarks on values that the user should check.
        rank: 0 if a dataset.json, or a table in the form of a competition that Maskfold knows, determines the layout;
            otherwise 1. Layouts with rank 1 are not used if any layout has rank 0.
        mask_files: files of the masks by class ("" if one file has all classes), then by case.
        notes: remarks on files that were found but not used.
        explained: files that no pattern matches, but that a remark or a note explains.
        listed: ids of the training cases if the patterns also match other files; otherwise None.
        test_listed: ids of the test cases if the pattern of the test images also matches other files; otherwise None.
        unlabelled: ids of the images without a mask.
        ids: ids of the training cases.
        advice: text for a user who may choose this layout; may be empty.
    """

    name: str
    folder: HostFolder
    cases: int
    images: Patterns
    dimensions: int
    masks: Patterns | None = None
    test: Patterns | None = None
    keys: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    rank: Rank = 1
    mask_files: dict[str, dict[str, list[str]]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    explained: frozenset[str] = field(default=frozenset(), repr=False)
    listed: tuple[str, ...] | None = None
    test_listed: tuple[str, ...] | None = None
    unlabelled: tuple[str, ...] = ()
    ids: tuple[str, ...] = field(default=(), repr=False)
    advice: str = ""

    def with_keys(self, keys: dict[str, Any], reasons: dict[str, str]) -> Layout:
        """Return a copy of the layout with additional keys and reasons; they replace those with the same path."""
        return replace(self, keys=self.keys | keys, reasons=self.reasons | reasons)

    def with_remarks(self, *remarks: str) -> Layout:
        """Return a copy of the layout with additional remarks."""
        return replace(self, remarks=self.remarks + tuple(remark for remark in remarks if remark not in self.remarks))

    def with_explained(self, files: Iterable[str]) -> Layout:
        """Return a copy of the layout with additional files in `explained`."""
        return replace(self, explained=self.explained.union(files))

    def with_cases(self, ids: Sequence[str], reason: str) -> Layout:
        """Return the layout with only the training cases `ids`; competition.yaml then lists these ids."""
        kept = tuple(ids)
        files = {
            name: {case_id: paths for case_id, paths in by_id.items() if case_id in set(kept)}
            for name, by_id in self.mask_files.items()
        }
        return replace(
            self,
            cases=len(kept),
            ids=kept,
            listed=kept,
            mask_files=files,
            reasons=self.reasons | {"train.cases": reason},
        )

    @property
    def summary(self) -> str:
        """The patterns of the images and the masks (or the table of run lengths) in one line."""
        truth = self.masks if self.masks is not None else self.keys.get("train.rle", "")
        return f"{_short(self.images)} with {_short(truth)}"


def _short(patterns: Any) -> str:
    if not isinstance(patterns, dict):
        return str(patterns)
    names = list(patterns)
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f"{patterns[names[0]]} ({len(names)}: {shown})" if len(names) > 1 else str(patterns[names[0]])


def role_of(host: HostFolder, series: Series) -> Role:
    """Return the role that the files of a series have, such as `image` or `mask`; `role_of_file` lists the roles.

    A series consists of the files whose names match one pattern.
    """
    return common_role([role_of_file(host.root / path) for path in series.sample(ROLE_SAMPLE)])


def join_patterns(channels: Sequence[tuple[str, Series]]) -> Patterns:
    """Return the pattern of the only channel, or the patterns by channel if there are several."""
    if len(channels) == 1:
        return channels[0][1].pattern
    return {name: series.pattern for name, series in channels}


def first_path(host: HostFolder, series: Series) -> Path:
    """Return the path of one file of a series, as an example of the series' content."""
    return host.root / series.sample(1)[0]
