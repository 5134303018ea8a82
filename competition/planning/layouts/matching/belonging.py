"""Choose the images to which a mask belongs, if several images have the mask's id."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from competition.planning.layouts.series import Pair, Series
from competition.planning.words import MASK_WORDS, has_word, tokens, without_role_words


def prefer_own_images(pairs: Sequence[Pair]) -> list[Pair]:
    """Drop pairs of an image and a mask if both have a better partner, and return the other pairs.

    An image and a mask are partners if their folders show it, as `01` and `01_GT/SEG`, or `PNG/raw` and `PNG/masks`.
    They are also partners if the mask's name continues the image's name, as `{id}_4CH_ED` and `{id}_4CH_ED_gt`. If
    the image and the mask of a pair are not partners, and each of them has a partner in another pair, the pair is
    dropped. An image without a partner keeps its pairs, because it may be another channel.
    """
    kept = list(pairs)
    for belongs in (_by_folder, _by_name):
        images_of: dict[str, list[Pair]] = {}
        for pair in kept:
            images_of.setdefault(_file(pair[1]), []).append(pair)
        own = {
            (_file(image), _file(mask))
            for same in images_of.values()
            for image, mask in same
            if belongs(image, mask, [other for other, _ in same])
        }
        claimed, with_own = {image for image, _ in own}, {mask for _, mask in own}
        kept = [
            (image, mask)
            for image, mask in kept
            if (_file(image), _file(mask)) in own or _file(image) not in claimed or _file(mask) not in with_own
        ]
    return kept


def _file(series: Series) -> str:
    """Return the first file path of a series, which identifies the series even after the ids were shortened."""
    return min(paths[0] for paths in series.files.values())


Belongs = Callable[[Series, Series, Sequence[Series]], bool]


def _folder_words(series: Series) -> set[str]:
    return set(tokens(series.pattern.rpartition("/")[0].replace("{id}", " ")))


def _by_folder(image: Series, mask: Series, images: Sequence[Series]) -> bool:
    """Return whether the names of the mask's folders contain all words of the image's folders.

    Words that the folders of all `images` have in common are ignored.

    Args:
        image: one of the images with the mask's id.
        mask: the mask.
        images: all images with the mask's id.
    """
    common = set.intersection(*map(_folder_words, images))
    own = _folder_words(image) - common
    return bool(own) and own <= _folder_words(mask)


def _by_name(image: Series, mask: Series, _: Sequence[Series]) -> bool:
    """Return whether image and mask have the same suffix, apart from words such as `gt`: `{id}_ED` and `{id}_ED_gt`."""
    name = without_role_words(image.label)
    return bool(name) and has_word(mask.label, MASK_WORDS) and name == without_role_words(mask.label)
