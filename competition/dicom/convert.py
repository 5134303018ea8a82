"""Convert a folder of DICOM files to NIfTI volumes, PNG pictures, masks, and the table series.csv.

If a series cannot be converted, its row in the table contains the reason, and the next series is converted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from competition.dicom.headers import SeriesRejected, hide_private, reject_on_error, silence_pydicom
from competition.dicom.pictures import INVERTED, name_pictures, read_picture, write_picture
from competition.dicom.scan import Scan, Series, assign_case_ids, group_series, name_patients, scan_folder
from competition.dicom.segmentation import ConvertedImage, LabelMap, Mask, MaskBuilder, ReferenceMatcher
from competition.dicom.tables import CELL_SEPARATOR, SeriesRow, read_rows, write_rows
from competition.dicom.volume import PixelReader, build_stack, load_volume, write_nifti
from competition.errors import MaskfoldError
from competition.io import ensure_writable
from competition.text import and_more, format_count

LABEL_FOLDERS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}  # folder of the masks by folder of the images
MAX_LISTED_FILES = 5  # maximum number of files that one cell of the table names
INVERTED_NOTE = "MONOCHROME1 displays high values as dark; the values were inverted"


@dataclass(frozen=True)
class Conversion:
    """Hold the result of converting a folder.

    Attributes:
        rows: the rows of series.csv for the series of this folder, one per series or 2D picture.
        segments: the name of each label, as in segments.csv. The keys are the label values in the masks.
    """

    rows: list[SeriesRow]
    segments: dict[int, str]

    def with_status(self, status: str) -> list[SeriesRow]:
        """Return the rows whose status is `status`: `converted` (an image), `label` (a mask) or `refused`."""
        return [row for row in self.rows if row.status == status]


def convert_folder(
    folder: Path,
    output: Path,
    layout: str = "imagesTr",
    labels: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Conversion:
    """Convert every DICOM series below a folder.

    Volumes become NIfTI files; 2D pictures without a position in the patient, such as X-rays, become PNG files.

    Args:
        folder: folder with DICOM files; file names, order and subfolders do not matter.
        output: folder for series.csv, segments.csv, and the subfolders of images and masks. Existing files of other
            series are not changed.
        layout: subfolder of the images: imagesTr or imagesTs. A volume becomes {id}.nii.gz (X, Y, Z; int16, or float32
            if int16 cannot hold the values). A picture becomes {id}.png (uint8, or uint16 for higher values). A mask
            becomes {id}.nii.gz (uint8 on the image's grid) in labelsTr or labelsTs.
        labels: regular expression. An image series whose description matches it contains labels and becomes a mask.
            None if there is no such series.
        say: function that receives messages for the user, at least one line per series.

    Returns:
        The rows of series.csv and the names of the labels. If no series was converted, no error is raised; the rows
        contain the reasons.

    Raises:
        MaskfoldError: an argument is invalid (exit status 2), the folder has no DICOM files, or the output cannot be
            written.

    Example:
        >>> convert_folder(Path("exports"), Path("data/spleen")).with_status("refused")      # doctest: +SKIP
    """
    label_pattern = _check_arguments(folder, layout, labels)
    scanned = scan_folder(folder)
    links = ", ".join(scanned.links[:MAX_LISTED_FILES])
    if not scanned.instances and not scanned.unreadable:
        raise MaskfoldError(
            f"{folder} contains no DICOM file: found only "
            f"{format_count(scanned.non_dicom_count, 'file')} of other formats"
            + (f", and links to folders, which the command does not follow: {links}." if links else "."),
            f"Give the folder that {'the link points to' if links else 'contains the exported study'}.",
        )
    ensure_writable(output)
    if links:
        say(f"links to folders are not followed: {links}. To convert those folders, run the command on each of them")
    previous_rows = read_rows(output / "series.csv")
    label_map = LabelMap(output / "segments.csv")
    converter = _Converter(output, layout, group_series(scanned.instances, label_pattern), previous_rows, say)
    with silence_pydicom():
        converter.convert_images()
        converter.convert_masks(label_map)
    converter.add_unreadable(scanned)
    converter.report_unlabelled()
    if labels is not None and not any(series.kind == "label" for series in converter.series):
        say(f"no series has a description that matches --labels {labels}")
    _write_series_csv(output, converter, previous_rows)
    label_map.save()
    return Conversion(list(converter.rows.values()), dict(label_map.labels))


def _check_arguments(folder: Path, layout: str, labels: str | None) -> re.Pattern[str] | None:
    """Check the arguments of `convert_folder`; return `labels` as a compiled pattern, or None if `labels` is None."""
    if not folder.is_dir():
        raise MaskfoldError(f"{folder} is not a folder.", "Give the folder that contains the DICOM files.", status=2)
    if layout not in LABEL_FOLDERS:
        expected = " or ".join(LABEL_FOLDERS)
        raise MaskfoldError(f"--layout: found {layout}, expected {expected}.", f"Use --layout {expected}.", status=2)
    try:
        return None if labels is None else re.compile(labels)
    except re.error as error:
        raise MaskfoldError(
            f"--labels: found {labels}, expected a valid regular expression ({error}).",
            "Correct the regular expression. An example is --labels '(?i)segmentation|mask'.",
            status=2,
        ) from error


class _Converter:
    """Convert one folder. Each method converts one kind of series, and fills in the rows of these series in series.csv.

    `rows` contains one row per series. For a series of 2D pictures, it contains one row per picture instead.
    """

    def __init__(
        self,
        output: Path,
        layout: str,
        series: list[Series],
        previous_rows: list[SeriesRow],
        say: Callable[[str], None],
    ) -> None:
        self.series = series
        self._output, self._layout, self._say = output, layout, say
        self._patients = name_patients(series)
        self.rows = {item.uid: self._new_row(item) for item in series}
        self._pixels = PixelReader()
        self._images: dict[str, ConvertedImage] = {}
        uids = {item.uid for item in series}
        converted = [row for row in previous_rows if row.status == "converted"]
        taken = {row.id for row in converted if row.series not in uids}
        volumes = [row for row in converted if row.file.endswith(".nii.gz")]
        self._ids = assign_case_ids(
            self._of_kind("image") + self._of_kind("picture"),
            self._patients,
            {row.series: row.id for row in volumes if row.series in uids},
            taken,
        )
        self._picture_ids = name_pictures(self._of_kind("picture"), self._ids, taken)
        self._other_layouts = {row.series: row.layout for row in converted if row.layout != layout}

    def _of_kind(self, kind: str) -> list[Series]:
        return [series for series in self.series if series.kind == kind]

    def _new_row(self, series: Series) -> SeriesRow:
        header = series.header
        frame_count = sum(max(1, instance.size[2]) for instance in series.instances)
        return SeriesRow(
            # Without a case, the patient is the id, because `group: series.csv:patient` needs a table without empty
            # ids.
            id=self._patients[series.uid],
            patient=self._patients[series.uid],
            study=header.study_uid,
            series=series.uid,
            number=header.series_number,
            description=hide_private(header.description, series.private_patterns),
            modality=header.modality,
            layout=self._layout,
            slices=str(frame_count),
            reason=series.reason,
        )

    def convert_images(self) -> None:
        """Write the volume or the pictures of each image series, and report the result of each series.

        Label series and DICOM-SEG files are left to `convert_masks`.
        """
        for series in self.series:
            row = self.rows[series.uid]
            if series.kind == "image":
                row.id = self._ids[series.uid]
                try:
                    with reject_on_error("cannot be converted"):
                        self._convert_image(series, row)
                except SeriesRejected as error:
                    row.reason = hide_private(str(error), series.private_patterns)
            if series.kind == "picture":
                self._convert_pictures(series, row)
            if series.kind in ("image", "other"):
                self._report(row)

    def _convert_image(self, series: Series, row: SeriesRow) -> None:
        slices = build_stack(series, self._pixels)
        array = load_volume(slices, self._pixels)
        name = f"{self._layout}/{row.id}.nii.gz"
        write_nifti(self._output / name, array, slices.grid)
        self._images[series.uid] = ConvertedImage(row.id, slices)
        notes = list(slices.notes)
        if series.uid in self._other_layouts:
            notes.append(
                f"an earlier conversion wrote this series to {self._other_layouts[series.uid]}, where it remains"
            )
        row.status, row.file, row.slices = "converted", name, str(len(slices.frames))
        row.shape, row.spacing = _format_size(slices.grid.shape), _format_size(slices.grid.spacing)
        row.notes, row.ignored = CELL_SEPARATOR.join(notes), _format_ignored(slices.ignored, series)

    def _convert_pictures(self, series: Series, row: SeriesRow) -> None:
        """Write all pictures of a series.

        Each picture gets its own row in `rows`, so that series.csv has one row per id.
        """
        del self.rows[series.uid]
        for instance in series.instances:
            case_id = self._picture_ids[series.uid, instance.name]
            picture = replace(row, id=case_id, slices="1")
            try:
                with reject_on_error("cannot be converted"):
                    array = read_picture(instance, self._pixels)
                    name = f"{self._layout}/{case_id}.png"
                    write_picture(self._output / name, array)
                    picture.status, picture.file = "converted", name
                    picture.shape = _format_size(array.shape[::-1])
                    picture.spacing = _format_size((instance.frame_headers[0].spacing or ())[::-1])
                    picture.notes = INVERTED_NOTE if instance.photometric == INVERTED else ""
            except SeriesRejected as error:
                picture.reason = hide_private(str(error), series.private_patterns)
            self.rows[f"{series.uid} {case_id}"] = picture
            self._report(picture)

    def convert_masks(self, label_map: LabelMap) -> None:
        """Write the masks of the converted images."""
        sources = self._of_kind("segmentation") + self._of_kind("label")
        if not sources:
            return
        # A mask may reference an image series that could not be converted; to report this, the matcher needs all
        # series.
        masks = MaskBuilder(ReferenceMatcher(self._of_kind("image"), self._images), label_map)
        masks.add_segmentations(self._of_kind("segmentation"))
        masks.add_label_series(self._of_kind("label"), self._pixels)
        for image in self._images.values():
            mask = masks.build(image.id, self._pixels)
            if mask is not None:
                try:
                    with reject_on_error("the mask cannot be written"):
                        self._write_mask(mask)
                except SeriesRejected as error:
                    masks.reject(mask.series, str(error))
        for series in sources:
            row = self.rows[series.uid]
            row.reason = hide_private(
                CELL_SEPARATOR.join(masks.rejections.get(series.uid, [])), series.private_patterns
            )
            row.ignored = _format_ignored(masks.ignored.get(series.uid, []), series)
            self._report(row)

    def _write_mask(self, mask: Mask) -> None:
        name = f"{LABEL_FOLDERS[self._layout]}/{mask.image.id}.nii.gz"
        grid = mask.image.slices.grid
        write_nifti(self._output / name, mask.array, grid)
        for uid in mask.series:
            row = self.rows[uid]
            row.id = _append(row.id if row.status == "label" else "", mask.image.id)
            row.status, row.file = "label", _append(row.file, name)
            row.notes = CELL_SEPARATOR.join(
                dict.fromkeys([*filter(None, row.notes.split(CELL_SEPARATOR)), *mask.notes])
            )
            row.shape, row.spacing = _format_size(grid.shape), _format_size(grid.spacing)

    def report_unlabelled(self) -> None:
        """Report the images without a mask if other images have one, because training rejects cases without a mask."""
        labelled = {
            case for row in self.rows.values() if row.status == "label" for case in row.id.split(CELL_SEPARATOR)
        }
        unlabelled = [image.id for image in self._images.values() if image.id not in labelled]
        if labelled and unlabelled:
            listed = ", ".join(unlabelled[:MAX_LISTED_FILES])
            more = and_more(len(unlabelled), MAX_LISTED_FILES, "case")
            self._say(
                f"images without a mask: {listed}{more}. Training stops at such a case. To leave these cases out, set "
                "competition.on_bad_case=skip"
            )

    def add_unreadable(self, scanned: Scan) -> None:
        """Add one row to series.csv that lists the files whose series is unknown."""
        if not scanned.unreadable:
            return
        private = (
            frozenset().union(*(series.private_patterns for series in self.series)) if self.series else frozenset()
        )
        reasons = list(scanned.unreadable.values())
        more = (
            f" (and {format_count(len(reasons) - MAX_LISTED_FILES, 'more file')})"
            if len(reasons) > MAX_LISTED_FILES
            else ""
        )
        reason = hide_private(CELL_SEPARATOR.join(reasons[:MAX_LISTED_FILES]) + more, private)
        row = SeriesRow(layout=self._layout, slices=str(len(reasons)), reason=reason)
        self.rows[""] = row
        self._report(row)

    def _report(self, row: SeriesRow) -> None:
        if row.status == "refused":
            self._say(f"refused {row.title}: {row.reason}")
            return
        remarks = "".join(f"; {remark}" for remark in (row.reason, row.notes, row.ignored) if remark)
        unit = "pixels" if row.file.endswith(".png") else "voxels"
        spacing = f" of {row.spacing.replace('x', '×')} mm" if row.spacing else ""
        size = f"{row.shape.replace('x', '×')} {unit}{spacing}"
        self._say(f"{row.file}: {row.title}, {row.modality}, {size}{remarks}")


def _write_series_csv(output: Path, converter: _Converter, previous_rows: list[SeriesRow]) -> None:
    """Write series.csv, which also contains the rows of earlier conversions.

    If an earlier conversion wrote other files for the series of this conversion, these files are removed.
    """
    new_rows = list(converter.rows.values())
    replaced = {(row.layout, row.series) for row in new_rows}
    kept_rows = [row for row in previous_rows if (row.layout, row.series) not in replaced]
    current_files = {name for row in [*kept_rows, *new_rows] for name in row.file.split(CELL_SEPARATOR)}
    for row in previous_rows:
        for name in set(row.file.split(CELL_SEPARATOR)) - current_files:
            path = Path(name)
            in_layout = len(path.parts) == 2 and path.parts[0] in (*LABEL_FOLDERS, *LABEL_FOLDERS.values())
            if in_layout and name.endswith(
                (".nii.gz", ".png")
            ):  # delete no other files, because a user may have edited the table
                (output / path).unlink(missing_ok=True)
    write_rows(output / "series.csv", [*kept_rows, *new_rows])


def _format_ignored(ignored: list[str], series: Series) -> str:
    more = (
        [f"and {format_count(len(ignored) - MAX_LISTED_FILES, 'more file')}"] if len(ignored) > MAX_LISTED_FILES else []
    )
    return hide_private(CELL_SEPARATOR.join([*ignored[:MAX_LISTED_FILES], *more]), series.private_patterns)


def _append(cell: str, value: str) -> str:
    """Return the text of a table cell with one more value appended."""
    return CELL_SEPARATOR.join(dict.fromkeys([*filter(None, cell.split(CELL_SEPARATOR)), value]))


def _format_size(values: tuple[float, ...]) -> str:
    return "x".join(f"{value:.6g}" for value in values)
