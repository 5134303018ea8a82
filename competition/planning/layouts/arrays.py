"""Describe NPZ files that hold an image and its mask, and make the command that writes both into separate files."""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from competition.data.readers import extension_of
from competition.errors import MaskfoldError
from competition.planning.folder import HostFolder
from competition.planning.layouts.content import role_of_values
from competition.planning.words import words

IMAGE_KEYS = words("image images img imgs x data input inputs volume vol ct mri raw scan")
MASK_KEYS = words("mask masks label labels lbl gt gts seg segmentation segmentations y target targets annotation")
MAX_BYTES = 2**28  # a larger array is not read


def arrays_error(host: HostFolder) -> MaskfoldError | None:
    """Return the error for NPZ files with several arrays; None without such files.

    The error names the arrays. The hint has a command that writes images and masks into two folders beside the data.
    """
    path = next((path for path in host.images if extension_of(path) == ".npz"), None)
    shapes = {} if path is None else _shapes(host.root / path)
    if path is None or len(shapes) < 2:
        return None
    image, mask = _image_and_mask(host.root / path, shapes)
    shown = ", ".join(f"{key} ({'×'.join(map(str, shape)) or 'one value'})" for key, shape in list(shapes.items())[:6])
    ranks = {len(shapes[key]) for key in (image, mask) if key in shapes}
    volumes = (
        " Afterwards, set array_axes (zyx if the first axis counts the slices) and spacing in competition.yaml, "
        "because the data are volumes."
        if 3 in ranks
        else ""
    )
    unclear = "" if image and mask else " In the command, write the names of the two arrays in place of IMAGE and MASK."
    return MaskfoldError(
        f"{host.root} has NPZ files with several arrays: {path} has {shown}. Maskfold reads only one "
        "array of each file.",
        f"Write images and masks into separate files with the following command.{unclear}{volumes} The command: "
        f"{_command(host, image or 'IMAGE', mask or 'MASK')}",
        status=2,
    )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array in an archive; empty if the archive cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for name in archive.namelist():
                with archive.open(name) as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                    read = np.lib.format.read_array_header_2_0 if version == (2, 0) else read
                    if read is not None:
                        shapes[name.removesuffix(".npy")] = read(file)[0]
            return shapes
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}


def _image_and_mask(path: Path, shapes: Mapping[str, Sequence[int]]) -> tuple[str, str]:
    """Return which array is the image and which is the mask, by name or else by values; empty texts if unclear."""
    found = [[key for key in shapes if key.casefold() in some] for some in (IMAGE_KEYS, MASK_KEYS)]
    if [len(keys) for keys in found] != [1, 1]:
        found = [[key for key, role in _roles(path, shapes).items() if role == some] for some in ("image", "mask")]
    image, mask = (keys[0] if len(keys) == 1 else "" for keys in found)
    return (image, mask) if image and mask else ("", "")


def _roles(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return `image` or `mask` for each array with two axes or more, by its values."""
    roles = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key, shape in shapes.items():
                if len(shape) >= 2 and 8 * np.prod(shape, dtype=float) <= MAX_BYTES:
                    array = archive[key]
                    is_label = array.dtype.kind in "biu"
                    roles[key] = "mask" if is_label and role_of_values(array.astype(np.int64)) == "mask" else "image"
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
    return roles


def _command(host: HostFolder, image: str, mask: str) -> str:
    """Return a shell command that writes two NPY files for each NPZ file, and then starts `init` on them."""
    target = f"{host.given}-arrays"
    parts = f'(({json.dumps(image)}, "images"), ({json.dumps(mask)}, "masks"))'
    program = (
        f"import numpy as np, pathlib; root = pathlib.Path({json.dumps(str(host.root))}); "
        f"[(to.parent.mkdir(parents=True, exist_ok=True), np.save(to, np.load(file)[key])) "
        f'for file in root.rglob("*.npz") for key, kind in {parts} '
        f"for to in [pathlib.Path({json.dumps(target)}) / file.parent.relative_to(root) / kind / "
        f'(file.stem + ".npy")]]'
    )
    return f"python -c {shlex.quote(program)} && maskfold init {shlex.quote(target)}"
