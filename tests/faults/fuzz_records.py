"""Damaged files of a run's folder and of the cache: prepared cases, results, metrics and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import oracles
from tests.faults.fuzz_targets import BRACKETS, Target
from tests.faults.mutations import Damage

ROOT = Path(__file__).resolve().parents[2]


def _prepared(path: Path) -> Any:
    from competition.data.cache import PreprocessedCase

    case = PreprocessedCase.open(path.parent)
    image = np.asarray(case.network_input[:])
    case.foreground.sum()
    assert case.mask is not None
    return np.concatenate([image, np.asarray(case.mask, np.float32)])


def prepared(folder: Path) -> dict[str, Target]:
    from tests.prepared import experiment, prepared_case

    exp = experiment(3, [8, 8, 8], prepare={"intensity": "zscore"})
    image = np.random.default_rng(0).normal(size=(2, 9, 8, 7)).astype(np.float32)
    made = prepared_case(folder, "case_1", image, (image[:1] > 1).astype(np.uint8), exp)
    files = {path.name: path.read_bytes() for path in made.iterdir()}

    def said(content: bytes) -> Any:
        if len(content) != len(files["image.npy"]) or content[:128] != files["image.npy"][:128]:
            raise oracles.Unsound("not the array that was written")
        values = np.frombuffer(content, "<f4", offset=128).reshape(2, 9, 8, 7)  # has no checksum: any values are values
        return np.concatenate([values, oracles.npy(files["mask.npy"]).astype(np.float32)])

    array, record = files["image.npy"], files["case.json"]
    turned = array.replace(b"(2, 9, 8, 7)", b"(2, 8, 9, 7)")
    doubled = array.replace(b"'<f4'", b"'<f8'")
    tricks = [
        ("another shape", turned),
        ("another type", doubled),
        ("another order", array.replace(b"False", b"True ")),
    ]
    beside = {name: one for name, one in files.items() if name != "image.npy"}
    plain = json.loads(record)
    odd: list[Damage] = [
        ("brackets", BRACKETS),
        ("a list", b"[]"),
        ("null", b"null"),
        ("no geometry", json.dumps({k: v for k, v in plain.items() if k != "geometry"}).encode()),
        ("another geometry", json.dumps(plain | {"geometry": {"x": 1}}).encode()),
        ("sizes of words", json.dumps(plain | {"sizes": ["image.npy"]}).encode()),
        ("a file outside", json.dumps(plain | {"sizes": {"../../../etc/passwd": 1}}).encode()),
    ]
    return {
        "prepared": Target(
            "key/image.npy",
            array,
            30,
            _prepared,
            said,
            tricks,
            {f"key/{name}": one for name, one in beside.items()},
            ("key",),
        ),
        "case.json": Target(
            "key/case.json",
            record,
            30,
            _prepared_record,
            _json,
            odd,
            {f"key/{name}": one for name, one in files.items() if name != "case.json"},
            ("key",),
        ),
    }


def _prepared_record(path: Path) -> Any:
    _prepared(path)
    return _json(path.read_bytes())


def _json(content: bytes) -> Any:
    return json.loads(content)


def _result(path: Path) -> Any:
    from dataclasses import asdict

    from competition.runs.fold import FoldResult

    found = FoldResult.read(path.parent)
    return None if found is None else {key: value for key, value in asdict(found).items() if key in RESULT}


def _journal(path: Path) -> Any:
    """Read a `metrics.jsonl` in the two ways in which Maskfold does: to resume at step 6, and to upload its lines."""
    from competition.runs.checkpoint import MetricsLog
    from competition.tracking.sync_state import FileOffset, read_chunk

    journal = MetricsLog(path, 6)
    journal.has_metric(6, "val/score")
    read_chunk(path, FileOffset())


def _run(path: Path) -> Any:
    from competition.runs.run import load_run

    run = load_run(path.parent)
    return [list(row) for row in run.folds.itertuples(index=False)], run.cases.astype(str).values.tolist()


RESULT = {
    "fold": 0,
    "seed": 0,
    "score": 0.5,
    "dice": {"ring": 0.25},
    "epochs": 1,
    "steps": 4,
    "minutes": 0.1,
    "peak_gib": 0.5,
    "threads": 1,
    "precision": "32-true",
    "device": "cpu",
    "torch": "2.9",
    "stopped": "",
    "weights": "weights.safetensors",
    "devices": 1,
}


def records(folder: Path) -> dict[str, Target]:
    from competition.config.loading import load_experiment, resolve_config, write_yaml

    full = RESULT
    text = json.dumps(full, indent=1).encode()
    odd: list[Damage] = [
        ("brackets", BRACKETS),
        ("a list", b"[1]"),
        ("a further key", json.dumps(full | {"x": 1}).encode()),
        ("a missing key", b"{}"),
        ("words for numbers", json.dumps(full | {"score": "high", "fold": "0"}).encode()),
        ("weights elsewhere", json.dumps(full | {"weights": "../../../../etc/passwd"}).encode()),
        ("NaN", text.replace(b"0.5", b"NaN")),
    ]
    lines = "".join(
        json.dumps(
            {"step": step, "epoch": step, "time": 1.5e9 + step, "metrics": {"val/score": 0.5, "train/loss": 1.0}}
        )
        + "\n"
        for step in range(1, 13)
    ).encode()
    journal: list[Damage] = [
        ("brackets", BRACKETS + b"\n" + lines),
        ("a list", b"[]\n" + lines),
        ("a number", b"7\n" + lines),
        ("steps of words", lines.replace(b'"step": 3', b'"step": "x"')),
        ("metrics of words", lines.replace(b"0.5", b'"x"')),
        ("no metrics", lines.replace(b"metrics", b"numbers")),
    ]
    write_yaml(resolve_config(load_experiment(ROOT / "experiments/demo2d/unet2d.yaml")), folder / "experiment.yaml")
    beside = {
        "experiment.yaml": (folder / "experiment.yaml").read_bytes(),
        "folds.csv": b"id,fold,group\na,0,a\nb,1,b\n",
        "cases.csv": (
            "id,split,images,masks,group,stratum,shape,spacing,channels,slices,hash,image_hash\n"
            + "".join(
                f'{name},train,"{{""image"": ""images/{name}.png""}}",'
                f'"{{""kind"": ""labels"", ""files"": ""masks/{name}.png""}}",{name}'
                ',,"[4, 4]","[1.0, 1.0]",1,null,h,h\n'
                for name in "ab"
            )
        ).encode(),
    }
    files = {name: {key: one for key, one in beside.items() if key != name} for name in ("folds.csv", "cases.csv")}
    return {
        "result.json": Target("fold_0/result.json", text, 24, _result, _json_result, odd),
        "metrics.jsonl": Target("metrics.jsonl", lines, 24, _journal, lambda content: None, journal),
        "folds.csv": Target(
            "run/folds.csv",
            beside["folds.csv"],
            16,
            _run,
            _unsaid,
            [],
            {f"run/{k}": v for k, v in files["folds.csv"].items()},
        ),
        "cases.csv": Target(
            "run/cases.csv",
            beside["cases.csv"],
            24,
            _run,
            _unsaid,
            [],
            {f"run/{k}": v for k, v in files["cases.csv"].items()},
        ),
    }


def _json_result(content: bytes) -> Any:
    return json.loads(content)


def _unsaid(_: bytes) -> Any:
    """Return Ellipsis, which equals every result: there is no independent decoder for these tables."""
    return ...
