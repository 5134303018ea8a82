"""Promise 2, where several processes score cases: none of them outlives the command, and none talks about Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.faults.toy import gone

WORK = """
import sys, time
from pathlib import Path
from competition.process import ProcessPool
from tests.faults.test_crew import Slow

if __name__ == "__main__":
    began = 0.0
    try:
        with ProcessPool(Slow(sys.argv[1]), 2, "worked", "") as pool:
            list(pool.map(Slow.work, [str(number) for number in range(10)]))
    except KeyboardInterrupt:
        print("stopped", flush=True)
        sys.exit(130)
"""


class Slow:
    """A worker whose cases take an hour each."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def work(self, case: str) -> str:
        (Path(self.folder) / f"case_{case}").touch()
        time.sleep(3600)
        return case


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_no_process_of_a_crew_outlives_its_command(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "work.py"
    script.write_text(WORK)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("case_*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(children) >= 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.kill()
    said, errors = process.communicate(timeout=60)
    assert gone(children, 30)
    if number == signal.SIGINT:
        assert process.returncode == 130 and said == "stopped\n" and "Traceback" not in errors, errors
