from pathlib import Path

from competition.tracking.journal import Place
from competition.tracking.state import FilePrint, State, read_state


def test_a_state_survives_the_disk(tmp_path: Path) -> None:
    state = State("sqlite:///a.db")
    shipped = state.of("fold_0")
    shipped.run_id, shipped.journal, shipped.steps = "r", Place(7, "s", "h"), {"lr": 3}
    shipped.files["a.png"] = FilePrint(3, 5, "d")
    state.write(tmp_path)
    assert read_state(tmp_path, "sqlite:///a.db") == state
    assert [path.name for path in tmp_path.iterdir()] == ["shipped.json"]


def test_another_store_knows_only_the_token(tmp_path: Path) -> None:
    state = State("sqlite:///a.db")
    state.of(".").run_id = "r"
    state.write(tmp_path)
    other = read_state(tmp_path, "http://server:5000")
    assert other.of(".").token == state.of(".").token
    assert other.of(".").run_id is None


def test_an_unreadable_state_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "shipped.json").write_text('{"version": 1, "fol')
    assert read_state(tmp_path, "x") == State("x")
    assert [path.name for path in tmp_path.iterdir()] == ["shipped.json.unreadable"]
