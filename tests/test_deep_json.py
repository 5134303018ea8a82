"""JSON that is nested a hundred thousand times is an error or an unknown file, and never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from competition.datasets.demo import MARKER, _read_marker
from competition.errors import MaskfoldError
from competition.export.bundle import BUNDLE_FILE, MANIFEST, check_replaceable
from competition.export.runtime_cases import Bundle
from competition.leaderboard.upload import _read_summary
from competition.planning.classes.labels import _read_names
from competition.rle import decode
from competition.rle_text import RleError, RleFormat
from competition.training.lineage import LINEAGE_FILE, read_lineage_summary

DEEP = "[" * 100_000


def write(path: Path) -> Path:
    path.write_text(DEEP)
    return path


def test_a_cell_of_a_table() -> None:
    with pytest.raises(RleError, match="expected JSON"):
        decode(DEEP, (4, 4), RleFormat(container="json"))


def test_files_that_name_classes_or_scores(tmp_path: Path) -> None:
    assert _read_names(write(tmp_path / "classes.json"), 3) == {}
    write(tmp_path / "submission.json")
    assert _read_summary(tmp_path / "submission.csv") == {}
    write(tmp_path / MARKER)
    assert _read_marker(tmp_path) is None


def test_files_of_a_run(tmp_path: Path) -> None:
    write(tmp_path / LINEAGE_FILE)
    with pytest.raises(MaskfoldError, match="nested too deeply"):
        read_lineage_summary(tmp_path)


def test_files_of_a_bundle(tmp_path: Path) -> None:
    write(tmp_path / BUNDLE_FILE)
    with pytest.raises(MaskfoldError, match="cannot be read"):
        Bundle.read(tmp_path, tmp_path)
    write(tmp_path / MANIFEST)
    with pytest.raises(MaskfoldError, match=f"{MANIFEST} cannot be read"):
        check_replaceable(tmp_path)
