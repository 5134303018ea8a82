"""`maskfold dicom`: series to NIfTI, and what was refused."""

from __future__ import annotations

from pathlib import Path

from competition.cli.words import stoppable
from competition.config.errors import MaskfoldError


@stoppable("stopped: the files written so far are whole, series.csv does not list them yet")
def convert(folder: Path, output: Path, layout: str, labels: str | None) -> None:
    """Run the command; see `competition.cli.main.dicom`."""
    from competition.data.dicom import convert_folder

    done = convert_folder(folder, output, layout, labels, say=lambda line: print(line, flush=True))
    images, masks, refused = (len(done.of(status)) for status in ("converted", "label", "refused"))
    print(f"{images} series converted, {masks} to masks, {refused} refused; {output / 'series.csv'} lists them")
    if done.segments and masks:
        print("labels: " + ", ".join(f"{value} {label}" for value, label in sorted(done.segments.items())))
    if not images:
        raise MaskfoldError(
            f"No series of {folder} became a volume.", f"Read the reasons above, or in {output / 'series.csv'}."
        )
