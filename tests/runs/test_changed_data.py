"""Data or records of a run that changed after it began are refused by every command that reads them again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from competition.config.loading import resolve_config, write_yaml
from competition.context import Context
from competition.ensembling.compare import compare_two_runs
from competition.ensembling.expected import estimate_score
from competition.ensembling.weights import fit_weights
from competition.errors import ChangedDataError, MaskfoldError
from competition.io import sha256_of_file
from competition.postprocessing.tuning import (
    TUNING_FILE,
    TUNING_SCORES_FILE,
    load_tuning,
    save_tuning,
    tune_postprocessing,
)
from competition.report.run import write_report
from competition.review.search import review_run
from competition.runs.baselines import baseline_lines
from competition.runs.blend import Ensemble
from competition.runs.find import find_run
from competition.runs.fold import FoldResult
from competition.runs.run import Run, load_run
from competition.submission.submit import submit, write_oof_submission
from competition.training.cross_validate import summarize_run
from tests.host import flip_png

TUNE = "postprocess.tune=true"


@pytest.fixture
def own_run(finished: Callable[..., Run], tiny: Callable[..., Any], demo2d: Path, tmp_path: Path) -> Callable[..., Run]:
    """`own_run(TUNE)`: a finished run whose data are a copy that the test may change."""
    root = Path(shutil.copytree(demo2d, tmp_path / "data"))

    def make(*overrides: str, name: str = "demo2d-tiny", noise: float = 0.3) -> Run:
        return finished(tiny(2, f"competition.root={root}", *overrides), name, noise=noise)

    return make


def change_all_masks(run: Run) -> None:
    """Turn all masks upside down: they are as valid as before."""
    for path in (Path(run.exp.competition.root) / "masks").iterdir():
        flip_png(path)


def ensemble(*runs: Run) -> Ensemble:
    return Ensemble(runs, tuple([1 / len(runs)] * len(runs)))


READERS: dict[str, Callable[[Run, Run], Any]] = {
    "submit": lambda run, _: submit([run]),
    "submit of a blend": lambda run, other: submit([run, other], "auto"),
    "tuning": lambda run, _: estimate_score(ensemble(run), 20),
    "out of fold": lambda run, _: write_oof_submission(run, Path("oof.csv")),
    "weights": lambda run, other: fit_weights(ensemble(run, other), 0, None),
    "compare": compare_two_runs,
    "report": lambda run, _: write_report(run, Path("page.html")),
    "review": lambda run, _: review_run(run),
    "baselines": lambda run, _: baseline_lines(run),
}


@pytest.mark.parametrize("reader", READERS)
def test_masks_that_were_changed_after_training(own_run: Callable[..., Run], reader: str) -> None:
    first, other = own_run(TUNE), own_run(TUNE, name="demo2d-other", noise=0.5)
    change_all_masks(first)
    with pytest.raises(ChangedDataError, match=r"The mask of case \w+ \(masks/\w+\.png\) has changed since") as refusal:
        READERS[reader](first, other)
    assert "`maskfold cv`, which starts another run" in refusal.value.hint
    assert not list(Path("submissions").rglob("*.csv")) and not (first.folder / TUNING_FILE).exists()


def test_the_scores_of_several_seeds_are_not_of_other_masks(own_run: Callable[..., Run]) -> None:
    run = own_run("seed=[5, 6]")
    change_all_masks(run)
    with pytest.raises(ChangedDataError, match="The mask of case"):
        summarize_run(run)  # scores the mean probabilities of the seeds


# The remembered search


def test_a_remembered_search_is_not_used_for_other_masks(own_run: Callable[..., Run]) -> None:
    run = own_run(TUNE)
    first = estimate_score(ensemble(run), 20)
    change_all_masks(run)
    with pytest.raises(ChangedDataError, match="The mask of case"):
        estimate_score(ensemble(run), 20)
    (Path(run.exp.competition.root) / "masks").rename("away")
    said: list[str] = []
    again = estimate_score(ensemble(run), 20, Context(say=said.append))  # a copied run, without its data
    assert again.score == first.score
    assert said == [
        "note: the masks of 10 of 10 cases are missing, so they cannot be checked for changes; "
        "the stored result of post-processing is used"
    ]


def test_a_remembered_search_belongs_to_its_table_of_cases(own_run: Callable[..., Run]) -> None:
    run = own_run(TUNE)
    estimate_score(ensemble(run), 20)
    assert load_tuning(run) is not None
    other = replace(run, cases=run.cases.assign(hash=["0" * 64, *run.cases["hash"][1:]]))
    assert load_tuning(other) is None


@pytest.mark.parametrize("old", [False, True])
def test_an_old_remembered_search_is_made_again_where_the_data_are(
    own_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    run = own_run(TUNE)
    estimate_score(ensemble(run), 20)
    record = json.loads((run.folder / TUNING_FILE).read_text())
    if old:
        del record["key"]["data"], record["scores"], record["digest"]
        (run.folder / TUNING_FILE).write_text(json.dumps(record))
    assert load_tuning(run) is not None  # as for `predict` and `export`
    searched: list[int] = []
    monkeypatch.setattr(
        "competition.ensembling.expected.tune_postprocessing", lambda *a: searched.append(1) or tune_postprocessing(*a)
    )
    estimate_score(ensemble(run), 20)
    assert searched == [1] * old and "data" in json.loads((run.folder / TUNING_FILE).read_text())["key"]


def test_edited_scores_of_a_remembered_search(own_run: Callable[..., Run]) -> None:
    run = own_run(TUNE)
    estimate_score(ensemble(run), 20)
    edit_scores(run.folder / TUNING_SCORES_FILE)
    assert load_tuning(run) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nested", 0.99999),
        ("kept", "yes"),
        ("nested", None),
        ("before", "x"),
        ("gain", {"value": "x", "low": 0.0, "high": 0.0}),
    ],
)
def test_an_edited_remembered_search_is_not_used(own_run: Callable[..., Run], key: str, value: Any) -> None:
    run = own_run(TUNE)
    estimate_score(ensemble(run), 20)
    path = run.folder / TUNING_FILE
    plain = json.loads(path.read_text())
    assert load_tuning(run) is not None and plain[key] != value
    path.write_text(json.dumps({**plain, key: value}))
    assert load_tuning(run) is None
    if not isinstance(value, float):  # a wrong type is noticed without a digest as well
        path.write_text(json.dumps({name: now for name, now in {**plain, key: value}.items() if name != "digest"}))
        assert load_tuning(run) is None


def test_a_remembered_search_has_all_cases_whatever_their_names(own_run: Callable[..., Run]) -> None:
    run = own_run(TUNE)
    found = estimate_score(ensemble(run), 20).tuning
    assert found is not None
    rows = found.rows.replace({"id": {found.rows["id"].iloc[0]: "NA"}, "class": {found.rows["class"].iloc[0]: "null"}})
    save_tuning(run, replace(found, rows=rows))
    remembered = load_tuning(run)
    assert remembered is not None
    pd.testing.assert_frame_equal(remembered.rows, rows, check_dtype=False)


# Tables of scores


def edit_scores(path: Path) -> None:
    table = pd.read_csv(path, dtype={"id": str})
    table.assign(score=0.99).to_csv(path, index=False)


def sign(run: Run, fold: int) -> None:
    """Write the digests of a fold's tables into its result, as training does."""
    folder = run.member_folder(fold, 0)
    result = FoldResult.read(folder)
    assert result is not None
    replace(result, digests={"scores.csv": sha256_of_file(folder / "scores.csv")}).write(folder)


def test_edited_scores_do_not_become_the_score_of_the_run(own_run: Callable[..., Run]) -> None:
    run = own_run()
    for fold in (0, 1):
        sign(run, fold)
    before = summarize_run(run)
    edit_scores(run.folder / "fold_1" / "scores.csv")
    with pytest.raises(MaskfoldError, match=r"fold_1/scores\.csv was changed after the fold had finished") as refusal:
        summarize_run(run)
    assert "fold_1/result.json" in refusal.value.hint
    sign(run, 1)
    assert summarize_run(run).score != before.score


def test_results_without_digests_are_read(own_run: Callable[..., Run]) -> None:
    run = own_run()
    record = json.loads((run.folder / "fold_0" / "result.json").read_text())
    del record["digests"]  # as in 0.1
    (run.folder / "fold_0" / "result.json").write_text(json.dumps(record))
    assert summarize_run(run).cases == 10


def test_edited_scores_of_the_run_are_not_reported(own_run: Callable[..., Run]) -> None:
    run = own_run()
    edit_scores(run.folder / "scores.csv")
    with pytest.raises(MaskfoldError, match=r"scores\.csv was changed"):
        write_report(run, Path("page.html"))
    summarize_run(run)
    write_report(run, Path("page.html"))


# The table of cases


def test_a_table_of_cases_that_was_edited_by_hand(own_run: Callable[..., Run]) -> None:
    run = own_run()
    assert load_run(run.folder).fold_of() == run.fold_of()
    first, second = run.cases["id"][:2]
    path = run.folder / "cases.csv"
    text = path.read_text()
    path.write_text(text.replace(f"masks/{first}.png", f"masks/{second}.png"))
    with pytest.raises(MaskfoldError, match=rf"The case {first} has the file masks/{second}\.png.*does not match"):
        load_run(run.folder)
    path.write_text(text.replace(run.cases["hash"][0], run.cases["hash"][1]))
    with pytest.raises(MaskfoldError, match=r"cases\.csv in .* was changed after the run was started"):
        load_run(run.folder)
    with pytest.raises(ChangedDataError, match=f"The mask of case {first}"):
        estimate_score(ensemble(load_run(run.folder, check_edits=False)), 20)


@pytest.mark.parametrize("weights", ["auto", None])
def test_a_blend_of_runs_whose_images_changed_between_them_is_refused(own_run, weights):
    """Otherwise, predictions of the former image would be scored with the truth of the present one."""
    former = own_run("seed=1")
    for folder in ("images", "masks"):
        flip_png(Path(former.exp.competition.root) / folder / f"{former.cases['id'][0]}.png")
    present = own_run("seed=2")
    with pytest.raises(MaskfoldError, match=rf"images of 1 case differ .*{former.cases['id'][0]}"):
        submit([present, former], weights)


def test_a_note_names_training_cases_that_changed_after_the_run(own_run, tiny):
    run = own_run(name="demo2d-e")
    root, ids = Path(run.exp.competition.root), list(run.cases["id"])
    file = Path("e.yaml")

    def notes(**train: Any) -> list[str]:
        found: list[str] = []
        plain = resolve_config(run.exp)
        plain["competition"]["train"] |= train
        write_yaml(plain, file)
        assert find_run(str(file), say=found.append).folder.name == run.folder.name
        return found

    assert notes() == []
    Path("review.csv").write_text(f"id,exclude,weight\n{ids[0]},x,\n{ids[1]},,3\n")
    (note,) = notes(exclude="review.csv", weights="review.csv")
    assert f"(removed or excluded: {ids[0]}; another weight or group: {ids[1]})" in note
    for folder in ("images", "masks"):
        (root / folder / f"{ids[2]}.png").rename(root / folder / "renamed.png")
    (note,) = notes()
    assert f"(added: renamed; removed or excluded: {ids[2]})" in note
    shutil.rmtree(root / "images")
    assert notes() == [], "a copied run may be used without its training data"


def test_a_note_names_arguments_that_replace_settings_of_the_training(own_run):
    run = own_run()
    notes: list[str] = []
    find_run(str(run.folder), ["run.threads=1", "postprocess.tune=true", "competition.test=null"], say=notes.append)
    assert notes == []
    find_run(str(run.folder), [f"competition.classes={run.exp.competition.classes[::-1]}"], say=notes.append)
    assert len(notes) == 1 and "competition.classes" in notes[0]
