"""RLE at its limits: numbers at the borders of the rules, shared pixels, long texts, and readable errors."""

from __future__ import annotations

import tracemalloc
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from competition import rle, rle_text
from competition.rle import decode, decode_runs, encode
from competition.rle_text import RleError, RleFormat
from tests.sentences import assert_readable

COCO, ZLIB, JSON = RleFormat(container="coco"), RleFormat(container="coco_zlib"), RleFormat(container="json")


def refused(work: Callable[..., Any], *args: Any) -> tuple[str, str]:
    """The error's message and hint."""
    with pytest.raises(RleError) as error:
        work(*args)
    assert_readable(error.value)
    assert error.value.status == 1
    return error.value.message, error.value.hint


def runs_of(*edges: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of runs."""
    return np.array([low for low, _ in edges], np.int64), np.array([high for _, high in edges], np.int64)


def packed(text: str) -> str:
    return b64encode(zlib.compress(text.encode())).decode()


# Objects that share pixels


def test_hidden_pixels_by_hand() -> None:
    """Object 3 covers a part of 1, and all of 2; positions are counted in the order of the format."""
    texts = ["1 3 8 2", "9 1", "3 1 9 4", "5 1"]
    labels, hidden = rle.decode_overlapping_labels(texts, (4, 3), RleFormat())
    assert labels.dtype == np.int32
    assert labels.ravel("F").tolist() == [1, 1, 3, 0, 4, 0, 0, 1, 3, 3, 3, 3]
    assert {label: positions.tolist() for label, positions in hidden.items()} == {1: [2, 8], 2: [8]}
    assert all(positions.dtype == np.int64 for positions in hidden.values())
    by_row, hidden = rle.decode_overlapping_labels(texts[:2], (4, 3), RleFormat(order="row"))
    assert by_row.ravel("C").tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0]
    assert {label: positions.tolist() for label, positions in hidden.items()} == {1: [8]}


def test_nothing_is_hidden_without_overlap() -> None:
    labels, hidden = rle.decode_overlapping_labels(["5 2", "", "1 4 7 1"], (4, 2), RleFormat())
    assert labels.ravel("F").tolist() == [3, 3, 3, 3, 1, 1, 3, 0] and hidden == {}


def test_hidden_pixels_of_texts_that_break_the_rules() -> None:
    with pytest.raises(RleError):
        rle.decode_overlapping_labels(["5 2 1 2"], (8, 1), RleFormat())
    labels, hidden = rle.decode_overlapping_labels(["5 2 1 2", "2 1 7 9"], (8, 1), RleFormat(), strict=False)
    assert labels.ravel().tolist() == [1, 2, 0, 0, 1, 1, 2, 2] and hidden[1].tolist() == [1] and len(hidden) == 1


@pytest.mark.parametrize(
    ("objects", "overlap"),
    [
        ([], False),
        ([[(0, 5)]], False),
        ([[(0, 2)], [(2, 4)]], False),  # touching
        ([[(2, 4), (6, 8)], [(0, 2), (4, 6)]], False),
        ([[(0, 3)], [(2, 4)]], True),
        ([[(4, 6)], [(0, 1)], [(5, 7)]], True),  # the first of the sorted runs is not involved
        ([[(4, 8), (9, 10)], [(0, 1), (4, 5)]], True),
        ([[], [(1, 2)], []], False),
    ],
)
def test_objects_are_drawn_one_over_the_other(objects: list[list[tuple[int, int]]], overlap: bool) -> None:
    runs = [runs_of(*edges) for edges in objects]
    assert rle.runs_overlap(runs) is overlap
    expected = np.zeros(10, np.int32)
    for number, edges in enumerate(objects, start=1):
        for low, high in edges:
            expected[low:high] = number
    found = rle.draw_objects(runs, 10)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


# Pairs


@pytest.mark.parametrize(
    ("numbers", "base", "valid"),
    [
        ([1, 2, 3, 2, 5, 8], 1, True),  # touching runs, up to the last pixel
        ([0, 1, 3, 9], 0, True),
        ([1, 12], 1, True),
        ([0, 12], 0, True),
        ([2, 1], 0, True),
        ([0, 1], 1, False),
        ([1, 12], 0, False),
        ([2, 12], 1, False),
        ([2, 3, 12, 2], 1, False),
        ([1, 1, 5, 0, 7, 1], 1, False),
        ([1, 1, 5, -1, 6, 1], 1, False),
        ([-1, 3, 4, 1], 0, False),
        ([5, 1, 1, 1], 1, False),
        ([1, 3, 3, 1], 1, False),
        ([1, 1, 5, 3, 7, 1, 9, 1], 1, False),
        ([1, 2**63 - 1], 1, False),
        ([2**63 - 1, 1], 1, False),
    ],
)
def test_the_fast_check_of_pairs(numbers: list[int], base: int, valid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop for few numbers and the arrays for many agree."""
    for few in (128, 0):
        monkeypatch.setattr(rle_text, "_FEW_NUMBERS", few)
        assert rle_text._are_valid(np.array(numbers, np.int64), base, 12) is valid


@pytest.mark.parametrize("strict", [True, False])
def test_runs_are_int64_positions(strict: bool) -> None:
    for fmt, text in ((RleFormat(), "2 3 8 1"), (JSON, "[2, 3];[8, 1]"), (JSON, "[2, 3, 8, 1]"), (COCO, "133N1")):
        starts, ends = decode_runs(text, (4, 3), fmt, strict)
        assert (starts.dtype, ends.dtype) == (np.int64, np.int64)
        assert (starts.tolist(), ends.tolist()) == ([1, 7], [4, 8])
    for text in ("[]", "[];[]"):
        starts, ends = decode_runs(text, (4, 3), JSON, strict)
        assert (starts.dtype, ends.dtype, len(starts), len(ends)) == (np.int64, np.int64, 0, 0)


def test_touching_runs_before_an_overlap_are_not_the_error() -> None:
    wrong, hint = refused(decode, "1 2 3 2 4 1", (3, 4))
    assert "value 5" in wrong and "found 4" in wrong and "Merge" in hint
    wrong, hint = refused(decode, "1 2 3", (3, 4))
    assert "alue 3 (3) is a start without a length" in wrong and "`empty`" in hint


@pytest.mark.parametrize("value", ["X", "1X", "\udc80", "--1", "-", "1-", "+1", "x" * 41])
def test_values_that_are_no_numbers(value: str) -> None:
    wrong, hint = refused(decode, f"1 2\t5 {value}", (3, 4))
    assert wrong.startswith("RLE, value 4: ") and "`empty`" in hint
    if value != "\udc80":  # printed as its byte
        assert f"found {value[:40]}," in wrong


@pytest.mark.parametrize("low", [1, 10**3, 10**7 - 100, 10**7, 10**11 - 100, 10**11, 123_456_789_012_345])
def test_numbers_of_any_size_are_written(low: int) -> None:
    """70 pairs are written by the tables; each has numbers of several lengths."""
    pairs = np.array([[low + 1001 * index, low // 7 + 9 * index + 1] for index in range(70)], np.int64)
    assert rle_text.format_pairs(pairs) == " ".join(str(number) for number in pairs.ravel().tolist())
    pairs[0, 0] = 0
    assert rle_text.format_pairs(pairs) == " ".join(str(number) for number in pairs.ravel().tolist())
    np.testing.assert_array_equal(rle_text.parse_numbers(rle_text.format_pairs(pairs)), pairs.ravel())


# COCO's counts


def test_counts_at_their_limits() -> None:
    zero = "P" * 10 + "0"  # the number 0 in eleven characters, the most that are read
    assert decode(zero + "<", (3, 4), COCO).all()
    wrong, hint = refused(decode, "P" + zero + "<", (3, 4), COCO)
    assert wrong.startswith("COCO counts: ") and "bits" in wrong and "`container`" in hint
    assert encode(np.zeros((0, 3), bool), COCO) == "0"
    assert not decode("<", (3, 4), COCO).any()
    starts, ends = decode_runs("2" + "0" + ":", (3, 4), COCO)  # 2 of background, 0 of foreground, 10 of background
    assert len(starts) == len(ends) == 0
    clipped = decode_runs("2Q3", (3, 4), COCO, False)  # 2 of background, 97 of foreground
    assert [edges.tolist() for edges in clipped] == [[2], [12]]


@pytest.mark.parametrize(
    ("text", "named", "hinted"),
    [
        ("01p", ["character 3", "from `0` to `o`"], "`container`"),
        ("0/1", ["character 2", "from `0` to `o`"], "`container`"),
        ("0Q", ["COCO counts: ", "incomplete"], "complete"),
        ("0O", ["count 2", "found -1"], "`container`"),
        ("231", ["found a sum of 6 pixels", "expected 12"], "size"),
        ("2Q3", ["found a sum of 99 pixels", "expected 12"], "size"),  # counts are not clipped in the message
    ],
)
def test_errors_of_counts(text: str, named: list[str], hinted: str) -> None:
    for fmt, written in ((COCO, text), (ZLIB, packed(text))):
        wrong, hint = refused(decode, written, (3, 4), fmt)
        assert wrong.startswith("COCO counts") and all(part in wrong for part in named) and hinted in hint


def test_counts_are_compressed_as_much_as_possible() -> None:
    mask = np.random.default_rng(0).random((90, 80)) < 0.2
    text = encode(mask, ZLIB)
    assert b64decode(text) == zlib.compress(encode(mask, COCO).encode(), 9)
    np.testing.assert_array_equal(decode(text, mask.shape, ZLIB), mask)


def test_compressed_counts_have_a_limit() -> None:
    """An image of one pixel has at most 33 characters: 11 for each pixel, and for two more."""
    assert rle_text.decompress_counts(packed("P" * 32 + "0"), 1) == "P" * 32 + "0"
    wrong, hint = refused(rle_text.decompress_counts, packed("P" * 33 + "0"), 1)
    assert "33 characters" in wrong and "1 pixel" in wrong and "size" in hint
    bomb = packed("0" * 30_000_000)
    tracemalloc.start()
    refused(rle_text.decompress_counts, bomb, 12)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("strict", [True, False])
def test_truncated_data_are_not_decoded(strict: bool) -> None:
    """Without its end, the text would still decompress to all counts, or to fewer."""
    text = encode(np.random.default_rng(0).random((9, 8)) < 0.2, ZLIB)
    for length in (4, len(text) // 8 * 4, len(text) - 4):
        wrong, hint = refused(decode, text[:length], (9, 8), ZLIB, strict)
        assert wrong.startswith("RLE: ") and "base64" in wrong and "complete" in hint


@pytest.mark.parametrize("text", [packed("<")[:5] + "!" + packed("<")[5:], "ä", packed("é"), "AAAA"])
def test_texts_that_are_not_compressed_counts(text: str) -> None:
    wrong, hint = refused(decode, text, (3, 4), ZLIB)
    assert "base64" in wrong and "`container`" in hint


# Lists of JSON


@pytest.mark.parametrize(
    ("text", "named", "hinted"),
    [
        ("[1, 2];[" + "x" * 40, ["list 2", f"found [{'x' * 39},"], "`;`"),
        ('[1, 2];["' + "y" * 41 + '"]', ["list 2", f"found {'y' * 40},"], "`[start, length, …]`"),
        ("{}", ["list 1", "found {},"], "`[start, length, …]`"),
        ("[true, 1]", ["list 1", "found True,"], "`[start, length, …]`"),
        (f"[1, {2**62 + 1}]", ["list 1", f"found {2**62 + 1},", "2**62"], "`[start, length, …]`"),
        (f"[1, {-(2**62) - 1}]", ["list 1", f"found {-(2**62) - 1},", "2**62"], "`[start, length, …]`"),
    ],
)
def test_errors_of_lists(text: str, named: list[str], hinted: str) -> None:
    wrong, hint = refused(decode, text, (3, 4), JSON)
    assert all(part in wrong for part in named) and hinted in hint


def test_the_largest_number_of_a_list() -> None:
    (numbers,) = rle_text.parse_json_lists(f"[{2**62}, {-(2**62)}]")
    assert numbers.dtype == np.int64 and numbers.tolist() == [2**62, -(2**62)]


# Label images


def test_labels_of_other_types_are_refused() -> None:
    wrong, hint = refused(rle.encode_labels, np.ones((2, 2), np.float32))
    assert "float32" in wrong and "astype(int)" in hint
    for dtype in (np.bool_, np.int8, np.uint64):
        assert rle.encode_labels(np.array([[0, 1], [1, 0]], dtype)) == {1: "2 2"}
