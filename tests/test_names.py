"""Names that a host or a user chooses: file names that are not UTF-8, and names that leave no room for suffixes."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.config.loading import load_competition, load_experiment
from competition.data.cases import case_table
from competition.data.patterns import unmatched_images
from competition.errors import MaskfoldError, printable
from competition.explore import explore
from competition.io import (
    MAX_NAME_BYTES,
    DiskFullError,
    as_disk_error,
    atomic_write,
    make_temporary_path,
    remove_stale_temp,
)
from competition.runs.oof import OofStore
from competition.training.evaluator import _file_name
from tests.host import competition, pictures, write_text

LATIN = os.fsdecode(b"caf\xe9")  # the name in an old zip file


def rename(path: Path, case_id: str) -> None:
    path.rename(path.with_name(case_id + path.suffix))


@pytest.fixture
def latin(tmp_path: Path) -> Path:
    """Four cases; image and mask of one have a name in Latin-1."""
    pictures(tmp_path, ["a", "b", "c", "tea"])
    try:
        for folder in ("images", "masks"):
            rename(tmp_path / folder / "tea.png", LATIN)
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    return tmp_path


def test_a_name_that_is_not_utf8_is_an_error_that_names_the_file(latin: Path) -> None:
    with pytest.raises(MaskfoldError, match=r"not UTF-8: found images/caf\\xe9\.png") as caught:
        case_table(competition(latin))
    assert "convmv" in caught.value.hint and caught.value.status == 1
    str(caught.value).encode()


def test_skip_leaves_a_name_that_is_not_utf8_out(latin: Path) -> None:
    table = case_table(competition(latin, on_bad_case="skip"))
    assert table["id"].tolist() == ["a", "b", "c"]
    ((case_id, reason),) = table.attrs["skipped"]
    assert case_id == r"caf\xe9" and r"images/caf\xe9.png" in reason


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_explore_reports_a_name_that_is_not_utf8(latin: Path, folder: str) -> None:
    if folder == "masks":
        (latin / "images" / f"{LATIN}.png").unlink()
    found = explore(competition(latin))
    assert {fault.case for fault in found.faults} == {r"caf\xe9"}
    assert any(rf"{folder}/caf\xe9.png" in fault.message for fault in found.faults)
    "".join(f"{fault.case}{fault.message}{fault.hint}" for fault in found.findings).encode()
    skipping = explore(competition(latin, on_bad_case="skip"))
    assert skipping.faults == [] and any(remark.case == r"caf\xe9" for remark in skipping.remarks)


def test_a_folder_with_a_name_that_is_not_utf8(latin: Path) -> None:
    for folder in ("images", "masks"):
        shutil.rmtree(latin / folder)
    pictures(latin / "x", ["a", "b"])
    (latin / LATIN).mkdir()
    (latin / "x/images/b.png").rename(latin / LATIN / "b.png")
    train = {"images": "*/{id}.png", "masks": "x/masks/{id}.png"}
    (latin / "x/images").rename(latin / "images")
    with pytest.raises(MaskfoldError, match=r"found caf\\xe9/b\.png"):
        case_table(competition(latin, train=train))
    assert case_table(competition(latin, train=train, on_bad_case="skip"))["id"].tolist() == ["a"]


def test_a_table_of_run_lengths_beside_names_that_are_not_utf8(latin: Path) -> None:
    write_text(latin / "train.csv", "id,rle\na,1 3\nb,2 2\nc,1 1\n")
    train = {"images": "images/{id}.png", "rle": "train.csv"}
    assert case_table(competition(latin, train=train, on_bad_case="skip"))["id"].tolist() == ["a", "b", "c"]
    for case_id in "abc":
        (latin / "images" / f"{case_id}.png").unlink()
    with pytest.raises(MaskfoldError, match="No case is left, because 1 case is skipped"):
        case_table(competition(latin, train=train, on_bad_case="skip"))


def test_remarks_on_unmatched_files_can_be_printed(latin: Path, caplog: pytest.LogCaptureFixture) -> None:
    rename(latin / "images" / f"{LATIN}.png", f"{LATIN}.jpeg")
    (latin / "images" / f"{LATIN}.jpeg.png").rename(latin / "images" / f"{LATIN}.jpeg")
    (latin / "masks" / f"{LATIN}.png").unlink()
    comp = competition(latin)
    assert unmatched_images(comp, "train") == [r"images/caf\xe9.jpeg"]
    with caplog.at_level(logging.WARNING):
        case_table(comp)
    caplog.text.encode()


def test_printable_keeps_all_other_text() -> None:
    assert printable("café ☕ \\xe9\n") == "café ☕ \\xe9\n"
    assert printable("\ud800\udc80") == "\\ud800\\x80"
    assert MaskfoldError(f"{LATIN}.", f"{LATIN}?").message == "caf\\xe9."


# Names that are too long


def longest_names(case_id: str, folder: Path) -> list[Path]:
    """Return the files that are named after an id: its prediction, its label file, and its pictures."""
    pictured = f"final_12_of_12_{_file_name(case_id)}.png"
    return [OofStore(folder).path(case_id), folder / f"{case_id}.nii.gz", folder / pictured]


@pytest.mark.parametrize("letter", ["a", "é", "中", "+", "😀"])  # also letters that a stored prediction quotes
def test_every_id_that_is_accepted_fits_on_the_disk(tmp_path: Path, letter: str) -> None:
    lengths = [
        length for length in range(1, MAX_NAME_BYTES - 3) if len(f"{letter * length}.png".encode()) <= MAX_NAME_BYTES
    ]
    accepted = 0
    for length in (lengths[-1], *(246, 247, 82, 83, 81, 61, 62, 20, 21), 1):
        if length not in lengths:
            continue
        folder = tmp_path / str(length)
        pictures(folder, ["b", "c"])
        case_id = letter * length
        for kind in ("images", "masks"):
            rename(folder / kind / "b.png", case_id)
        ids = case_table(competition(folder, on_bad_case="skip"))["id"].tolist()
        fits = all(len(os.fsencode(path.name)) <= MAX_NAME_BYTES for path in longest_names(case_id, folder))
        assert (case_id in ids) == fits
        if fits:
            accepted += 1
            OofStore(folder).write(case_id, np.zeros((1, 2, 2), np.float32))
            for path in longest_names(case_id, folder)[1:]:
                atomic_write(path, lambda file: file.write(b"1"))
        else:
            with pytest.raises(MaskfoldError, match="is too long") as caught:
                case_table(competition(folder))
            assert "Rename the file" in caught.value.hint
    assert accepted


def test_the_class_in_the_name_of_a_label_file_counts(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b"])
    case_id = "x" * 230
    for kind in ("images", "masks"):
        rename(tmp_path / kind / "b.png", case_id)
    case_table(competition(tmp_path))
    keys: dict[str, Any] = {"classes": ["y" * 18], "labels": "overlapping"}
    with pytest.raises(MaskfoldError, match="256 bytes"):
        case_table(competition(tmp_path, **keys))
    assert len(case_table(competition(tmp_path, **{**keys, "classes": ["y" * 17]}))) == 2


@pytest.mark.parametrize("host", ["a", "h" * 64])
def test_temporary_names_fit_wherever_the_name_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    short, twin = "n" * 160, "n" * 161
    assert make_temporary_path(tmp_path / short).name.startswith(f".{short}~{host}~{os.getpid()}~")
    for name in (short, twin, "n" * 255, "中" * 85):
        atomic_write(tmp_path / name, lambda file: file.write(b"1"))
        make_temporary_path(tmp_path / name).touch()
    dead = make_temporary_path(tmp_path / twin)
    dead = dead.with_name(dead.name.replace(f"~{os.getpid()}~", "~4194999~"))
    dead.touch()
    before = len(list(tmp_path.iterdir()))
    remove_stale_temp(tmp_path, "n" * 255)
    assert dead.exists()
    remove_stale_temp(tmp_path, twin)
    assert not dead.exists() and len(list(tmp_path.iterdir())) == before - 1, "those of living processes stay"


def test_a_name_too_long_is_an_error_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="has 300 bytes"):
        atomic_write(tmp_path / ("n" * 300), lambda file: file.write(b"1"))
    with pytest.raises(OSError) as caught:
        (tmp_path / ("n" * 300)).stat()
    assert as_disk_error(caught.value, None) is not None


# Names of experiments, competitions and roots


def experiment(folder: Path, name: str, comp: str = "host") -> Path:
    write_text(
        folder / "competition.yaml",
        f"name: {comp}\nroot: data\ndimensions: 2\nclasses: [a]\n"
        "train: {images: 'i/{id}.png', masks: 'm/{id}.png'}\n",
    )
    return write_text(
        folder / f"{name}.yaml",
        "competition: competition.yaml\npatch: {size: [32, 32]}\n"
        "model: {target: segmentation_models_pytorch.Unet, args: {encoder_name: resnet18, encoder_weights: null}}\n"
        "loss: {target: monai.losses.DiceLoss}\n",
    )


@pytest.mark.parametrize(
    ("name", "comp", "problem"),
    [
        ("n" * 200, "host", "is too long .* found 205 bytes"),
        ("n", "c" * 300, "is too long"),
        (LATIN, "host", "is not UTF-8"),
        ("a\nb", "host", "line break"),
    ],
)
def test_the_name_of_a_runs_folder(tmp_path: Path, name: str, comp: str, problem: str) -> None:
    with pytest.raises(MaskfoldError, match=problem) as caught:
        load_experiment(experiment(tmp_path, name, comp))
    assert caught.value.status == 2
    load_experiment(experiment(tmp_path, "café net (2)"))


def test_a_root_that_is_not_utf8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a checkout may have a folder `data`, which would be the root
    with pytest.raises(MaskfoldError, match="not valid YAML"):
        load_competition(experiment(tmp_path, "x").with_name("competition.yaml"), [f"root={LATIN}"])
    file = experiment(tmp_path / LATIN, "x").with_name("competition.yaml")
    (tmp_path / LATIN / "data").mkdir()
    with pytest.raises(MaskfoldError, match=r"root: the path .*caf\\xe9/data is not UTF-8") as caught:
        load_competition(file)
    assert caught.value.status == 2


def test_classes_are_unicode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not UTF-8"):
        competition(tmp_path, classes=["\udce9"])
