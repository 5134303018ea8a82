"""Make the error for a folder without a known layout: it says what the folder has, and what to do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from competition.data.readers import ITK_EXTENSIONS, extension_of, strip_extension
from competition.errors import MaskfoldError
from competition.planning.folder import ARCHIVES, HostFolder, is_dicom
from competition.planning.layout import ROLE_SAMPLE, first_path
from competition.planning.layouts.arrays import arrays_error
from competition.planning.layouts.colours import colours_error
from competition.planning.layouts.content import Role, header_of, reading_error, role_of_file
from competition.planning.layouts.nested.depths import scans_error
from competition.planning.layouts.series import MIN_CASES, MOST, Series
from competition.planning.layouts.slice_masks import slice_masks_error
from competition.planning.words import MASK_WORDS, has_word, is_role_name
from competition.text import format_count

BY_HAND = (
    "You can also write experiments/NAME/competition.yaml by hand, with the keys name, root, "
    "dimensions, classes, train.images and train.masks. In a pattern, {id} stands for the name of "
    "a case, as in `images/{id}.png` with `masks/{id}.png`. docs/yaml.md describes all keys."
)
# Formats of images that Maskfold does not read
OTHER_IMAGES = (
    *(".ppm", ".pgm", ".pbm", ".pnm", ".webp"),
    *(".svs", ".ndpi", ".mrxs", ".czi", ".lif", ".nd2", ".mrc"),
    *(".h5", ".hdf5", ".mat", ".tfrecord", ".tfrecords"),
)
OUTLINES = (".xml", ".geojson", ".jsonl", ".json", ".txt")  # formats of outlines, which Maskfold reads only as COCO
FEW_FILES = 12  # with at most this many images, each may be a stack of many
DICOM_SAMPLE = 20  # maximum number of files that are opened to see whether a folder has DICOM files


def no_layout_error(host: HostFolder, series: Sequence[Series], roles: dict[str, Role]) -> MaskfoldError:
    """Return the error for a folder without a known layout; it describes the folder, and the hint says what to do."""
    root = shlex.quote(str(host.root))
    sample = [host.files[number * len(host.files) // DICOM_SAMPLE] for number in range(DICOM_SAMPLE)]
    if any(is_dicom(host.root / path) for path in dict.fromkeys(sample)):
        return MaskfoldError(
            f"{host.root} has DICOM files, which must be converted first.",
            f"Convert them: maskfold dicom {root} -o {shlex.quote(str(host.root) + '-nifti')}. Then run "
            "maskfold init on the folder of the result.",
            status=2,
        )
    if not host.images:
        return _no_images(host)
    for error in (arrays_error(host), slice_masks_error(host, series, roles), scans_error(host)):
        if error is not None:
            return error
    counts = f"{format_count(len(host.images), 'image')}, such as {host.images[0]}"
    in_colours = [item for item in series if roles[item.pattern] == "colours"]
    if in_colours:
        return colours_error(host, next((item for item in in_colours if item.split in ("train", "")), in_colours[0]))
    if not any(role == "mask" for role in roles.values()):
        blank = [pattern for pattern, role in roles.items() if role == "either" and has_word(pattern, MASK_WORDS)]
        if blank:
            return MaskfoldError(
                f"{host.root} has {counts}. The files `{blank[0]}` are named like masks, but in each of them that was "
                "read, all pixels have the same value.",
                f"Check that these files are complete. {BY_HAND}",
                status=2,
            )
        if (error := _unread_truth(host, series, roles, counts)) is not None:
            return error
        if (error := _mixed_error(host, series, roles, counts)) is not None:
            return error
        if (archive := packed_archive(host)) is not None:
            return MaskfoldError(
                f"{host.root} has {counts}, but no masks and no table of run lengths. {archive} is still packed.",
                f"Unpack {archive} in this folder, and run maskfold init again.",
                status=2,
            )
        kinds = [item for item in series if not item.whole and not is_role_name(item.label)] or list(series)
        shown = ", ".join(f"`{item.pattern}` ({format_count(len(item.ids), 'case')})" for item in kinds[:4])
        return MaskfoldError(
            (f"{host.root} has {counts}, but neither masks nor a table of run lengths, so it can only be a test set.")
            + (
                " If one file contains many images, write a file for each image."
                if len(host.images) <= FEW_FILES
                else ""
            )
            + (
                f" Found these kinds of files: {shown}. None of them has the flat regions of a mask."
                if len(kinds) > 1
                else ""
            ),
            "Add the masks of the training images. To predict these images with a trained run: maskfold "
            f"predict RUN --images {root} -o predictions. {BY_HAND if len(kinds) > 1 else ''}".rstrip(),
            status=2,
        )
    masks = [pattern for pattern, role in roles.items() if role == "mask"]
    images = [pattern for pattern, role in roles.items() if role == "image"]
    found = f"masks {', '.join(f'`{pattern}`' for pattern in masks[:3])}"
    if not images:
        return MaskfoldError(
            f"{host.root} has {found}, but no images.",
            "Add the images, or give the folder that contains both images and masks.",
            status=2,
        )
    if (error := _different_sizes(host, series, roles)) is not None:
        return error
    return MaskfoldError(
        f"{host.root} has the images {', '.join(f'`{pattern}`' for pattern in images[:3])} and {found}, "
        "but the names or sizes of images and masks do not match.",
        f"Give each mask the same name as its image. {BY_HAND}",
        status=2,
    )


def _unread_truth(
    host: HostFolder, series: Sequence[Series], roles: Mapping[str, Role], counts: str
) -> MaskfoldError | None:
    """Return the error for masks or outlines in a form that Maskfold does not read; None if no file looks like them."""
    for item in series:
        header = header_of(first_path(host, item)) if has_word(item.pattern, MASK_WORDS) else None
        if header is not None and header.channels > 1 and item.kind == "single":
            return MaskfoldError(
                f"{host.root} has {counts}. The files `{item.pattern}` are named like masks, but each file has "
                f"{header.channels} channels or time points, expected 1.",
                "Write one label file for each case. If the data have time points, make each time point a "
                f"case. {BY_HAND}",
                status=2,
            )
    unread = [item for item in series if roles[item.pattern] == "unreadable"]
    if unread and (reason := reading_error(first_path(host, unread[0]))) is not None:
        return MaskfoldError(
            f"{host.root} has {counts}. Files that match `{unread[0].pattern}` cannot be read: {reason.message}",
            f"If they are the masks, write each as PNG, TIFF, NIfTI or NPY with one integer per pixel. {BY_HAND}",
            status=2,
        )
    stems = {strip_extension(path.rpartition("/")[2]) for path in host.images}
    for path in host.files:
        name = path.rpartition("/")[2]
        if name.lower().endswith(OUTLINES):
            is_own = strip_extension(name.rpartition(".")[0]) in stems or not name.lower().endswith((".json", ".txt"))
            if is_own or (has_word(path, MASK_WORDS | {"polygons"}) and name.lower().endswith(".json")):
                return MaskfoldError(
                    f"{host.root} has {counts}, but neither masks nor a table of run lengths. Files such as {path} "
                    "may describe the objects, but Maskfold reads outlines only from a COCO file.",
                    "Export masks or a COCO file from the program in which the objects were drawn, or draw the "
                    "outlines into one mask per image, for example with skimage.draw.polygon.",
                    status=2,
                )
    return None


def _mixed_error(
    host: HostFolder, series: Sequence[Series], roles: Mapping[str, Role], counts: str
) -> MaskfoldError | None:
    """Return the error for images and masks whose names fit the same pattern; None if there are no such files."""
    for item in series:
        paths = item.sample(ROLE_SAMPLE) if roles[item.pattern] == "image" and item.kind == "single" else []
        masks = [path for path in paths if role_of_file(host.root / path) == "mask"]
        images = [path for path in paths if role_of_file(host.root / path) == "image"]
        if len(masks) >= MIN_CASES and images:
            return MaskfoldError(
                f"{host.root} has {counts}. The pattern `{item.pattern}` matches images, such as {images[0]}, and "
                f"files that look like masks, such as {masks[0]}. The names do not show which mask belongs to which "
                "image.",
                f"Give each mask the name of its image, in a separate folder or with a suffix such as _mask. {BY_HAND}",
                status=2,
            )
    return None


def _different_sizes(host: HostFolder, series: Sequence[Series], roles: Mapping[str, Role]) -> MaskfoldError | None:
    """Return the error for images and masks with the same ids but different sizes; None without such files."""
    for mask in series:
        for image in series:
            shared = sorted(image.ids & mask.ids)
            if (roles[image.pattern], roles[mask.pattern]) == ("image", "mask") and len(shared) >= MOST * len(mask.ids):
                one, other = (header_of(host.root / item.files[shared[0]][0]) for item in (image, mask))
                if one is not None and other is not None and sorted(one.shape) != sorted(other.shape):
                    sizes = ["×".join(map(str, header.shape)) for header in (one, other)]
                    return MaskfoldError(
                        f"{host.root} has images `{image.pattern}` and masks `{mask.pattern}` of the same cases, but "
                        f"their sizes differ: in {shared[0]}, the image has {sizes[0]} and the mask has {sizes[1]}.",
                        "Write images and masks of the same size. If an image has several time points or channels, "
                        f"write one file for each. {BY_HAND}",
                        status=2,
                    )
    return None


def packed_archive(host: HostFolder) -> str | None:
    """Return the path of an archive that is not unpacked; None without an archive."""
    return next((path for path in host.files if extension_of(path) in ARCHIVES), None)


def _no_images(host: HostFolder) -> MaskfoldError:
    extensions = [extension_of(path) for path in host.files]
    archive = packed_archive(host)
    medical = next(
        (
            path
            for path, ending in zip(host.files, extensions, strict=True)
            if ending in (*ITK_EXTENSIONS, ".img", ".hdr")
        ),
        None,
    )
    if medical is not None:
        return MaskfoldError(
            f"{host.root} has files of a format that Maskfold does not read, such as {medical}.",
            "Convert each file to NIfTI with SimpleITK or nibabel, with the same position and voxel size.",
            status=2,
        )
    other = next((path for path in host.files if path.lower().endswith(OTHER_IMAGES)), None)
    if other is not None:
        return MaskfoldError(
            f"{host.root} has no images of a format that Maskfold reads, only files such as {other}.",
            "Convert them to PNG, TIFF or NPY, for example with Pillow, tifffile or h5py.",
            status=2,
        )
    hint = "Give the folder with the images of the competition."
    if archive is not None:
        hint = f"Unpack {archive} in this folder, and run maskfold init again."
    return MaskfoldError(
        f"{host.root} has no images, only {format_count(len(host.files), 'file')}, such as {host.files[0]}.",
        hint,
        status=2,
    )
