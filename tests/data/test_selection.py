"""`train.exclude` leaves cases out, and `train.weights` sets how often a case is drawn; a review's CSV answers both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from competition.config.competition import Competition
from competition.config.loading import load_competition
from competition.data.case_files import count_test_images
from competition.data.cases import case_table, data_hash
from competition.data.dataset import WeightedCaseSampler
from competition.data.selection import EXCLUDE, WEIGHT, read_answers
from competition.errors import MaskfoldError
from competition.runs.identity.hashing import run_hash
from competition.runs.run import load_run
from competition.submission.label_files import competition_for_folder
from competition.training.cross_validate import open_run
from competition.training.extra.fold_data import split_by_weight
from tests.host import competition, pictures


def with_keys(comp: Competition, **keys: Any) -> Competition:
    """Return the competition with other keys of `train`."""
    return comp.model_copy(update={"train": comp.train.model_copy(update=keys)})


def write_answers(path: Path, *rows: tuple[str, str, str]) -> str:
    """Write a CSV as a review does, with (id, exclude, weight) in each row; return its name."""
    path.write_text("id,kind,exclude,weight\n" + "".join(f"{a},shifted,{b},{c}\n" for a, b, c in rows))
    return str(path)


@pytest.fixture
def comp(tiny: Callable[..., Any]) -> Competition:
    return tiny(2).competition


@pytest.fixture
def ids(comp: Competition) -> list[str]:
    return case_table(comp)["id"].tolist()


def test_marked_cases_are_left_out(comp: Competition, ids: list[str], tmp_path: Path) -> None:
    rows = [(ids[0], "x", ""), (ids[0], "", ""), (ids[1], "no", ""), (ids[2], " Yes ", ""), (ids[3], "", "")]
    table = case_table(with_keys(comp, exclude=write_answers(tmp_path / "review.csv", *rows)))
    assert table["id"].tolist() == [ids[1], *ids[3:]] and table.attrs["excluded"] == [ids[0], ids[2]]
    listed = case_table(with_keys(comp, cases=[ids[1], *ids[3:]]))
    assert data_hash(table) == data_hash(listed), "the hash covers the cases, not how they were chosen"
    assert case_table(with_keys(comp, exclude=[ids[0], ids[2]]))["id"].tolist() == table["id"].tolist()
    (tmp_path / "plain.csv").write_text(f"id\n{ids[4]}\n")  # without the column, all rows count
    assert case_table(with_keys(comp, exclude=str(tmp_path / "plain.csv"))).attrs["excluded"] == [ids[4]]


def test_a_review_of_a_table_with_another_id_column(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b", "c"])
    (tmp_path / "train.csv").write_text("ImageId,Rle\na,1 3\nb,2 2\nc,1 1\n")
    (tmp_path / "ids.csv").write_text("id\na\nb\n")
    (tmp_path / "ImageIds.csv").write_text("id,ImageId\n1,b\n2,c\n")
    review = write_answers(tmp_path / "review.csv", ("a", "x", ""), ("b", "", "2"))
    train = {"images": "images/{id}.png", "rle": "train.csv", "columns": {"id": "ImageId", "mask": "Rle"}}
    comp = competition(tmp_path, train=train)
    assert case_table(with_keys(comp, exclude=review))["id"].tolist() == ["b", "c"]
    assert case_table(with_keys(comp, weights=review))[WEIGHT].tolist() == ["1", "2", "1"]
    assert case_table(with_keys(comp, cases="ids.csv"))["id"].tolist() == ["a", "b"]
    assert case_table(with_keys(comp, cases="ImageIds.csv"))["id"].tolist() == ["b", "c"]


def test_wrong_answers_are_refused(comp: Competition, ids: list[str], tmp_path: Path) -> None:
    wrong = [
        ("exclude", [(ids[0], "maybe", "")], r"line 2, column `exclude`: found 'maybe', expected `x` or `yes`"),
        ("exclude", [(ids[0] + "x", "x", "")], f"no case has the id {ids[0]}x; nearest is {ids[0]}"),
        (
            "exclude",
            [(case, "x", "") for case in ids],
            rf"train.exclude leaves out {len(ids)} cases, so no case is left",
        ),
        ("weights", [(ids[0], "", "0")], "the weight of the case .* is '0', expected a number above 0"),
        ("weights", [(ids[0], "", "nan")], "is 'nan', expected a number above 0"),
        ("weights", [(ids[0], "", "half")], "is 'half', expected a number above 0"),
        ("weights", [(ids[0], "", "0.5"), (ids[0], "", "2")], f"several weights for the case {ids[0]}: 0.5, 2"),
    ]
    for number, (key, rows, message) in enumerate(wrong):
        path = write_answers(tmp_path / f"{number}.csv", *rows)
        with pytest.raises(MaskfoldError, match=message) as caught:
            case_table(with_keys(comp, **{key: path}))
        assert caught.value.status == 2
    (tmp_path / "none.csv").write_text("id\na\n")
    with pytest.raises(MaskfoldError, match="has no column `weight`"):
        case_table(with_keys(comp, weights=str(tmp_path / "none.csv")))


def test_weights_enter_the_hash_only_if_they_are_not_one(comp: Competition, ids: list[str], tmp_path: Path) -> None:
    plain = case_table(comp)
    ones = case_table(with_keys(comp, weights=write_answers(tmp_path / "a.csv", (ids[0], "", "1.0"), (ids[1], "", ""))))
    assert data_hash(ones) == data_hash(plain) and WEIGHT not in ones.columns
    half = case_table(with_keys(comp, weights=write_answers(tmp_path / "b.csv", (ids[0], "", "0.50"))))
    assert half[WEIGHT].tolist() == ["0.5", *["1"] * (len(ids) - 1)] and data_hash(half) != data_hash(plain)
    assert data_hash(case_table(with_keys(comp, weights={ids[0]: 0.5}))) == data_hash(half)


def test_keys_at_their_default_and_their_paths_do_not_enter_the_hash(tiny: Callable[..., Any], tmp_path: Path) -> None:
    exp = tiny(2)
    table = case_table(exp.competition)
    names = []
    for name in ("one.csv", "two.csv"):
        path = write_answers(tmp_path / name, (table["id"].iloc[0], "", "0.5"))
        other = tiny(2, f"competition.train.weights={path}", "competition.train.exclude=[]")
        names.append(run_hash(other, data_hash(case_table(other.competition)), 2))
    assert names[0] == names[1] != run_hash(exp, data_hash(table), 2)
    assert run_hash(tiny(2, "competition.train.exclude=[]"), data_hash(table), 2) == run_hash(exp, data_hash(table), 2)


def test_a_run_keeps_its_weights(
    tiny: Callable[..., Any], ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_answers(tmp_path / "review.csv", (ids[0], "", "0.1"), (ids[1], "x", ""), (ids[2], "", "2.5"))
    exp = tiny(2, f"competition.train.weights={path}", f"competition.train.exclude={path}")
    run = open_run(exp, "demo2d-tiny")
    run.write()
    Path(path).unlink()  # the run does not need it again
    loaded = load_run(run.folder)
    assert loaded.cases[WEIGHT].tolist() == run.cases[WEIGHT].tolist()
    prepared = {case: Path(case) for case in ids}
    plain, weighted = split_by_weight(loaded, -1, prepared)
    assert {str(folder) for folder in plain} == set(ids) - set(ids[:3])
    assert [(str(folder), kind) for folder, kind in zip(weighted.folders, weighted.kinds, strict=True)] == [
        (ids[0], (1, 0.1)),
        (ids[2], (1, 2.5)),
    ]
    sampler = WeightedCaseSampler(len(plain), weighted.kinds)
    cycles = 20
    drawn = Counter(sampler.index_at(place, 1, 0) for place in range(round(cycles * (len(plain) + 2.6))))
    assert drawn[len(plain)] == 2 and drawn[len(plain) + 1] == 50 and drawn[0] == cycles


def test_the_fold_file_may_name_excluded_cases(tiny: Callable[..., Any], ids: list[str], tmp_path: Path) -> None:
    from competition.data.splits import split

    file = tmp_path / "folds.csv"
    file.write_text("id,fold\n" + "".join(f"{case},{number % 2}\n" for number, case in enumerate(ids)))
    exp = tiny(2, "folds.scheme=file", f"folds.file={file}", f"competition.train.exclude={json.dumps(ids[:1])}")
    cases = case_table(exp.competition)
    folds = split(cases, exp.competition, exp.folds, 1)
    assert folds["id"].tolist() == ids[1:]


def test_answers_are_read_by_case(tmp_path: Path) -> None:
    path = write_answers(tmp_path / "r.csv", ("a", "", ""), ("b", "x", ""), ("b", "", "0.5"), ("c", "", ""))
    assert read_answers(Path(path)) == {"b": ("x", "0.5")}
    (tmp_path / "other.csv").write_text("id,score\na,1\n")
    with pytest.raises(MaskfoldError, match=f"has no column `{EXCLUDE}`, so it is not the CSV of a review"):
        read_answers(tmp_path / "other.csv")


# Test cases


def test_only_the_listed_test_cases_are_read(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b", "c"])
    comp = competition(tmp_path, test={"images": "images/{id}.png"})
    assert "cases" not in comp.model_dump()["test"], "the hashes of other competitions stay"
    for cases in (["c", "b"], str(tmp_path / "test.csv")):
        (tmp_path / "test.csv").write_text("id\nb\nc\n")
        comp = competition(tmp_path, test={"images": "images/{id}.png", "cases": cases})
        assert case_table(comp, "test")["id"].tolist() == ["b", "c"] and count_test_images(comp) == 2
        own = competition_for_folder(comp, tmp_path / "images")
        assert case_table(own, "test")["id"].tolist() == ["b", "c"], (
            "predict --images with the folder of the test images"
        )
        pictures(tmp_path / "new", ["d", "e"])
        other = competition_for_folder(comp, tmp_path / "new" / "images")
        assert case_table(other, "test")["id"].tolist() == ["d", "e"]
    comp = competition(tmp_path, test={"images": "images/{id}.png", "cases": ["x"]})
    with pytest.raises(MaskfoldError, match=r"test\.cases: .* id x") as caught:
        case_table(comp, "test")
    assert caught.value.status == 2


def test_a_table_of_test_cases_may_lie_beside_the_yaml(tmp_path: Path) -> None:
    pictures(tmp_path / "data", ["a", "b", "c"])
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "test.csv").write_text("id\nc\n")
    text = json.loads(competition(tmp_path / "data").model_dump_json())
    text |= {"test": {"images": "images/{id}.png", "cases": "test.csv"}}
    (tmp_path / "yaml" / "competition.yaml").write_text(json.dumps(text))
    comp = load_competition(tmp_path / "yaml" / "competition.yaml")
    assert case_table(comp, "test")["id"].tolist() == ["c"]
