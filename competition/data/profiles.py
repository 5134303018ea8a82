"""What the files of each known competition look like, as plain data: the one it wants, and its training table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest
from competition.rle import RleFormat

FORMAT_ONLY = "format only"  # `competition.scoring` does not have the host's metric


@dataclass(frozen=True)
class TrainTable:
    """The host's training table, where it differs from what the host wants back.

    Attributes:
        id_column, mask_column, class_column: its columns; None: as in the submission.
        several_rows: one image has several rows that are parts of one mask, to be united.
        grid: (H, W) on which its masks are written; None: the image's own.
    """

    id_column: str | None = None
    mask_column: str | None = None
    class_column: str | None = None
    several_rows: bool = False
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Profile:
    """How one competition wants its file.

    Attributes:
        name: the competition.
        rle: how a mask becomes text.
        columns: the header, in order.
        id_column: holds the image's (or slice's) name; `{name}_{class}` where rows are per class and there is no
            `class_column`.
        mask_column: holds the text.
        class_column: holds the class.
        rows: `image` one row each; `object` one row per object, and one empty row for an image without any;
            `image_class` one per image and class; `slice_class` one per slice of a volume (and class, if any).
        classes: the names the host uses, where it has several.
        overlap_allowed: whether two objects of one image may share a pixel.
        grid: (H, W) on which the host reads the masks; None: the image's own size.
        extra: columns filled from the mask's shape, `height` and `width`.
        confidence: the text is `0 confidence mask` for each object, all in one cell.
        metric: its name in `metric.name`, or `format only`.
        train: the training table, where it differs.
        other: a second layout; the sample's header decides between the two.
    """

    name: str
    rle: RleFormat
    columns: tuple[str, ...]
    id_column: str
    mask_column: str
    class_column: str | None = None
    rows: Literal["image", "object", "slice_class", "image_class"] = "image"
    classes: tuple[str, ...] = ()
    overlap_allowed: bool = True
    grid: tuple[int, int] | None = None
    extra: tuple[str, ...] = ()
    confidence: bool = False
    metric: str = FORMAT_ONLY
    train: TrainTable = TrainTable()
    other: Profile | None = None

    @property
    def joined(self) -> bool:
        """Whether the id's cell also holds the class: `name.jpg_1`."""
        return bool(self.classes) and self.class_column is None

    @property
    def classed(self) -> bool:
        """Whether a row says of which class it is."""
        return bool(self.classes)

    @property
    def many(self) -> bool:
        """Whether a case may have several masks: in rows of their own, or together in one cell."""
        return self.rows == "object" or self.confidence or self.rle.container == "json"

    def split_id(self, text: str) -> tuple[str, str | None]:
        """(image, class) of an id's cell; the class is None where the cell does not hold one."""
        if not self.joined:
            return text, None
        image, _, cls = text.rpartition("_")
        return image, cls

    def layout(self, header: Sequence[str], path: Path) -> Profile:
        """The layout, this or `other`, that has the header of a file.

        Raises:
            MaskfoldError: neither has.
        """
        for one in (self, self.other):
            if one is not None and list(one.columns) == list(header):
                return one
        if "" in header or "Unnamed: 0" in header:
            raise MaskfoldError(f"{path} has a column without a name.", "Write it with pandas' to_csv(…, index=False).",
                                status=2)
        known = " or ".join(",".join(one.columns) for one in (self, self.other) if one is not None)
        raise MaskfoldError(f"{path} has the columns {','.join(header)}, but {self.name} has {known}.",
                            "Correct submission.columns or submission.profile, or take the host's own file.", status=2)


def _profile(name: str, columns: str, order: Literal["row", "column"], **rest: object) -> Profile:
    """The first column is the id, the last the mask, unless said otherwise."""
    names = tuple(columns.split(","))
    plain: dict[str, object] = {"rle": RleFormat(order=order), "id_column": names[0], "mask_column": names[-1]}
    return Profile(name=name, columns=names, **(plain | rest))  # type: ignore[arg-type]


_STEEL = _profile("severstal", "ImageId,EncodedPixels,ClassId", "column", mask_column="EncodedPixels",
                  class_column="ClassId", rows="image_class", classes=("1", "2", "3", "4"), metric="dice",
                  train=TrainTable(id_column="ImageId", class_column="ClassId"))

_ALL = (
    _profile("dsb2018", "ImageId,EncodedPixels", "column", rows="object", overlap_allowed=False, metric="mean_ap"),
    _profile("carvana", "img,rle_mask", "row", metric="dice"),
    _profile("tgs-salt", "id,rle_mask", "column", metric="tgs_ap"),
    _profile("airbus", "ImageId,EncodedPixels", "column", rows="object", overlap_allowed=False, metric="f2_iou"),
    _profile("siim-acr", "ImageId,EncodedPixels", "column", metric="dice",
             rle=RleFormat(order="column", relative=True, empty="-1"),
             train=TrainTable(mask_column=" EncodedPixels", several_rows=True)),  # the host's header has that space
    replace(_STEEL, columns=("ImageId_ClassId", "EncodedPixels"), id_column="ImageId_ClassId", class_column=None,
            other=_STEEL),
    _profile("clouds", "Image_Label,EncodedPixels", "column", rows="image_class",
             classes=("Fish", "Flower", "Gravel", "Sugar"), grid=(350, 525), metric="dice",
             train=TrainTable(grid=(1400, 2100))),
    _profile("hubmap-kidney", "id,predicted", "column", metric="dice", train=TrainTable(mask_column="encoding")),
    _profile("hubmap-organ", "id,rle", "column", metric="dice"),
    _profile("sartorius", "id,predicted", "row", rows="object", overlap_allowed=False, metric="mean_ap",
             train=TrainTable(mask_column="annotation")),
    _profile("uw-madison-gi-tract", "id,class,predicted", "row", class_column="class", rows="slice_class",
             classes=("large_bowel", "small_bowel", "stomach"), metric="uw_madison",
             train=TrainTable(mask_column="segmentation")),
    _profile("hubmap-vasculature", "id,height,width,prediction_string", "column", extra=("height", "width"),
             confidence=True, rle=RleFormat(container="coco_zlib")),
    _profile("vesuvius-ink", "Id,Predicted", "row", metric="fbeta"),
    _profile("contrails", "record_id,encoded_pixels", "column", rle=RleFormat(empty="-"), metric="dice"),
    _profile("sennet-hoa", "id,rle", "row", rle=RleFormat(order="row", empty="1 0"), metric="surface_dice"),
    _profile("recodai", "case_id,annotation", "column", rle=RleFormat(empty="authentic", container="json")),
)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in _ALL}


def known_profile(name: str) -> Profile:
    """A known competition's profile.

    Raises:
        MaskfoldError: the name is unknown.
    """
    if name not in PROFILES:
        near = nearest(name, list(PROFILES), cutoff=0.0)
        raise MaskfoldError(f"submission.profile `{name}` is none of {', '.join(PROFILES)}.",
                            f"Did you mean `{near[0]}`? Or leave it out and set submission.columns and submission.rle.",
                            status=2)
    return PROFILES[name]


def profile_of(comp: Competition) -> Profile:
    """What a competition's YAML says of its file: a known profile, or its columns and run lengths.

    The header is the sample's where there is a sample, as its order of columns is the host's.

    Raises:
        MaskfoldError: the profile is unknown, or the classes are not the ones its host names.
    """
    name = comp.submission.profile
    if name is None:
        return _described(comp)
    profile = known_profile(name)
    if profile.classes and set(profile.classes) != set(comp.classes):
        raise MaskfoldError(f"competition.classes is {', '.join(comp.classes)}, but {name} names its classes "
                            f"{', '.join(profile.classes)}.", "Name them as the host does, as its ids need them.",
                            status=2)
    return profile


def _described(comp: Competition) -> Profile:
    said, rle = comp.submission.columns, comp.submission.rle
    named = tuple(column for column in (said.id, said.cls, said.mask) if column is not None)
    sliced = "{z}" in str(comp.test.images if comp.test else comp.train.images)
    rows: Literal["image", "object", "slice_class", "image_class"] = "image"
    if comp.instances:
        rows = "object"
    elif sliced:
        rows = "slice_class"
    elif said.cls is not None or len(comp.classes) > 1:
        rows = "image_class"
    return Profile(
        name=comp.name, columns=_header(comp, named), id_column=said.id, mask_column=said.mask, class_column=said.cls,
        rows=rows, classes=tuple(comp.classes) if said.cls is not None or (len(comp.classes) > 1 and rows != "object") else (),
        overlap_allowed=not comp.instances, metric=comp.metric.name,
        rle=RleFormat(order=rle.order, base=rle.base, relative=rle.relative, empty=rle.empty))


def _header(comp: Competition, named: tuple[str, ...]) -> tuple[str, ...]:
    """The named columns in the order of the sample, where it has just these."""
    path = Path(comp.root) / str(comp.submission.sample)
    if comp.submission.sample is None or not path.is_file():
        return named
    with open(path, encoding="utf-8-sig", newline="") as stream:
        header = tuple(next(csv.reader(stream), []))
    return header if set(header) == set(named) else named
