"""What is uncertain is asked, or ends with status 2; what is no competition is refused with the next step."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.config.loading import load_competition, load_experiment
from competition.data.cases import case_table
from competition.data.splits import group_values
from competition.errors import MaskfoldError
from competition.explore import Exploration
from competition.planning.init import remarks_of
from competition.planning.plan import Plan, PlanOptions, make_plan
from tests.conftest import ROOT
from tests.host import write_nifti, write_png, write_text
from tests.planning.conftest import Start
from tests.planning.phantoms import (
    AMBIGUOUS,
    IDS,
    MAKERS,
    coco,
    dicom,
    only_images,
    picture,
    stack_or_pictures,
    two_opinions,
    unclear_order,
    value_255,
    volume,
)


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_folder_ends_with_numbered_candidates(name: str, start: Start) -> None:
    with pytest.raises(MaskfoldError, match=r"2 ways:") as caught:
        start(AMBIGUOUS[name])
    assert caught.value.status == 2 and "--layout 1" in caught.value.hint
    assert len(re.findall(r"^  [12]\. .*\d+ cases: ", caught.value.message, re.MULTILINE)) == 2
    assert not Path("experiments").exists()


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_the_terminal_asks(name: str, start: Start) -> None:
    asked: list[str] = []

    def ask(lines: Sequence[str]) -> int:
        asked.extend(lines)
        return 2

    chosen = start(AMBIGUOUS[name], ask)
    again = start(AMBIGUOUS[name], layout=2, force=True)
    assert len(asked) == 2 and chosen.layout.name == again.layout.name
    assert case_table(load_competition(again.competition))["id"].size == again.layout.cases


def test_the_choice_is_what_is_written(start: Start) -> None:
    start(two_opinions, layout=2)
    assert load_competition("experiments/two_opinions/competition.yaml").train.masks == "annotator2/{id}.png"
    start(value_255, layout=1)
    assert load_competition("experiments/value_255/competition.yaml").ignore == 255
    start(value_255, layout=2, force=True)
    assert load_competition("experiments/value_255/competition.yaml").label_values == [1, 2, 255]
    start(unclear_order, layout=2)
    comp = load_competition("experiments/unclear_order/competition.yaml")
    assert comp.train.rle_format is not None and comp.train.rle_format.order == "row"
    start(stack_or_pictures, layout=2)
    assert load_competition("experiments/stack_or_pictures/competition.yaml").dimensions == 3


@pytest.mark.parametrize("number", [0, 3])
def test_a_wrong_number_lists_the_candidates(number: int, start: Start) -> None:
    with pytest.raises(MaskfoldError, match=rf"--layout: found {number}, expected a number from 1 to 2") as caught:
        start(two_opinions, layout=number)
    assert caught.value.status == 2 and "annotator1" in caught.value.message


def test_several_data_sets_in_one_folder_are_a_question(start: Start) -> None:
    def maker(root: Path) -> None:
        MAKERS["decathlon"](root / "TaskA")
        MAKERS["nnunet_v2"](root / "TaskB")

    with pytest.raises(MaskfoldError, match="in TaskA.*\n.*in TaskB"):
        start(maker, folder="both")
    start(maker, folder="both", layout=2)
    assert str(load_competition("experiments/both/competition.yaml").root).endswith("both/TaskB")


# Folders that are no competition


def test_dicom_names_the_command(start: Start) -> None:
    with pytest.raises(MaskfoldError, match="has DICOM files") as caught:
        start(dicom)
    assert caught.value.status == 2 and "maskfold dicom " in caught.value.hint


def test_images_without_masks_are_a_test_set(start: Start) -> None:
    with pytest.raises(MaskfoldError, match="neither masks nor a table .* test set") as caught:
        start(only_images)
    assert caught.value.status == 2 and "maskfold predict" in caught.value.hint


def test_wrong_paths(start: Start, tmp_path: Path) -> None:
    def nothing(root: Path) -> None:
        write_text(root / ".DS_Store", "")

    with pytest.raises(MaskfoldError, match="no files") as caught:
        start(nothing)
    assert caught.value.status == 2
    start(MAKERS["paired_names"])
    from competition.planning.init import Options, initialise

    for path, message, hint in (
        ("data/paired_name", "does not exist", "data/paired_names"),
        ("experiments/paired_names/competition.yaml", "is a file", "maskfold explore"),
    ):
        with pytest.raises(MaskfoldError, match=message) as caught:
            initialise(Path(path), Options(), None, lambda rows, _: rows)
        assert caught.value.status == 2 and hint in caught.value.hint
    shutil.make_archive("host", "zip", "data/paired_names")
    with pytest.raises(MaskfoldError, match="is a file") as caught:
        initialise(Path("host.zip"), Options(), None, lambda rows, _: rows)
    assert "Unpack" in caught.value.hint


def test_masks_in_colours_are_refused(start: Start) -> None:
    def maker(root: Path) -> None:
        for number, case_id in enumerate(IDS):
            image, mask = picture(number)
            write_png(root / "images" / f"{case_id}.png", image)
            colours = np.array([(0, 0, 0), (200, 30, 0), (0, 30, 200)], np.uint8)
            write_png(root / "masks" / f"{case_id}.png", colours[mask])
        write_text(root / "classes.txt", "background 0 0 0\nring 200 30 0\n")

    with pytest.raises(MaskfoldError, match="are in colours") as caught:
        start(maker, folder="colours")
    assert caught.value.status == 2 and "docs/init.md" in caught.value.hint
    assert "200 30 0 (ring), " in caught.value.message and "from classes.txt" in caught.value.message


# What exists already, and options


def test_existing_files_are_kept_without_force(start: Start) -> None:
    done = start(MAKERS["paired_names"])
    done.competition.write_text("mine")
    with pytest.raises(MaskfoldError, match="exists already") as caught:
        start(MAKERS["paired_names"])
    assert caught.value.status == 2 and "--force" in caught.value.hint and done.competition.read_text() == "mine"
    start(MAKERS["paired_names"], name="other")
    start(MAKERS["paired_names"], force=True)
    assert load_competition(done.competition).name == "paired_names"
    assert load_competition("experiments/other/competition.yaml").name == "other"
    with pytest.raises(MaskfoldError, match="--name"):
        start(MAKERS["paired_names"], name="../x")


def test_minutes_and_folds(start: Start) -> None:
    start(MAKERS["paired_folders"], minutes=7.5, folds=9)
    exp = load_experiment("experiments/paired_folders/experiment.yaml")
    assert exp.training.budget_minutes == 7.5 and exp.folds.k == 4  # four patients


def test_faults_of_the_data_are_found_and_both_files_written(start: Start) -> None:
    def maker(root: Path) -> None:
        MAKERS["paired_names"](root)
        path = root / "train" / f"{IDS[3]}.jpg"
        path.write_bytes(path.read_bytes()[:300])

    done = start(maker, folder="broken")
    assert [fault.case for fault in done.exploration.faults] == [IDS[3]] and done.experiment is not None


def test_images_without_a_mask_are_left_out_and_named(start: Start) -> None:
    def maker(root: Path) -> None:
        MAKERS["paired_folders"](root)
        for number in range(2):
            write_png(root / "photos" / f"patient_9{number}_week1.png", picture(80 + number)[0])

    done = start(maker, folder="partly")
    assert any("2 images without a mask" in remark for remark in done.layout.remarks)
    assert len(case_table(load_competition(done.competition))) == 8


def test_the_only_image_without_a_mask_is_named(start: Start) -> None:
    def one_gap(root: Path) -> None:
        MAKERS["paired_folders"](root)
        write_png(root / "photos" / "patient_00_week0.png", picture(80)[0])

    expected = "1 image without a mask (patient_00_week0): left out of training (train.cases)"
    assert expected in start(one_gap).layout.remarks


def test_at_most_three_images_without_a_mask_are_named(start: Start) -> None:
    def gaps(root: Path) -> None:
        MAKERS["decathlon"](root)
        labels = sorted((root / "labelsTr").glob("[!.]*"))
        for path in labels[:4]:
            path.unlink()

    done = start(gaps)
    assert len(case_table(load_competition(done.competition))) == done.layout.cases > 0
    (remark,) = (remark for remark in done.layout.remarks if "without a mask" in remark)
    assert remark.startswith("4 images without a mask (") and remark.count(", ") == 3 and ", …)" in remark


def test_a_labelled_test_set_gives_its_images_only(start: Start) -> None:
    def maker(root: Path) -> None:
        for split, first in (("train", 0), ("test", 50)):
            for number in range(6):
                image, mask = picture(first + number)
                write_png(root / split / "images" / f"{split[0]}{number}.png", image)
                write_png(root / split / "masks" / f"{split[0]}{number}.png", mask)

    done = start(maker, folder="split")
    comp = load_competition(done.competition)
    assert comp.train.images == "train/images/{id}.png" and comp.test is not None
    assert comp.test.images == "test/images/{id}.png"
    assert any("6 labelled cases" in note for note in done.layout.notes)
    assert not any("change train.images" in remark for remark in remarks_of(done)), "the note explains these files"


def test_images_that_no_pattern_matches_are_counted(start: Start) -> None:
    def maker(root: Path) -> None:
        MAKERS["paired_folders"](root)
        write_png(root / "overview.png", picture(1)[0])

    assert any("1 image file of" in text and "overview.png" in text for text in remarks_of(start(maker, folder="m")))


def test_a_folder_whose_steps_cannot_be_timed_gets_a_plan_with_a_warning(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(exploration: Exploration, options: PlanOptions, say: Callable[[str], None]) -> Plan | None:
        if options.measures:
            raise MaskfoldError(
                "A step of the smallest network cannot be timed on this machine: no result within 240 s.", "Wait."
            )
        return make_plan(exploration, options, say)

    monkeypatch.setattr("competition.planning.init.make_plan", busy)
    done = start(MAKERS["paired_names"], measures=True, minutes=2)
    assert done.plan is not None and "no result within 240 s. " in done.plan.warnings[0]
    assert load_experiment("experiments/paired_names/experiment.yaml").training.budget_minutes == 2


# Faulty COCO files


def _change_coco(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    coco(root)
    file = root / "annotations" / "instances.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda content: content["images"][1].update(height=48, width=40), "has 40×48 pixels"),
        (lambda content: content["images"][1].update(height=10**9, width=10**9), "states 1000000000×1000000000"),
        (lambda content: content["annotations"][0].update(category_id=7), "category_id 7"),
        (lambda content: content["images"][0].update(height=float("inf")), "OverflowError"),
    ],
)
def test_a_faulty_coco_file_is_refused(change: Callable[[dict[str, Any]], object], part: str, start: Start) -> None:
    with pytest.raises(MaskfoldError) as caught:
        start(lambda root: _change_coco(root, change), folder="coco")
    assert caught.value.status == 2 and part in caught.value.message
    assert not Path("experiments").exists()


def test_two_coco_files_of_one_folder_have_tables_of_their_own(start: Start) -> None:
    def two_files(root: Path) -> None:
        coco(root)
        file = root / "annotations" / "instances.json"
        content = json.loads(file.read_text())
        for name, part in (("first", slice(0, 3)), ("second", slice(3, None))):
            images = content["images"][part]
            ids = {image["id"] for image in images}
            objects = [item for item in content["annotations"] if item["image_id"] in ids]
            (file.parent / f"{name}.json").write_text(json.dumps({**content, "images": images, "annotations": objects}))
        file.unlink()

    ids = {}
    for layout, name in enumerate(("one", "two"), start=1):
        start(two_files, layout=layout, name=name)
        ids[name] = set(case_table(load_competition(f"experiments/{name}/competition.yaml"))["id"])
    assert set(case_table(load_competition("experiments/one/competition.yaml"))["id"]) == ids["one"]
    assert ids["one"].isdisjoint(ids["two"]) and ids["one"] | ids["two"] == set(IDS)


def _scans_of_patients(patients: int, scans: int) -> Callable[[Path], None]:
    def maker(root: Path) -> None:
        for patient in range(patients):
            for scan in range(scans):
                image, mask = picture(10 * patient + scan)
                folder = root / f"Patient {patient:02d}" / f"s{patient:02d}x{scan}"
                write_png(folder / "image.png", image)
                write_png(folder / "mask.png", mask)

    return maker


def test_folders_above_the_cases_are_groups_if_they_may_be_patients(start: Start) -> None:
    done = start(_scans_of_patients(9, 2), folder="scans", measures=False, force=True)
    comp, experiment = load_competition(done.competition), load_experiment(done.experiment)
    ids = case_table(comp)["id"].tolist()
    assert len(ids) == 18 and experiment.folds.scheme in ("group", "stratified_group")
    assert group_values(comp, ids, "group") == [f"Patient {case_id[1:3]}" for case_id in ids]


def _scans_in_folders(folders: dict[str, list[str]]) -> Callable[[Path], None]:
    """Make a folder for each case, named by its id, in a folder of several cases."""

    def maker(root: Path) -> None:
        for place, (folder, ids) in enumerate(folders.items()):
            for number, case_id in enumerate(ids):
                image, mask = picture(20 * place + number)
                write_png(root / folder / case_id / "image.png", image)
                write_png(root / folder / case_id / "mask.png", mask)

    return maker


def _visits(folders: Sequence[str], cases: Sequence[int], beginnings: Sequence[str]) -> dict[str, list[str]]:
    return {
        folder: [f"{beginnings[number % len(beginnings)]}_MR{20 * place + number}" for number in range(count)]
        for place, (folder, count) in enumerate(zip(folders, cases, strict=True))
    }


PATIENTS = [f"PAT{number:04d}" for number in range(3, 9)]
DAYS = ("20190301", "20190907", "20200110")


@pytest.mark.parametrize(("beginnings", "remark"), [(DAYS, False), (("V1", "V2", "V3"), True), (("scan",), False)])
def test_folders_of_patients_win_over_beginnings_of_the_ids(
    start: Start, beginnings: tuple[str, ...], remark: bool
) -> None:
    folders = _visits(PATIENTS, (2, 3, 2, 3, 2, 3), beginnings)
    done = start(_scans_in_folders(folders), folder="visits", measures=False)
    comp, experiment = load_competition(done.competition), load_experiment(done.experiment)
    wanted = {case_id: folder for folder, ids in folders.items() for case_id in ids}
    ids = case_table(comp)["id"].tolist()
    assert group_values(comp, ids, "group") == [wanted[case_id] for case_id in ids]
    assert experiment.folds.scheme in ("group", "stratified_group")
    assert any("because the folders above the cases are the groups" in text for text in remarks_of(done)) == remark


def test_the_beginning_of_an_id_stays_the_group_if_it_divides_no_folder(start: Start) -> None:
    folders = {f"day{day}": [f"pat{day // 2}_{day}{scan}" for scan in range(2)] for day in range(8)}
    done = start(_scans_in_folders(folders), folder="days", measures=False)
    assert load_competition(done.competition).group == "^(.+)[_-][^_-]+$"


@pytest.mark.parametrize(
    ("folders", "cases"),
    [
        (("benign", "malignant"), (6, 7)),
        (("ash", "birch", "elm", "oak", "yew"), (3, 2, 3, 2, 3)),
        (("P1", "P2", "P3"), (3, 3, 3)),
        (("P1", "P2", "P3", "P4"), (7, 8, 7, 8)),
        (DAYS + ("20200111", "20200112"), (3, 2, 3, 2, 3)),
    ],
)
def test_folders_that_may_be_kinds_of_cases_or_dates_are_only_named(
    start: Start, folders: tuple[str, ...], cases: tuple[int, ...]
) -> None:
    done = start(_scans_in_folders(_visits(folders, cases, ("scan",))), folder="kinds", measures=False)
    assert load_competition(done.competition).group is None
    assert any(f"{len(folders)} folders above the cases, such as" in text for text in remarks_of(done))


def test_a_few_folders_that_beginnings_of_the_ids_divide_are_named(start: Start) -> None:
    folders = _visits(("P1", "P2", "P3"), (3, 3, 3), ("V1", "V2", "V3"))
    done = start(_scans_in_folders(folders), folder="few", measures=False)
    assert load_competition(done.competition).group == "^(.+)[_-][^_-]+$"
    assert any("3 folders above the cases, such as" in text for text in remarks_of(done))


def test_a_few_folders_above_many_cases_are_only_named(start: Start) -> None:
    done = start(_scans_of_patients(3, 6), folder="kinds", measures=False)
    assert load_competition(done.competition).group is None
    assert any("3 folders above the cases, such as Patient 00 with 6" in text for text in remarks_of(done))


@pytest.mark.parametrize(
    "folder", ["external", "scans_external", "holdout", "hold_out", "evaluation", "val", "validation", "val/images"]
)
def test_a_folder_of_images_without_masks_is_the_test_set_if_its_name_says_so(folder: str, start: Start) -> None:
    def paired(root: Path) -> None:
        for number in range(11):
            image, mask = picture(number)
            train = "images" if folder.count("/") == 0 else "train/images"
            write_png(root / (train if number < 8 else folder) / f"a{number:02d}.png", image)
            if number < 8:
                write_png(root / train.replace("images", "masks") / f"a{number:02d}.png", mask)

    done = start(paired, folder="held", measures=False)
    comp = load_competition(done.competition)
    assert comp.test is not None and comp.test.images == f"{folder}/{{id}}.png"
    assert [case.id for case in done.exploration.cases_of("test")] == ["a08", "a09", "a10"]
    assert any("no folder is named test" in remark and folder in remark for remark in remarks_of(done))


def _with_folders(*folders: str, masks: bool = False) -> Callable[[Path], None]:
    def maker(root: Path) -> None:
        for place, folder in enumerate(("", *folders)):
            for number in range(8 if not folder else 4):
                image, mask = picture(20 * place + number)
                write_png(root / folder / "images" / f"a{place}{number}.png", image)
                if not folder or masks:
                    write_png(root / folder / "masks" / f"a{place}{number}.png", mask)

    return maker


def test_a_test_folder_wins_over_other_folders_without_masks(start: Start) -> None:
    done = start(_with_folders("external", "test"), folder="both", measures=False)
    comp = load_competition(done.competition)
    assert comp.test is not None and comp.test.images == "test/images/{id}.png"


def test_several_folders_without_masks_are_named(start: Start) -> None:
    done = start(_with_folders("external", "val"), folder="several", measures=False)
    assert load_competition(done.competition).test is None
    assert any("several folders have images without masks" in remark for remark in remarks_of(done))


@pytest.mark.parametrize("folder", ["unlabeled", "unlabelled"])
def test_unlabelled_images_are_no_test_images(folder: str, start: Start) -> None:
    done = start(_with_folders(folder), folder="some", measures=False)
    comp = load_competition(done.competition)
    assert comp.test is None and done.layout.cases == 8
    assert any(f"pseudo.images: '{folder}/images/{{id}}.png'" in remark for remark in remarks_of(done))
    assert not any("change train.images" in remark for remark in remarks_of(done))


def test_an_external_set_with_masks_is_no_test_set(start: Start) -> None:
    asked: list[str] = []

    def ask(lines: Sequence[str]) -> int:
        asked.extend(lines)
        return next(number for number, line in enumerate(lines, 1) if "8 cases" in line)

    done = start(_with_folders("external", masks=True), ask, folder="masked", measures=False)
    assert len(asked) > 1 and load_competition(done.competition).test is None


def test_the_sample_submission_wins_over_the_name_of_a_folder(start: Start) -> None:
    def maker(root: Path) -> None:
        _with_folders("external")(root)
        for number in range(3):
            write_png(root / "round2" / f"b{number}.png", picture(90 + number)[0])
        write_text(root / "sample_submission.csv", "id,rle\n" + "".join(f"b{number},\n" for number in range(3)))

    done = start(maker, folder="sampled", measures=False, layout=1)
    comp = load_competition(done.competition)
    assert comp.test is not None and comp.test.images == "round2/{id}.png"
    assert not any("no folder is named test" in remark for remark in remarks_of(done))


def test_a_folder_for_the_test_is_no_channel_of_the_images(start: Start) -> None:
    """The folder `holdout` beside `tiles` is not pooled with it to `*/{id}.png`."""

    def maker(root: Path) -> None:
        for number in range(12):
            image, mask = picture(number)
            write_png(root / "tiles" / f"M-33-{number // 3}-A_{number % 3}_{number % 2}.png", image)
            write_png(root / "tiles" / f"M-33-{number // 3}-A_{number % 3}_{number % 2}_m.png", mask * 50)
        for number in range(3):
            write_png(root / "holdout" / f"M-34-9-A_{number}_1.png", picture(40 + number)[0])
        write_text(root / "legend.csv", "value,name\n0,other\n50,building\n100,wood\n")

    done = start(maker, folder="land", measures=False)
    comp, experiment = load_competition(done.competition), load_experiment(done.experiment)
    assert comp.train.images == "tiles/{id}.png" and comp.test is not None and comp.test.images == "holdout/{id}.png"
    assert (comp.classes, comp.label_values) == (["building", "wood"], [50, 100])
    ids = case_table(comp)["id"].tolist()
    assert group_values(comp, ids, "group") == [case_id.partition("_")[0] for case_id in ids]
    assert experiment.folds.scheme == "group"


def test_a_letter_with_a_number_is_a_case_and_no_role(start: Start) -> None:
    def maker(root: Path) -> None:
        for site, letter in (("ClinicA", "A"), ("ClinicB", "B"), ("External", "X")):
            for number in range(4):
                image, mask = volume(number + ord(letter))
                write_nifti(root / site / f"{letter}{number:03d}" / "t2.nii.gz", image)
                if letter != "X":
                    write_nifti(root / site / f"{letter}{number:03d}" / "roi.nii.gz", mask)

    done = start(maker, folder="clinics", measures=False)
    assert done.layout.images == "*/{id}/t2.nii.gz" and done.layout.cases == 8
    assert [case.id for case in done.exploration.cases_of("test")] == ["X000", "X001", "X002", "X003"]


def test_the_commands_of_the_docs_write_into_folders_that_the_repository_does_not_have() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    commands = [
        match for page in pages for match in re.findall(r"maskfold (?:init|cv) data/(\w+)(.*)", page.read_text("utf-8"))
    ]
    assert len(commands) > 5
    for folder, rest in commands:
        name = re.search(r"--name (\w+)", rest)
        assert not (ROOT / "experiments" / (name[1] if name else folder) / "competition.yaml").exists(), (folder, rest)
