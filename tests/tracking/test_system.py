"""System metrics are lines of the run's `metrics.jsonl`, and stay on disk until they are uploaded."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil

from competition.config.experiment import Experiment
from competition.tracking.sync import MlflowSync
from competition.tracking.system_metrics import SystemMetricsSampler
from tests.tracking.test_uploader import fetch


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(count: int, path: Path) -> None:
    until = time.monotonic() + 240
    while len(lines(path)) < count and time.monotonic() < until:
        time.sleep(0.02)


def test_samples_are_lines_of_the_journal(tmp_path: Path) -> None:
    journal = tmp_path / "metrics.jsonl"
    with SystemMetricsSampler(tmp_path, interval=0.05):
        wait_for(3, journal)
    found = lines(journal)
    assert [line["step"] for line in found] == list(range(1, len(found) + 1)) and len(found) >= 3
    for line in found:
        assert 0 <= line["metrics"]["system/cpu_utilization_percentage"] <= 100
        used = line["metrics"]["system/system_memory_usage_megabytes"] * 1e6
        assert 0 < used <= psutil.virtual_memory().total
        assert abs(line["time"] - time.time()) < 3600
    count = len(found)
    time.sleep(0.2)
    assert len(lines(journal)) == count  # nobody samples any longer


def test_a_resumed_run_counts_on_after_a_line_that_was_cut(tmp_path: Path) -> None:
    journal = tmp_path / "metrics.jsonl"
    journal.write_text('{"step": 7, "epoch": 7, "time": 1.0, "metrics": {}}\n{"step": 8, "epo')
    with SystemMetricsSampler(tmp_path, interval=0.05):
        until = time.monotonic() + 240
        while journal.read_text().count("\n") < 3 and time.monotonic() < until:
            time.sleep(0.02)
    assert [line["step"] for line in lines(journal)][:3] == [7, 8, 9]


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    with SystemMetricsSampler(tmp_path, is_paused=lambda: True, interval=0.01):
        time.sleep(0.2)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_folder_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    with SystemMetricsSampler(tmp_path / "none", interval=0.01) as sampler:
        sampler._thread.join(240)
        assert not sampler._thread.is_alive()


def test_they_are_on_mlflows_page_for_system_metrics(run_folder: Path, exp: Experiment) -> None:
    with MlflowSync(run_folder, exp, interval=0.05, sampling_interval=0.05):
        wait_for(2, run_folder / "metrics.jsonl")
    client, runs = fetch(run_folder)
    history = client.get_metric_history(runs["."].info.run_id, "system/cpu_utilization_percentage")
    assert len(history) == len(lines(run_folder / "metrics.jsonl")) >= 2
    size = len(history)
    with MlflowSync(run_folder, exp, interval=0.05, sampling_interval=0.05):  # finished: nothing more is said
        time.sleep(0.5)
    assert len(lines(run_folder / "metrics.jsonl")) == size
