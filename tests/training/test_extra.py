"""Cases of another competition teach, unless a fold validates the same picture; and some cases only: `train.cases`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from competition.config.experiment import ExtraCasesConfig
from competition.data.cache import PreprocessedCase
from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.errors import MaskfoldError
from competition.runs.run import load_run
from competition.training.cross_validate import open_run
from competition.training.extra.fold_data import prepare_extra_case
from competition.training.fold import run_fold
from tests.host import competition, write_png
from tests.training.test_pseudo import copied, finish, here, lessons_of, open_student

__all__ = ["here"]  # a fixture


def other(demo2d: Path, name: str = "other", **keys) -> Path:
    """The YAML of a competition with the demo's cases under other names, labels swapped in meaning."""
    root = copied(demo2d, Path.cwd(), name)
    for folder in ("images", "masks"):
        for path in sorted((root / folder).iterdir()):
            path.rename(path.with_name(f"theirs_{path.name}"))
    file = Path.cwd() / f"{name}.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": name,
                "root": str(root),
                "dimensions": 2,
                "classes": ["one", "two"],
                "train": {"images": "images/{id}.png", "masks": "masks/{id}.png"},
                **keys,
            }
        )
    )
    return file


def spoil(root: Path, keep: int) -> None:
    """Other pictures: noise in the place of all but `keep` of them."""
    import cv2

    generator = np.random.default_rng(0)
    for path in sorted((root / "images").iterdir())[keep:]:
        shape = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape
        cv2.imwrite(str(path), cv2.GaussianBlur(generator.integers(0, 256, shape).astype(np.uint8), (5, 5), 0))


def test_their_cases_teach_in_our_classes(tiny, demo2d):
    file = other(demo2d)
    spoil(Path("other"), keep=2)
    exp = tiny(
        2, f"extra.competition={file}", "extra.classes={one: grain, two: ring}", "extra.weight=2", "training.epochs=1"
    )
    run, jobs = open_student(exp)
    first = sorted(run.cases["id"])[:2]  # their first two pictures are our first two
    home = dict(zip(run.folds["id"], run.folds["fold"], strict=True))
    table = {row.id: row for row in case_table(exp.extras[0].competition).itertuples(index=False)}
    for job in jobs:
        cases, lessons = lessons_of(run, job)
        gone = {f"theirs_{one}" for one in first if home[one] == job.fold}
        assert set(cases) == set(table) - gone
        assert lessons.summary["extra_0"]["left_out"] == ({"same": len(gone)} if gone else {}) and lessons.kinds == [
            (len(cases), 2.0)
        ]
    case = cases[max(cases)]
    theirs = load_mask(exp.extras[0].competition, table[max(cases)])[0]
    assert {1, 2} <= set(np.unique(theirs).tolist())
    drawn = case.geometry.inverse(np.asarray(case.mask, np.float16))[0]
    assert ((drawn == 2) == (theirs == 1)).all() and ((drawn == 1) == (theirs == 2)).all()
    result = run_fold(jobs[0], say=lambda line: None)
    assert result.lessons["extra_0"]["cases"] == len(lessons_of(run, jobs[0])[0]) and result.score is not None


def test_a_teacher_with_our_validated_pictures_among_its_extra_cases_is_refused(tiny, demo2d):
    """Ids and competition are others; the images' bytes tell."""
    few = json.dumps(sorted(open_run(tiny(2), "any").cases["id"])[:4]).replace(" ", "")
    rest = json.dumps(sorted(open_run(tiny(2), "any").cases["id"])[4:]).replace(" ", "")
    words = [f"extra.competition={other(demo2d)}", "extra.classes={one: ring, two: grain}"]
    middle, jobs = open_student(tiny(2, f"competition.train.cases={few}", *words), "middle")
    for job in jobs:
        lessons_of(middle, job)
        shutil.rmtree(job.folder / "x", ignore_errors=True)
    records = {job.folder: (job.folder / "lineage.json").read_bytes() for job in jobs}
    for folder in records:
        shutil.rmtree(folder)
    finish(middle)
    for folder, record in records.items():
        (folder / "lineage.json").write_bytes(record)
    with pytest.raises(
        MaskfoldError, match=r"another competition's theirs_.* \(the same image as a case that the fold validates"
    ):
        open_student(tiny(2, f"competition.train.cases={rest}", f"pseudo.from={middle.folder}"))


def test_extra_sections_that_make_no_sense(tiny, demo2d):
    file = other(demo2d)
    with pytest.raises(MaskfoldError, match=r"`extra` .*one, two, expected any of ring, grain"):
        tiny(2, f"extra.competition={file}")
    with pytest.raises(MaskfoldError, match=r"`extra\.classes` .* three\b.* one, two"):
        tiny(2, f"extra.competition={file}", "extra.classes={three: ring}")
    with pytest.raises(MaskfoldError, match=r"`extra\.classes` .* wing, .* ring, grain"):
        tiny(2, f"extra.competition={file}", "extra.classes={one: wing}")
    with pytest.raises(MaskfoldError, match=r"extra\.competition: .*nowhere\.yaml"):
        tiny(2, "extra.competition=nowhere.yaml")
    with pytest.raises(MaskfoldError, match=r"extra\.competition.* dimensions .*\(3\), found 2"):
        tiny(3, f"extra.competition={file}", "extra.classes={one: vessel}")


def test_a_run_keeps_the_other_competition_and_its_name_wherever_the_data_lie(tiny, demo2d):
    file = other(demo2d)
    words = [f"extra=[{{competition: {file}, classes: {{one: ring}}}}]"]
    run = open_run(tiny(2, *words), "tiny")
    run.write()
    again = load_run(run.folder)
    assert (
        again.exp == run.exp
        and again.exp.extras[0].competition.name == "other"
        and list(again.extra_tables) == ["besides_extra_0"]
    )
    shutil.move("other", "moved")
    file.write_text(file.read_text().replace(str(Path.cwd() / "other"), str(Path.cwd() / "moved")))
    assert open_run(tiny(2, *words), "tiny").folder.name == run.folder.name


def test_only_the_named_cases_are_there(tiny, demo2d):
    ids = sorted(case_table(tiny(2).competition)["id"])
    listed = case_table(tiny(2, f"competition.train.cases={json.dumps(ids[2:5])}".replace(" ", "")).competition)
    assert listed["id"].tolist() == ids[2:5]
    Path("few.csv").write_text("id,why\n" + "".join(f"{one},x\n" for one in ids[2:5]))
    exp = tiny(2, "competition.train.cases=few.csv")
    assert case_table(exp.competition)["id"].tolist() == ids[2:5]
    inside = copied(demo2d, Path.cwd())
    Path("few.csv").rename(inside / "few.csv")  # or below the host's folder
    exp = tiny(2, f"competition.root={inside}", "competition.train.cases=few.csv")
    assert case_table(exp.competition)["id"].tolist() == ids[2:5]
    with pytest.raises(MaskfoldError, match=f"train.cases.*{ids[0]}x; nearest is {ids[0]}"):
        case_table(tiny(2, f"competition.train.cases=[{ids[0]}x]").competition)


@pytest.mark.parametrize("shape", [(48, 48), (40, 56)])
def test_cases_of_another_format_have_the_axes_of_ours(tiny, tmp_path, shape):
    """2D NIfTI has (column, row), pictures have (row, column): the network must not see transposed pictures."""
    bright, label = np.full(shape, 20, np.uint8), np.zeros(shape, np.uint8)
    label[4:10, 20:40] = 1
    bright[label == 1] = 200
    write_png(tmp_path / "images/a.png", np.ascontiguousarray(bright.T))
    write_png(tmp_path / "masks/a.png", np.ascontiguousarray(label.T))
    theirs = competition(tmp_path)
    ours = competition(tmp_path, train={"images": "{id}.nii.gz", "masks": "seg/{id}.nii.gz"})
    exp = tiny(2, "prepare={intensity: none}").model_copy(update={"competition": ours})
    row = next(case_table(theirs).itertuples(index=False))
    extra = ExtraCasesConfig.model_construct(competition=theirs, weight=1.0, classes=None)
    case = PreprocessedCase.open(prepare_extra_case(row, extra, exp, tmp_path / "cache"))
    np.testing.assert_array_equal(case.image[0], bright)
    np.testing.assert_array_equal(case.mask[0], label)


def test_objects_of_a_dropped_class_have_no_boundary(tiny, tmp_path):
    """A class of theirs that becomes background is background up to its edge, also next to objects that stay."""
    label = np.zeros((24, 24), np.uint8)
    label[2:10, 2:10], label[12:20, 2:10], label[12:20, 10:18] = 1, 1, 2
    write_png(tmp_path / "images/a.png", np.full((24, 24), 20, np.uint8) + label)
    write_png(tmp_path / "masks/a.png", label)
    theirs = competition(tmp_path, classes=["cell", "debris"])
    exp = tiny(2, "competition.instances=true", "prepare={intensity: none, boundary: 1}").model_copy(
        update={"competition": competition(tmp_path, classes=["cell"], instances=True)}
    )
    row = next(case_table(theirs).itertuples(index=False))
    extra = ExtraCasesConfig.model_construct(competition=theirs, weight=1.0, classes={"cell": "cell", "debris": None})
    mask = PreprocessedCase.open(prepare_extra_case(row, extra, exp, tmp_path / "cache")).mask[0]
    assert (mask[label != 1] == 0).all()
    edge = np.zeros_like(label)
    edge[2:10, 2:10] = edge[12:20, 2:10] = 2
    edge[3:9, 3:9] = edge[13:19, 3:9] = 1
    np.testing.assert_array_equal(mask, edge)
