"""What `maskfold clean` finds, and each reason for which a run stays."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from competition.cleaning import candidates
from competition.cleaning.candidates import Candidate, CleaningPlan, find_candidates, parse_age
from competition.cleaning.deletion import delete, freed_bytes
from competition.cleaning.mlflow_records import MlflowRecords
from competition.data.cache import cache_key
from competition.errors import MaskfoldError
from competition.runs.lock import run_lock
from competition.runs.run import load_run
from tests.cleaning.conftest import DAY, MONTH, Make, age

OLD, OTHER = "0123456789ab", "ba9876543210"


def proposed(plan: CleaningPlan) -> list[Path]:
    return [candidate.paths[0] for candidate in plan.candidates]


def find(keep_best: int | None = None) -> CleaningPlan:
    return find_candidates(Path(), MONTH, keep_best)


# Runs


def test_an_old_unfinished_run_may_go_and_a_young_or_finished_one_stays(make_run: Make) -> None:
    old = make_run(OLD, finished=1)
    make_run("1" * 12, finished=1, days=29)
    make_run("2" * 12, finished=2)
    touched = make_run("3" * 12, finished=0)
    age(touched / "fold_1" / "last.pt", 2)  # e.g. it was resumed two days ago
    empty = Path("mlruns/runs/demo2d-tiny") / ("4" * 12)  # its command ended before it wrote the run
    empty.mkdir()
    (empty / "lock").touch()
    age(empty, 60)
    notes = Path("mlruns/runs/demo2d-tiny/my notes")
    notes.mkdir()
    (notes / "a.txt").touch()
    age(notes, 60)
    plan = find()
    assert proposed(plan) == [old, empty] and plan.kept == []
    assert plan.candidates[0].reason == "only 1 of its 2 folds is finished"
    assert delete(plan.candidates[0]) and not old.exists() and (old.parent / ("2" * 12)).exists()
    assert not any(path.name.endswith(".tmp") for path in old.parent.iterdir())


def test_finished_folds_stay_after_an_unfinished_training_on_all_cases(make_run: Make) -> None:
    run = make_run(OLD, finished=2)
    yaml = run / "experiment.yaml"
    text = yaml.read_text()
    assert "file: null, run: null" in text
    yaml.write_text(text.replace("file: null, run: null", "file: null, run: full"))
    age(run, 60)
    assert proposed(find()) == []
    (run / "fold_1" / "result.json").unlink()
    age(run, 60)
    assert proposed(find()) == [run]


def in_submission(run: Path, _make: Make) -> None:
    path = Path("submissions/demo2d/tiny.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"runs": [{"run": f"/elsewhere/{run.name}", "experiment": "x", "hash": run.name}]}))


def in_ledger(run: Path, _make: Make) -> None:
    path = Path("submissions/demo2d/ledger/20260105-101112-883a6f6e.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"version": 1, "runs": [{"hash": run.name, "weight": 1.0}]}))


def in_study(run: Path, make: Make) -> None:
    other = make(OTHER, finished=0)  # a trial that is not among the best
    path = Path("mlruns/studies/demo2d-tiny-12345678/trials.json")
    path.parent.mkdir(parents=True)
    trials = [{"number": 3, "run": str(run)}, {"number": 4, "run": str(other)}, {"number": 5, "run": None}]
    path.write_text(json.dumps({"best": [3], "trials": trials}))


def in_init_from(run: Path, make: Make) -> None:
    make(OTHER, finished=2, init_from=str(run.resolve()))


def in_pseudo_from(run: Path, make: Make) -> None:
    make(OTHER, finished=2, pseudo=f"{{from: [{run}], confidence: {{pixel: 0.9}}}}")


def in_weights_of_another_run(run: Path, make: Make) -> None:
    other = make(OTHER, finished=2)
    (other / "contents.json").write_text(json.dumps({"sources": {f"{run}/fold_0/weights.safetensors": "00"}}))
    age(other, 60)


def in_users_yaml(run: Path, _make: Make) -> None:
    write_yaml(f"pseudo: {{from: {run.name[:6]}}}\n")


def in_users_yaml_by_experiment(_run: Path, _make: Make) -> None:
    write_yaml("init_from: experiments/demo2d/tiny.yaml\n")


def in_users_yaml_as_first_stage(_run: Path, _make: Make) -> None:
    write_yaml("first_stage: experiments/demo2d/tiny.yaml\n")


def in_broken_yaml(run: Path, _make: Make) -> None:
    write_yaml(f"pseudo: {{from: mlruns/runs/demo2d-tiny/{run.name}\n")


def write_yaml(text: str) -> None:
    path = Path("experiments/demo2d/next.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("name_it", "reason"),
    [
        (in_submission, "submission"),
        (in_ledger, "ledger"),
        (in_study, "it is the run of trial 3, a best trial of the study demo2d-tiny-12345678"),
        (in_init_from, f"the run demo2d-tiny/{OTHER} names it"),
        (in_pseudo_from, f"the run demo2d-tiny/{OTHER} names it"),
        (in_weights_of_another_run, f"the run demo2d-tiny/{OTHER} names it"),
        (in_users_yaml, "next.yaml names it"),
        (in_users_yaml_by_experiment, "next.yaml names it"),
        (in_users_yaml_as_first_stage, "next.yaml names it"),
        (in_broken_yaml, "next.yaml names it"),
    ],
)
def test_a_run_that_something_names_stays(make_run: Make, name_it: Callable[[Path, Make], None], reason: str) -> None:
    run = make_run(OLD)
    assert proposed(find()) == [run]
    name_it(run, make_run)
    plan = find()
    assert run not in proposed(plan)
    [(path, why)] = plan.kept
    assert path == run and reason in why
    if name_it is in_study:
        assert proposed(plan) == [run.parent / OTHER]


@pytest.mark.parametrize("folder", ["", "fold_1"])
def test_a_run_in_which_a_process_works_stays(make_run: Make, folder: str) -> None:
    run = make_run(OLD)
    [candidate] = find().candidates
    code = (
        "import sys; from pathlib import Path; from competition.runs.lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run / folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        age(run, 60)
        plan = find()
        assert plan.candidates == [] and plan.kept == [(run, "a process works in this run")]
        assert not delete(candidate) and (run / "experiment.yaml").exists()  # it began after the list was made
        process.communicate("")
    age(run, 60)
    [candidate] = find().candidates
    assert delete(candidate) and not run.exists()


def test_a_submission_that_cannot_be_read_stops_the_command(make_run: Make) -> None:
    make_run(OLD)
    path = Path("submissions/demo2d/tiny.json")
    path.parent.mkdir(parents=True)
    path.write_text('{"runs": [')
    with pytest.raises(MaskfoldError, match=r"tiny\.json cannot be read"):
        find()


def test_runs_stay_while_mlflow_cannot_be_read(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(OLD)

    def fail(_root: Path) -> MlflowRecords:
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(candidates, "read_mlflow", fail)
    plan = find()
    assert plan.candidates == [] and "nobody listens" in plan.notes[0]


def test_a_run_that_cannot_be_read_stays_with_a_note(make_run: Make) -> None:
    run = make_run(OLD)
    (run / "experiment.yaml").write_text("model: [\n")
    age(run, 60)
    plan = find()
    assert plan.candidates == [] and str(run) in plan.notes[0]


def test_only_with_keep_best_may_a_finished_run_go_and_never_one_of_the_best(make_run: Make) -> None:
    scores = {"a" * 12: 0.7, "b" * 12: 0.9, "c" * 12: 0.8, "d" * 12: 0.6, "e" * 12: None}
    runs = {name: make_run(name, finished=2, score=score) for name, score in scores.items()}
    young = make_run("f" * 12, finished=2, score=0.1, days=3)
    other = make_run("1" * 12, finished=2, score=0.2, experiment="other")
    text = (other / "experiment.yaml").read_text()
    assert "\n  name: demo2d\n" in text
    (other / "experiment.yaml").write_text(text.replace("\n  name: demo2d\n", "\n  name: another\n"))
    age(other, 60)
    assert find().candidates == []
    plan = find(keep_best=2)
    assert proposed(plan) == [runs["a" * 12], runs["d" * 12]]
    assert [candidate.reason.split(" runs")[0].partition("by score, ")[2] for candidate in plan.candidates] == [
        "rank 3 among the 5",
        "rank 4 among the 5",
    ]
    assert young not in proposed(find(keep_best=0)) and runs["e" * 12] not in proposed(find(keep_best=0))


# Prepared cases


def prepare(name: str, case: str = "case", days: float = 60) -> Path:
    folder = Path("mlruns/prepared") / name
    folder.mkdir(parents=True)
    (folder / "image.npy").write_bytes(bytes(100))
    (folder / "case.json").write_text(json.dumps({"id": case}))
    age(folder, days)
    return folder


def test_prepared_cases_stay_as_long_as_a_run_needs_them(make_run: Make) -> None:
    run = load_run(make_run(OLD, finished=2), None, check_edits=False)
    needed = [prepare(cache_key(row, run.exp)) for row in run.rows().values()]
    unneeded = prepare("0" * 32)
    prepare("1" * 32, days=3)
    Path("mlruns/prepared/notes").mkdir()
    [candidate] = find().candidates
    assert candidate.paths == (unneeded,) and candidate.kind == "1 prepared case"
    run.folder.rename("elsewhere")
    [candidate] = find().candidates
    assert set(candidate.paths) == {unneeded, *needed}
    assert delete(candidate) and not any(path.exists() for path in candidate.paths)


def test_prepared_cases_of_a_run_that_goes_may_go_with_it(make_run: Make) -> None:
    run = load_run(make_run(OLD, finished=0), None, check_edits=False)
    folders = {prepare(cache_key(row, run.exp)) for row in run.rows().values()}
    first, second = find().candidates
    assert first.paths == (run.folder,) and set(second.paths) == folders


def test_prepared_cases_stay_if_a_run_cannot_be_read_or_learnt_from_images_of_their_id(make_run: Make) -> None:
    run = make_run(OLD, finished=2)
    taught, other = prepare("0" * 32, "taught"), prepare("1" * 32, "other")
    table = (run / "cases.csv").read_text().splitlines()
    row = table[1].split(",")
    row[table[0].split(",").index("id")] = "taught"
    table[1] = ",".join(row)
    images = [line.replace(load_run(run, None, check_edits=False).cases["id"][0], "taught") for line in table[:2]]
    (run / "besides_pseudo.csv").write_text("\n".join(images) + "\n")
    age(run, 60)
    [candidate] = find().candidates
    assert candidate.paths == (other,) and taught.exists()
    (run / "experiment.yaml").write_text("model: [\n")
    age(run, 60)
    plan = find()
    assert plan.candidates == [] and any("prepared cases are kept" in note for note in plan.notes)


# Temporary files, sizes and ages


def test_temporary_files_of_dead_processes_may_go_and_those_of_living_ones_stay(project: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    host = socket.gethostname()
    dead = [
        Path(f"mlruns/runs/x/y/fold_0/.last.pt~{host}~{process.pid}~0123abcd.tmp"),
        Path(f"submissions/demo2d/.a.csv~{host}~{process.pid}~0123abcd.tmp"),
    ]
    living = Path(f"mlruns/runs/x/y/fold_0/.last.pt~{host}~{os.getpid()}~0123abcd.tmp")
    folder = Path(f"mlruns/prepared/.{'0' * 32}~{host}~{process.pid}~0123abcd.tmp")
    dead.append(Path("system") / f".maskfold-model~{host}~{process.pid}~0123abcd.tmp")
    others = Path("system") / f".another-program~{host}~{process.pid}~0123abcd.tmp"
    for path in (*dead, living, others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10))
    folder.mkdir(parents=True)
    (folder / "image.npy").write_bytes(bytes(10))
    plan = find_candidates(Path(), 10 * DAY)
    assert {candidate.paths[0].absolute() for candidate in plan.candidates} == {
        path.absolute() for path in (*dead, folder)
    }
    assert all(delete(candidate) for candidate in plan.candidates)
    assert living.exists() and others.exists() and not folder.exists() and not any(path.exists() for path in dead)


def test_a_file_with_a_link_elsewhere_frees_nothing(project: Path) -> None:
    Path("run").mkdir()
    Path("run/weights").write_bytes(bytes(1000))
    Path("run/log").write_bytes(bytes(10))
    Path("artifacts").mkdir()
    os.link("run/weights", "artifacts/weights")
    assert freed_bytes([Path("run")]) == 10
    assert freed_bytes([Path("artifacts")]) == 0
    assert freed_bytes([Path("run"), Path("artifacts")]) == 1010


def test_a_lock_of_this_process_is_no_hindrance_to_itself(make_run: Make) -> None:
    run = make_run(OLD)
    candidate = Candidate("unfinished run", (run,), 0.0, "", is_run=True)
    with run_lock(run):
        assert delete(candidate)
    assert not run.exists()


def test_an_age_has_a_unit() -> None:
    assert (parse_age("12h"), parse_age("30d"), parse_age(" 2w")) == (12 * 3600, MONTH, 14 * DAY)
    for text in ("30", "d", "-1d", "1.5d", "30 d"):
        with pytest.raises(MaskfoldError, match="--older-than") as refusal:
            parse_age(text)
        assert refusal.value.status == 2
