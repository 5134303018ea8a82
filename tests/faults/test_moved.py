"""A week later: a run in another place, a run of another version, and a run made again from its resolved YAML alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from competition import __version__
from competition.config.loading import load_experiment
from competition.errors import MaskfoldError

pytestmark = pytest.mark.faults


def silent(_line: str) -> None:
    """Says nothing."""


def outputs(run: Any, images: Path, folder: Path) -> dict[str, bytes]:
    """All that predict and submit write, by name."""
    from competition.submission.label_files import predict_images
    from competition.submission.submit import submit

    predict_images([run], images, folder / "masks", pictures=0)
    submit([run], output=folder / "sub.csv")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".json"
    }


@pytest.mark.parametrize("dims", [2, 3])
def test_a_copied_run_predicts_and_submits_where_nothing_of_the_old_place_is_left(
    tiny: Any,
    finished: Callable[..., Any],
    tmp_path: Path,
    dims: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from competition.runs.find import find_run

    old, new = tmp_path / "old", tmp_path / "another machine"
    old.mkdir()
    monkeypatch.chdir(old)
    shutil.copytree(request.getfixturevalue(f"demo{dims}d"), old / "data")
    tests = "test" if dims == 2 else "imagesTs"
    run = finished(tiny(dims, f"competition.root={old / 'data'}"))
    folder = Path(run.folder.resolve())
    before = outputs(find_run(str(folder)), old / "data" / tests, old / "out")
    assert (
        len(before) == len(list((old / "data" / tests).iterdir())) + 2
    )  # the CSV, and what its expected score is from

    new.mkdir()
    monkeypatch.chdir(new)
    shutil.move(folder, new / "a run")
    shutil.move(old / "data", new / "elsewhere")
    shutil.rmtree(old)
    with pytest.raises(MaskfoldError, match=r"does not exist.*competition\.root=/path"):  # what to type is said
        outputs(find_run("a run"), new / "elsewhere" / tests, new / "out")
    shutil.rmtree(new / "out", ignore_errors=True)
    moved = find_run("a run", [f"competition.root={new / 'elsewhere'}"])
    assert outputs(moved, new / "elsewhere" / tests, new / "out") == before
    assert not old.exists(), "something was written to the old place"


def test_predicting_other_images_needs_the_runs_folder_alone(
    tiny: Any, finished: Callable[..., Any], demo2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from competition.runs.find import find_run
    from competition.submission.label_files import predict_images

    data = Path(shutil.copytree(demo2d, tmp_path / "data"))
    run = finished(tiny(2, f"competition.root={data}"))
    before = predict_images([run], demo2d / "test", tmp_path / "before")
    shutil.move(run.folder, tmp_path / "copied")
    shutil.rmtree(tmp_path / "mlruns")
    shutil.rmtree(data)
    after = predict_images([find_run(str(tmp_path / "copied"))], demo2d / "test", tmp_path / "after")
    assert [one.files[0].read_bytes() for one in after] == [one.files[0].read_bytes() for one in before]


def test_a_runs_folder_names_the_version_that_made_it(tiny: Any, tmp_path: Path) -> None:
    from competition.runs.run import FORMAT_VERSION, VERSION_FILE, load_run, read_version
    from competition.training.cross_validate import open_run

    run = open_run(tiny(2), "tiny", root=tmp_path)
    run.write()
    assert json.loads((run.folder / VERSION_FILE).read_text()) == {"form": FORMAT_VERSION, "maskfold": __version__}
    assert read_version(run.folder) == __version__
    (run.folder / VERSION_FILE).unlink()  # made before there was such a file: it is read as it is
    assert read_version(run.folder) is None and load_run(run.folder).exp == run.exp


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '{"form": 2, "maskfold": "9.1.0"}',
            ["Maskfold 9.1.0 in format 2", f"Maskfold {__version__} reads only formats up to 1", "maskfold==9.1.0"],
        ),
        ("{", ["version.json is damaged"]),
        ("[]", ["version.json is damaged"]),
        ('{"form": "x", "maskfold": 1}', ["version.json is damaged"]),
    ],
)
def test_a_run_of_another_form_is_refused_by_the_versions_names(
    tiny: Any, tmp_path: Path, content: str, words: list[str]
) -> None:
    from competition.runs.run import load_run
    from competition.training.cross_validate import open_run

    run = open_run(tiny(2), "tiny", root=tmp_path)
    run.write()
    (run.folder / "version.json").write_text(content)
    with pytest.raises(MaskfoldError) as caught:
        load_run(run.folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_yaml_that_only_its_own_version_reads_names_that_version(tiny: Any, tmp_path: Path) -> None:
    """A key that is gone: both versions and the key are named; within one version it is a plain error of the YAML."""
    from competition.runs.run import load_run
    from competition.training.cross_validate import open_run

    run = open_run(tiny(2), "tiny", root=tmp_path)
    run.write()
    yaml = run.folder / "experiment.yaml"
    yaml.write_text(yaml.read_text() + "a_key_of_old: 1\n")
    with pytest.raises(MaskfoldError) as caught:
        load_run(run.folder)
    assert "a_key_of_old" in str(caught.value) and "Maskfold" not in caught.value.message
    (run.folder / "version.json").write_text('{"form": 1, "maskfold": "0.0.7"}')
    with pytest.raises(MaskfoldError) as caught:
        load_run(run.folder)
    assert all(
        word in str(caught.value) for word in ("a_key_of_old", "0.0.7", __version__, "pip install maskfold==0.0.7")
    )


def test_an_older_yaml_without_todays_keys_gets_their_defaults(tiny: Any, tmp_path: Path) -> None:
    """What `KEYS_ADDED_LATER` keys are for: a run keeps its name when a key is added."""
    import yaml

    from competition.runs.identity.hashing import KEYS_ADDED_LATER, RESUMABLE_KEYS, run_hash
    from competition.runs.kept_settings import KEPT_SETTINGS
    from competition.runs.run import load_run
    from competition.training.cross_validate import open_run

    run = open_run(tiny(2), "tiny", root=tmp_path)
    run.write()
    file = run.folder / "experiment.yaml"
    plain = yaml.safe_load(file.read_text())
    for section, key in (*KEYS_ADDED_LATER, *RESUMABLE_KEYS, ("training", "soup")):
        del plain[section][key]
    for key in (*KEPT_SETTINGS, "compile"):
        del plain["training"][key]
    for key in ("pseudo", "extra", "gate", "first_stage"):
        del plain[key]
    del (
        plain["competition"]["array_axes"],
        plain["competition"]["background"],
        plain["competition"]["spacing"],
        plain["competition"]["train"]["cases"],
        plain["competition"]["train"]["masks_on_image_grid"],
        plain["competition"]["train"]["missing_masks"],
        plain["competition"]["train"]["exif"],
        plain["competition"]["train"]["threshold"],
        plain["competition"]["train"]["object_numbers"],
        plain["competition"]["train"]["region"],
        plain["competition"]["train"]["exclude"],
        plain["competition"]["train"]["weights"],
        plain["folds"]["duplicates"],
        plain["patch"]["axes"],
        plain["competition"]["submission"]["kaggle"],
        plain["competition"]["submission"]["public_share"],
    )
    file.write_text(yaml.safe_dump(plain))
    found = load_run(run.folder)
    for key in (
        "run",
        "study",
        "postprocess",
    ):  # what an older version hashed: the YAML without these, and without what was not yet
        plain.pop(key, None)
    del plain["folds"]["run"], plain["competition"]["root"]
    text = json.dumps([plain, "data"], sort_keys=True)
    assert run_hash(found.exp, "data") == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    "settings", [["training.ema=0.9", "schedule={name: cosine}"], ["training.accumulate=2", "training.precision=auto"]]
)
def test_the_resolved_yaml_alone_repeats_the_run(
    tiny: Any, demo2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    """The same hash and the same weights, from a copy of the file and the data in another folder with another cache."""
    import torch
    from safetensors.torch import load_file

    from competition.training.cross_validate import make_jobs, open_run
    from competition.training.fold import run_fold

    threads = torch.get_num_threads()

    def train(exp: Any, place: Path) -> tuple[Any, dict[str, Any]]:
        place.mkdir()
        monkeypatch.chdir(place)
        run = open_run(exp, "tiny")
        run.write()
        job = dataclasses.replace(make_jobs(run)[0], threads=1)
        job.folder.mkdir(parents=True)
        run_fold(job, say=silent)
        return run, load_file(job.folder / "weights.safetensors")

    try:
        first, weights = train(tiny(2, "training.epochs=1", "folds.run=[0]", *settings), tmp_path / "one")
        text = (first.folder / "experiment.yaml").read_text()
        monkeypatch.chdir(tmp_path)
        (tmp_path / "alone").mkdir()
        (tmp_path / "alone" / "repeat.yaml").write_text(text)
        moved = [f"competition.root={shutil.copytree(demo2d, tmp_path / 'alone' / 'data')}"]
        second, again = train(load_experiment(tmp_path / "alone" / "repeat.yaml", moved), tmp_path / "two")
    finally:
        torch.set_num_threads(threads)
    assert second.folder.name == first.folder.name
    assert list(second.folds["fold"]) == list(first.folds["fold"])
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)
    changed = load_experiment(tmp_path / "alone" / "repeat.yaml", [*moved, "seed=99"])
    assert open_run(changed, "tiny").folder.name != first.folder.name
