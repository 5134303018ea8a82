"""Records of a run that belong to another fold or run, or whose values are of the wrong type, are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.runs.fold import RESULT_FILE, FoldResult
from competition.runs.run import Run
from competition.submission.submit import submit
from competition.training.cross_validate import summarize_run
from competition.training.fold import final_files
from competition.training.lineage import labelled_cases, training_cases, write_lineage


@pytest.fixture
def run(finished: Callable[..., Run], tiny: Callable[..., Any]) -> Run:
    return finished(tiny(2, "seed=[5, 6]"))


# Weights


@pytest.mark.parametrize("name", ["weights.safetensors", "soup.safetensors"])
def test_the_weights_of_another_run(finished: Callable[..., Run], tiny: Callable[..., Any], name: str) -> None:
    """They fit the network and have a valid checksum, so they predicted without a word."""
    first, other = finished(tiny(2)), finished(tiny(2, "seed=9"), seed=3)
    folder, foreign = first.member_folder(0, 0), other.member_folder(0, 0) / "weights.safetensors"
    (folder / "weights.safetensors").rename(folder / name)
    result = FoldResult.read(folder)
    assert result is not None
    assert [path.name for path in final_files(folder)] == ["scores.csv", name]
    digests = {path.name: sha256_of_file(path) for path in final_files(folder)}
    replace(result, weights=name, digests=digests).write(folder)
    own = (folder / name).read_bytes()
    assert first.checkpoints()[0].sha256 == digests[name] and next(first.networks(1))
    shutil.copy(foreign, folder / name)
    for read in (first.checkpoints, lambda: next(first.networks(1)), lambda: submit([first])):
        with pytest.raises(MaskfoldError, match=rf"fold_0/{name} was changed after the fold had finished") as refusal:
            read()
        assert "fold_0/result.json" in refusal.value.hint
    (folder / name).write_bytes(own[:-1] + bytes([own[-1] ^ 1]))
    with pytest.raises(MaskfoldError, match="its checksum is wrong"):
        next(first.networks(1))


# Results


@pytest.mark.parametrize(
    ("source", "target", "names"),
    [
        ((1, 0), (0, 0), "fold 1, but is in the folder of fold 0"),
        ((0, 1), (0, 0), "fold 0 seed 1, but is in the folder of fold 0"),
        ((0, 0), (-1, 1), "fold 0, but is in the folder of all cases seed 1"),
    ],
)
def test_the_result_of_another_fold(run: Run, source: tuple[int, int], target: tuple[int, int], names: str) -> None:
    folder = run.member_folder(*target)
    folder.mkdir(exist_ok=True)
    shutil.copy(run.member_folder(*source) / RESULT_FILE, folder)
    with pytest.raises(MaskfoldError, match=rf"result\.json is the result of {names}"):
        summarize_run(run)


def test_the_lineage_of_another_fold_is_refused(run: Run) -> None:
    """It would hide that a network was trained on the cases that a fold validates."""
    for fold in (0, 1):
        folder = run.member_folder(fold, 0)
        write_lineage(folder, [labelled_cases(run, fold)], {"extra": fold})
        result = run.result(fold, 0)
        assert result is not None
        digests = {path.name: sha256_of_file(path) for path in final_files(folder)}
        assert "lineage.json" in digests
        replace(result, digests=digests).write(folder)
        assert {case for case, _, _ in training_cases(run, fold, 0)[0].cases} == set(run.training_ids(fold))
    shutil.copy(run.member_folder(1, 0) / "lineage.json", run.member_folder(0, 0))
    with pytest.raises(MaskfoldError, match=r"fold_0/lineage\.json was changed after the fold had finished"):
        training_cases(run, 0, 0)
    result = run.result(0, 0)
    assert result is not None
    replace(result, digests={}).write(run.member_folder(0, 0))
    assert training_cases(run, 0, 0), "a result of an older version has no digest"


SOUP = {"score": 0.5, "dice": {}, "flattered": None, "epochs": [1], "plain": {"score": 0.5, "dice": {}}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fold", "0"),
        ("fold", 0.0),
        ("seed", False),
        ("score", "x"),
        ("score", True),
        ("score", 10**400),
        ("dice", []),
        ("dice", {"a": "x"}),
        ("epochs", True),
        ("steps", -1),
        ("minutes", "x"),
        ("minutes", None),
        ("peak_gib", []),
        ("threads", None),
        ("precision", 32),
        ("device", None),
        ("torch", 2.7),
        ("stopped", None),
        ("weights", ".."),
        ("weights", RESULT_FILE),
        ("weights", None),
        ("weights", ["weights.safetensors"]),
        ("devices", "1"),
        ("skipped", None),
        ("restored", 0.5),
        ("halved", []),
        ("lessons", []),
        ("soup", [1]),
        ("soup", {}),
        ("soup", SOUP | {"plain": None}),
        ("soup", SOUP | {"epochs": 1}),
        ("digests", []),
        ("digests", {"scores.csv": 1}),
    ],
)
def test_a_value_of_the_wrong_type_in_a_result(tmp_path: Path, key: str, value: object) -> None:
    folder = tmp_path / "fold_0"
    folder.mkdir()
    plain: dict[str, Any] = {"score": None, "dice": {"a": None}, "epochs": 1, "steps": 1, "minutes": 1, "threads": 1}
    words = {"peak_gib": 0.5, "precision": "32-true", "device": "cpu", "torch": "2.7.1", "stopped": "", "soup": SOUP}
    result = FoldResult(fold=0, seed=0, **plain, **words)
    result.write(folder)
    assert FoldResult.read(folder) == result
    (folder / RESULT_FILE).write_text(json.dumps(result.__dict__ | {key: value}))
    with pytest.raises(MaskfoldError, match=rf"result\.json is damaged: it has invalid values: {key} is "):
        FoldResult.read(folder)
