"""Phantoms are made completely or not at all, depend only on the seed, and replace only older phantoms."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from competition.config.competition import Competition
from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.datasets.demo import MARKER, make_demo
from competition.datasets.phantoms import LAYOUTS, hipmri, make_phantom, next_command, skin, spine, spleen
from competition.datasets.phantoms.dicom import SliceGrid
from competition.datasets.phantoms.spleen import Abdomen
from competition.errors import MaskfoldError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_seed_gives_the_same_bytes_and_another_seed_others(layout, tmp_path, phantoms):
    for name in ("a", "b"):
        make_phantom(layout, tmp_path / name, seed=5, cases=1, test_cases=1 if LAYOUTS[layout][1] else None)
    a, b, c = contents(tmp_path / "a"), contents(tmp_path / "b"), contents(phantoms[layout])
    assert json.loads((phantoms[layout] / MARKER).read_text())["seed"] != 5
    assert a == b and len(a) > 2
    assert not {hashlib.sha256(data).digest() for name, data in a.items() if not name.endswith(".csv")} & {
        hashlib.sha256(data).digest() for data in c.values()
    }


def test_pixels_are_the_same_on_every_machine_and_release():
    """Published scores were measured on these pixels: if this fails, raise `phantoms.VERSION` and measure again."""
    rng = np.random.default_rng([0, 4, 0])
    stack = SliceGrid.centred_at(np.zeros(3), (12, 48, 48), (5.0, 7.0, 7.0))
    sums = [
        digest(*spleen.simulate_ct(rng, Abdomen(rng), stack)),
        digest(*spine.draw_volume(np.random.default_rng([0, 5, 0]))[:2]),
        digest(*skin.draw_image(np.random.default_rng([0, 6, 0]))),
        digest(
            *hipmri.draw_volume(
                np.random.default_rng([0, 8, 0]), hipmri.Pelvis(np.random.default_rng([0, 7, 0])), (32, 26, 12)
            )[:2]
        ),
    ]
    assert sums == ["f940263e89fce009", "6a796f95d438b71f", "ba77b2feaf824e34", "7e590aaa2f73c9a0"]


def test_the_same_phantoms_are_kept_and_others_replace_them(tmp_path):
    folder = tmp_path / "deep" / "hipmri"
    assert make_phantom("hipmri", folder, seed=1, cases=2) is True
    (folder / "note.txt").write_text("a user's")
    assert make_phantom("hipmri", folder, seed=1, cases=2) is False
    assert (folder / "note.txt").exists()
    assert make_phantom("hipmri", folder, seed=2, cases=1) is True
    assert len(list((folder / "semantic_MRs").iterdir())) == 1 and not (folder / "note.txt").exists()
    assert json.loads((folder / MARKER).read_text())["seed"] == 2
    assert [path.name for path in folder.parent.iterdir()] == ["hipmri"]


def test_a_folder_with_other_content_is_rejected_and_unchanged(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(MaskfoldError, match="thesis exists and was not written by maskfold demo"):
        make_phantom("spine", tmp_path / "thesis", cases=1, test_cases=1)
    make_phantom("hipmri", tmp_path / "pelvis", cases=1)
    make_demo("2d", tmp_path / "demo", cases=1, test_cases=1)
    before = contents(tmp_path)
    with pytest.raises(MaskfoldError, match="pelvis contains phantoms in the layout of hipmri"):
        make_phantom("spine", tmp_path / "pelvis", cases=1, test_cases=1)
    with pytest.raises(MaskfoldError, match="demo contains the demo 2d"):
        make_phantom("spine", tmp_path / "demo", cases=1, test_cases=1)
    with pytest.raises(MaskfoldError, match="pelvis contains phantoms in the layout of hipmri"):
        make_demo("2d", tmp_path / "pelvis", cases=1, test_cases=1)
    assert contents(tmp_path) == before


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def stopped(folder: Path, *_: int) -> None:
        (folder / "images").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(spine, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_phantom("spine", tmp_path / "spine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"layout": "splean"}, "Did you mean spleen?"),
        ({"layout": "A02025"}, "Did you mean a02025?"),
        ({"layout": "xyz"}, "Use --layout spleen, spine, a02025 or hipmri."),
        ({"layout": "spine", "cases": 0}, "at least one training case"),
        ({"layout": "spine", "test_cases": 0}, "at least one training case"),
        ({"layout": "spine", "seed": -1}, "at least 0"),
        ({"layout": "hipmri", "test_cases": 2}, "no test cases"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, hint, tmp_path):
    with pytest.raises(MaskfoldError, match=hint.replace("?", "[?]")) as caught:
        make_phantom(folder=tmp_path / "x", **arguments)
    assert caught.value.status == 2 and not (tmp_path / "x").exists()


def test_the_next_command_is_ready_for_a_shell():
    assert next_command("spine", Path("data/spine")) == "maskfold explore experiments/spine/competition.yaml"
    words = shlex.split(next_command("a02025", Path("my data/skin")))
    assert words == ["maskfold", "explore", "experiments/a02025/competition.yaml", "root=my data/skin"]
    words = shlex.split(next_command("spleen", Path("my data/x")))
    train = [
        "maskfold",
        "dicom",
        "my data/x/dicom/train",
        "-o",
        "my data/x",
        "--layout",
        "imagesTr",
        "--labels",
        "spleen labels",
    ]
    assert words == [
        *train,
        "&&",
        "maskfold",
        "dicom",
        "my data/x/dicom/test",
        "-o",
        "my data/x",
        "--layout",
        "imagesTs",
    ]
    with pytest.raises(MaskfoldError):
        next_command("spien", Path("data"))


PATTERNS = {
    "spine": {
        "dimensions": 3,
        "classes": list(spine.CLASSES),
        "train": {"images": "images/{id}.nii.gz", "masks": "labels/{id}.nii.gz"},
        "test": {"images": "test_images/{id}.nii.gz"},
    },
    "a02025": {
        "dimensions": 2,
        "classes": ["lesion"],
        "label_values": [255],
        "train": {"images": "Train/Image/{id}.jpg", "masks": "Train/Mask/{id}.png"},
        "test": {"images": "Test/Image/{id}.jpg"},
    },
    "hipmri": {
        "dimensions": 3,
        "classes": list(hipmri.CLASSES),
        "group": r"(Case_\d+)_",
        "train": {"images": "semantic_MRs/{id}_LFOV.nii.gz", "masks": "semantic_labels_only/{id}_SEMANTIC.nii.gz"},
    },
}


@pytest.mark.parametrize("layout", PATTERNS)
def test_the_case_table_reads_phantoms_and_most_cases_have_all_classes(layout, phantoms):
    comp = Competition(name=layout, root=phantoms[layout], **PATTERNS[layout])
    table = case_table(comp)
    masks = [load_mask(comp, row) for row in table.itertuples()]
    held = [[(mask == number).any() for number in range(1, len(comp.classes) + 1)] for mask in masks]
    assert np.mean(held, axis=0).min() > 0.9
    expected = {"spine": (6, 6), "a02025": (16, 16), "hipmri": (len(table), 4)}[layout]
    assert (len(table), table["group"].nunique()) == expected
    if comp.test is not None:
        tests = case_table(comp, "test")
        assert len(tests) == {"spine": 2, "a02025": 4}[layout]
        assert not set(tests["id"]) & set(table["id"]) and not set(tests["image_hash"]) & set(table["image_hash"])
