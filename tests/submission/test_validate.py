"""The exact problem sentences of the validator, with their lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from competition.config.profiles import PROFILES, Profile
from competition.errors import MaskfoldError
from competition.rle import encode
from competition.rle_text import RleFormat
from competition.submission.reader import read_sample
from competition.submission.validate import MAX_PROBLEMS, ValidationReport, validate_submission
from tests.host import write_text

SALT, SHIPS, SKY, STEEL = (PROFILES[name] for name in ("tgs-salt", "airbus", "contrails", "severstal"))
FORGED, VESSELS, CLOUDS = PROFILES["recodai"], PROFILES["hubmap-vasculature"], PROFILES["clouds"]
SHAPES = {"a": (4, 5), "b": (4, 5), "c.png": (2, 3)}


def check(folder: Path, rows: str, profile: Profile = SALT, sample: str | None = None) -> ValidationReport:
    """Validate rows, separated by semicolons, below the profile's header; the sample's ids are one letter each."""
    header = ",".join(profile.columns)
    path = write_text(folder / "s.csv", "\n".join([header, *rows.split(";")]) + "\n")
    against = None
    if sample is not None:
        against = write_text(folder / "sample.csv", "\n".join([header, *(f"{one}," for one in sample)]) + "\n")
    return validate_submission(path, profile, against, SHAPES)


# ── the verdict ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("problems", "wrong"),
    [
        (["The first is an X."], "s.csv: The first is an X."),
        (["Without a full stop"], "s.csv: Without a full stop."),
        ([".hidden is wrong.", "Two."], "s.csv: .hidden is wrong. The file has 1 more problem."),
        (["One.", "Two.", "Three."], "s.csv: One. The file has 2 more problems."),
    ],
)
def test_the_first_problem_is_said_and_the_others_are_counted(problems: list[str], wrong: str) -> None:
    verdict = ValidationReport(Path("folder/s.csv"), 3, 1, tuple(problems))
    assert not verdict.ok
    with pytest.raises(MaskfoldError) as error:
        verdict.raise_if_invalid()
    assert error.value.message == wrong and error.value.status == 1
    assert error.value.hint == "Write s.csv with `maskfold submit`, or correct the file."


def test_a_good_file_is_let_pass() -> None:
    verdict = ValidationReport(Path("s.csv"), 3, 1, ())
    assert verdict.ok
    verdict.raise_if_invalid()


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

#  (profile, rows, how many rows, how many of them empty, problems)
ROWS: list[tuple[Profile, str, int, int, list[str]]] = [
    (SALT, "b,;a,1 1", 2, 1, []),
    (replace(SALT, rle=RleFormat(empty="None")), "b,None;a,1 1", 2, 1, []),  # the host's own text is no missing value
    (SALT, "b, ;a,  ;c,6 1", 3, 2, []),  # c means c.png, and white space is nothing
    (SALT, "a,1 1;a,2 1", 2, 0, ["Line 3: the id a is a duplicate."]),
    (SALT, "a,1 1;b,;a,2 1;a,3 1", 4, 1, ["Line 4: the id a is a duplicate.", "Line 5: the id a is a duplicate."]),
    (
        SALT,
        "z,no mask;a,;z,",
        3,
        2,
        ["Line 2: the id z has no image.", "Line 4: the id z is a duplicate.", "Line 4: the id z has no image."],
    ),
    (SALT, "a,1 two", 1, 0, ["Line 2, the id a: RLE, value 2: found two, expected a whole number."]),
    (
        SALT,
        "b,1 1;a,20 2",
        2,
        0,
        ["Line 3, the id a: RLE, value 2: found 2, expected a run within the mask of 20 pixels."],
    ),
    (
        SALT,
        "c.png,7 1",
        1,
        0,
        ["Line 2, the id c.png: RLE, value 1: found 7, expected a start within the mask of 6 pixels."],
    ),
    (
        SALT,
        "a,NaN;b, none",
        2,
        0,
        [
            "Line 2, the id a: an empty mask is written as `NaN`, expected an empty cell.",
            "Line 3, the id b: an empty mask is written as `none`, expected an empty cell.",
        ],
    ),
    (
        SKY,
        "a,<NA>;b,NULL",
        2,
        0,
        [
            "Line 2, the id a: an empty mask is written as `<NA>`, expected `-`.",
            "Line 3, the id b: an empty mask is written as `NULL`, expected `-`.",
        ],
    ),
    (SKY, "a,;b, - ;c,-", 3, 2, ["Line 2, the id a: an empty mask is written as an empty cell, expected `-`."]),
    # Objects have a row each, which stand together; one row without any stands alone.
    (SHIPS, "b,1 2;b,3 1;a,;c,2 1", 4, 1, []),
    (SHIPS, "b,1 2;a,;b,3 1;b,5 1", 4, 1, ["Line 4: the id b is a duplicate."]),
    (SHIPS, "a,;b,1 2;b,;b,3 1;b,", 5, 3, ["Line 4: the id b has a row with an empty mask in addition to other rows."]),
    (SHIPS, "b,;b,", 2, 2, ["Line 2: the id b has a row with an empty mask in addition to other rows."]),
    (
        SHIPS,
        "b,1 4;b,9 1;b,3 8",
        3,
        0,
        ["Line 4, the id b: the object shares 3 pixels with another object of this image."],
    ),
    (
        SHIPS,
        "b,1 4;b,2 1;b,2 3",
        3,
        0,
        [
            "Line 3, the id b: the object shares 1 pixel with another object of this image.",
            "Line 4, the id b: the object shares 3 pixels with another object of this image.",
        ],
    ),
    (
        SHIPS,
        "b,1 4;b,1 0;b,nan;b,3 1;b,4 1 2 1",
        5,
        0,
        [
            "Line 3, the id b: RLE, value 2: found 0, expected a length of at least 1.",
            "Line 4, the id b: an empty mask is written as `nan`, expected an empty cell.",
            "Line 5, the id b: the object shares 1 pixel with another object of this image.",
            "Line 6, the id b: RLE, value 3: found 2, expected a start after that of the previous run.",
        ],
    ),
    (SHIPS, "a,1 4;b,1 4", 2, 0, []),
    (SHIPS, "z,1 4;z,1 4", 2, 0, ["Line 2: the id z has no image.", "Line 3: the id z has no image."]),
    # Several objects in one cell; here and in `test_rows`, a stroke stands for the semicolon between them.
    (FORGED, 'a,"[1, 2]|[2, 2]"', 1, 0, []),
    (
        replace(FORGED, overlap_allowed=False),
        'a,"[1, 3]|[2, 2]|[5, 1]"',
        1,
        0,
        ["Line 2, the id a: the object shares 2 pixels with another object of this image."],
    ),
    (
        FORGED,
        "a,[];b,authentic",
        2,
        1,
        ["Line 2, the id a: an empty mask is written as run lengths without pixels, expected `authentic`."],
    ),
    (
        replace(FORGED, rle=RleFormat(container="json")),
        "a,[];b,",
        2,
        1,
        ["Line 2, the id a: an empty mask is written as run lengths without pixels, expected an empty cell."],
    ),
    # Columns of the image's size, and classes.
    (
        VESSELS,
        "a,4,5,;b,5,4,",
        2,
        2,
        [
            "Line 3, the id b, height: found 5, expected 4 as in the image.",
            "Line 3, the id b, width: found 4, expected 5 as in the image.",
        ],
    ),
    (VESSELS, "z,4,5,", 1, 1, ["Line 2: the id z has no image."]),
    (
        STEEL,
        "a_1,;a_4,3 1;a_5,",
        3,
        2,
        ["Line 4, the id a with the class 5: found an unknown class, expected one of 1, 2, 3, 4."],
    ),
    (STEEL, "a_1,3 1;a_1,3 1", 2, 0, ["Line 3: the id a with the class 1 is a duplicate."]),
    # The host reads these on 350 × 525 pixels, whatever the image's size.
    (
        CLOUDS,
        "a_Fish,183750 1;b_Fish,183751 1",
        2,
        0,
        [
            "Line 3, the id b with the class Fish: RLE, value 1: found 183751, expected a start within the mask of "
            "183750 pixels."
        ],
    ),
]


@pytest.mark.parametrize(("profile", "rows", "count", "empty", "problems"), ROWS, ids=[row[1][:30] for row in ROWS])
def test_rows(profile: Profile, rows: str, count: int, empty: int, problems: list[str], tmp_path: Path) -> None:
    header = ",".join(profile.columns)
    lines = [line.replace("|", ";") for line in rows.split(";")]
    path = write_text(tmp_path / "s.csv", "\n".join([header, *lines]) + "\n")
    verdict = validate_submission(path, profile, None, SHAPES)
    assert list(verdict.problems) == problems
    assert verdict == ValidationReport(path, count, empty, tuple(problems))


def test_a_cell_of_zlib_without_pixels(tmp_path: Path) -> None:
    nothing = encode(np.zeros((4, 5), bool), VESSELS.rle)
    assert nothing
    assert check(tmp_path, f"a,4,5,0 1 {nothing}", VESSELS).problems == (
        "Line 2, the id a: an empty mask is written as run lengths without pixels, expected an empty cell.",
    )


def test_so_many_problems_are_kept_and_all_rows_are_counted(tmp_path: Path) -> None:
    verdict = check(
        tmp_path, ";".join(f"x{number},{'' if number % 2 else '1 1'}" for number in range(MAX_PROBLEMS + 5))
    )
    assert verdict.problems == tuple(f"Line {number + 2}: the id x{number} has no image." for number in range(20))
    assert (verdict.rows, verdict.empty) == (25, 12)


def test_a_file_that_cannot_be_read_to_its_end(tmp_path: Path) -> None:
    verdict = check(tmp_path, "b,1 0;a,1 1,;a,", sample="ba")
    assert (verdict.rows, verdict.empty) == (1, 0)
    assert verdict.problems == (
        "Line 2, the id b: RLE, value 2: found 0, expected a length of at least 1.",
        f"{tmp_path / 's.csv'}, line 3: found 3 cells, expected 2.",
    )
    gone = validate_submission(str(tmp_path / "gone.csv"), SALT, None, SHAPES)
    assert gone == ValidationReport(tmp_path / "gone.csv", 0, 0, (f"The file {tmp_path / 'gone.csv'} does not exist.",))


# ── against the sample ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rows", "problems"),
    [
        ("b,;a,;c,", []),
        ("b,;c,", ["A row for the id a is missing."]),
        ("c,", ["A row for the id b is missing.", "A row for the id a is missing."]),
        (
            "b,;a,;c.png,",
            ["A row for the id c is missing.", "The row for the id c.png is not in the sample submission."],
        ),
        (
            "b,;a,;y,;z,;y,;c,",
            [
                "Line 4: the id y has no image.",
                "Line 5: the id z has no image.",
                "Line 6: the id y is a duplicate.",
                "Line 6: the id y has no image.",
                "The row for the id y is not in the sample submission.",
                "The row for the id z is not in the sample submission.",
            ],
        ),
        ("a,;b,;c,", ["The order of the rows differs from the sample submission: found the id a, expected the id b."]),
        ("b,;c,;a,", ["The order of the rows differs from the sample submission: found the id c, expected the id a."]),
        (
            "c,;b,",
            [
                "A row for the id a is missing.",
                "The order of the rows differs from the sample submission: found the id c, expected the id b.",
            ],
        ),
        ("b,;a,;b,;c,", ["Line 4: the id b is a duplicate."]),
    ],
)
def test_against_the_sample(rows: str, problems: list[str], tmp_path: Path) -> None:
    verdict = check(tmp_path, rows, sample="bac")
    assert list(verdict.problems) == problems
    sample = read_sample(tmp_path / "sample.csv", SALT)
    assert validate_submission(tmp_path / "s.csv", SALT, sample, SHAPES) == verdict
    assert validate_submission(str(tmp_path / "s.csv"), SALT, str(tmp_path / "sample.csv"), SHAPES) == verdict


def test_a_sample_that_cannot_be_used_is_no_verdict(tmp_path: Path) -> None:
    write_text(tmp_path / "s.csv", "id,rle_mask\na,\n")
    with pytest.raises(MaskfoldError, match=r"sample\.csv has no rows"):
        validate_submission(tmp_path / "s.csv", SALT, write_text(tmp_path / "sample.csv", "id,rle_mask\n"), SHAPES)


def test_the_layout_is_the_samples(tmp_path: Path) -> None:
    """Severstal has two layouts: a file in one layout is invalid if the sample has the other."""
    joined = write_text(tmp_path / "joined.csv", "ImageId_ClassId,EncodedPixels\na_1,\na_2,\n")
    apart = write_text(tmp_path / "apart.csv", "ImageId,EncodedPixels,ClassId\na,,1\na,,2\n")
    assert validate_submission(joined, STEEL, joined, SHAPES).problems == ()
    assert validate_submission(apart, STEEL, apart, SHAPES).problems == ()
    assert validate_submission(apart, STEEL, None, SHAPES) == ValidationReport(apart, 2, 2, ())
    assert validate_submission(apart, STEEL, joined, SHAPES) == ValidationReport(
        apart,
        2,
        2,
        (
            "The file has the columns ImageId,EncodedPixels,ClassId, "
            "expected ImageId_ClassId,EncodedPixels as in the sample submission.",
        ),
    )
    assert validate_submission(joined, STEEL, apart, SHAPES) == ValidationReport(
        joined,
        0,
        0,
        (
            f"{joined} does not have the columns of the profile severstal: found ImageId_ClassId,EncodedPixels, "
            "expected ImageId,EncodedPixels,ClassId.",
        ),
    )
