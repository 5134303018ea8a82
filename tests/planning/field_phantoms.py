"""Tiny folders with the layouts of real competitions and hospitals; each function describes one of them."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.host import write_nifti, write_png, write_text
from tests.planning.phantoms import affine, picture, polygon_of, table, volume

Maker = Callable[[Path], None]


def colour(seed: int, size: tuple[int, int] = (40, 48)) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy colour image (H, W, 3) and its binary mask with 255."""
    image, mask = picture(seed, size)
    noise = np.random.default_rng(seed).integers(0, 20, (*size, 3))
    return np.clip(image[..., None] + noise, 0, 255).astype(np.uint8), (mask > 0).astype(np.uint8) * 255


def painted(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a colour image with the mask painted in, half transparent."""
    mixed = image.astype(float)
    mixed[mask > 0] = 0.5 * mixed[mask > 0] + (127, 0, 0)
    return mixed.astype(np.uint8)


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a colour image with the mask's outline drawn in green."""
    import cv2

    edge = cv2.dilate(mask, np.ones((3, 3))) != cv2.erode(mask, np.ones((3, 3)))
    drawn = image.copy()
    drawn[edge] = (0, 255, 0)
    return drawn


def write_tiff(path: Path, array: np.ndarray) -> None:
    """Write an array as TIFF."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"photometric": "minisblack", "planarconfig": "contig"} if array.ndim == 3 else {}
    tifffile.imwrite(path, array, **options)


def write_itk(path: Path, array: np.ndarray) -> None:
    """Write a volume as MHD with its raw file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}[array.dtype.name]
    size = " ".join(map(str, array.shape))
    write_text(
        path,
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 2\nDimSize = {size}\n"
        f"ElementType = {kind}\nElementDataFile = {path.stem}.raw\n",
    )
    path.with_suffix(".raw").write_bytes(array.tobytes("F"))


# Pictures of results


def overlay_folder(root: Path) -> None:
    """`images`, `masks` and `overlay` with the masks painted in."""
    for number in range(6):
        image, mask = colour(number)
        write_png(root / "images" / f"c{number}.png", image)
        write_png(root / "masks" / f"c{number}.png", mask)
        write_png(root / "overlay" / f"c{number}.png", painted(image, mask))


def overlay_names(root: Path) -> None:
    """`a.png`, `a_mask.png` and `a_overlay.png` in one folder."""
    for number in range(6):
        image, mask = colour(number)
        write_png(root / f"c{number}.png", image)
        write_png(root / f"c{number}_mask.png", mask)
        write_png(root / f"c{number}_overlay.png", painted(image, mask))


def vis_names(root: Path) -> None:
    """Previews `a_vis.png` of the outlines in the folder of the masks."""
    for number in range(6):
        image, mask = colour(number)
        write_png(root / "images" / f"c{number}.png", image)
        write_png(root / "masks" / f"c{number}.png", mask)
        write_png(root / "masks" / f"c{number}_vis.png", outlined(image, mask))


def unnamed_overlay(root: Path) -> None:
    """Pictures with outlines in a folder whose name does not say so."""
    for number in range(6):
        image, mask = colour(number)
        write_png(root / "final" / f"c{number}.png", outlined(image, mask))
        write_png(root / "img" / f"c{number}.png", image)
        write_png(root / "gt" / f"c{number}.png", mask)


def unnamed_grey_overlay(root: Path) -> None:
    """Grey images, and colour pictures with the masks painted in, in a folder named `QC`."""
    for number in range(6):
        image, mask = picture(number)
        write_png(root / "QC" / f"c{number}.png", painted(np.repeat(image[..., None], 3, axis=2), mask))
        write_png(root / "img" / f"c{number}.png", image)
        write_png(root / "gt" / f"c{number}.png", (mask > 0).astype(np.uint8) * 255)


# Archives of arrays


def npz_pairs(keys: Sequence[str], is_volume: bool = False) -> Maker:
    """Return a maker of NPZ files that hold an image and its mask under the two keys."""

    def maker(root: Path) -> None:
        for number in range(6):
            image, mask = volume(number) if is_volume else picture(number)
            root.mkdir(exist_ok=True, parents=True)
            arrays = {keys[0]: image, keys[1]: mask}
            np.savez(root / f"c{number}.npz", **(arrays | {key: np.ones(3) for key in keys[2:]}))

    return maker


# Lists of cases


def pascal_voc(root: Path) -> None:
    """Pascal VOC: palette masks with 255, masks of objects, and lists; most images have no mask."""
    from PIL import Image

    names = [f"2007_{number:06d}" for number in range(12)]
    for number, name in enumerate(names):
        image, mask = colour(number)
        path = root / "VOC2012" / "JPEGImages" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        write_text(root / "VOC2012" / "Annotations" / f"{name}.xml", "<annotation/>")
        if number < 8:
            labels = picture(number)[1]
            labels[0] = 255
            objects = np.where(labels == 255, 255, np.where(labels > 0, 3 - labels, 0)).astype(np.uint8)
            for folder, values in (("SegmentationClass", labels), ("SegmentationObject", objects)):
                picture_file = Image.fromarray(values, "P")
                picture_file.putpalette([number * 37 % 256 for number in range(768)])
                path = root / "VOC2012" / folder / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture_file.save(path)
    lists = root / "VOC2012" / "ImageSets"
    for name, part in (("train", names[:4]), ("val", names[4:7]), ("trainval", names[:7])):
        write_text(lists / "Segmentation" / f"{name}.txt", "\n".join(part) + "\n")
    write_text(lists / "Main" / "cat_train.txt", "\n".join(f"{name} -1" for name in names) + "\n")


def listed_splits(root: Path) -> None:
    """`train.txt` and `test.txt` divide labelled images of one folder."""
    for number in range(8):
        image, mask = colour(number)
        write_png(root / "images" / f"c{number}.png", image)
        write_png(root / "masks" / f"c{number}.png", mask)
    write_text(root / "train.txt", "".join(f"c{number}.png\n" for number in range(6)))
    write_text(root / "test.txt", "".join(f"c{number}.png\n" for number in range(6, 8)))


# Cases without masks


def kits(root: Path) -> None:
    """KiTS: `case_00000/imaging.nii.gz`; the last cases have no `segmentation.nii.gz`."""
    for number in range(8):
        image, mask = volume(number)
        write_nifti(root / f"case_{number:05d}" / "imaging.nii.gz", image, affine(1, 1, 2))
        if number < 6:
            write_nifti(root / f"case_{number:05d}" / "segmentation.nii.gz", mask, affine(1, 1, 2))


def kits23(root: Path) -> None:
    """KiTS 2023: `dataset/case_00000` with files of single objects in `instances`."""
    for number in range(6):
        image, mask = volume(number)
        case = root / "dataset" / f"case_{number:05d}"
        grid = affine(1, 1, 2)
        write_nifti(case / "imaging.nii.gz", image, affine(1, 1, 2))
        write_nifti(case / "segmentation.nii.gz", mask, affine(1, 1, 2))
        for annotation in range(1, 4):
            moved = np.roll(mask == 1, annotation % 2, axis=0).astype(np.uint8)
            write_nifti(case / "instances" / f"kidney_instance-1_annotation-{annotation}.nii.gz", moved, grid)
            if number % 2:
                part = (mask == 2).astype(np.uint8)
                write_nifti(case / "instances" / f"tumor_instance-1_annotation-{annotation}.nii.gz", part, grid)
    write_text(root / "dataset" / "kits23.json", json.dumps([{"case_id": "case_00000", "age": 50}]))


def gaps(root: Path) -> None:
    """Some images between the others have no mask."""
    for number in range(8):
        image, mask = colour(number)
        write_png(root / "images" / f"c{number}.png", image)
        if number not in (2, 5):
            write_png(root / "masks" / f"c{number}.png", mask)


# Masks of single slices


def slice_masks(root: Path) -> None:
    """Volumes, and a PNG for each slice that somebody drew: `{id}_z012_mask.png`."""
    for number in range(4):
        image, mask = volume(number)
        write_nifti(root / "images" / f"P{number:02d}.nii.gz", image, affine(1, 1, 2))
        for place in (6, 8 + number % 2):
            write_png(root / "masks" / f"P{number:02d}_z{place:03d}_mask.png", mask[:, :, place] * 100)


def slice_stacks_partly(root: Path) -> None:
    """A folder of slices per case; only every third slice has a mask."""
    for number in range(4):
        image, mask = volume(number)
        scaled = np.clip((image - 100) / 3, 0, 255).astype(np.uint8)
        for place in range(12):
            write_png(root / "images" / f"P{number:02d}" / f"slice_{place:03d}.png", scaled[:, :, place])
            if place % 3 == 1:
                write_png(root / "masks" / f"P{number:02d}" / f"slice_{place:03d}.png", mask[:, :, place])


def sparse_volumes(unlabelled: int, background: int = 0, first: int = 1) -> Maker:
    """Return a maker of volumes in which only some slices are drawn; the others have the value `unlabelled`."""

    def maker(root: Path) -> None:
        for number in range(4):
            image, mask = volume(number, (20, 24, 16))
            labels = np.where(mask > 0, mask + (first - 1), background).astype(np.uint8)
            drawn = np.zeros(16, bool)
            drawn[[3, 6, 8, 11]] = True
            labels[:, :, ~drawn] = unlabelled
            write_nifti(root / "images" / f"P{number:02d}.nii.gz", image, affine(1, 1, 2))
            write_nifti(root / "labels" / f"P{number:02d}.nii.gz", labels, affine(1, 1, 2))

    return maker


# Competitions


def spacenet(root: Path) -> None:
    """Tiles of four 16-bit bands with masks `_mask.tif`."""
    for number in range(6):
        image, mask = colour(number)
        bands = np.concatenate([image, image[..., :1]], axis=2).astype(np.uint16) * 40
        write_tiff(root / "PS-RGBNIR" / f"tile_{number // 3}_{number % 3}.tif", bands)
        write_tiff(root / "masks" / f"tile_{number // 3}_{number % 3}_mask.tif", mask)


def hubmap_json(root: Path) -> None:
    """HuBMAP without its table: large TIFFs with polygons in JSON files beside them."""
    for number in range(3):
        image, mask = colour(number)
        write_tiff(root / "train" / f"{number}aa05346ff.tiff", image)
        outline = np.reshape(polygon_of(mask > 0), (-1, 2)).tolist()
        feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [outline]}}
        write_text(root / "train" / f"{number}aa05346ff.json", json.dumps([feature]))


def hubmap(root: Path) -> None:
    """HuBMAP: TIFFs with polygons in JSON files and a table of run lengths."""
    from competition.rle import encode
    from competition.rle_text import RleFormat

    hubmap_json(root)
    rows = [(f"{number}aa05346ff", encode(colour(number)[1] > 0, RleFormat("column", 1))) for number in range(3)]
    table(root / "train.csv", ("id", "encoding"), rows)
    for number in range(2):
        write_tiff(root / "test" / f"{number}bb05346ff.tiff", colour(50 + number)[0])
    table(root / "sample_submission.csv", ("id", "predicted"), [(f"{number}bb05346ff", "") for number in range(2)])


def carvana(root: Path) -> None:
    """Carvana: the images are unpacked, the masks are still in `train_masks.zip`."""
    root.mkdir(exist_ok=True, parents=True)
    with zipfile.ZipFile(root / "train_masks.zip", "w") as archive:
        for number in range(4):
            image, mask = colour(number)
            write_png(root / "train" / f"0cdf_{number:02d}.png", image)
            write_png(root / "m.png", mask)
            archive.write(root / "m.png", f"train_masks/0cdf_{number:02d}_mask.png")
    (root / "m.png").unlink()


def clinic(root: Path) -> None:
    """CVC-ClinicDB: `Original` and `Ground Truth`, both as PNG and as TIFF, with a table of paths."""
    rows = []
    for number in range(1, 7):
        image, mask = colour(number)
        write_png(root / "PNG" / "Original" / f"{number}.png", image)
        write_png(root / "PNG" / "Ground Truth" / f"{number}.png", mask)
        write_tiff(root / "TIF" / "Original" / f"{number}.tif", image)
        write_tiff(root / "TIF" / "Ground Truth" / f"{number}.tif", mask)
        rows.append((number, 1 + number // 3, f"PNG/Original/{number}.png", f"PNG/Ground Truth/{number}.png"))
    table(root / "metadata.csv", ("frame_id", "sequence_id", "png_image_path", "png_mask_path"), rows)


def kvasir(root: Path) -> None:
    """Kvasir-SEG: a JSON file of bounding boxes beside images and masks."""
    boxes = {}
    for number in range(6):
        image, mask = colour(number)
        write_png(root / "images" / f"cju{number}.png", image)
        write_png(root / "masks" / f"cju{number}.png", mask)
        box = {"label": "polyp", "xmin": 1, "ymin": 2, "xmax": 9, "ymax": 8}
        boxes[f"cju{number}"] = {"height": 40, "width": 48, "bbox": [box]}
    write_text(root / "kavsir_bboxes.json", json.dumps(boxes))


def monuseg(root: Path) -> None:
    """MoNuSeg: TIFF tiles with polygons in XML files."""
    for number in range(4):
        write_tiff(root / "Tissue Images" / f"TCGA-18-{number}.tif", colour(number)[0])
        write_text(root / "Annotations" / f"TCGA-18-{number}.xml", "<Annotations/>")


def chaos(root: Path) -> None:
    """CHAOS: DICOM slices beside PNG masks with other names."""
    for number in range(3):
        mask = volume(number)[1]
        for place in range(6):
            path = root / "Train_Sets" / "CT" / str(number + 1) / "DICOM_anon" / f"i{place:04d},0000b.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0" * 128 + b"DICM" + bytes(40))
            folder = root / "Train_Sets" / "CT" / str(number + 1) / "Ground"
            write_png(folder / f"liver_GT_{place:03d}.png", mask[:, :, place + 5] * 100)


def amos(root: Path) -> None:
    """AMOS: `dataset.json` with training, validation and test; the validation cases have labels of their own."""
    record: dict[str, object] = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen", "2": "kidney"},
        "numTraining": 6,
    }
    for key, split, first, count in (("training", "Tr", 0, 6), ("validation", "Va", 50, 2), ("test", "Ts", 90, 2)):
        items = []
        for number in range(first, first + count):
            image, mask = volume(number)
            write_nifti(root / f"images{split}" / f"amos_{number:04d}.nii.gz", image, affine(1, 1, 2))
            if split != "Ts":
                write_nifti(root / f"labels{split}" / f"amos_{number:04d}.nii.gz", mask, affine(1, 1, 2))
            items.append({"image": f"./images{split}/amos_{number:04d}.nii.gz"})
        record[key] = items
    write_text(root / "dataset.json", json.dumps(record))


def btcv(root: Path) -> None:
    """BTCV: `img/img0001.nii.gz` with `label/label0001.nii.gz`, and test images."""
    for number in range(1, 7):
        image, mask = volume(number)
        write_nifti(root / "RawData" / "Training" / "img" / f"img{number:04d}.nii.gz", image, affine(1, 1, 2))
        write_nifti(root / "RawData" / "Training" / "label" / f"label{number:04d}.nii.gz", mask, affine(1, 1, 2))
    for number in range(61, 64):
        image = volume(number)[0]
        write_nifti(root / "RawData" / "Testing" / "img" / f"img{number:04d}.nii.gz", image, affine(1, 1, 2))


def promise(root: Path) -> None:
    """PROMISE12: MHD pairs; the test cases have the numbers of training cases."""
    for number in range(6):
        image, mask = volume(number)
        write_itk(root / "training_data" / f"Case{number:02d}.mhd", image)
        write_itk(root / "training_data" / f"Case{number:02d}_segmentation.mhd", (mask > 0).astype(np.uint8))
    for number in range(3):
        write_itk(root / "test_data" / f"Case{number:02d}.mhd", volume(90 + number)[0])


def lits(root: Path) -> None:
    """LiTS: `volume-0.nii` and `segmentation-0.nii` in one folder."""
    for number in range(6):
        image, mask = volume(number)
        write_nifti(root / f"volume-{number}.nii", image, affine(1, 1, 2))
        write_nifti(root / f"segmentation-{number}.nii", mask, affine(1, 1, 2))


def total_segmentator(root: Path) -> None:
    """TotalSegmentator: a file per class, and a table with semicolons."""
    rows = ["image_id;age;gender;institute;split"]
    for number in range(6):
        image, mask = volume(number)
        case = root / f"s{number:04d}"
        write_nifti(case / "ct.nii.gz", image, affine(1.5, 1.5, 1.5))
        write_nifti(case / "segmentations" / "liver.nii.gz", (mask == 1).astype(np.uint8), affine(1.5, 1.5, 1.5))
        write_nifti(case / "segmentations" / "spleen.nii.gz", (mask == 2).astype(np.uint8), affine(1.5, 1.5, 1.5))
        write_nifti(case / "segmentations" / "colon.nii.gz", np.zeros_like(mask), affine(1.5, 1.5, 1.5))
        rows.append(f"s{number:04d};50;m;A;{'test' if number == 5 else 'train'}")
    write_text(root / "meta.csv", "\n".join(rows) + "\n")


def all_labels(name: str = "all_labels", further: int = 0) -> Maker:
    """Return a maker of case folders with a file per class, and a label file with the same classes.

    Args:
        name: name of the label file, without extension.
        further: number of voxels of a further class, which only the label file has.
    """

    def maker(root: Path) -> None:
        for number in range(6):
            image, mask = volume(number)
            case = root / f"M{number:02d}_024h"
            write_nifti(case / "image.nii.gz", image, affine(1, 1, 1))
            write_nifti(case / "labels" / "heart.nii.gz", (mask == 1).astype(np.uint8), affine(1, 1, 1))
            if number:  # a case without the second class has no file for it
                write_nifti(case / "labels" / "liver.nii.gz", (mask == 2).astype(np.uint8), affine(1, 1, 1))
            else:
                mask = np.where(mask == 2, 0, mask).astype(np.uint8)
            mask.reshape(-1)[:further] = 3
            write_nifti(case / "labels" / f"{name}.nii.gz", mask, affine(1, 1, 1))

    return maker


def brats23(root: Path) -> None:
    """BraTS 2023: names end in `-t1n`; the patient's number is before the number of the scan."""
    for number in range(8):
        image, mask = volume(number)
        name = f"BraTS-GLI-{number // 2:05d}-{100 + number % 2}"
        for shift, end in enumerate(("t1c", "t1n", "t2f", "t2w")):
            write_nifti(root / name / f"{name}-{end}.nii.gz", image + 5 * shift, affine(1, 1, 1))
        write_nifti(root / name / f"{name}-seg.nii.gz", mask, affine(1, 1, 1))


def head_circumference(root: Path) -> None:
    """HC18: the annotations are outlines of an ellipse, not areas."""
    import cv2

    rows = []
    for number in range(6):
        image = picture(number, (64, 80))[0]
        outline = np.zeros_like(image)
        cv2.ellipse(outline, (40, 32), (24, 18), 10 * number, 0, 360, 255, 1)
        write_png(root / "training_set" / f"{number:03d}_HC.png", image)
        write_png(root / "training_set" / f"{number:03d}_HC_Annotation.png", outline)
        rows.append((f"{number:03d}_HC.png", 0.07, 44.3))
    for number in range(2):
        write_png(root / "test_set" / f"{number:03d}_HC.png", picture(90 + number, (64, 80))[0])
    table(root / "training_set_pixel_size_and_HC.csv", ("filename", "pixel size(mm)", "head circumference (mm)"), rows)


def drive(root: Path) -> None:
    """DRIVE: `21_training.tif`, `21_manual1.gif` and the field of view `21_training_mask.gif`."""
    from PIL import Image

    view = np.zeros((40, 48), np.uint8)
    view[2:38, 2:46] = 255
    for split, first in (("training", 21), ("test", 1)):
        for number in range(first, first + 5):
            image, mask = colour(number)
            folder = root / split
            write_tiff(folder / "images" / f"{number:02d}_{split}.tif", image)
            for name in ("1st_manual", "mask"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(view).save(folder / "mask" / f"{number:02d}_{split}_mask.gif")
            if split == "training":
                mask[view == 0] = 0
                Image.fromarray(mask).save(folder / "1st_manual" / f"{number:02d}_manual1.gif")


def split_folders(root: Path) -> None:
    """`train`, `val` and `test`, each with `images` and `labels`."""
    for split, first, count in (("train", 0, 6), ("val", 20, 3), ("test", 40, 3)):
        for number in range(first, first + count):
            image, mask = colour(number)
            write_png(root / split / "images" / f"c{number}.png", image)
            write_png(root / split / "labels" / f"c{number}.png", mask)


def reversed_split_folders(root: Path) -> None:
    """`images/train` and `labels/train`, as in ADE20K and YOLO; the test images have no labels."""
    for split, first, count in (("train", 0, 6), ("val", 20, 3), ("test", 40, 3)):
        for number in range(first, first + count):
            image, mask = colour(number)
            write_png(root / "images" / split / f"c{number}.png", image)
            if split != "test":
                write_png(root / "labels" / split / f"c{number}.png", mask)


def colour_masks(root: Path) -> None:
    """Masks in RGB colours."""
    for number in range(4):
        image, mask = colour(number)
        drawn = np.zeros((*mask.shape, 3), np.uint8)
        drawn[mask > 0] = (255, 0, 0)
        drawn[:4] = (0, 255, 0)
        write_png(root / "images" / f"c{number}.png", image)
        write_png(root / "masks" / f"c{number}.png", drawn)


def umlauts(root: Path) -> None:
    """Names with umlauts and spaces, and extensions in capital letters."""
    for number in range(6):
        image, mask = colour(number)
        write_png(root / "Fälle Köln" / f"Bild {number:02d} größer.PNG", image)
        write_png(root / "Masken" / f"Bild {number:02d} größer.PNG", mask)


def links(root: Path) -> None:
    """`images` and `masks` are links to folders elsewhere."""
    elsewhere = root.parent / f"{root.name}-elsewhere"
    for number in range(6):
        image, mask = colour(number)
        write_png(elsewhere / "a" / f"c{number}.png", image)
        write_png(elsewhere / "b" / f"c{number}.png", mask)
    root.mkdir(parents=True, exist_ok=True)
    os.symlink((elsewhere / "a").absolute(), root / "images")
    os.symlink((elsewhere / "b").absolute(), root / "masks")


def broken_links(root: Path) -> None:
    """Links to files that are not there, as in a data set whose content git-annex has not fetched."""
    for number in range(6):
        image, mask = colour(number)
        write_png(root / "images" / f"c{number}.png", image)
        (root / "masks").mkdir(exist_ok=True)
        if number < 4:
            write_png(root / "masks" / f"c{number}.png", mask)
        else:
            os.symlink("../.git/annex/objects/none", root / "masks" / f"c{number}.png")


def isic(root: Path) -> None:
    """ISIC 2018: long folder names; training, validation and test images, masks of the training images."""
    for name, first, count in (("Training", 0, 6), ("Validation", 20, 2), ("Test", 40, 2)):
        for number in range(first, first + count):
            image, mask = colour(number)
            write_png(root / f"ISIC2018_Task1-2_{name}_Input" / f"ISIC_{number:07d}.png", image)
            if name == "Training":
                folder = root / "ISIC2018_Task1_Training_GroundTruth"
                write_png(folder / f"ISIC_{number:07d}_segmentation.png", mask)


def segthor(root: Path) -> None:
    """SegTHOR: `train/Patient_01/Patient_01.nii.gz` with `GT.nii.gz`; the test volumes lie in one folder."""
    for number in range(1, 7):
        image, mask = volume(number)
        folder = root / "train" / f"Patient_{number:02d}"
        write_nifti(folder / f"Patient_{number:02d}.nii.gz", image, affine(1, 1, 2))
        write_nifti(folder / "GT.nii.gz", mask, affine(1, 1, 2))
    for number in range(41, 44):
        write_nifti(root / "test" / f"Patient_{number}.nii.gz", volume(number)[0], affine(1, 1, 2))


def acdc(root: Path) -> None:
    """ACDC: two frames of each patient, with different numbers, and a volume with time."""
    for number in range(1, 7):
        folder = root / "training" / f"patient{number:03d}"
        frames = (1, 8 + number)
        for frame in frames:
            image, mask = volume(10 * number + frame)
            stem = f"patient{number:03d}_frame{frame:02d}"
            write_nifti(folder / f"{stem}.nii.gz", image, affine(1, 1, 8))
            write_nifti(folder / f"{stem}_gt.nii.gz", mask, affine(1, 1, 8))
        film = np.stack([volume(number)[0]] * 3, axis=-1)
        write_nifti(folder / f"patient{number:03d}_4d.nii.gz", film, affine(1, 1, 8))
        write_text(folder / "Info.cfg", f"ED: 1\nES: {frames[1]}\n")


def covid(root: Path) -> None:
    """COVID-19 CT: folders of masks whose names name the classes; the third has both of the others."""
    for number in range(1, 6):
        image, mask = volume(number)
        name = f"coronacases_{number:03d}.nii.gz"
        write_nifti(root / "COVID-19-CT-Seg_20cases" / name, image, affine(1, 1, 2))
        write_nifti(root / "Infection_Mask" / name, (mask == 2).astype(np.uint8), affine(1, 1, 2))
        write_nifti(root / "Lung_Mask" / name, (mask == 1).astype(np.uint8), affine(1, 1, 2))
        write_nifti(root / "Lung_and_Infection_Mask" / name, mask, affine(1, 1, 2))


def slicer(root: Path) -> None:
    """3D Slicer: `P01.nii.gz` with `P01.seg.nii.gz`."""
    for number in range(6):
        image, mask = volume(number)
        write_nifti(root / f"P{number:02d}.nii.gz", image, affine(1, 1, 2))
        write_nifti(root / f"P{number:02d}.seg.nii.gz", mask, affine(1, 1, 2))


def german_hospital(root: Path) -> None:
    """A clinic's export: folders of patients and of days, with German names."""
    for number in range(8):
        image, mask = volume(number)
        folder = root / f"Pat_{number // 2:03d}" / f"{10 + number:02d}.03.2021"
        write_nifti(folder / "Aufnahme.nii.gz", image, affine(1, 1, 2))
        write_nifti(folder / "Maske.nii.gz", mask, affine(1, 1, 2))


def busi(root: Path) -> None:
    """BUSI: folders of diagnoses with masks beside the images."""
    for folder in ("benign", "malignant", "normal"):
        for number in range(1, 5):
            image, mask = colour(number + len(folder))
            write_png(root / "Dataset_BUSI_with_GT" / folder / f"{folder} ({number}).png", image)
            drawn = mask if folder != "normal" else np.zeros_like(mask)
            write_png(root / "Dataset_BUSI_with_GT" / folder / f"{folder} ({number})_mask.png", drawn)


def cellpose_npy(root: Path) -> None:
    """Cellpose: images with pickled outlines `a_seg.npy`, which Maskfold does not read."""
    for number in range(4):
        image, mask = colour(number)
        write_png(root / f"c{number}.png", image)
        np.save(root / f"c{number}_seg.npy", np.array({"masks": mask}, dtype=object), allow_pickle=True)


def supervisely(root: Path) -> None:
    """Supervisely: `img/a.png` with `ann/a.png.json`."""
    for number in range(4):
        write_png(root / "ds0" / "img" / f"c{number}.png", colour(number)[0])
        write_text(root / "ds0" / "ann" / f"c{number}.png.json", json.dumps({"objects": []}))
    write_text(root / "meta.json", json.dumps({"classes": []}))


def whole_arrays(root: Path) -> None:
    """All images in one array, all masks in another."""
    root.mkdir(parents=True, exist_ok=True)
    pairs = [picture(number) for number in range(8)]
    np.save(root / "imgs_train.npy", np.stack([image for image, _ in pairs]))
    np.save(root / "imgs_mask_train.npy", np.stack([mask for _, mask in pairs]))


def deep_globe(root: Path) -> None:
    """DeepGlobe roads: `a_sat.png` with `a_mask.png`; the validation images have no masks."""
    for split, first, count in (("train", 100, 6), ("valid", 200, 2), ("test", 300, 2)):
        for number in range(first, first + count):
            image, mask = colour(number)
            write_png(root / split / f"{number}_sat.png", image)
            if split == "train":
                write_png(root / split / f"{number}_mask.png", mask)


def bands(root: Path) -> None:
    """Satellite tiles: one file per band in the folder of a tile."""
    for number in range(4):
        image, mask = colour(number)
        for band in ("B02", "B03", "B04", "B08"):
            write_tiff(root / f"tile_{number}" / f"{band}.tif", image[..., 0].astype(np.uint16) * int(band[1:]))
        write_tiff(root / f"tile_{number}" / "mask.tif", mask)


def doctors(root: Path) -> None:
    """Masks of two physicians per patient."""
    for number in range(5):
        image, mask = volume(number)
        write_nifti(root / f"{number:03d}" / "T1.nii.gz", image, affine(1, 1, 2))
        for shift, doctor in enumerate(("dr_mueller", "dr_weiss")):
            drawn = np.roll(mask > 0, shift, axis=0).astype(np.uint8)
            write_nifti(root / f"{number:03d}" / f"mask_{doctor}.nii.gz", drawn, affine(1, 1, 2))
