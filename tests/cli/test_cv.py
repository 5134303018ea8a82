"""`maskfold cv` as a user sees it: errors without a traceback, the final table, and no partial files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from competition.cli.main import main
from competition.cli.train import _next_command
from tests.conftest import ROOT, TINY, add_mlflow_database

pytestmark = pytest.mark.xdist_group("serial")  # commands that start processes of their own

EXPERIMENT = ROOT / "experiments" / "demo2d" / "unet2d.yaml"
SMALL = [
    "folds.k=2",
    "training.epochs=1",
    "training.steps_per_epoch=2",
    "training.batch_size=2",
    "training.precision=fp32",
    "encoder_weights=null",
    "run.threads=1",
    "inference.tta=[]",
    *TINY[2],
]


@pytest.mark.parametrize(
    ("overrides", "begin", "end"),
    [
        ([], "Next: maskfold submit", "writes the CSV)"),
        (
            ["competition.submission.sample=null", "competition.submission.files='{id}.png'"],
            "Next: maskfold submit",
            "writes the label files)",
        ),
        (["competition.submission.sample=null"], "Next: maskfold predict", "(writes label files of the test cases)"),
    ],
)
def test_the_next_command_has_the_options_that_it_needs(tiny, monkeypatch, overrides, begin, end):
    monkeypatch.setenv("MASKFOLD_ALLOW", "model.args.path")
    said = _next_command(Path("my.yaml"), tiny(2, *overrides).competition, ["seed=1"], 3, ("mine",))
    assert said.startswith(begin) and said.endswith(end)
    assert "my.yaml seed=1 --trust mine --allow model.args.path" in said


def maskfold(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-c", "from competition.cli import main; main()", *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture
def run_in_process(monkeypatch, capsys, tmp_path, warm_folds):
    """Return a function that runs the command line in this process, which saves seconds of imports."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["maskfold", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "160")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, int(left.value.code or 0), said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def data(demo2d, tmp_path) -> Path:
    return Path(shutil.copytree(demo2d, tmp_path / "data"))


def assert_error(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert result.returncode == status, result.stdout + result.stderr
    assert "Traceback" not in result.stderr and result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 12


def no_run_written(folder: Path) -> bool:
    return not any((folder / "mlruns").rglob("experiment.yaml")) and not any((folder / "mlruns").rglob("*.tmp"))


def test_help_needs_no_heavy_library():
    code = (
        "import sys; from competition.cli.main import app\n"
        "heavy = {'torch', 'monai', 'mlflow', 'pandas', 'cv2', 'matplotlib', 'albumentations', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "import competition.cli.clean, competition.cli.data, competition.cli.submit, competition.cli.train\n"
        "assert 'jinja2' not in sys.modules, 'only commands that write pages need it'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_repeated_command_prints_the_table_of_the_finished_run(data, tmp_path, run_in_process, empty_database):
    add_mlflow_database(tmp_path, empty_database)
    words = ["cv", EXPERIMENT, f"competition.root={data}", *SMALL, "run.parallel_folds=2"]
    first = run_in_process(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    for word in ("fold_0 |", "fold_1 |", "95 %", "minutes", "maskfold ui", "viewStateShareKey", "10 cases"):
        assert word in first.stdout
    folders = list((tmp_path / "mlruns" / "runs").glob("*/*"))
    assert len(folders) == 1
    again = run_in_process(*words)
    assert again.returncode == 0 and "fold_0 |" not in again.stdout
    assert again.stdout[again.stdout.index("95 %") :] == first.stdout[first.stdout.index("95 %") :]
    other = run_in_process(*words, "--new", "folds.run=[0]")
    assert other.returncode == 0, other.stdout + other.stderr
    assert len(list((tmp_path / "mlruns" / "runs").glob("*/*"))) == 2


def test_axes_of_slices_from_cv_to_predictions(demo3d, tmp_path, run_in_process, empty_database):
    import nibabel
    import numpy as np

    from competition.config.loading import load_experiment
    from competition.config.profiles import profile_of
    from competition.submission.reader import read_submission

    add_mlflow_database(tmp_path, empty_database)
    words: list[Any] = [
        ROOT / "experiments" / "demo3d" / "unet3d.yaml",
        f"competition.root={demo3d}",
        *SMALL[: -len(TINY[2])],
        *TINY[3],
        "patch={size: [32, 32], slices: 3, axes: [2, 0, 1]}",
        "prepare.orientation=RAS",
    ]
    done = run_in_process("cv", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 (sagittal), 1 (coronal) and 2 (axial)" in done.stdout
    (folder,) = [path.parent for path in (tmp_path / "mlruns" / "runs").glob("*/*/cases.csv")]
    assert run_in_process("cv", *words).returncode == 0  # the finished run: axes are a set
    for more in (
        ["submit", *words, "-o", "submit.csv"],
        ["predict", *words, "--images", demo3d / "imagesTs", "-o", "out"],
    ):
        said = run_in_process(*more)
        assert said.returncode == 0, said.stdout + said.stderr
    comp = load_experiment(words[0], words[1:]).competition
    labels = {path.name.split(".")[0]: np.asarray(nibabel.load(path).dataobj) for path in tmp_path.glob("out/*.nii.gz")}
    shapes = {case: array.shape for case, array in labels.items()}
    entries = list(read_submission(tmp_path / "submit.csv", profile_of(comp), shapes))
    assert len(entries) == len(labels) * len(comp.classes) and any(entry.mask.any() for entry in entries)
    for entry in entries:
        number = comp.classes.index(entry.class_name) + 1
        np.testing.assert_array_equal(entry.mask, labels[entry.case_id] == number)
    assert [path.parent for path in (tmp_path / "mlruns" / "runs").glob("*/*/cases.csv")] == [folder]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["patch.axes=[0]"], ["patch.axes", "slices"]),
        (["training.epoch=3"], ["command line", "training.epoch", "epochs"]),
        (["folds.k=1"], ["folds.k", "2"]),
        (["training.batch_size=many"], ["training.batch_size"]),
        (["folds.k=11"], ["11", "10"]),
        (["patch.size=[30,30]", "model.args={features: [4, 4, 8, 8, 8, 4]}"], ["patch.size"]),
        (["model.args.out_channels=7"], ["out_channels"]),
        (["model.target=torch.os.system"], ["model.target"]),
        (["model.target=monai.networks.nets.BasicUnett"], ["BasicUnett"]),
        (["folds.run=[9]"], ["folds.run", "9"]),
    ],
)
def test_invalid_overrides_exit_with_2(data, tmp_path, run_in_process, words, parts):
    result = run_in_process("cv", EXPERIMENT, f"competition.root={data}", *SMALL, *words)
    assert_error(result, 2, *parts)
    assert no_run_written(tmp_path)


def test_missing_root_and_missing_yaml_exit_with_2(tmp_path, run_in_process):
    assert_error(
        run_in_process("cv", EXPERIMENT, f"competition.root={tmp_path}/nowhere", "competition.name=other"),
        2,
        "nowhere",
        "competition.root",
    )
    assert_error(run_in_process("cv", "absent.yaml"), 2, "absent.yaml")
    assert run_in_process("cv").returncode == 2
    assert maskfold("train", cwd=tmp_path).returncode == 2  # the whole way, as a shell sees it


def first_case(folder: Path) -> str:
    return sorted(path.stem for path in (folder / "images").glob("*.png"))[0]


def missing_mask(folder: Path, case: str) -> None:
    (folder / "masks" / f"{case}.png").unlink()


def mask_of_another_size(folder: Path, case: str) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(folder / "masks" / f"{case}.png"), np.zeros((7, 9), np.uint8))


def unknown_label(folder: Path, case: str) -> None:
    import cv2

    path = str(folder / "masks" / f"{case}.png")
    mask = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    mask[0, 0] = 7
    cv2.imwrite(path, mask)


def truncated(folder: Path, case: str) -> None:
    path = folder / "images" / f"{case}.png"
    path.write_bytes(path.read_bytes()[:200])


def no_images(folder: Path, case: str) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("fault", "named"),
    [(missing_mask, True), (mask_of_another_size, True), (unknown_label, True), (truncated, True), (no_images, False)],
)
def test_invalid_case_is_named_before_training(data, tmp_path, run_in_process, fault, named):
    case = first_case(data)
    fault(data, case)
    result = run_in_process("cv", EXPERIMENT, f"competition.root={data}", *SMALL)
    assert_error(result, 1 if named else 2, *([case] if named else ["images/{id}.png"]))
    assert "fold_0 |" not in result.stdout and no_run_written(tmp_path)


def test_skipped_case_is_reported(data, tmp_path, run_in_process, empty_database):
    add_mlflow_database(tmp_path, empty_database)
    case = first_case(data)
    unknown_label(data, case)
    result = run_in_process(
        "cv", EXPERIMENT, f"competition.root={data}", "competition.on_bad_case=skip", *SMALL, "folds.run=[0]"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"case {case} is skipped" in result.stdout and "9 cases" in result.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_writes_a_checkpoint_and_a_message(data, tmp_path, empty_database, warm, number, status):
    add_mlflow_database(tmp_path, empty_database)
    words = ["cv", EXPERIMENT, f"competition.root={data}", *SMALL, "folds.run=[0]", "training.epochs=100000"]
    process = warm.start("tests.forked:command", *words, cwd=tmp_path)
    for line in process.stdout:
        if "epoch 3" in line:
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert "stopped" in errors and "same command" in errors and "Traceback" not in errors
    fold = next((tmp_path / "mlruns" / "runs").glob("*/*/fold_0"))
    assert (fold / "last.pt").exists() and "stopped (SIGTERM)" in (fold / "log.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "maskfold submit mine.yaml 'competition.root=/data/my x' "),
        (
            {"submission": {}},
            "maskfold predict mine.yaml 'competition.root=/data/my x' --images '/data/my x/scans/new' "
            "-o submissions/x ",
        ),
        (
            {"submission": {}, "test": {"images": "scans/*/{id}/t1.png"}},
            "maskfold predict mine.yaml 'competition.root=/data/my x' --images '/data/my x/scans' -o submissions/x ",
        ),
        ({"test": None}, "maskfold report mine.yaml 'competition.root=/data/my x' "),
    ],
)
def test_suggested_next_command_is_valid(changes, command):
    from competition.cli.train import _next_command
    from competition.config.competition import Competition

    comp = Competition(
        **{
            "name": "x",
            "root": "/data/my x",
            "dimensions": 2,
            "classes": ["a"],
            "train": {"images": "t/{id}.png", "masks": "m/{id}.png"},
            "test": {"images": "scans/new/{id}_0.png"},
            "submission": {"sample": "s.csv"},
            **changes,
        }
    )
    assert command in _next_command(Path("mine.yaml"), comp, ["competition.root=/data/my x"], 0)


def test_numbering_without_an_affine_is_refused_before_training(run_in_process, demo3d, tmp_path):
    shutil.copytree(demo3d, tmp_path / "data")
    for path in (tmp_path / "data" / "imagesTr").glob("*.nii.gz"):
        np.save(path.with_name(path.name.replace(".nii.gz", ".npy")), nibabel.load(path).get_fdata())
    done = run_in_process(
        "cv",
        ROOT / "experiments" / "demo3d" / "unet3d.yaml",
        f"competition.root={tmp_path / 'data'}",
        "competition.train.images=imagesTr/{id}.npy",
        "competition.test=null",
        "competition.array_axes=xyz",
        "competition.spacing=[1,1,2]",
        "prepare={intensity: zscore}",
        "postprocess.number={along: S, classes: [liver, spleen]}",
    )
    assert done.returncode and "`postprocess.number` requires the orientation" in done.stderr, done.stderr
    assert not list(tmp_path.glob("mlruns/runs/*/*/fold_*"))
