"""The score of a file is the score of its masks in every format; a broken file gets no score."""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy.spatial.distance import directed_hausdorff

from competition.cli.main import main
from competition.config.competition import Competition, MetricConfig
from competition.config.loading import load_competition
from competition.config.profiles import PROFILES
from competition.data.cases import case_table
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import cv_score
from competition.metrics.scoring import score_case
from competition.submission.score import ScoreCard, score_submission
from competition.submission.testset import TestSet
from competition.submission.writer import write_submission
from tests.conftest import ROOT
from tests.host import competition, write_png, write_text

Masks = dict[str, np.ndarray]  # (K, *spatial) bool by id


def demo(folder: Path) -> Competition:
    return load_competition(ROOT / "experiments" / folder.name / "competition.yaml", [f"root={folder}"])


def rle(mask: np.ndarray, order: str = "F") -> str:
    """Run lengths, base 1, computed pixel by pixel."""
    runs: list[list[int]] = []
    for place in np.flatnonzero(mask.ravel(order=order)).tolist():
        if runs and sum(runs[-1]) == place + 1:
            runs[-1][1] += 1
        else:
            runs.append([place + 1, 1])
    return " ".join(f"{start} {length}" for start, length in runs)


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def blobs(rng: np.random.Generator, shape: tuple[int, ...], count: int = 4) -> np.ndarray:
    """Rectangles, some of them touching at a corner or a side."""
    mask = np.zeros(shape, bool)
    for _ in range(count):
        corner = [int(rng.integers(0, size - 2)) for size in shape]
        mask[tuple(slice(low, low + int(rng.integers(1, 5))) for low in corner)] = True
    return mask


def shuffled(path: Path, seed: int) -> Path:
    header, *rows = path.read_text().splitlines()
    random.Random(seed).shuffle(rows)
    return write_text(path.with_name(f"shuffled{seed}.csv"), "\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_solution_itself_is_perfect_in_any_order(
    demo2d: Path, demo3d: Path, dimensions: int, tmp_path: Path
) -> None:
    folder = demo2d if dimensions == 2 else demo3d
    mine = write_text(tmp_path / "mine.csv", (folder / "solution.csv").read_text())
    card = score_submission(shuffled(mine, 1), demo(folder), shuffled(mine, 2))
    assert (card.metric, card.score, card.high) == ("dice", 1.0, 1.0)
    assert 0.1 < card.low < 0.4, "so few cases do not show that none fails"
    assert card.cases == (3 if dimensions == 2 else 2)
    assert set(card.classes.values()) == {1.0} == set(card.dice.values())


def written(folder: Path, comp: Competition, change: Callable[[np.ndarray], np.ndarray], path: Path) -> Masks:
    """Write a submission of changed solution masks row by row; return them."""
    truths: Masks = solution_masks(folder, comp)
    masks = {case_id: np.stack([change(one) for one in truth]) for case_id, truth in truths.items()}
    lines = [
        f"{case_id},{name},{rle(masks[case_id][index])}" for case_id in masks for index, name in enumerate(comp.classes)
    ]
    write_text(path, "\n".join(["id,class,predicted", *lines]) + "\n")
    return masks


def solution_masks(folder: Path, comp: Competition) -> Masks:
    """Read with pandas and a loop over runs."""
    table = pd.read_csv(folder / "solution.csv", keep_default_na=False)
    shapes = {row.id: json.loads(row.shape) for row in case_table(comp, "test").itertuples(index=False)}
    masks = {case_id: np.zeros((len(comp.classes), *shape), bool) for case_id, shape in shapes.items()}
    for row in table.itertuples(index=False):
        flat = np.zeros(int(np.prod(shapes[row.id])), bool)
        numbers = [int(word) for word in row.predicted.split()]
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            flat[start - 1 : start - 1 + length] = True
        masks[row.id][comp.classes.index(row[1])] = flat.reshape(shapes[row.id], order="F")
    return masks


@pytest.mark.parametrize("dimensions", [2, 3])
def test_shifted_masks_have_the_dice_of_the_masks(demo2d: Path, demo3d: Path, dimensions: int, tmp_path: Path) -> None:
    folder = demo2d if dimensions == 2 else demo3d
    comp = demo(folder)
    masks = written(folder, comp, lambda mask: np.roll(mask, 2, axis=0), tmp_path / "mine.csv")
    card = score_submission(tmp_path / "mine.csv", comp, "solution.csv")  # found in the competition's folder
    values = {
        (case_id, name): dice(masks[case_id][index], truth[index]) if truth[index].any() else 1.0
        for case_id, truth in solution_masks(folder, comp).items()
        for index, name in enumerate(comp.classes)
    }
    assert card.score == pytest.approx(np.mean(list(values.values())), abs=1e-12) and 0.1 < card.score < 0.99
    for name in comp.classes:
        assert card.classes[name] == pytest.approx(np.mean([value for key, value in values.items() if key[1] == name]))
    assert card.table.set_index(["id", "class"])["score"].to_dict() == pytest.approx(values)
    assert card.low <= card.score <= card.high
    exclusive = [
        score_case(masks[case_id], np.einsum("k,k...->...", np.arange(1, 3), truth)[None].astype(np.uint8), comp)
        for case_id, truth in solution_masks(folder, comp).items()
    ]
    assert card.score == pytest.approx(np.mean([row["score"] for rows in exclusive for row in rows]), abs=1e-12)


# Each takes the rows of the demo's solution (without the header) and returns what to write, and the line at fault.
def unknown(rows: list[list[str]]) -> int:
    rows[2][0] = "picture_999"
    return 4


def doubled(rows: list[list[str]]) -> int:
    rows.append(list(rows[0]))
    return len(rows) + 1


def doubled_by_another_name(rows: list[list[str]]) -> int:
    rows.append([f"{rows[0][0]}.png", *rows[0][1:]])
    return len(rows) + 1


def nan(rows: list[list[str]]) -> int:
    rows[1][2] = "nan"
    return 3


def past_the_end(rows: list[list[str]]) -> int:
    rows[3][2] = f"1 1 {10**7} 5"
    return 5


def unsorted(rows: list[list[str]]) -> int:
    rows[3][2] = "9 1 3 1"
    return 5


def spaces_only(rows: list[list[str]]) -> int:
    rows[0][2] = "1 0"
    return 2


def strange_class(rows: list[list[str]]) -> int:
    rows[4][1] = "dust"
    return 6


def too_many_cells(rows: list[list[str]]) -> int:
    rows[4].append("1")
    return 6


def other_case_gone(rows: list[list[str]]) -> int:
    gone = rows[0][0]
    rows[:] = [row for row in rows if row[0] != gone]
    return 2  # of the solution, where the case begins


def class_gone(rows: list[list[str]]) -> int:
    case_id = rows.pop(0)[0]
    return [row[0] for row in rows].index(case_id) + 2  # where the rest of the case begins


DAMAGE = [
    unknown,
    doubled,
    doubled_by_another_name,
    nan,
    past_the_end,
    unsorted,
    spaces_only,
    strange_class,
    too_many_cells,
    other_case_gone,
    class_gone,
]


def damaged(demo2d: Path, damage: Callable[[list[list[str]]], int], path: Path) -> int:
    with open(demo2d / "solution.csv", newline="") as stream:
        header, *rows = csv.reader(stream)
    line = damage(rows)
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return line


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_broken_file_is_named_with_its_line(demo2d: Path, damage: Any, tmp_path: Path) -> None:
    line = damaged(demo2d, damage, tmp_path / "mine.csv")
    with pytest.raises(MaskfoldError, match=rf"line {line}\b") as error:
        score_submission(tmp_path / "mine.csv", demo(demo2d), demo2d / "solution.csv")
    assert str(tmp_path / "mine.csv") in error.value.message and error.value.status == 1
    if damage is other_case_gone:
        assert f"{demo2d / 'solution.csv'}, line 2" in error.value.message


@pytest.mark.parametrize(
    "damage", [unknown, doubled, past_the_end, class_gone, other_case_gone], ids=lambda damage: damage.__name__
)
def test_a_broken_solution_is_named_with_its_line(demo2d: Path, damage: Any, tmp_path: Path) -> None:
    line = damaged(demo2d, damage, tmp_path / "truth.csv")
    with pytest.raises(MaskfoldError, match=rf"line {line}\b") as error:
        score_submission(demo2d / "solution.csv", demo(demo2d), tmp_path / "truth.csv")
    assert str(tmp_path / "truth.csv") in error.value.message


def test_files_that_are_no_submission(demo2d: Path, tmp_path: Path) -> None:
    comp, solution = demo(demo2d), demo2d / "solution.csv"
    for text, what in (("id,class,predicted\n", "no rows"), ("id,predicted\na,\n", "columns"), ("", "is empty")):
        with pytest.raises(MaskfoldError, match=what):
            score_submission(write_text(tmp_path / "mine.csv", text), comp, solution)
        with pytest.raises(MaskfoldError, match=what):
            score_submission(solution, comp, tmp_path / "mine.csv")
    with pytest.raises(MaskfoldError, match="absent.csv does not exist"):
        score_submission(tmp_path / "absent.csv", comp, solution)
    with pytest.raises(MaskfoldError, match="absent.csv does not exist"):
        score_submission(solution, comp, "absent.csv")
    with pytest.raises(MaskfoldError, match=r"line 2: .* has no training image.*--solution"):
        score_submission(solution, comp)
    with pytest.raises(MaskfoldError, match="no `test` section"):
        score_submission(solution, comp.model_copy(update={"test": None}), solution)


def test_columns_beyond_the_profiles_are_for_solutions_only(demo2d: Path, tmp_path: Path) -> None:
    comp = demo(demo2d)
    table = pd.read_csv(demo2d / "solution.csv", dtype=str, keep_default_na=False)
    table.assign(Usage="Public")[["Usage", "predicted", "id", "class"]].to_csv(tmp_path / "wide.csv", index=False)
    assert score_submission(demo2d / "solution.csv", comp, tmp_path / "wide.csv").score == 1.0
    with pytest.raises(MaskfoldError, match="Usage,predicted,id,class"):
        score_submission(tmp_path / "wide.csv", comp, demo2d / "solution.csv")


# Training cases: what cross-validation says of masks, the file says too.
def judged(comp: Competition, probabilities: Masks) -> tuple[float, Masks, list[dict[str, Any]]]:
    """Return the CV score of out-of-fold probabilities (P, *spatial), by the class that scores folds; and the masks."""
    import torch

    from competition.training.evaluator import Evaluator

    table = case_table(comp)
    judge = Evaluator(SimpleNamespace(competition=comp), table, {}, torch.device("cpu"), torch.no_grad, lambda: None)  # type: ignore[arg-type]
    lines, masks = [], {}
    for row in judge.iter_cases():
        if row.id in probabilities:
            rows, masks[row.id], _ = judge.score(probabilities[row.id], row, 0)
            lines += rows
    return cv_score(pd.DataFrame(lines), comp.metric), masks, lines


def guesses(comp: Competition, seed: int, leave_out: int = 0) -> Masks:
    """Probabilities that partly follow the truth; some cases lack a class."""
    from competition.data.masks import load_mask

    rng, found = np.random.default_rng(seed), {}
    for number, row in enumerate(case_table(comp).itertuples(index=False)):
        if number < leave_out:
            continue
        truth = load_mask(comp, row)
        near = (
            np.stack([truth[0] == value for value in range(len(comp.classes) + 1)])
            if comp.labels == "exclusive"
            else truth == 1
        )
        values = rng.random(near.shape) * 0.6 + 0.5 * near * (number % 4 != 3)
        found[row.id] = values.astype(np.float16)
    return found


@pytest.mark.parametrize("average", ["case_class", "class", "global"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_out_of_fold_masks_score_as_in_cross_validation(
    demo2d: Path, demo3d: Path, dimensions: int, average: str, tmp_path: Path
) -> None:
    comp = demo(demo2d if dimensions == 2 else demo3d)
    comp = comp.model_copy(update={"metric": comp.metric.model_copy(update={"average": average})})
    score, masks, lines = judged(comp, guesses(comp, seed=dimensions, leave_out=2))
    rows = [
        f"{case_id},{name},{rle(masks[case_id][index])}"
        for case_id in reversed(masks)
        for index, name in enumerate(comp.classes)
    ]
    card = score_submission(write_text(tmp_path / "oof.csv", "\n".join(["id,class,predicted", *rows])), comp)
    assert card.score == pytest.approx(score, abs=1e-12) and 0.05 < score < 0.95
    assert card.cases == len(masks) == (8 if dimensions == 2 else 4)
    expected = pd.DataFrame(lines).groupby("class")["dice"].mean().to_dict()
    assert card.dice == pytest.approx(expected, abs=1e-12)


def nuclei(root: Path, ids: str = "abcdef", **changes: Any) -> Competition:
    """2D images with a table of one row per object instead of masks, as in the Data Science Bowl 2018."""
    rng, rows = np.random.default_rng(5), []
    for number, case_id in enumerate(ids):
        write_png(root / "train" / f"{case_id}.png", rng.integers(0, 255, (20 + number, 26), dtype=np.uint8))
        write_png(root / "test" / f"t{case_id}.png", rng.integers(0, 255, (20 + number, 26), dtype=np.uint8))
        left = np.zeros((20 + number, 26), bool)
        left[2:9, 3:10] = True
        right = np.roll(left, 7, axis=1)  # touches the left one: two rows, one component
        objects = [left, right, np.roll(left, 10, axis=0)] if case_id != ids[-1] else []
        rows += [f"{case_id},{rle(one)}" for one in objects] or [f"{case_id},"]
    write_text(root / "train.csv", "\n".join(["ImageId,EncodedPixels", *rows]) + "\n")
    return competition(
        root,
        **{
            "instances": True,
            "train": {
                "images": "train/{id}.png",
                "rle": "train.csv",
                "columns": {"id": "ImageId", "class": None, "mask": "EncodedPixels"},
            },
            "test": {"images": "test/{id}.png"},
            "metric": {"name": "mean_ap", "both_empty": 1.0},
            "submission": {"profile": "dsb2018"},
        }
        | changes,
    )


def average_precision(predicted: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """The score of one image, by every pair of objects."""
    ious = [(one & other).sum() / (one | other).sum() for one in predicted for other in truth]
    values = []
    for threshold in np.arange(0.5, 0.99, 0.05):
        tp = sum(value > threshold + 1e-9 for value in ious)
        values.append(tp / (len(predicted) + len(truth) - tp))
    return float(np.mean(values))


@pytest.mark.parametrize("metric", ["mean_ap", "f2_iou", "dice"])
def test_components_written_as_rows_score_as_in_cross_validation(tmp_path: Path, metric: str) -> None:
    from scipy.ndimage import label

    comp = nuclei(tmp_path, metric={"name": metric, "both_empty": 1.0})
    rng = np.random.default_rng(1)
    probabilities = guesses(comp, 3)
    for values in probabilities.values():  # blobs, not noise
        values[0], values[1] = 0.5, values[1] > 0.55
        values[1] = (values[1] > 0) | blobs(rng, values.shape[1:])
    score, masks, _ = judged(comp, probabilities)
    rows = []
    for case_id, mask in masks.items():
        objects, count = label(mask[0], np.ones((3, 3)))
        rows += [f"{case_id},{rle(objects == number)}" for number in range(1, count + 1)] or [f"{case_id},"]
    random.Random(0).shuffle(rows)  # a case's objects need not stand together
    path = write_text(tmp_path / "oof.csv", "\n".join(["ImageId,EncodedPixels", *rows]) + "\n")
    card = score_submission(path, comp)
    assert card.score == pytest.approx(score, abs=1e-12) and 0.0 < score < 1.0 and card.cases == 6


def test_rows_are_the_objects(tmp_path: Path) -> None:
    """Touching objects count as the two objects of their rows, in the file and in the solution."""
    comp = nuclei(tmp_path)
    left, right = np.zeros((20, 26), bool), np.zeros((20, 26), bool)
    left[2:9, 3:10], right[2:9, 10:17] = True, True
    shifted = np.zeros((20, 26), bool)
    shifted[4:9, 3:10] = True  # 35 of 49 pixels
    header = "ImageId,EncodedPixels\n"
    solution = write_text(tmp_path / "solution.csv", f"{header}ta,{rle(left)}\ntb,\nta,{rle(right)}\n")
    apart = write_text(tmp_path / "apart.csv", f"{header}tb,\nta,{rle(right)}\nta,{rle(shifted)}\n")
    joined = write_text(tmp_path / "joined.csv", f"{header}tb,\nta,{rle(shifted | right)}\n")
    expected = average_precision([right, shifted], [left, right])
    assert score_submission(apart, comp, solution).table["score"].tolist() == pytest.approx([expected, 1.0])
    assert expected == pytest.approx((5 + 5 / 3) / 10)  # the shifted one passes 0.50 to 0.70
    alone = average_precision([shifted | right], [left, right])
    assert score_submission(joined, comp, solution).table["score"].tolist() == pytest.approx([alone, 1.0])
    assert score_submission(solution, comp, solution).score == 1.0
    table = score_submission(tmp_path / "train.csv", comp)  # the training table itself, against the training table
    assert (table.score, table.cases) == (1.0, 6)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (["ta,1 2", "ta,2 1", "tb,"], "line 3: the id ta shares 1 pixel"),
        (["ta,1 2", "ta,", "tb,"], "line 3: the id ta has a row with an empty mask in addition to other rows"),
        (["ta,1 2", "tb,", "tc,"], "line 4: the id tc has no row in"),
        (["ta,1 2", "tz,"], "line 3: the id tz has no test image"),
    ],
)
def test_broken_files_of_objects(tmp_path: Path, rows: list[str], what: str) -> None:
    comp = nuclei(tmp_path)
    solution = write_text(
        tmp_path / "solution.csv", "ImageId,EncodedPixels\nta,1 2\nta,2 2\ntb,\n"
    )  # a host may overlap
    mine = write_text(tmp_path / "mine.csv", "\n".join(["ImageId,EncodedPixels", *rows]) + "\n")
    with pytest.raises(MaskfoldError, match=what):
        score_submission(mine, comp, solution)


def test_pixels_that_count_nowhere_cut_a_component_as_in_cross_validation(tmp_path: Path) -> None:
    image, labels = np.zeros((12, 30), np.uint8), np.zeros((12, 30), np.uint8)
    labels[3:8, 2:10], labels[3:8, 10:18], labels[3:8, 18:26] = 1, 255, 1
    for case_id in "ab":
        write_png(tmp_path / "images" / f"{case_id}.png", image)
        write_png(tmp_path / "masks" / f"{case_id}.png", labels)
    comp = competition(
        tmp_path,
        instances=True,
        ignore=255,
        metric={"name": "mean_ap"},
        submission={"columns": {"id": "id", "mask": "rle"}},
    )
    wide = np.zeros((12, 30), bool)
    wide[3:8, 2:26] = True  # one component, of which the middle counts nowhere
    score, masks, _ = judged(comp, dict.fromkeys("ab", np.stack([~wide, wide]).astype(np.float16)))
    assert score == 1.0 and np.array_equal(masks["a"][0], wide)
    mine = write_text(tmp_path / "mine.csv", f"id,rle\na,{rle(wide)}\nb,{rle(wide)}\n")
    assert score_submission(mine, comp).score == 1.0


# Stacks of slices.
CLASSES = ("large_bowel", "small_bowel", "stomach")


def stacks(root: Path, folder: str, depths: dict[str, int]) -> Masks:
    """Slices of 16 × 18, and masks (3, 16, 18, depth) of classes that overlap."""
    rng, masks = np.random.default_rng(len(folder)), {}
    for case_id, depth in depths.items():
        for number in range(1, depth + 1):  # 9 and 10: by number, not by letter
            write_png(
                root / folder / case_id / f"slice_{number}_266.png", rng.integers(0, 255, (16, 18), dtype=np.uint8)
            )
        masks[case_id] = np.stack([blobs(rng, (16, 18, depth)) for _ in CLASSES])
    return masks


def slice_rows(masks: Masks) -> list[str]:
    return [
        f"{case_id}_slice_{z + 1},{name},{rle(volume[index, ..., z], 'C')}"
        for case_id, volume in masks.items()
        for z in range(volume.shape[-1])
        for index, name in enumerate(CLASSES)
    ]


def madison(root: Path) -> tuple[Competition, Masks, Masks]:
    trained, tested = (
        stacks(root, "train", {"case1_day0": 11, "case2_day1": 3}),
        stacks(root, "test", {"case9_day9": 12}),
    )
    write_text(root / "train.csv", "\n".join(["id,class,segmentation", *slice_rows(trained)]) + "\n")
    comp = competition(
        root,
        dimensions=3,
        classes=list(CLASSES),
        labels="overlapping",
        train={
            "images": "train/{id}/slice_{z}_266.png",
            "rle": "train.csv",
            "columns": {"id": "id", "class": "class", "mask": "segmentation"},
            "rle_format": {"order": "row"},
        },
        test={"images": "test/{id}/slice_{z}_266.png"},
        metric={"name": "uw_madison", "both_empty": None},
        submission={"profile": "uw-madison-gi-tract"},
    )
    return comp, trained, tested


def by_hand(mask: np.ndarray, truth: np.ndarray) -> tuple[list[float], float]:
    """The Dice of each slice that is not empty in both, and 1 - Hausdorff of the volume."""
    points = np.argwhere(mask), np.argwhere(truth)
    far = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0]) / np.linalg.norm(mask.shape)
    slices = [dice(mask[..., z], truth[..., z]) for z in range(mask.shape[-1]) if (mask | truth)[..., z].any()]
    return slices, 1 - float(far)


def test_slices_become_volumes_again(tmp_path: Path) -> None:
    comp, trained, tested = madison(tmp_path)
    moved = {case_id: np.roll(masks, (1, 2), axis=(1, 3)) for case_id, masks in {**trained, **tested}.items()}
    header = "id,class,predicted"

    def card(masks: Masks, solution: Masks | None) -> ScoreCard:
        files = []
        for name, some in (("mine", masks), ("truth", solution)):
            rows = slice_rows(some or {})
            random.Random(name).shuffle(rows)
            files.append(write_text(tmp_path / f"{name}.csv", "\n".join([header, *rows]) + "\n"))
        return score_submission(files[0], comp, files[1] if solution else None)

    assert card(tested, tested).score == 1.0 == card(trained, None).score
    for truth, solution in ((trained, None), (tested, tested)):
        found = card({case_id: moved[case_id] for case_id in truth}, solution)
        expected = [
            by_hand(moved[case_id][index], masks[index])
            for case_id, masks in sorted(truth.items())
            for index in range(3)
        ]
        scores = [0.4 * np.mean(slices) + 0.6 * near for slices, near in expected]
        assert found.table["score"].tolist() == pytest.approx(scores, abs=1e-12)
        dices = [value for slices, _ in expected for value in slices]
        pooled = 0.4 * np.mean(dices) + 0.6 * np.mean([near for _, near in expected])
        assert found.score == pytest.approx(pooled, abs=1e-12) and found.cases == len(truth)
    assert card({"case2_day1": trained["case2_day1"]}, None).cases == 1
    mine = write_text(tmp_path / "mine.csv", f"{header}\nslice_1_266,stomach,\n")  # each of two cases has this file
    with pytest.raises(MaskfoldError, match="line 2: the id slice_1_266 .* has no training image"):
        score_submission(mine, comp)


def test_the_slices_of_sennet_hoa_have_rows_without_a_sample(tmp_path: Path) -> None:
    madison(tmp_path)
    stack = "{id}/slice_{z}_266.png"
    comp = competition(
        tmp_path,
        dimensions=3,
        train={"images": f"train/{stack}", "masks": f"train/{stack}"},
        test={"images": f"test/{stack}"},
        submission={"profile": "sennet-hoa"},
    )
    names = TestSet.from_table(comp, case_table(comp, "test")).names
    assert names == {"case9_day9": [f"case9_day9_slice_{z}" for z in range(1, 13)]}


def disc(row: int, column: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:64, :80]
    return (y - row) ** 2 + (x - column) ** 2 <= radius * radius


@pytest.mark.parametrize("truth_in", ["table", "solution"])
def test_true_objects_that_overlap_are_whole(tmp_path: Path, truth_in: str) -> None:
    """The second object has 253 pixels, of which 83 are also in the first: its cut prediction has an IoU of 0.67."""
    first, second, third = disc(20, 20, 9), disc(20, 30, 9), disc(45, 60, 6)
    rows = [("a", first), ("a", second), ("a", third), ("b", first)]
    for case_id in ("a", "b"):
        write_png(tmp_path / "train" / f"{case_id}.png", np.zeros((64, 80), np.uint8))
        write_png(tmp_path / "test" / f"{case_id}.png", np.zeros((64, 80), np.uint8))
    for name, column in (("train.csv", "annotation"), ("solution.csv", "predicted")):
        lines = [f"{case_id},{rle(mask, 'C')}" for case_id, mask in rows]
        write_text(tmp_path / name, "\n".join([f"id,{column}", *lines]) + "\n")
    comp = competition(
        tmp_path,
        classes=["cell"],
        instances=True,
        train={"images": "train/{id}.png", "rle": "train.csv"},
        test={"images": "test/{id}.png"},
        metric={"name": "mean_ap"},
        submission={"profile": "sartorius"},
    )
    cut = [("a", first), ("a", second & ~first), ("a", third), ("b", first)]
    mine = [f"{case_id},{rle(mask, 'C')}" for case_id, mask in cut]
    path = write_text(tmp_path / "mine.csv", "\n".join(["id,predicted", *mine]) + "\n")
    solution = tmp_path / "solution.csv" if truth_in == "solution" else None
    assert score_submission(path, comp, solution).score == pytest.approx((1 + (4 * 1 + 6 * 0.5) / 10) / 2)  # 0.85
    f2 = comp.model_copy(update={"metric": MetricConfig(name="f2_iou")})
    expected = (4 * 1 + 6 * 10 / (10 + 4 + 1)) / 10
    assert score_submission(path, f2, solution).score == pytest.approx((1 + expected) / 2)


def test_the_host_averages_uw_madison_over_slices(tmp_path: Path) -> None:
    """Four scans of six slices with three organs; the values follow from the host's page and its two readings."""
    rng, names, size = np.random.default_rng(21), ("large_bowel", "small_bowel", "stomach"), (40, 56)
    trained, guessed = [], []
    for case_id in ("case2_day1", "case2_day10", "case101_day20", "case123_day0"):
        volumes = {name: np.zeros((*size, 6), bool) for name in names}
        for name in names:
            if (case_id, name) != ("case123_day0", "stomach"):
                ellipse = one_ellipse(*size, rng)
                low, high = sorted(rng.choice(6, 2, replace=False))
                volumes[name][..., low : high + 1] = ellipse[..., None]
        for z in range(6):
            rng.normal(3000, 300, size)
            write_png(tmp_path / "train" / case_id / f"slice_{z + 1:04d}.png", np.full(size, 100 + z, np.uint8))
            for name in names:
                mask = volumes[name][..., z]
                guess = np.roll(mask, (1, 2), (0, 1)) if rng.random() < 0.8 else np.zeros_like(mask)
                trained.append(f"{case_id}_slice_{z + 1:04d},{name},{rle(mask, 'C')}")
                guessed.append(f"{case_id}_slice_{z + 1:04d},{name},{rle(guess, 'C')}")
    write_text(tmp_path / "train.csv", "\n".join(["id,class,segmentation", *trained]) + "\n")
    mine = write_text(tmp_path / "mine.csv", "\n".join(["id,class,predicted", *guessed]) + "\n")

    def score(**metric: Any) -> float:
        return score_submission(
            mine,
            competition(
                tmp_path,
                dimensions=3,
                classes=list(names),
                labels="overlapping",
                train={"images": "train/{id}/slice_{z}.png", "rle": "train.csv"},
                submission={"profile": "uw-madison-gi-tract"},
                metric={"name": "uw_madison", "both_empty": None, **metric},
            ),
        ).score

    assert score() == score(args={"coordinates": "voxels"}) == pytest.approx(0.811692, abs=1e-6)
    assert score(args={"coordinates": "unit_cube"}) == pytest.approx(0.779372, abs=1e-6)
    with pytest.raises(ValidationError, match="`args.coordinates` is 'mm', expected voxels or unit_cube"):
        score(args={"coordinates": "mm"})


def one_ellipse(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    row, column = rng.integers(8, height - 8), rng.integers(8, width - 8)
    a, b = rng.integers(5, 10), rng.integers(5, 10)
    return ((y - row) / a) ** 2 + ((x - column) / b) ** 2 <= 1


def test_a_slice_that_is_not_there(tmp_path: Path) -> None:
    comp, _, tested = madison(tmp_path)
    rows = slice_rows(tested)
    solution = write_text(tmp_path / "solution.csv", "\n".join(["id,class,predicted", *rows]) + "\n")
    for changed, what in (
        (rows[:-3], r"case9_day9_slice_12 with the class large_bowel.* line 2 is a row of"),
        ([*rows, "case9_day9_slice_13,stomach,"], r"line 38: the id case9_day9_slice_13 .* has no test image"),
        ([*rows, "case9_day9,stomach,"], "line 38: the id case9_day9 with the class stomach has no test image"),
        ([*rows, "case9_day9_slice_3_266,stomach,"], "line 38: .* a duplicate of line 10"),
    ):
        mine = write_text(tmp_path / "mine.csv", "\n".join(["id,class,predicted", *changed]) + "\n")
        with pytest.raises(MaskfoldError, match=what):
            score_submission(mine, comp, solution)


def test_a_volume_in_one_row_or_by_its_slices(tmp_path: Path) -> None:
    """SenNet has slice names, but its profile does not distinguish them from 2D images: the names decide."""
    truth = stacks(tmp_path, "train", {"k1": 4, "k2": 3})
    for case_id, masks in truth.items():
        for z in range(masks.shape[-1]):
            write_png(tmp_path / "labels" / case_id / f"slice_{z + 1}.png", masks[0, ..., z].astype(np.uint8))
    comp = competition(
        tmp_path,
        dimensions=3,
        submission={"profile": "sennet-hoa"},
        metric={"name": "uw_madison"},
        train={"images": "train/{id}/slice_{z}_266.png", "masks": "labels/{id}/slice_{z}.png"},
    )
    masks = {case_id: np.roll(volume[0], 1, axis=0) for case_id, volume in truth.items()}
    whole = [f"{case_id},{rle(mask, 'C') or '1 0'}" for case_id, mask in masks.items()]
    sliced = [
        f"{case_id}_slice_{z + 1},{rle(mask[..., z], 'C') or '1 0'}"
        for case_id, mask in masks.items()
        for z in range(mask.shape[-1])
    ]
    terms = [by_hand(masks[case_id], truth[case_id][0]) for case_id in ("k1", "k2")]
    expected = [0.4 * np.mean(slices) + 0.6 * near for slices, near in terms]
    for rows in (whole, sliced, [whole[0], *sliced[4:]]):
        card = score_submission(write_text(tmp_path / "m.csv", "\n".join(["id,rle", *rows])), comp)
        assert card.table["score"].tolist() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(
        MaskfoldError, match="line 2: the case k1 has rows for the whole volume and rows for single slices"
    ):
        score_submission(write_text(tmp_path / "m.csv", "\n".join(["id,rle", *whole, *sliced])), comp)


# Profiles.
def test_a_grid_of_the_hosts_own(tmp_path: Path) -> None:
    rng, classes = np.random.default_rng(0), ["Fish", "Flower", "Gravel", "Sugar"]
    labels = np.kron(rng.integers(0, 5, (70, 105), dtype=np.uint8), np.ones((10, 10), np.uint8))
    labels[:, 1::2] = np.roll(labels[:, 1::2], 3, axis=0)  # so that blocks of 2 × 2 are mixed
    write_png(tmp_path / "images" / "a.png", labels)
    write_png(tmp_path / "masks" / "a.png", labels)
    comp = competition(tmp_path, classes=classes, submission={"profile": "clouds"}, metric={"name": "dice"})
    small = [(labels == value).reshape(350, 2, 525, 2).mean(axis=(1, 3)) for value in range(1, 5)]
    truth = [one >= 0.5 for one in small]
    masks = [np.roll(one, 7, axis=1) for one in truth]
    rows = [f"a.png_{name},{rle(mask)}" for name, mask in zip(classes, masks, strict=True)]
    card = score_submission(write_text(tmp_path / "m.csv", "\n".join(["Image_Label,EncodedPixels", *rows])), comp)
    taken = np.zeros((350, 525), bool)  # a pixel that is half of one class and half of another has the later one
    for index in (3, 2, 1, 0):
        truth[index] &= ~taken
        taken |= truth[index]
    expected = [dice(mask, one) for mask, one in zip(masks, truth, strict=True)]
    assert list(card.classes.values()) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(card.low)  # one case has no interval


@pytest.mark.parametrize(
    "name", [name for name, profile in PROFILES.items() if profile.metric == "only its file format"]
)
def test_format_only(name: str, tmp_path: Path) -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:5] = True
    write_png(tmp_path / "images" / "a.png", mask.astype(np.uint8))
    write_png(tmp_path / "masks" / "a.png", mask.astype(np.uint8))
    comp = competition(tmp_path, submission={"profile": name})
    mine = tmp_path / "mine.csv"
    write_submission([("a", None, mask[:, ::-1] & mask), ("a", None, mask[::-1] & ~mask)], PROFILES[name], mine)
    with pytest.raises(MaskfoldError, match="but not its metric") as error:
        score_submission(mine, comp)
    assert error.value.status == 2
    named = competition(tmp_path, submission={"profile": name}, metric={"name": "iou"})
    both = (mask[:, ::-1] & mask) | (mask[::-1] & ~mask)
    assert score_submission(mine, named).score == pytest.approx((both & mask).sum() / (both | mask).sum())


def test_height_and_width(tmp_path: Path) -> None:
    write_png(tmp_path / "images" / "a.png", np.zeros((6, 8), np.uint8))
    write_png(tmp_path / "masks" / "a.png", np.zeros((6, 8), np.uint8))
    comp = competition(tmp_path, submission={"profile": "hubmap-vasculature"}, metric={"name": "dice"})
    mine = write_text(tmp_path / "mine.csv", "id,height,width,prediction_string\na,8,6,\n")
    with pytest.raises(MaskfoldError, match="line 2: the id a has 8 as height, expected 6"):
        score_submission(mine, comp)


def test_an_empty_mask_is_the_hosts_token(tmp_path: Path) -> None:
    write_png(tmp_path / "images" / "a.png", np.zeros((6, 8), np.uint8))
    write_png(tmp_path / "masks" / "a.png", np.zeros((6, 8), np.uint8))
    comp = competition(tmp_path, submission={"profile": "contrails"})
    assert score_submission(write_text(tmp_path / "mine.csv", "record_id,encoded_pixels\na,-\n"), comp).cases == 1
    with pytest.raises(MaskfoldError, match="line 2: the id a has a mask without pixels. Write `-`"):
        score_submission(write_text(tmp_path / "mine.csv", "record_id,encoded_pixels\na,\n"), comp)


def test_two_layouts_of_one_profile_and_classes_that_overlap_in_the_truth(tmp_path: Path) -> None:
    write_png(tmp_path / "images" / "a.png", np.zeros((6, 8), np.uint8))
    write_png(tmp_path / "masks" / "a.png", np.zeros((6, 8), np.uint8))
    write_png(tmp_path / "test" / "x.png", np.zeros((6, 8), np.uint8))
    comp = competition(
        tmp_path,
        classes=list("1234"),
        test={"images": "test/{id}.png"},
        metric={"both_empty": None},
        submission={"profile": "severstal"},
    )
    mine = write_text(
        tmp_path / "mine.csv", "ImageId_ClassId,EncodedPixels\nx.png_2,3 6\nx.png_1,1 4\nx.png_4,\nx.png_3,\n"
    )
    truth = write_text(tmp_path / "truth.csv", "ImageId,EncodedPixels,ClassId\nx,1 4,1\nx,1 6,2\nx,,3\nx,1 2,4\n")
    card = score_submission(mine, comp, truth)
    assert card.classes == pytest.approx({"1": 1.0, "2": 2 * 4 / 12, "3": float("nan"), "4": 0.0}, nan_ok=True)
    assert card.score == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_files_without_classes(tmp_path: Path) -> None:
    comp = competition(tmp_path, classes=["a", "b"], submission={"profile": "hubmap-organ"})
    with pytest.raises(MaskfoldError, match="no column for the class, .*competition.classes has") as error:
        score_submission(tmp_path / "mine.csv", comp)
    assert error.value.status == 2


# The command.
@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys, "argv", ["maskfold", "score", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


def test_the_command(demo2d: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    yaml = ROOT / "experiments" / "demo2d" / "competition.yaml"
    masks = written(demo2d, demo(demo2d), lambda mask: np.roll(mask, 1, axis=1), tmp_path / "mine.csv")
    truths = solution_masks(demo2d, demo(demo2d))
    status, out, _ = command(
        "mine.csv", "--competition", yaml, "--solution", "solution.csv", f"root={demo2d}", "--table", "out/cases.csv"
    )
    assert status == 0 and "cases: 3" in out and "ring" in out and "grain" in out and "95 %" in out
    values = [
        dice(masks[case_id][index], truths[case_id][index]) if truths[case_id][index].any() else 1.0
        for case_id in sorted(masks)
        for index in range(2)
    ]
    printed = re.search(r"dice: (\d\.\d{10})", out)
    assert printed is not None and float(printed[1]) == pytest.approx(np.mean(values), abs=1e-9)
    table = pd.read_csv(tmp_path / "out" / "cases.csv")
    assert table["id"].tolist() == [case_id for case_id in sorted(masks) for _ in range(2)]
    assert table["score"].tolist() == pytest.approx(values)
    metric = command(
        "mine.csv", "--competition", yaml, "--solution", "solution.csv", f"competition.root={demo2d}", "metric.name=iou"
    )
    assert metric[0] == 0 and "iou: " in metric[1]


def test_the_commands_refusals(demo2d: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    yaml = ROOT / "experiments" / "demo2d" / "competition.yaml"
    mine = write_text(tmp_path / "mine.csv", (demo2d / "solution.csv").read_text())
    for status, words, what in (
        (2, ("mine.csv",), "--competition"),
        (2, ("absent.csv", "--competition", yaml, f"root={demo2d}"), "absent.csv does not exist"),
        (2, ("mine.csv", "--competition", yaml, f"rot={demo2d}"), "rot"),
        (2, ("mine.csv", "--competition", yaml.with_name("unet2d.yaml")), "not a competition"),
        (2, ("mine.csv", "--competition", yaml, f"root={demo2d}", "--table", "mine.csv"), "--table"),
        (1, ("mine.csv", "--competition", yaml, f"root={demo2d}"), "line 2"),
    ):
        code, out, error = command(*words)
        assert code == status and what in error and "Traceback" not in error and "cases:" not in out, (words, error)
    assert mine.read_text() == (demo2d / "solution.csv").read_text()
