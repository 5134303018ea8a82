"""`maskfold study`, `report` and `register` on studies, from a working folder with relative paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from competition.cli.train import register_command, report_command, study_command
from competition.errors import MaskfoldError
from competition.runs.find import find_run
from competition.study.promote import promote_best_trials
from competition.study.storage import open_storage
from competition.study.study import run_study
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
    study_command(file, list(overrides), trials, storage, promote, ())


def only_study() -> Path:
    [folder] = Path("mlruns/studies").iterdir()
    return folder


def test_the_page_holds_the_figures_and_is_written_again_by_folder_and_by_name(file, capsys):
    run(file)
    folder = only_study()
    figures = sorted(path.name for path in folder.glob("*.png"))
    assert {"history.png", "slice.png"} <= set(figures)
    assert f"HTML page: {folder}/report.html" in capsys.readouterr().out
    first = (folder / "report.html").read_text()
    page = Page(folder / "report.html")
    assert page.tags.count("img") == len(figures) and "is missing" not in page.text
    (folder / "report.html").unlink()
    report_command([str(folder)], None, ())
    assert (folder / "report.html").read_text() == first
    report_command([folder.name], Path("pages/mine.html"), ())
    assert Page(Path("pages/mine.html")).tags.count("img") == len(figures)
    with pytest.raises(MaskfoldError, match="key=value") as refusal:
        report_command([folder.name, "training.epochs=3"], None, ())
    assert refusal.value.status == 2


def test_lists_of_words_are_shown_in_the_tables(place, file, capsys):
    """The tables print `[low, low]` as it is, although rich would read it as markup and print nothing."""
    space = "optimizer.args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}"
    assert space in YAML
    text = YAML.replace(space, "optimizer.args.lr: {choices: {'[low, low]': 1.0e-3, '[high, low]': 3.0e-3}}")
    write_experiment(place, text)
    run(file, trials=2)
    said = capsys.readouterr().out
    assert "[low, low]" in said and "[high, low]" in said


@pytest.mark.parametrize("best", [False, True])
def test_a_study_is_no_model_and_the_best_trials_run_is_named(file, best):
    run(file)
    record = json.loads((only_study() / "trials.json").read_text())
    top = max(record["trials"], key=lambda trial: trial["values"][0])
    for word in (str(only_study()), only_study().name):
        with pytest.raises(MaskfoldError) as refusal:
            register_command([word], best, ())
        assert refusal.value.status == 2 and "is a study" in str(refusal.value)
        assert f"{top['run']}, the run of the best trial {top['number']}." in str(refusal.value)
    assert find_run(top["run"]).folder == Path(top["run"])


def test_an_experiment_that_has_only_a_study_says_so(file):
    with pytest.raises(MaskfoldError) as refusal:
        report_command([str(file)], None, ())
    assert "study" not in str(refusal.value)
    run(file)
    with pytest.raises(MaskfoldError) as refusal:
        report_command([str(file)], None, ())
    assert f"`maskfold report {only_study()}`" in str(refusal.value)


def test_a_run_that_is_not_finished_says_how_far_it_is(file):
    from competition.config.loading import load_experiment
    from competition.training.cross_validate import make_jobs, open_run
    from competition.training.executors import make_executor

    exp = load_experiment(file)
    begun = open_run(exp, "demo2d-unet2d")
    begun.write()
    with pytest.raises(MaskfoldError) as refusal:
        find_run(str(file))
    assert f"In the latest run, {begun.folder.name}, 0 of 2 folds are finished." in str(refusal.value)
    make_executor(exp).run(make_jobs(begun)[:1], lambda line: None)
    (begun.folder / "fold_1").mkdir()
    (begun.folder / "fold_1" / "metrics.jsonl").write_text(json.dumps({"epoch": 7, "metrics": {}}) + '\n{"epo')
    with pytest.raises(MaskfoldError) as refusal:
        find_run(str(file))
    assert f"In the latest run, {begun.folder.name}, 1 of 2 folds is finished, fold_1 is at epoch 7 of 100." in str(
        refusal.value
    )
    assert f"or give the run by its hash, {begun.folder.name}" in str(refusal.value)
    (begun.folder / "fold_1" / "experiment.yaml").write_text("seed: 1\n")
    with pytest.raises(MaskfoldError, match=f"Give the folder of the run, .*{begun.folder.name}") as refusal:
        find_run(str(begun.folder / "fold_1"))
    assert refusal.value.status == 2
    (begun.folder / "fold_0" / "result.json").unlink()
    with pytest.raises(MaskfoldError, match="has no finished fold: 0 of 2 folds are finished"):
        find_run(begun.folder.name)


@pytest.mark.parametrize("numbers", [{"trials": 0}, {"trials": -3}, {"promote": 0}, {"promote": -1}])
def test_numbers_below_one_are_refused(file, numbers):
    with pytest.raises(MaskfoldError, match=f"--{next(iter(numbers))}: found") as refusal:
        run(file, **numbers)
    assert refusal.value.status == 2 and not Path("mlruns/optuna.db").exists()


def test_gains_on_folds_that_the_study_chose_by_are_called_so(file, capsys):
    run(file, trials=4)
    assert "Next: " not in capsys.readouterr().out  # nothing is left to judge by
    run(file, promote=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "gain over trial 0 on the study's folds" in said and "unseen folds" not in said
    assert "warning: these gains are measured on the folds" in said


def test_gains_on_unseen_folds_and_the_command_that_gives_them(file, capsys):
    run(file, "folds.run=[0]", trials=4)
    assert f"Next: maskfold study {file} 'folds.run=[0]' --promote 3" in capsys.readouterr().out
    run(file, "folds.run=[0]", promote=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "unseen folds" in said and "gain over trial 0 on unseen folds" in said and "warning" not in said
    assert len(list(Path("mlruns/studies").iterdir())) == 1


def test_a_study_of_all_folds_by_their_numbers_has_no_unseen_ones(quick):
    search = quick(YAML.replace("folds: {k: 2}", "folds: {k: 2, run: [1, 0]}"))
    run_study(search, 4, lambda line: None)
    found = promote_best_trials(search, 1, lambda line: None)
    assert [one.unseen_score for one in found] == [None] * len(found)
    assert found[1].gain is not None and found[1].gain.value == pytest.approx(found[1].score - found[0].score)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://a:secret@host/db", "mysql"),
        ("foo", "--storage: found foo"),
        ("postgresql://host:port/db", "postgresql://host:port/db"),
        ("sqlite://", "expected a file"),
        ("postgresql+psycopg2://host/db", "postgresql+psycopg2"),
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
    with pytest.raises(MaskfoldError, match=r"mine\.db cannot be opened") as refusal:
        open_storage("sqlite:///nowhere/at/all/mine.db")
    assert refusal.value.status == 1
