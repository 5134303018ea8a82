"""Groups that are guessed from the ids: patients, but no dates, sites or pages."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from competition.explore import explore
from competition.explore.group_rules import are_dates, guess_group_rule, kind_of
from tests.host import competition, write_png


def groups(ids: list[str]) -> set[str]:
    found = guess_group_rule(ids)
    if found is None:
        return set()
    matches = [re.search(found[0], case_id) for case_id in ids]
    assert all(matches) and {match[1] for match in matches if match} == set(found[1])
    return set(found[1])


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([f"scan_PAT{p:03d}_week{w}_{p + w}" for p in range(4) for w in range(3)], {f"PAT{p:03d}" for p in range(4)}),
        ([f"{d}-12-2023_PAT{p}_a" for p in range(4) for d in (29, 30)], {f"PAT{p}" for p in range(4)}),
        (
            [f"site{s}-p{p:02d}-slice{z}-{z + p}" for s in range(2) for p in range(3) for z in range(3)],
            {f"site{s}-p{p:02d}" for s in range(2) for p in range(3)},
        ),
        ([f"T{w}_subject-{p}_x{p + w}" for p in range(3) for w in (1, 2)], {f"subject-{p}" for p in range(3)}),
        ([f"book{b}_p{n}" for b in range(4) for n in range(5)], {f"book{b}" for b in range(4)}),
        ([f"film{f}_p{n}_s{z}" for f in range(3) for n in range(4) for z in range(2)], {f"film{f}" for f in range(3)}),
        ([f"{p:02d}_31-12-20{y}" for p in range(5) for y in range(10, 13)], {f"{p:02d}" for p in range(5)}),
        (
            [f"M-33-{m}-D_{r}_{c}" for m in range(4) for r in range(2) for c in range(3)],
            {f"M-33-{m}-D" for m in range(4)},
        ),
        ([f"area-{m}-b_r{r}_c{r}" for m in range(4) for r in range(3)], {f"area-{m}" for m in range(4)}),
        ([f"north_{r}_{c}" for r in range(4) for c in range(4)], {f"north_{r}" for r in range(4)}),
        ([f"PAT{p}" for p in range(9)], set()),
        ([f"image{p}" for p in range(9)], set()),
    ],
)
def test_patients(ids: list[str], expected: set[str]) -> None:
    assert groups(ids) == expected


@pytest.mark.parametrize(
    "day",
    ["{d:02d}-12-2023", "{d:02d}122023", "{d:02d}.12.2023", "2023-12-{d:02d}", "202312{d:02d}", "12-{d:02d}-2023"]
    + ["{d:02d}1223", "{d:02d}.12.23", "2023_12_{d:02d}", "scan_{d:02d}-12-2023"],
)
def test_days_are_no_patients(day: str, tmp_path: Path) -> None:
    days = [day.format(d=d) for d in (29, 30, 31)]
    assert are_dates(days)
    ids = [f"{name}_MR{scan}" for name in days for scan in range(3)]
    found = guess_group_rule(ids)
    assert found is None or kind_of(found[1]) == "dates"
    for number, case_id in enumerate(ids):
        image = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        write_png(tmp_path / "images" / f"{case_id}.png", image)
        write_png(tmp_path / "masks" / f"{case_id}.png", (np.arange(64).reshape(8, 8) > 30 + number).astype(np.uint8))
    assert not any("ids look grouped" in remark.message for remark in explore(competition(tmp_path)).remarks)


@pytest.mark.parametrize("names", [["190301", "190399", "190430"], ["45-13-2023", "46-14-2023"], ["P1", "P2"]])
def test_other_numbers_are_no_dates(names: list[str]) -> None:
    assert not are_dates(names)
