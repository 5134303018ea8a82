"""MLflow's pages as a person sees them: three folds side by side, in a real browser.

The pictures stay in the test's folder (`compare.png`, `runs.png`); pytest keeps those of its last three sessions.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from competition.tracking.store import view_link
from competition.tracking.uploader import RunUploader
from tests.tracking.conftest import finish_fold, line
from tests.tracking.test_sync import free_port
from tests.tracking.test_uploader import fetch

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="the page is looked at with selenium: pip install selenium"
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="no chromium with its chromedriver here: apt-get install chromium-driver",
    ),
]

SCORES = (0.731, 0.842, 0.953)
LOSSES = (0.417, 0.328, 0.239)
TEXTS = """const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
           while (walker.nextNode()) found.push(walker.currentNode.textContent.trim());
           return found.filter(text => text.length > 0)"""


@pytest.fixture
def three_folds(run_folder: Path, delivery: Callable[[], RunUploader]) -> Path:
    """A finished run of three folds in MLflow's database."""
    for number, (score, loss) in enumerate(zip(SCORES, LOSSES, strict=True)):
        fold = run_folder / f"fold_{number}"
        fold.mkdir(exist_ok=True)
        (fold / "job.json").write_text("{}")
        (fold / "metrics.jsonl").write_text(
            "".join(
                line(step, train__loss=loss + (3 - step) / 8, val__score=score - (3 - step) / 8) for step in (1, 2, 3)
            )
        )
        finish_fold(fold, score)
    (run_folder / "summary.json").write_text(
        json.dumps({"metric": "dice", "score": 0.842, "low": 0.731, "high": 0.953})
    )
    new = delivery()
    new.begin()
    new.upload(last=True)
    new.close("FINISHED")
    return run_folder


@pytest.fixture
def address(three_folds: Path) -> Iterator[str]:
    """Where `make ui` serves the runs."""
    port = free_port()
    with open(three_folds / "ui.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from competition.cli import main; main()", "ui", "--port", str(port)],
            cwd=three_folds.parents[3],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        wait(lambda: "Open in a browser" in (three_folds / "ui.log").read_text() or process.poll() is not None)
        assert process.poll() is None, (three_folds / "ui.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a screen."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1600,2000",
    ):
        options.add_argument(word)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    opened.set_page_load_timeout(300)
    yield opened
    opened.quit()


def wait(done: Callable[[], bool], seconds: float = 400.0) -> None:
    """Until something is so, or the time is over; the assertion that follows says which."""
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.5)


def shown(browser: Any, address: str, wanted: set[str], picture: Path, part: str = "body") -> list[str]:
    """The texts of a page, once it shows all that is wanted, and a part by its CSS selector; and a picture of it."""
    browser.get(f"{address.partition('#')[0]}health")
    # an assistant opens by itself over a third of the page, unless it has done so before
    browser.execute_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    browser.get(address)
    wait(lambda: wanted <= set(browser.execute_script(TEXTS)))
    wait(lambda: browser.execute_script(f"return document.querySelector('{part}') !== null"))
    browser.save_screenshot(str(picture))
    found = cv2.imread(str(picture))
    assert found is not None and found.std() > 5, "the picture is blank"
    return list(browser.execute_script(TEXTS))


def test_three_folds_side_by_side(three_folds: Path, address: str, browser: Any, tmp_path: Path) -> None:
    _, runs = fetch(three_folds)
    folds = [runs[f"fold_{number}"].info for number in range(3)]
    query = urllib.parse.urlencode(
        {"runs": json.dumps([one.run_id for one in folds]), "experiments": json.dumps([folds[0].experiment_id])}
    )
    values = {f"{value:.3f}" for value in (*SCORES, *LOSSES)}
    names = {"score", "val/score", "train/loss", "dice_left part", *(one.run_name for one in folds)}
    found = shown(
        browser, f"{address}/#/compare-runs?{query}", names | values, tmp_path / "compare.png", part=".js-plotly-plot"
    )
    assert names <= set(found) and values <= set(found)
    for value in (*SCORES, *LOSSES):
        assert found.count(f"{value:.3f}") >= (2 if value in SCORES else 1)  # score is val/score's last value
    assert "No parameters to display." not in found
    assert {"optimizer.args.lr", "patch.size", "[32,48]"} <= {"".join(text.split()) for text in found}


def test_the_table_that_make_ui_names_shows_the_scores(
    three_folds: Path, address: str, browser: Any, tmp_path: Path
) -> None:
    run = fetch(three_folds)[1]["."].info
    link = view_link(address, run.experiment_id)
    assert link in (three_folds / "ui.log").read_text()
    found = shown(browser, link, {run.run_name, "cv_score", "0.842"}, tmp_path / "runs.png")
    assert {run.run_name, "cv_score", "counted_score", "counted_lower", "0.842", "0.731", "0.953"} <= set(found)
