"""Files of equal names in several folders: `maskfold init` links them under names that contain the folders."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from competition.config.loading import load_competition
from competition.data.cases import case_table, group_values
from competition.errors import MaskfoldError
from competition.planning.choice import describe_candidates, order_candidates
from competition.planning.find import find_layouts
from competition.planning.folder import scan_folder
from competition.planning.init import remarks_of
from tests.host import write_nifti, write_png, write_text
from tests.planning.conftest import Start
from tests.planning.phantoms import picture, volume


def folders(image: str, mask: str, names: Sequence[str], count: int = 6) -> Callable[[Path], None]:
    """Return a function that writes `count` images with equal names into each of several folders.

    Args:
        image, mask: paths of image and mask, with {place} for the folder and {number} for the number of the image.
        names: names of the folders.
        count: number of images in each folder.
    """

    def maker(root: Path) -> None:
        for place, name in enumerate(names):
            for number in range(1, count + 1):
                is_volume = image.endswith(".nii.gz")
                pixels, labels = (volume if is_volume else picture)(100 * place + number)
                for pattern, array in ((image, pixels), (mask, (labels > 0).astype(np.uint8))):
                    path = root / pattern.format(place=name, number=f"{number:03d}")
                    write_nifti(path, array) if is_volume else write_png(path, array)

    return maker


TWO, THREE = ("siteA", "siteB"), ("berlin", "bonn", "ulm")
LAYOUTS = {
    "folders beside": ("{place}/frame_{number}.png", "{place}_masks/frame_{number}.png", TWO),
    "roles above": ("images/{place}/{number}.png", "masks/{place}/{number}.png", TWO),
    "roles below": ("{place}/images/{number}.png", "{place}/masks/{number}.png", TWO),
    "paired names": ("{place}/{number}.png", "{place}/{number}_mask.png", TWO),
    "deep": ("data/{place}/train/images/{number}.png", "data/{place}/train/masks/{number}.png", TWO),
    "case folders": ("{place}/{number}/image.png", "{place}/{number}/mask.png", TWO),
    "volumes": ("{place}/scans/{number}.nii.gz", "{place}/labels/{number}.nii.gz", TWO),
    "words beside the role": ("{place}/left_frames/{number}.png", "{place}/ground_truth/{number}.png", THREE),
    "words beside both roles": ("{place}/us_scan/{number}.png", "{place}/outline_mask/{number}.png", TWO),
    "three sites": ("{place}/images/{number}.png", "{place}/masks/{number}.png", THREE),
    "three sites below": ("images/{place}/{number}.png", "masks/{place}/{number}.png", THREE),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_folders_together_have_unique_ids(name: str, start: Start) -> None:
    image, mask, places = LAYOUTS[name]
    maker = folders(image, mask, places)
    with pytest.raises(MaskfoldError, match="all folders together") as caught:
        start(maker, folder="sites")
    assert caught.value.status == 2 and not Path("experiments").exists() and not Path("data/sites-maskfold").exists()

    done = start(maker, folder="sites", layout=1, measures=False)
    comp = load_competition(done.competition)
    table = case_table(comp)
    stem = "frame_" if name == "folders beside" else ""
    wanted = {f"{place}_{stem}{number:03d}": (place, number) for place in places for number in range(1, 7)}
    assert set(table["id"]) == set(wanted) and comp.dimensions == (3 if name == "volumes" else 2)
    for case_id, (place, number) in wanted.items():
        for pattern, own in ((image, comp.train.images), (mask, comp.train.masks)):
            source = (Path(comp.root) / str(own).replace("{id}", case_id)).resolve()
            expected = pattern.format(place=place, number=f"{number:03d}")
            assert source.as_posix().endswith(f"/sites/{expected}") and source.is_file()
    (remark,) = [text for text in remarks_of(done) if "stratum: " in text]
    rule = remark.partition("stratum: ")[2].partition(",")[0]
    ids = table["id"].tolist()
    sites = group_values(comp.model_copy(update={"stratum": rule}), ids, "stratum")
    assert sites == [wanted[case_id][0] for case_id in ids]
    assert comp.group is None


def test_the_links_move_with_the_data_and_are_written_again(start: Start) -> None:
    maker = folders(*LAYOUTS["roles below"])
    start(maker, folder="sites", layout=1, measures=False)
    links = Path("data/sites-maskfold/sites-links")
    first = sorted(path.relative_to(links) for path in links.rglob("*"))
    Path("data").rename("moved")
    assert all(path.exists() for path in (Path("moved") / links.relative_to("data")).rglob("*"))
    Path("moved").rename("data")
    start(maker, folder="sites", layout=1, measures=False, force=True)
    assert sorted(path.relative_to(links) for path in links.rglob("*")) == first
    write_text(links / "notes.txt", "mine")
    with pytest.raises(MaskfoldError, match="contains a file that is no link: notes.txt") as caught:
        start(maker, folder="sites", layout=1, measures=False, force=True)
    assert caught.value.status == 2 and (links / "notes.txt").read_text() == "mine"


def test_temporary_links_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders(*LAYOUTS["roles above"])(tmp_path / "data" / "sites")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    found = find_layouts(scan_folder(tmp_path / "data" / "sites"))
    assert len(list((tmp_path / "temporary").iterdir())) == 1 and len(found) == 3
    del found
    gc.collect()
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("names", "stem", "scheme"),
    [
        ([f"P{number:02d}" for number in range(10)], "", lambda place, number: place),
        (("siteA", "siteB"), "P{number}_week1", lambda place, number: f"{place}/P{number}"),
        (("2019", "2020"), "P{number}_week1", lambda place, number: f"P{number}"),
    ],
    ids=["folders of patients", "patients of sites", "patients of years"],
)
def test_groups(names: Sequence[str], stem: str, scheme: Callable[[str, int], str], start: Start) -> None:
    """Images of one patient are one group; equal names of patients at two sites are two patients."""
    per_patient = 2 if stem else 6

    def maker(root: Path) -> None:
        for place, name in enumerate(names):
            for number in range(1, 7):
                image, mask = picture(100 * place + number)
                patient = (number - 1) // per_patient
                own = f"P{patient}_week{number % per_patient}" if stem else f"{number:03d}"
                write_png(root / name / "images" / f"{own}.png", image)
                write_png(root / name / "masks" / f"{own}.png", (mask > 0).astype(np.uint8))

    done = start(maker, folder="sites", layout=1, measures=False)
    comp = load_competition(done.competition)
    ids = case_table(comp)["id"].tolist()
    expected = [
        scheme(case_id.partition("_")[0], int(case_id.split("_P")[1][0]) if stem else 0).replace("{number}", "")
        for case_id in ids
    ]
    assert len(ids) == 6 * len(names) and group_values(comp, ids, "group") == expected


def test_folders_of_versions_stay_choices_beside_all_together(tmp_path: Path) -> None:
    folders("{place}/images/{number}.png", "{place}/masks/{number}.png", ("large", "small"))(tmp_path)
    found = order_candidates(find_layouts(scan_folder(tmp_path)))
    assert [layout.cases for layout in found] == [12, 6, 6]
    assert found[1].images == "large/images/{id}.png"
    assert all("maskfold-links" not in line for line in describe_candidates(found))


@pytest.mark.parametrize("name", ["slice_{number}.png", "{number}_z.png"])
def test_names_of_slices_are_no_cases(name: str, tmp_path: Path) -> None:
    folders(f"images/{{place}}/{name}", f"masks/{{place}}/{name}", THREE)(tmp_path)
    assert [layout.dimensions for layout in find_layouts(scan_folder(tmp_path))] == [3]


def test_test_images_of_sites_are_linked_too(start: Start) -> None:
    def maker(root: Path) -> None:
        folders("train/images/{place}/{number}.png", "train/masks/{place}/{number}.png", TWO)(root)
        for place in TWO:
            for number in range(1, 4):
                write_png(root / "test" / "images" / place / f"{number:03d}.png", picture(900 + number)[0])

    done = start(maker, folder="sites", layout=1, measures=False)
    assert [case.id for case in done.exploration.cases_of("test")] == [f"{p}_{n:03d}" for p in TWO for n in (1, 2, 3)]
