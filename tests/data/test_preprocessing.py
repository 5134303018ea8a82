"""Preprocessed cases: the files have what a network and a sampler need."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from competition.config.experiment import Experiment
from competition.data import preprocessing
from competition.data.cache import PreprocessedCase
from competition.data.preprocessing import preprocess_case, preprocess_cases, sample_voxels
from competition.errors import MaskfoldError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "hippocampus"


def experiment(dimensions: int = 3, comp: dict[str, Any] | None = None, **prepare: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "competition": {
                "name": "tiny",
                "root": "data",
                "dimensions": dimensions,
                "classes": ["a", "b"],
                "train": {"images": "i/{id}", "masks": "m/{id}"},
                **(comp or {}),
            },
            "prepare": prepare,
            "patch": {"size": [8] * dimensions},
            "model": {"target": "x.Y"},
            "loss": {"target": "x.Z"},
        }
    )


def picture(array: np.ndarray, spacing: tuple[float, ...] | None = None) -> Any:
    spacing = spacing or (1.0,) * (array.ndim - 1)
    affine = np.diag([*spacing, 1.0]) if array.ndim == 4 else None
    return SimpleNamespace(array=array, spacing=spacing, affine=affine)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Pictures and masks by id, in place of files."""
    cases: dict[str, Any] = {}
    monkeypatch.setattr(preprocessing, "load_image", lambda comp, row: cases[row.id][0])
    monkeypatch.setattr(preprocessing, "load_mask", lambda comp, row: cases[row.id][1])
    monkeypatch.setattr(preprocessing, "unchanged_files", lambda *_, **__: nullcontext())
    return cases


def row(case: str = "one", split: str = "train") -> Any:
    return SimpleNamespace(id=case, split=split, hash=f"hash of {case}")


def test_a_volume_is_normalised_on_its_new_grid(source: dict[str, Any], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image = random.integers(-1000, 2000, (2, 9, 10, 6)).astype(np.int16)
    mask = np.kron(random.integers(0, 3, (3, 5, 3)), np.ones((3, 2, 2))).astype(np.uint8)[None]
    source["one"] = picture(image, (1.0, 1.0, 2.0)), mask
    exp = experiment(orientation="LPS", spacing=[1.0, 1.0, 1.0])
    case = PreprocessedCase.open(preprocess_case(row(), exp, tmp_path))
    assert case.id == "one" and case.normalised
    assert case.image.shape == (2, 9, 10, 12) and case.image.dtype == np.float32
    np.testing.assert_allclose(case.image.mean(axis=(1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(case.image.std(axis=(1, 2, 3)), 1, atol=1e-4)
    assert case.network_input is case.image
    assert case.mask is not None and case.mask.dtype == np.uint8
    np.testing.assert_array_equal(case.mask[0], mask[0, ::-1, ::-1].repeat(2, axis=2))
    points = case.foreground
    np.testing.assert_array_equal(case.mask[0][tuple(points[:, 1:].T)], points[:, 0])
    assert len(points) == np.count_nonzero(case.mask) and points.dtype == np.int32


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (5, 1, 1)])
def test_volumes_smaller_than_anything(source: dict[str, Any], tmp_path: Path, shape: tuple[int, ...]) -> None:
    source["one"] = picture(np.full((1, *shape), 7.0, np.float32), (1.0, 2.0, 3.0)), np.zeros((1, *shape), np.uint8)
    case = PreprocessedCase.open(preprocess_case(row(), experiment(spacing=[2.0, 2.0, 2.0], crop="nonzero"), tmp_path))
    assert (case.image == 0).all() and case.foreground.shape == (0, 4)
    assert case.geometry.inverse(np.ones((3, *case.image.shape[1:]), np.float16)).shape == (3, *shape)


def test_padding_of_a_volume_is_zero_after_normalisation(source: dict[str, Any], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(900, 1100, (1, 6, 6, 6)).astype(np.int16)
    source["one"] = picture(image), np.ones((1, 6, 6, 6), np.uint8)
    case = PreprocessedCase.open(preprocess_case(row(), experiment(resize=[6, 6, 10]), tmp_path))
    assert (case.image[..., :2] == 0).all() and (case.image[..., 8:] == 0).all()
    np.testing.assert_allclose(case.image[..., 2:8].std(), 1, atol=1e-4)
    assert case.mask is not None and case.mask.sum() == 6**3


@pytest.mark.parametrize(("dtype", "kept"), [(np.uint8, np.uint8), (np.uint16, np.float32), (np.float32, np.float32)])
def test_a_picture_keeps_its_values_until_it_is_augmented(
    source: dict[str, Any], tmp_path: Path, dtype: type, kept: type
) -> None:
    random = np.random.default_rng(0)
    most = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    image = (random.random((4, 20, 30)) * most).astype(dtype)
    source["one"] = picture(image), np.zeros((1, 20, 30), np.uint8)
    case = PreprocessedCase.open(preprocess_case(row(), experiment(2), tmp_path))
    assert case.image.shape == (3, 20, 30) and case.image.dtype == kept and not case.normalised  # the alpha is gone
    expected = image[:3].astype(np.float64) / (1 if dtype == np.uint8 else most)
    np.testing.assert_allclose(case.image, expected, rtol=1e-6)
    seen = case.network_input[:]
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std(axis=(1, 2)), 1, atol=1e-5)


def test_four_files_are_four_channels(source: dict[str, Any], tmp_path: Path) -> None:
    files = {"images": {name: f"{name}/{{id}}" for name in "wxyz"}, "masks": "m/{id}"}
    source["one"] = picture(np.ones((4, 5, 5), np.uint8)), np.zeros((1, 5, 5), np.uint8)
    exp = experiment(2, comp={"train": files})
    assert PreprocessedCase.open(preprocess_case(row(), exp, tmp_path)).image.shape == (4, 5, 5)


def test_channels_are_chosen_by_number(source: dict[str, Any], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for dims, shape in ((2, (4, 8, 9)), (3, (3, 5, 6, 7))):
        image = random.integers(0, 255, shape).astype(np.uint8)
        source["one"] = picture(image), np.zeros((1, *shape[1:]), np.uint8)
        for numbers in ([0], [2, 0], [len(image) - 1]):  # of a picture the last is no alpha here: it is asked for
            exp = experiment(dims, channels=numbers, intensity="none")
            case = PreprocessedCase.open(preprocess_case(row(), exp, tmp_path / f"{dims}"))
            np.testing.assert_allclose(case.network_input[:], image[numbers] / (255 if dims == 2 else 1), rtol=1e-6)
        with pytest.raises(MaskfoldError, match=rf"prepare\.channels.*channel 4, .*case one has {len(image)} channels"):
            preprocess_case(row(), experiment(dims, channels=[0, 4]), tmp_path)
    with pytest.raises(ValueError, match=r"prepare\.channels` may be grey or rgb"):
        experiment(3, channels="grey")
    with pytest.raises(ValueError, match=r"`channels` .*\[1, 1\]"):
        experiment(2, channels=[1, 1])
    for wrong in ([], [-1], "green"):
        with pytest.raises(ValueError, match="prepare.channels"):
            experiment(2, channels=wrong)


class Bright(torch.nn.Module):
    """A network that knows the answer: class 1 is where the first channel is bright."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        bright = 20 * (image[:, :1] - 0.5)
        return torch.cat([-bright, bright, torch.full_like(bright, -50)], dim=1)


@pytest.mark.parametrize(
    ("prepare", "lossless"),
    [
        ({"long_side": 96}, False),
        ({"resize": [96, 80]}, False),
        ({"resize": [60, 100], "stretch": True}, False),
        ({}, True),
        ({"crop": "foreground"}, True),
    ],
)
def test_pictures_of_all_sizes_train_on_crops_and_are_predicted_in_tiles(
    source: dict[str, Any], tmp_path: Path, prepare: dict[str, Any], lossless: bool
) -> None:
    from competition.data.dataset import PatchDataset
    from competition.inference.predict import predict_case

    exp = experiment(2, intensity="none", **prepare)
    exp = exp.model_copy(update={"patch": exp.patch.model_copy(update={"size": [48, 32]})})
    folders, truths = [], {}
    for name, (height, width) in {"wide": (70, 150), "high": (160, 90), "small": (50, 45)}.items():
        y, x = np.ogrid[:height, :width]
        mask = ((y - height * 0.5) / 19) ** 2 + ((x - width * 0.45) / 18) ** 2 < 1
        source[name] = (
            picture(np.where(mask, 255, 0).astype(np.uint8)[None].repeat(3, axis=0)),
            mask[None].astype(np.uint8),
        )
        truths[name] = mask
        folders.append(preprocess_case(row(name), exp, tmp_path))
    dataset = PatchDataset(folders, exp, 0, 1)
    for position in range(12):
        item = dataset[(0, position)]
        assert item["image"].shape == (3, 48, 32) and item["mask"].shape == (1, 48, 32)
        both = (item["image"][0] > 0.5) == (item["mask"][0] == 1)
        assert both.mean() > (0.999 if lossless else 0.97)  # a crop's mask lies on its image
    for folder in folders:
        case = PreprocessedCase.open(folder)
        found = predict_case([Bright()], case, exp)
        truth = truths[case.id]
        assert found.shape == (3, *truth.shape) and case.geometry.lossless == lossless
        guess = found.argmax(axis=0) == 1
        score = 2 * (guess & truth).sum() / (guess.sum() + truth.sum())
        assert score == 1 if lossless else score >= 0.98


def test_a_volume_is_predicted_where_it_lies(source: dict[str, Any], tmp_path: Path) -> None:
    """Turned, resampled, cropped to its foreground and padded: the prediction is back on the file's own voxels."""
    from competition.inference.predict import predict_case

    x, y, z = np.ogrid[:40, :36, :24]
    mask = ((x - 24) / 9) ** 2 + ((y - 13) / 8) ** 2 + ((z - 12) / 5) ** 2 < 1
    affine = np.array([[0, -1.1, 0.2, 10], [1.0, 0, 0, -4], [0.1, 0, 1.9, 7], [0, 0, 0, 1.0]])  # oblique, and no RAS
    source["one"] = (
        SimpleNamespace(
            array=np.where(mask, 900, -1000).astype(np.int16)[None],
            affine=affine,
            spacing=tuple(np.linalg.norm(affine[:3, :3], axis=0)),
        ),
        mask[None].astype(np.uint8),
    )
    for grid in ({"spacing": [1.0, 1.2, 1.5]}, {"resize": [32, 28, 20]}, {"resize": [30, 20, 24], "stretch": True}):
        exp = experiment(3, orientation="RAS", crop="foreground", intensity="minmax", **grid)
        exp = exp.model_copy(update={"patch": exp.patch.model_copy(update={"size": [16, 16, 16]})})
        case = PreprocessedCase.open(preprocess_case(row(), exp, tmp_path))
        assert case.geometry.crop != ((0, 36), (0, 40), (0, 24)) and not case.geometry.lossless
        np.testing.assert_allclose(case.geometry.affine, affine)
        guess = predict_case([Bright()], case, exp).argmax(axis=0) == 1
        assert 2 * (guess & mask).sum() / (guess.sum() + mask.sum()) >= 0.98


def test_a_crop_that_cuts_a_class_off_says_so(
    source: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image, mask = np.zeros((1, 20, 20, 20), np.int16), np.zeros((1, 20, 20, 20), np.uint8)
    image[0, 5:15, 5:15, 5:15] = 500
    mask[0, 6:9, 6:9, 6:9], mask[0, 0:2, 6:9, 6:9] = 2, 2
    source["one"] = picture(image), mask
    for crop, lost in (("nonzero", 18), ("foreground", 18), ("none", 0)):
        caplog.clear()
        preprocess_case(row(), experiment(crop=crop), tmp_path)
        message = f"Case one: `prepare.crop: {crop}` removes {lost} of the 45 voxels of b"
        assert (message in caplog.text) == bool(lost) and ("prepare.crop" in caplog.text) == bool(lost)


def test_keys_that_came_later_change_no_name_where_they_are_off() -> None:
    """The names that the first version gave to this run and to this prepared case."""
    from competition.data.cache import cache_key
    from competition.runs.identity.hashing import run_hash

    exp = experiment(orientation="RAS", crop="nonzero")
    assert run_hash(exp, "data") == "2484a8dac14e"
    assert cache_key(row(), exp) == "a464bba70accb67c5aaa4b2d7b180b91"
    on = [
        experiment(orientation="RAS", crop="nonzero", **keys)
        for keys in (
            {"resize": [9, 9, 9]},
            {"resize": [9, 9, 9], "stretch": True},
            {"channels": [0]},
            {"channels": [1]},
        )
    ]
    assert len({run_hash(one, "data") for one in (exp, *on)}) == len({cache_key(row(), one) for one in (exp, *on)}) == 5
    assert len({cache_key(row(), experiment(2, long_side=side)) for side in (None, 8, 9)}) == 3


def test_sizes_that_contradict_each_other_are_refused() -> None:
    for keys, words in (
        ({"resize": [9, 9], "long_side": 9}, "`resize` and `long_side`"),
        ({"spacing": [1.0, 1.0], "long_side": 9}, "`spacing` and `long_side`"),
        ({"stretch": True}, "`stretch` requires `resize`"),
    ):
        with pytest.raises(ValueError, match=words):
            experiment(2, **keys)
    with pytest.raises(ValueError, match=r"`prepare\.long_side` requires"):
        experiment(3, long_side=9)


def test_overlapping_classes(source: dict[str, Any], tmp_path: Path) -> None:
    mask = np.zeros((2, 6, 7), np.uint8)
    mask[0, 1:4, 2:5], mask[1, 2, 2], mask[1, 5, 6] = 1, 1, 255
    source["one"] = picture(np.ones((1, 6, 7), np.uint8)), mask
    exp = experiment(2, comp={"labels": "overlapping", "ignore": 255})
    case = PreprocessedCase.open(preprocess_case(row(), exp, tmp_path))
    np.testing.assert_array_equal(case.mask, mask)
    assert sorted(map(tuple, case.foreground[case.foreground[:, 0] == 2].tolist())) == [(2, 2, 2)]
    assert (case.foreground[:, 0] == 1).sum() == 9
    assert case.geometry.background is False


def test_a_test_case_has_no_mask(source: dict[str, Any], tmp_path: Path) -> None:
    source["one"] = picture(np.ones((1, 5, 5, 5), np.int16)), None
    case = PreprocessedCase.open(preprocess_case(row(split="test"), experiment(), tmp_path))
    assert case.mask is None and not (case.folder / "foreground.npy").exists()


def test_a_mask_of_another_size_is_refused(source: dict[str, Any], tmp_path: Path) -> None:
    source["one"] = picture(np.ones((1, 5, 5, 5), np.int16)), np.zeros((1, 5, 5, 4), np.uint8)
    with pytest.raises(MaskfoldError, match=r"mask of case one .*\(5, 5, 4\)"):
        preprocess_case(row(), experiment(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_foreground_is_spread_evenly_and_repeats() -> None:
    mask = np.zeros((40, 30, 20), np.uint8)
    mask[5:35] = 3
    found = sample_voxels(mask, 3, 500)
    assert found.shape == (500, 3) and len(np.unique(found, axis=0)) == 500
    assert (mask[tuple(found.T)] == 3).all()
    assert found[:, 0].min() == 5 and found[:, 0].max() == 34
    per_slab = np.bincount(found[:, 0], minlength=40)[5:35]
    assert per_slab.max() - per_slab.min() <= 1
    np.testing.assert_array_equal(found, sample_voxels(mask, 3, 500))
    np.testing.assert_array_equal(sample_voxels(mask, 3, 10**6), np.argwhere(mask == 3))
    assert sample_voxels(mask, 1, 500).shape == (0, 3)


def test_pickling_carries_the_folder_and_no_array(source: dict[str, Any], tmp_path: Path) -> None:
    source["one"] = picture(np.ones((1, 30, 30, 30), np.int16)), np.zeros((1, 30, 30, 30), np.uint8)
    case = PreprocessedCase.open(preprocess_case(row(), experiment(), tmp_path))
    assert case.image.size == 27000
    text = pickle.dumps(case)
    assert len(text) < 1000
    np.testing.assert_array_equal(pickle.loads(text).image, case.image)


def table(cases: list[str]) -> pd.DataFrame:
    return pd.DataFrame([vars(row(case)) for case in cases])


def test_all_cases_in_the_tables_order_with_progress(source: dict[str, Any], tmp_path: Path) -> None:
    names = ["b", "a", "c"]
    for index, name in enumerate(names):
        source[name] = picture(np.full((1, 4, 4, 4), index, np.int16)), np.zeros((1, 4, 4, 4), np.uint8)
    lines: list[str] = []
    found = preprocess_cases(table(names), experiment(intensity="none"), tmp_path, progress=lines.append)
    assert list(found) == names and lines[-1] == "3 of 3 cases preprocessed"
    assert [PreprocessedCase.open(found[name]).image[0, 0, 0, 0] for name in names] == [0, 1, 2]
    lines.clear()
    assert preprocess_cases(table(names), experiment(intensity="none"), tmp_path, progress=lines.append) == found
    assert not lines  # nothing was to be done


def test_bad_cases_stop_or_are_left_out(
    source: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_image(comp: Any, row: Any) -> Any:
        if row.id == "bad":
            raise MaskfoldError("bad.nii is cut off.", "Replace it.")
        return source[row.id][0]

    monkeypatch.setattr(preprocessing, "load_image", load_image)
    source["good"] = picture(np.ones((1, 4, 4, 4), np.int16)), np.zeros((1, 4, 4, 4), np.uint8)
    with pytest.raises(MaskfoldError, match=r"bad.nii is cut off"):
        preprocess_cases(table(["bad", "good"]), experiment(), tmp_path)
    skip = experiment(comp={"on_bad_case": "skip"})
    assert list(preprocess_cases(table(["bad", "good"]), skip, tmp_path)) == ["good"]
    assert "Case bad" in caplog.text and "bad.nii is cut off." in caplog.text
    monkeypatch.setattr(preprocessing, "_build", _full)
    with pytest.raises(MaskfoldError, match="disk is full"):  # no bad case: the next one would fail as well
        preprocess_cases(table(["good"]), skip, tmp_path / "new")


def test_cases_wait_for_the_disk_together(
    source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3, timeout=60)  # breaks, which is an error, unless three threads sync at a time
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("image.npy"):
            together.wait()
        sync(descriptor)

    names = [f"c{index}" for index in range(6)]
    for index, name in enumerate(names):
        source[name] = picture(np.full((1, 4, 4, 4), index)), np.zeros((1, 4, 4, 4), np.uint8)
    monkeypatch.setattr(os, "fsync", fsync)
    found = preprocess_cases(table(names), experiment(intensity="none"), tmp_path, 1)
    assert [PreprocessedCase.open(found[name]).image[0, 0, 0, 0] for name in names] == [0, 1, 2, 3, 4, 5]
    assert sorted(tmp_path.iterdir()) == sorted(found.values())


def test_a_disk_that_is_full_when_a_case_is_synced_stops_the_preparation(
    source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("a", "b"):
        source[name] = picture(np.zeros((1, 4, 4, 4), np.int16)), np.zeros((1, 4, 4, 4), np.uint8)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MaskfoldError, match="disk is full"):
        preprocess_cases(table(["a", "b"]), experiment(comp={"on_bad_case": "skip"}), tmp_path, 1)
    assert not list(tmp_path.iterdir())


def _full(row: Any, exp: Experiment, root: Path) -> Path:
    from competition.io import DiskFullError

    raise DiskFullError("The disk is full.", "Free some space.")


def write_competition(root: Path, dimensions: int) -> dict[str, Any]:
    """Three training cases and a test case as PNG or NIfTI files; the `train` and `test` sections."""
    random = np.random.default_rng(0)
    for name in ("tr", "la", "te"):
        (root / name).mkdir(parents=True)
    for index in range(4):
        mask = np.kron(random.integers(0, 3, (3, 2, 4)[:dimensions]), np.ones((5, 4, 3)[:dimensions])).astype(np.uint8)
        image = (random.integers(0, 100, mask.shape) + 60 * mask).astype(np.uint8)
        if dimensions == 2:
            import cv2

            cv2.imwrite(str(root / ("te" if index == 3 else "tr") / f"{index}.png"), image)
            cv2.imwrite(str(root / "la" / f"{index}.png"), mask)
        else:
            import nibabel

            affine = np.diag([-1.0, 1.0, 2.0, 1.0])
            nibabel.save(
                nibabel.Nifti1Image(image.astype(np.int16), affine),
                root / ("te" if index == 3 else "tr") / f"{index}.nii.gz",
            )
            nibabel.save(nibabel.Nifti1Image(mask, affine), root / "la" / f"{index}.nii.gz")
    last = ".png" if dimensions == 2 else ".nii.gz"
    (root / "la" / f"3{last}").unlink()
    return {
        "root": str(root),
        "train": {"images": f"tr/{{id}}{last}", "masks": f"la/{{id}}{last}"},
        "test": {"images": f"te/{{id}}{last}"},
    }


@pytest.mark.parametrize(
    ("dimensions", "prepare"), [(2, {"resize": [16, 24]}), (3, {"spacing": [1.0, 1.0, 1.0], "orientation": "RAS"})]
)
def test_from_files_in_one_process_and_in_two(dimensions: int, prepare: dict[str, Any], tmp_path: Path) -> None:
    from competition.data.cases import case_table

    exp = experiment(dimensions, comp=write_competition(tmp_path / "files", dimensions), **prepare)
    cases = case_table(exp.competition, "train")
    one = preprocess_cases(cases, exp, tmp_path / "one")
    two = preprocess_cases(cases, exp, tmp_path / "two", workers=2)
    assert list(one) == list(two) == ["0", "1", "2"]
    for name in one:
        a, b = PreprocessedCase.open(one[name]), PreprocessedCase.open(two[name])
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.mask, b.mask)
        assert a.geometry == b.geometry and not a.geometry.lossless
        means = [a.image[0][a.mask[0] == value].mean() for value in (0, 1, 2) if (a.mask[0] == value).any()]
        assert means == sorted(means)  # image and mask still lie on each other
    test = preprocess_cases(case_table(exp.competition, "test"), exp, tmp_path / "one")
    assert list(test) == ["3"] and PreprocessedCase.open(test["3"]).mask is None


def test_an_error_in_another_process_is_the_same_error(tmp_path: Path) -> None:
    from competition.data.cases import case_table

    comp = write_competition(tmp_path / "files", 2)
    exp = experiment(2, comp=comp)
    whole = (tmp_path / "files" / "tr" / "1.png").read_bytes()
    (tmp_path / "files" / "tr" / "1.png").write_bytes(whole[: len(whole) // 2])
    cases = case_table(exp.competition, "train")  # reads its header only
    for workers in (1, 2):
        with pytest.raises(MaskfoldError, match=r"1\.png cannot be read"):
            preprocess_cases(cases, exp, tmp_path / "cache", workers)
    skip = experiment(2, comp={**comp, "on_bad_case": "skip"})
    assert list(preprocess_cases(cases, skip, tmp_path / "cache")) == ["0", "2"]


@pytest.mark.skipif(not SHARED.exists(), reason="needs shared/data")
def test_the_hippocampus_comes_back_voxel_by_voxel(tmp_path: Path) -> None:
    from competition.data.cases import case_table
    from competition.data.masks import load_mask

    comp = {"root": str(SHARED), "train": {"images": "imagesTr/{id}.nii.gz", "masks": "labelsTr/{id}.nii.gz"}}
    for prepare in ({"orientation": "PIR", "crop": "nonzero"}, {"spacing": [0.8, 0.8, 0.8]}):
        exp = experiment(3, comp=comp, **prepare)
        cases = case_table(exp.competition, "train").head(2)
        for line, folder in zip(cases.itertuples(), preprocess_cases(cases, exp, tmp_path).values(), strict=True):
            case, truth = PreprocessedCase.open(folder), load_mask(exp.competition, line)[0]
            assert case.mask is not None
            certain = np.stack([case.mask[0] == value for value in range(3)]).astype(np.float16)
            back = case.geometry.inverse(certain).argmax(0)
            for value in (1, 2):
                both = 2 * ((back == value) & (truth == value)).sum()
                dice = both / ((back == value).sum() + (truth == value).sum())
                assert dice == 1 if case.geometry.lossless else dice > 0.98
