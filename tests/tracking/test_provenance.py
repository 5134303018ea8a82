from pathlib import Path

import pytest

from competition.tracking import provenance


def test_the_environment_is_recorded_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance.record(tmp_path)
    folder = tmp_path / "environment"
    assert "mlflow==" in (folder / "packages.txt").read_text()
    assert "commit" in (folder / "start.txt").read_text()
    provenance.record(tmp_path)
    assert not list(folder.glob("resume_*"))
    monkeypatch.setattr(provenance, "_packages", lambda: "torch==0.1\n")
    provenance.record(tmp_path)
    provenance.record(tmp_path)
    assert [path.name for path in folder.glob("resume_*")] == ["resume_2"]
    assert (folder / "resume_2" / "packages.txt").read_text() == "torch==0.1\n"


def test_without_git_there_is_still_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    provenance.record(tmp_path)
    assert "not in a git repository" in (tmp_path / "environment" / "start.txt").read_text()
    assert "mlflow.source.git.commit" not in provenance.source_tags()
