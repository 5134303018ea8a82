"""Ids, privacy, the table over several conversions, and the command's exit status."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from competition.cli.data import dicom_command
from competition.dicom.convert import convert_folder
from competition.errors import MaskfoldError
from tests.dicom.files import positions, uid, volume, write_segmentation, write_series


def table(output: Path) -> list[dict[str, str]]:
    with open(output / "series.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def ids(folder: Path, output: Path, **options: Any) -> list[str]:
    return [row.id for row in convert_folder(folder, output, **options).with_status("converted")]


def everything(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ([{"patient": "P1"}, {"patient": "P2"}], ["P1", "P2"]),
        ([{"patient": "A/1 b"}], ["A_1_b"]),
        ([{"patient": "../../etc"}], ["etc"]),
        ([{"patient": "Ünal 7"}], ["Unal_7"]),
        ([{"patient": "患者"}], ["patient_[0-9a-f]{6}"]),
        ([{"patient": ""}], ["patient_[0-9a-f]{6}"]),
        ([{"patient": "P/1"}, {"patient": "P_1"}], ["P_1_[0-9a-f]{6}"] * 2),
        ([{"patient": "p1"}, {"patient": "P1"}], ["P1_[0-9a-f]{6}", "p1_[0-9a-f]{6}"]),
        ([{"series": "a"}, {"series": "b", "SeriesNumber": 12}], ["P1_s1", "P1_s12"]),
        ([{"series": "a"}, {"series": "b"}], ["P1_s1_[0-9a-f]{6}"] * 2),
        ([{"series": "a"}, {"series": "b", "SeriesNumber": None}], ["P1_sx[0-9a-f]{6}", "P1_s1"]),
        ([{"study": "a"}, {"study": "b"}], ["P1_st[0-9a-f]{6}_s1"] * 2),
        ([{"series": "a"}, {"series": "b", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}], ["P1"]),
        ([{"patient": "Roe^Jane"}], ["patient_[0-9a-f]{6}"]),
        ([{"patient": "jane_roe-3"}], ["patient_[0-9a-f]{6}"]),
        ([{"patient": "JaneRoe"}], ["patient_[0-9a-f]{6}"]),
        ([{"patient": "X20190407"}], ["patient_[0-9a-f]{6}"]),
        ([{"patient": "spleen_01", "PatientName": "spleen_01"}], ["spleen_01"]),
        ([{"patient": "spleen_01", "PatientName": "Phantom^Spleen"}], ["spleen_01"]),
    ],
)
def test_ids(tmp_path: Path, series: list[dict[str, Any]], expected: list[str]) -> None:
    for number, changes in enumerate(series):
        write_series(tmp_path / "in" / str(number), volume(seed=number), **changes)
    case_ids = sorted(ids(tmp_path / "in", tmp_path / "out"))
    assert len(set(case_ids)) == len(case_ids) == len(expected)
    assert all(re.fullmatch(pattern, case) for pattern, case in zip(sorted(expected), case_ids, strict=True)), case_ids
    assert {path.name for path in (tmp_path / "out/imagesTr").iterdir()} == {f"{case}.nii.gz" for case in case_ids}


@pytest.mark.parametrize(
    ("patient", "changes"), [("CT20190407", {"StudyDate": "20210102"}), ("ROE1", {"PatientName": ""})]
)
def test_one_patient_has_one_name_in_all_series(tmp_path: Path, patient: str, changes: dict[str, Any]) -> None:
    """The PatientID contains a date or a name that is only in the header of the first series."""
    write_series(tmp_path / "in/1", volume(), patient=patient, study="first")
    write_series(tmp_path / "in/2", volume(seed=1), patient=patient, study="second", **changes)
    rows = convert_folder(tmp_path / "in", tmp_path / "out").rows
    assert len(rows) == 2 and len({row.patient for row in rows}) == 1
    assert patient not in (tmp_path / "out/series.csv").read_text()


def test_the_output_has_no_name_and_no_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in/Roe_Jane 2019-04-07"
    write_series(folder, volume((6, 5, 6)), SeriesDescription="T2 for Jane ROE, 07.04.2019, b. 19501231")[2].unlink()
    write_series(folder / "x", volume((6, 5, 6)), series="b", SeriesDescription="axial of ROEJANE", SeriesNumber=2)
    (folder / "torn").write_bytes((folder / "IM0001").read_bytes()[:300])
    dicom_command(tmp_path / "in", tmp_path / "out", "imagesTr", None)
    output_text = capsys.readouterr().out + "".join(map(str, table(tmp_path / "out")))
    for path in (tmp_path / "out").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        output_text += path.name + (gzip.decompress(content) if path.suffix == ".gz" else content).decode("latin-1")
    assert not re.search(r"roe|jane|2019-?04-?07|07\.04|19501231", output_text, re.IGNORECASE)
    assert "T2 for *** ***, ***, b. ***" in output_text
    assert "axial of ***" in output_text


def test_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume())
    write_segmentation(
        tmp_path / "in/seg",
        [(1, positions(4)[2], volume()[:, :, 2].T > 0)],
        {1: "spleen"},
        image_series=uid("P1", "study", "series"),
    )
    convert_folder(tmp_path / "in", tmp_path / "out")
    first = everything(tmp_path / "out")
    convert_folder(tmp_path / "in", tmp_path / "out")
    convert_folder(tmp_path / "in", tmp_path / "other")
    assert first == everything(tmp_path / "out") == everything(tmp_path / "other")
    assert first["imagesTr/P1.nii.gz"][3:8] == b"\0" * 5  # of gzip: no name, no time
    assert sorted(first) == ["imagesTr/P1.nii.gz", "labelsTr/P1.nii.gz", "segments.csv", "series.csv"]


def test_rows_of_other_series_and_layouts_stay(tmp_path: Path) -> None:
    write_series(tmp_path / "a", volume(), patient="P1")
    write_series(tmp_path / "b", volume(), patient="P2")
    convert_folder(tmp_path / "a", tmp_path / "out", "imagesTr")
    convert_folder(tmp_path / "b", tmp_path / "out", "imagesTs")
    done = convert_folder(tmp_path / "a", tmp_path / "out", "imagesTs")
    assert [(row["id"], row["layout"]) for row in table(tmp_path / "out")] == [
        ("P1", "imagesTr"),
        ("P1", "imagesTs"),
        ("P2", "imagesTs"),
    ]
    assert done.rows[0].notes == "an earlier conversion wrote this series to imagesTr, where it remains"


def test_the_table_gives_the_groups_of_folds(tmp_path: Path) -> None:
    """The table also has series without a case: localisers, and label series without an image."""
    from competition.config.loading import load_competition
    from competition.data.cases import case_table

    for patient in ("P1", "P2"):
        folder = tmp_path / "in" / patient
        for number in (1, 2):
            write_series(
                folder / str(number), volume(seed=number), patient=patient, series=str(number), SeriesNumber=number
            )
            write_segmentation(
                folder / f"seg{number}",
                [(1, positions(4)[2], volume()[:, :, 2].T > 0)],
                {1: "spleen"},
                image_series=uid(patient, "study", number),
                patient=patient,
                series=f"seg{number}",
            )
        write_series(
            folder / "scout",
            volume((6, 5, 1)),
            patient=patient,
            series="scout",
            ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        )
    (tmp_path / "in/torn").write_bytes((tmp_path / "in/P1/1/IM0001").read_bytes()[:300])
    convert_folder(tmp_path / "in", tmp_path / "out")
    (tmp_path / "competition.yaml").write_text(
        f"name: ct\nroot: {tmp_path / 'out'}\ndimensions: 3\nclasses: [spleen]\ngroup: 'series.csv:patient'\n"
        "train: {images: 'imagesTr/{id}.nii.gz', masks: 'labelsTr/{id}.nii.gz'}\n"
        "metric: {name: dice, average: case_class, both_empty: 1.0}\n"
    )
    cases = case_table(load_competition(tmp_path / "competition.yaml", []))
    assert dict(zip(cases["id"], cases["group"], strict=True)) == {
        "P1_s1": "P1",
        "P1_s2": "P1",
        "P2_s1": "P2",
        "P2_s2": "P2",
    }


def test_an_id_stays_and_is_not_reused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", volume(seed=1), series="a")
    assert ids(tmp_path / "a", tmp_path / "out") == ["P1"]
    write_series(tmp_path / "b", volume(seed=2), series="b", SeriesNumber=2)
    (other,) = ids(tmp_path / "b", tmp_path / "out")
    assert re.fullmatch("P1_[0-9a-f]{6}", other)
    (tmp_path / "b").rename(tmp_path / "a/b")
    assert ids(tmp_path / "a", tmp_path / "out") == ["P1", other]
    for name, seed in (("P1", 1), (other, 2)):
        image = nibabel.load(tmp_path / f"out/imagesTr/{name}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume(seed=seed))


def test_a_refused_series_leaves_no_file_of_an_earlier_conversion(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", volume((6, 5, 6)))
    convert_folder(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/imagesTr/mine.nii.gz").touch()
    paths[2].unlink()
    assert convert_folder(tmp_path / "in", tmp_path / "out").with_status("refused")
    assert [path.name for path in (tmp_path / "out/imagesTr").iterdir()] == ["mine.nii.gz"]


def test_an_edited_table_deletes_nothing_elsewhere(tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume())
    convert_folder(tmp_path / "in", tmp_path / "out")
    victim = tmp_path / "victim.nii.gz"
    victim.touch()
    path = tmp_path / "out/series.csv"
    path.write_text(path.read_text().replace("imagesTr/P1.nii.gz", "../victim.nii.gz"))
    convert_folder(tmp_path / "in", tmp_path / "out")
    assert victim.exists()
    path.write_text("a,b\n1,2\n")
    with pytest.raises(MaskfoldError, match="series.csv was not written by maskfold dicom: found the columns a, b"):
        convert_folder(tmp_path / "in", tmp_path / "out")


def test_a_full_disk_stops_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from competition.io import DiskFullError

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_series(tmp_path / "in", volume())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        convert_folder(tmp_path / "in", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "imagesTr", None), "nowhere is not a folder"),
        (("in", "images", None), "--layout: found images"),
        (("in", "imagesTr", "(seg"), "--labels: found (seg"),
    ],
)
def test_invalid_arguments_exit_with_status_2(
    tmp_path: Path, arguments: tuple[str, str, str | None], message: str
) -> None:
    write_series(tmp_path / "in", volume())
    with pytest.raises(MaskfoldError, match=re.escape(message)) as caught:
        dicom_command(tmp_path / arguments[0], tmp_path / "out", *arguments[1:])
    assert caught.value.status == 2
    assert not (tmp_path / "out").exists()


def test_no_converted_series_exits_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/readme.txt").write_text("nothing")
    with pytest.raises(MaskfoldError, match=r"no DICOM file: found only 1 file of other formats") as caught:
        dicom_command(tmp_path / "in", tmp_path / "out", "imagesTr", None)
    assert caught.value.status == 1
    write_series(tmp_path / "in", volume((6, 5, 6)))[2].unlink()
    with pytest.raises(MaskfoldError, match="No series in .* could be converted") as caught:
        dicom_command(tmp_path / "in", tmp_path / "out", "imagesTr", None)
    assert caught.value.status == 1
    assert "0 series converted to images, 0 to masks, 1 refused" in capsys.readouterr().out
    assert table(tmp_path / "out")[0]["reason"].startswith("a slice is missing")


def test_the_summary_lists_every_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path / "in/a", volume())
    write_series(tmp_path / "in/b", volume((6, 5, 6)), patient="P2")[2].unlink()
    write_series(tmp_path / "in/c", volume(), patient="P3")
    write_segmentation(
        tmp_path / "in/seg",
        [(1, positions(4)[2], volume()[:, :, 2].T > 0)],
        {1: "spleen"},
        image_series=uid("P1", "study", "series"),
    )
    dicom_command(tmp_path / "in", tmp_path / "out", "imagesTr", None)
    output_text = capsys.readouterr().out
    for line in (
        "imagesTr/P1.nii.gz: P1 series 1 Abdomen, CT, 6×5×4 voxels of 0.8×0.7×2.5 mm\n",
        "refused P2 series 1 Abdomen: a slice is missing",
        "labelsTr/P1.nii.gz: P1 series 9 Segmentation, SEG",
        "images without a mask: P3. ",
        "2 series converted to images, 1 to masks, 1 refused",
        "labels: 1 spleen",
    ):
        assert line in output_text


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Roe^Jane", "roe_1 of JANE, prolonged throe", "***_1 of ***, prolonged throe"),
        ("Long^Ann", "prolonged annual long", "prolonged annual ***"),
        ("Li^Wu", "li, liwu, WU_LI1, lithium", "li, ***, ***1, lithium"),
        ("Yamada^Taro=山田^太郎", "Yamada 山田 太郎 山田太郎", "*** *** *** ***"),
        ("CASE-017", "case-017 of seventeen", "case-017 of seventeen"),
        ("Anonymous^Liver", "liver", "liver"),
        ("O'Neil^Tim", "o'neil, tim", "o'***, ***"),
        ("", "anything", "anything"),
    ],
)
def test_private_words(name: str, text: str, expected: str) -> None:
    from competition.dicom.headers import find_private_patterns, hide_private

    assert hide_private(text, find_private_patterns({"PatientName": name})) == expected
