"""The snippet is part of a valid experiment and matches the data."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from competition.config.competition import Competition
from competition.config.loading import load_experiment
from competition.explore import explore
from competition.explore.contrasts import ChannelContrast
from competition.explore.suggest import MAX_PATCH_PIXELS, suggest_experiment
from competition.explore.types import CaseStats, ChannelStats, TruthStats
from tests.conftest import ROOT
from tests.host import competition, write_nifti

REST = """
competition: competition.yaml
model: {target: monai.networks.nets.BasicUNet, args: {}}
loss: {target: monai.losses.DiceLoss}
"""


def case(
    number: int, shape: tuple[int, ...] = (64, 64), spacing: tuple[float, ...] | None = None, **more: Any
) -> CaseStats:
    """Return a training case; by default it has 50 voxels of one class."""
    voxels = np.array(more.pop("voxels", [50]), np.int64)
    truth = TruthStats(voxels, int(voxels.sum()), 0, math.prod(shape), [voxels])
    values = more.pop("stats", None) or [ChannelStats("image", 0, 1, 5, 9, 10, 5, 2, 1.0, 4, 9)]
    return CaseStats(
        f"case_{number:03d}",
        "train",
        [f"{number}.png"],
        shape,
        spacing or (1.0,) * len(shape),
        stats=values,
        truth=truth,
        dtype=more.pop("dtype", "uint8"),
        channels=more.pop("channels", 1),
        **more,
    )


def loaded(
    tmp_path: Path, comp: Competition, cases: list[CaseStats], contrasts: list[ChannelContrast] | None = None
) -> tuple[Any, str]:
    """Return the experiment of the snippet, validated by the schema."""
    snippet = suggest_experiment(comp, cases, contrasts or [])
    plain = yaml.safe_load(comp.model_dump_json(by_alias=True, exclude_defaults=True))
    (tmp_path / "competition.yaml").write_text(yaml.safe_dump(plain))
    (tmp_path / "experiment.yaml").write_text(REST + snippet)
    exp = load_experiment(tmp_path / "experiment.yaml")
    for line in snippet.splitlines():  # alternatives are valid too
        _, separator, alternative = line.partition("# or ")
        if separator:
            key = alternative.partition(":")[0]
            off = [] if key == "channels" else ["prepare.spacing=null", "prepare.resize=null"]
            text = yaml.safe_load(alternative)[key]
            load_experiment(tmp_path / "experiment.yaml", [*off, f"prepare.{key}={text}"])
    return exp, snippet


def volumes(tmp_path: Path, **changes: Any) -> Competition:
    return competition(tmp_path, dimensions=3, train={"images": "im/{id}.nii.gz", "masks": "la/{id}.nii.gz"}, **changes)


def test_images_of_one_size(tmp_path: Path) -> None:
    exp, snippet = loaded(tmp_path, competition(tmp_path), [case(number, (100, 130)) for number in range(30)])
    assert (exp.folds.scheme, exp.folds.k) == ("kfold", 5) and exp.patch.size == [128, 160]
    assert exp.prepare.resize is None and "# or resize: [128, 160]" in snippet


def test_large_images_get_a_limited_patch(tmp_path: Path) -> None:
    exp, snippet = loaded(tmp_path, competition(tmp_path), [case(number, (3000, 4000)) for number in range(6)])
    assert math.prod(exp.patch.size) <= MAX_PATCH_PIXELS[2] and all(side % 32 == 0 for side in exp.patch.size)
    assert "# or resize: [384, 512]" in snippet


@pytest.mark.parametrize(
    ("group", "voxels", "scheme"),
    [(None, [5], "kfold"), (None, None, "stratified"), ("^(.)", [5], "group"), ("^(.)", None, "stratified_group")],
)
def test_suggested_fold_scheme(tmp_path: Path, group: str | None, voxels: list[int] | None, scheme: str) -> None:
    cases = [case(number, voxels=voxels or [number % 3]) for number in range(20)]
    for number, one in enumerate(cases):
        one.group = None if group is None else str(number // 2)
    exp, snippet = loaded(tmp_path, competition(tmp_path, group=group), cases)
    assert (exp.folds.scheme, exp.folds.k) == (scheme, 5)
    assert ("20 cases in 10 groups" in snippet) == (group is not None)


def test_number_of_folds_is_limited_by_the_groups(tmp_path: Path) -> None:
    cases = [case(number) for number in range(9)]
    for number, one in enumerate(cases):
        one.group = "abc"[number % 3]
    assert loaded(tmp_path, competition(tmp_path, group="^(.)"), cases)[0].folds.k == 3


def test_spacing_is_the_median_and_the_patch_follows(tmp_path: Path) -> None:
    """Axes are reoriented first: the file's third axis is the first axis of RAS here."""
    cases = [
        case(number, (40, 60, 100), (3.0, 1.0, mm), orientation="SAR")
        for number, mm in enumerate([0.5, 1.0, 1.0, 2.0, 2.0])
    ]
    exp, snippet = loaded(tmp_path, volumes(tmp_path), cases)
    assert exp.prepare.orientation == "RAS" and exp.prepare.spacing == [1.0, 1.0, 3.0]
    assert exp.patch.size == [96, 64, 40]  # at most 2¹⁸ of 100, 60 and 40 voxels
    assert "SAR in 5" in snippet


def test_equal_spacings_are_not_resampled(tmp_path: Path) -> None:
    same = [case(number, (40, 40, 12), (0.7, 0.7, 5.0), orientation="RAS") for number in range(5)]
    exp, snippet = loaded(tmp_path, volumes(tmp_path), same)
    assert exp.prepare.spacing is None and "0.7×0.7×5 mm" in snippet and exp.patch.size == [40, 40, 16]
    exp, _ = loaded(tmp_path, volumes(tmp_path), [case(number, (40, 40, 5)) for number in range(5)])
    assert exp.prepare.orientation is None and exp.patch.size == [40, 40, 8]


def test_a_coarse_axis_keeps_the_slices_of_the_finer_cases(tmp_path: Path) -> None:
    cases = [case(number, (64, 64, 30), (1.0, 1.0, mm)) for number, mm in enumerate(np.linspace(3, 8, 11))]
    exp, _ = loaded(tmp_path, volumes(tmp_path), cases)
    assert exp.prepare.spacing == [1.0, 1.0, 3.5]  # the tenth percentile of 3, 3.5, …, 8


def test_a_large_volume_gets_a_limited_patch(tmp_path: Path) -> None:
    exp, _ = loaded(tmp_path, volumes(tmp_path), [case(number, (512, 512, 300)) for number in range(5)])
    assert math.prod(exp.patch.size) <= MAX_PATCH_PIXELS[3] and min(exp.patch.size) >= 56


def test_ct_gets_a_window_around_its_foreground(tmp_path: Path) -> None:
    values = [ChannelStats("image", -1024, -1000, -50, 900, 1800, -300, 400, 0.8, 40.0, 140.0)]
    cases = [case(number, (50, 50, 50), dtype="int16", stats=values) for number in range(5)]
    exp, _ = loaded(tmp_path, volumes(tmp_path), cases)
    level, width = exp.prepare.window
    assert exp.prepare.intensity == "window" and level == 90 and width == 200


def test_a_few_bright_voxels_are_clipped(tmp_path: Path) -> None:
    values = [ChannelStats("image", 0, 10, 100, 300, 9000, 110, 50, 0.8, 40.0, 140.0)]
    cases = [case(number, (50, 50, 50), dtype="float32", stats=values) for number in range(5)]
    assert loaded(tmp_path, volumes(tmp_path), cases)[0].prepare.intensity == "percentile"


@pytest.mark.parametrize(("colour", "channels"), [(True, "rgb"), (False, "grey")])
def test_channels_of_images(tmp_path: Path, colour: bool, channels: str) -> None:
    values = [ChannelStats(name, 0, 1, 5, 9, 10, 5, 2, 1.0, 4, 9) for name in ("red", "green", "blue", "grey")]
    cases = [case(number, channels=4, is_colour=colour, stats=values) for number in range(5)]
    exp, snippet = loaded(tmp_path, competition(tmp_path), cases, [ChannelContrast("green", 1, 2.0, 1.0, 5)])
    assert exp.prepare.channels == channels and ("# or channels: [1]" in snippet) == colour


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ([3.06, 3.06, 3.06, 3.06], "red, green, blue and grey have nearly the same contrast (|d| 3.06)"),
        ([3.06, 3.05, 2.0, 2.5], "red and green have nearly the same contrast (|d| 3.06)"),
        ([3.06, 2.9, 2.0, 2.5], "# or channels: [0]   # red has the highest contrast"),
    ],
)
def test_channels_with_similar_contrast_are_not_ranked(tmp_path: Path, sizes: list[float], says: str) -> None:
    names = ("red", "green", "blue", "grey")
    values = [ChannelStats(name, 0, 1, 5, 9, 10, 5, 2, 1.0, 4, 9) for name in names]
    cases = [case(number, channels=3, is_colour=number == 0, stats=values) for number in range(5)]
    ranked = sorted(
        [
            ChannelContrast(name, None if name == "grey" else number, size, 1.0, 5)
            for number, (name, size) in enumerate(zip(names, sizes, strict=True))
        ],
        key=lambda item: -item.effect_size,
    )
    _, snippet = loaded(tmp_path, competition(tmp_path), cases, ranked)
    assert (
        says in snippet
        and ("highest contrast" in snippet) == ("highest contrast" in says)
        and "1 of 5 images has colours" in snippet
    )


def test_a_ct_beside_a_pet_gets_no_window(tmp_path: Path) -> None:
    """A window clips all channels, and the window of the CT would make the PET nearly constant."""
    ct = ChannelStats("CT", -1024, -1000, 0, 900, 1000, 5, 2, 1.0, 40, 140)
    pet = ChannelStats("PET", 0, 0, 0.4, 9, 12, 1, 2, 1.0, 3, 8)
    channels = {"CT": "{id}_CT.nii.gz", "PET": "{id}_PET.nii.gz"}
    comp = competition(tmp_path, dimensions=3, train={"images": channels, "masks": "{id}_m.nii.gz"})
    cases = [case(number, (50, 50, 50), dtype="float32", stats=[ct, pet]) for number in range(5)]
    assert loaded(tmp_path, comp, cases)[0].prepare.intensity == "zscore"
    cases = [case(number, (50, 50, 50), dtype="float32", stats=[ct, replace(ct, name="PET")]) for number in range(5)]
    assert loaded(tmp_path, comp, cases)[0].prepare.intensity == "window"


def test_an_imprecise_mask_does_not_widen_the_window(tmp_path: Path) -> None:
    """Bone has 100 to 400 HU; 3 % of the mask are air and 3 % are metal."""
    rng = np.random.default_rng(0)
    affine, mask = np.eye(4), np.zeros((20, 20, 20), np.uint8)
    mask[5:15, 5:15, 5:15] = 1
    for name in "abc":
        image = np.full(mask.shape, -1000, np.int16)
        bone = np.linspace(100, 400, 1000)
        bone[:30], bone[-30:] = -900, 3000
        image[mask == 1] = rng.permutation(bone)
        write_nifti(tmp_path / "im" / f"{name}.nii.gz", image, affine)
        write_nifti(tmp_path / "la" / f"{name}.nii.gz", mask, affine)
    window = yaml.safe_load(explore(volumes(tmp_path)).snippet)["prepare"]["window"]
    level, width = window
    assert 245 <= level <= 255 and 520 <= width <= 600  # 5 % and 95 % are near 106 and 394


def test_skipped_cases_are_not_used(tmp_path: Path) -> None:
    cases = [case(number, (100, 130)) for number in range(5)]
    cases.append(case(5, (2000, 2000), skipped=True))
    assert "5 cases without groups" in loaded(tmp_path, competition(tmp_path), cases)[1]


def test_no_snippet_without_training_cases(tmp_path: Path) -> None:
    assert suggest_experiment(competition(tmp_path), [CaseStats("a", "train")], []) == ""


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_demo_gets_a_valid_experiment(tmp_path: Path, demo2d: Path, demo3d: Path, dimensions: int) -> None:
    file = ROOT / "experiments" / f"demo{dimensions}d" / "competition.yaml"
    from competition.config.loading import load_competition

    comp = load_competition(file, [f"root={demo2d if dimensions == 2 else demo3d}"])
    found = explore(comp)
    (tmp_path / "experiment.yaml").write_text(REST.replace("competition.yaml", str(file)) + found.snippet)
    exp = load_experiment(tmp_path / "experiment.yaml", [f"competition.root={comp.root}"])
    assert found.faults == [] and len(exp.patch.size) == dimensions
