"""YAML as plain data with line numbers: how scalars are read, and which documents raise an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from competition.config.loading import write_yaml
from competition.config.yaml import MAX_NODES, PlainDataLoader, parse_yaml, read_yaml
from competition.errors import MaskfoldError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.0e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("+1.5", 1.5),
        (".inf", float("inf")),
        ("3", 3),
        ("-3", -3),
        ("10_000", 10000),
        ("0xff", 255),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("1e", "1e"),
        ("=", "="),
        ("'1e-3'", "1e-3"),
        ("_1", "_1"),
        ("1_", "1_"),
        (".", "."),
        ("-", [None]),
    ],
)
def test_words_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    parsed = parse_yaml(text).tree
    assert parsed == value and type(parsed) is type(value)


def test_each_key_and_item_has_its_line() -> None:
    document = parse_yaml("a: 1\nb:\n  c:\n    - x\n    - y: 2\n  d: {e: 1,\n      f: 2}\n", "file.yaml")
    lines = {path: place.line for path, place in document.locations.items()}
    assert lines == {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", 0): 4,
        ("b", "c", 1): 5,
        ("b", "c", 1, "y"): 5,
        ("b", "d"): 6,
        ("b", "d", "e"): 6,
        ("b", "d", "f"): 7,
    }
    assert str(document.locate(("b", "c", "missing", "deeper"))) == "file.yaml, line 3"


def test_anchors_and_merges_work() -> None:
    document = parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n", "file.yaml")
    assert document.tree == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}
    assert document.locate(("b", "x")).line == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3", "duplicate key `a`", "line 1"]),
        ("a:\n  b: 1\n  b: 1\n", ["line 3", "duplicate key `b`"]),
        ("a: {1: x, 1: y}\n", ["line 1", "duplicate key `1`"]),
        ("x: 1\na: !!python/object/apply:os.system ['true']\n", ["line 2", "!!python/object/apply:os.system"]),
        ("a: !!python/tuple [1]\n", ["line 1", "!!python/tuple"]),
        ("a: !mine 1\n", ["line 1", "`!mine`"]),
        ("a: !!binary aGk=\n", ["line 1", "!!binary"]),
        ("a: &x [1, *x]\n", ["line 1", "contains itself"]),
        ("? [a]\n: 1\n", ["line 1", "as the key"]),
        ("~: 1\n", ["line 1", "as the key"]),
        ("a: 1\nb: ${oc.env:HOME}\n", ["line 2", "${oc.env:HOME}", "interpolation"]),
        ("a: 1\n\tb: 2\n", ["line 2", "spaces instead of tabs"]),
        ("a: b: c\n", ["line 1", "not valid YAML"]),
        ("a: [1, 2\nb: 3\n", ["line 2", "not valid YAML"]),
        ("a: *.png\n", ["line 1", "quotes"]),
        ("a: *png\n", ["line 1", "quotes"]),
        ("a: 1\n---\nb: 2\n", ["line 2", "not valid YAML"]),
        ("a: \x07\n", ["file.yaml", "not valid YAML"]),
        ("[" * 3000, ["file.yaml", "nested too deeply"]),
        ("a: !!int x\n", ["not valid YAML", "'x'"]),
    ],
)
def test_refused(text: str, words: list[str]) -> None:
    with pytest.raises(MaskfoldError) as caught:
        parse_yaml(text, "file.yaml")
    assert caught.value.status == 2
    assert caught.value.hint.endswith(".")
    for word in ["file.yaml", *words]:
        assert word in str(caught.value)


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert MAX_NODES < 10**30
    with pytest.raises(MaskfoldError, match="too many values"):
        parse_yaml("\n".join(lines), "file.yaml")


def test_a_text_is_parsed_once_and_each_reader_has_its_own_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    real = PlainDataLoader.get_single_node
    monkeypatch.setattr(PlainDataLoader, "get_single_node", lambda self: (parsed.append(self.name), real(self))[1])
    path = tmp_path / "experiment.yaml"
    path.write_text("a: [1, 2]\nb: {c: 3}\n")
    first = read_yaml(path)
    first.tree["a"].append(4)
    first.replace_locations(("a",), parse_yaml("[5]"))
    parsed.clear()
    second = read_yaml(path)
    assert parsed == [] and second.tree == {"a": [1, 2], "b": {"c": 3}} and second.locate(("a",)).line == 1
    path.write_text("a: [1, 2]\n\nb: {c: 4}\n")
    changed = read_yaml(path)
    assert len(parsed) == 1 and changed.tree["b"] == {"c": 4} and changed.locate(("b",)).line == 3


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"- a\n", "found a list"),
        (b"word\n", "found a text"),
        (b"3\n", "found a single value"),
        (b"a: \xff\n", "UTF-8"),
    ],
)
def test_what_is_no_mapping_in_a_file(content: bytes | None, word: str, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MaskfoldError) as caught:
        read_yaml(path)
    assert caught.value.status == 2
    assert word in caught.value.message and str(path) in caught.value.message


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(MaskfoldError, match="cannot be read"):
        read_yaml(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(tmp_path / "a.yaml").tree == {"a": 1}


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    [
        "1e-3",
        "no",
        "True",
        "null",
        "~",
        "010",
        "1:30",
        "1_000",
        ".5",
        "0x1F",
        "2020-01-01",
        "<<",
        "=",
        "- a",
        "a: b",
        "",
        " x",
        "#",
        "*a",
        "&a",
        "!a",
        "a\nb",
        "\t",
        "1e5",
        ".inf",
        "-.Inf",
        "{id}",
        "[",
        "%",
        "@",
        "`",
        "+1",
        "1.",
        "line\u2028end",
        "\x85",
    ]
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True)
@given(tree=plain)
def test_what_is_written_is_read_again(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    if "${" in repr(tree):
        return  # refused on reading
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    write_yaml({"a": tree}, path)
    assert read_yaml(path).tree == {"a": tree}
    assert yaml.safe_load(path.read_text(encoding="utf-8")).keys() == {"a"}  # other readers get along with it


def test_shared_lists_are_written_out(tmp_path: Path) -> None:
    shared = [1, 2]
    write_yaml({"a": shared, "b": shared}, tmp_path / "a.yaml")
    assert (tmp_path / "a.yaml").read_text() == "a: [1, 2]\nb: [1, 2]\n"


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.yaml"
    write_yaml({"a": 1}, path)
    with pytest.raises(MaskfoldError, match="plain data"):
        write_yaml({"a": object()}, path)

    def full(_: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_yaml({"a": 2}, path)
    assert path.read_text() == "a: 1\n"
    assert list(tmp_path.iterdir()) == [path]
