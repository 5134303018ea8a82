"""From a folder to a prediction with commands alone: `init`, `cv`, then `submit` or `predict`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from competition.cli.main import main
from competition.inference.masks import to_masks
from competition.metrics.scoring import score_case
from competition.records import read_record
from competition.runs.oof import OofPredictions
from competition.runs.run import load_run
from competition.tables import read_csv
from tests.conftest import TINY, add_mlflow_database
from tests.host import write_png
from tests.planning.phantoms import MAKERS, TEST_IDS, two_opinions

pytestmark = pytest.mark.xdist_group("serial")  # folds are processes of their own

FAST = [
    "folds.k=2",
    "folds.run=[0]",
    "training.epochs=1",
    "training.steps_per_epoch=2",
    "training.batch_size=2",
    "training.precision=fp32",
    "postprocess.tune=false",
    "run.threads=1",
]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def maskfold(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    empty_database: Path,
    warm_folds: None,
) -> Command:
    """Run the command line in this process, in an empty working folder; return status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    add_mlflow_database(tmp_path, empty_database)
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskfold", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


@pytest.mark.parametrize(
    ("name", "dimensions", "submits"),
    [
        ("paired_names", 2, False),
        pytest.param("decathlon", 3, False, marks=pytest.mark.slow),
        pytest.param("rle_content", 2, True, marks=pytest.mark.slow),
        pytest.param("rle_profile", 2, True, marks=pytest.mark.slow),
    ],
)
def test_from_a_folder_to_a_prediction(name: str, dimensions: int, submits: bool, maskfold: Command) -> None:
    root = Path("data") / name
    root.mkdir(parents=True)
    MAKERS[name](root)
    status, said, errors = maskfold("init", root, "--no-measure")
    assert status == 0, errors
    experiment = f"experiments/{name}/experiment.yaml"
    assert f"Next: maskfold cv {experiment}" in said and "8 training cases, 2 test cases" in said
    words = [experiment, *FAST, *TINY[dimensions]]
    status, said, errors = maskfold("cv", *words)
    assert status == 0, errors
    if submits:
        assert "Next: maskfold submit" in said
        status, said, errors = maskfold("submit", *words, "-o", "out.csv")
        assert status == 0, errors
        ids = {text.removesuffix(".png") for text in read_csv(Path("out.csv"), {}).iloc[:, 0]}
        assert ids == ({f"{number + 90:064x}" for number in range(2)} if name == "rle_profile" else set(TEST_IDS))
    else:
        assert "Next: maskfold predict" in said
        images = root / ("test" if dimensions == 2 else "imagesTs")
        status, said, errors = maskfold("predict", *words, "--images", images, "-o", "masks", "--pictures", "0")
        assert status == 0, errors
        assert {path.name.partition(".")[0] for path in Path("masks").glob("scan*")} == set(TEST_IDS)


def numbered_squares(count: int) -> np.ndarray:
    """Return a mask (48, 48) uint16 of `count` squares of 6×6 pixels, which touch and are numbered from 1."""
    numbers = np.zeros((8, 8), np.uint16)
    numbers.flat[:count] = np.arange(1, count + 1)
    return np.kron(numbers, np.ones((6, 6), np.uint16))


def test_objects_that_touch_are_scored_by_their_numbers(maskfold: Command) -> None:
    root = Path("data/numbered")
    for number in range(8):
        mask = numbered_squares(9 + number)
        noise = np.random.default_rng(number).integers(0, 80, mask.shape)
        write_png(root / "images" / f"a{number}.png", (noise + 90 * (mask > 0)).astype(np.uint8))
        write_png(root / "masks" / f"a{number}.png", mask)
    status, said, errors = maskfold("init", root, "--no-measure")
    assert status == 0, errors
    written = yaml.safe_load(Path("experiments/numbered/competition.yaml").read_text())
    assert written["instances"] and written["train"]["object_numbers"] and "label_values" not in written
    write_png(root / "masks" / "a3.png", numbered_squares(40))  # a higher number than in the masks that `init` read
    metric = ["competition.metric.name=voi", "competition.metric.both_empty=0"]
    status, said, errors = maskfold("cv", "experiments/numbered/experiment.yaml", *FAST, *TINY[2], *metric)
    assert status == 0, errors
    (table,) = Path("mlruns/runs").glob("*/*/cases.csv")
    run = load_run(table.parent)
    scores = read_csv(run.folder / "fold_0" / "scores.csv", {}).set_index("id")["score"].astype(float)
    oof, comp = OofPredictions(run), run.exp.competition
    for case in scores.index:
        count = 40 if case == "a3" else 9 + int(case[1])
        mask = numbered_squares(count)
        truth = (mask > 0).astype(np.uint8)[None]
        predicted = to_masks(oof.read(case), comp)
        expected, merged = (
            score_case(predicted, truth, comp, true_instances=objects)[0]["score"]
            for objects in (mask.astype(np.int32), None)
        )
        assert scores[case] == pytest.approx(expected, abs=1e-6), case
        assert abs(expected - merged) > 0.1, (case, expected, merged)


def test_a_question_on_the_command_line(maskfold: Command) -> None:
    root = Path("data/two")
    root.mkdir(parents=True)
    two_opinions(root)
    status, _, errors = maskfold("init", root)
    assert status == 2 and "  2. paired folders, 8 cases" in errors and "--layout 1" in errors
    status, said, errors = maskfold("init", root, "--layout", "1", "--no-measure")
    assert status == 0 and "check: " in said, errors
    for words, message in (
        ((root,), "--force"),
        ((root, "--folds", "1"), "--folds"),
        ((root, "--minutes", "0"), "--minutes"),
    ):
        status, _, errors = maskfold("init", *words)
        assert status == 2 and message in errors


def test_init_says_how_long_all_folds_train(maskfold: Command) -> None:
    root = Path("data/paired_names")
    root.mkdir(parents=True)
    MAKERS["paired_names"](root)
    for minutes, folds, total in (("1.5", "2", "3 minutes"), ("45", "4", "3 hours")):
        words = ("--no-measure", "--force", "--minutes", minutes, "--folds", folds)
        status, said, errors = maskfold("init", root, *words)
        assert status == 0, errors
        assert f"Training will take about {total}: {folds} folds of {minutes} minutes" in said


def test_a_folder_is_planned_and_trained_in_one_line(maskfold: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("competition.planning.measure.STEP_SECONDS", 0.1)  # a step or two of each candidate
    root = Path("data/paired_names")
    root.mkdir(parents=True)
    MAKERS["paired_names"](root)
    words = ["cv", root, "--minutes", "2", *FAST, *TINY[2]]
    status, said, errors = maskfold(*words, "training.budget_minutes=null")
    assert status == 0, errors
    assert "Candidate settings for 2 minutes per fold; timing with 1 thread" in said and "→" in said
    record = read_record(Path("experiments/paired_names/plan.json"))
    chosen = [item for item in record["candidates"] if item["chosen"]]
    assert len(chosen) == 1 and chosen[0]["measurement"]["steps"] >= 1 and chosen[0]["steps"] > 0
    assert chosen[0]["measurement"]["device"] == "cpu" and record["minutes"] == 2

    status, said, errors = maskfold(*words, "training.budget_minutes=null")  # the same line resumes
    assert status == 0 and "Candidates" not in said, errors
    status, _, errors = maskfold("cv", root, "--minutes", "3")
    assert status == 2 and "maskfold plan experiments/paired_names/experiment.yaml --minutes 3 --write" in errors
    status, _, errors = maskfold("cv", "experiments/paired_names/experiment.yaml", "--minutes", "3")
    assert status == 2 and "training.budget_minutes=3" in errors
    status, said, errors = maskfold("cv", root, "--name", "other", *FAST, *TINY[2], "training.budget_minutes=null")
    assert status == 0 and Path("experiments/other/experiment.yaml").exists(), errors
    status, _, errors = maskfold("cv", "experiments/other/experiment.yaml", "--name", "third")
    assert status == 2 and "Leave out --layout and --name" in errors
