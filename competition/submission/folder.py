"""Predicts the images of any folder, and writes label files that lie on them pixel by pixel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from competition.config import MaskfoldError
from competition.config.competition import Competition, Test
from competition.config.postprocess import Postprocess
from competition.data.files import writable
from competition.data.readers import known
from competition.data.skipped import told
from competition.data.sources import find
from competition.data.table import case_table, load_image
from competition.scoring.pictures import case_picture
from competition.submission.blend import Blend, check_same
from competition.submission.labels import label_arrays
from competition.submission.members import Ensemble, plain_rows
from competition.submission.postprocess import Outcome, postprocess
from competition.submission.remembered import remembered
from competition.training.checkpoint import write_whole
from competition.training.runs import CvRun


@dataclass(frozen=True)
class Prediction:
    """One image's label files, and how many pixels of each class are in them."""

    case_id: str
    files: tuple[Path, ...]
    pixels: dict[str, int]


def predict_images(
    runs: Sequence[CvRun],
    images: Path,
    output: Path,
    trust: tuple[str, ...] = (),
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda rows, _: rows,
    pictures: int = 0,
) -> list[Prediction]:
    """Predicts every image of a folder with every fold of every run.

    Volumes become `{id}.nii.gz` with the image's affine and header, pictures `{id}.png`. The values are those of the
    classes in label files; with `competition.instances` pixels hold the object's number. Overlapping classes have a
    file each, `{id}_{class}`.

    Args:
        runs: finished runs of one competition, with equal weights. Steps are those of the first one's `postprocess.steps`, or what
            its search found and kept.
        images: the folder; names as in `test.images` or `train.images`, or one image file for each case.
        output: where to.
        trust: packages besides the known ones that `target` may name.
        progress: wraps the cases, given their number.
        pictures: of how many cases, from the first, `pictures/{id}.png` shows image and prediction side by side.

    Raises:
        MaskfoldError: the folder holds no image, or a case cannot be read or predicted.
    """
    check_same(runs)
    if output.resolve() == images.resolve():
        raise MaskfoldError(
            f"The predictions would overwrite the images: both folders are {output}.",
            "Give -o another folder.",
            status=2,
        )
    writable(output)
    comp = folder_competition(runs[0].exp.competition, images)
    rows = plain_rows(told(case_table(comp, "test")))
    moved = [replace(run, exp=run.exp.model_copy(update={"competition": comp})) for run in runs]
    ensemble = Ensemble(Blend(tuple(moved), tuple([1 / len(moved)] * len(moved))), rows[0], trust)
    output.mkdir(parents=True, exist_ok=True)
    settings = settings_of(runs)
    done = []
    for row in progress(iter(rows), len(rows)):
        probabilities, gate = ensemble.predict(row)
        outcome = postprocess(probabilities, comp, settings, row, gate)
        done.append(
            Prediction(
                row.id,
                tuple(_write(row, outcome, comp, output)),
                {name: int(mask.sum()) for name, mask in zip(comp.classes, outcome.masks, strict=True)},
            )
        )
        if len(done) <= pictures:
            _draw(output / "pictures" / f"{row.id}.png", row, outcome, comp)
    return done


def settings_of(runs: Sequence[CvRun]) -> Postprocess:
    """The steps that label files are made with: the first run's, or what its search found and kept."""
    known = remembered(runs[0]) if len(runs) == 1 else None
    return known.settings if known is not None else runs[0].exp.postprocess


def folder_competition(comp: Competition, images: Path) -> Competition:
    """The competition with the images of another folder as its test cases.

    Raises:
        MaskfoldError: the folder is none, or nothing in it looks like the competition's images.
    """
    if not images.is_dir():
        raise MaskfoldError(f"--images {images} is not a folder.", "Name the folder that holds the images.", status=2)
    for pattern in ([comp.test.images] if comp.test is not None else []) + [comp.train.images]:
        named = pattern if isinstance(pattern, dict) else {"image": pattern}
        depth = min(text.count("/") for text in named.values())
        for cut in range(depth + 1):
            tails = {name: "/".join(text.split("/")[cut:]) for name, text in named.items()}
            if all("{id}" in tail and _finds(images, tail) for tail in tails.values()):
                found: Any = tails if isinstance(pattern, dict) else tails["image"]
                return _moved(comp, images, found)
    several = isinstance(comp.train.images, dict)
    extensions = {} if several else _extensions(images)
    if len(extensions) == 1:
        return _moved(comp, images, "{id}" + next(iter(extensions)))
    if extensions:
        shown = ", ".join(f"{count} {extension}" for extension, count in sorted(extensions.items()))
        raise MaskfoldError(f"{images} holds images of several kinds: {shown}.", "Keep one kind in a folder.", status=2)
    raise MaskfoldError(
        f"{images} holds no image that is named as in the competition ({comp.train.images}).",
        "Name the folder that holds the images" + (", one file for each channel." if several else "."),
        status=2,
    )


def _moved(comp: Competition, images: Path, pattern: Any) -> Competition:
    return comp.model_copy(update={"root": images.absolute(), "test": Test(images=pattern)})


def _finds(root: Path, pattern: str) -> bool:
    try:
        return bool(find(root, pattern, "--images"))
    except MaskfoldError:
        return False


def _extensions(images: Path) -> dict[str, int]:
    """How many files of each kind that can be read lie in the folder itself."""
    counts: dict[str, int] = {}
    for path in images.iterdir():
        if path.is_file() and known(path.name) and not path.name.startswith("."):
            kind = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def _write(row: Any, outcome: Outcome, comp: Competition, output: Path) -> Iterator[Path]:
    """The label files of one case."""
    source = next(iter(json.loads(row.images).values()))
    source = Path(comp.root) / (source if isinstance(source, str) else source[0])
    for name, labels in label_arrays(outcome, comp).items():
        yield _save(output / (f"{row.id}_{name}" if name else row.id), labels, source, row, comp)


def _draw(path: Path, row: Any, outcome: Outcome, comp: Competition) -> None:
    """One case beside its image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = load_image(comp, row)
    case_picture(
        path,
        image.array,
        None,
        outcome.masks,
        comp,
        title=str(row.id),
        spacing=json.loads(row.spacing),
        affine=image.affine,
    )


def _save(stem: Path, labels: np.ndarray[Any, Any], source: Path, row: Any, comp: Competition) -> Path:
    """Writes one label file, whole or not at all."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    if comp.dimensions == 2:
        import cv2

        path = stem.with_name(f"{stem.name}.png")
        write_whole(path, lambda file: file.write(cv2.imencode(".png", labels)[1].tobytes()))
        return path
    import gzip

    import nibabel

    path = stem.with_name(f"{stem.name}.nii.gz")
    if source.name.lower().endswith((".nii", ".nii.gz")):
        like: Any = nibabel.load(source)
        image = nibabel.Nifti1Image(labels, like.affine, like.header)
        image.set_data_dtype(labels.dtype)
        image.header.set_slope_inter(1, 0)
    else:
        image = nibabel.Nifti1Image(labels, np.diag([*json.loads(row.spacing), 1.0]))
    write_whole(path, lambda file: file.write(gzip.compress(image.to_bytes(), 6, mtime=0)))
    return path
