"""Each known layout: the files that `maskfold init` writes are read by the loader, with the right cases and classes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.config.loading import load_competition, load_experiment
from competition.data.cases import case_rows, case_table
from competition.data.masks import load_mask, load_objects
from competition.errors import MaskfoldError
from tests.host import write_png
from tests.planning.conftest import Start
from tests.planning.phantoms import IDS, MAKERS, TEST_IDS, picture, volume


@dataclass(frozen=True)
class Expected:
    """What the YAML of a phantom must say."""

    classes: list[str]
    values: list[Any] | None = None
    labels: str = "exclusive"
    ids: tuple[str, ...] = IDS
    tests: int = 0
    dimensions: int = 2
    instances: bool = False
    channels: list[str] = field(default_factory=list)
    groups: int = 8
    metric: str = "dice"
    scheme: str = "kfold"


HEX = tuple(f"{number + 10:064x}" for number in range(8))
WEEKS = tuple(f"patient_{number // 2:02d}_week{1 + number % 2}" for number in range(8))
EXPECTED = {
    "decathlon": Expected(["Anterior", "Posterior"], tests=2, dimensions=3),
    "nnunet_v1": Expected(["PZ", "TZ"], dimensions=3, channels=["T2", "ADC"]),
    "nnunet_v2": Expected(["whole", "core"], [[1, 2], 2], "overlapping", tests=2),
    "rle_profile": Expected(["foreground"], ids=HEX, tests=2, instances=True, metric="mean_ap"),
    "rle_content": Expected(["ring", "grain"], tests=2),
    "instances": Expected(["foreground"], tests=2, instances=True, metric="mean_ap"),
    "paired_folders": Expected(["foreground"], [255], ids=WEEKS, groups=4, scheme="group"),
    "paired_names": Expected(["foreground"], tests=2),
    "paired_endings": Expected(["class_1", "class_2"]),
    "class_folders": Expected(["lesion", "organ"], labels="overlapping", scheme="stratified"),
    "case_folders": Expected(
        ["class_1", "class_2", "class_4"],
        [1, 2, 4],
        dimensions=3,
        channels=["flair", "t1", "t1ce", "t2"],
        groups=3,
        scheme="stratified_group",
    ),
    "slice_stacks": Expected(["class_1", "class_2"], dimensions=3),
    "coco": Expected(["cat", "dog"], instances=True, metric="mean_ap", scheme="stratified"),
    "lossy_masks": Expected(["foreground"]),
    "named_classes": Expected(["liver", "spleen"], tests=2, dimensions=3),
}


def test_every_phantom_is_expected() -> None:
    assert set(EXPECTED) == set(MAKERS) and len(MAKERS) >= 14


@pytest.mark.parametrize("name", MAKERS)
def test_the_loader_reads_what_init_writes(name: str, start: Start) -> None:
    expected, done = EXPECTED[name], start(MAKERS[name])
    assert done.exploration.faults == []
    comp = load_competition(Path("experiments") / name / "competition.yaml")
    assert comp.classes == expected.classes and comp.label_values == expected.values
    assert (comp.labels, comp.dimensions, comp.instances) == (expected.labels, expected.dimensions, expected.instances)
    assert comp.metric.name == expected.metric
    assert (list(comp.train.images) if isinstance(comp.train.images, dict) else []) == expected.channels
    table = case_table(comp)
    assert tuple(table["id"]) == tuple(sorted(expected.ids)) and table["group"].nunique() == expected.groups
    tests = case_table(comp, "test") if comp.test is not None else []
    assert len(tests) == expected.tests
    if expected.tests and expected.ids is IDS:
        assert tuple(tests["id"]) == TEST_IDS
    exp = load_experiment(Path("experiments") / name / "experiment.yaml")
    assert exp.folds.scheme == expected.scheme and exp.folds.k <= max(2, expected.groups)
    assert (
        exp.patch.size == [side for side in exp.patch.size if side % 2 == 0] and len(exp.patch.size) == comp.dimensions
    )


@pytest.mark.parametrize("name", MAKERS)
def test_every_line_has_a_reason(name: str, start: Start) -> None:
    done = start(MAKERS[name])
    for file in (done.competition, done.experiment):
        assert file is not None
        above = ""
        for line in file.read_text().splitlines():
            is_section, is_comment = line.rstrip().endswith(":"), line.lstrip().startswith("#")
            is_next_name = line.startswith("    ")  # the second channel or class: the reason is at the first
            assert is_section or is_comment or is_next_name or "  # " in line or above.lstrip().startswith("#"), line
            assert len(line) <= 120 or is_comment or '"' in line
            above = line


# The truth that the loader reads is the phantom's


def masks_of(name: str) -> tuple[Any, list[Any]]:
    comp = load_competition(Path("experiments") / name / "competition.yaml")
    return comp, case_rows(case_table(comp))


@pytest.mark.parametrize("name", ["paired_names", "paired_folders", "lossy_masks"])
def test_masks_of_one_class(name: str, start: Start) -> None:
    start(MAKERS[name])
    comp, rows = masks_of(name)
    size = (64, 64) if name == "lossy_masks" else (40, 48)
    for number, row in enumerate(rows):
        assert np.array_equal(load_mask(comp, row)[0], picture(number, size)[1] > 0)


@pytest.mark.parametrize("name", ["decathlon", "nnunet_v1", "named_classes"])
def test_masks_of_volumes(name: str, start: Start) -> None:
    start(MAKERS[name])
    comp, rows = masks_of(name)
    for number, row in enumerate(rows):
        assert np.array_equal(load_mask(comp, row)[0], volume(number)[1])


def test_slices_are_in_order(start: Start) -> None:
    start(MAKERS["slice_stacks"])
    comp, rows = masks_of("slice_stacks")
    for number, row in enumerate(rows):
        assert np.array_equal(load_mask(comp, row)[0], volume(number)[1][:, :, : 10 + number % 3])


def test_regions_and_the_ignored_value(start: Start) -> None:
    start(MAKERS["nnunet_v2"])
    comp, rows = masks_of("nnunet_v2")
    truth = picture(0)[1]
    truth[:2] = 3
    mask = load_mask(comp, rows[0])
    assert np.array_equal(mask[0], np.where(truth == 3, 255, truth > 0))
    assert np.array_equal(mask[1], np.where(truth == 3, 255, truth == 2))


def test_run_lengths_by_content_have_the_right_order_and_base(start: Start) -> None:
    start(MAKERS["rle_content"])
    comp, rows = masks_of("rle_content")
    assert (comp.submission.rle.order, comp.submission.rle.base) == ("row", 0)
    assert (comp.submission.columns.id, comp.submission.columns.cls) == ("picture", "kind")
    for number, row in enumerate(rows):
        mask = picture(number, (40, 56))[1]
        mask[10 + number % 3 : 30, :3] = 2
        assert np.array_equal(load_mask(comp, row)[0], mask)


@pytest.mark.parametrize("name", ["rle_profile", "instances"])
def test_objects(name: str, start: Start) -> None:
    start(MAKERS[name])
    comp, rows = masks_of(name)
    for number, row in enumerate(rows):
        objects, truth = load_objects(comp, row), picture(number)[1]
        assert np.array_equal(objects.labels > 0, truth > 0) and len(objects.sizes()) == 2


def test_a_missing_file_of_a_class_is_no_object(start: Start) -> None:
    done = start(MAKERS["class_folders"])
    comp, rows = masks_of("class_folders")
    assert comp.train.missing_masks == "empty" and any(
        "file of a class is missing" in remark for remark in done.layout.remarks
    )
    for number, row in enumerate(rows):
        lesion, organ = load_mask(comp, row)
        truth = picture(number)[1]
        assert np.array_equal(organ, truth > 0) and np.array_equal(lesion, (truth == 2) & (number % 3 > 0))


def test_groups_and_strata_from_a_table(start: Start) -> None:
    start(MAKERS["case_folders"])
    comp, _ = masks_of("case_folders")
    assert (comp.group, comp.stratum) == ("survival.csv:patient_id", "survival.csv:grade")


# COCO


def test_coco_is_converted_beside_the_data(start: Start) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools import mask as reference

    start(MAKERS["coco"])
    comp, rows = masks_of("coco")
    root = Path("data/coco")
    before = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert before == {"annotations/instances.json", *(f"images/{case_id}.png" for case_id in IDS)}
    assert sorted(path.name for path in Path("data/coco-maskfold").iterdir()) == ["coco-cases.csv", "coco-masks.csv"]
    content = json.loads((root / "annotations/instances.json").read_text())
    for number, row in enumerate(rows):
        truth, mask = picture(number)[1] * (number > 0), load_mask(comp, row)[0]
        assert np.array_equal(mask == 2, truth == 2)  # run lengths are exact
        difference = np.count_nonzero((mask == 1) != (truth == 1))
        assert difference <= 0.1 * max(1, np.count_nonzero(truth == 1))
        for item in content["annotations"]:
            if item["image_id"] == number + 1 and isinstance(item["segmentation"], list):
                drawn = reference.decode(reference.merge(reference.frPyObjects(item["segmentation"], 40, 48))) > 0
                both = np.count_nonzero(drawn & (mask == 1))
                assert 2 * both / (drawn.sum() + (mask == 1).sum()) > 0.93


def test_two_categories_of_the_same_name_are_refused(start: Start) -> None:
    def maker(root: Path) -> None:
        MAKERS["coco"](root)
        file = root / "annotations" / "instances.json"
        file.write_text(file.read_text().replace("dog", "cat"))

    with pytest.raises(MaskfoldError, match="instances.json: two categories have the same name: cat"):
        start(maker)


def test_masks_of_classes_as_jpeg_get_a_threshold(start: Start) -> None:
    def maker(root: Path) -> None:
        import cv2

        for number in range(6):
            image, mask = picture(number, (64, 64))
            write_png(root / "images" / f"a{number}.png", image)
            for value, name in ((1, "ring"), (2, "grain")):
                (root / "masks" / name).mkdir(parents=True, exist_ok=True)
                path = root / "masks" / name / f"a{number}.jpg"
                cv2.imwrite(str(path), (mask == value).astype(np.uint8) * 255, [cv2.IMWRITE_JPEG_QUALITY, 70])

    done = start(maker)
    comp = load_competition(done.competition)
    assert comp.train.threshold == 128 and comp.labels == "exclusive" and done.exploration.faults == []


def test_coco_lists_the_cases(start: Start) -> None:
    """An image that the file does not list has no annotation, which is not the same as no object."""

    def maker(root: Path) -> None:
        MAKERS["coco"](root)
        (root / "images" / "other.png").write_bytes((root / "images" / f"{IDS[0]}.png").read_bytes())

    start(maker, folder="more")
    comp, rows = masks_of("more")
    assert [row.id for row in rows] == list(IDS)


def test_init_twice_needs_no_second_answer(start: Start) -> None:
    first = start(MAKERS["coco"]).competition.read_text()
    assert start(MAKERS["coco"], force=True).competition.read_text() == first


@pytest.mark.parametrize("name", MAKERS)
def test_cv_accepts_the_first_experiment(name: str, start: Start) -> None:
    """Everything that `cv` checks before the first fold: the network with its patch, the loss, the folds, the data."""
    from competition.training.cross_validate import make_jobs, open_run, prepare_run

    done = start(MAKERS[name])
    assert done.experiment is not None
    run = prepare_run(open_run(load_experiment(done.experiment), name))
    assert len(make_jobs(run)) == run.exp.folds.k and len(run.cases) == 8


@pytest.mark.parametrize("is_link", [False, True])
def test_converted_masks_lie_beside_the_folder_that_was_named(start: Start, tmp_path: Path, is_link: bool) -> None:
    def maker(root: Path) -> None:
        inner = root
        if is_link:
            root.rmdir()
            (tmp_path / "elsewhere").mkdir()
            root.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        else:
            inner = root / "coco_2024"
        MAKERS["coco"](inner)

    start(maker, folder="wrapped")
    assert sorted(path.name for path in Path("data").iterdir()) == ["wrapped", "wrapped-maskfold"]
    comp, rows = masks_of("wrapped")
    assert len(rows) == 8 and load_mask(comp, rows[3]).any()
    assert {path.name for path in Path("data/wrapped").iterdir()} <= {"coco_2024", "images", "annotations"}
