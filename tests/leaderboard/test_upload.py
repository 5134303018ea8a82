"""`maskfold upload` and `maskfold ledger` against a stand-in for Kaggle's API, through Kaggle's own client."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from competition.cli.main import main
from competition.data.cases import case_table
from competition.leaderboard.ledger import Ledger
from competition.metrics.bootstrap import cv_score, prediction_interval
from competition.metrics.scoring import read_scores
from competition.submission.submit import scores_path
from competition.submission.testset import TestSet
from competition.submission.writer import write_submission
from competition.tables import write_table
from tests.conftest import ROOT
from tests.leaderboard.kaggle_host import SECRET, FakeKaggle

kaggle_env = pytest.importorskip("kagglesdk.kaggle_env", reason="the extra [kaggle] is not installed")

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKaggle]:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    monkeypatch.setenv("MASKFOLD_TRUST", "")
    with FakeKaggle() as fake:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, fake.url)
        yield fake


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["maskfold", *words])
        monkeypatch.setenv("COLUMNS", "300")
        with pytest.raises(SystemExit) as end:
            main()
        said = "".join(capfd.readouterr())
        assert SECRET not in said
        return int(end.value.code or 0), said

    return run


@pytest.fixture(scope="module")
def built() -> dict[str, Path]:
    """Return the folder that `csv` copies, once it exists."""
    return {}


@pytest.fixture
def csv(
    finished,
    tiny,
    built: dict[str, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A finished run's submission with synthetic masks, and a competition.yaml with its Kaggle name."""
    monkeypatch.chdir(tmp_path)
    path = Path("submissions") / "demo2d" / "tiny-0.csv"
    if not built:
        exp = tiny(2)
        _hand_written(finished(exp, "demo2d-tiny"), path)
        folder = tmp_path / "experiments" / "demo2d"
        folder.mkdir(parents=True)
        text = (ROOT / "experiments" / "demo2d" / "competition.yaml").read_text()
        text = re.sub(r"root: .*", f"root: {exp.competition.root}", text)
        text = text.replace("submission:\n", "submission:\n  kaggle: toy-2026\n  public_share: 0.34\n")
        (folder / "competition.yaml").write_text(text)
        built["folder"] = Path(shutil.copytree(tmp_path, tmp_path_factory.mktemp("built") / "work"))
    else:
        shutil.copytree(built["folder"], tmp_path, dirs_exist_ok=True)
    return path


def _hand_written(run, path: Path) -> None:
    """Write the files of `submit`, without prediction and scoring."""
    tests = TestSet.from_table(run.exp.competition, case_table(run.exp.competition, "test"))
    generator = np.random.default_rng(0)
    write_submission(
        (
            (row.id, name, generator.random(json.loads(row.shape)) < 0.01)
            for row in tests.rows
            for name in run.exp.competition.classes
        ),
        tests.profile,
        path,
        sample=tests.sample,
    )
    rows = read_scores(run.folder / "scores.csv")
    write_table(rows, scores_path(path))
    metric = run.exp.competition.metric
    low, high = prediction_interval(rows, metric, 3)
    path.with_suffix(".json").write_text(
        json.dumps(
            {
                "competition": "demo2d",
                "file": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "runs": [{"run": str(run.folder), "experiment": run.name, "hash": run.folder.name, "weight": 1.0}],
                "expected": {
                    "metric": metric.name,
                    "score": cv_score(rows, metric),
                    "low": low,
                    "high": high,
                    "test_cases": 3,
                    "tuning": None,
                },
                "postprocess": run.exp.postprocess.model_dump(),
            }
        )
    )


@pytest.fixture(autouse=True)
def no_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow takes seconds, so only tests that check it use it."""
    if "store" not in request.fixturenames:
        monkeypatch.setattr("competition.tracking.submissions.log_upload", lambda *_: "elsewhere")


@pytest.fixture
def store() -> Callable[[], list[dict[str, object]]]:
    """Return the tags and metrics of the MLflow runs."""

    def rows() -> list[dict[str, object]]:
        from mlflow.tracking import MlflowClient

        # The whole path: MLflow keeps connections open by the address's text.
        client = MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').resolve()}")
        ids = [one.experiment_id for one in client.search_experiments()]
        return [{**run.data.tags, **run.data.metrics} for run in client.search_runs(ids, "tags.kind = 'submission'")]

    return rows


def test_a_file_is_checked_uploaded_and_scored(host, command, csv, store):
    status, said = command("upload", str(csv), "-m", "first try", "--yes")
    assert status == 0, said
    assert host.uploads["blob0"] == csv.read_bytes(), "byte for byte"
    assert host.asked == ["GetSubmissionLimits", "StartSubmissionUpload", "CreateSubmission"]
    assert host.submissions[0]["description"] == "first try" and host.submissions[0]["fileName"] == csv.name
    assert "6 rows, 0 of them with an empty mask; the file is valid" in said
    (record,) = Ledger("demo2d").read()
    note = json.loads(csv.with_suffix(".json").read_text())
    assert (record.ref, record.status, record.public) == (1000, "pending", None)
    assert record.sha256 == hashlib.sha256(csv.read_bytes()).hexdigest() == note["sha256"]
    assert [run["hash"] for run in record.runs] == [note["runs"][0]["hash"]]
    assert record.score == note["expected"]["score"] and record.cv["low"] < record.score < record.cv["high"]
    assert record.public_cases == 1, "0.34 of three test cases"
    assert record.expected["high"] - record.expected["low"] > note["expected"]["high"] - note["expected"]["low"]
    assert record.keys[record.runs[0]["hash"]]["training.epochs"] == "2"
    (row,) = store()
    assert row["sha256"] == record.sha256 and row["ref"] == "1000" and row["message"] == "first try"
    assert row["cv_score"] == pytest.approx(record.score) and row["cv_low"] == pytest.approx(record.cv["low"])
    assert row["upload_runs"] == record.runs[0]["hash"] and "public_score" not in row

    status, said = command("ledger")
    assert status == 0 and "pending" in said and "first" in said
    host.score(1000, "0.7123")
    status, said = command("ledger")
    assert "0.7123" in said and "pending" not in said
    assert "found 1 file with both scores, expected at least 4" in said
    host.score(1000, "0.7123", "0.69")
    status, said = command("ledger")
    assert "0.6900" in said
    (row,) = store()
    assert (row["public_score"], row["private_score"], row["status"]) == (0.7123, 0.69, "complete")
    asked = len(host.asked)
    assert command("ledger")[0] == 0
    assert len(host.asked) == asked, "nothing is open any more"


def test_tries_are_shown_and_a_spent_day_is_refused(host, command, csv):
    host.submissions += [
        {"ref": n, "date": "2099-01-01T00:00:00.000Z", "status": "COMPLETE", "fileName": "x", "description": ""}
        for n in range(4)
    ]
    status, said = command("upload", str(csv), "--yes")
    assert status == 0 and "toy-2026: submissions used today: 4 of 5" in said
    csv.write_bytes(csv.read_bytes())  # nothing else has changed
    status, said = command("upload", str(csv), "--yes")
    assert status == 1 and "No submission to toy-2026 is left today. Wait until 00:00 UTC" in said
    assert "warning: this file was submitted before, on" in said
    assert len(Ledger("demo2d").read()) == 1 and host.asked.count("StartSubmissionUpload") == 1


def test_nobody_is_asked_without_a_terminal(host, command, csv, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    status, said = command("upload", str(csv))
    assert status == 2 and "cannot ask for confirmation" in said and "--yes" in said
    assert host.asked == ["GetSubmissionLimits"] and Ledger("demo2d").read() == []


@pytest.mark.parametrize(("answer", "sent"), [("n\n", False), ("y\n", True)])
def test_a_person_is_asked(host, command, csv, monkeypatch, answer, sent):
    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    status, said = command("upload", str(csv))
    assert status == (0 if sent else 1) and "Submit tiny-0.csv" in said
    assert len(host.submissions) == sent == len(Ledger("demo2d").read())


def test_an_unsound_file_costs_nothing(host, command, csv):
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join(lines[:-1]) + "\n")
    status, said = command("upload", str(csv), "--yes")
    assert status == 1 and "is missing" in said
    assert host.asked == []


def test_the_same_file_again_is_a_row_of_its_own(host, command, csv, store):
    assert command("upload", str(csv), "--yes")[0] == 0
    status, said = command("upload", str(csv), "--yes", "-m", "again")
    assert status == 0 and "cannot be stored in MLflow" not in said, said
    assert [record.again for record in Ledger("demo2d").read()] == [0, 1]
    assert {row["ref"] for row in store()} == {"1000", "1001"}
    assert "the same file" in command("ledger")[1]


@pytest.mark.parametrize(
    ("name", "code", "message", "words"),
    [
        ("GetSubmissionLimits", 404, "nothing", "Kaggle does not have the competition toy-2026 (404)"),
        (
            "GetSubmissionLimits",
            403,
            "You must accept the rules",
            "accept the rules at https://www.kaggle.com/competitions/toy-2026/rules",
        ),
        ("CreateSubmission", 400, "Your team has used its daily Submission allowance (5)", "Wait until 00:00 UTC"),
        (
            "CreateSubmission",
            400,
            "The competition deadline has passed.",
            "accepts no more submissions (400): “The competition deadline has passed”",
        ),
        (
            "CreateSubmission",
            400,
            f"Bad file at https://x/?token=abc KAGGLE {SECRET}",
            "Kaggle rejected the submission (400): “Bad file at …",
        ),
        ("PUT", 400, "", "was interrupted"),
    ],
)
def test_refusals_leave_no_record(host, command, csv, name, code, message, words):
    host.refuse[name] = (code, message)
    status, said = command("upload", str(csv), "--yes")
    assert status in (1, 2) and words in said and "token=abc" not in said and "Traceback" not in said
    assert Ledger("demo2d").read() == []
    host.refuse.clear()
    assert command("upload", str(csv), "--yes")[0] == 0


def test_limits_that_are_not_told_stop_nobody(host, command, csv):
    host.limits = False
    status, said = command("upload", str(csv), "--yes")
    assert status == 0 and "does not report how many" in said


def test_wrong_credentials_and_no_network(host, command, csv, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "wrong-key")
    status, said = command("upload", str(csv), "--yes")
    assert status == 1 and "rejected the credentials" in said
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:9")
    status, said = command("upload", str(csv), "--yes")
    assert status == 1 and "Cannot connect to Kaggle: ConnectionError" in said
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.delenv("KAGGLE_USERNAME")
    status, said = command("upload", str(csv), "--yes")
    assert status == 1 and "found no credentials" in said
    assert Ledger("demo2d").read() == []


def test_a_try_whose_answer_was_lost_is_found_again(host, command, csv):
    host.broken.add("CreateSubmission")
    status, said = command("upload", str(csv), "--yes", "-m", "lost words")
    assert status == 1 and "`maskfold ledger` shows whether the submission was counted" in said
    (record,) = Ledger("demo2d").read()
    assert (record.ref, record.status) == (None, "sending")
    host.score(1000, "0.5")
    assert "0.5000" in command("ledger")[1]
    (record,) = Ledger("demo2d").read()
    assert (record.ref, record.status, record.public) == (1000, "complete", 0.5)


def test_a_try_that_never_arrived_is_lost(host, command, csv):
    host.broken.add("StartSubmissionUpload")
    assert command("upload", str(csv), "--yes")[0] == 1
    assert "lost" in command("ledger")[1]
    assert Ledger("demo2d").read()[0].status == "lost"


def test_a_notebook_is_handed_in(host, command, csv):
    status, said = command(
        "upload", str(csv), "--yes", "--notebook", "me/best-net", "--version", "7", "--file", "out.csv"
    )
    assert status == 0, said
    assert {key: host.code[key] for key in ("kernelOwner", "kernelSlug", "kernelVersion", "fileName")} == {
        "kernelOwner": "me",
        "kernelSlug": "best-net",
        "kernelVersion": 7,
        "fileName": "out.csv",
    }
    assert host.uploads == {}, "the file itself stays here; it says what the notebook's runs are"
    (record,) = Ledger("demo2d").read()
    assert record.notebook == {"kernel": "me/best-net", "version": 7, "file": "out.csv"} and record.score is not None
    status, said = command(
        "upload", "--competition", "toy-2026", "--yes", "--notebook", "me/best-net", "--version", "8"
    )
    assert status == 0 and len(Ledger("demo2d").read()) == 2, "the YAML below experiments/ says whose slug that is"
    assert "me/best-net v8" in command("ledger")[1]


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["--version", "3"], "Add --notebook"),
        (["--notebook", "me/x"], "Add --version"),
        ([], "Give a CSV"),
        (["--notebook", "nobody", "--version", "1"], "expected OWNER/NAME"),
        (["nowhere.csv"], "`maskfold submit`"),
    ],
)
def test_words_that_do_not_fit(command, words, cure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = command("upload", *words)
    assert status == 2 and cure in said


def test_the_hosts_name_is_asked_for(host, command, csv):
    Path("experiments/demo2d/competition.yaml").unlink()
    status, said = command("upload", str(csv), "--yes")
    assert status == 2 and "submission: {kaggle:" in said
    status, said = command("upload", str(csv), "--yes", "--competition", "other-one")
    assert status == 2 and "Kaggle does not have the competition other-one" in said
    assert command("upload", str(csv), "--yes", "--competition", "toy-2026")[0] == 0
    note = json.loads(csv.with_suffix(".json").read_text())
    for damage in (
        "[",
        "[]",
        json.dumps({**note, "runs": [{}]}),
        json.dumps({**note, "runs": ["a"]}),
        json.dumps({**note, "runs": 3}),
    ):
        csv.with_suffix(".json").write_text(damage)
        status, said = command("upload", str(csv), "--yes", "--competition", "toy-2026")
        assert status == 2 and "is unknown" in said and "missing or invalid" in said, damage
    csv.with_suffix(".json").unlink()
    status, said = command("upload", str(csv), "--yes", "--competition", "toy-2026")
    assert status == 2 and "is unknown" in said


def test_scores_by_hand_and_a_page(command, csv, tmp_path, monkeypatch):
    status, said = command("ledger", "--add", str(csv), "--public", "0.71", "-m", "by mail", "-o", "ledger.html")
    assert status == 0 and "0.7100" in said
    (record,) = Ledger("demo2d").read()
    assert (record.host, record.public, record.private, record.message) == ("by hand", 0.71, None, "by mail")
    page = Path("ledger.html").read_text()
    assert "0.7100" in page and "data:image/png" in page
    assert command("ledger", "--add", str(csv), "--private", "0.7")[0] == 0
    (record,) = Ledger("demo2d").read()
    assert (record.public, record.private) == (0.71, 0.7), "the same file: its record is completed"
    assert command("ledger", "--add", str(csv))[0] == 2
    assert command("ledger", "--public", "0.3")[0] == 2
    status, said = command("ledger", "-o", "ledger.txt")
    assert status == 2 and "found ledger.txt" in said and "ends in .png or .html" in said
    Path("folder.png").mkdir()
    status, said = command("ledger", "-o", "folder.png")
    assert status == 2 and "found the folder folder.png" in said
    assert command("ledger", "-o", "ledger.png", "--no-refresh")[0] == 0
    assert Path("ledger.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_score_is_refused_and_another_score_is_told(command, csv):
    for word, part in (
        ("nan", "found nan"),
        ("inf", "found inf"),
        ("7", "found 7, expected a number from 0 to 1"),
        ("-0.1", "found -0.1, expected a number from 0 to 1"),
    ):
        status, said = command("ledger", "--add", str(csv), f"--public={word}")
        assert status == 2 and part in said
    assert Ledger("demo2d").read() == []
    assert "note:" not in command("ledger", "--add", str(csv), "--public", "0.5")[1]
    assert (
        f"note: the public score of {csv} changed from 0.5000 to 0.7000"
        in command("ledger", "--add", str(csv), "--public", "0.7")[1]
    )
    assert "note:" not in command("ledger", "--add", str(csv), "--private", "0.6")[1]


def test_each_field_of_a_record_is_of_its_kind(command, csv):
    assert command("ledger", "--add", str(csv), "--public", "0.5")[0] == 0
    (path,) = Ledger("demo2d").folder.glob("*.json")
    whole = json.loads(path.read_text())
    del whole["digests"]  # as in a record of an older version; otherwise, any change is refused as such
    run = whole["runs"][0]
    for damage in (
        {"public": "abc"},
        {"public": [0.5]},
        {"cv": {"score": "abc"}},
        {"cv": 0.5},
        {"again": "many"},
        {"time": "noon"},
        {"metric": {"name": "guess"}},
        {"runs": [{**run, "weight": "heavy"}]},
        {"runs": ["a"]},
        {"runs": [{}]},
        {"keys": {run["hash"]: 3}},
        {"notebook": {"kernel": "me/x"}},
        {"file": None},
        {"strange": 1},
    ):
        path.write_text(json.dumps({**whole, **damage}))
        for words in ((), ("--no-refresh",)):
            status, said = command("ledger", *words)
            assert status == 1 and f"{path.name} is damaged" in said and "move it to another folder" in said, (
                damage,
                said,
            )
    path.write_text(json.dumps(whole))
    now = path.with_name(path.name.replace(".json", ".scores.tsv"))
    before = now.with_suffix(".csv")  # in versions before 0.2
    for scores, mark in ((now, b"\t"), (before, b",")):
        good = b"id,class,score,dice,iou,group\na,b,0.5,0.5,0.4,a\n"
        for content in (b"", b"id,class\na,b\n", b"id,class,score\na,b,good\n", b"\xff\xfe\x00", b'id,class,score\n"a'):
            scores.write_bytes(content.replace(b",", mark))
            status, said = command("ledger")
            assert status == 1 and f"{scores.name} is damaged" in said, (content, said)
        scores.write_bytes(good.replace(b",", mark))
        (record,) = Ledger(json.loads(path.read_text())["competition"]).read()
        rows = Ledger(record.competition).scores(record)
        assert rows is not None and rows.loc[0, ["id", "class", "score"]].tolist() == ["a", "b", 0.5]
        scores.unlink()
    assert command("ledger")[0] == 0


def test_a_host_that_is_away_leaves_the_ledger(host, command, csv, monkeypatch):
    assert command("upload", str(csv), "--yes")[0] == 0
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:9")
    status, said = command("ledger")
    assert status == 0 and "warning: the scores could not be updated" in said and csv.name in said
    assert command("ledger", "--refresh")[0] == 1


def test_an_error_of_the_host_is_shown(host, command, csv):
    assert command("upload", str(csv), "--yes")[0] == 0
    host.score(1000, "", status="ERROR", error="Submission contains null values")
    assert "error: Submission contains null values" in command("ledger")[1]


def test_an_empty_ledger_and_a_damaged_one(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = command("ledger")
    assert status == 1 and "no submissions yet" in said
    folder = Path("submissions/x/ledger")
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{")
    status, said = command("ledger")
    assert status == 1 and "a.json is damaged: " in said
