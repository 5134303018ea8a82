"""`maskfold study`, `report` and `register` on studies, as they are typed: from a working folder, with relative paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from competition.cli.register import register_run
from competition.cli.report import make_report
from competition.cli.study import study
from competition.config import MaskfoldError
from competition.study.promote import promote
from competition.study.search import run_search
from competition.study.storage import open_storage
from competition.training.find import find_run
from tests.report.conftest import Page
from tests.study.quick import YAML, install, write_experiment


@pytest.fixture
def file(place, monkeypatch) -> Path:
    """An experiment, by its relative path; trials take no time."""
    install(monkeypatch.setattr)
    return write_experiment(place).relative_to(Path.cwd())


def run(
    file: Path, *overrides: str, trials: int | None = 3, promote: int | None = None, storage: str | None = None
) -> None:
    study(file, list(overrides), trials, storage, promote, ())


def only_study() -> Path:
    [folder] = Path("mlruns/studies").iterdir()
    return folder


def test_the_page_holds_the_figures_and_is_written_again_by_folder_and_by_name(file, capsys):
    run(file)
    folder = only_study()
    figures = sorted(path.name for path in folder.glob("*.png"))
    assert {"history.png", "slice.png"} <= set(figures)
    assert f"Page: {folder}/report.html" in capsys.readouterr().out
    first = (folder / "report.html").read_text()
    page = Page(folder / "report.html")
    assert page.tags.count("img") == len(figures) and "is missing" not in page.text
    (folder / "report.html").unlink()
    make_report([str(folder)], None, ())
    assert (folder / "report.html").read_text() == first
    make_report([folder.name], Path("pages/mine.html"), ())
    assert Page(Path("pages/mine.html")).tags.count("img") == len(figures)
    with pytest.raises(MaskfoldError, match="takes no key=value") as refusal:
        make_report([folder.name, "training.epochs=3"], None, ())
    assert refusal.value.status == 2


@pytest.mark.parametrize("best", [False, True])
def test_a_study_is_no_model_and_the_best_trials_run_is_named(file, best):
    run(file)
    record = json.loads((only_study() / "trials.json").read_text())
    top = max(record["trials"], key=lambda trial: trial["values"][0])
    for word in (str(only_study()), only_study().name):
        with pytest.raises(MaskfoldError) as refusal:
            register_run([word], best, ())
        assert refusal.value.status == 2 and "is a study, not a run" in str(refusal.value)
        assert f"that of the best trial {top['number']}: {top['run']}." in str(refusal.value)
    assert find_run(top["run"]).folder == Path(top["run"])


def test_an_experiment_that_has_only_a_study_says_so(file):
    with pytest.raises(MaskfoldError) as refusal:
        make_report([str(file)], None, ())
    assert "study" not in str(refusal.value)
    run(file)
    with pytest.raises(MaskfoldError) as refusal:
        make_report([str(file)], None, ())
    assert f"the page of its study is made by `maskfold report {only_study()}`" in str(refusal.value)


def test_a_run_that_is_not_finished_says_how_far_it_is(file):
    from competition.config import load_experiment
    from competition.training.cv import make_jobs
    from competition.training.executors import make_executor
    from competition.training.runs import open_run

    exp = load_experiment(file)
    begun = open_run(exp, "demo2d-unet2d")
    begun.write()
    with pytest.raises(MaskfoldError) as refusal:
        find_run(str(file))
    assert f"of {begun.folder.name} 0 of 2 folds are finished." in str(refusal.value)
    make_executor(exp).run(make_jobs(begun)[:1], lambda line: None)
    (begun.folder / "fold_1").mkdir()
    (begun.folder / "fold_1" / "metrics.jsonl").write_text(json.dumps({"epoch": 7, "metrics": {}}) + '\n{"epo')
    with pytest.raises(MaskfoldError) as refusal:
        find_run(str(file))
    assert f"of {begun.folder.name} 1 of 2 folds is finished, fold_1 has done epoch 7 of 100." in str(refusal.value)
    assert f"or name it by its hash, {begun.folder.name}" in str(refusal.value)
    (begun.folder / "fold_1" / "experiment.yaml").write_text("seed: 1\n")
    with pytest.raises(MaskfoldError, match=f"Name the run's folder, .*{begun.folder.name}") as refusal:
        find_run(str(begun.folder / "fold_1"))
    assert refusal.value.status == 2
    (begun.folder / "fold_0" / "result.json").unlink()
    with pytest.raises(MaskfoldError, match="has no finished fold: 0 of 2 folds are finished"):
        find_run(begun.folder.name)


@pytest.mark.parametrize("numbers", [{"trials": 0}, {"trials": -3}, {"promote": 0}, {"promote": -1}])
def test_numbers_below_one_are_refused(file, numbers):
    with pytest.raises(MaskfoldError, match=f"--{next(iter(numbers))} is") as refusal:
        run(file, **numbers)
    assert refusal.value.status == 2 and not Path("mlruns/optuna.db").exists()


def test_gains_on_folds_that_the_study_chose_by_are_called_so(file, capsys):
    run(file, trials=4)
    assert "Next: " not in capsys.readouterr().out  # nothing is left to judge by
    run(file, promote=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "gain over trial 0 on the study's own folds" in said and "unseen folds" not in said
    assert "warning: the study chose by these very folds" in said


def test_gains_on_unseen_folds_and_the_command_that_gives_them(file, capsys):
    run(file, "folds.run=[0]", trials=4)
    assert f"Next: maskfold study {file} 'folds.run=[0]' --promote 3" in capsys.readouterr().out
    run(file, "folds.run=[0]", promote=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "unseen folds" in said and "gain there over trial 0" in said and "warning" not in said
    assert len(list(Path("mlruns/studies").iterdir())) == 1


def test_a_study_of_all_folds_by_their_numbers_has_no_unseen_ones(quick):
    search = quick(YAML.replace("folds: {k: 2}", "folds: {k: 2, run: [1, 0]}"))
    run_search(search, 4, lambda line: None)
    found = promote(search, 1, lambda line: None)
    assert [one.unseen for one in found] == [None] * len(found)
    assert found[1].gain is not None and found[1].gain.value == pytest.approx(found[1].score - found[0].score)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://a:secret@host/db", "is of mysql, which studies cannot use"),
        ("foo", "--storage foo is no database's URL"),
        ("postgresql://host:port/db", "is no database's URL"),
        ("sqlite://", "keeps nothing on disk"),
        ("postgresql+psycopg2://host/db", "is of postgresql+psycopg2"),
    ],
)
def test_a_storage_that_is_none_is_a_wrong_word(url, words):
    with pytest.raises(MaskfoldError) as refusal:
        open_storage(url)
    said = str(refusal.value)
    assert words in said and refusal.value.status == 2 and "secret" not in said
    assert "Install" not in said and "Start the database" not in said and "postgresql://user@host/database" in said


def test_a_sqlite_file_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_storage(f"sqlite:///{tmp_path}/mine.db").engine.url.database == f"{tmp_path}/mine.db"
    with pytest.raises(MaskfoldError, match="Make its folder") as refusal:
        open_storage("sqlite:///nowhere/at/all/mine.db")
    assert refusal.value.status == 1
