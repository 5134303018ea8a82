"""The record of how a run was started."""

import json
import sys
from pathlib import Path

import pytest

from competition.tracking import provenance


def test_the_environment_is_recorded_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/maskfold", "cv", "a.yaml", "patch.size=[32, 48]"])
    provenance.record_environment(tmp_path)
    folder = tmp_path / "environment"
    assert "mlflow==" in (folder / "packages.txt").read_text()
    assert "commit" in (folder / "start.txt").read_text()
    assert (folder / "start.txt").read_text().startswith("command maskfold cv a.yaml 'patch.size=[32, 48]'\n")
    provenance.record_environment(tmp_path)
    assert not list(folder.glob("resume_*"))
    monkeypatch.setattr(provenance, "_packages", lambda: "torch==0.1\n")
    provenance.record_environment(tmp_path)
    provenance.record_environment(tmp_path)
    assert [path.name for path in folder.glob("resume_*")] == ["resume_2"]
    assert (folder / "resume_2" / "packages.txt").read_text() == "torch==0.1\n"


def test_without_git_there_is_still_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    provenance.record_environment(tmp_path)
    assert "not in a git repository" in (tmp_path / "environment" / "start.txt").read_text()
    assert "mlflow.source.git.commit" not in provenance.source_tags()


def test_packages_are_named_so_that_pip_finds_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origins = {
        "one": None,
        "two": {"url": "https://host/two.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
        "three": {"url": "file:///three", "dir_info": {"editable": True}},
    }
    for name, origin in origins.items():
        folder = tmp_path / f"{name}-1.5.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        if origin is not None:
            (folder / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert provenance._packages().splitlines() == [
        "one==1.5",
        "three @ file:///three",
        "two @ git+https://host/two.git@abc",
    ]
