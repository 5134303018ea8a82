"""RLE: exact texts by hand, round trips of random masks, and every rule that a text can break."""

import csv
import struct
import tracemalloc
import zlib
from base64 import b64encode
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from competition import rle, rle_text
from competition.errors import MaskfoldError
from competition.rle import decode, decode_labels, encode, encode_labels
from competition.rle_text import RleError, RleFormat

NUCLEI = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "nuclei"

FORMATS = [
    RleFormat(order, base, relative, empty, container)
    for order in ("row", "column")
    for base in (0, 1)
    for relative in (False, True)
    for empty in ("", "-1")
    for container in ("pairs", "json")
]
FORMATS += [RleFormat(container="coco"), RleFormat(container="coco_zlib"), RleFormat(container="coco", empty="-")]

LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "middle axes swapped": lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
}

shapes = hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=9)
masks = hnp.arrays(np.bool_, shapes) | hnp.arrays(np.bool_, shapes, elements=st.booleans(), fill=st.just(True))


@settings(max_examples=300, deadline=None)
@given(masks, st.sampled_from(FORMATS), st.sampled_from(sorted(LAYOUTS)))
def test_round_trip_of_any_mask_in_any_format(mask, fmt, layout):
    laid = LAYOUTS[layout](mask)
    text = encode(laid, fmt)
    for strict in (True, False):
        back = decode(text, mask.shape, fmt, strict=strict)
        assert back.dtype == np.bool_ and back.shape == mask.shape
        np.testing.assert_array_equal(back, mask)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)))
def test_counts_are_those_of_pycocotools(mask):
    theirs = coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode()
    fmt = RleFormat(container="coco")
    assert encode(mask, fmt) == theirs
    np.testing.assert_array_equal(decode(theirs, mask.shape, fmt), mask)
    packed = b64encode(zlib.compress(theirs.encode())).decode()
    np.testing.assert_array_equal(decode(packed, mask.shape, RleFormat(container="coco_zlib")), mask)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("order", ["row", "column"])
def test_many_runs_are_what_a_plain_loop_writes(share, order):
    """Sizes where the tables of digits and several chunks are at work."""
    mask = np.random.default_rng(0).random((1100, 1200)) < share
    flat = np.concatenate([[0], mask.ravel("F" if order == "column" else "C"), [0]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    for base in (0, 1):
        plain = " ".join(f"{low + base} {high - low}" for low, high in zip(edges[::2], edges[1::2], strict=True))
        fmt = RleFormat(order=order, base=base)
        assert encode(mask, fmt) == plain
        np.testing.assert_array_equal(decode(plain, mask.shape, fmt), mask)
    counts = RleFormat(container="coco")
    assert encode(mask, counts) == coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode()


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_volumes_of_several_chunks(layout):
    mask = np.random.default_rng(0).random((130, 120, 110)) < 0.01
    for order, letter in (("row", "C"), ("column", "F")):
        edges = np.flatnonzero(np.diff(mask.ravel(letter).astype(int), prepend=0, append=0))
        plain = " ".join(f"{low + 1} {high - low}" for low, high in zip(edges[::2], edges[1::2], strict=True))
        assert encode(LAYOUTS[layout](mask), RleFormat(order=order)) == plain


#   1 1 0        first and last pixel are foreground
#   0 1 1
CORNERS = np.array([[1, 1, 0], [0, 1, 1]])


@pytest.mark.parametrize(
    ("fmt", "text"),
    [
        (RleFormat(order="row", base=1), "1 2 5 2"),
        (RleFormat(order="row", base=0), "0 2 4 2"),
        (RleFormat(order="column", base=1), "1 1 3 2 6 1"),
        (RleFormat(order="column", base=0), "0 1 2 2 5 1"),
        (RleFormat(order="row", relative=True), "0 2 2 2"),
        (RleFormat(order="column", relative=True), "0 1 1 2 1 1"),
        (RleFormat(order="row", base=1, container="json"), "[1, 2, 5, 2]"),
        (RleFormat(container="coco"), "01110O"),  # counts 0 1 1 2 1 1, the last three as 2 - 1, 1 - 1 and 1 - 2
    ],
)
def test_texts_by_hand(fmt, text):
    assert encode(CORNERS, fmt) == text
    np.testing.assert_array_equal(decode(text, (2, 3), fmt), CORNERS == 1)


def test_a_volume_by_hand():
    mask = np.zeros((2, 3, 4), bool)
    mask[0, 0, 0] = mask[1, 0, 0] = mask[0, 0, 1] = mask[1, 2, 3] = True
    assert encode(mask, RleFormat(order="column")) == "1 2 7 1 24 1"  # x + 2 · (y + 3 · z) + 1
    assert encode(mask, RleFormat(order="row")) == "1 2 13 1 24 1"  # z + 4 · (y + 3 · x) + 1


@pytest.mark.parametrize("fmt", FORMATS[:-3], ids=str)
def test_empty_and_full(fmt):
    assert encode(np.zeros((3, 4), bool), fmt) == fmt.empty
    start = 0 if fmt.relative else fmt.base
    assert encode(np.ones((3, 4), bool), fmt) == (f"[{start}, 12]" if fmt.container == "json" else f"{start} 12")


@pytest.mark.parametrize("empty", ["-1", "1 0", "", "None"])
def test_the_empty_token_comes_before_every_rule(empty):
    fmt = RleFormat(empty=empty)
    assert encode(np.zeros((2, 2), int), fmt) == empty
    for text in (empty, f" {empty}", ""):
        assert not decode(text, (2, 2), fmt).any()
    assert not decode("[]", (2, 2), RleFormat(container="json")).any()


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int32, np.int64, np.uint16])
def test_anything_but_zero_is_foreground(dtype):
    values = np.array([[0, 1, 2], [100, 0, 1]]).astype(dtype)
    assert encode(values, RleFormat(order="row")) == "2 3 6 1"
    assert encode(np.array([[0, 255], [255, 0]], np.uint8), RleFormat()) == "2 2"


def test_probabilities_are_an_error():
    with pytest.raises(RleError, match=r"found float32"):
        encode(np.full((2, 2), 0.3, np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", r"Value 3 \(3\)"),
        ("1 two 5 1", r"value 2: found two, expected a whole number"),
        ("1 2 5.0 1", r"value 3: found 5\.0, expected a whole number"),
        ("1 2 1_0 1", r"value 3: found 1_0, expected a whole number"),
        ("1 2 ٣ 1", r"value 3: .*expected a whole number"),
        ("1 2 - 1", r"value 3: found -, expected a whole number"),
        ("0 2", r"value 1: found 0, expected a start of at least 1"),
        ("1 2 -3 1", r"value 3: found -3, expected a start of at least 1"),
        ("1 2 5 -1", r"value 4: found -1, expected a length of at least 1"),
        ("1 2 5 0", r"value 4: found 0, expected a length of at least 1"),
        ("1 2 13 1", r"value 3: found 13, expected a start within .* 12 pixels"),
        ("1 2 12 2", r"value 4: found 2, expected a run within .* 12 pixels"),
        ("1 99999999999999999999999", r"value 2: .*a run within"),
        ("9223372036854775807 9223372036854775807", r"value 1: .*a start within"),
        ("5 2 1 2", r"value 3: found 1, expected a start after that"),
        ("1 4 4 2", r"value 3: found 4, expected a start after the end"),
        ("1 4 1 4", r"value 3: found 1, expected a start after the end"),
    ],
)
def test_each_broken_rule_is_an_error_that_names_the_value(text, message):
    with pytest.raises(MaskfoldError, match=message):
        decode(text, (3, 4), RleFormat(base=1))


@pytest.mark.parametrize(
    ("fmt", "text", "message"),
    [
        (RleFormat(base=0), "-1 2", r"value 1: .*at least 0"),
        (RleFormat(relative=True), "-1 2", r"value 1: .*at least 0"),
        (RleFormat(relative=True), "0 2 9 2", r"value 4: .*a run within"),
        (RleFormat(relative=True), "0 2 10 1", r"value 3: .*a start within"),
        (RleFormat(container="json"), "[1, 2];[4, 0]", r"list 2, value 2: found 0"),
        (RleFormat(container="json"), "[1, 2];4 1", r"list 2: .*expected JSON"),
        (RleFormat(container="json"), "[1, 2.5]", r"list 1: found 2\.5"),
        (RleFormat(container="json"), "{}", r"list 1: found \{\}"),
        (RleFormat(container="coco"), "0 1", r"character 2"),
        (RleFormat(container="coco"), "0é", r"character 2"),
        (RleFormat(container="coco"), "0Q", "incomplete"),
        (RleFormat(container="coco"), "P" * 20 + "0", "more than 50 bits"),
        (RleFormat(container="coco"), "01", r"found a sum of 1 pixel, expected 12"),
        (RleFormat(container="coco"), "0O", r"count 2: found -1"),
        (RleFormat(container="coco_zlib"), "not base64!", "base64"),
        (RleFormat(container="coco_zlib"), b64encode(b"plain").decode(), "base64"),
        (
            RleFormat(container="coco_zlib"),
            b64encode(zlib.compress(b"0" * 10**6)).decode(),
            "characters, .* at most .* for 12 pixels",
        ),
    ],
)
def test_rules_of_other_formats(fmt, text, message):
    with pytest.raises(RleError, match=message):
        decode(text, (3, 4), fmt)


def test_touching_runs_are_valid():
    assert decode("1 2 3 2", (2, 3), RleFormat()).sum() == 4


def test_hosts_that_break_the_rules():
    mask = decode("8 2 1 4 3 3 6 0 11 9 40 2", (12, 1), RleFormat(), strict=False)
    assert mask.ravel().astype(int).tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1]
    with pytest.raises(RleError, match="at least 1"):
        decode("0 2", (12, 1), RleFormat(), strict=False)


def test_relative_pairs_are_siim_acrs():
    """The host's `rle2mask`: positions advance by each gap and by each length."""
    fmt, text, expected = RleFormat(relative=True), "3 2 0 1 4 1", np.zeros(15, bool)
    position = 0
    for gap, length in [(3, 2), (0, 1), (4, 1)]:
        position += gap
        expected[position : position + length] = True
        position += length
    np.testing.assert_array_equal(decode(text, (5, 3), fmt), expected.reshape(3, 5).T)
    assert encode(expected.reshape(3, 5).T, fmt) == "3 3 4 1"


def test_objects_of_one_json_text_are_united():
    mask = decode("[1, 2];[2, 3, 8, 1]", (4, 2), RleFormat(container="json"))
    assert mask.ravel("F").astype(int).tolist() == [1, 1, 1, 1, 0, 0, 0, 1]


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.int32, shapes, elements=st.integers(0, 3)),
    st.sampled_from([fmt for fmt in FORMATS if not fmt.empty]),
    st.sampled_from(sorted(LAYOUTS)),
)
def test_objects_are_written_as_if_one_by_one(labels, fmt, layout):
    texts = encode_labels(LAYOUTS[layout](labels), fmt)
    assert texts == {name: encode(labels == name, fmt) for name in np.unique(labels[labels > 0]).tolist()}
    back = decode_labels(list(texts.values()), labels.shape, fmt)
    np.testing.assert_array_equal(back, np.searchsorted([0, *texts], labels))


@pytest.mark.skipif(not NUCLEI.exists(), reason="the nuclei are not at hand")
def test_a_hosts_own_table_comes_back_letter_by_letter():
    with (NUCLEI / "stage1_train_labels.csv").open() as file:
        rows = [(row["ImageId"], row["EncodedPixels"]) for row in islice(csv.DictReader(file), 2000)]
    for name, group in groupby(rows[:-200], key=lambda row: row[0]):
        texts = [text for _, text in group]
        picture = next((NUCLEI / "stage1_train").rglob(f"{name}*.png"))
        width, height = struct.unpack(">II", picture.read_bytes()[16:24])
        assert list(encode_labels(decode_labels(texts, (height, width))).values()) == texts


def test_coco_is_column_by_column():
    with pytest.raises(RleError, match="order='column'") as caught:
        RleFormat(order="row", container="coco")
    assert caught.value.status == 2


def test_memory_stays_below_three_bytes_a_pixel():
    noise = np.random.default_rng(0).random((32, 32))
    mask = np.kron(noise > 0.7, np.ones((64, 64), bool))
    text, wide = encode(mask), mask.astype(np.int64)
    for work in (
        partial(encode, mask),
        partial(encode, mask, RleFormat(order="row")),
        partial(encode, wide),
        partial(decode, text, mask.shape),
    ):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * mask.size


# Messages and hints

KEYS = "the RLE format (submission.rle or train.rle_format in the YAML)"
PAIRS = (
    f"Write the start and the length of each run. If this text stands for an empty mask, set it as `empty` of {KEYS}."
)
START = f"Check `base` and `relative` of {KEYS}."
SHAPE = f"Check the size of the mask, and `base` of {KEYS}."
SWAPPED = f"Check the size of the mask (are height and width exchanged?), and `base` of {KEYS}."
SORT = "Sort the runs by their start."
MERGE = "Merge overlapping runs."
JSON = RleFormat(container="json")
MESSAGES: list[tuple[RleFormat, str, str, str]] = [
    (RleFormat(), "1 2 3", "RLE: found 3 values, expected an even number. Value 3 (3) ", PAIRS),
    (JSON, "[1, 2];[4, 1, 7]", "RLE list 2: found 3 values, expected an even number. Value 3 (7) ", PAIRS),
    (RleFormat(), "1 1 0 2", "RLE, value 3: found 0, expected a start of at least 1.", START),
    (RleFormat(base=0), "-1 2", "RLE, value 1: found -1, expected a start of at least 0.", START),
    (RleFormat(), "1 2 5 -1", "RLE, value 4: found -1, expected a length of at least 1.", "Check `relative` "),
    (RleFormat(), "1 2 5 0", "RLE, value 4: found 0, expected a length of at least 1.", "Remove runs without pixels."),
    (RleFormat(), "1 2 13 1", "RLE, value 3: found 13, expected a start within the mask of 12 pixels.", SWAPPED),
    (JSON, "[1, 2];[12, 2]", "RLE list 2, value 2: found 2, expected a run within the mask of 12 pixels.", SHAPE),
    (RleFormat(), "5 2 9 1 1 2", "RLE, value 5: found 1, expected a start after that of the previous run.", SORT),
    (RleFormat(), "1 1 9 1 5 1", "RLE, value 5: found 5, expected a start after that of the previous run.", SORT),
    (RleFormat(), "5 2 9 2 10 1", "RLE, value 5: found 10, expected a start after the end of the previous run.", MERGE),
    (RleFormat(), "1 9 3 1 8 1", "RLE, value 3: found 3, expected a start after the end of the previous run.", MERGE),
]


@pytest.mark.parametrize(("fmt", "text", "message", "hint"), MESSAGES, ids=[row[1] for row in MESSAGES])
def test_errors_name_value_rule_and_hint(fmt, text, message, hint):
    for work in (lambda: decode(text, (3, 4), fmt), lambda: decode_labels([text], (3, 4), fmt)):
        with pytest.raises(RleError) as error:
            work()
        assert error.value.message.startswith(message) and error.value.hint.startswith(hint) and error.value.status == 1


@pytest.mark.parametrize(
    ("message", "hint", "status", "work"),
    [
        ("found float64, expected bool", "probabilities > 0.5", 1, lambda: encode(np.zeros((2, 2)))),
        ("found float64, expected integers", "astype", 1, lambda: encode_labels(np.zeros((2, 2)))),
        ("found nan, expected a text", "keep_default_na=False", 1, lambda: decode(float("nan"), (2, 2))),
        ("order: found 'diagonal', expected 'row' or 'column'", "`order`", 2, lambda: RleFormat(order="diagonal")),
        ("base: found 2, expected 0 or 1", "`base`", 2, lambda: RleFormat(base=2)),
        (
            "container: found 'xml', expected 'pairs' or 'coco' or 'coco_zlib' or 'json'",
            "`container`",
            2,
            lambda: RleFormat(container="xml"),
        ),
        (
            "container coco_zlib requires order='column' and relative=False, found RleFormat(order='column', base=1, "
            "relative=True, empty='', container='coco_zlib')",
            "Set `order: column` and `relative: false`.",
            2,
            lambda: RleFormat(relative=True, container="coco_zlib"),
        ),
    ],
)
def test_errors_of_arguments(message, hint, status, work):
    with pytest.raises(RleError) as error:
        work()
    assert message in error.value.message and hint in error.value.hint and error.value.status == status


@pytest.mark.parametrize("chunk", [1, 2, 5, 12, 30, 1 << 20])
@pytest.mark.parametrize(
    "shape", [(7, 6), (6, 5), (1, 9), (9, 1), (2, 5), (2, 3, 4), (1, 4, 3), (5, 1, 6), (4, 3, 1), (1, 1)]
)
def test_chunks_of_any_size_change_nothing(shape, chunk, monkeypatch):
    monkeypatch.setattr(rle, "_CHUNK", chunk)
    for seed in range(4):
        labels = np.random.default_rng(seed).integers(0, 3, shape)
        for order, letter in (("row", "C"), ("column", "F")):
            runs = [(name, len(list(group))) for name, group in groupby(labels.ravel(letter).tolist())]
            texts: dict[int, list[str]] = {}
            position = 1
            for name, length in runs:
                texts.setdefault(name, []).append(f"{position} {length}")
                position += length
            expected = {name: " ".join(texts[name]) for name in sorted(texts) if name}
            for laid in (np.ascontiguousarray(labels), np.asfortranarray(labels)):
                assert encode_labels(laid, RleFormat(order=order)) == expected
                assert encode(laid == 1, RleFormat(order=order)) == expected.get(1, "")


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3), (0,), (2, 2)])
def test_no_objects(shape):
    nothing = np.zeros(shape, np.uint8)
    assert encode_labels(nothing) == {}
    changes = rle._change_positions(nothing)
    assert changes.dtype == np.int64 and changes.shape == (0,)
    found = decode_labels([], shape)
    assert found.dtype == np.int32 and found.shape == shape and not found.any()


def test_blank_text_is_an_empty_mask_in_every_container():
    for container in ("pairs", "coco", "coco_zlib", "json"):
        for text in ("", "  ", "-1", " -1 "):
            assert not decode(text, (2, 3), RleFormat(empty="-1", container=container)).any()
            starts, ends = rle_text.text_to_runs(text, 6, RleFormat(empty="-1", container=container), True)
            assert len(starts) == len(ends) == 0 and starts.dtype == ends.dtype == np.int64


def test_labels_of_hosts_that_break_the_rules():
    with pytest.raises(RleError, match="previous run"):
        decode_labels(["5 2 1 2"], (8, 1))
    found = decode_labels(["5 2 1 2", "2 1 7 9"], (8, 1), strict=False)
    assert found.dtype == np.int32 and found.ravel().tolist() == [1, 2, 0, 0, 1, 1, 2, 2]


def test_runs_are_sorted_and_united():
    starts, ends = np.array([20, 0, 21, 4, 9, 30, 15]), np.array([22, 4, 25, 6, 9, 31, 14])
    low, high = rle_text._merge_runs(starts, ends)
    # 0–4 touches 4–6; runs of no or negative length are dropped.
    assert (low.tolist(), high.tolist()) == ([0, 20, 30], [6, 25, 31])
    inner = rle_text._merge_runs(np.array([0, 2, 8]), np.array([10, 3, 12]))
    assert [edge.tolist() for edge in inner] == [[0], [12]]
    none = rle_text._merge_runs(np.array([3]), np.array([3]))
    assert [edge.tolist() for edge in none] == [[], []]
    mask = decode("1 10 21 2 22 2", (30, 1), RleFormat(), strict=False)
    assert np.flatnonzero(mask).tolist() == [*range(10), 20, 21, 22]


def test_a_bool_mask_is_not_copied():
    mask = np.eye(3, dtype=bool)
    assert np.shares_memory(rle._as_mask(mask), mask)
