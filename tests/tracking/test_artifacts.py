"""Weights are in MLflow's artifact store as hard links of the run's files where that is possible, else as copies."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from competition.io import atomic_write
from competition.tracking import artifacts as artifacts_module
from competition.tracking.artifacts import link_file, local_folder
from competition.tracking.uploader import RunUploader
from tests.tracking.conftest import finish_fold
from tests.tracking.test_uploader import fetch

New = Callable[[], RunUploader]


def replace_file(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))


def uploaded(run_folder: Path, delivery: New) -> Path:
    """Upload a run, and return the folder of the artifacts of its first fold."""
    new = delivery()
    new.begin()
    new.upload(last=True)
    _, runs = fetch(run_folder)
    folder = local_folder(runs["fold_0"].info.artifact_uri)
    assert folder is not None
    return folder


def test_mlflow_has_the_weights_once(run_folder: Path, delivery: New) -> None:
    fold = run_folder / "fold_0"
    finish_fold(fold)
    found = uploaded(run_folder, delivery)
    for name in ("weights.safetensors", "last.pt"):
        assert (found / name).samefile(fold / name)
    for name in ("log.txt", "scores.csv", "result.json", "metrics.jsonl"):  # the first is appended to
        if (fold / name).exists():
            assert not (found / name).samefile(fold / name)
    client, runs = fetch(run_folder)
    assert {"weights.safetensors", "last.pt"} <= {
        file.path for file in client.list_artifacts(runs["fold_0"].info.run_id)
    }


def test_new_weights_replace_the_link_and_change_no_other_file(run_folder: Path, delivery: New, tmp_path: Path) -> None:
    fold = run_folder / "fold_0"
    finish_fold(fold)
    found = uploaded(run_folder, delivery)
    os.link(fold / "weights.safetensors", tmp_path / "kept")  # e.g. in a copy of the run with hard links
    replace_file(fold / "weights.safetensors", b"other weights")
    assert (found / "weights.safetensors").read_bytes() == b"weights"
    assert uploaded(run_folder, delivery) == found
    assert (found / "weights.safetensors").samefile(fold / "weights.safetensors")
    assert (tmp_path / "kept").read_bytes() == b"weights"


def test_without_hard_links_the_weights_are_copied_and_no_link_is_written_into(
    run_folder: Path, delivery: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = run_folder / "fold_0"
    finish_fold(fold)
    found = uploaded(run_folder, delivery)
    os.link(found / "weights.safetensors", tmp_path / "kept")
    replace_file(fold / "weights.safetensors", b"other weights")

    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(artifacts_module.os, "link", refuse)
    uploaded(run_folder, delivery)
    assert (found / "weights.safetensors").read_bytes() == b"other weights"
    assert not (found / "weights.safetensors").samefile(fold / "weights.safetensors")
    assert (tmp_path / "kept").read_bytes() == b"weights"


def test_a_repeated_link_is_no_error_and_a_missing_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    assert link_file(tmp_path / "a", tmp_path / "deep" / "b") and link_file(tmp_path / "a", tmp_path / "deep" / "b")
    (tmp_path / "symbolic").symlink_to(tmp_path / "a")
    assert link_file(tmp_path / "symbolic", tmp_path / "c") and not (tmp_path / "c").is_symlink()
    with pytest.raises(FileNotFoundError):
        link_file(tmp_path / "missing", tmp_path / "c")
    assert (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:///home/me/a%20b/artifacts", Path("/home/me/a b/artifacts")),
        ("/home/me/artifacts", Path("/home/me/artifacts")),
        ("mlflow-artifacts:/1/artifacts", None),
        ("s3://bucket/artifacts", None),
        ("file://server/share", None),
    ],
)
def test_only_a_folder_of_this_machine_is_local(uri: str, expected: Path | None) -> None:
    assert local_folder(uri) == expected
