"""Commands that write into a run's or a study's folder take its lock first, or leave the folder as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from competition.cli.train import register_command
from competition.context import Context
from competition.ensembling.expected import estimate_score
from competition.errors import MaskfoldError
from competition.postprocessing.tuning import TUNING_FILE, load_tuning
from competition.records import write_json
from competition.report.run import write_report
from competition.report.study import write_study_page
from competition.runs.blend import Ensemble
from competition.runs.lock import ensure_lock, is_free, lock_if_free, run_lock
from competition.runs.run import Run
from tests.conftest import ROOT

HOLD = (
    "import sys, time; from pathlib import Path; from competition.runs.lock import run_lock\n"
    "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(300)"
)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], int]]:
    """`hold(folder)`: another process takes the folder's lock; returns its id."""
    monkeypatch.setattr("competition.report.html.LOCK_PATIENCE", 0.0)
    monkeypatch.setattr("competition.cli.train.LOCK_PATIENCE", 0.0)
    processes = []

    def start(folder: Path) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process.pid

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_search_is_remembered_only_under_the_lock(
    finished: Callable[..., Run], tiny: Callable[..., Any], hold: Callable[[Path], int]
) -> None:
    run, said = finished(tiny(2, "postprocess.tune=true")), list[str]()
    before = content(run.folder)
    hold(run.folder)
    first = estimate_score(Ensemble((run,), (1.0,)), 20, Context(say=said.append))
    assert content(run.folder) == before
    assert said[-1].startswith(
        f"note: the result of post-processing is not stored, because another process works in {run.folder}, or "
    )
    own = run.folder.rename(run.folder.with_name("0" * 12))  # a folder that nobody holds
    (own / "lock").unlink()
    run = Run(own, run.exp, run.cases, run.folds, run.name)
    with run_lock(own):  # as `cv` does, which tunes while it holds the lock
        assert estimate_score(Ensemble((run,), (1.0,)), 20).score == first.score
    assert load_tuning(run) is not None and is_free(own)


def test_a_search_on_folds_that_changed_meanwhile_is_not_remembered_for_the_new_ones(
    finished: Callable[..., Run], tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from competition.postprocessing.tuning import tune_postprocessing

    run = finished(tiny(2, "postprocess.tune=true"))
    result = run.folder / "fold_0" / "result.json"

    def search(*arguments: Any) -> Any:
        found = tune_postprocessing(*arguments)
        result.write_text(result.read_text().replace('"steps": 1', '"steps": 2'))  # `cv` trained the fold again
        return found

    monkeypatch.setattr("competition.ensembling.expected.tune_postprocessing", search)
    estimate_score(Ensemble((run,), (1.0,)), 20)
    assert (run.folder / TUNING_FILE).exists() and load_tuning(run) is None


def test_a_report_is_not_written_into_a_folder_that_another_process_has(
    finished: Callable[..., Run], tiny: Callable[..., Any], hold: Callable[[Path], int], tmp_path: Path
) -> None:
    run = finished(tiny(2))
    before, process = content(run.folder), hold(run.folder)
    with pytest.raises(MaskfoldError, match=f"is in use by process {process} on") as refusal:
        write_report(run, run.folder / "report.html")
    assert "-o report.html" in refusal.value.hint
    assert content(run.folder) == before and not (run.folder / "report").exists()
    assert write_report(run, tmp_path / "page.html").exists()
    assert content(run.folder) == before


def test_a_model_is_not_registered_while_another_process_has_the_run(
    finished: Callable[..., Run], tiny: Callable[..., Any], hold: Callable[[Path], int]
) -> None:
    run = finished(tiny(2))
    before, process = content(Path("mlruns")), hold(run.folder)
    with pytest.raises(MaskfoldError, match=f"is in use by process {process} on"):
        register_command([str(run.folder)], False, ())
    assert content(Path("mlruns")) == before


def test_the_page_of_a_study_that_another_process_has(tmp_path: Path, hold: Callable[[Path], int]) -> None:
    study = tmp_path / "study"
    study.mkdir()
    trial = {"number": 0, "state": "complete", "values": [0.5], "minutes": 1.0, "params": {}, "own": True}
    write_json(study / "trials.json", {"objectives": ["score"], "best": [0], "trials": [trial]})
    (study / "experiment.yaml").write_text("{}")
    before, process = content(study), hold(study)
    with pytest.raises(MaskfoldError, match=f"is in use by process {process} on"):
        write_study_page(study, study / "report.html")
    assert content(study) == before
    assert write_study_page(study, tmp_path / "page.html").exists()


def test_a_process_takes_a_lock_that_it_holds_not_twice(tmp_path: Path) -> None:
    with ensure_lock(tmp_path), ensure_lock(tmp_path / "." / ""), lock_if_free(tmp_path) as is_held:
        assert is_held and not is_free(tmp_path)
    assert is_free(tmp_path)
    with run_lock(tmp_path):
        pass


def test_a_lock_is_not_taken_from_another_process(tmp_path: Path, hold: Callable[[Path], int]) -> None:
    hold(tmp_path)
    with lock_if_free(tmp_path) as is_held:
        assert not is_held
    with pytest.raises(ValueError, match="of the block"), lock_if_free(tmp_path):
        raise ValueError("of the block")


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        child = os.fork()
        if child == 0:
            with lock_if_free(tmp_path) as is_held:
                os._exit(int(is_held))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
