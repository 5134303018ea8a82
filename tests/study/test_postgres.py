"""Two processes of one study on PostgreSQL, as two machines would share it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from competition.study.space import ExperimentSource
from competition.study.storage import open_storage
from competition.study.study import open_study
from tests.study.quick import write_experiment
from tests.study.test_search import start, states

pytestmark = pytest.mark.xdist_group("serial")  # one server for all

pytest.importorskip("psycopg")


def _programs() -> Path | None:
    """The folder of initdb and postgres."""
    for folder in [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/bin")]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL of our own, on a free port of 127.0.0.1."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path("/tmp") / f"maskfold-postgres-{os.getpid()}"
    folder.mkdir()
    user = "nobody"
    who = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []
    if who:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    subprocess.run(
        [*who, str(programs / "initdb"), "-D", str(data), "-U", "maskfold", "-A", "trust"],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    process = subprocess.Popen(
        [
            *who,
            str(programs / "postgres"),
            "-D",
            str(data),
            "-p",
            str(port),
            "-k",
            str(folder),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "fsync=off",
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(150):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"postgresql://maskfold@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_two_processes_run_each_trial_once(server, demo2d, tmp_path, warm):
    file = write_experiment(Path(shutil.copytree(demo2d, tmp_path / "data")))
    processes = [start(warm, file, server, 20, 0.05) for _ in range(2)]
    outputs = ["".join(process.communicate(timeout=280)) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    search = open_study(ExperimentSource(file), server)
    assert states(search) == ["COMPLETE"] * 20
    shares = [output.count(" complete: ") for output in outputs]
    assert sum(shares) == 20 and min(shares) >= 2, shares
    assert len({trial.params["optimizer.args.lr"] for trial in search.trials}) == 20


def test_a_database_that_is_away_is_told_in_words():
    from competition.errors import MaskfoldError

    with pytest.raises(MaskfoldError) as refusal:
        open_storage("postgresql://someone:secret@127.0.0.1:9/none")
    assert "cannot be opened" in str(refusal.value) and "secret" not in str(refusal.value)
