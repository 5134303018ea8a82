"""Find volumes with masks in some slices only: slices without a mask must not be read as background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from competition.planning.layout import Layout
from competition.planning.layouts.content import Slices, label_values, slices_of

SAMPLE = 24  # masks that are compared
MIN_SHARE = 0.8  # share of these cases in which only single slices are drawn
DOCS = "docs/init.md has a script, under Masks of single slices"


@dataclass(frozen=True)
class Sparse:
    """Describe volumes in which a mask was drawn in some slices only.

    Attributes:
        unlabelled: label value that probably marks slices without a drawn mask: it fills whole slices, and occurs in no
            other slice. None without such a value.
        single: whether, in most volumes, each slice with foreground lies between slices without foreground.
    """

    unlabelled: int | None = None
    single: bool = False

    @property
    def remark(self) -> str:
        """Text that asks the user to check the slices; empty if all slices seem to have a drawn mask."""
        if self.unlabelled is not None:
            return (
                f"{self.unlabelled} fills whole slices and occurs in no other slice, so it may mark slices in which "
                f"nobody drew a mask. In this case, the key ignore must be {self.unlabelled}"
            )
        if self.single:
            return (
                "in most volumes, only single slices between empty slices have a mask: if nobody drew masks in the "
                f"other slices, these slices must be ignored, not read as background; {DOCS}"
            )
        return ""


def find_sparse(layout: Layout) -> Sparse:
    """Describe which slices of the volumes have a drawn mask; only a sample of the cases is read."""
    if layout.dimensions != 3:
        return Sparse()
    count = max(1, SAMPLE // max(1, len(layout.mask_files)))
    cases = [slices for files in layout.mask_files.values() for slices in _sample(layout, files, count)]
    values = {value for slices in cases for value in slices.whole}
    certain = [
        value
        for value in sorted(values)
        if all(value in slices.whole or value not in slices.values for slices in cases)
        and sum(value in slices.whole for slices in cases) >= 0.5 * len(cases)
    ]
    single = sum(slices.single for slices in cases)
    return Sparse(certain[0] if len(certain) == 1 else None, bool(cases) and single >= MIN_SHARE * len(cases))


def _sample(layout: Layout, files: dict[str, list[str]], count: int) -> list[Slices]:
    ids = sorted(files)
    chosen = ids[:: max(1, len(ids) // count)][:count]
    if "{z}" in str(layout.masks):
        stacks = ([label_values(layout.folder.root / path, 2) for path in files[case_id]] for case_id in chosen)
        return [_of_stack([dict(item.counts) for item in stack if item is not None]) for stack in stacks]
    found = (slices_of(layout.folder.root / path) for case_id in chosen for path in files[case_id])
    return [slices for slices in found if slices is not None]


def _of_stack(counts: Sequence[dict[int, int]]) -> Slices:
    """Return a description of the slices of a stack.

    Args:
        counts: number of pixels by label value, for each slice.
    """
    return Slices.of([(min(slice_counts), max(slice_counts), set(slice_counts)) for slice_counts in counts])
