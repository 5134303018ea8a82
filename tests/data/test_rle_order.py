"""The order of run lengths, detected from the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from competition.config.competition import Competition
from competition.data.cases import case_table
from competition.data.rle.order import OrderVote, check_order, count_pieces, count_votes, likely_order
from competition.errors import MaskfoldError
from competition.rle import encode
from competition.rle_text import RleFormat
from tests.host import competition, write_png, write_text

NUCLEI = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "nuclei"


def _blobs(shape: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    mask = np.zeros(shape, bool)
    for _ in range(4):
        centre, radii = rng.uniform(0.2, 0.8, 2) * shape, rng.uniform(3, 8, 2)
        mask |= ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
    return mask


def _host(root: Path, order: str, shape: tuple[int, int], said: str, cases: int = 8) -> Competition:
    lines = ["id,rle"]
    for seed in range(cases):
        mask = _blobs(shape, seed)
        noise = np.random.default_rng(seed).integers(0, 30, shape)
        write_png(root / "images" / f"{seed}.png", (mask * 180 + noise).astype(np.uint8))
        lines.append(f"{seed},{encode(mask, RleFormat(order=order))}")  # type: ignore[arg-type]
    write_text(root / "train.csv", "\n".join(lines) + "\n")
    return competition(root, train={"images": "images/{id}.png", "rle": "train.csv", "rle_format": {"order": said}})


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (48, 48)])
@pytest.mark.parametrize("order", ["row", "column"])
def test_a_wrong_order_is_refused_and_a_right_one_taken(order: str, shape: tuple[int, int], tmp_path: Path) -> None:
    other = {"row": "column", "column": "row"}[order]
    assert len(case_table(_host(tmp_path, order, shape, order))) == 8
    with pytest.raises(MaskfoldError, match=f"train.rle_format.order is {other}") as refused:
        case_table(_host(tmp_path, order, shape, other))
    assert refused.value.status == 2
    assert f"to {order}" in refused.value.hint


def test_few_cases_overrule_the_yaml_only_if_one_is_clear() -> None:
    check_order(count_votes(["row"] * 4), RleFormat("column"), "t.csv", "submission.rle")
    check_order(count_votes(["row"] * 3 + ["column"], ["row"]), RleFormat("column"), "t.csv", "submission.rle")
    for clear in (count_votes(["row"], ["row"]), count_votes(["row"] * 5)):
        with pytest.raises(MaskfoldError, match="indicate row"):
            check_order(clear, RleFormat("column"), "t.csv", "submission.rle")


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("order", ["row", "column"])
def test_opinion_of_a_case(order: str, relative: bool) -> None:
    fmt = RleFormat(order=order, relative=relative)  # type: ignore[arg-type]
    assert likely_order([encode(_blobs((60, 90), 1), fmt)], (60, 90), fmt) == order
    assert likely_order([""], (60, 90), fmt) is None
    assert likely_order([encode(_blobs((60, 60), 1), fmt)], (60, 60), fmt) is None  # square, without its image


def test_pieces() -> None:
    fmt = RleFormat()
    mask = np.zeros((5, 7), bool)
    mask[1:4, 1:4] = mask[0, 6] = True
    assert count_pieces(encode(mask, fmt), 5, fmt) == 2
    assert count_pieces(encode(np.ones((5, 7), bool), fmt), 5, fmt) == 1
    assert count_pieces("", 5, fmt) == 0


def test_verdict_and_refusal() -> None:
    found = count_votes(["row"] * 9 + ["column"] + [None] * 5)
    assert found == OrderVote("row", 9, 10)
    assert found.confidence == 0.9
    with pytest.raises(MaskfoldError, match="9 of 10"):
        check_order(found, RleFormat("column"), "t.csv", "submission.rle")
    check_order(found, RleFormat("row"), "t.csv", "submission.rle")
    check_order(count_votes(["row"] * 8 + ["column"] * 2), RleFormat("column"), "t.csv", "submission.rle")
    assert count_votes([]).confidence == 0.0


@pytest.mark.skipif(not NUCLEI.is_dir(), reason="the real data are absent")
def test_the_real_nuclei_go_down_the_columns() -> None:
    from competition.data.patterns import match_cases
    from competition.data.rle.tables import assign_rows
    from competition.data.selection import SkippedCases

    pattern = "stage1_train/{id}/images/{id}.png"

    def rows(order: str) -> int:
        comp = competition(
            NUCLEI,
            train={
                "images": pattern,
                "rle": "stage1_train_labels.csv",
                "columns": {"id": "ImageId", "mask": "EncodedPixels"},
                "rle_format": {"order": order},
            },
        )
        return len(assign_rows(comp, match_cases(NUCLEI, pattern, "train.images"), SkippedCases(comp)))

    assert rows("column") == 564
    with pytest.raises(MaskfoldError, match="is row, but .* indicate column"):
        rows("row")
