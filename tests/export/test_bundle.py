"""Content of a bundle; it writes the same file as `maskfold submit`."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

import competition
from competition.config.loading import load_experiment
from competition.errors import MaskfoldError
from competition.export import run_script
from competition.export.bundle import ExportOptions, export_runs
from competition.export.requirements import run_smoke_test
from competition.submission.submit import submit
from tests.export.bundles import run_bundle


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_bundle_of_two_runs_writes_what_submit_writes(finished, tiny, bundled, tmp_path, dimensions, capsys):
    tta = ["inference.tta=[flip]", "augment.flip=true"]
    runs = [
        finished(tiny(dimensions, *tta), "demo-one"),
        finished(
            tiny(dimensions, "seed=2", "folds.k=3", "postprocess.steps=[{threshold: 0.2}, {remove_small: 3}]"),
            "demo-two",
            seed=1,
        ),
    ]
    done = submit(runs[::-1], [0.7, 0.3], tmp_path / "submit.csv")
    folder = bundled(runs[::-1], weights=[0.7, 0.3])
    assert run_bundle(folder, runs[0].exp.competition.root, tmp_path / "bundle.csv") == 0
    assert (tmp_path / "bundle.csv").read_bytes() == done.path.read_bytes()
    assert done.validation.empty < done.validation.rows  # there is something to compare
    assert "5 networks of 2 runs" in capsys.readouterr().out
    assert json.loads((folder / "bundle.json").read_text())["postprocess"]["steps"]


@pytest.mark.parametrize("axes", ["[0]", "[0, 1, 2]"])
def test_a_bundle_of_slices_along_other_axes_writes_what_submit_writes(finished, tiny, bundled, tmp_path, axes):
    words = [f"patch={{size: [32, 32], slices: 3, axes: {axes}}}", "gate={}"]
    run = finished(tiny(3, *words, "inference.tta=[flip]", "augment.flip=[1, 2]"), "demo3d-tiny")
    done = submit([run], output=tmp_path / "submit.csv")
    folder = bundled([run])
    assert run_bundle(folder, run.exp.competition.root, tmp_path / "bundle.csv") == 0
    assert (tmp_path / "bundle.csv").read_bytes() == done.path.read_bytes()
    (plan,) = folder.rglob("experiment.yaml")
    assert load_experiment(plan).patch.axes == json.loads(axes)


def test_what_was_tuned_out_of_fold_comes_along_and_the_store_does_not(finished, nuclei, bundled, tmp_path):
    run = finished(nuclei("postprocess.tune=true"), "discs-tiny")
    done = submit([run], output=tmp_path / "submit.csv")
    folder = bundled([run])
    for store in run.folder.glob("*/oof"):
        store.rename(tmp_path / f"away-{store.parent.name}")
    assert run_bundle(folder, run.exp.competition.root, tmp_path / "bundle.csv") == 0
    assert (tmp_path / "bundle.csv").read_bytes() == done.path.read_bytes()
    assert json.loads((folder / "bundle.json").read_text())["postprocess"] == done_settings(done)
    assert not list(folder.rglob("oof"))


def done_settings(done):
    return json.loads(done.summary_path.read_text())["postprocess"]


def test_weights_are_fitted_at_the_export(finished, tiny, bundled):
    good, bad = finished(tiny(2), "demo-good", noise=0.1), finished(tiny(2, "seed=3"), "demo-bad", noise=3.0, seed=1)
    about = json.loads((bundled([bad, good], weights="auto") / "bundle.json").read_text())
    shares = {one["hash"]: one["weight"] for one in about["runs"]}
    assert shares[good.folder.name] > 0.5 and sum(shares.values()) == pytest.approx(1)


def test_nothing_inside_is_pickled_or_names_this_machine(finished, tiny, bundled, tmp_path):
    run = finished(tiny(2))
    folder = bundled([run])
    here = (
        str(tmp_path),
        str(run.exp.competition.root),
        str(Path(competition.__file__).parent),
        os.path.expanduser("~/"),
    )
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".py", ".json", ".yaml", ".md", ".txt", ".ipynb", ".safetensors"}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert not any(name in path.read_text() for name in here), path
    for fold in (0, 1):
        name = f"fold_{fold}/weights.safetensors"
        assert (next(folder.glob("runs/*")) / name).read_bytes() == (run.folder / name).read_bytes()


def test_what_training_alone_reads_stays_at_home(tiny, finished, tmp_path):
    from competition.config.loading import resolve_config
    from competition.export.bundle import _without_paths

    plain = _without_paths(resolve_config(tiny(2, f"pseudo.from={finished(tiny(2)).folder}")))
    assert (
        not {"pseudo", "extra", "study", "init_from", "encoder_weights"} & set(plain)
        and plain["competition"]["root"] == "."
    )
    assert str(tmp_path) not in str(plain)


def test_the_code_is_the_packages_own_and_whole(finished, tiny, bundled):
    folder = bundled([finished(tiny(2))])
    code, package = folder / "code" / "competition", Path(competition.__file__).parent
    files = {path.relative_to(code) for path in code.rglob("*.py")}
    assert all((code / path).read_bytes() == (package / path).read_bytes() for path in files)
    assert not {"cli", "tracking", "study", "report"} & {path.parts[0] for path in files}
    for path in files:  # every import outside of functions finds its file
        for node in ast.parse((code / path).read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module.startswith("competition"):
                parts = node.module.split(".")[1:]
                assert (code.joinpath(*parts).with_suffix(".py")).exists() or (
                    code.joinpath(*parts) / "__init__.py"
                ).exists()


def test_requirements_name_what_our_code_imports_in_these_versions(finished, tiny, bundled):
    from importlib.metadata import version

    folder = bundled([finished(tiny(2))])
    lines = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert {"torch", "monai", "numpy", "pandas", "pydantic", "pyyaml", "safetensors"} <= set(lines)
    assert not {"mlflow", "optuna", "ray", "pytest"} & set(lines)
    assert lines["pandas"] == version("pandas") and lines["torch"] == version("torch").split("+")[0]


def test_packages_that_are_not_there_are_named_first(finished, tiny, bundled):
    folder = bundled([finished(tiny(2))])
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(folder / "run.py"), "--input", "."], capture_output=True, text=True
    )
    (line,) = done.stdout.splitlines()
    assert (
        line.startswith("note: these packages are not installed")
        and "torch==" in line
        and "pandas==" in line
        and "--find-links wheels" in line
    )
    assert done.returncode == 1 and "error: The package" in done.stderr and "Traceback" not in done.stderr


def test_a_changed_missing_or_added_file_is_refused_before_anything_is_imported(finished, tiny, bundled):
    folder = bundled([finished(tiny(2))])

    def words() -> str:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(folder / "run.py"), "--input", "."], capture_output=True, text=True
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
        return done.stderr

    weights = next(folder.rglob("fold_1/weights.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "fold_1/weights.safetensors was changed after the export" in words()
    weights.unlink()
    assert "fold_1/weights.safetensors is missing" in words()
    weights.write_bytes(whole)
    (folder / "code" / "numpy.py").write_text("raise SystemExit('taken in')")
    assert "code/numpy.py is in the bundle" in words()
    (folder / "code" / "numpy.py").unlink()
    (folder / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in words()
    (folder / "manifest.json").unlink()
    assert f"{folder} has no manifest.json." in words()


def test_the_manifest_has_every_file(finished, tiny, bundled):
    folder = bundled([finished(tiny(2))])
    known = json.loads((folder / "manifest.json").read_text())["files"]
    there = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert known == there and {"run.py", "notebook.ipynb", "README.md", "requirements.txt", "bundle.json"} <= set(known)


def test_a_folder_that_is_no_bundle_is_not_touched_and_a_bundle_is_replaced(finished, tiny, bundled, tmp_path):
    run = finished(tiny(2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(MaskfoldError, match=re.escape(str(tmp_path / "mine"))) as refused:
        export_runs([run], tmp_path / "mine")
    assert refused.value.status == 2 and os.listdir(tmp_path / "mine") == ["thesis.txt"]
    first = bundled([run])
    (first / "notes.txt").write_text("mine")
    with pytest.raises(MaskfoldError, match=r"notes\.txt"):
        bundled([run])
    (first / "notes.txt").unlink()
    (first / "README.md").write_text("old")
    assert bundled([run]) == first and (first / "README.md").read_text() != "old"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".bundle")]


def test_a_failed_export_leaves_the_former_bundle(finished, tiny, bundled, tmp_path, monkeypatch):
    run = finished(tiny(2))
    folder = bundled([run])
    before = (folder / "manifest.json").read_bytes()
    next(run.folder.glob("fold_1/weights.safetensors")).unlink()
    with pytest.raises(MaskfoldError, match=r"fold_1/weights\.safetensors"):
        bundled([run])
    assert (folder / "manifest.json").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".bundle")]


def test_weights_that_are_damaged_are_told_by_the_name_that_they_have_in_the_run(finished, tiny, bundled):
    run = finished(tiny(2))
    path = next(run.folder.glob("fold_1/weights.safetensors"))
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(MaskfoldError, match=re.escape(str(path))) as caught:
            bundled([run])
        assert str(path) in caught.value.message and caught.value.status == 1


def test_what_refuses_a_bundle_in_its_trial_is_told_in_its_words(finished, tiny, bundled):
    run = finished(tiny(2))
    folder = bundled([run])
    (folder / "bundle.json").write_text("{}")
    row = run.cases.iloc[:1].astype(object).itertuples(index=False)
    with pytest.raises(MaskfoldError, match=r"bundle\.json.*'format'") as caught:
        run_smoke_test(folder, run.exp.competition.root, SimpleNamespace(**next(row)._asdict()), False)
    assert caught.value.status == 1 and "export" in caught.value.hint.lower()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_it_ends_in_words_also_while_it_imports(tmp_path, number, status):
    inner = tmp_path / "code" / "competition" / "export"
    inner.mkdir(parents=True)
    (tmp_path / "run.py").write_bytes(Path(run_script.__file__).read_bytes())
    (inner / "runtime.py").write_text(f"import time\nopen({str(tmp_path / 'here')!r}, 'w').close()\ntime.sleep(60)\n")
    known = {
        path.relative_to(tmp_path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in inner.glob("*.py")
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"files": known}))
    (tmp_path / "bundle.json").write_text('{"requirements": []}')
    start = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "os.execv(sys.executable, sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, sys.executable, str(tmp_path / "run.py"), "--input", "."],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    while not (tmp_path / "here").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("stopped: nothing was written\n", status)


def test_the_zip_holds_the_folder(finished, tiny, bundled, tmp_path):
    folder = bundled([finished(tiny(2))], options=ExportOptions(zipped=True))
    with zipfile.ZipFile(tmp_path / "bundle.zip") as zipped:
        assert {name: zipped.read(name) for name in zipped.namelist()} == {
            f"bundle/{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


def test_the_notebook_is_valid_and_its_code_compiles(finished, tiny, bundled):
    book = json.loads((bundled([finished(tiny(2))], options=ExportOptions(hours=7)) / "notebook.ipynb").read_text())
    nbformat.validate(book)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None
        for cell in book["cells"]
        if cell["cell_type"] == "code"
    )
    for text in code:
        compile(text, "cell", "exec")
    assert "HOURS = 7" in code[0] and "--no-index" in code[1] and "run.py" in code[2]


def test_wrong_words_are_two_sentences(finished, tiny, bundled, tmp_path, capsys):
    run = finished(tiny(2))
    folder, root = bundled([run]), run.exp.competition.root
    (tmp_path / "folder.csv").mkdir()
    for words, part in (
        (["--hours", "0"], "--hours: found 0,"),
        (["--onnx"], "--onnx requires"),
        (["--devices", "gpu"], "no device gpu"),
        (["--output", "x.txt"], "--output: found x.txt, expected a file name that ends in .csv."),
        (["--output", str(tmp_path / "folder.csv")], "--output: found the folder "),
    ):
        assert run_bundle(folder, root, tmp_path / "x.csv", *words) == 2
        assert part in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()
