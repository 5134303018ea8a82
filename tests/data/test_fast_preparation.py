"""Preparation without needless work: every result is that of the plain algorithm, which is kept here for comparison."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from competition.config.experiment import Experiment
from competition.data import normalisation, preprocessing
from competition.data.cache import CACHE_FORMAT, OPTIONAL_KEYS, UNHASHED_KEYS, PreprocessedCase, cache_key, find_damage
from competition.data.cases import case_table
from competition.data.normalisation import percentiles
from competition.data.objects import boundary_mask
from competition.data.preprocessing import preprocess_cases, sample_voxels
from competition.data.readers import read_image
from competition.data.rle import tables as rle_tables
from competition.data.rle.tables import row_texts
from competition.errors import MaskfoldError
from tests.data.test_preprocessing import experiment, write_competition
from tests.host import write_text

SHARES = [[0.5, 99.5], [0.0, 100.0], [2.0, 98.0], [33.3, 50.0], [0.1, 12.5]]


# Statistics of a channel


def _channels(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    yield "8 bits", rng.integers(0, 256, shape).astype(np.uint8)
    yield "8 bits", rng.choice([0, 0, 0, 255], shape).astype(np.uint8)
    yield "16 bits", rng.integers(0, 65536, shape).astype(np.float32) / np.float32(65535)
    yield "16 bits", rng.choice([0, 0, 1, 65535], shape).astype(np.float32) / np.float32(65535)
    yield "whole numbers", rng.integers(-1024, 3000, shape).astype(np.float32)
    yield "whole numbers", rng.integers(-32768, 32768, shape).astype(np.float32)
    yield "any", rng.standard_normal(shape, dtype=np.float32)
    yield "any", rng.integers(-(10**6), 10**6, shape).astype(np.float32)
    yield "any", rng.random(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 5), (40, 37), (5, 6, 7), (2, 33, 129), (300, 411)])
def test_percentiles_are_numpys_to_the_last_bit(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape) + shape[0])
    for kind, channel in _channels(rng, shape):
        for shares in SHARES:
            found = percentiles(channel, shares)
            assert np.array(found).tobytes() == np.array([float(x) for x in np.percentile(channel, shares)]).tobytes()
        if kind in ("8 bits", "16 bits") or (kind == "any" and channel.size > 100):
            assert (normalisation._count_values(channel) is None) == (kind == "any")


def test_percentiles_of_negative_zeros_and_of_other_layouts() -> None:
    for values in ([-0.0, 0.0, 0.0, -0.0, 1.0], [-3.0, -0.0, -0.0, 2.0], [-0.0] * 3 + [0.5]):
        channel = np.array(values, np.float32)
        for shares in SHARES:
            expected = np.array([float(x) for x in np.percentile(channel, shares)])
            assert np.array(percentiles(channel, shares)).tobytes() == expected.tobytes()
    wide = np.random.default_rng(0).integers(0, 256, (30, 40)).astype(np.uint8)
    for channel in (wide.T, wide[::2, 1::3]):
        assert percentiles(channel, [1.0, 70.0]) == np.percentile(channel, [1.0, 70.0]).tolist()


def test_blocks_of_any_size_give_the_same_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "BLOCK", 7)
    for _, channel in _channels(np.random.default_rng(1), (9, 11)):
        assert percentiles(channel, SHARES[0]) == np.percentile(channel, SHARES[0]).tolist()
    wide = np.array([[-5.0, 65530.7], [3.0, 4.0]], np.float32)  # its last value would round to the 65,537th
    assert percentiles(wide, SHARES[0]) == np.percentile(wide, SHARES[0]).tolist()
    late = np.arange(2000, dtype=np.float32)
    late[-1] = 5.5  # behind the sample that is looked at first
    assert normalisation._count_values(late) is None


def _plain_moments(channel: np.ndarray, lo: float, hi: float) -> tuple[float, float]:
    total, squares = 0.0, 0.0
    for plane in channel:
        total += float(np.clip(plane, lo, hi).sum(dtype=np.float64))
    mean = total / channel.size
    for plane in channel:
        squares += float(np.square(np.clip(plane, lo, hi).astype(np.float64) - mean).sum())
    return mean, float(np.sqrt(squares / channel.size))


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 5), (64, 64), (7, 1000), (11, 13, 17), (4, 90, 91), (4, 91, 91), (2, 9000)]
)
def test_moments_are_those_of_planes_one_by_one(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(shape[0])
    for _, channel in _channels(rng, shape):
        for lo, hi in ((float(channel.min()), float(channel.max())), (0.25, 93.7)):
            assert normalisation._moments(channel, lo, hi) == _plain_moments(channel, lo, hi)
        lowest, highest = float(channel.min()), float(channel.max())
        found = normalisation._moments(channel, lowest, highest, clips=False)
        assert found == _plain_moments(channel, lowest, highest)
        turned = channel.swapaxes(0, -1)
        assert normalisation._moments(turned, 0.0, 50.0) == _plain_moments(turned, 0.0, 50.0)


# Masks


def _plain_sample(mask: np.ndarray, value: int, most: int) -> np.ndarray:
    flat = np.flatnonzero(mask == value)
    ranks = np.unique(np.linspace(0, len(flat) - 1, min(len(flat), most)).round().astype(np.int64))
    return np.column_stack(np.unravel_index(flat[ranks], mask.shape)).astype(np.int32)


@pytest.mark.parametrize("whole", [0, 2**23])
def test_voxels_are_sampled_at_the_same_places(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "MAX_WHOLE", whole)
    rng = np.random.default_rng(2)
    for shape in ((1, 1), (30, 40), (6, 7, 8)):
        for most in (1, 2, 7, 100, 10_000):
            for values in ([0], [1], [0, 1, 2]):
                mask = rng.choice(values, shape).astype(np.uint8)
                found = sample_voxels(mask, 1, most)
                np.testing.assert_array_equal(found, _plain_sample(mask, 1, most))
                assert found.dtype == np.int32 and found.shape[1] == len(shape)


def _plain_boundary(objects: np.ndarray, width: int) -> np.ndarray:
    edge, remaining = np.zeros(objects.shape, bool), objects != 0
    for thickness in range(width, 0, -1):
        size = 2 * thickness + 1
        highest = ndimage.maximum_filter(objects, size, mode="nearest")
        near = remaining & (highest != ndimage.minimum_filter(objects, size, mode="nearest"))
        has_inside = np.zeros(int(objects.max(initial=0)) + 1, bool)
        has_inside[objects[remaining & ~near]] = True
        finished = has_inside[objects] & remaining
        edge |= near & finished
        remaining &= ~finished
    return edge


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (23, 31), (6, 8, 9)])
def test_boundaries_are_those_of_scipys_filters(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    for width in (1, 2, 3):
        for count in (1, 4, 70_000):
            coarse = rng.integers(0, count + 1, [-(-n // 4) for n in shape]).astype(np.int32)
            objects = np.kron(coarse, np.ones((4,) * len(shape), np.int32))[tuple(slice(n) for n in shape)]
            for laid in (np.ascontiguousarray(objects), np.asfortranarray(objects), np.zeros_like(objects)):
                np.testing.assert_array_equal(boundary_mask(laid, width), _plain_boundary(laid, width))


# Tables of run lengths and the key of a case


def test_a_table_is_looked_at_once_for_all_rows_of_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "t.csv", "id,rle\na,1 2\na,5 1\n,\nb,3 1\n")
    train = {"images": "{id}.png", "rle": "t.csv"}
    comp = experiment(2, {"root": str(tmp_path), "classes": ["x"], "train": train}).competition
    calls: list[int] = []
    true = rle_tables._open_table
    monkeypatch.setattr(rle_tables, "_open_table", lambda comp: calls.append(1) or true(comp))
    assert row_texts(comp, [2, 3]) == ["1 2", "5 1"] and len(calls) == 1
    assert row_texts(comp, [5, 2]) == ["3 1", "1 2"] and row_texts(comp, []) == []
    for line in (4, 6):  # a blank line, and one behind the end
        with pytest.raises(KeyError):
            row_texts(comp, [line])
    write_text(path, "id,rle\na,7 7\n")
    os.utime(path, ns=(1, 1))
    assert row_texts(comp, [2]) == ["7 7"]


def _plain_key(row: Any, exp: Experiment) -> str:
    comp = exp.competition
    prepare = {
        key: value
        for key, value in exp.prepare.model_dump(mode="json").items()
        if key not in UNHASHED_KEYS and (key not in OPTIONAL_KEYS or value)
    }
    parts = {
        "format": CACHE_FORMAT,
        "id": row.id,
        "split": row.split,
        "hash": row.hash,
        "prepare": prepare,
        "dimensions": comp.dimensions,
        "channels": None,
        "classes": comp.classes,
        "values": comp.label_values or comp.output_label_values,
        "labels": comp.labels,
        "ignore": comp.ignore,
        "rle": None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def test_keys_of_two_experiments_in_turn() -> None:
    experiments = [experiment(2), experiment(3, crop="nonzero"), experiment(2, intensity="minmax")]
    rows = [SimpleNamespace(id=str(n), split="train", hash=f"hash {n}") for n in range(3)]
    for row in rows:
        for exp in experiments:
            assert cache_key(row, exp) == _plain_key(row, exp)


# The cache and the processes


@pytest.fixture
def files(tmp_path: Path) -> Experiment:
    return experiment(2, comp=write_competition(tmp_path / "files", 2), resize=[16, 24])


def test_the_cache_is_listed_once_whatever_the_number_of_cases(
    files: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    left = root / ".key~elsewhere~1~11111111.tmp"
    left.mkdir()
    os.utime(left, (0, 0))
    listed: list[Path] = []
    iterdir, listdir, scandir = Path.iterdir, os.listdir, os.scandir
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.append(self) or iterdir(self))
    monkeypatch.setattr(os, "listdir", lambda path=".": listed.append(Path(path)) or listdir(path))
    monkeypatch.setattr(os, "scandir", lambda path=".": listed.append(Path(str(path))) or scandir(path))
    cases = case_table(files.competition, "train")
    folders = preprocess_cases(cases, files, root)
    assert 1 <= listed.count(root) <= 2  # `iterdir` itself calls `listdir`
    monkeypatch.undo()
    assert sorted(path.name for path in root.iterdir()) == sorted(folder.name for folder in folders.values())


def test_a_pool_takes_over_what_is_left(files: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = case_table(files.competition, "train")
    one = preprocess_cases(cases, files, tmp_path / "one", workers=1)
    counts: list[int] = []

    class Pool(preprocessing.ProcessPool):
        def __init__(self, worker: Any, count: int, *rest: Any) -> None:
            counts.append(count)
            super().__init__(worker, 0, *rest)

    monkeypatch.setattr(preprocessing, "ProcessPool", Pool)
    monkeypatch.setattr(preprocessing, "count_cores", lambda: 8)
    preprocess_cases(cases, files, tmp_path / "short")  # too little work for a pool
    monkeypatch.setattr(preprocessing, "PROBE_SECONDS", -1.0)
    monkeypatch.setattr(preprocessing, "POOL_SECONDS", -1.0)
    two = preprocess_cases(cases, files, tmp_path / "two")
    assert counts == [0, 2]  # the last: one case here, the two others in two processes
    for name in one:
        first, second = PreprocessedCase.open(one[name]), PreprocessedCase.open(two[name])
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.foreground, second.foreground)
        assert (one[name] / "case.json").read_bytes() == (two[name] / "case.json").read_bytes()


def test_memory_limits_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(preprocessing, "count_cores", lambda: 16)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * 2**30))
    rows = [SimpleNamespace(shape=json.dumps(shape), channels=2) for shape in ([10, 10, 10], [256, 256, 128])]
    assert preprocessing._count_workers(rows[:1]) == 7
    assert preprocessing._count_workers(rows) == 4 * 2**30 // (24 * 2 * 256 * 256 * 128 + 2**29) == 4
    assert preprocessing._count_workers([SimpleNamespace(shape="[1000, 1000, 1000]", channels=1)]) == 1


def test_a_bar_counts_the_missing_cases_and_ends_before_an_error(
    files: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []

    def bar(rows: Iterator[Any], count: int) -> Iterator[Any]:
        events.append(count)
        try:
            for row in rows:
                yield row
                events.append("done")
        finally:
            events.append("closed")

    cases, lines = case_table(files.competition, "train"), list[str]()
    preprocess_cases(cases.iloc[:1], files, tmp_path / "cache", bar=bar)
    assert events == [1, "done", "closed"]
    events.clear()
    preprocess_cases(cases, files, tmp_path / "cache", progress=lines.append, bar=bar)
    assert events == [2, "done", "done", "closed"] and not lines
    events.clear()
    preprocess_cases(cases, files, tmp_path / "cache", bar=bar)
    assert events == []  # nothing was to be done
    (tmp_path / "files" / "tr" / "0.png").write_bytes(b"no image")
    with pytest.raises(MaskfoldError):
        preprocess_cases(cases, files, tmp_path / "other", bar=bar)
    assert events == [3, "closed"]


def test_processes_end_with_the_first_error(files: Experiment, tmp_path: Path) -> None:
    rows = [SimpleNamespace(**vars(row)) for row in [SimpleNamespace(id="x", split="train", hash="h")]]
    with closing(preprocessing._run(rows, files, tmp_path, 1)) as results:
        with pytest.raises(AttributeError):  # the row has no files
            next(results)
        assert next(results, None) is None


def test_a_known_header_does_not_hide_damage(files: Experiment, tmp_path: Path) -> None:
    folders = list(preprocess_cases(case_table(files.competition, "train"), files, tmp_path / "cache").values())
    assert [find_damage(folder) for folder in (*folders, *folders)] == [None] * 6
    image = folders[0] / "image.npy"
    whole = image.read_bytes()
    for damaged in (
        whole.replace(b"False", b"True ", 1),
        whole.replace(b"|u1", b"|i1", 1),
        whole.replace(b"16, 24", b"24, 16", 1),
        b"\0" + whole[1:],
        whole[:8] + b"\xff" + whole[9:],
    ):
        assert damaged != whole and len(damaged) == len(whole)
        image.write_bytes(damaged)
        assert "image.npy" in str(find_damage(folders[0])) and find_damage(folders[1]) is None
    image.write_bytes(whole[:-1])
    assert "bytes in image.npy" in str(find_damage(folders[0]))
    image.unlink()
    assert "image.npy is missing" in str(find_damage(folders[0]))
    image.write_bytes(whole)
    assert find_damage(folders[0]) is None
    points = folders[0] / "foreground.npy"
    whole = points.read_bytes()
    length = len(np.load(points))
    for shape in (f"({length + 1}, ", f"(0{length}, ", f"(-{length}, "):
        extra = len(shape) - len(f"({length}, ")
        damaged = whole.replace(f"({length}, ".encode(), shape.encode(), 1).replace(b" " * (1 + extra), b" ", 1)
        points.write_bytes(damaged[:128].ljust(128)[:127] + b"\n" + whole[128:])
        assert "foreground.npy" in str(find_damage(folders[0]))
    points.write_bytes(whole)
    assert find_damage(folders[0]) is None


# NIfTI without a second reading of the header


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_voxels_are_nibabels(name: str, kind: type, order: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for dtype in ("u1", "i2", "f4", "f8", "i4"):
        for scale in (None, (2.5, -1.25)):
            values = rng.integers(0, 100, (5, 4, 3)).astype(dtype)
            header = kind.header_class(endianness=order)
            header.set_data_dtype(np.dtype(order + dtype))
            image = kind(values, np.diag([1.5, 2.0, 0.7, 1.0]), header)
            if scale is not None:
                image.header.set_slope_inter(*scale)
            nibabel.save(image, tmp_path / name)
            known, found = nibabel.load(tmp_path / name), read_image(tmp_path / name, 3)
            is_plain = scale is None and np.dtype(dtype).kind in "iu"
            expected = np.asarray(known.dataobj) if is_plain else known.get_fdata(dtype=np.float32)
            np.testing.assert_array_equal(found.array[0], expected)
            assert found.array.dtype == (np.dtype(dtype) if is_plain else np.float32)
            np.testing.assert_allclose(found.spacing, (1.5, 2.0, 0.7), rtol=1e-6)
