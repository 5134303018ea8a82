"""Every fault is reported with its case and the error of `cv`; all other data are measured."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.config.competition import Competition
from competition.context import Context
from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.data.readers import load_image
from competition.errors import MaskfoldError
from competition.explore import Exploration, explore, find_other_metric
from competition.explore.summary import overview_rows, truth_rows
from competition.explore.types import Findings
from tests.explore.planted import SIZE, SOUND, picture, plant, sound, write
from tests.host import competition, pictures, write_nifti, write_png, write_text

GROUP = "^([a-z]+)_"
TEST = {"images": "test/{id}.png"}


def faults(found: Exploration) -> dict[str, str]:
    """Return the faults by case."""
    assert len({fault.case for fault in found.faults}) == len(found.faults), [fault.message for fault in found.faults]
    return {fault.case: fault.message for fault in found.faults}


def remarks(found: Exploration, kind: str) -> list[str]:
    return [one.message for one in found.remarks if one.kind == kind]


def test_all_planted_faults_are_reported_at_once(tmp_path: Path) -> None:
    found = explore(competition(plant(tmp_path), group=GROUP, test=TEST))
    wrong = faults(found)
    assert set(wrong) == {"noimage_1", "nomask_1", "cut_1", "seven_1", "size_1", "q_0, torn_1"}
    assert "images/cut_1.png" in wrong["cut_1"]
    assert re.search(r"masks/seven_1\.png.*\b7\b", wrong["seven_1"])
    assert re.search(r"48×64.*masks/size_1\.png.*40×64", wrong["size_1"])
    assert "q_0 (images/q_0.png), torn_1 (images/torn_1.png)" in wrong["q_0, torn_1"]
    assert len(remarks(found, "duplicate")) == 2
    assert [text for text in remarks(found, "duplicate") if "copy_1 (images/copy_1.png), p_0 (images/p_0.png)" in text]
    assert [text for text in remarks(found, "duplicate") if "test case t_9" in text and "training case s_1" in text]
    (near,) = remarks(found, "near-duplicate")
    assert "near_1" in near and "r_1" in near
    assert [text for text in remarks(found, "empty") if "empty_1" in text] == remarks(found, "empty")
    (group,) = remarks(found, "group")
    assert "group s is in train (s_0, s_1, s_2) and in test (s_7)" in group
    assert found.undeclared_labels() == {7: (1, 15)}
    assert all(one.hint.endswith(".") for one in found.findings)


def test_objects_that_overlap_are_copies_or_have_no_pixel(tmp_path: Path) -> None:
    one, two = np.zeros((2, *SIZE), np.uint8)
    one[2:10, 2:10], two[6:14, 6:14] = 1, 1
    given = {"apart": [one], "over": [one, two], "copy": [one, one, two], "void": [one, one * 0]}
    for seed, (case_id, masks) in enumerate(given.items()):
        write_png(tmp_path / "images" / f"{case_id}.png", picture(seed)[0])
        for number, mask in enumerate(masks):
            write_png(tmp_path / "masks" / case_id / f"{number}.png", mask)
    train = {"images": "images/{id}.png", "masks": "masks/{id}/*.png"}
    found = explore(competition(tmp_path, instances=True, train=train))
    assert not found.faults
    shared, copies, empty = remarks(found, "objects")
    assert shared == "2 cases have 2 objects that share pixels with another object (copy, over)."
    assert copies == "1 case has 1 object that is identical to another object (copy)."
    assert empty == "1 case has 1 object without a pixel (void)."
    sizes = {case.id: case.truth.object_sizes.tolist() for case in found.cases if case.truth is not None}
    assert sizes == {"apart": [64], "over": [64, 64], "copy": [64, 64, 64], "void": [64]}


def test_a_metric_that_is_not_the_hosts(tmp_path: Path) -> None:
    write_png(tmp_path / "images" / "a.png", picture(0)[0])
    write_png(tmp_path / "masks" / "a.png", picture(0)[1])

    def remarked(profile: str, **metric: Any) -> list[str]:
        comp = competition(tmp_path, classes=["x"], submission={"profile": profile}, metric=metric)
        findings = Findings()
        find_other_metric(comp, findings)
        assert all("leaderboard" in one.hint for one in findings.all)
        return [one.message for one in findings.all]

    assert remarked("contrails", average="global") == remarked("vesuvius-ink", name="fbeta", beta=0.5) == []
    assert remarked("hubmap-organ", average="class") == remarked("recodai", name="iou") == []
    assert remarked("contrails") == [
        "metric.average is case_class, but the host of contrails scores with another metric."
    ]
    assert remarked("sennet-hoa", name="iou") == [
        "metric.name is iou, but the host of sennet-hoa scores with another metric."
    ]
    assert remarked("uw-madison-gi-tract", name="uw_madison") == [
        "metric.both_empty is 1.0, but the host of uw-madison-gi-tract scores with another metric."
    ]
    found = explore(competition(tmp_path, submission={"profile": "contrails"}))
    assert len(remarks(found, "metric")) == 1


def test_rows_without_a_mask_beside_others(tmp_path: Path) -> None:
    for seed, case_id in enumerate("ab"):
        write_png(tmp_path / "images" / f"{case_id}.png", picture(seed)[0])
    write_text(tmp_path / "train.csv", "id,rle\na,5 3\na,\nb,\n")
    found = explore(competition(tmp_path, instances=True, train={"images": "images/{id}.png", "rle": "train.csv"}))
    (remark,) = remarks(found, "objects")
    assert remark == (
        "In train.csv, 1 row has no mask, although other rows of the same image have a mask. An example is line 3, "
        "id a."
    )


def test_skip_turns_skipped_cases_into_remarks(tmp_path: Path) -> None:
    comp = competition(plant(tmp_path), group=GROUP, test=TEST, on_bad_case="skip")
    found = explore(comp)
    left = dict(case_table(comp).attrs["skipped"])
    assert {one.case: one.message for one in found.remarks if one.kind == "left out"} == left and len(left) == 5
    assert all(
        one.hint == "`maskfold cv` skips this case (on_bad_case: skip)."
        for one in found.remarks
        if one.kind == "left out"
    )
    assert set(faults(found)) == {"q_0, torn_1"}, "a fault that skip does not affect"
    skipped = {case.id for case in found.cases_of("train") if case.skipped}
    assert skipped == set(left) - {"noimage_1"}
    used = [case for case in found.cases_of("train") if not case.skipped]
    assert dict(row[:2] for row in truth_rows(found))["empty masks"] == f"1 of {len(used)}", "empty_1"
    assert dict(row[:2] for row in overview_rows(found))["skipped by cv"] == str(len(skipped))


def test_a_class_only_in_skipped_cases_is_absent(tmp_path: Path) -> None:
    root = sound(tmp_path)
    mask = picture(0)[1]
    mask[0, :4] = 2
    write_png(root / "masks" / "p_0.png", mask)
    path = root / "images" / "p_0.png"
    comp = competition(root, classes=["cell", "rare"], group=GROUP, on_bad_case="skip")
    assert explore(comp).faults == []
    path.write_bytes(path.read_bytes()[:400])
    assert "None of the 11 training cases with readable truth has the class rare." in faults(explore(comp))[""]


def test_skipping_all_cases_is_a_fault(tmp_path: Path) -> None:
    root = sound(tmp_path)
    for path in (root / "masks").iterdir():
        path.write_bytes(b"no picture")
    comp = competition(root, group=GROUP, on_bad_case="skip")
    with pytest.raises(MaskfoldError, match="12 cases are skipped.*p_0"):
        case_table(comp)
    (fault,) = explore(comp).faults
    assert fault.case == "" and "All training cases" in fault.message and "on_bad_case: skip" in fault.message


def test_ids_that_differ_only_in_case_are_reported_and_measured(tmp_path: Path) -> None:
    ids = ("A_1", "a_1", "b_1", "c_1", "C_1", "d_1")
    root = sound(tmp_path, ids=ids)
    for kind in ("images", "masks"):
        shutil.copy(root / kind / "a_1.png", root / kind / "z_1.png")
    write(root, "lost_1", picture(40)[0], None)
    comp = competition(root)
    found = explore(comp)
    wrong = faults(found)
    assert set(wrong) == {"A_1, a_1", "C_1, c_1", "lost_1"} and "A_1 and a_1" in wrong["A_1, a_1"]
    cases = {case.id: case for case in found.cases}
    assert set(cases) == {*ids, "z_1", "lost_1"}
    for case_id in ids:
        truth = cases[case_id].truth
        assert truth is not None and truth.voxels.tolist() == [int(picture(ids.index(case_id))[1].sum())]
    assert ["a_1 (images/a_1.png), z_1 (images/z_1.png)" in text for text in remarks(found, "duplicate")] == [True]
    skipping = explore(competition(root, on_bad_case="skip"))
    assert set(faults(skipping)) == {"A_1, a_1", "C_1, c_1"}, "cv stops at these even with skip"


def test_long_ids_are_shortened(tmp_path: Path) -> None:
    ids = [f"{number:02d}" * 32 for number in range(4)]
    root = sound(tmp_path, ids=tuple(ids))
    image, mask = picture(0)
    write(root, ids[1], np.clip(image.astype(float) * 1.06 + 6, 0, 255).astype(np.uint8), mask)
    shutil.copy(root / "images" / f"{ids[2]}.png", root / "images" / f"{ids[3]}.png")
    shutil.copy(root / "masks" / f"{ids[2]}.png", root / "masks" / f"{ids[3]}.png")
    found = explore(competition(root))
    (near,), (same,) = remarks(found, "near-duplicate"), remarks(found, "duplicate")
    assert "The train cases 000000000000…000000000000, 010101010101…010101010101 " in near
    assert "The cases 020202020202…020202020202, 030303030303…030303030303 " in same
    (case,) = [one.case for one in found.remarks if one.kind == "near-duplicate"]
    assert case == ", ".join(ids[:2]), "findings.csv has them whole"


def test_cases_without_faults_are_measured(tmp_path: Path) -> None:
    found = explore(competition(plant(tmp_path), group=GROUP, test=TEST))
    cases = {(case.split, case.id): case for case in found.cases}
    assert {case_id for split, case_id in cases if split == "train"} >= {
        *SOUND,
        "nomask_1",
        "size_1",
        "seven_1",
        "cut_1",
    }
    for case_id in SOUND:
        case = cases["train", case_id]
        assert case.truth is not None and case.stats is not None
        assert case.truth.voxels.tolist() == [int((picture(SOUND.index(case_id))[1] == 1).sum())]
    for case_id in ("nomask_1", "size_1", "seven_1"):  # the image is sound, the truth is not
        assert cases["train", case_id].stats is not None and cases["train", case_id].truth is None
    assert cases["train", "cut_1"].stats is None and cases["train", "cut_1"].shape == SIZE
    assert len(found.cases_of("test")) == 5


def test_sound_data_have_no_faults(tmp_path: Path) -> None:
    found = explore(competition(sound(tmp_path), test=TEST))
    assert found.faults == [] and {one.kind for one in found.remarks} == {"group"}  # the ids look grouped
    assert "12 cases into 4 groups" in remarks(found, "group")[0]
    assert explore(competition(tmp_path, test=TEST, group=GROUP)).findings == []


def unreadable(root: Path) -> None:
    (root / "images" / "p_0.png").write_bytes(b"no picture")


def cut_mask(root: Path) -> None:
    path = root / "masks" / "p_0.png"
    path.write_bytes(path.read_bytes()[:60])


def other_size(root: Path) -> None:
    write_png(root / "masks" / "p_0.png", np.ones((48, 63), np.uint8))


def other_label(root: Path) -> None:
    write_png(root / "masks" / "p_0.png", np.full(SIZE, 7, np.uint8))


def no_mask(root: Path) -> None:
    (root / "masks" / "p_0.png").unlink()


def no_image(root: Path) -> None:
    (root / "images" / "p_0.png").unlink()


def colours(root: Path) -> None:
    mask = np.zeros((*SIZE, 3), np.uint8)
    mask[:5, :5, 0] = 1
    write_png(root / "masks" / "p_0.png", mask)


@pytest.mark.parametrize("harm", [unreadable, cut_mask, other_size, other_label, no_mask, no_image, colours])
def test_explore_reports_the_error_of_cv(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    comp = competition(sound(tmp_path), group=GROUP)
    harm(tmp_path)
    with pytest.raises(MaskfoldError) as stopped:
        for row in case_table(comp).itertuples(index=False):
            load_image(comp, row)
            load_mask(comp, row)
    (fault,) = explore(comp).faults
    assert (fault.message, fault.hint, fault.case) == (stopped.value.message, stopped.value.hint, "p_0")


def test_two_files_for_one_id_do_not_stop_the_exploration(tmp_path: Path) -> None:
    sound(tmp_path)
    shutil.copy(tmp_path / "images" / "p_0.png", tmp_path / "images" / "p_0.bmp")
    write_png(tmp_path / "masks_2" / "q_1.png", picture(4)[1])
    write(tmp_path, "S_0", *picture(60))
    found = explore(competition(tmp_path, train={"images": "images/{id}.*", "masks": "mask*/{id}.png"}, group="^(.+)_"))
    wrong = faults(found)
    assert set(wrong) == {"p_0", "q_1", "S_0, s_0"}
    assert "images/p_0.bmp and images/p_0.png" in wrong["p_0"]
    assert "masks/q_1.png and masks_2/q_1.png" in wrong["q_1"] and "S_0 and s_0" in wrong["S_0, s_0"]
    assert {case.id for case in found.cases} == {*SOUND, "S_0"} - {"p_0", "q_1"}
    assert all(case.truth is not None for case in found.cases)


def test_two_files_for_one_slice(tmp_path: Path) -> None:
    for case_id in "ab":
        for z in range(3):
            write_png(tmp_path / case_id / f"{z}.png", picture(z)[0])
            write_png(tmp_path / "masks" / case_id / f"{z}.png", picture(z)[1])
    shutil.copy(tmp_path / "a" / "1.png", tmp_path / "a" / "01.png")
    found = explore(
        competition(tmp_path, dimensions=3, train={"images": "{id}/{z}.png", "masks": "masks/{id}/{z}.png"})
    )
    assert set(faults(found)) == {"a"} and [case.id for case in found.cases] == ["b"]
    assert found.cases[0].shape == (*SIZE, 3) and found.cases[0].truth is not None


def test_each_bad_channel_and_class_file_is_reported(tmp_path: Path) -> None:
    image, mask = picture(1)
    for name in ("t1", "t2", "t3"):
        write_png(tmp_path / f"a_{name}.png", image)
        write_png(tmp_path / f"b_{name}.png", picture(2)[0])
    for name in ("x", "y"):
        write_png(tmp_path / name / "a.png", mask)
        write_png(tmp_path / name / "b.png", np.where(mask, 3 if name == "x" else 4, 0).astype(np.uint8) + (mask > 9))
    for name in ("t2", "t3"):
        (tmp_path / f"a_{name}.png").write_bytes(b"?")
    for name, high in (("x", 3), ("y", 4)):
        mixed = mask.copy()
        mixed[0, 0] = high
        write_png(tmp_path / name / "b.png", mixed)
    comp = competition(
        tmp_path,
        classes=["x", "y"],
        labels="overlapping",
        train={
            "images": {name: f"{{id}}_{name}.png" for name in ("t1", "t2", "t3")},
            "masks": {"x": "x/{id}.png", "y": "y/{id}.png"},
        },
    )
    said = [(one.case, one.kind) for one in explore(comp).faults if one.kind != "class"]
    assert sorted(said) == [("a", "image"), ("a", "image"), ("b", "mask"), ("b", "mask")]


def rle(root: Path, rows: list[str], **changes: Any) -> Competition:
    for number, case_id in enumerate("abc"):
        write_png(root / "images" / f"{case_id}.png", picture(number)[0])
    write_text(root / "train.csv", "\n".join(["id,class,rle", *rows]) + "\n")
    return competition(
        root,
        classes=["cell", "dot"],
        train={
            "images": "images/{id}.png",
            "rle": "train.csv",
            "columns": {"id": "id", "class": "class", "mask": "rle"},
        },
        **changes,
    )


def test_every_bad_row_is_reported(tmp_path: Path) -> None:
    comp = rle(
        tmp_path,
        [
            "a,cell,1 5",
            "a,cell,9 x",
            "",
            "a,dot,100 2",
            "b,cell,999999 4",
            "b,blob,1 3",
            "c,blob,7 2",
            "c,dot,50 3",
            "zz,dot,1 1",
            "b,cell,3 0",
            "c,smear,1 1",
        ],
    )
    found = explore(comp)
    rows = [one for one in found.faults if one.kind != "class"]
    said = sorted((int(re.search(r", line (\d+)", one.message)[1]), one.case) for one in rows)  # type: ignore[index]
    assert said == [(3, "a"), (6, "b"), (7, "b"), (8, "c"), (10, "zz"), (11, "b"), (12, "c")]
    assert all(str(tmp_path / "train.csv") in one.message for one in rows)
    (c,) = [case for case in found.cases if case.id == "c"]
    assert c.truth is not None and c.truth.voxels.tolist() == [0, 3]  # line 9, although lines before it are bad
    assert all(case.stats is not None for case in found.cases)


def test_all_rows_of_an_unknown_class_are_reported(tmp_path: Path) -> None:
    found = explore(
        rle(tmp_path, [f"{case_id},blob,{1 + at} 1" for case_id in "abc" for at in range(70)] + ["a,dot,5 2"])
    )
    assert len([one for one in found.faults if one.kind == "table"]) == 210
    assert [case.truth.voxels.tolist() for case in found.cases if case.truth] == [[0, 2], [0, 0], [0, 0]]


def test_rows_of_a_duplicate_id_are_not_reported(tmp_path: Path) -> None:
    comp = rle(tmp_path, ["a,cell,1 5", "b,dot,1 5", "c,cell,4 1"])
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "a.bmp")
    train = comp.train.model_copy(update={"images": "images/{id}.*"})
    found = explore(comp.model_copy(update={"train": train}))
    assert set(faults(found)) == {"a"} and [case.id for case in found.cases if case.truth] == ["b", "c"]


def test_an_invalid_table_does_not_affect_the_images(tmp_path: Path) -> None:
    comp = rle(tmp_path, ["a,cell,1 5"])
    write_text(tmp_path / "train.csv", "name,class,rle\na,cell,1 5\n")
    found = explore(comp)
    (fault,) = found.faults
    assert "has no column `id`" in fault.message and [case.stats is not None for case in found.cases] == [True] * 3


def test_missing_masks_or_test_images_do_not_affect_other_files(tmp_path: Path) -> None:
    comp = competition(
        sound(tmp_path),
        train={"images": "images/{id}.png", "masks": "mask/{id}.png"},
        group=GROUP,
        test={"images": "tests/{id}.png"},
    )
    found = explore(comp)
    assert [one.message.partition(":")[0] for one in found.faults] == ["train.masks"]
    assert [text.partition(":")[0] for text in remarks(found, "files")] == ["test.images"], "`cv` works without them"
    assert len(found.cases) == len(SOUND) and found.snippet


def test_nothing_to_explore_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MaskfoldError, match="does not exist") as stopped:
        explore(competition(tmp_path / "nowhere"))
    assert stopped.value.status == 2


def test_faults_of_volumes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((8, 9, 10), np.uint8)
    mask[2:5, 2:5, 2:5] = 1
    for case_id in ("good", "nan", "moved", "lost"):
        write_nifti(tmp_path / "im" / f"{case_id}.nii.gz", rng.normal(size=mask.shape).astype(np.float32))
        write_nifti(tmp_path / "la" / f"{case_id}.nii.gz", mask)
    holes = rng.normal(size=mask.shape).astype(np.float32)
    holes[0, 0, :3] = np.nan
    write_nifti(tmp_path / "im" / "nan.nii.gz", holes)
    shifted = np.eye(4)
    shifted[0, 3] = 2.5
    write_nifti(tmp_path / "la" / "moved.nii.gz", mask, shifted)
    path = tmp_path / "im" / "lost.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    found = explore(competition(tmp_path, dimensions=3, train={"images": "im/{id}.nii.gz", "masks": "la/{id}.nii.gz"}))
    wrong = faults(found)
    assert set(wrong) == {"nan", "moved", "lost"}
    assert "nan.nii.gz" in wrong["nan"] and "3 NaN or infinite" in wrong["nan"]
    assert "2.5 voxels" in wrong["moved"] and "lost.nii.gz" in wrong["lost"]
    truth = {case.id: case.truth for case in found.cases}
    assert truth["moved"] is None
    assert all(one is not None and one.voxels.tolist() == [27] for name, one in truth.items() if name != "moved")


def test_labels_of_a_mask_without_matching_image(tmp_path: Path) -> None:
    comp = competition(sound(tmp_path), group=GROUP)
    write_png(tmp_path / "masks" / "p_0.png", np.full((10, 10), 5, np.uint8))
    found = explore(comp)
    assert sorted(one.case for one in found.faults) == ["p_0", "p_0"] and found.undeclared_labels() == {5: (1, 100)}


def test_an_absent_class_is_a_fault_and_a_rare_class_a_remark(tmp_path: Path) -> None:
    root = sound(tmp_path)
    for case_id in ("p_0", "r_2"):
        mask = picture(SOUND.index(case_id))[1]
        mask[0, :4] = 3
        write_png(root / "masks" / f"{case_id}.png", mask)
    found = explore(competition(root, classes=["cell", "never", "rare"], group=GROUP))
    (fault,) = found.faults
    assert (
        fault.kind == "class"
        and "None of the 12 training cases with readable truth has the class never." in fault.message
    )
    assert ["p_0, r_2" in text for text in remarks(found, "class")] == [True]
    assert "stratified_group" in found.snippet


def test_channels_and_types_that_differ(tmp_path: Path) -> None:
    root = sound(tmp_path)
    write_png(root / "images" / "p_0.png", np.stack([picture(0)[0]] * 3, axis=-1))
    write_png(root / "images" / "q_0.png", picture(3)[0].astype(np.uint16) * 257)
    write_png(root / "images" / "q_1.png", np.full(SIZE, 9, np.uint8))
    found = explore(competition(root, group=GROUP))
    said = remarks(found, "mixed")
    assert any("channels: 11 cases have 1, 1 case has 3. The first case with 3 is p_0" in text for text in said)
    assert any(
        "dtype: 11 cases have uint8, 1 case has uint16. The first case with uint16 is q_0" in text for text in said
    )
    assert ["q_1" in text and "value 9" in text for text in remarks(found, "image")] == [True]
    assert "channels: rgb" in found.snippet


def test_groups_of_a_table(tmp_path: Path) -> None:
    """Test cases need no row; a training case does, and the others keep their groups."""
    root = sound(tmp_path)
    lines = [f"{case_id},{case_id[0]}" for case_id in SOUND if case_id not in ("p_1", "s_2")] + ["t_1,s"]
    write_text(root / "groups.csv", "\n".join(["id,patient", *lines]) + "\n")
    found = explore(competition(root, group="groups.csv:patient", test=TEST))
    assert set(faults(found)) == {"p_1", "s_2"}
    assert {case.id: case.group for case in found.cases_of("test")} == {"t_0": None, "t_1": "s", "t_2": None}
    assert "group s is in train (s_0, s_1) and in test (t_1)" in remarks(found, "group")[0]
    assert [case.group for case in found.cases_of("train") if case.id in ("p_0", "p_1")] == ["p", None]
    write_text(root / "groups.csv", "\n".join(["id,patient", *(f"{name},{name[0]}" for name in SOUND), "p_1,q"]) + "\n")
    (twice,) = explore(competition(root, group="groups.csv:patient")).faults  # one fault, not one for each case
    assert twice.case == "" and twice.message.endswith(
        "two values of group for the id p_1: p in line 3, and q in line 14."
    )
    found = explore(competition(root, group="nowhere.csv:patient", test=TEST))
    assert len(found.faults) == 1 and "nowhere.csv does not exist" in found.faults[0].message


def test_a_pattern_that_fits_two_files_of_every_case(tmp_path: Path) -> None:
    """The sentence of `cv`, once for each pair of files; no temporary folder, no traceback on an empty table."""
    for number in range(4):
        for channel in ("0000", "0001"):
            write_nifti(tmp_path / f"im/L{number}_{channel}.nii.gz", np.ones((4, 5, 6), np.uint8))
        write_nifti(tmp_path / f"la/L{number}.nii.gz", np.ones((4, 5, 6), np.uint8))
    train = {"images": "im/{id}_*.nii.gz", "masks": "la/{id}.nii.gz"}
    comp = competition(tmp_path, dimensions=3, group=None, train=train)
    with pytest.raises(MaskfoldError) as stopped:
        case_table(comp)
    found = explore(comp)
    messages = [fault.message for fault in found.faults if "matches two files" in fault.message]
    assert messages == [
        f"train.images: the pattern `im/{{id}}_*.nii.gz` matches two files for the id L{number}: "
        f"im/L{number}_0000.nii.gz and im/L{number}_0001.nii.gz."
        for number in range(4)
    ]
    assert stopped.value.message == messages[0] and not any("/tmp" in fault.message for fault in found.faults)
    assert found.cases == [] and found.snippet == ""


def mixed_channels(root: Path, **changes: Any) -> Competition:
    """Six volumes with four channels, the fifth with three."""
    for number in range(6):
        channels = 3 if number == 4 else 4
        image = np.random.default_rng(number).normal(100, 10, (12, 12, 8, channels)).astype(np.float32)
        label = np.zeros((12, 12, 8), np.uint8)
        label[2:5, 2:6, 2:4] = 1
        write_nifti(root / f"im/v{number}.nii.gz", image)
        write_nifti(root / f"la/v{number}.nii.gz", label)
    train = {"images": "im/{id}.nii.gz", "masks": "la/{id}.nii.gz"}
    return competition(root, dimensions=3, group=None, train=train, **changes)


def test_volumes_with_other_channels_are_faults_as_cv_stops_at_them(tmp_path: Path) -> None:
    found = explore(mixed_channels(tmp_path))
    [fault] = found.faults
    assert fault.case == "v4" and fault.message == "Case v4 has 3 channels, expected 4 as in case v0."
    assert "on_bad_case=skip" in fault.hint and "prepare.channels=[0,1,2]" in fault.hint
    skipping = explore(mixed_channels(tmp_path, on_bad_case="skip"))
    assert not skipping.faults
    assert [case.id for case in skipping.cases if case.skipped] == ["v4"]
    assert not any("4 in 5" in remark.message for remark in skipping.remarks)


def test_cv_leaves_out_what_explore_leaves_out(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prepare_run` stops with the words of explore, or leaves the case out; the hint's key works."""
    from competition.training.cross_validate import open_run, prepare_run

    monkeypatch.chdir(tmp_path)
    say: list[str] = []

    def run_of(*settings: str, **changes: Any) -> Any:
        exp = tiny(3, "prepare={intensity: zscore}", "patch.size=[16,16,16]", *settings)
        return open_run(exp.model_copy(update={"competition": mixed_channels(tmp_path / "data", **changes)}), "mixed")

    with pytest.raises(MaskfoldError, match="Case v4 has 3 channels, expected 4 as in case v0"):
        prepare_run(run_of(), Context(say=say.append))
    left = prepare_run(run_of(on_bad_case="skip"), Context(say=say.append))
    assert sorted(left.cases["id"]) == ["v0", "v1", "v2", "v3", "v5"]
    assert dict(left.skipped) == {"v4": "Case v4 has 3 channels, expected 4 as in case v0."}
    assert len(prepare_run(run_of("prepare.channels=[0,1,2]"), Context(say=say.append)).cases) == 6


def test_a_class_in_all_cases_is_not_rare(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b", "c", "d"])
    found = explore(competition(tmp_path))
    assert not remarks(found, "class")
