"""The network beside a constant mask and a threshold, on the same out-of-fold cases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from competition.cli.train import _score_postprocessing
from competition.context import Context
from competition.errors import MaskfoldError
from competition.metrics.scoring import read_scores
from competition.runs import baselines
from competition.runs.baselines import baseline_lines
from competition.runs.summary import SCORES_FILE, SUMMARY_FILE
from competition.training.cross_validate import summarize_run
from competition.training.timing.progress import BAR_MARK, ProgressLog, clock_time, format_seconds, parse_bar


def test_the_lines_of_a_good_network(finished, tiny):
    run = finished(tiny(2), "demo2d-good", noise=0.2)
    summarize_run(run)
    lines = baseline_lines(run)
    scores = read_scores(run.folder / SCORES_FILE)
    dice = scores.loc[scores["tp"] + scores["fn"] > 0, "dice"].mean()
    assert (
        lines[0] == "Dice of each method on the same 10 out-of-fold cases, averaged over the classes that a case has:"
    )
    assert lines[1].split("  ")[1] == "the network" and lines[1].endswith(f"  {dice:.4f}")
    assert lines[2].startswith("  without training: best threshold (")
    assert lines[3].startswith("  without training: best constant mask, ")
    assert len({len(line) for line in lines[1:4]}) == 1  # the numbers are in one column
    assert lines[4].startswith("  all classes as one foreground, without training: best threshold (")
    assert len(lines) == 5
    assert baseline_lines(run) == lines


def test_the_lines_are_kept_until_the_scores_change(finished, tiny, monkeypatch):
    run = finished(tiny(2))
    lines = baseline_lines(run)
    computed = []
    monkeypatch.setattr(baselines, "compare_with_baselines", lambda *args: computed.append(args) or ["new"])
    assert baseline_lines(run) == lines and not computed, "no case is read again"
    (run.folder / baselines.BASELINES_FILE).write_text("{")
    assert baseline_lines(run) == ["new"] == baseline_lines(run) and len(computed) == 1
    scores = run.folder / SCORES_FILE
    scores.write_text(scores.read_text() + "\n")
    assert baseline_lines(run) == ["new"] and len(computed) == 2


def test_a_network_that_is_not_clearly_better_is_warned_of(finished, tiny):
    run = finished(tiny(2), "demo2d-bad", noise=0.2)
    summarize_run(run)
    scores = read_scores(run.folder / SCORES_FILE)
    scores["dice"] = scores["dice"].where(scores["tp"] + scores["fn"] == 0, 0.01)
    scores.to_csv(run.folder / SCORES_FILE, index=False)
    with pytest.raises(MaskfoldError, match=SCORES_FILE):  # an edited table does not decide
        baseline_lines(run)
    (run.folder / SUMMARY_FILE).unlink()
    warnings = [line for line in baseline_lines(run) if line.startswith("warning: ")]
    gain = "than the best constant mask (Dice of the network minus Dice of the constant mask: -0."
    assert len(warnings) == 2 and gain in warnings[0]
    assert "the best threshold (" in warnings[1]


@pytest.mark.parametrize(("most", "seconds"), [(4, 1000.0), (200, 25.0)])
def test_some_cases_of_many_are_always_the_same_and_said(finished, tiny, monkeypatch, most, seconds):
    run = finished(tiny(2), "demo2d-many", noise=0.2)
    summarize_run(run)
    monkeypatch.setattr(baselines, "MAX_CASES", most)
    ticks = iter(np.arange(0.0, 100.0) * seconds / 4)  # seconds / 4 for each case
    limited = most < 10
    lines = baseline_lines(run, (lambda: 0.0) if limited else lambda: float(next(ticks)))
    assert lines[0].startswith("Dice of each method on the same 4 of 10 out-of-fold cases, ")


def test_large_images_are_thinned():
    assert baselines._stride((1, 100, 100), 10_000) == (slice(None, None, 1),) * 2
    assert baselines._stride((2, 100, 100, 100), 250_000) == (slice(None, None, 2),) * 3


def test_a_run_without_validated_cases_has_no_baselines(finished, tiny):
    run = finished(tiny(2), "demo2d-none", noise=0.2)
    assert baseline_lines(dataclasses.replace(run, folds=run.folds.assign(fold=-1))) == []


def test_tuning_that_is_skipped_for_lack_of_folds_is_said(finished, tiny):
    run = finished(tiny(2, "postprocess.tune=true"), "demo2d-tune", noise=0.2)
    summary = summarize_run(run)
    one = dataclasses.replace(summary, folds=[result for result in summary.folds if result["fold"] == 0])
    assert _score_postprocessing(run, one, Context()) == [
        "post-processing is not tuned, because tuning (postprocess.tune) needs all folds, and fold 1 is not finished; "
        "folds.run=[1] trains it"
    ]


# Progress


def test_a_line_is_due_30_seconds_after_the_last_one():
    now, lines = [0.0], []
    log = ProgressLog(lines.append, clock=lambda: now[0])
    log.set(lambda: (f"at {now[0]:g}", 0.0))
    for now[0] in range(1, 100):
        if now[0] == 45:
            log("epoch 1")
        log.tick()
    assert lines == ["at 30", "epoch 1", "at 75"]


def test_a_bar_takes_the_place_of_the_lines():
    now, lines, bar = [0.0], [], []
    log = ProgressLog(lines.append, bar.append, lambda: now[0])
    for now[0] in range(0, 100, 10):
        log.set(lambda: (f"step {now[0]}", now[0] / 100))
    assert lines == [] and parse_bar(bar[-1]) == (0.9, "step 90") and bar[-1].startswith("  ")
    assert parse_bar("epoch 1") is None and parse_bar(f"{BAR_MARK}x y") is None


def test_a_thread_says_what_takes_long(monkeypatch):
    import threading

    from competition.training.timing import progress

    said = threading.Event()
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    with ProgressLog(lambda line: said.set()).ticking():
        assert said.wait(30)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.412, "0.41 s"), (31.2, "31 s"), (720.0, "12 min"), (12_600.0, "3.5 h")]
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


def test_the_time_of_another_day_has_its_date():
    from datetime import datetime

    now = datetime(2024, 5, 6, 23, 50)
    assert clock_time(60, now) == "23:51" and clock_time(1200, now) == "2024-05-07 00:10"
