"""What a run's page in MLflow shows: the score that counts, curves, pictures, datasets and logged models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from competition.io import sha256_of_file
from competition.records import with_own_digest
from competition.runs.summary import RunScores, ScoreEstimate, write_summary
from competition.tracking.run_scores import describe_scores, mean_curves, score_metrics
from competition.tracking.store import MAX_TAG_LENGTH, RunMetadata, build_saved_view, is_outdated_view
from competition.tracking.uploader import RunUploader
from tests.tracking.conftest import finish_fold, line
from tests.tracking.test_uploader import fetch

New = Callable[[], RunUploader]
SCORES = RunScores(
    "dice",
    "nested",
    ScoreEstimate(0.911, 0.9, 0.92),
    ScoreEstimate(0.788, 0.77, 0.8),
    ScoreEstimate(0.911, 0.9, 0.92),
    ScoreEstimate(0.788, 0.77, 0.8),
    ScoreEstimate(0.75),
    cases=9,
)


def test_each_score_has_its_interval_and_the_tag_names_the_one_that_counts() -> None:
    metrics = score_metrics(SCORES)
    assert [metrics[f"counted_{part}"] for part in ("score", "lower", "upper")] == [0.911, 0.9, 0.92]
    assert metrics["cv_score"] == 0.788 and metrics["nested_lower"] == 0.9 and metrics["soup_weights_upper"] == 0.8
    assert metrics["last_weights_score"] == 0.75 and "last_weights_lower" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())
    # MLflow sorts columns by name: the score that counts is between the ends of its interval
    assert sorted(metrics)[:3] == ["counted_lower", "counted_score", "counted_upper"]


def test_the_note_is_a_table_with_the_counting_score_in_bold_letters() -> None:
    folds = [{"fold": 0, "seed": 0, "score": 0.7, "dice": {"a|b": None}, "epochs": 3, "minutes": 1.26}]
    note = describe_scores(SCORES, {"dice": {"a|b": 0.5}, "folds": folds}, ["report.html"])
    assert note.startswith("**0.9110** dice (95 % interval 0.9000 to 0.9200) on 9 out-of-fold cases\n\n| dice |")
    assert "| **with post-processing tuned on the other folds** | 0.9110 | 0.9000 to 0.9200 |" in note
    assert "| without post-processing | 0.7880 |" in note
    assert "| fold | score | Dice a/b | epochs | minutes |" in note and "| 0 | 0.7000 |  | 3 | 1.3 |" in note
    assert "`report.html`" in note and len(note) < MAX_TAG_LENGTH


@pytest.fixture
def finished_run(run_folder: Path, delivery: New) -> Path:
    """A finished run of two folds whose case table has three cases, one of them held out."""
    (run_folder / "cases.csv").write_text("id,group,hash\na,a,1\nb,b,2\nc,c,3\n")
    (run_folder / "folds.csv").write_text("id,fold,group\na,0,a\nb,1,b\nc,-2,c\n")
    for number in (0, 1):
        fold = run_folder / f"fold_{number}"
        (fold / "metrics.jsonl").write_text(
            line(1, val__score=0.25 + number / 2) + line(2, val__score=0.5 + number / 4)
        )
        finish_fold(fold, 0.5 + number / 4)
        (fold / "pictures" / "final_1_of_1_a.png").write_bytes(b"png")
    summary = {"metric": "dice", "score": 0.625, "low": 0.5, "high": 0.75, "folds": [{"fold": 0}, {"fold": 1}]}
    (run_folder / "summary.json").write_text(json.dumps(summary))
    upload(delivery)
    return run_folder


def upload(delivery: New) -> RunUploader:
    new = delivery()
    new.begin()
    new.upload(last=True)
    new.close("FINISHED")
    return new


def test_the_scores_of_another_run_are_not_uploaded(
    finished_run: Path, delivery: New, caplog: pytest.LogCaptureFixture
) -> None:
    """The summary has a valid digest of its own content, but is of another `scores.csv`."""
    (finished_run / "scores.csv").write_text("id,score\na,0.625\n")
    own = {"metric": "dice", "score": 0.625, "low": 0.5, "high": 0.75, "dice": {"a": 0.5}}
    other = {**own, "score": 0.99, "dice": {"a": 0.99}, "digests": {"scores.csv": "1"}}
    write_summary(finished_run, other)
    new = delivery()
    new.upload()
    assert not caplog.records, "folds that are trained again have new scores before the run has"
    new.upload(last=True)
    assert ["summary.json" in record.message for record in caplog.records] == [True]
    found = fetch(finished_run)[1]["."].data
    assert found.metrics["counted_score"] == found.metrics["cv_score"] == 0.625 and "dice_a" not in found.metrics
    assert found.tags["mlflow.note.content"].startswith("**0.6250** dice")
    write_summary(
        finished_run, {**own, "score": 0.75, "digests": {"scores.csv": sha256_of_file(finished_run / "scores.csv")}}
    )
    new.upload()
    assert fetch(finished_run)[1]["."].data.metrics["counted_score"] == 0.75


def test_the_result_of_another_fold_is_not_uploaded(
    run_folder: Path, delivery: New, caplog: pytest.LogCaptureFixture
) -> None:
    fold = run_folder / "fold_0"
    finish_fold(fold, 0.5)
    (fold / "scores.csv").write_text("id,score\na,0.5\n")
    other = {**json.loads((fold / "result.json").read_text()), "score": 0.99, "digests": {"scores.csv": "1"}}
    (fold / "result.json").write_text(json.dumps(with_own_digest(other, "result.json")))
    upload(delivery)
    assert "score" not in fetch(run_folder)[1]["fold_0"].data.metrics
    assert any("result.json does not belong to scores.csv" in record.message for record in caplog.records)


def test_the_run_has_curves_pictures_datasets_and_models(finished_run: Path) -> None:
    client, runs = fetch(finished_run)
    run, folds = runs["."], [runs["fold_0"], runs["fold_1"]]
    history = client.get_metric_history(run.info.run_id, "val/score")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.625)]
    assert [one.path for one in client.list_artifacts(run.info.run_id, "pictures/fold_1")] == [
        "pictures/fold_1/final_1_of_1_a.png"
    ]
    inputs = {
        next(tag.value for tag in one.tags if tag.key == "mlflow.data.context"): one.dataset
        for one in run.inputs.dataset_inputs
    }
    cases = {context: json.loads(dataset.profile)["num_rows"] for context, dataset in inputs.items()}
    assert cases == {"train": 2, "validation": 2, "test": 1}
    assert {len(dataset.digest) for dataset in inputs.values()} == {16}
    names = {one.dataset.name for one in folds[0].inputs.dataset_inputs}
    assert names == {"toy, train of fold 0", "toy, validation of fold 0", "toy, test of fold 0"}
    assert {key: folds[0].data.tags[key] for key in ("mlflow.source.name", "mlflow.user")} == {
        key: run.data.tags[key] for key in ("mlflow.source.name", "mlflow.user")
    }
    models = client.search_logged_models([run.info.experiment_id])
    assert {model.source_run_id for model in models} == {fold.info.run_id for fold in folds}
    outputs = [[one.model_id for one in fold.outputs.model_outputs] for fold in folds]
    assert sorted(one for found in outputs for one in found) == sorted(model.model_id for model in models)
    model = next(model for model in models if model.source_run_id == folds[1].info.run_id)
    scores = {metric.key: metric for metric in model.metrics}
    assert scores["score"].value == 0.75 and scores["score"].dataset_name == "toy, validation of fold 1"
    assert str(model.status) in ("READY", "LoggedModelStatus.READY")


def test_the_weights_of_a_model_take_no_further_space(finished_run: Path) -> None:
    client, runs = fetch(finished_run)
    for model in client.search_logged_models([runs["."].info.experiment_id]):
        folder = Path(model.artifact_location.removeprefix("file://"))
        assert [path.name for path in folder.iterdir()] == ["weights.safetensors"]
    weights = finished_run / "fold_0" / "weights.safetensors"
    assert weights.stat().st_nlink == 3  # the run's folder, the artifact of the fold, the model


def test_a_repeated_upload_adds_nothing_and_one_of_a_lost_record_finds_all(finished_run: Path, delivery: New) -> None:
    client, before = fetch(finished_run)
    assert upload(delivery)._client is None  # nothing is new, so MLflow was not opened
    state = finished_run / "shipped.json"
    plain = json.loads(state.read_text())
    for folder in plain["folders"].values():
        folder.update(final="", cases="", model="", model_result="")
    state.write_text(json.dumps(plain))
    upload(delivery)
    client, after = fetch(finished_run)
    for name, run in before.items():
        assert after[name].data.metrics == run.data.metrics
        assert len(after[name].inputs.dataset_inputs) == len(run.inputs.dataset_inputs)
        if name != ".":
            assert len(after[name].outputs.model_outputs) == 1
    assert len(client.search_logged_models([after["."].info.experiment_id])) == 2


def test_a_run_of_an_older_version_gets_the_new_metrics(finished_run: Path, delivery: New) -> None:
    """Its record lacks the keys, and its digest is that of the summary alone."""
    state = finished_run / "shipped.json"
    plain = json.loads(state.read_text())
    del plain["experiment"]
    for folder in plain["folders"].values():
        for key in ("cases", "model", "model_result"):
            del folder[key]
    plain["folders"]["."]["final"] = "0123456789abcdef"
    state.write_text(json.dumps(plain))
    client, runs = fetch(finished_run)
    client.delete_tag(runs["."].info.run_id, "counting_score")
    upload(delivery)
    assert fetch(finished_run)[1]["."].data.tags["counting_score"] == "cv_score"


def test_mean_curves_have_the_epochs_of_all_folds(tmp_path: Path) -> None:
    for number, text in enumerate(
        (line(1, val__score=0.5) + line(2, val__score=1.0), line(1, val__score=0.25, lr=1.0))
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "metrics.jsonl").write_text(text)
    assert mean_curves([tmp_path / "0", tmp_path / "1"]) == {"val/score": [(1, 0.375)]}


def test_the_view_begins_with_the_score_that_counts_and_replaces_that_of_an_older_version(delivery: New) -> None:
    metadata: RunMetadata = delivery().metadata
    columns = json.loads(json.loads(metadata.view)["state"])["selectedColumns"]
    assert sorted(column.strip("`") for column in columns)[:4] == [
        "metrics.`counted_lower",
        "metrics.`counted_score",
        "metrics.`counted_upper",
        "metrics.`cv_score",
    ], "MLflow sorts the columns by name"
    assert not is_outdated_view(metadata.view, build_saved_view(["left part", "T1+"], 7))
    older = json.dumps({"state": json.dumps({"selectedColumns": columns[3:]})})
    assert all(is_outdated_view(text, metadata.view) for text in (None, "", "{", older))
