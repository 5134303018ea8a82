import math
from pathlib import Path

import pytest

from competition.tracking.journal import Place, Point, read_news

from .conftest import line


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, lr=0.1))
    first = read_news(path, Place())
    assert first.points == [Point("lr", 0.1, 1_700_000_001_000, 1)]
    assert read_news(path, first.place).points == []
    with open(path, "a") as file:
        file.write(line(2, lr=0.2))
    second = read_news(path, first.place)
    assert [point.value for point in second.points] == [0.2]
    assert not second.afresh


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = line(1, lr=0.1)
    path.write_text(whole + whole[:20])
    news = read_news(path, Place())
    assert len(news.points) == 1
    path.write_text(whole + whole)
    assert len(read_news(path, news.place).points) == 1


def test_a_rewritten_journal_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, lr=0.1) + line(2, lr=0.2))
    place = read_news(path, Place()).place
    path.write_text(line(1, lr=0.1))
    shorter = read_news(path, place)
    assert (shorter.afresh, [point.step for point in shorter.points]) == (False, [1])
    path.write_text(line(1, lr=0.1) + line(2, 9.0, lr=0.2) + line(3, lr=0.3))
    longer = read_news(path, place)
    assert (longer.afresh, [point.step for point in longer.points]) == (False, [1, 2, 3])
    path.write_text(line(1, 5.0, lr=0.1) + line(2, lr=0.2) + line(3, lr=0.3))
    assert read_news(path, place).afresh


def test_long_journals_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("competition.tracking.journal.MOST_BYTES", 200)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step, lr=0.1) for step in range(20)))
    place, steps, more = Place(), [], True
    while more:
        news = read_news(path, place)
        steps += [point.step for point in news.points]
        place, more = news.place, news.more
    assert steps == list(range(20))


def test_values_that_are_not_finite_become_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "epoch": 1, "time": 1.0, "metrics": {"a": NaN, "b": Infinity, "c": null, "d": 1}}\n')
    points = {point.name: point.value for point in read_news(path, Place()).points}
    assert set(points) == {"a", "b", "d"}
    assert math.isnan(points["a"]) and math.isnan(points["b"])


def test_a_broken_line_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, lr=0.1) + '{"step": 2, "met\n' + "[]\n" + line(3, lr=0.3))
    assert [point.step for point in read_news(path, Place()).points] == [1, 3]
    assert sum("cannot be read" in record.message for record in caplog.records) == 2
