"""`shipped.json`: what MLflow has of a run."""

from pathlib import Path

from competition.tracking.sync_state import FileFingerprint, FileOffset, SyncState, read_sync_state


def test_a_state_survives_the_disk(tmp_path: Path) -> None:
    state = SyncState("sqlite:///a.db")
    shipped = state.uploaded("fold_0")
    shipped.run_id, shipped.journal, shipped.steps = "r", FileOffset(7, "s", "h"), {"lr": 3}
    shipped.files["a.png"] = FileFingerprint(3, 5, "d")
    state.write(tmp_path)
    assert read_sync_state(tmp_path, "sqlite:///a.db") == state
    assert [path.name for path in tmp_path.iterdir()] == ["shipped.json"]


def test_another_store_knows_only_the_token(tmp_path: Path) -> None:
    state = SyncState("sqlite:///a.db")
    state.uploaded(".").run_id = "r"
    state.write(tmp_path)
    other = read_sync_state(tmp_path, "http://server:5000")
    assert other.uploaded(".").token == state.uploaded(".").token
    assert other.uploaded(".").run_id is None


def test_an_unreadable_state_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "shipped.json").write_text('{"version": 1, "fol')
    assert read_sync_state(tmp_path, "x") == SyncState("x")
    assert [path.name for path in tmp_path.iterdir()] == ["shipped.json.unreadable"]
