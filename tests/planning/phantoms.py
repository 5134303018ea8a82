"""Functions that write tiny data sets, one for each layout that `maskfold init` recognises.

The docstrings below describe the folder that each function writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from competition.rle import encode
from competition.rle_text import RleFormat
from tests.host import write_nifti, write_png, write_text

IDS = tuple(f"scan{number:02d}" for number in range(1, 9))
TEST_IDS = ("scan91", "scan92")


def picture(seed: int, size: tuple[int, int] = (40, 48)) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy grey image with two bright discs, and a mask with 1 in the first disc and 2 in the second."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, np.uint8)
    for value, centre in enumerate(rng.uniform((9, 9), (size[0] - 9, size[1] / 2 - 7), (2, 2)), start=1):
        column = centre[1] + (value - 1) * size[1] / 2
        mask[(rows - centre[0]) ** 2 + (columns - column) ** 2 <= (36, 25)[value - 1]] = value
    image = 60 + 25 * np.sin(rows / 5 + seed) + rng.normal(0, 6, size) + 70 * mask
    return np.clip(image, 0, 255).astype(np.uint8), mask


def volume(seed: int, size: tuple[int, int, int] = (20, 24, 16)) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy volume (int16) with two bright balls, and a mask with 1 and 2 in them."""
    rng = np.random.default_rng(seed)
    grid = np.indices(size)
    mask = np.zeros(size, np.uint8)
    for value, centre in ((1, (6, 8, 8)), (2, (14, 16, 7))):
        middle = np.array(centre) + rng.integers(-1, 2, 3)
        mask[((grid - middle[:, None, None, None]) ** 2).sum(axis=0) <= 14] = value
    return (300 + 40 * rng.normal(size=size) + 200 * mask).astype(np.int16), mask


def affine(*spacing: float) -> np.ndarray:
    """Return the diagonal affine (4, 4) with this spacing."""
    return np.diag([*spacing, 1.0])


def decathlon(root: Path) -> None:
    """Medical Segmentation Decathlon: `dataset.json`, one file per case, and hidden files of macOS."""
    for number, case_id in enumerate(IDS):
        image, mask = volume(number)
        write_nifti(root / "imagesTr" / f"{case_id}.nii.gz", image, affine(1, 1, 1))
        write_nifti(root / "labelsTr" / f"{case_id}.nii.gz", mask, affine(1, 1, 1))
        write_text(root / "imagesTr" / f"._{case_id}.nii.gz", "macOS")
    for number, case_id in enumerate(TEST_IDS):
        write_nifti(root / "imagesTs" / f"{case_id}.nii.gz", volume(90 + number)[0], affine(1, 1, 1))
    record = {
        "name": "Phantom",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": len(IDS),
        "training": [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in IDS],
        "test": [f"./imagesTs/{i}.nii.gz" for i in TEST_IDS],
    }
    write_text(root / "dataset.json", json.dumps(record))


def nnunet_v1(root: Path) -> None:
    """nnU-Net, version 1: two numbered channels, in a subfolder as after unpacking a zip archive with macOS."""
    inner = root / "Task500_Phantom"
    for number, case_id in enumerate(IDS):
        image, mask = volume(number)
        for channel in range(2):
            write_nifti(inner / "imagesTr" / f"{case_id}_000{channel}.nii.gz", image + 9 * channel)
        write_nifti(inner / "labelsTr" / f"{case_id}.nii.gz", mask)
    record = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "numTraining": len(IDS),
    }
    write_text(inner / "dataset.json", json.dumps(record))
    write_text(root / "__MACOSX" / "Task500_Phantom" / "._dataset.json", "macOS")


def nnunet_v2(root: Path) -> None:
    """nnU-Net, version 2: classes that are unions of labels (regions), an ignored label, and PNG files."""
    for number, case_id in enumerate(IDS):
        image, mask = picture(number)
        mask[:2] = 3
        write_png(root / "imagesTr" / f"{case_id}_0000.png", image)
        write_png(root / "labelsTr" / f"{case_id}.png", mask)
    for number, case_id in enumerate(TEST_IDS):
        write_png(root / "imagesTs" / f"{case_id}_0000.png", picture(90 + number)[0])
    record = {
        "channel_names": {"0": "grey"},
        "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
        "regions_class_order": [1, 2],
        "numTraining": len(IDS),
        "file_ending": ".png",
    }
    write_text(root / "dataset.json", json.dumps(record))


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV."""
    write_text(path, "\n".join(",".join(map(str, row)) for row in (header, *rows)) + "\n")


def rle_profile(root: Path) -> None:
    """Data Science Bowl 2018: a folder per image, and a CSV with a row of run lengths per object.

    The CSV has the header of this competition; the ids have 64 hexadecimal digits.
    """
    fmt, rows, test = RleFormat("column", 1), [], []
    for number in range(8):
        case_id = f"{number + 10:064x}"
        image, mask = picture(number)
        write_png(root / "stage1_train" / case_id / "images" / f"{case_id}.png", image)
        rows += [(case_id, encode(mask == value, fmt)) for value in (1, 2)]
    for number in range(2):
        case_id = f"{number + 90:064x}"
        write_png(root / "stage1_test" / case_id / "images" / f"{case_id}.png", picture(90 + number)[0])
        test.append((case_id, ""))
    table(root / "stage1_train_labels.csv", ("ImageId", "EncodedPixels"), rows)
    table(root / "stage1_sample_submission.csv", ("ImageId", "EncodedPixels"), test)


def rle_content(root: Path) -> None:
    """An unknown competition with run lengths in a CSV: in row order, from pixel 0, and with names of classes."""
    fmt, rows, names = RleFormat("row", 0), [], {1: "ring", 2: "grain"}
    for number, case_id in enumerate(IDS):
        image, mask = picture(number, (40, 56))
        mask[10 + number % 3 : 30, :3] = 2  # runs that begin with their line
        write_png(root / "train_images" / f"{case_id}.png", image)
        rows += [(f"{case_id}.png", names[value], encode(mask == value, fmt)) for value in (1, 2)]
    test = []
    for number, case_id in enumerate(TEST_IDS):
        write_png(root / "test_images" / f"{case_id}.png", picture(90 + number)[0])
        test += [(f"{case_id}.png", name, "") for name in names.values()]
    table(root / "train.csv", ("picture", "kind", "runs"), rows)
    table(root / "sample_submission.csv", ("picture", "kind", "runs"), test)


def instances(root: Path) -> None:
    """A folder per case with `images` and `masks`, and a mask file with the values 0 and 255 for each object."""
    for number, case_id in enumerate(IDS):
        image, mask = picture(number)
        write_png(root / "train" / case_id / "images" / f"{case_id}.png", image)
        for value in (1, 2):
            name = f"{number * 77 + value * 13:08x}.png"
            write_png(root / "train" / case_id / "masks" / name, (mask == value).astype(np.uint8) * 255)
    for number, case_id in enumerate(TEST_IDS):
        write_png(root / "test" / case_id / "images" / f"{case_id}.png", picture(90 + number)[0])


def paired_folders(root: Path) -> None:
    """Images and masks in two folders with unusual names, file names with patient and week, and a `Thumbs.db`."""
    for number in range(8):
        case_id = f"patient_{number // 2:02d}_week{1 + number % 2}"
        image, mask = picture(number)
        write_png(root / "photos" / f"{case_id}.png", image)
        write_png(root / "annotations" / f"{case_id}.png", (mask > 0).astype(np.uint8) * 255)
    write_text(root / "photos" / "Thumbs.db", "Windows")


def paired_names(root: Path) -> None:
    """Carvana: `x.jpg` and `x_mask.gif` in the same folder for training, and `x.jpg` in a test folder."""
    import cv2
    from PIL import Image

    for folder, ids in (("train", IDS), ("test", TEST_IDS)):
        (root / folder).mkdir(parents=True)
        for number, case_id in enumerate(ids):
            image, mask = picture(number + 50 * (folder == "test"))
            cv2.imwrite(str(root / folder / f"{case_id}.jpg"), cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
            if folder == "train":
                Image.fromarray((mask > 0).astype(np.uint8)).save(root / folder / f"{case_id}_mask.gif")


def paired_endings(root: Path) -> None:
    """Images and masks whose names differ in suffix and file type, in capital letters: `A/x_IMG.PNG`, `B/x_GT.TIF`."""
    import tifffile

    for number, case_id in enumerate(IDS):
        image, mask = picture(number)
        write_png(root / "A" / f"{case_id}_IMG.PNG", image)
        (root / "B").mkdir(exist_ok=True)
        tifffile.imwrite(root / "B" / f"{case_id}_GT.TIF", mask)


def class_folders(root: Path) -> None:
    """A folder of masks per class, whose classes overlap; a case without the second class has no file for it."""
    for number, case_id in enumerate(IDS):
        image, mask = picture(number)
        write_png(root / "images" / f"{case_id}.png", image)
        write_png(root / "masks" / "organ" / f"{case_id}.png", (mask > 0).astype(np.uint8) * 255)
        if number % 3:
            write_png(root / "masks" / "lesion" / f"{case_id}.png", (mask == 2).astype(np.uint8) * 255)


def case_folders(root: Path) -> None:
    """BraTS: one folder per case with four modalities and the labels 1, 2 and 4, and a CSV with the patients."""
    rows = []
    for number, case_id in enumerate(IDS):
        image, mask = volume(number)
        mask[mask == 2] = 4
        mask[:3, :3, :3] = 2
        for channel, name in enumerate(("flair", "t1", "t1ce", "t2")):
            write_nifti(root / case_id / f"{case_id}_{name}.nii.gz", image + 5 * channel)
        write_nifti(root / case_id / f"{case_id}_seg.nii.gz", mask)
        rows.append((case_id, f"P{number // 3}", "HGG" if number % 2 else "LGG"))
    table(root / "survival.csv", ("scan", "patient_id", "grade"), rows)


def slice_stacks(root: Path) -> None:
    """Volumes as one folder of PNG slices per case, below `images` and below `masks`."""
    for number, case_id in enumerate(IDS):
        image, mask = volume(number)
        scaled = np.clip((image - 100) / 3, 0, 255).astype(np.uint8)
        for index in range(10 + number % 3):
            write_png(root / "images" / case_id / f"slice_{index:03d}.png", scaled[:, :, index])
            write_png(root / "masks" / case_id / f"slice_{index:03d}.png", mask[:, :, index])


def coco(root: Path, with_rle: bool = True) -> None:
    """COCO annotations with polygons and run lengths, in a separate folder; one image has no object.

    If `with_rle` is False, there are only polygons.
    """
    images, objects = [], []
    for number, case_id in enumerate(IDS):
        image, mask = picture(number)
        write_png(root / "images" / f"{case_id}.png", image)
        images.append({"id": number + 1, "file_name": f"{case_id}.png", "height": 40, "width": 48})
        for value in (1, 2) if number else ():
            outline = polygon_of(mask == value)
            item: dict[str, Any] = {"id": len(objects) + 1, "image_id": number + 1, "category_id": value, "iscrowd": 0}
            item["segmentation"] = [outline]
            if with_rle and value == 2:
                flat = np.concatenate([[0], (mask == value).ravel(order="F").astype(int), [0]])
                changes = np.flatnonzero(np.diff(flat))
                edges = np.concatenate([[0], changes, [mask.size]])
                item["segmentation"] = {"size": [40, 48], "counts": np.diff(edges).tolist()}
            objects.append(item)
    content = {
        "images": images,
        "annotations": objects,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cow"}],
    }
    write_text(root / "annotations" / "instances.json", json.dumps(content))


def polygon_of(mask: np.ndarray) -> list[float]:
    """Return the outline of an object as x1, y1, x2, y2, …, in COCO's coordinates.

    In these coordinates, the first pixel extends from 0 to 1.
    """
    import cv2

    large = cv2.resize(mask.astype(np.uint8), None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = (contours[0][:, 0].astype(float) + 0.5) / 8
    return [float(value) for value in points.ravel()]


def lossy_masks(root: Path) -> None:
    """Kvasir: masks as JPEG files, whose values are inexact, with the same names as their images."""
    import cv2

    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, case_id in enumerate(IDS):
        image, mask = picture(number, (64, 64))
        cv2.imwrite(str(root / "images" / f"{case_id}.jpg"), image)
        cv2.imwrite(
            str(root / "masks" / f"{case_id}.jpg"), (mask > 0).astype(np.uint8) * 255, [cv2.IMWRITE_JPEG_QUALITY, 70]
        )


def named_classes(root: Path) -> None:
    """A folder for training and one for test, with files named `x_image` and `x_label`, and a list of class names."""
    for number, case_id in enumerate(IDS):
        image, mask = volume(number)
        write_nifti(root / "train" / f"{case_id}_image.nii.gz", image, affine(0.8, 0.8, 4))
        write_nifti(root / "train" / f"{case_id}_label.nii.gz", mask, affine(0.8, 0.8, 4))
    for number, case_id in enumerate(TEST_IDS):
        write_nifti(root / "test" / f"{case_id}_image.nii.gz", volume(90 + number)[0], affine(0.8, 0.8, 4))
    write_text(root / "classes.txt", "background\nliver\nspleen\n")


# Folders that can be understood in several ways, so that `init` asks the user


def two_opinions(root: Path) -> None:
    """Two folders of masks by two annotators for the same images."""
    for number, case_id in enumerate(IDS):
        image, mask = picture(number)
        write_png(root / "images" / f"{case_id}.png", image)
        for annotator in (1, 2):
            write_png(root / f"annotator{annotator}" / f"{case_id}.png", np.roll(mask, annotator, axis=0))


def value_255(root: Path) -> None:
    """Masks with the values 1, 2 and 255; 255 may be a class or mark ignored pixels."""
    for number, case_id in enumerate(IDS):
        image, mask = picture(number)
        mask[:2] = 255
        write_png(root / "images" / f"{case_id}.png", image)
        write_png(root / "labels" / f"{case_id}.png", mask)


def unclear_order(root: Path) -> None:
    """Run lengths whose order (by row or by column) cannot be determined, because the masks are symmetric."""
    rows, fmt = [], RleFormat("column", 1)
    for number, case_id in enumerate(IDS):
        image, mask = picture(number, (48, 48))
        mask = ((mask > 0) | (mask.T > 0)).astype(np.uint8)
        write_png(root / "images" / f"{case_id}.png", (image // 2 + image.T // 2).astype(np.uint8))
        rows.append((case_id, encode(mask, fmt)))
    table(root / "masks.csv", ("image", "rle"), rows)


def stack_or_pictures(root: Path) -> None:
    """Slices of several cases in one folder, which may be volumes or 2D images."""
    for number in range(4):
        image, mask = volume(number)
        scaled = np.clip((image - 100) / 3, 0, 255).astype(np.uint8)
        for index in range(6):
            name = f"case{number}_slice_{index:02d}.png"
            write_png(root / "images" / name, scaled[:, :, 4 + index])
            write_png(root / "masks" / name, mask[:, :, 4 + index])


# Folders that `init` refuses


def dicom(root: Path) -> None:
    """A DICOM study whose files have no extension."""
    for number in range(6):
        path = root / "study" / "series1" / f"IM{number:04d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0" * 128 + b"DICM" + bytes(40))


def only_images(root: Path) -> None:
    """Images without masks."""
    for number, case_id in enumerate(IDS):
        write_png(root / "images" / f"{case_id}.png", picture(number)[0])


MAKERS: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker
    for maker in (
        decathlon,
        nnunet_v1,
        nnunet_v2,
        rle_profile,
        rle_content,
        instances,
        paired_folders,
        paired_names,
        paired_endings,
        class_folders,
        case_folders,
        slice_stacks,
        coco,
        lossy_masks,
        named_classes,
    )
}
AMBIGUOUS: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker for maker in (two_opinions, value_255, unclear_order, stack_or_pictures)
}
