"""`on_bad_case: skip`: a bad case is left out, and every place where a user looks says so."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.context import Context
from competition.data.cases import case_table
from competition.errors import MaskfoldError

pytestmark = pytest.mark.faults


def broken(demo: Path, folder: Path) -> Path:
    """A copy of the 3D demo with three bad cases: a flipped bit, NaN voxels, no spacing."""
    import shutil

    shutil.copytree(demo, folder)
    first, second, third = sorted(folder.glob("imagesTr/*.nii.gz"))[:3]
    packed = bytearray(first.read_bytes())
    packed[len(packed) // 2] ^= 4
    first.write_bytes(packed)
    raw = bytearray(gzip.decompress(second.read_bytes()))
    assert struct.unpack("<h", raw[70:72]) in ((16,), (4,), (2,), (512,))
    if struct.unpack("<h", raw[70:72]) != (16,):
        values = np.frombuffer(
            bytes(raw[352:]), {4: "<i2", 2: "u1", 512: "<u2"}[struct.unpack("<h", raw[70:72])[0]]
        ).astype("<f4")
        raw = raw[:352] + bytearray(values.tobytes())
        raw[70:74] = struct.pack("<2h", 16, 32)
    raw[352:356] = struct.pack("<f", float("nan"))
    second.write_bytes(gzip.compress(bytes(raw)))
    raw = bytearray(gzip.decompress(third.read_bytes()))
    raw[80:84] = bytes(4)
    third.write_bytes(gzip.compress(bytes(raw)))
    return folder


@pytest.fixture
def bad(demo3d: Path, tmp_path: Path) -> Path:
    return broken(demo3d, tmp_path / "data")


def test_stop_names_the_first_bad_file_and_skip_leaves_all_three_out(tiny: Any, bad: Path) -> None:
    names = [path.name.removesuffix(".nii.gz") for path in sorted(bad.glob("imagesTr/*.nii.gz"))]
    comp = tiny(3, f"competition.root={bad}", "competition.on_bad_case=skip").competition
    table = case_table(comp)
    assert list(table["id"]) == names[3:]
    left_out = dict(table.attrs["skipped"])
    assert list(left_out) == names[:3]
    assert all(f"{name}.nii.gz" in left_out[name] for name in names[:3])
    assert "NaN or infinite" in left_out[names[1]] and "voxel size: found 0" in left_out[names[2]]
    with pytest.raises(
        MaskfoldError, match=rf"{names[2]}.nii.gz .*voxel size: found 0"
    ):  # headers are read before pixels
        case_table(comp.model_copy(update={"on_bad_case": "stop"}))


def test_skip_is_told_in_the_runs_folder_table_and_exit_summary(
    tiny: Any, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of the command, `skipped.csv` in the run's folder (which MLflow gets), the table, and the last lines."""
    import csv
    import io

    from rich.console import Console

    from competition.cli.console import cv_table
    from competition.cli.train import _case_warnings, skipped_lines
    from competition.tracking.uploader import RUN_FILES
    from competition.training.cross_validate import CvSummary, open_run

    monkeypatch.chdir(tmp_path)
    run = open_run(tiny(3, f"competition.root={bad}", "competition.on_bad_case=skip", "folds.k=2"), "tiny")
    run.write()
    bad_ids = [path.name.removesuffix(".nii.gz") for path in sorted(bad.glob("imagesTr/*.nii.gz"))][:3]
    rows = list(csv.DictReader((run.folder / "skipped.csv").open()))
    assert [row["id"] for row in rows] == bad_ids and all(".nii.gz" in row["reason"] for row in rows)
    assert "skipped.csv" in RUN_FILES
    assert [note.split(" ")[1] for note in _case_warnings(run) if "is skipped" in note] == bad_ids
    page = Console(file=io.StringIO(), width=160)
    page.print(cv_table(CvSummary("dice", 0.5, 0.4, 0.6, {}, {}, {}, 3, []), run))
    assert "3 of 6 cases are skipped" in page.file.getvalue()  # type: ignore[attr-defined]
    last = "\n".join(skipped_lines(run))
    assert "3 of 6 cases are skipped" in last and all(name in last for name in bad_ids) and "skipped.csv" in last


def test_a_case_that_only_preparation_refuses_is_left_out_too(
    tiny: Any, demo3d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound file whose spacing asks for an absurd grid passes the table, and must not stop the folds half-way."""
    import shutil

    from competition.runs.run import load_run
    from competition.training.cross_validate import open_run, prepare_run

    root = tmp_path / "data"
    shutil.copytree(demo3d, root)
    victim = sorted(root.glob("imagesTr/*.nii.gz"))[1]
    for path in (victim, root / "labelsTr" / victim.name):
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[80:92] = struct.pack("<3f", 5e4, 5e4, 5e4)
        for row in (280, 296, 312):
            raw[row : row + 12] = struct.pack("<3f", *[5e4 * (column == (row - 280) // 16) for column in range(3)])
        path.write_bytes(gzip.compress(bytes(raw)))
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    run = open_run(
        tiny(3, f"competition.root={root}", "competition.on_bad_case=skip", "prepare.spacing=[1,1,1]"), "tiny"
    )
    name = victim.name.removesuffix(".nii.gz")
    assert name in list(run.cases["id"])
    run = prepare_run(run, Context(say=said.append)) or run
    kept = load_run(run.folder)
    assert name not in list(kept.cases["id"]) and name not in list(kept.folds["id"])
    assert name in (run.folder / "skipped.csv").read_text() and any(name in line for line in said)


def test_a_test_case_that_is_left_out_is_told_by_predict_and_submit(
    tiny: Any, finished: Callable[..., Any], demo2d: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of label masks fewer, or no submission at all: with the reason."""
    import shutil

    from competition.submission.label_files import predict_images
    from competition.submission.submit import submit

    data = Path(shutil.copytree(demo2d, tmp_path / "data"))
    victim, *others = sorted((data / "test").iterdir())
    victim.write_bytes(victim.read_bytes()[:-40])
    run = finished(tiny(2, f"competition.root={data}", "competition.on_bad_case=skip", "folds.run=[0]"))
    done = predict_images([run], data / "test", tmp_path / "out")
    assert [one.case_id for one in done] == [path.stem for path in others]
    assert f"Case {victim.stem} " in caplog.text and victim.name in caplog.text
    caplog.clear()
    with pytest.raises(MaskfoldError, match=f"{victim.stem}, but no test image"):
        submit([run], output=tmp_path / "a.csv")
    assert f"Case {victim.stem} " in caplog.text and not (tmp_path / "a.csv").exists()
