"""The validator's verdicts word by word: every sentence that a user reads, with its line, and no other beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from competition.config.errors import MaskfoldError
from competition.rle import RleFormat, encode
from competition.submission.profiles import PROFILES, Profile
from competition.submission.read import read_sample
from competition.submission.validate import SHOWN, Verdict, validate_submission
from tests.data.host import write_text

SALT, SHIPS, SKY, STEEL = (PROFILES[name] for name in ("tgs-salt", "airbus", "contrails", "severstal"))
FORGED, VESSELS, CLOUDS = PROFILES["recodai"], PROFILES["hubmap-vasculature"], PROFILES["clouds"]
SHAPES = {"a": (4, 5), "b": (4, 5), "c.png": (2, 3)}


def check(folder: Path, rows: str, profile: Profile = SALT, sample: str | None = None) -> Verdict:
    """The verdict on rows, parted by semicolons, below the profile's header; against a sample's ids, one letter each."""
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
        ([".hidden is wrong.", "Two."], "s.csv: .hidden is wrong (1 more problem follows)."),
        (["One.", "Two.", "Three."], "s.csv: One (2 more problems follow)."),
    ],
)
def test_the_first_problem_is_said_and_the_others_are_counted(problems: list[str], wrong: str) -> None:
    verdict = Verdict(Path("folder/s.csv"), 3, 1, tuple(problems))
    assert not verdict.ok
    with pytest.raises(MaskfoldError) as error:
        verdict.check()
    assert error.value.wrong == wrong and error.value.status == 1
    assert error.value.cure == "Write the file with `maskfold submit`, or correct these rows."


def test_a_good_file_is_let_pass() -> None:
    verdict = Verdict(Path("s.csv"), 3, 1, ())
    assert verdict.ok
    verdict.check()


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

#  (profile, rows, how many rows, how many of them empty, problems)
ROWS: list[tuple[Profile, str, int, int, list[str]]] = [
    (SALT, "b,;a,1 1", 2, 1, []),
    (SALT, "b, ;a,  ;c,6 1", 3, 2, []),  # c means c.png, and white space is nothing
    (SALT, "a,1 1;a,2 1", 2, 0, ["Line 3: the id a is there a second time."]),
    (
        SALT,
        "a,1 1;b,;a,2 1;a,3 1",
        4,
        1,
        ["Line 4: the id a is there a second time.", "Line 5: the id a is there a second time."],
    ),
    (
        SALT,
        "z,no mask;a,;z,",
        3,
        2,
        [
            "Line 2: the id z has no image.",
            "Line 4: the id z is there a second time.",
            "Line 4: the id z has no image.",
        ],
    ),
    (SALT, "a,1 two", 1, 0, ["Line 2, the id a: Word 2 of the run lengths (two) is not a number."]),
    (
        SALT,
        "b,1 1;a,20 2",
        2,
        0,
        [
            "Line 3, the id a: Word 2 of the run lengths (2) is a length that runs past the end of "
            "the mask, which has 20 pixels."
        ],
    ),
    (
        SALT,
        "c.png,7 1",
        1,
        0,
        [
            "Line 2, the id c.png: Word 1 of the run lengths (7) is a start past the end of the mask, "
            "which has 6 pixels."
        ],
    ),
    (
        SALT,
        "a,NaN;b, none",
        2,
        0,
        [
            "Line 2, the id a: the mask is the word `NaN`; an empty mask is an empty cell.",
            "Line 3, the id b: the mask is the word `none`; an empty mask is an empty cell.",
        ],
    ),
    (
        SKY,
        "a,<NA>;b,NULL",
        2,
        0,
        [
            "Line 2, the id a: the mask is the word `<NA>`; an empty mask is `-`.",
            "Line 3, the id b: the mask is the word `NULL`; an empty mask is `-`.",
        ],
    ),
    (SKY, "a,;b, - ;c,-", 3, 2, ["Line 2, the id a: an empty mask is written `-` and not as nothing."]),
    # Objects have a row each, which stand together; one row without any stands alone.
    (SHIPS, "b,1 2;b,3 1;a,;c,2 1", 4, 1, []),
    (SHIPS, "b,1 2;a,;b,3 1;b,5 1", 4, 1, ["Line 4: the id b is there a second time."]),
    (SHIPS, "a,;b,1 2;b,;b,3 1;b,", 5, 3, ["Line 4: the id b has an empty row beside other rows."]),
    (SHIPS, "b,;b,", 2, 2, ["Line 2: the id b has an empty row beside other rows."]),
    (SHIPS, "b,1 4;b,9 1;b,3 8", 3, 0, ["Line 4, the id b: the object shares 3 pixels with another of this image."]),
    (
        SHIPS,
        "b,1 4;b,2 1;b,2 3",
        3,
        0,
        [
            "Line 3, the id b: the object shares 1 pixels with another of this image.",
            "Line 4, the id b: the object shares 3 pixels with another of this image.",
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
        ["Line 2, the id a: the object shares 2 pixels with another of this image."],
    ),
    (FORGED, "a,[];b,authentic", 2, 1, ["Line 2, the id a: a mask without pixels must be `authentic`."]),
    (
        replace(FORGED, rle=RleFormat(container="json")),
        "a,[];b,",
        2,
        1,
        ["Line 2, the id a: a mask without pixels must be an empty cell."],
    ),
    # Columns of the image's size, and classes.
    (
        VESSELS,
        "a,4,5,;b,5,4,",
        2,
        2,
        ["Line 3, the id b: height is 5, the image's is 4.", "Line 3, the id b: width is 4, the image's is 5."],
    ),
    (VESSELS, "z,4,5,", 1, 1, ["Line 2: the id z has no image."]),
    (STEEL, "a_1,;a_4,3 1;a_5,", 3, 2, ["Line 4, the id a with the class 5: the class is not one of 1, 2, 3, 4."]),
    (STEEL, "a_1,3 1;a_1,3 1", 2, 0, ["Line 3: the id a with the class 1 is there a second time."]),
    # The host reads these on 350 × 525 pixels, whatever the image's size.
    (
        CLOUDS,
        "a_Fish,183750 1;b_Fish,183751 1",
        2,
        0,
        [
            "Line 3, the id b with the class Fish: Word 1 of the run lengths "
            "(183751) is a start past the end of the mask, which has 183750 "
            "pixels."
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
    assert verdict == Verdict(path, count, empty, tuple(problems))


def test_a_cell_of_zlib_without_pixels(tmp_path: Path) -> None:
    nothing = encode(np.zeros((4, 5), bool), VESSELS.rle)
    assert nothing
    assert check(tmp_path, f"a,4,5,0 1 {nothing}", VESSELS).problems == (
        "Line 2, the id a: a mask without pixels must be an empty cell.",
    )


def test_so_many_problems_are_kept_and_all_rows_are_counted(tmp_path: Path) -> None:
    verdict = check(tmp_path, ";".join(f"x{number},{'' if number % 2 else '1 1'}" for number in range(SHOWN + 5)))
    assert verdict.problems == tuple(f"Line {number + 2}: the id x{number} has no image." for number in range(20))
    assert (verdict.rows, verdict.empty) == (25, 12)


def test_a_file_that_cannot_be_read_to_its_end(tmp_path: Path) -> None:
    verdict = check(tmp_path, "b,1 0;a,1 1,;a,", sample="ba")
    assert (verdict.rows, verdict.empty) == (1, 0)
    assert verdict.problems == (
        "Line 2, the id b: Word 2 of the run lengths (0) is a length of zero.",
        f"{tmp_path / 's.csv'}, line 3: 3 cells under 2 columns.",
    )
    gone = validate_submission(str(tmp_path / "gone.csv"), SALT, None, SHAPES)
    assert gone == Verdict(tmp_path / "gone.csv", 0, 0, (f"The file {tmp_path / 'gone.csv'} does not exist.",))


# ── against the sample ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rows", "problems"),
    [
        ("b,;a,;c,", []),
        ("b,;c,", ["A row for the id a is missing."]),
        ("c,", ["A row for the id b is missing.", "A row for the id a is missing."]),
        ("b,;a,;c.png,", ["A row for the id c is missing.", "A row for the id c.png is not in the sample."]),
        (
            "b,;a,;y,;z,;y,;c,",
            [
                "Line 4: the id y has no image.",
                "Line 5: the id z has no image.",
                "Line 6: the id y is there a second time.",
                "Line 6: the id y has no image.",
                "A row for the id y is not in the sample.",
                "A row for the id z is not in the sample.",
            ],
        ),
        ("a,;b,;c,", ["The rows are not in the sample's order: the id a stands where the id b should."]),
        ("b,;c,;a,", ["The rows are not in the sample's order: the id c stands where the id a should."]),
        (
            "c,;b,",
            [
                "A row for the id a is missing.",
                "The rows are not in the sample's order: the id c stands where the id b should.",
            ],
        ),
        ("b,;a,;b,;c,", ["Line 4: the id b is there a second time."]),
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
    """Severstal has two layouts: a file in the one is refused where the sample is in the other."""
    joined = write_text(tmp_path / "joined.csv", "ImageId_ClassId,EncodedPixels\na_1,\na_2,\n")
    apart = write_text(tmp_path / "apart.csv", "ImageId,EncodedPixels,ClassId\na,,1\na,,2\n")
    assert validate_submission(joined, STEEL, joined, SHAPES).problems == ()
    assert validate_submission(apart, STEEL, apart, SHAPES).problems == ()
    assert validate_submission(apart, STEEL, None, SHAPES) == Verdict(apart, 2, 2, ())
    assert validate_submission(apart, STEEL, joined, SHAPES) == Verdict(
        apart,
        2,
        2,
        ("The columns are ImageId,EncodedPixels,ClassId, those of the sample ImageId_ClassId,EncodedPixels.",),
    )
    assert validate_submission(joined, STEEL, apart, SHAPES) == Verdict(
        joined,
        0,
        0,
        (f"{joined} has the columns ImageId_ClassId,EncodedPixels, but severstal has ImageId,EncodedPixels,ClassId.",),
    )
