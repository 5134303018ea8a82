"""Damage to what a run writes down for itself, in the places that the fuzz does not reach: one by one, by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from competition.errors import MaskfoldError
from tests.prepared import experiment

pytestmark = pytest.mark.faults
BRACKETS = b"[" * 100_000  # deeper than Python recurses
LINE = b'{"step": %d, "epoch": %d, "time": 1.0, "metrics": {"val/score": 0.5}}\n'
BAD_LINES = {
    "brackets": BRACKETS,
    "list": b"[]",
    "no text": b"\xff\xfe",
    "number": b"7",
    "cut": LINE[:40],
    "steps of words": b'{"step": "9", "epoch": 9, "time": 1, "metrics": {"val/score": 9}}',
    "a list of metrics": b'{"step": 9, "epoch": 9, "time": 1, "metrics": [9]}',
    "no epoch": b'{"step": 9, "time": 1, "metrics": {"val/score": 9}}',
    "a time beyond clocks": b'{"step": 9, "epoch": 9, "time": 1e308, "metrics": {"val/score": 9}}',
    "an endless epoch": b'{"step": 9, "epoch": 1e999, "time": 1, "metrics": {"val/score": 9}}',
    "a number beyond floats": b'{"step": 9, "epoch": 9, "time": 1, "metrics": {"val/score": 1' + b"0" * 400 + b"}}",
}
TEXTS = {"brackets": BRACKETS, "list": b"[1]", "no text": b"\xff", "nothing": b"", "empty": b"{}"}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_every_reader_of_a_journal_leaves_out_the_same_lines(tmp_path: Path, bad: str) -> None:
    from competition.records import read_metrics_lines
    from competition.runs.checkpoint import MetricsLog
    from competition.tracking.sync_state import FileOffset, read_chunk
    from competition.tracking.system_metrics import _truncate_to_last_step
    from competition.viz.curves import read_curves

    path = tmp_path / "metrics.jsonl"
    content = LINE % (1, 1) + BAD_LINES[bad] + b"\n" + LINE % (2, 2)
    path.write_bytes(content)
    assert [(line.step, line.epoch, line.metrics) for line in read_metrics_lines(path)] == [
        (1, 1.0, {"val/score": 0.5}),
        (2, 2.0, {"val/score": 0.5}),
    ]
    assert read_curves(path) == {"val/score": ([1.0, 2.0], [0.5, 0.5])}
    assert [(point.step, point.value) for point in read_chunk(path, FileOffset()).points] == [(1, 0.5), (2, 0.5)]
    assert _truncate_to_last_step(path) == 2
    assert MetricsLog(path, 1).has_metric(1, "val/score")
    assert path.read_bytes() == LINE % (1, 1)


@pytest.mark.parametrize("bad", TEXTS)
def test_a_damaged_job_is_named_by_the_fold(tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str) -> None:
    from competition.training.fold import main

    (tmp_path / "job.json").write_bytes(TEXTS[bad])
    assert main(str(tmp_path / "job.json")) == 1
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"error: {tmp_path / 'job.json'} is damaged: ") and line.endswith("which writes this file.")


@pytest.mark.parametrize("bad", TEXTS)
def test_a_folds_damaged_last_words_do_not_hide_its_end(tmp_path: Path, bad: str) -> None:
    from competition.runs.fold import FoldJob
    from competition.training.fold_process import raise_for_status

    (tmp_path / "error.json").write_bytes(TEXTS[bad])
    (tmp_path / "output.txt").write_text("the very last line\n")
    with pytest.raises(MaskfoldError, match=r"ended with status 3\. Its last output was: the very last line"):
        raise_for_status(FoldJob(tmp_path, tmp_path, 0, 0, tmp_path, 1), 3)


SHIPPED = {
    "token": "t",
    "run_id": "r",
    "journal": {"offset": 5, "seal": "", "head": ""},
    "files": {},
    "steps": {"a": 1},
}


@pytest.mark.parametrize(
    "bad",
    [
        *TEXTS.values(),
        *(
            {"version": 1, "store": "s", "folders": {".": SHIPPED | change}}
            for change in (
                {"token": 5},
                {"run_id": 7},
                {"journal": {"offset": "x", "seal": "", "head": ""}},
                {"journal": {"offset": -1, "seal": "", "head": ""}},
                {"steps": {"a": "b"}},
                {"files": {"a": {"size": "1", "time": 1, "digest": ""}}},
                {"files": [1]},
                {"x": 1},
            )
        ),
    ],
)
def test_a_damaged_note_of_deliveries_is_put_aside_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: Any
) -> None:
    from competition.tracking.sync_state import SyncState, read_sync_state

    path = tmp_path / "shipped.json"
    path.write_text(json.dumps({"version": 1, "store": "s", "folders": {".": SHIPPED}}))
    assert read_sync_state(tmp_path, "s").uploaded(".").run_id == "r"
    path.write_bytes(bad if isinstance(bad, bytes) else json.dumps(bad).encode())
    assert read_sync_state(tmp_path, "s") == SyncState("s")
    assert [one.name for one in tmp_path.iterdir()] == ["shipped.json.unreadable"]
    assert f"{path} is damaged" in caplog.text


def test_a_damaged_snapshot_is_not_averaged(tmp_path: Path) -> None:
    import torch

    from competition.training.averaging import CheckpointAverager

    kept = CheckpointAverager(tmp_path / "snapshots", 2, by_score=False)
    for epoch, value in ((1, 1.0), (2, 3.0)):
        kept.add(epoch, 0.5, lambda value=value: {"w": torch.full((50,), value)})  # type: ignore[misc]
    mean = kept.average()
    assert mean is not None and mean["w"].tolist() == [2.0] * 50
    path = sorted((tmp_path / "snapshots").iterdir())[1]
    sound = path.read_bytes()
    for content in (sound[:-1] + bytes([sound[-1] ^ 1]), sound[:60], b""):
        path.write_bytes(content)
        with pytest.raises(MaskfoldError, match=f"{path.name} cannot be read: .*delete {tmp_path}"):
            kept.average()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("0.5", "0.x"),
        lambda text: text.replace("dice", "dize"),
        lambda text: text.replace("a,0", "a,x"),
        lambda text: text + 'b,0,"ring',
        lambda text: text + "b,0,ring,0.5,0.5,1,2,3,4,5\n",
        lambda text: "",
    ],
)
def test_damaged_scores_are_named(tmp_path: Path, damage: Callable[[str], str]) -> None:
    from competition.metrics.scoring import read_scores

    path, sound = (
        tmp_path / "scores.csv",
        "id,fold,class,score,dice,tp,fp,fn\nnan,0,ring,,,0,0,0\na,0,ring,0.5,0.25,1,2,3\n",
    )
    path.write_text(sound)
    table = read_scores(path)
    assert table["id"].tolist() == ["nan", "a"] and np.isnan(table["score"][0]) and table["dice"][1] == 0.25
    path.write_text(damage(sound))
    with pytest.raises(MaskfoldError, match="scores.csv is damaged"):
        read_scores(path)


def test_tables_that_do_not_have_the_same_cases_are_no_run(tiny: Any, tmp_path: Path) -> None:
    from competition.runs.run import load_run
    from competition.training.cross_validate import open_run

    run = open_run(tiny(2), "tiny", root=tmp_path)
    run.write()
    assert load_run(run.folder).members() == run.members()
    path = run.folder / "folds.csv"
    lines = path.read_text().splitlines(keepends=True)
    for changed in (lines[:-1], [*lines, "another,0,another\n"]):
        path.write_text("".join(changed))
        with pytest.raises(
            MaskfoldError, match="cases.csv or folds.csv cannot be read .*folds.csv do not have the same cases"
        ):
            load_run(run.folder)


@pytest.mark.parametrize("bad", TEXTS)
def test_damaged_trials_are_named(tmp_path: Path, bad: str) -> None:
    from competition.study.study import read_trials

    (tmp_path / "trials.json").write_bytes(TEXTS[bad])
    with pytest.raises(MaskfoldError, match="trials.json is damaged"):
        read_trials(tmp_path)


@pytest.mark.parametrize("bad", [*TEXTS.values(), b'{"settings": {"steps": 5}}'])
def test_damaged_steps_of_a_model_are_named(tmp_path: Path, bad: bytes) -> None:
    from competition.export.predictor import _read_settings

    (tmp_path / "postprocess.json").write_bytes(bad)
    with pytest.raises(MaskfoldError, match="postprocess.json is damaged"):
        _read_settings(tmp_path / "postprocess.json")


@pytest.mark.parametrize("bad", [text for name, text in TEXTS.items() if name != "empty"])
def test_a_damaged_result_is_not_told_to_mlflow(tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: bytes) -> None:
    from competition.tracking.store import read_result_json

    (tmp_path / "result.json").write_bytes(bad)
    assert read_result_json(tmp_path / "result.json") == {}
    assert "result.json is damaged" in caplog.text


# Prepared cases


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Path]:
    """(case table, experiment, folder of the one case that was prepared)."""
    from competition.data.cases import case_table
    from competition.data.preprocessing import preprocess_cases

    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    Path("masks").mkdir()
    np.save("a.npy", image)
    np.save("masks/a.npy", (image > 1).astype(np.uint8))
    exp = experiment(3, [8, 8, 8], prepare={"intensity": "zscore"})
    train = exp.competition.train.model_copy(update={"masks": "masks/{id}.npy"})
    exp = exp.model_copy(update={"competition": exp.competition.model_copy(update={"train": train})})
    table = case_table(exp.competition, "train")
    [folder] = preprocess_cases(table, exp, tmp_path / "cache").values()
    return table, exp, folder


def header(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert old in content and len(old) == len(new)
        return content.replace(old, new)

    return change


def record(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | changes).encode()


DAMAGE: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("image.npy", header(b"'<f4'", b"'<i4'")),
    ("image.npy", header(b"'<f4'", b"'>f4'")),
    ("image.npy", header(b"False", b"True ")),
    ("image.npy", header(b"(1, 9, 8, 7)", b"(1, 8, 9, 7)")),
    ("image.npy", header(b"\x93NUMPY", b"\x80NUMPY")),
    ("image.npy", lambda old: old[:-4]),
    ("mask.npy", header(b"'|u1'", b"'|i1'")),
    ("foreground.npy", header(b"'<i4'", b"'<f4'")),
    ("case.json", record(normalised=False)),
    ("case.json", record(geometry={})),
    ("case.json", record(intensity=[])),
    ("case.json", record(sizes=["image.npy"])),
    ("case.json", record(sizes={"../../a.npy": 1})),
    ("case.json", header(b'"sha256"', b'"sha257"')),
    ("case.json", lambda _: BRACKETS),
    ("case.json", lambda _: b""),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGE)
def test_a_damaged_prepared_case_is_refused_then_prepared_again_which_is_said(
    toy: tuple[Any, Any, Path], caplog: pytest.LogCaptureFixture, file: str, damage: Callable[[bytes], bytes]
) -> None:
    from competition.data.cache import PreprocessedCase
    from competition.data.preprocessing import preprocess_cases

    table, exp, folder = toy
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / file).write_bytes(damage(before[file]))
    with pytest.raises(MaskfoldError, match=r"reprocessed case .*damaged") as caught:
        case = PreprocessedCase.open(folder)
        _ = (case.image, case.mask, case.foreground)
    assert str(folder) in caught.value.message
    with caplog.at_level(logging.WARNING):
        assert preprocess_cases(table, exp, folder.parent) == {"a": folder}
    assert f"case a ({folder}) is damaged: " in caplog.text
    assert caplog.text.count("is damaged") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    caplog.clear()
    preprocess_cases(table, exp, folder.parent)
    assert not caplog.records


@pytest.mark.parametrize(
    "change", [{}, {"intensity": {"lo": [None], "hi": [None], "shift": [0.0]}}, {"geometry": {"x": 1}}, {"x": 1}]
)
def test_a_case_from_before_records_had_a_digest_is_read_where_it_is_sound(
    toy: tuple[Any, Any, Path], change: dict[str, Any]
) -> None:
    from competition.data.cache import PreprocessedCase, find_damage

    path = toy[2] / "case.json"
    plain = json.loads(path.read_bytes())
    del plain["sha256"]
    path.write_text(json.dumps(plain | change))
    assert (find_damage(toy[2]) is None) is (not change)
    if not change:
        assert PreprocessedCase.open(toy[2]).image.shape == (1, 9, 8, 7)


def test_a_case_that_is_not_there_yet_is_not_called_damaged(
    toy: tuple[Any, Any, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from competition.data.preprocessing import preprocess_cases

    caplog.clear()
    preprocess_cases(toy[0], toy[1], tmp_path / "another")
    assert not caplog.records


def test_a_networks_damaged_answer_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from competition.training import guards

    exp: Any = SimpleNamespace(
        model=SimpleNamespace(model_dump=dict),
        patch=SimpleNamespace(size=[8]),
        training=SimpleNamespace(batch_size=1, memory_format="channels_first"),
        network_channels=1,
        gate=None,
    )
    asked: list[int] = []
    monkeypatch.setattr(guards, "_gradients_repeat", lambda *_: not asked.append(1))
    assert (
        guards.bf16_is_deterministic(exp, 1, tmp_path)
        and guards.bf16_is_deterministic(exp, 1, tmp_path)
        and len(asked) == 1
    )
    [kept] = (tmp_path / "bf16").iterdir()
    for number, text in enumerate((BRACKETS, b"[]", b"{}", b"\xff"), start=2):
        kept.write_bytes(text)
        assert guards.bf16_is_deterministic(exp, 1, tmp_path) and len(asked) == number
