"""Tell from the name of a folder or file what it contains: masks or images, which split, and which channel."""

from __future__ import annotations

import re
from typing import Literal

Split = Literal["train", "val", "test", ""]


def words(text: str) -> frozenset[str]:
    """Split a text at spaces into a set of words."""
    return frozenset(text.split())


MASK_WORDS = words(
    "mask masks label labels lbl lbls seg segs segm segmentation segmentations segmented gt gts groundtruth ground "
    "truth truths annotation annotations annot anno annos ann anns manual target targets matte roi rois contour "
    "contours maske masken segmentierung segmentierungen masque masques mascara mascaras"
)
IMAGE_WORDS = words(
    "image images img imgs im ims scan scans photo photos picture pictures pic pics data input inputs raw original "
    "originals orig volume volumes vol vols frame frames slice slices slide slides sat src source sources rgb x "
    "bild bilder aufnahme aufnahmen"
)
TEST_WORDS = words("test tests testing ts tst heldout")
VALIDATION_WORDS = words("val valid validation dev")
# Folders of images that the host holds back, although their names do not say test
HELD_OUT_WORDS = words("external holdout eval evaluation inference unseen")
UNLABELLED_WORDS = words("unlabeled unlabelled unannotated")  # for training without masks, not for a test
TRAIN_WORDS = words("train training trn tr")
CHANNEL_WORDS = words(
    "flair t1 t1c t1ce t1gd t1n t1w t1wce t2 t2f t2w t2flair adc dwi hbv ct cta ctp pet suv mr mri mra pd pdw swi asl "
    "cbf cbv mtt tmax ttp dce red green blue nir swir vv vh dapi gfp rfp bf phase"
)
# Folders of these names say nothing about the class of their masks.
FORMAT_WORDS = words(
    "png jpg jpeg tif tiff bmp gif nii nifti mhd npy anat dwi func derivatives derivative rawdata bids ses session "
    "part fold batch subset site center centre semantic sem class classes object objects instance instances binary"
)
PART_WORDS = words("crop crops cropped patch patches tile tiles set sets dataset split")  # as in `traincrop`
SLICE_WORDS = words("slice slices sl z layer page plane")
# If a mask's name has such a word, a person drew it, so it is no class of its own.
ANNOTATOR_WORDS = words("annotator observer reader rater expert grader radiologist doctor dr prof physician")
# If the names of several masks of an image have such words, the masks are versions of the same objects, not classes.
OPINION_WORDS = words(
    "annotator annotators observer reader rater expert grader radiologist manual old new final refined corrected auto "
    "consensus majority version copy backup raw coarse fine st nd rd ho"
)
# Pictures in which the masks are painted over the images; beside other spectral bands, `vis` is visible light
OVERLAY_WORDS = words(
    "overlay overlays overlaid overlayed vis viz visual visualisation visualisations visualization visualizations "
    "preview previews blend blended superimposed"
)
OBJECT_WORDS = words("instance instances object objects")  # masks of single objects, not of whole classes
# A file of masks of these names, or of words for masks only, may hold the labels of all classes.
COMBINED_WORDS = words("all combined multi multilabel multiclass merged")
# Masks of these names may mark a region of interest, such as a field of view.
REGION_WORDS = words("fov roi rois region regions field fields")
TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def tokens(text: str) -> list[str]:
    """Split a name into lower-case words and numbers.

    Example:
        >>> tokens("stage1_train/imagesTr")
        ['stage', '1', 'train', 'images', 'tr']
    """
    return [part for token in TOKEN.findall(text) for part in _unglue(token.lower())]


def _unglue(token: str) -> list[str]:
    """Split a word such as `trainannot` into its two words."""
    for start in ("training", "train", "testing", "test", "validation", "valid", "val"):
        rest = token.removeprefix(start)
        if rest != token and rest in MASK_WORDS | IMAGE_WORDS | PART_WORDS:
            return [start, rest]
    return [token]


def has_word(text: str, some: frozenset[str]) -> bool:
    """Return whether a name contains one of the words `some`."""
    return not some.isdisjoint(tokens(text))


def split_of(path: str) -> Split:
    """Return the split (train, val or test) that a path or pattern names; an empty text if it names none.

    Placeholders such as {id} are ignored.
    """
    fixed = re.sub(r"\{[a-z]+\}", " ", path)
    named: list[tuple[Split, frozenset[str]]] = [
        ("test", TEST_WORDS),
        ("val", VALIDATION_WORDS),
        ("train", TRAIN_WORDS),
    ]
    return next((split for split, some in named if has_word(fixed, some)), "")


def is_role_name(name: str) -> bool:
    """Return whether a folder's name only describes the kind of its files, such as `images` or `stage1_train`.

    A single letter with a number, such as `X001`, is rather the name of a case.
    """
    role = MASK_WORDS | IMAGE_WORDS | TEST_WORDS | VALIDATION_WORDS | TRAIN_WORDS | {"stage", "set", "dataset"}
    parts = [token for token in tokens(name) if not token.isdigit()]
    is_numbered_letter = len(parts) == 1 and len(parts[0]) == 1 and any(map(str.isdigit, name))
    return bool(parts) and not is_numbered_letter and all(part in role for part in parts)


def without_role_words(name: str) -> str:
    """Remove words that name a role or a split, such as `mask`, `image` or `train`, from a name.

    The remaining words are the name of a class or channel.

    Example:
        >>> without_role_words("liver_masks"), without_role_words("labelsTr")
        ('liver', '')
    """
    role = MASK_WORDS | IMAGE_WORDS | TRAIN_WORDS | TEST_WORDS | VALIDATION_WORDS
    parts = [part for part in re.split(r"[\s_\-.]+", name) if part]
    kept = [part for part in parts if any(token not in role for token in tokens(part)) or not tokens(part)]
    return "_".join(kept)


def is_channel_name(name: str) -> bool:
    """Return whether a name denotes a channel: a modality, a colour, or a number such as `0001` or `ch2`."""
    joined = "".join(tokens(name))
    return joined in CHANNEL_WORDS or re.fullmatch(r"(c|ch|channel|band|b)?\d{1,4}", joined) is not None
