"""X-rays: 2D pictures without a position in the patient become PNG files that a competition reads."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.data.readers import load_image
from competition.dicom.convert import Conversion, convert_folder
from competition.rle import encode
from competition.rle_text import RleFormat
from tests.dicom.files import header, save, set_pixels, uid, volume, write_series
from tests.host import competition

UNPLACED: dict[str, Any] = {"Modality": "CR", "ImagePositionPatient": None, "ImageOrientationPatient": None}


def write_picture(path: Path, array: np.ndarray, patient: str = "P1", series: str = "a", **changes: Any) -> Path:
    dataset = header(patient=patient, series=series, Modality="CR", ImageType=["ORIGINAL", "PRIMARY"], **changes)
    dataset.SOPInstanceUID = changes.get("SOPInstanceUID", uid(patient, series, path.name))
    dataset.PixelSpacing = ["0.14", "0.15"]
    set_pixels(dataset, array)
    for keyword in ("BitsStored", "PhotometricInterpretation"):
        if keyword in changes:
            setattr(dataset, keyword, changes[keyword])
    dataset.HighBit = dataset.BitsStored - 1
    return save(dataset, path)


def grey(seed: int = 0, high: int = 255, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (6, 9)).astype(dtype)


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def reasons(conversion: Conversion) -> list[str]:
    return [row.reason for row in conversion.with_status("refused")]


@pytest.mark.parametrize(("dtype", "high"), [("uint8", 256), ("uint16", 4096)])
def test_an_x_ray_becomes_a_png_with_its_values(tmp_path: Path, dtype: str, high: int) -> None:
    array = grey(1, high, dtype)
    array[0, 0] = high - 1
    write_picture(tmp_path / "in" / "1.2.276.dcm", array)
    said: list[str] = []
    done = convert_folder(tmp_path / "in", tmp_path / "out", say=said.append)
    picture = read(tmp_path / "out" / "imagesTr" / "1.2.276.png")
    assert picture.dtype == np.dtype(dtype) and np.array_equal(picture, array)
    (row,) = done.rows
    assert (row.id, row.status, row.shape, row.spacing) == ("1.2.276", "converted", "9x6", "0.15x0.14")
    assert "9×6 pixels of 0.15×0.14 mm" in said[0]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    array = grey(2, 4096, "uint16")
    write_picture(tmp_path / "in" / "x.dcm", array, PhotometricInterpretation="MONOCHROME1", BitsStored=12)
    (row,) = convert_folder(tmp_path / "in", tmp_path / "out").rows
    assert np.array_equal(read(tmp_path / "out" / row.file), 4095 - array)
    assert row.notes == "MONOCHROME1 displays high values as dark; the values were inverted"


def test_negative_values_and_damaged_files_are_refused_alone(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "good.dcm", grey(), series="g")
    write_picture(tmp_path / "in" / "low.dcm", (grey().astype(np.int16) - 300), series="l")
    cut = write_picture(tmp_path / "in" / "cut.dcm", grey(), series="c")
    cut.write_bytes(cut.read_bytes()[:-20])
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert [row.id for row in done.with_status("converted")] == ["good"]
    assert any("in a PNG" in reason for reason in reasons(done)) and any("truncat" in r for r in reasons(done))


def test_slices_that_lost_their_position_are_no_pictures(tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume(), ImagePositionPatient=None)
    assert "no position in the patient" in reasons(convert_folder(tmp_path / "in", tmp_path / "out"))[0]


def test_the_names_of_pictures(tmp_path: Path) -> None:
    """By the file; the series and the instance where that is private or not unique."""
    folder = tmp_path / "in"
    write_picture(folder / "a" / "IM1", grey(1), patient="P1")
    write_picture(folder / "b" / "IM1", grey(2), patient="P2")
    write_picture(folder / "c" / "Roe_Jane.dcm", grey(3), patient="P3")
    for number in range(2):
        write_picture(folder / "d" / f"view{number}.dicom", grey(4 + number), patient="P4")
    done = convert_folder(folder, tmp_path / "out")
    ids = sorted(row.id for row in done.with_status("converted"))
    assert ids == ["P1", "P2", "P3", "view0", "view1"]
    with (tmp_path / "out" / "series.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["id"] for row in rows) == ids
    assert {row["patient"] for row in rows if row["id"].startswith("view")} == {"P4"}
    again = convert_folder(folder, tmp_path / "out")
    assert sorted(row.id for row in again.rows) == ids
    (folder / "d" / "view0.dicom").unlink()
    convert_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "imagesTr" / "view0.png").exists()


def test_x_rays_with_a_table_of_run_lengths(tmp_path: Path) -> None:
    lines, truth = ["ImageId,EncodedPixels"], {}
    for number in range(3):
        name = uid("siim", number)
        write_picture(tmp_path / "in" / name / f"{name}.dcm", grey(number), patient=f"P{number}", SOPInstanceUID=name)
        truth[name] = np.zeros((6, 9), bool)
        truth[name][1 : 3 + number, 2:5] = True
        lines.append(f"{name},{encode(truth[name], RleFormat('column', 1, False, ''))}")
    convert_folder(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out" / "train.csv").write_text("\n".join(lines) + "\n")
    train = {"images": "imagesTr/{id}.png", "rle": "train.csv", "columns": {"id": "ImageId", "mask": "EncodedPixels"}}
    comp = competition(tmp_path / "out", train=train, group="series.csv:patient")
    table = case_table(comp)
    assert sorted(table["group"]) == ["P0", "P1", "P2"]
    for row in table.itertuples(index=False):
        assert load_image(comp, row).array.shape == (1, 6, 9)
        assert np.array_equal(load_mask(comp, row)[0] == 1, truth[str(row.id)])
