"""Folders of sites, patients and visits above the cases: the cases and groups that `maskfold init` finds in them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from competition.config.loading import load_competition
from competition.data.cases import case_table
from competition.errors import MaskfoldError
from competition.planning.choice import describe_candidates, order_candidates
from competition.planning.find import find_layouts
from competition.planning.folder import scan_folder
from competition.planning.layout import Layout
from tests.host import write_nifti, write_png
from tests.planning.conftest import Start
from tests.planning.phantoms import picture, volume


def candidates(root: Path) -> list[Layout]:
    return order_candidates(find_layouts(scan_folder(root)))


# Scans in the folders of patients


def sessions(root: Path, days: Sequence[Sequence[str]]) -> None:
    """Write `MS-01/<day>/FLAIR.nii.gz`, T1 and a mask; the last patient has no masks."""
    for number, own in enumerate(days):
        for place, day in enumerate(own):
            image, mask = volume(10 * number + place)
            folder = root / f"MS-{number + 1:02d}" / day
            write_nifti(folder / "FLAIR.nii.gz", image)
            write_nifti(folder / "T1w_reg.nii.gz", image + 1)
            if number < len(days) - 1:
                write_nifti(folder / "consensus.nii.gz", (mask > 0).astype(np.uint8))


DAYS = [("2019-03-04", "2020-04-11"), ("2018-11-30",)] * 4


def linked(text: str) -> list[Layout]:
    """Run the command that a text names, and return the layouts of the folder that it makes."""
    command = text.partition("run init on that folder: ")[2].partition(" && maskfold init")[0]
    subprocess.run(command, shell=True, check=True)
    return candidates(Path(command.split()[1].strip("'")))


def test_scans_in_folders_that_differ_by_patient_get_a_command_that_links_them(tmp_path: Path) -> None:
    sessions(tmp_path / "ms", DAYS)
    with pytest.raises(MaskfoldError) as caught:
        candidates(tmp_path / "ms")
    assert caught.value.status == 2
    assert "12 folders" in caught.value.message and "11 scans have masks such as `consensus" in caught.value.message
    layout = linked(caught.value.hint)[0]
    assert layout.cases == 11 and isinstance(layout.images, dict) and list(layout.images) == ["FLAIR", "T1w_reg"]
    assert layout.unlabelled == ("MS-08_2018-11-30",) and "MS-01_2020-04-11" in layout.ids


def test_many_scans_in_folders_that_differ_by_patient_are_no_unknown_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("competition.planning.find.MAX_SERIES", 5)
    sessions(tmp_path / "ms", DAYS)
    with pytest.raises(MaskfoldError) as caught:
        candidates(tmp_path / "ms")
    assert linked(caught.value.hint)[0].cases == 11


def test_scans_with_other_names_than_those_of_the_only_layout_are_told(tmp_path: Path) -> None:
    sessions(tmp_path / "ms", [("baseline", f"week {number}") for number in range(6)])
    layout = candidates(tmp_path / "ms")[0]
    assert isinstance(layout.images, dict)
    assert layout.images["FLAIR"] == "{id}/baseline/FLAIR.nii.gz" and layout.cases == 5
    (remark,) = [text for text in layout.remarks if "maskfold init" in text]
    assert "10 cases in all" in remark and linked(remark)[0].cases == 10


def test_scans_in_separate_folders_of_images_and_masks_get_no_command(tmp_path: Path) -> None:
    for number in range(5):
        for scan in ("scan 1", "scan 2"):
            for index in range(6):
                image, mask = picture(60 * number + 10 * index + len(scan))
                write_png(tmp_path / "images" / f"P{number}" / scan / f"slice_{index}.png", image)
                write_png(tmp_path / "masks" / f"P{number}" / scan / f"slice_{index}.png", mask)
    found = candidates(tmp_path)
    assert [layout.cases for layout in found] == [5, 5] and not any(layout.advice for layout in found)
    assert "only the folders `scan 1`" in describe_candidates(found)[0]


def test_files_that_look_like_masks_are_not_denied(tmp_path: Path) -> None:
    for name in ("q", "w", "e", "r"):
        image, mask = picture(ord(name))
        write_png(tmp_path / f"{name}{name}.png", image)
        write_png(tmp_path / f"{name}{name * 3}.png", mask)
    with pytest.raises(MaskfoldError) as caught:
        candidates(tmp_path)
    assert (
        "matches images, such as ee.png" in caught.value.message and "masks, such as eeee.png" in caught.value.message
    )


# Patients in the folders of sites


def frames(root: Path, folders: Sequence[str], count: int = 3) -> dict[str, str]:
    """Write frames of unique names into `Frames/<folder>` and masks into `Annotations v2 (final)/<folder>`.

    Return the folder of each frame by id.
    """
    written = {}
    for place, folder in enumerate(folders):
        for number in range(count):
            image, mask = picture(20 * place + number)
            case_id = f"frame {7 * (number * len(folders) + place) + 12:05d}"
            write_png(root / "Frames" / folder / f"{case_id}.png", image)
            write_png(root / "Annotations v2 (final)" / folder / f"{case_id}.png", mask)
            written[case_id] = folder
    return written


SITES = [f"{site}/Pat. {number:03d}" for site in ("Site A - Lyon", "Site B - Kraków") for number in range(1, 6)]


@pytest.mark.parametrize("sites", [2, 3])
def test_patients_of_equal_names_at_several_sites_are_one_data_set(tmp_path: Path, sites: int) -> None:
    names = ("Site A - Lyon", "Site B - Kraków", "Site C - Bonn")[:sites]
    frames(tmp_path, [f"{site}/Pat. {number:03d}" for site in names for number in range(1, 6 + len(site) % 2)])
    layout, *others = candidates(tmp_path)
    assert (layout.images, layout.masks) == ("Frames/*/*/{id}.png", "Annotations v2 (final)/*/*/{id}.png")
    assert layout.cases == sum(3 * (5 + len(site) % 2) for site in names)
    assert all("{z}" in str(other.images) for other in others)


@pytest.mark.parametrize(
    ("folders", "kept"),
    [
        (SITES, 2),  # a patient is a folder of a site
        ([folder.replace("B - Kraków/Pat. 0", "B/Pat. 1") for folder in SITES], 1),  # names that do not repeat
        ([folder.replace("Site A - Lyon", "2019").replace("Site B - Kraków", "2020") for folder in SITES], 1),
        ([f"Patient {number:02d}/visit {visit}" for number in range(1, 9) for visit in (1, 2)], 0),
        ([f"Patient {number:02d}/visit {number}{visit}" for number in range(1, 9) for visit in (1, 2)], 0),
        ([f"K{number:02d}/2019-03-{day:02d}" for number in range(1, 9) for day in (1, 2)], 0),
    ],
)
def test_the_groups_are_the_folders_of_the_patients(start: Start, folders: Sequence[str], kept: int) -> None:
    written: dict[str, str] = {}
    done = start(lambda root: written.update(frames(root, folders, 2)), folder="colo", measures=False, layout=1)
    cases = case_table(load_competition(done.competition))
    wanted = {case_id: folder if kept == 2 else folder.split("/")[kept] for case_id, folder in written.items()}
    assert dict(zip(cases["id"], cases["group"], strict=True)) == wanted


def test_files_of_equal_names_at_several_sites_are_not_one_data_set(tmp_path: Path) -> None:
    for site in ("Site A", "Site B"):
        frames(tmp_path / site, [f"Pat. {number:03d}" for number in range(1, 6)])
    assert not any("*/*" in str(layout.images) for layout in candidates(tmp_path))
