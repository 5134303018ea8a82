"""Hundreds of broken files: never a traceback, a hang, a swollen process, or a case that is silently wrong.

The damage is in `mutations`, the intact files and their readers in `fuzz_targets` and `fuzz_state`, the second decoders
in `oracles`, and the process that breaks, reads and judges in `fuzz`. To look at one outcome by hand:
`python -m tests.faults.fuzz out.jsonl png`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.fuzz import GOOD, Outcome

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("png", "png16", "png48", "mask", "jpg", "nii", "nii.gz", "npy", "npz", "dicom")
BOMB = "unpack to|of memory are free"  # the latter where less is free than it declares
OTHERS = (
    "csv",
    "yaml",
    "last.pt",
    "weights",
    "prepared",
    "case.json",
    "result.json",
    "metrics.jsonl",
    "folds.csv",
    "cases.csv",
)


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """What came of every broken file; one process looks at them all."""
    out = tmp_path_factory.mktemp("fuzz") / "outcomes.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [Outcome(**json.loads(line)) for line in out.read_text().splitlines()]


def told(outcomes: list[Outcome]) -> str:
    return "\n".join(f"{one.kind} {one.number} ({one.what[:90]}): {one.verdict}, {one.words[:260]}" for one in outcomes)


@pytest.mark.timeout(700)
@pytest.mark.parametrize("kind", [*IMAGES, *OTHERS])
def test_every_broken_file_is_refused_by_name_or_read_as_it_is(outcomes: list[Outcome], kind: str) -> None:
    """An error that names file and hint; or the content as before; or what another decoder, with all checks, reads."""
    mine = [one for one in outcomes if one.kind == kind]
    bad = [one for one in mine if one.verdict not in GOOD]
    assert not bad, told(bad)
    assert len(mine) >= 12
    if kind != "metrics.jsonl":  # a journal leaves out the lines that it cannot read: they are metrics that were
        assert sum(one.verdict == "refused" for one in mine) >= len(mine) // 3, Counter(one.verdict for one in mine)


def test_there_are_hundreds_and_each_kind_of_damage_is_among_them(outcomes: list[Outcome]) -> None:
    assert len(outcomes) >= 500
    whole = " ".join(f"{one.kind}: {one.what}" for one in outcomes)
    for what in (
        "cut after",
        "flipped",
        "first",
        "GiB of zeros",
        "2^40 values",
        "NaN voxels",
        "no spacing",
        "affine of zeros",
        "another file",
        "a pickle",
        "aliases of aliases",
        "a tag that calls",
    ):
        assert what in whole, what


def test_nothing_swells_or_hangs(outcomes: list[Outcome]) -> None:
    assert max(one.spike for one in outcomes) < 2 * 2**30
    assert max(one.seconds for one in outcomes) < 10.0


@pytest.mark.parametrize(
    ("kind", "what", "words"),
    [
        ("nii", "NaN voxels", "1 NaN or infinite value"),
        ("nii", "no spacing", "voxel size: found 0"),
        ("nii", "affine of zeros", "has an affine"),
        ("nii", "two equal columns", "has an affine"),
        ("nii", "32,767 cubed", "its header declares"),
        ("nii.gz", "checksum", "CRC"),
        ("nii.gz", "20 GiB of zeros", BOMB),
        ("nii.gz", "20 GiB behind the last voxel", "bytes after its last voxel"),
        ("npz", "20 GiB", BOMB),
        ("npy", "objects", "may run code"),
        ("png", "several GiB of zeros", BOMB),
        ("png", "too few lines", "bytes of pixels"),
        ("jpg", "65,535 by 65,535 pixels", "the file can hold"),
        ("jpg", "30,000 by 30,000 pixels", "the file can hold"),
        ("dicom", "deflated zeros", BOMB),
        ("csv", "a column twice", "two columns `id`"),
        ("csv", "a million columns", "1,000,001 columns"),
        ("yaml", "aliases of aliases", "too many values"),
        ("yaml", "brackets", "nested too deeply"),
        ("yaml", "a tag that calls", "!!python/object/apply"),
        ("yaml", "a competition that is a device", "not a regular file"),
        ("last.pt", "zeros unpacked", "compressed"),
        ("last.pt", "another version", "version 99"),
        ("weights", "NaN", "NaN or infinite"),
    ],
)
def test_the_error_says_what_is_wrong(outcomes: list[Outcome], kind: str, what: str, words: str) -> None:
    [one] = [one for one in outcomes if one.kind == kind and one.what == what]
    assert one.verdict == "refused"
    assert re.search(words, one.words), one.words
