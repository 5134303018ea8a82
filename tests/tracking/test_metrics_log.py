"""Reading of new lines of `metrics.jsonl`."""

import math
from pathlib import Path

import pytest

from competition.tracking.sync_state import FileOffset, MetricPoint, read_chunk
from tests.tracking.conftest import line


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, lr=0.1))
    first = read_chunk(path, FileOffset())
    assert first.points == [MetricPoint("lr", 0.1, 1_700_000_001_000, 1)]
    assert read_chunk(path, first.end).points == []
    with open(path, "a") as file:
        file.write(line(2, lr=0.2))
    second = read_chunk(path, first.end)
    assert [point.value for point in second.points] == [0.2]
    assert not second.is_restarted


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = line(1, lr=0.1)
    path.write_text(whole + whole[:20])
    news = read_chunk(path, FileOffset())
    assert len(news.points) == 1
    path.write_text(whole + whole)
    assert len(read_chunk(path, news.end).points) == 1


def test_a_rewritten_journal_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, lr=0.1) + line(2, lr=0.2))
    place = read_chunk(path, FileOffset()).end
    path.write_text(line(1, lr=0.1))
    shorter = read_chunk(path, place)
    assert (shorter.is_restarted, [point.step for point in shorter.points]) == (False, [1])
    path.write_text(line(1, lr=0.1) + line(2, 9.0, lr=0.2) + line(3, lr=0.3))
    longer = read_chunk(path, place)
    assert (longer.is_restarted, [point.step for point in longer.points]) == (False, [1, 2, 3])
    path.write_text(line(1, 5.0, lr=0.1) + line(2, lr=0.2) + line(3, lr=0.3))
    assert read_chunk(path, place).is_restarted


def test_long_journals_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("competition.tracking.sync_state.MAX_READ_BYTES", 200)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step, lr=0.1) for step in range(20)))
    place, steps, more = FileOffset(), [], True
    while more:
        news = read_chunk(path, place)
        steps += [point.step for point in news.points]
        place, more = news.end, news.has_more
    assert steps == list(range(20))


def test_values_that_are_not_finite_become_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "epoch": 1, "time": 1.0, "metrics": {"a": NaN, "b": Infinity, "c": null, "d": 1}}\n')
    points = {point.name: point.value for point in read_chunk(path, FileOffset()).points}
    assert set(points) == {"a", "b", "d"}
    assert math.isnan(points["a"]) and math.isnan(points["b"])


def test_a_broken_line_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, lr=0.1) + '{"step": 2, "met\n' + "[]\n" + line(3, lr=0.3))
    assert [point.step for point in read_chunk(path, FileOffset()).points] == [1, 3]
    assert sum("cannot be read" in record.message for record in caplog.records) == 2
