"""Describe the formats of the submission and of the training table for each known competition."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from competition.config.axes import rle_format_of_arrays
from competition.config.competition import Competition
from competition.errors import MaskfoldError
from competition.rle_text import RleFormat
from competition.text import nearest_names

FORMAT_ONLY = "format only"  # for competitions whose metric is not in `competition.metrics`
RowKind = Literal["image", "object", "slice_class", "image_class"]


@dataclass(frozen=True)
class TrainTable:
    """Describe how the format of the training table differs from the format of the submission.

    Attributes:
        id_column, mask_column, class_column: names of the table's columns; None means the submission's column name.
        rows_are_parts: whether the rows of one image are parts of one mask, which are merged.
        grid: (H, W) of the table's masks; None means the size of the image.
    """

    id_column: str | None = None
    mask_column: str | None = None
    class_column: str | None = None
    rows_are_parts: bool = False
    grid: tuple[int, int] | None = None


def split_class(text: str, classes: Sequence[str]) -> tuple[str, str]:
    """Split `name_class` into (name, class), e.g. `tile_1_class_2` with the classes `class_1` and `class_2`.

    If several classes fit the end of the text, the longest one is taken. If none fits, the text is split at its last
    underscore; without an underscore, the name is empty.
    """
    found = max((cls for cls in classes if text.endswith(f"_{cls}")), key=len, default=None)
    if found is not None:
        return text[: -len(found) - 1], found
    name, _, cls = text.rpartition("_")
    return name, cls


@dataclass(frozen=True)
class Profile:
    """Describe the submission format of one competition.

    Attributes:
        name: name of the competition.
        rle: how a mask is encoded as text.
        columns: the header, in order.
        id_column: the column with the name of the image (or slice). If each row is one class and there is no
            `class_column`, the cell is `{name}_{class}`.
        mask_column: the column with the encoded mask.
        class_column: the column with the class; None if there is none.
        rows: what a row describes. `image` is an image. `object` is an object; an image without objects has one empty
            row. `image_class` is an image and a class. `slice_class` is a slice of a volume (and a class, if there are
            several).
        classes: the competition's class names, if it has several.
        overlap_allowed: whether two objects of one image may share a pixel.
        grid: (H, W) of the submitted masks; None means the size of the image.
        extra_columns: additional columns with the mask's shape: `height` and `width`.
        confidence: whether one cell contains all objects of an image, each as three words: the class number 0, the
            confidence and the mask.
        metric: the host's metric as a value of `metric.name`. `format only` means that Maskfold does not have the
            metric.
        metric_keys: other keys of `metric` that the host's rule sets, see `docs/submission.md`.
        id_suffix: text that the host's ids add to the image's name without extension, e.g. `.jpg`; None if unknown.
        slices_are_images: whether the host's images are the slices of volumes. If so, and if there is no sample
            submission that lists the rows, the submission has one row for each slice of a stack.
        train: how the training table differs from the submission.
        alternative: a second format that the host accepts, if there is one. The header of the sample submission tells
            which of the two formats applies.
    """

    name: str
    rle: RleFormat
    columns: tuple[str, ...]
    id_column: str
    mask_column: str
    class_column: str | None = None
    rows: RowKind = "image"
    classes: tuple[str, ...] = ()
    overlap_allowed: bool = True
    grid: tuple[int, int] | None = None
    extra_columns: tuple[str, ...] = ()
    confidence: bool = False
    metric: str = FORMAT_ONLY
    metric_keys: tuple[tuple[str, Any], ...] = ()
    id_suffix: str | None = None
    slices_are_images: bool = False
    train: TrainTable = TrainTable()
    alternative: Profile | None = None

    @property
    def host_metric(self) -> dict[str, Any] | None:
        """The section `metric` of the YAML for the host's metric; None if the metric is not available."""
        return None if self.metric == FORMAT_ONLY else {"name": self.metric, **dict(self.metric_keys)}

    @property
    def class_in_id(self) -> bool:
        """Whether the id cell also contains the class, as in `name.jpg_1`."""
        return bool(self.classes) and self.class_column is None

    @property
    def rows_have_class(self) -> bool:
        """Whether each row names its class."""
        return bool(self.classes)

    @property
    def several_masks(self) -> bool:
        """Whether a case may have several masks, in separate rows or in one cell."""
        return self.rows == "object" or self.confidence or self.rle.container == "json"

    def split_id(self, text: str) -> tuple[str, str | None]:
        """Split an id cell into (image, class) by `split_class`; the class is None if the cell has none."""
        return split_class(text, self.classes) if self.class_in_id else (text, None)

    def match_header(self, header: Sequence[str], path: Path) -> Profile:
        """Return the format whose header a file has: this profile, or its `alternative`.

        Args:
            header: names of the file's columns.
            path: path of the file, for messages.

        Raises:
            MaskfoldError: neither format has this header.
        """
        formats = [profile for profile in (self, self.alternative) if profile is not None]
        for profile in formats:
            if list(profile.columns) == list(header):
                return profile
        if "" in header or "Unnamed: 0" in header:
            raise MaskfoldError(
                f"{path} has a column without a name.",
                "Give each column a name; pandas writes the file correctly with to_csv(…, index=False).",
                status=2,
            )
        expected = " or ".join(",".join(profile.columns) for profile in formats)
        raise MaskfoldError(
            f"{path} does not have the columns of the profile {self.name}: found {','.join(header)}, expected "
            f"{expected}.",
            "Change submission.columns or submission.profile, or use the file that the competition provides.",
            status=2,
        )


def _profile(name: str, columns: str, order: Literal["row", "column"], **fields: object) -> Profile:
    """Build a profile from comma-separated column names and the pixel order of the run lengths.

    By default, the first column is the id and the last column is the mask; `fields` override this.
    """
    names = tuple(columns.split(","))
    defaults: dict[str, object] = {
        "rle": RleFormat(order=order),
        "id_column": names[0],
        "mask_column": names[-1],
        "id_suffix": "",
    }
    return Profile(name=name, columns=names, **(defaults | fields))  # type: ignore[arg-type]


_STEEL = _profile(
    "severstal",
    "ImageId,EncodedPixels,ClassId",
    "column",
    mask_column="EncodedPixels",
    class_column="ClassId",
    rows="image_class",
    classes=("1", "2", "3", "4"),
    metric="dice",
    id_suffix=".jpg",
    train=TrainTable(id_column="ImageId", class_column="ClassId"),
)

_ALL = (
    _profile("dsb2018", "ImageId,EncodedPixels", "column", rows="object", overlap_allowed=False, metric="mean_ap"),
    _profile("carvana", "img,rle_mask", "row", metric="dice", id_suffix=".jpg"),
    _profile("tgs-salt", "id,rle_mask", "column", metric="tgs_ap"),
    _profile(
        "airbus",
        "ImageId,EncodedPixels",
        "column",
        rows="object",
        overlap_allowed=False,
        metric="f2_iou",
        id_suffix=".jpg",
    ),
    _profile(
        "siim-acr",
        "ImageId,EncodedPixels",
        "column",
        metric="dice",
        rle=RleFormat(order="column", relative=True, empty="-1"),
        train=TrainTable(mask_column=" EncodedPixels", rows_are_parts=True),  # the host's header contains this space
    ),
    replace(
        _STEEL,
        columns=("ImageId_ClassId", "EncodedPixels"),
        id_column="ImageId_ClassId",
        class_column=None,
        alternative=_STEEL,
    ),
    _profile(
        "clouds",
        "Image_Label,EncodedPixels",
        "column",
        rows="image_class",
        classes=("Fish", "Flower", "Gravel", "Sugar"),
        grid=(350, 525),
        metric="dice",
        id_suffix=".jpg",
        train=TrainTable(grid=(1400, 2100)),
    ),
    _profile("hubmap-kidney", "id,predicted", "column", metric="dice", train=TrainTable(mask_column="encoding")),
    _profile("hubmap-organ", "id,rle", "column", metric="dice"),
    _profile(
        "sartorius",
        "id,predicted",
        "row",
        rows="object",
        overlap_allowed=False,
        metric="mean_ap",
        train=TrainTable(mask_column="annotation"),
    ),
    _profile(
        "uw-madison-gi-tract",
        "id,class,predicted",
        "row",
        class_column="class",
        rows="slice_class",
        classes=("large_bowel", "small_bowel", "stomach"),
        metric="uw_madison",
        metric_keys=(("both_empty", None),),
        train=TrainTable(mask_column="segmentation"),
    ),
    _profile(
        "hubmap-vasculature",
        "id,height,width,prediction_string",
        "column",
        extra_columns=("height", "width"),
        confidence=True,
        rle=RleFormat(container="coco_zlib"),
        id_suffix=None,
    ),
    _profile("vesuvius-ink", "Id,Predicted", "row", metric="fbeta", metric_keys=(("beta", 0.5),)),
    _profile(
        "contrails",
        "record_id,encoded_pixels",
        "column",
        rle=RleFormat(empty="-"),
        metric="dice",
        metric_keys=(("average", "global"),),
    ),
    _profile(
        "sennet-hoa",
        "id,rle",
        "row",
        rle=RleFormat(order="row", empty="1 0"),
        slices_are_images=True,
        metric="surface_dice",
        metric_keys=(("tolerance_mm", 0.0),),
    ),
    _profile(
        "recodai", "case_id,annotation", "column", rle=RleFormat(empty="authentic", container="json"), id_suffix=None
    ),
)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in _ALL}


def get_profile(name: str) -> Profile:
    """Return the profile of a known competition.

    Raises:
        MaskfoldError: the name is unknown.
    """
    if name not in PROFILES:
        near = nearest_names(name, list(PROFILES), cutoff=0.0)
        raise MaskfoldError(
            f"submission.profile: found `{name}`, expected one of {', '.join(PROFILES)}.",
            f"Did you mean `{near[0]}`? If no profile fits the competition, remove submission.profile, "
            "and set submission.columns and submission.rle.",
            status=2,
        )
    return PROFILES[name]


def profile_of(comp: Competition) -> Profile:
    """Return a competition's submission format.

    This is the known profile that `submission.profile` names. Without a profile, it is built from `submission.columns`
    and `submission.rle`, with the columns in the order of the sample submission's header.

    Raises:
        MaskfoldError: the profile is unknown, or the classes differ from the profile's.
    """
    name = comp.submission.profile
    if name is None:
        return _custom_profile(comp)
    profile = get_profile(name)
    if profile.classes and set(profile.classes) != set(comp.classes):
        raise MaskfoldError(
            f"competition.classes does not fit submission.profile {name}: found {', '.join(comp.classes)}, "
            f"expected {', '.join(profile.classes)}.",
            "Use the class names of the profile, because the ids in the host's file contain them.",
            status=2,
        )
    return profile


def _custom_profile(comp: Competition) -> Profile:
    columns, rle = comp.submission.columns, comp.submission.rle
    fmt = RleFormat(order=rle.order, base=rle.base, relative=rle.relative, empty=rle.empty)
    names = tuple(column for column in (columns.id, columns.cls, columns.mask) if column is not None)
    has_slices = "{z}" in str(comp.test.images if comp.test else comp.train.images)
    rows: RowKind = "image"
    if comp.instances:
        rows = "object"
    elif has_slices:
        rows = "slice_class"
    elif columns.cls is not None or len(comp.classes) > 1:
        rows = "image_class"
    has_classes = columns.cls is not None or (len(comp.classes) > 1 and rows != "object")
    return Profile(
        name=comp.name,
        columns=_order_columns(comp, names),
        id_column=columns.id,
        mask_column=columns.mask,
        class_column=columns.cls,
        rows=rows,
        classes=tuple(comp.classes) if has_classes else (),
        overlap_allowed=not comp.instances,
        metric=comp.metric.name,
        rle=rle_format_of_arrays(comp, fmt) if comp.dimensions == 2 or rows == "slice_class" else fmt,
    )


def _order_columns(comp: Competition, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of columns in the order of the sample submission's header.

    If there is no sample submission, if it is no CSV (for example, a zip file), or if its header has other columns,
    return `names` unchanged. The commands that read the rows of the sample submission report such a file.
    """
    path = Path(comp.root) / str(comp.submission.sample)
    if comp.submission.sample is None or not path.is_file():
        return names
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            header = tuple(next(csv.reader(stream), []))
    except (csv.Error, UnicodeError):
        return names
    return header if set(header) == set(names) else names
