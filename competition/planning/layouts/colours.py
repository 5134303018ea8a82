"""Make the error for masks whose classes are colours.

The message lists the colours, so that the user can write label files.
"""

from __future__ import annotations

import numpy as np

from competition.data.readers import read_image
from competition.errors import MaskfoldError
from competition.planning.classes.labels import named_colours
from competition.planning.folder import HostFolder
from competition.planning.layouts.series import Series
from competition.text import format_count

COLOUR_SAMPLE = 12  # masks whose colours are listed
MAX_COLOURS = 12  # colours that the message lists


def colours_error(host: HostFolder, series: Series) -> MaskfoldError:
    """Return the error for masks in colours; its message lists the colours and their names.

    Args:
        host: the scanned folder.
        series: the masks.
    """
    counts: dict[tuple[int, ...], int] = {}
    sample = series.sample(COLOUR_SAMPLE)
    for path in sample:
        try:
            pixels = read_image(host.root / path, 2).array[:3].reshape(3, -1).T
        except MaskfoldError:
            continue
        for colour, count in zip(*np.unique(pixels, axis=0, return_counts=True), strict=True):
            key = tuple(int(value) for value in colour)
            counts[key] = counts.get(key, 0) + int(count)
    names, source = named_colours(host)
    found = sorted(counts, key=lambda colour: -counts[colour])
    shown = ", ".join(
        " ".join(map(str, colour)) + (f" ({names[colour]})" if colour in names else "")
        for colour in found[:MAX_COLOURS]
    )
    more = f", and {len(found) - MAX_COLOURS} more" if len(found) > MAX_COLOURS else ""
    named = f"; the names are from {source}" if any(colour in names for colour in found) else ""
    return MaskfoldError(
        f"The masks `{series.pattern}` are in colours, but Maskfold reads label values. {len(sample)} "
        f"of {format_count(len(series.ids), 'mask')} were read, and have the colours (red green blue) "
        f"{shown}{more}{named}.",
        "Write one whole number per pixel: 0 for the background, and another number for each colour. "
        "docs/init.md has a script for this, under Masks in colours.",
        status=2,
    )
