"""Predict in a container of Grand Challenge: images come from /input/images, label files go to /output/images.

`maskfold export --container grand-challenge` writes a bundle with a Dockerfile. The entry point of the container is the
script `process.py`, which calls `main` of this module.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.axes import competition_axes, permutation
from competition.config.competition import Competition
from competition.context import Context
from competition.data.formats.itk import ItkGeometry, itk_geometry
from competition.data.image_types import Image
from competition.data.readers import extension_of, read_image, strip_extension, transpose_image
from competition.ensembling.ensemble import EnsemblePredictor, InMemoryCase
from competition.errors import MaskfoldError
from competition.export.runtime_cases import Bundle
from competition.postprocessing.pipeline import postprocess
from competition.submission.label_files import submission_labels
from competition.text import format_count

CONTAINER_FILE = "container.json"  # file in the bundle with the names of the sockets
EXTENSIONS = (".mha", ".tif", ".tiff")


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Predict all input images; print a `MaskfoldError` to standard error.

    Args:
        folder: folder of the bundle.
        arguments: arguments of the command line; None for this process's arguments.

    Returns:
        The exit status: 0 after success, otherwise the `status` of the error.
    """
    parser = argparse.ArgumentParser(
        prog="process.py", description="Predict the images of the input socket, and write a label file for each."
    )
    parser.add_argument("--input", type=Path, default=Path("/input"))
    parser.add_argument("--output", type=Path, default=Path("/output"))
    args = parser.parse_args(arguments)
    try:
        count = predict_sockets(folder, args.input, args.output)
    except MaskfoldError as error:
        print(f"error: {error.message} {error.hint}", file=sys.stderr)
        return error.status
    print(f"{format_count(count, 'label file')} in {args.output}", flush=True)
    return 0


def predict_sockets(folder: Path, input_folder: Path, output_folder: Path) -> int:
    """Predict each image of the input socket, and write a label file for it.

    Args:
        folder: folder of the bundle.
        input_folder: folder that contains `images/<input socket>/*.mha`, `*.tif` or `*.tiff`.
        output_folder: folder in which `images/<output socket>/*.mha` is written, with the names and the geometry of the
            images.

    Returns:
        The number of label files.

    Raises:
        MaskfoldError: there is no image, or an image cannot be read or predicted.
    """
    plain = json.loads((folder / CONTAINER_FILE).read_text(encoding="utf-8"))
    bundle = Bundle.read(folder, input_folder)
    comp = bundle.ensemble.comp
    files = find_images(input_folder / "images", plain["input"])
    target = output_folder / "images" / plain["output"]
    target.mkdir(parents=True, exist_ok=True)
    predictor: EnsemblePredictor | None = None
    with tempfile.TemporaryDirectory() as scratch:
        for path in files:
            image, geometry = read_input(path, comp)
            case = InMemoryCase(path.name, image)
            if predictor is None:  # the first image defines the number of channels
                predictor = EnsemblePredictor(bundle.ensemble, case, Context(bundle.trust), Path(scratch))
            probabilities, presence = predictor.predict(case)
            prediction = postprocess(probabilities, comp, bundle.settings, case, presence)
            labels = submission_labels(prediction, comp)
            write_output(target / f"{strip_extension(path.name)}.mha", labels, comp, geometry)
    return len(files)


def find_images(folder: Path, slug: str | None) -> list[Path]:
    """Return the paths of the images of the input socket (an input of an algorithm at Grand Challenge).

    Args:
        folder: folder with one subfolder for each socket.
        slug: name of the input socket; None if there is a single socket.

    Raises:
        MaskfoldError: the socket is missing or not unique, or it has no images.
    """
    sockets = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if slug is not None:
        sockets = [path for path in sockets if path.name == slug]
    if len(sockets) != 1:
        found = f"the image folders {', '.join(path.name for path in sockets)}" if sockets else "no image folder"
        raise MaskfoldError(
            f"{folder} has {found}, expected exactly one." if slug is None else f"{folder} has no image folder {slug}.",
            f"Mount the input of the algorithm at {folder.parent}. If the algorithm has several inputs of images, "
            "export the bundle again with --input-slug SLUG, the slug of one input at Grand Challenge.",
        )
    files = sorted(path for path in sockets[0].iterdir() if extension_of(path.name) in EXTENSIONS)
    if not files:
        raise MaskfoldError(
            f"{sockets[0]} has no image, expected files with one of the extensions {', '.join(EXTENSIONS)}.",
            "Copy the images into this folder.",
        )
    return files


def read_input(path: Path, comp: Competition) -> tuple[Image, ItkGeometry | None]:
    """Read an image of the input socket.

    Args:
        path: path of the file.
        comp: the competition.

    Returns:
        The image in the competition's order of axes; and the geometry for its label file, or None if it is a TIFF file.

    Raises:
        MaskfoldError: the file cannot be read, or its number of dimensions is not that of the competition.
    """
    dims, target = comp.dimensions, competition_axes(comp)
    image = read_image(path, dims)
    if extension_of(path.name) != ".mha":
        image = transpose_image(image, permutation("yxz" if dims == 3 else "yx", target))
        if comp.spacing is not None and not image.has_spacing:
            image = replace(image, spacing=tuple(comp.spacing))
        return image, None
    geometry = itk_geometry(path)
    if len(geometry.spacing) != dims:
        raise MaskfoldError(
            f"{path} has {len(geometry.spacing)} dimensions, expected {dims}.",
            "Check that --input-slug names the input with the images to segment.",
        )
    return transpose_image(image, permutation("xyz" if dims == 3 else "xy", target)), geometry


def write_output(path: Path, labels: np.ndarray[Any, Any], comp: Competition, geometry: ItkGeometry | None) -> None:
    """Write a label file in the format MHA.

    Args:
        path: path of the file.
        labels: (*spatial) integers, in the competition's order of axes.
        comp: the competition.
        geometry: spacing, origin and direction of the file; None for the defaults (spacing 1, origin 0).
    """
    import SimpleITK

    order = permutation(competition_axes(comp), "xyz" if comp.dimensions == 3 else "xy")
    plain = labels if order is None else labels.transpose(order)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(plain.T))
    if geometry is not None:
        image.SetSpacing(geometry.spacing)
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
    SimpleITK.WriteImage(image, str(path), useCompression=True)
