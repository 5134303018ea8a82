"""Copies of one picture under two ids stay in one fold, whatever their files are; runs that have folds keep them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from competition.config.loading import resolve_config
from competition.context import Context
from competition.data.duplicates import find_equal_images, find_near_duplicates, make_thumbnail
from competition.data.preprocessing import preprocess_cases
from competition.data.splits import read_folds
from competition.runs import copies
from competition.runs.identity.hashing import run_hash
from competition.runs.run import CACHE_FOLDER, load_run
from competition.training.cross_validate import locked_run, make_jobs, open_run, prepare_run

Picture = np.ndarray[Any, Any]
ORIGINAL, COPY = "picture_001", "picture_900"


def jpeg(picture: Picture) -> Picture:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], -1))


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "jpeg": jpeg,
    "resized": lambda picture: np.asarray(cv2.resize(picture, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)),
    "mirrored": lambda picture: picture[:, ::-1],
    "upside down": lambda picture: picture[::-1],
    "turned": lambda picture: np.rot90(picture),
    "turned jpeg": lambda picture: jpeg(np.ascontiguousarray(np.rot90(picture, 3))),
}


@pytest.fixture
def data(demo2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a competition; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(demo2d, tmp_path / "data"))


def read(file: Path) -> Picture:
    return np.asarray(cv2.imread(str(file), cv2.IMREAD_UNCHANGED))


def add_copy(data: Path, change: Callable[[Picture], Picture] | None = None) -> None:
    """Write the copy of the first picture, of the same pixels or changed, and a mask of its size."""
    image, mask = (read(data / part / f"{ORIGINAL}.png") for part in ("images", "masks"))
    image = image if change is None else change(image)
    mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    for part, array in (("images", image), ("masks", mask)):
        cv2.imwrite(str(data / part / f"{COPY}.png"), array, [cv2.IMWRITE_PNG_COMPRESSION, 0])


def folds_of(exp: Any, *, new: bool = False) -> tuple[Any, list[str]]:
    """Return the prepared run and what it said."""
    said: list[str] = []
    run = prepare_run(open_run(exp, "demo2d-tiny", new=new), Context((), said.append))
    return run, [line for line in said if line.startswith("note:")]


def seeds_apart(tiny: Any, data: Path, *words: str) -> list[int]:
    """Seeds whose folds would have the two ids in different folds, if nothing kept them together."""
    words = (f"competition.root={data}", *words)
    runs = {seed: open_run(tiny(2, f"seed={seed}", *words), "demo2d-tiny") for seed in range(1, 9)}
    return [seed for seed, run in runs.items() if run.fold_of()[ORIGINAL] != run.fold_of()[COPY]]


def test_another_png_of_the_same_pixels_is_in_the_same_fold(data, tiny):
    add_copy(data)
    assert (data / f"images/{COPY}.png").read_bytes() != (data / f"images/{ORIGINAL}.png").read_bytes()
    seed = seeds_apart(tiny, data)[0]
    exp = tiny(2, f"seed={seed}", f"competition.root={data}")
    run, notes = folds_of(exp)
    assert run.fold_of()[ORIGINAL] == run.fold_of()[COPY]
    assert run.groups() is None or run.groups()[COPY] == ORIGINAL
    assert notes == [
        f"note: the cases {ORIGINAL} and {COPY} have the same pixels in different files, so they are kept in the same "
        "fold"
    ]
    again = open_run(exp, "demo2d-tiny")
    assert again.folder == run.folder and again.folds.equals(run.folds), "the next command has the same folds"
    assert read_folds(run.folder / "folds.csv")["fold"].tolist() == run.folds["fold"].tolist()
    resumed, notes = folds_of(exp)
    assert resumed.folds.equals(run.folds) and notes == []
    assert make_jobs(resumed)[0].folder == make_jobs(run)[0].folder


@pytest.mark.parametrize("during", [False, True])
def test_two_commands_that_begin_at_once_have_the_same_folds(data, tiny, monkeypatch, during):
    """The second one split the cases before the first one wrote its folds, which keep the copies together."""
    add_copy(data)
    exp = tiny(2, f"seed={seeds_apart(tiny, data)[0]}", f"competition.root={data}")
    first, second = open_run(exp, "demo2d-tiny"), open_run(exp, "demo2d-tiny")
    runs: list[Any] = []

    def begin() -> None:
        with locked_run(first, Context((), lambda line: None)) as run:
            runs.append(run)

    real = copies.keep_copies_together

    def keep(*args: Any) -> Any:
        monkeypatch.setattr(copies, "keep_copies_together", real)
        begin()
        return real(*args)

    if during:  # while the second one prepares its cases
        monkeypatch.setattr(copies, "keep_copies_together", keep)
    else:
        begin()
    with locked_run(second, Context((), lambda line: None)) as run:
        assert run.fold_of() == runs[0].fold_of() and run.fold_of()[ORIGINAL] == run.fold_of()[COPY]
    assert load_run(run.folder).fold_of() == run.fold_of()


def test_a_run_that_began_without_this_keeps_its_folds_and_says_so(data, tiny):
    add_copy(data)
    seed = seeds_apart(tiny, data)[0]
    exp = tiny(2, f"seed={seed}", f"competition.root={data}")
    old = open_run(exp, "demo2d-tiny")
    old.write()  # as an older version did, with the copies apart
    run, notes = folds_of(exp)
    assert run.folder == old.folder and run.folds.equals(old.folds)
    assert len(notes) == 1 and "are in several folds" in notes[0] and "--new" in notes[0]
    renewed, notes = folds_of(exp, new=True)
    assert renewed.fold_of()[ORIGINAL] == renewed.fold_of()[COPY] and "are kept in the same fold" in notes[0]


def test_folds_without_copies_are_the_same_as_ever(data, tiny):
    exp = tiny(2, f"competition.root={data}")
    before = open_run(exp, "demo2d-tiny").folds
    run, notes = folds_of(exp)
    assert run.folds.equals(before) and notes == []
    assert open_run(exp, "demo2d-tiny").folds.equals(before)


@pytest.mark.parametrize("change", CHANGES)
def test_near_duplicates_are_in_one_fold_on_request(data, tiny, change):
    add_copy(data, CHANGES[change])
    seed = seeds_apart(tiny, data)[0]
    words = f"seed={seed}", f"competition.root={data}"
    run, notes = folds_of(tiny(2, *words))
    assert run.fold_of()[ORIGINAL] != run.fold_of()[COPY]
    assert len(notes) == 1 and notes[0].endswith("folds.duplicates=near, which keeps these cases in one fold"), notes
    near, notes = folds_of(tiny(2, *words, "folds.duplicates=near"))
    assert near.fold_of()[ORIGINAL] == near.fold_of()[COPY] and near.folder != run.folder
    assert notes == [
        f"note: the cases {ORIGINAL} and {COPY} look the same (near-duplicates), so they are kept in the same fold"
    ]
    again, notes = folds_of(tiny(2, *words, "folds.duplicates=near"))
    assert again.folds.equals(near.folds) and notes == []


@pytest.mark.parametrize("pair_of_equals", [False, True])
def test_look_alikes_that_are_most_of_the_cases_are_no_copies(data, tiny, pair_of_equals):
    """As retinas, which all have the same frame: neither the folds nor the notes treat them as copies."""
    files = sorted((data / "images").iterdir())
    draw, base = np.random.default_rng(0), read(files[1]).astype(float)
    for file in files:
        changed = np.clip(base + draw.normal(0, 2, base.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(file), changed)
        mask = data / "masks" / file.name
        cv2.imwrite(str(mask), cv2.resize(read(mask), base.shape[1::-1], interpolation=cv2.INTER_NEAREST))
    if pair_of_equals:
        add_copy(data)
    count, words = len(files) + pair_of_equals, (f"competition.root={data}",)
    text = f"note: {count} of {count} cases look alike at the size of the thumbnails (64×64 pixels), so near-duplicates"
    before = open_run(tiny(2, *words), "demo2d-tiny").folds
    exact, (*equal, note) = folds_of(tiny(2, *words))
    assert note == f"{text} cannot be found among them"
    near, (*near_equal, note) = folds_of(tiny(2, *words, "folds.duplicates=near"))
    assert note == f"{text} cannot be found among them, and folds.duplicates=near does not join these cases"
    assert near.folds.equals(exact.folds) and len(equal) == len(near_equal) == pair_of_equals
    if pair_of_equals:
        assert exact.fold_of()[ORIGINAL] == exact.fold_of()[COPY] and "have the same pixels" in equal[0]
    else:
        assert exact.folds.equals(before)


def test_padding_does_not_hide_a_turned_copy(data, tiny):
    original = read(data / f"images/{ORIGINAL}.png")
    cut = original[: original.shape[0] * 2 // 3]
    for name, picture in ((ORIGINAL, cut), (COPY, np.rot90(cut))):
        cv2.imwrite(str(data / f"images/{name}.png"), picture)
        cv2.imwrite(str(data / f"masks/{name}.png"), np.zeros(picture.shape[:2], np.uint8))
    words = f"competition.root={data}", "prepare.resize=[64, 64]", "folds.duplicates=near"
    run, _ = folds_of(tiny(2, *words))
    assert run.fold_of()[ORIGINAL] == run.fold_of()[COPY]


def test_a_fold_file_decides_and_copies_in_several_folds_are_named(data, tiny, tmp_path):
    add_copy(data)
    ids = sorted(file.stem for file in (data / "images").iterdir())
    lines = [f"{case},{int(case in (ids[1], COPY))}" for case in ids]
    (tmp_path / "folds.csv").write_text("id,fold\n" + "\n".join(lines) + "\n")
    exp = tiny(2, f"competition.root={data}", "folds.scheme=file", f"folds.file={tmp_path / 'folds.csv'}")
    run, notes = folds_of(exp)
    assert run.fold_of()[ORIGINAL] == 0 and run.fold_of()[COPY] == 1
    assert len(notes) == 1 and notes[0].endswith("put these cases into the same fold in folds.file")


def test_a_picture_of_one_value_is_no_copy_and_one_value_makes_a_difference(data, tiny):
    shape = read(data / f"images/{ORIGINAL}.png").shape
    for name, value in (("picture_901", 7), ("picture_902", 7)):
        cv2.imwrite(str(data / f"images/{name}.png"), np.full(shape, value, np.uint8), [16, int(name[-1])])
        cv2.imwrite(str(data / f"masks/{name}.png"), np.zeros(shape[:2], np.uint8))

    def one_off(picture: Picture) -> Picture:
        picture = picture.copy()
        picture.flat[-2] ^= 1
        return picture

    add_copy(data, one_off)
    run = open_run(tiny(2, f"competition.root={data}"), "demo2d-tiny")
    prepared = preprocess_cases(run.cases, run.exp, CACHE_FOLDER)
    assert find_equal_images(prepared) == []
    add_copy(data)
    run = open_run(tiny(2, f"competition.root={data}"), "demo2d-tiny")
    assert find_equal_images(preprocess_cases(run.cases, run.exp, CACHE_FOLDER)) == [[ORIGINAL, COPY]]


@pytest.mark.parametrize("axes", [2, 3])
def test_every_turned_and_mirrored_view_is_found(axes):
    from itertools import permutations, product

    draw = np.random.default_rng(0)
    side = 64 if axes == 2 else 16
    coarse = draw.normal(size=(3,) + (side // 4,) * axes)
    first, *others = (make_thumbnail(np.kron(one, np.ones((4,) * axes))[None]) for one in coarse)
    for order in permutations(range(axes)):
        for steps in product((1, -1), repeat=axes):
            view = first.transpose(order)[tuple(slice(None, None, step) for step in steps)]
            pairs = find_near_duplicates([first, *others, view], turned=True)
            assert [(pair.first, pair.second) for pair in pairs] == [(0, 3)]
    assert find_near_duplicates([first, *others, first[::-1]]) == []


def test_the_default_is_not_in_the_hash(tiny):
    exact, near = tiny(2), tiny(2, "folds.duplicates=near")
    assert resolve_config(exact)["folds"]["duplicates"] == "exact"
    assert run_hash(exact, "") == run_hash(tiny(2, "folds.duplicates=exact"), "") != run_hash(near, "")
    assert json.dumps(resolve_config(near)["folds"]).count("near") == 1
