"""Writer, validator and reader on valid and invalid files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from competition.config.profiles import PROFILES, Profile
from competition.errors import MaskfoldError
from competition.submission.reader import read_sample, read_submission
from competition.submission.validate import validate_submission
from competition.submission.writer import write_submission
from tests.host import write_text

SALT, SHIPS = PROFILES["tgs-salt"], PROFILES["airbus"]
SHAPES = {"a": (4, 5), "b": (4, 5)}


def _mask(*pixels: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((4, 5), bool)
    for pixel in pixels:
        mask[pixel] = True
    return mask


def _sample(folder: Path, profile: Profile = SALT, ids: str = "ba") -> Path:
    return write_text(folder / "sample.csv", "\n".join([",".join(profile.columns), *(f"{id_}," for id_ in ids)]) + "\n")


def test_rows_stand_in_the_samples_order(tmp_path: Path) -> None:
    verdict = write_submission(
        [("a", None, _mask((0, 0))), ("b", None, _mask())], SALT, tmp_path / "x" / "s.csv", _sample(tmp_path)
    )
    assert (tmp_path / "x" / "s.csv").read_bytes() == b"id,rle_mask\nb,\na,1 1\n"
    assert (verdict.ok, verdict.rows, verdict.empty, verdict.path) == (True, 2, 1, tmp_path / "x" / "s.csv")


def test_objects_and_an_image_without_any(tmp_path: Path) -> None:
    masks = [("b", None, _mask((3, 4))), ("a", None, _mask()), ("b", None, _mask((0, 0)))]
    write_submission(masks, SHIPS, tmp_path / "s.csv", _sample(tmp_path, SHIPS, "ab"))
    assert (tmp_path / "s.csv").read_text() == "ImageId,EncodedPixels\na,\nb,20 1\nb,1 1\n"
    entries = {entry.case_id: entry for entry in read_submission(tmp_path / "s.csv", SHIPS, SHAPES)}
    assert [len(entries[name].objects) for name in "ab"] == [0, 2]
    assert np.array_equal(entries["b"].mask, _mask((0, 0), (3, 4)))


def test_volumes_of_any_memory_order_and_content_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    volume = np.asfortranarray(rng.random((4, 3, 5)) > 0.5)
    write_submission([("a", None, volume), ("b", None, volume.astype(np.uint8) * 255)], SALT, tmp_path / "s.csv")
    for entry in read_submission(tmp_path / "s.csv", SALT, {"a": volume.shape, "b": volume.shape}):
        assert np.array_equal(entry.mask, volume)


def test_masks_are_taken_one_at_a_time(tmp_path: Path) -> None:
    import weakref

    alive: list[weakref.ref[np.ndarray]] = []

    def masks():  # type: ignore[no-untyped-def]
        for number in range(20):
            mask = _mask((number % 4, number % 5))
            alive.append(weakref.ref(mask))
            yield str(number), None, mask
            del mask
            assert sum(one() is not None for one in alive) <= 1

    write_submission(masks(), SALT, tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("masks", "profile", "what"),
    [
        ([("a", None, _mask())], SALT, "a mask of the id b, but there is none"),
        ([("a", None, _mask()), ("b", None, _mask()), ("bb", None, _mask())], SALT, "no row for the id bb"),
        ([("a", None, _mask()), ("a", None, _mask((0, 0)))], SALT, "second mask for the id a"),
        (
            [("a", None, _mask((1, 1))), ("a", None, _mask((1, 1), (2, 2))), ("b", None, _mask())],
            SHIPS,
            "shares 1 pixel",
        ),
        (
            [("a", None, _mask((1, 1))), ("a", None, _mask()[:2]), ("b", None, _mask())],
            SHIPS,
            "A mask of the id a has the shape",
        ),
        ([("a", None, np.full((4, 5), 0.5)), ("b", None, _mask())], SALT, "found float\\d+, expected bool"),
    ],
)
def test_nothing_is_left_behind(masks: list, profile: Profile, what: str, tmp_path: Path) -> None:
    sample = _sample(tmp_path, profile)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s.csv").write_text("former")
    with pytest.raises(MaskfoldError, match=what):
        write_submission(masks, profile, tmp_path / "out" / "s.csv", sample)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s.csv"]
    assert (tmp_path / "out" / "s.csv").read_text() == "former"


def test_sample_is_checked_before_any_work(tmp_path: Path) -> None:
    read_sample(_sample(tmp_path), SALT).check_ids(["a.png", "b"])
    with pytest.raises(MaskfoldError, match="requires the id c"):
        read_sample(_sample(tmp_path, ids="abc"), SALT).check_ids("ab")
    with pytest.raises(MaskfoldError, match="no row for the test image b"):
        read_sample(_sample(tmp_path, ids="a"), SALT).check_ids("ab")
    with pytest.raises(MaskfoldError, match="line 4: the id a is a duplicate of line 2"):
        read_sample(_sample(tmp_path, ids="aba"), SALT)
    with pytest.raises(MaskfoldError, match="no rows"):
        read_sample(_sample(tmp_path, ids=""), SALT)
    with pytest.raises(MaskfoldError, match="columns"):
        read_sample(_sample(tmp_path, SHIPS), SALT)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("id,rle_mask\nb,\na,1 1\n", None),
        ("id,rle_mask\na,1 1\nb,\n", "order of the rows"),
        ("id,rle_mask\nb,\n", "the id a is missing"),
        ("id,rle_mask\nb,\na,1 1\nz,\n", "the id z is not in the sample"),
        ("id,rle_mask\nb,\na,1 1\na,1 1\n", "a duplicate"),
        ("id,mask\nb,\na,1 1\n", "columns"),
        ("id,rle_mask\nb,\na,1 1,\n", "found 3 cells, expected 2"),
        ("id,rle_mask\nb,nan\na,1 1\n", "written as `nan`"),
        ("id,rle_mask\nb,\na,1 1 2\n", "expected an even number"),
        ("id,rle_mask\nb,\na,9 1 3 1\n", "after that of the previous run"),
        ("id,rle_mask\nb,\na,20 2\n", "a run within"),
        ("id,rle_mask\nb,\na,0 2\n", "at least 1"),
        ("id,rle_mask\nb,\na,3 0\n", "length of at least 1"),
        ("", "columns"),
    ],
)
def test_validator(text: str, what: str | None, tmp_path: Path) -> None:
    path = write_text(tmp_path / "s.csv", text)
    verdict = validate_submission(path, SALT, _sample(tmp_path), SHAPES)
    assert verdict.ok == (what is None)
    if what is not None:
        assert any(what.lower() in problem.lower() for problem in verdict.problems), verdict.problems
        with pytest.raises(MaskfoldError):
            verdict.raise_if_invalid()


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("b,1 2\nb,3 1\na,\n", None),
        ("b,1 2\nb,2 1\na,\n", "shares 1 pixel"),
        ("b,1 2\nb,\na,\n", "row with an empty mask in addition to other rows"),
        ("b,1 2\na,\nb,7 1\n", "a duplicate"),
    ],
)
def test_validator_of_objects(rows: str, what: str | None, tmp_path: Path) -> None:
    path = write_text(tmp_path / "s.csv", "ImageId,EncodedPixels\n" + rows)
    verdict = validate_submission(path, SHIPS, _sample(tmp_path, SHIPS), SHAPES)
    assert verdict.ok == (what is None)
    assert what is None or any(what in problem for problem in verdict.problems), verdict.problems


def test_the_empty_token_must_be_the_hosts(tmp_path: Path) -> None:
    profile = PROFILES["contrails"]
    path = write_text(tmp_path / "s.csv", "record_id,encoded_pixels\nb,-\na,\n")
    verdict = validate_submission(path, profile, None, SHAPES)
    assert [
        problem.startswith("Line 3, the id a: an empty mask is written as an empty cell, expected `-`")
        for problem in verdict.problems
    ] == [True]


def test_height_and_width_are_the_images(tmp_path: Path) -> None:
    path = write_text(tmp_path / "s.csv", "id,height,width,prediction_string\na,5,4,\n")
    assert len(validate_submission(path, PROFILES["hubmap-vasculature"], None, SHAPES).problems) == 2


@pytest.mark.parametrize("damage", [lambda row: row + row, lambda row: "z" + row[1:], lambda row: "a,99 1\n"])
def test_reader_names_the_line(damage: Callable[[str], str], tmp_path: Path) -> None:
    path = write_text(tmp_path / "s.csv", "id,rle_mask\nb,\n" + damage("a,1 1\n"))
    with pytest.raises(MaskfoldError, match="line 3"):
        list(read_submission(path, SALT, SHAPES))


def test_what_a_notebook_hands_over(tmp_path: Path) -> None:
    from competition.rle import decode
    from competition.rle_text import RleError, RleFormat

    write_submission([(1, None, _mask((0, 0))), (2, None, _mask())], "tgs-salt", tmp_path / "s.csv")  # type: ignore[list-item]
    assert (tmp_path / "s.csv").read_text() == "id,rle_mask\n1,1 1\n2,\n"
    with pytest.raises(MaskfoldError, match="Did you mean `tgs-salt`"):
        write_submission([("a", None, _mask())], "tgs_salt", tmp_path / "s.csv")
    with pytest.raises(MaskfoldError, match="no mask to write"):
        write_submission([], SALT, tmp_path / "none.csv")
    with pytest.raises(RleError, match="keep_default_na"):
        decode(float("nan"), (4, 5))  # type: ignore[arg-type]
    with pytest.raises(RleError, match="order: found 'diagonal'"):
        RleFormat(order="diagonal")  # type: ignore[arg-type]
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(MaskfoldError, match="is empty"):
        read_sample(tmp_path / "empty.csv", SALT)
    (tmp_path / "index.csv").write_text(",id,rle_mask\n0,a,\n")
    with pytest.raises(MaskfoldError, match="index=False"):
        read_sample(tmp_path / "index.csv", SALT)
