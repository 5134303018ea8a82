"""A folder of DICOM files to NIfTI volumes, masks, and a table of what was found; one bad series never stops the others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from competition.config.errors import MaskfoldError
from competition.data.dicom.masks import Mask, Masks
from competition.data.dicom.names import case_ids, patients
from competition.data.dicom.nifti import write_nifti
from competition.data.dicom.numbering import Numbering
from competition.data.dicom.pairing import Image, Pairing
from competition.data.dicom.pixels import Pixels
from competition.data.dicom.privacy import hide
from competition.data.dicom.refused import Refused, quiet, refusing
from competition.data.dicom.scan import Scan, scan
from competition.data.dicom.series import Series, group
from competition.data.dicom.stack import stack
from competition.data.dicom.table import BETWEEN, Row, read_rows, write_rows
from competition.data.dicom.volume import load
from competition.data.files import writable

LAYOUTS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}
SHOWN = 5  # ignored files that a row names


@dataclass(frozen=True)
class Conversion:
    """What came of a folder.

    Attributes:
        rows: one per series of this folder, as in series.csv.
        segments: value → label, as in segments.csv.
    """

    rows: list[Row]
    segments: dict[int, str]

    def of(self, status: str) -> list[Row]:
        """The rows that are converted, label or refused."""
        return [row for row in self.rows if row.status == status]


def convert_folder(folder: Path, output: Path, layout: str = "imagesTr", labels: str | None = None,
                   say: Callable[[str], None] = lambda line: None) -> Conversion:
    """Converts every DICOM series below a folder.

    Args:
        folder: DICOM files in any order, under any names, in any folders.
        output: gets LAYOUT/{id}.nii.gz (X, Y, Z; int16, else float32), labelsTr or labelsTs/{id}.nii.gz (uint8 on the
            image's grid), series.csv and segments.csv. What is there from other series stays.
        layout: imagesTr or imagesTs.
        labels: a regular expression: series whose description it is found in hold labels.
        say: gets a line for each series.

    Returns:
        The rows and the labels. Nothing converted is no error here: see the reasons.

    Raises:
        MaskfoldError: the words are wrong (status 2), there is nothing to read, or the output cannot be written.

    Example:
        >>> convert_folder(Path("exports"), Path("data/spleen")).of("refused")      # doctest: +SKIP
    """
    expression = _words(folder, layout, labels)
    found = scan(folder)
    if not found.instances and not found.lost:
        raise MaskfoldError(f"{folder} holds no DICOM files ({found.others} other files were looked at).",
                            "Name the folder that holds the exported study.")
    writable(output)
    before = read_rows(output / "series.csv")
    numbering = Numbering(output / "segments.csv")
    run = _Run(output, layout, group(found.instances, expression), before, say)
    with quiet():
        run.convert_images()
        run.convert_masks(numbering)
    run.add_lost(found)
    run.report_unlabelled()
    if labels is not None and not any(one.kind == "label" for one in run.series):
        say(f"--labels {labels} is found in no series' description")
    _publish(output, run, before)
    numbering.save()
    return Conversion(list(run.rows.values()), dict(numbering.labels))


def _words(folder: Path, layout: str, labels: str | None) -> re.Pattern[str] | None:
    if not folder.is_dir():
        raise MaskfoldError(f"{folder} is no folder.", "Name the folder that holds the DICOM files.", status=2)
    if layout not in LAYOUTS:
        raise MaskfoldError(f"--layout {layout} is not known.", f"Say {' or '.join(LAYOUTS)}.", status=2)
    try:
        return None if labels is None else re.compile(labels)
    except re.error as error:
        raise MaskfoldError(f"--labels {labels} is not a regular expression ({error}).",
                            "Correct it, for example --labels '(?i)segmentation|mask'.", status=2) from error


class _Run:
    """One conversion: the rows grow from the images to the masks."""

    def __init__(self, output: Path, layout: str, series: list[Series], before: list[Row], say: Callable[[str], None]) -> None:
        self.series = series
        self._output, self._layout, self._say = output, layout, say
        self._patients = patients(series)
        self.rows = {one.uid: self._row(one) for one in series}
        self._pixels = Pixels()
        self._images: dict[str, Image] = {}
        uids = {one.uid for one in series}
        kept = [row for row in before if row.status == "converted"]
        self._ids = case_ids(self._of("image"), self._patients,
                             {row.series: row.id for row in kept if row.series in uids},
                             {row.id for row in kept if row.series not in uids})
        self._elsewhere = {row.series: row.layout for row in kept if row.layout != layout}

    def _of(self, kind: str) -> list[Series]:
        return [one for one in self.series if one.kind == kind]

    def _row(self, one: Series) -> Row:
        first, private = one.first, one.private
        frames = sum(max(1, instance.size[2]) for instance in one.instances)
        # The patient stands for the case until there is one: a table without empty ids can be asked for groups.
        return Row(id=self._patients[one.uid], patient=self._patients[one.uid], study=first.study, series=one.uid, number=first.series_number,
                   description=hide(first.description, private), modality=first.modality, layout=self._layout,
                   slices=str(frames), reason=one.reason)

    def convert_images(self) -> None:
        """Writes every image series that is a volume."""
        for one in self.series:
            row = self.rows[one.uid]
            if one.kind == "image":
                row.id = self._ids[one.uid]
                try:
                    with refusing("it cannot be converted"):
                        self._convert_image(one, row)
                except Refused as error:
                    row.reason = hide(str(error), one.private)
            if one.kind in ("image", "other"):
                self._report(row)

    def _convert_image(self, one: Series, row: Row) -> None:
        slices = stack(one, self._pixels)
        array = load(slices, self._pixels)
        name = f"{self._layout}/{row.id}.nii.gz"
        write_nifti(self._output / name, array, slices.grid)
        self._images[one.uid] = Image(row.id, slices)
        notes = list(slices.notes)
        if one.uid in self._elsewhere:
            notes.append(f"also in {self._elsewhere[one.uid]}, by an earlier conversion")
        row.status, row.file, row.slices = "converted", name, str(len(slices.frames))
        row.shape, row.spacing = _size(slices.grid.shape), _size(slices.grid.spacing)
        row.notes, row.ignored = BETWEEN.join(notes), _listed(slices.ignored, one)

    def convert_masks(self, numbering: Numbering) -> None:
        """Writes the masks of the images that were converted."""
        sources = self._of("segmentation") + self._of("label")
        if not sources:
            return
        # Series that only look like volumes may be named as sources too; they have no image, and say so.
        masks = Masks(Pairing(self._of("image"), self._images), numbering)
        masks.add_segmentations(self._of("segmentation"))
        masks.add_label_series(self._of("label"), self._pixels)
        for image in self._images.values():
            mask = masks.make(image.id, self._pixels)
            if mask is not None:
                try:
                    with refusing("its mask cannot be written"):
                        self._write_mask(mask)
                except Refused as error:
                    masks.refuse(mask.series, str(error))
        for one in sources:
            row = self.rows[one.uid]
            row.reason = hide(BETWEEN.join(masks.refused.get(one.uid, [])), one.private)
            row.ignored = _listed(masks.ignored.get(one.uid, []), one)
            self._report(row)

    def _write_mask(self, mask: Mask) -> None:
        name = f"{LAYOUTS[self._layout]}/{mask.image.id}.nii.gz"
        grid = mask.image.stack.grid
        write_nifti(self._output / name, mask.array, grid)
        for uid in mask.series:
            row = self.rows[uid]
            row.id = _joined(row.id if row.status == "label" else "", mask.image.id)
            row.status, row.file = "label", _joined(row.file, name)
            row.notes = BETWEEN.join(dict.fromkeys([*filter(None, row.notes.split(BETWEEN)), *mask.notes]))
            row.shape, row.spacing = _size(grid.shape), _size(grid.spacing)

    def report_unlabelled(self) -> None:
        """Names the images without a mask, where others have one: training leaves no case out unasked."""
        labelled = {case for row in self.rows.values() if row.status == "label" for case in row.id.split(BETWEEN)}
        bare = [image.id for image in self._images.values() if image.id not in labelled]
        if labelled and bare:
            more = f" and {len(bare) - SHOWN} more" if len(bare) > SHOWN else ""
            self._say(f"without a mask: {', '.join(bare[:SHOWN])}{more} (training leaves them out with on_bad_case: skip)")

    def add_lost(self, found: Scan) -> None:
        """One row for the files whose series is not even known."""
        if found.lost:
            private = frozenset().union(*(one.private for one in self.series)) if self.series else frozenset()
            names = list(found.lost.values())
            more = f" (and {len(names) - SHOWN} more)" if len(names) > SHOWN else ""
            row = Row(layout=self._layout, slices=str(len(names)), reason=hide(BETWEEN.join(names[:SHOWN]) + more, private))
            self.rows[""] = row
            self._report(row)

    def _report(self, row: Row) -> None:
        if row.status == "refused":
            self._say(f"refused {row.title}: {row.reason}")
            return
        remarks = "".join(f"; {words}" for words in (row.reason, row.notes, row.ignored) if words)
        size = f"{row.shape.replace('x', '×')} voxels of {row.spacing.replace('x', '×')} mm"
        self._say(f"{row.file}: {row.title}, {row.modality}, {size}{remarks}")


def _publish(output: Path, run: _Run, before: list[Row]) -> None:
    """Writes the table, and removes what earlier conversions of these series wrote and this one did not."""
    now = {(row.layout, row.series): row for row in run.rows.values()}
    kept = [row for row in before if (row.layout, row.series) not in now]
    used = {name for row in [*kept, *now.values()] for name in row.file.split(BETWEEN)}
    for row in before:
        for name in set(row.file.split(BETWEEN)) - used:
            path = Path(name)
            ours = len(path.parts) == 2 and path.parts[0] in (*LAYOUTS, *LAYOUTS.values())
            if ours and name.endswith(".nii.gz"):  # the table may have been edited: nothing else is deleted
                (output / path).unlink(missing_ok=True)
    write_rows(output / "series.csv", [*kept, *now.values()])


def _listed(ignored: list[str], one: Series) -> str:
    more = [f"and {len(ignored) - SHOWN} more"] if len(ignored) > SHOWN else []
    return hide(BETWEEN.join([*ignored[:SHOWN], *more]), one.private)


def _joined(text: str, further: str) -> str:
    """Adds to a cell that may hold several things."""
    return BETWEEN.join(dict.fromkeys([*filter(None, text.split(BETWEEN)), further]))


def _size(numbers: tuple[float, ...]) -> str:
    return "x".join(f"{one:.6g}" for one in numbers)
