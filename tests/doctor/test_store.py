"""Where results go: folders and databases that cannot be written."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from competition.doctor import stores
from competition.doctor.probe import ProbeResult

pytestmark = pytest.mark.xdist_group("serial")  # mounts file systems

ROOT = Path(__file__).resolve().parents[2]
SHOW = """
import sys
from pathlib import Path
from competition.doctor import stores
for look in (stores.check_disk, stores.check_mlflow_store, stores.check_optuna_storage):
    for row in look(Path(sys.argv[1])):
        print(row.state, row.name, row.text, sep="|")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty `mlruns`; no other process is asked."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(stores, "run_probe", lambda *_, **__: pytest.fail("the file alone says it"))
    (tmp_path / "mlruns").mkdir()
    return tmp_path


def database(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE runs (name TEXT);" + "INSERT INTO runs VALUES (hex(randomblob(500)));" * 40
        )
    return path


def test_a_new_project_is_well_and_stays_empty(project: Path) -> None:
    rows = [*stores.check_disk(project), *stores.check_mlflow_store(project), *stores.check_optuna_storage(project)]
    assert "unusable" not in {row.state for row in rows}
    assert [row.name for row in rows] == [
        "mlruns/",
        "prepared cases",
        "artifacts",
        "MLflow's store",
        "Optuna's storage",
    ]
    assert list((project / "mlruns").iterdir()) == []


def test_a_folder_that_is_not_made_yet_is_not_made(project: Path) -> None:
    (project / "mlruns").rmdir()
    assert stores.check_disk(project)[0].state in ("ok", "warning")
    assert stores.check_mlflow_store(project)[0].state == "ok"
    assert list(project.iterdir()) == []


@pytest.mark.parametrize("look", [stores.check_mlflow_store, stores.check_optuna_storage])
@pytest.mark.parametrize("damage", ["text", "page"])
def test_a_broken_database_is_one_line(project: Path, look: object, damage: str) -> None:
    path = project / "mlruns" / ("mlflow.db" if look is stores.check_mlflow_store else "optuna.db")
    if damage == "text":
        path.write_text("no database at all, " * 20)
    else:
        content = bytearray(database(path).read_bytes())
        content[4096 + 8 : 8192] = os.urandom(4096 - 8)  # the second page: the header is whole
        path.write_bytes(content)
    before = path.read_bytes()
    (row,) = look(project)  # type: ignore[operator]
    assert row.state == "unusable"
    assert f"{path} is damaged" in row.detail
    assert f"mv {path} {path}.broken" in row.hint
    assert "\n" not in row.text
    assert path.read_bytes() == before


def test_a_database_that_another_program_holds(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = database(project / "mlruns" / "mlflow.db")
    monkeypatch.setattr(stores, "LOCK_TIMEOUT", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        (row,) = stores.check_mlflow_store(project)
    assert (row.state, "another program has locked" in row.detail) == ("warning", True)


def test_what_is_no_folder(project: Path) -> None:
    (project / "mlruns").rmdir()
    (project / "mlruns").write_text("a file")
    assert "it is a file" in stores.check_disk(project)[0].detail
    (project / "mlruns").unlink()
    (project / "mlruns").symlink_to(project / "nowhere")
    assert "it is a broken link" in stores.check_disk(project)[0].detail


def test_little_room(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for free in (100 * 2**20, 2 * 2**30, 50 * 2**30):
        monkeypatch.setattr(stores.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        states.append(stores.check_disk(project)[0].state)
    assert states == ["unusable", "warning", "ok"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_mode_555(project: Path) -> None:
    (project / "mlruns").chmod(0o555)
    try:
        assert "permission denied" in stores.check_disk(project)[0].detail
    finally:
        (project / "mlruns").chmod(0o755)


@pytest.mark.parametrize("uri", ["http://me:s3cret@127.0.0.1:{port}", "postgresql://me:s3cret@127.0.0.1:{port}/runs"])
def test_a_server_that_is_down_is_a_warning(project: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # a port at which nobody listens
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=taken.getsockname()[1]))
        (row,) = stores.check_mlflow_store(project)
    assert row.state == "warning"
    assert "Connection refused" in row.detail
    assert "training works without the server" in row.hint
    assert "s3cret" not in row.text


@pytest.mark.parametrize(
    ("said", "trouble", "state", "what"),
    [
        ([{"opened": True}, {"written": True}], None, "ok", "is writable"),
        ([{"opened": True}], "OperationalError: database or disk is full", "unusable", "cannot be written to: Op"),
        (
            [],
            "mlflow.exceptions.MlflowException: Detected out-of-date database schema (found version a, but expected b)",
            "unusable",
            "mlflow db upgrade sqlite:///",
        ),
        ([], "no answer after 120 s", "unusable", "cannot be opened: no answer"),
        ([], "ModuleNotFoundError: No module named 'mlflow'", "warning", "mlflow is not installed"),
    ],
)
def test_what_mlflow_says(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[dict[str, bool]],
    trouble: str | None,
    state: str,
    what: str,
) -> None:
    database(project / "mlruns" / "mlflow.db")
    monkeypatch.setattr(stores, "run_probe", lambda *_, **__: ProbeResult(said, trouble))  # type: ignore[arg-type]
    (row,) = stores.check_mlflow_store(project)
    assert row.state == state
    assert what in row.text


MOUNTED = (
    shutil.which("unshare") is not None
    and sys.platform == "linux"
    and subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    ).returncode
    == 0
)


@pytest.mark.skipif(not MOUNTED, reason="no mounts in a namespace of one's own")
@pytest.mark.parametrize("there", [False, True], ids=["new", "with databases"])
@pytest.mark.parametrize(("how", "what"), [("full", "the disk is full"), ("read-only", "read-only")])
def test_real_disks_that_take_nothing(tmp_path: Path, how: str, what: str, there: bool) -> None:
    """A tmpfs of its own, filled to the last page or mounted read-only."""
    source, work = tmp_path / "source", tmp_path / "work"
    source.mkdir()
    work.mkdir()
    if there:
        database(source / "mlflow.db")
        database(source / "optuna.db")
    spoil = "dd if=/dev/zero of=mlruns/fill bs=4k 2>/dev/null" if how == "full" else f"mount -o remount,ro {work}"
    script = f'mount -t tmpfs -o size=2m tmpfs {work} && cd {work} && cp -r {source} mlruns; {spoil}; exec "$@"'
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-B", "-c", SHOW, str(work)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split("|")[1]: line for line in done.stdout.splitlines()}
    assert rows.keys() == {"mlruns/", "MLflow's store", "Optuna's storage"}, (
        "what follows from the first row is not repeated"
    )
    assert all(row.startswith("unusable|") for row in rows.values())
    assert what in rows["mlruns/"]
    assert what.lower() in rows["MLflow's store"].lower()


@pytest.mark.slow  # imports MLflow and Optuna
def test_a_real_store_takes_a_write_and_keeps_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from competition.study.storage import open_storage
    from competition.tracking.store import connect_mlflow, find_mlflow_store

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    connect_mlflow(find_mlflow_store(tmp_path)).create_experiment("mine", tags={"kept": "yes"})
    open_storage(None)
    path = tmp_path / "mlruns" / "mlflow.db"

    def content() -> list[object]:
        with closing(sqlite3.connect(path)) as connection:
            return [
                connection.execute(query).fetchall()
                for query in (
                    "SELECT * FROM experiment_tags ORDER BY 1, 2",
                    "SELECT * FROM runs",
                    "SELECT experiment_id, name, lifecycle_stage FROM experiments ORDER BY 1",
                )
            ]

    before = content()
    (row,) = stores.check_mlflow_store(tmp_path)
    assert (row.state, "is writable" in row.detail) == ("ok", True)
    assert content() == before
    (studies,) = stores.check_optuna_storage(tmp_path)
    assert (studies.state, "studies: 0" in studies.detail) == ("ok", True)
    assert {one.name for one in (tmp_path / "mlruns").iterdir()} == {"mlflow.db", "optuna.db"}
