"""Strata for balanced folds, where the competition names none: which classes a case has, and how large its mask is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from competition.config.competition import Competition
from competition.data.masks import IGNORED, load_mask

if TYPE_CHECKING:
    import pandas

PARTS = 3  # small, middle and large masks


def strata(table: pandas.DataFrame, comp: Competition) -> pandas.Series:
    """The stratum of each case: `competition.stratum` where it is given, else computed from the masks.

    Args:
        table: the case table of the training cases.
        comp: what the host gave.

    Returns:
        Texts with the table's index. Computed ones say which classes are there and in which third of all cases with
        a mask the share of foreground lies, e.g. ``10:2`` for the first of two classes and a large mask.

    Raises:
        MaskfoldError: a mask cannot be read.
    """
    import pandas

    if comp.stratum is not None:
        return table["stratum"].astype(str)
    present, share = [], []
    for row in table.itertuples(index=False):
        mask = load_mask(comp, row)
        if comp.labels == "exclusive":
            classes = [bool((mask == value).any()) for value in range(1, len(comp.classes) + 1)]
        else:
            classes = [bool((channel == 1).any()) for channel in mask]
        foreground = ((mask > 0) & (mask != IGNORED)).any(axis=0)
        present.append("".join("01"[one] for one in classes))
        share.append(float(foreground.mean()))
    sizes = np.array(share)
    borders = np.quantile(sizes[sizes > 0], [1 / 3, 2 / 3]) if (sizes > 0).any() else np.zeros(PARTS - 1)
    part = np.searchsorted(borders, sizes)
    names = [f"{classes}:{number}" if size > 0 else "empty"
             for classes, number, size in zip(present, part, sizes, strict=True)]
    return pandas.Series(names, index=table.index)
