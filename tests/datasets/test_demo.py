"""The demo competitions: reproducible, made completely or not at all, difficult and correctly labelled."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest

from competition.cli.data import demo_command
from competition.config.competition import Competition
from competition.config.loading import load_experiment
from competition.data.cases import case_table
from competition.datasets import demo, demo_images, demo_volumes, phantoms
from competition.datasets.demo import EXPERIMENTS, MARKER, ensure_demo, is_demo, make_demo, write_demo_experiment
from competition.datasets.phantoms import spine
from competition.errors import MaskfoldError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def whole2d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "demo2d"
    assert make_demo("2d", folder) is True
    return folder


@pytest.fixture(scope="module")
def whole3d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "demo3d"
    assert make_demo("3d", folder) is True
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(path: Path) -> list[tuple[str, str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["id", "class", "predicted"]
    return [tuple(line) for line in lines]


def from_runs(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """Decode runs in column order, base 1, independently of the codec under test."""
    flat = np.zeros(int(np.prod(shape)), bool)
    numbers = [int(number) for number in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = True
    return flat.reshape(shape, order="F")


def comp(name: str, root: Path) -> Competition:
    return Competition(
        name=name,
        root=root,
        dimensions=2,
        classes=["ring", "grain"],
        train={"images": "images/{id}.png", "masks": "masks/{id}.png"},
    )


# ── made whole, the same, or not at all ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["2d", "3d"])
def test_a_seed_gives_the_same_bytes_and_another_seed_others(name, tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_demo(name, tmp_path / folder, seed=seed, cases=4, test_cases=2)
    a, b, c = (contents(tmp_path / folder) for folder in "abc")
    assert a == b
    images = [file for file in a if file.startswith(("images/", "imagesTr/"))]
    assert len(images) == 4 and all(a[file] != c.get(file) for file in images)


def test_pixels_are_the_same_on_every_machine_and_release():
    """Published scores were measured on these pixels: if this fails, raise `demo.VERSION` and measure again."""
    image, labels = demo_images.draw_image(np.random.default_rng([0, 2, 0]))
    cube, organs, _ = demo_volumes.draw_volume(np.random.default_rng([0, 3, 0]))
    sums = [
        hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
        for array in (image, labels, cube, organs)
    ]
    assert sums == ["d96d0113553a69fe", "36270ae06ec2412f", "eff0cea104387ff3", "446505ae7b384afa"]


def test_the_same_demo_is_kept_and_another_replaces_it(tmp_path):
    folder = tmp_path / "deep" / "demo"
    assert make_demo("2d", folder, seed=1, cases=3, test_cases=1) is True
    (folder / "stays.txt").write_text("a user's note")
    assert make_demo("2d", folder, seed=1, cases=3, test_cases=1) is False
    assert (folder / "stays.txt").exists()
    assert make_demo("2d", folder, seed=2, cases=2, test_cases=1) is True
    assert len(list((folder / "images").iterdir())) == 2
    assert json.loads((folder / MARKER).read_text())["seed"] == 2
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


def test_a_folder_with_other_content_is_rejected_and_unchanged(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(MaskfoldError, match="exists and was not written by maskfold demo") as caught:
        make_demo("2d", tmp_path, cases=2, test_cases=1)
    assert str(tmp_path) in str(caught.value)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MaskfoldError, match="exists and was not written by maskfold demo"):
        make_demo("2d", tmp_path / "file", cases=2, test_cases=1)
    with pytest.raises(MaskfoldError, match="cannot be written"):
        make_demo("2d", tmp_path / "file" / "below", cases=2, test_cases=1)


def test_an_empty_folder_is_filled_and_a_damaged_marker_mended(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    assert make_demo("2d", folder, cases=2, test_cases=1) is True
    (folder / MARKER).write_text("{")
    assert make_demo("2d", folder, cases=2, test_cases=1) is True
    assert make_demo("2d", folder, cases=2, test_cases=1) is False


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def stopped(folder: Path, *_: int) -> None:
        (folder / "images").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setitem(demo.DEMOS, "2d", (stopped, (2, 1)))
    with pytest.raises(KeyboardInterrupt):
        make_demo("2d", tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [{"name": "4d"}, {"name": "2d", "cases": 0}, {"name": "2d", "seed": -1}])
def test_invalid_arguments_are_rejected(arguments, tmp_path):
    with pytest.raises(MaskfoldError) as caught:
        make_demo(folder=tmp_path / "demo", **arguments)
    assert caught.value.status == 2 and not (tmp_path / "demo").exists()


def test_only_a_missing_demo_is_made_on_demand(tmp_path, monkeypatch):
    requests = []
    monkeypatch.setattr(demo, "make_demo", lambda name, folder: requests.append((name, folder)) or True)
    assert ensure_demo(comp("demo2d", tmp_path / "x")) is True
    assert ensure_demo(comp("demo3d", tmp_path / "y")) is True
    assert ensure_demo(comp("demo2d", tmp_path)) is False  # the folder exists, whatever its content
    assert ensure_demo(comp("nuclei", tmp_path / "z")) is False
    assert requests == [("2d", tmp_path / "x"), ("3d", tmp_path / "y")]
    assert [is_demo(comp(name, tmp_path)) for name in ("demo2d", "demo3d", "2d", "demo", "demo4d")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_nothing_is_made_at_a_root_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "make_demo", lambda *_: pytest.fail("a demo at a mistyped root"))
    typed = [f"competition.root={tmp_path / 'mistyped'}", "training.epochs=1"]
    assert ensure_demo(comp("demo2d", tmp_path / "mistyped"), typed) is False


@pytest.mark.parametrize("name", ["2d", "3d", "gate"])
def test_a_demo_brings_its_yaml_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_demo_experiment(name)
    exp = load_experiment(file)
    assert is_demo(exp.competition) and exp.competition.root == tmp_path / "data" / f"demo{name}"
    file.write_text("mine")
    assert write_demo_experiment(name) == file and file.read_text() == "mine"


def test_the_yaml_files_of_the_package_are_those_of_the_clone():
    for folder, _ in EXPERIMENTS.values():
        packaged = ROOT / "competition" / "datasets" / "yaml" / folder
        assert contents(packaged) == contents(ROOT / "experiments" / folder)


@pytest.mark.parametrize(
    ("name", "output", "layout"), [("spine", None, None), ("mine", None, "spine"), ("spine", Path("my data/x"), None)]
)
def test_phantoms_bring_their_yaml_files_and_commands(name, output, layout, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spine, "write", lambda folder, *_: (folder / "images").mkdir())
    demo_command(name, output, layout, 0)
    first, then = capsys.readouterr().out.splitlines()
    folder, _, _ = first.partition(":")
    words = shlex.split(then.removeprefix("Then: maskfold cv "))
    assert load_experiment(words[0], words[1:]).competition.root == tmp_path / folder
    assert shlex.split(first.partition("Next: ")[2])[:2] == ["maskfold", "explore"]


@pytest.mark.parametrize("layout", phantoms.LAYOUTS)
def test_each_layout_has_an_experiment(layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_experiment(write_demo_experiment(layout)).competition.name.startswith(layout)


@pytest.mark.parametrize("output", [None, "my data/here"])
def test_the_next_command_of_a_demo_works(output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo_command("2d", None if output is None else Path(output), None, 0)
    words = shlex.split(capsys.readouterr().out.partition("Next: ")[2])
    assert words[:2] == ["maskfold", "cv"]
    exp = load_experiment(words[2], words[3:])
    assert exp.competition.root == tmp_path / (output or "data/demo2d")
    assert len(case_table(exp.competition)) == 72


# ── what the host's folder looks like ────────────────────────────────────────────────────────────────────────────────


def test_pictures_are_of_mixed_sizes_and_some_lack_a_class(whole2d):
    shapes, held = set(), []
    ids = sorted(path.stem for path in (whole2d / "images").iterdir())
    assert ids == sorted(path.stem for path in (whole2d / "masks").iterdir()) and len(ids) == 72
    for case in ids:
        image = cv2.imread(str(whole2d / "images" / f"{case}.png"), cv2.IMREAD_UNCHANGED)
        mask = cv2.imread(str(whole2d / "masks" / f"{case}.png"), cv2.IMREAD_UNCHANGED)
        assert image.dtype == mask.dtype == np.uint8 and image.shape == mask.shape and image.ndim == 2
        assert set(np.unique(mask)) <= {0, 1, 2}
        shapes.add(image.shape)
        held.append(((mask == 1).any(), (mask == 2).any()))
    assert len(shapes) > 60 and sum(h != w for h, w in shapes) > 60
    assert all(96 <= side <= 192 for shape in shapes for side in shape)
    empty, only_ring, only_grain = (held.count(kind) for kind in ((False, False), (True, False), (False, True)))
    assert 3 <= empty <= 7 and 3 <= only_ring <= 7 and 3 <= only_grain <= 7


def test_objects_touch_and_are_as_bright_as_their_surroundings():
    differences, touching = [], 0
    for index in range(100):  # illumination alone varies by 25 grey levels in an image
        image, labels = demo_images.draw_image(np.random.default_rng([5, index]))
        ring, grain = labels == 1, labels == 2
        touching += bool((cv2.dilate(ring.astype(np.uint8), np.ones((3, 3))) * grain).any())
        differences.append([image[part].mean() - image[labels == 0].mean() for part in (ring, grain)])
    assert touching >= 50
    assert np.abs(np.mean(differences, axis=0)).max() < 8  # of 255 grey levels


def test_illumination_is_uneven():
    for index in range(5):
        image, _ = demo_images.draw_image(np.random.default_rng([6, index]), "empty")
        soft = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 12)
        assert soft.max() > 2 * soft.min()


@pytest.mark.parametrize("which", ["whole2d", "whole3d"])
def test_tables_hold_one_shuffled_row_per_test_case_and_class(which, request):
    folder = request.getfixturevalue(which)
    classes = demo_images.CLASSES if which == "whole2d" else demo_volumes.CLASSES
    tests = sorted(
        path.name.split(".")[0] for path in (folder / ("test" if which == "whole2d" else "imagesTs")).iterdir()
    )
    sample, solution = rows(folder / "sample_submission.csv"), rows(folder / "solution.csv")
    keys = [row[:2] for row in sample]
    assert sorted(keys) == sorted((case, name) for case in tests for name in classes)
    assert keys != sorted(keys) and keys == [row[:2] for row in solution]
    assert {row[2] for row in sample} == {"1 1"}
    assert 0 < sum(row[2] == "" for row in solution) < len(solution) / 3


def test_the_solution_is_the_truth_of_the_test_pictures(tmp_path):
    make_demo("2d", tmp_path / "demo", seed=9, cases=2, test_cases=3)
    solution = {row[:2]: row[2] for row in rows(tmp_path / "demo" / "solution.csv")}
    drawn = [
        demo_images.draw_image(np.random.default_rng([9, 2, 2 + place]), demo_images.KINDS[place]) for place in range(3)
    ]
    found = 0
    for path in (tmp_path / "demo" / "test").iterdir():
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        (labels,) = [truth for expected, truth in drawn if expected.shape == image.shape and (expected == image).all()]
        for number, name in enumerate(demo_images.CLASSES, 1):
            assert (from_runs(solution[path.stem, name], image.shape) == (labels == number)).all()
            found += 1
    assert found == 6


def test_volumes_are_anisotropic_in_mixed_orientations_and_keep_left_and_right(whole3d):
    codes, held = set(), []
    for path in sorted((whole3d / "imagesTr").iterdir()):
        image, labels = nibabel.load(path), nibabel.load(whole3d / "labelsTr" / path.name)
        assert image.shape == labels.shape and np.array_equal(image.affine, labels.affine)
        assert image.get_data_dtype() == np.int16 and labels.get_data_dtype() == np.uint8
        codes.add("".join(nibabel.aff2axcodes(image.affine)))
        spacing = sorted(float(step) for step in image.header.get_zooms())
        assert spacing[2] > 1.9 * spacing[0]
        array = np.asarray(labels.dataobj)
        centres = [
            nibabel.affines.apply_affine(image.affine, np.argwhere(array == number)).mean(axis=0)
            for number in (1, 2)
            if (array == number).any()
        ]
        held.append([bool((array == number).any()) for number in (1, 2)])
        if len(centres) == 2:
            assert centres[0][0] > centres[1][0] + 10  # mm; the liver is on the right
    assert len(codes) >= 5
    assert 0 < sum(not both for both, _ in held) < 5 and 0 < sum(not both for _, both in held) < 5


@pytest.mark.parametrize("codes", sorted(set(demo_volumes.ORIENTATIONS)))
def test_a_stored_volume_comes_back_through_its_affine(codes):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 100, (5, 6, 4)).astype(np.int16)
    affine = demo_volumes.random_affine(rng, array.shape, (1.0, 1.1, 2.5))
    turned, turned_affine = demo_volumes.reorient(array, affine, codes)
    image = nibabel.Nifti1Image(turned, turned_affine)
    assert "".join(nibabel.aff2axcodes(turned_affine)) == codes
    back = nibabel.as_closest_canonical(image)
    assert np.array_equal(np.asarray(back.dataobj), array) and np.allclose(back.affine, affine)


def test_organs_are_equally_bright():
    for index in range(4):
        image, labels, _ = demo_volumes.draw_volume(np.random.default_rng([1, index]))
        first, second = (float(image[labels == number].mean()) for number in (1, 2))
        assert 0.8 < first / second < 1.25
