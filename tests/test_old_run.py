"""Runs, checkpoints, prepared cases and a bundle of an older version, in tests/data/old_run, still work."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from competition.cli.main import main
from competition.errors import MaskfoldError
from competition.runs.find import find_run
from tests.conftest import add_mlflow_database

OLD = Path(__file__).parent / "data" / "old_run"
HASH, STOPPED_HASH = "1afb32656213", "66e74ec0cf58"


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old project, in another folder than the one that it was made in; the working folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("data", "mlruns", "competition.yaml", "unet.yaml", "stopped.yaml"):
        copy = shutil.copytree if (OLD / name).is_dir() else shutil.copy
        copy(OLD / name, tmp_path / name)
    add_mlflow_database(tmp_path, empty_database)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def maskfold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], warm_folds: None
) -> Iterator[Callable[..., str]]:
    """`maskfold("cv", "unet.yaml")`: the command in this process; returns what it printed."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["maskfold", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert not ended.value.code, printed.out + printed.err
        return printed.out

    yield run
    signal.signal(signal.SIGTERM, before)


def table_rows(printed: str) -> list[list[str]]:
    """Return the cells of the printed tables, without their frames and column widths."""
    return [[cell.strip() for cell in line.split("│")] for line in printed.splitlines() if line.startswith("│")]


def test_a_finished_run_keeps_its_hash_and_prints_the_same_table(project, maskfold):
    before = read_tree(project / "mlruns" / "prepared")
    weights = {path: path.read_bytes() for path in (project / "mlruns" / "runs").rglob("*.safetensors")}
    printed = maskfold("cv", "unet.yaml")
    assert f"shapes-unet/{HASH}" in printed and "fold_0 |" not in printed
    expected = table_rows((OLD / "expected" / "cv.txt").read_text(encoding="utf-8"))
    # Intervals of fewer than 50 cases are wider since 0.2.0; all else is the same.
    assert len(expected) == 4 and table_rows(printed)[:3] == expected[:3]
    assert table_rows(printed)[3][1:5] == ["95 %", "0.562–0.940", "0.553–0.938", "0.568–0.958"]
    assert [path.name for path in (project / "mlruns" / "runs" / "shapes-unet").iterdir()] == [HASH]
    run = f"mlruns/runs/shapes-unet/{HASH}"
    assert (project / run / "scores.csv").read_text() == (OLD / run / "scores.csv").read_text()
    assert read_tree(project / "mlruns" / "prepared") == before  # the same keys: nothing is prepared again
    assert {path: path.read_bytes() for path in weights} == weights


def test_find_knows_the_old_run_by_yaml_hash_and_folder(project):
    notes: list[str] = []
    for name in ("unet.yaml", HASH, HASH[:5], f"mlruns/runs/shapes-unet/{HASH}"):
        run = find_run(name, say=notes.append)
        assert run.folder.name == HASH
        assert run.exp.model.target == "competition.model.unet.UNet"  # as it was written
    assert notes == []  # the YAML does not differ from the run
    with pytest.raises(MaskfoldError, match="fold_0 is at epoch 2 of 4"):
        find_run("stopped.yaml", ["folds.run=[0]"])


def test_submit_and_predict_write_the_same_bytes(project, maskfold):
    maskfold("submit", "unet.yaml", "-o", "submission.csv")
    assert (project / "submission.csv").read_bytes() == (OLD / "expected" / "submission.csv").read_bytes()
    new, old = (
        json.loads((folder / "submission.json").read_text(encoding="utf-8")) for folder in (project, OLD / "expected")
    )
    assert (new["runs"], new["sha256"]) == (old["runs"], old["sha256"])
    ends = ("low", "high")  # of the prediction interval, which is wider now for so few cases
    assert {key: value for key, value in new["expected"].items() if key not in ends} == {
        key: value for key, value in old["expected"].items() if key not in ends
    }
    assert new["expected"]["low"] < old["expected"]["low"] < old["expected"]["high"] < new["expected"]["high"]
    maskfold("predict", "unet.yaml", "--images", "data/test", "-o", "predictions", "--pictures", "0")
    found = read_tree(project / "predictions")
    expected = read_tree(OLD / "expected" / "predictions")
    assert len(expected) == 3 and {name: found[name] for name in expected} == expected


def test_a_page_of_the_old_run_is_written(project, maskfold):
    maskfold("report", "unet.yaml", "-o", "page.html")
    page = (project / "page.html").read_text(encoding="utf-8")
    assert HASH in page and "0.8977" in page


def test_a_fold_of_another_torch_is_remarked_on(project, maskfold):
    path = project / "mlruns" / "runs" / "shapes-unet" / HASH / "fold_1" / "result.json"
    result = json.loads(path.read_text())
    assert "different" not in maskfold("cv", "unet.yaml")
    path.write_text(json.dumps({**result, "torch": "1.0"}))
    remark = f"the folds were trained with different versions of torch: {result['torch']} (fold 0), 1.0 (fold 1)"
    assert f"note: {remark}" in maskfold("cv", "unet.yaml")
    maskfold("report", "unet.yaml", "-o", "page.html")
    assert f"Note: {remark}." in (project / "page.html").read_text(encoding="utf-8")


def test_a_stopped_run_resumes_from_its_checkpoint(project, maskfold):
    fold = project / "mlruns" / "runs" / "shapes-stopped" / STOPPED_HASH / "fold_0"
    log, before = (fold / "log.txt").read_text(), (fold / "metrics.jsonl").read_text()
    prepared = read_tree(project / "mlruns" / "prepared")
    printed = maskfold("cv", "stopped.yaml", "folds.run=[0]")
    assert [path.name for path in fold.parents[1].iterdir()] == [STOPPED_HASH]
    assert json.loads((fold.parent / "contents.json").read_text())["names"]["1"] == STOPPED_HASH
    more = (fold / "log.txt").read_text().removeprefix(log)
    assert "epoch 3 " in more and "epoch 4 " in more and "epoch 1 " not in more and "epoch 2 " not in more
    assert (fold / "metrics.jsonl").read_text().startswith(before)
    assert json.loads((fold / "result.json").read_text())["steps"] == 160
    # The values of the same run without a stop; another CPU may round differently.
    lines = [
        json.loads(line)["metrics"] for line in (OLD / "expected" / "stopped_metrics.jsonl").read_text().splitlines()
    ]
    found = [json.loads(line)["metrics"] for line in (fold / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 5  # the last has the scores of all epochs' best weights
    for new, old in zip(found, lines, strict=True):
        for key in old.keys() & {"train/loss", "lr", "val/score"}:
            assert new[key] == pytest.approx(old[key], rel=1e-3), key
    assert read_tree(project / "mlruns" / "prepared") == prepared
    assert "95 %" in printed


def test_the_old_bundle_writes_the_same_submission(tmp_path):
    with tarfile.open(OLD / "bundle.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    command = [sys.executable, "-I", "bundle/run.py", "--input", str(OLD / "data"), "--output", "submission.csv"]
    done = subprocess.run([*command, "--devices", "cpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "submission.csv").read_bytes() == (OLD / "expected" / "submission.csv").read_bytes()
