"""`maskfold fetch kaggle:…`, with a fake of Kaggle's client."""

from __future__ import annotations

import json
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from competition.errors import MaskfoldError
from competition.leaderboard.kaggle import (
    connect_kaggle,
    fetch_competition,
    list_competition_files,
    parse_competition_name,
)
from tests.datasets.archives import silent


class Kaggle:
    """Fake of the part of Kaggle's client (2.2) that is used."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.resumed_content = status, b""

    def authenticate(self) -> None:
        if self.status == 1:
            print("Authentication required, see the long text")
            sys.exit(1)
        self._raise_status()

    def competition_list_files(self, competition: str, page_token: str | None = None, page_size: int = 20) -> Any:
        self._raise_status()
        names = {None: ("train.zip", 4_000_000), "2": ("sample_submission.csv", 12)}[page_token]
        return types.SimpleNamespace(
            files=[types.SimpleNamespace(name=names[0], total_bytes=names[1])],
            next_page_token="" if page_token else "2",
        )

    def competition_download_files(self, competition: str, path: str, quiet: bool = True) -> None:
        target = Path(path) / f"{competition}.zip"
        self.resumed_content = target.read_bytes() if target.exists() else b""
        if self.status == 2:
            target.write_bytes(b"beginning")
            Path(f"{target}.kaggle-partial").write_text(json.dumps({}))
            raise ConnectionError("https://storage/token=secret broke")
        with zipfile.ZipFile(target, "w") as file:
            file.writestr("train/a.png", "a")
            file.writestr("sample_submission.csv", "id,rle\n")

    def _raise_status(self) -> None:
        if self.status >= 400:
            error = OSError("HTTP error")
            error.response = types.SimpleNamespace(status_code=self.status)  # type: ignore[attr-defined]
            raise error


def test_a_competition_is_listed_downloaded_and_unpacked(tmp_path: Path) -> None:
    api = Kaggle()
    listing = list_competition_files(api, "toy-2026")
    assert listing.size == 4_000_012
    assert listing.rules_url == "https://www.kaggle.com/competitions/toy-2026/rules"
    api.status = 2
    with pytest.raises(MaskfoldError, match="Kaggle cannot be reached: ConnectionError") as error:
        fetch_competition(api, listing, tmp_path / "toy-2026", lambda _: silent, False)
    assert "secret" not in str(error.value)
    assert not (tmp_path / "toy-2026").exists()
    api.status = 0
    assert fetch_competition(api, listing, tmp_path / "toy-2026", lambda _: silent, False) == 2
    assert api.resumed_content == b"beginning", "the client finds its partial download"
    assert [path.name for path in tmp_path.iterdir()] == ["toy-2026"]


def test_a_failed_download_leaves_no_empty_folder(tmp_path: Path) -> None:
    api = Kaggle()
    listing = list_competition_files(api, "toy")

    def fail(competition: str, path: str, quiet: bool = True) -> None:
        raise ConnectionError("broke")

    api.competition_download_files = fail  # type: ignore[method-assign]
    with pytest.raises(MaskfoldError, match="cannot be reached"):
        fetch_competition(api, listing, tmp_path / "data" / "toy", lambda _: silent, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "rejected the credentials"),
        (403, "accept the rules at https://www.kaggle.com/competitions/toy/rules"),
        (404, "no competition toy"),
        (500, "HTTP status 500"),
    ],
)
def test_kaggle_errors_have_hints(status: int, message: str) -> None:
    with pytest.raises(MaskfoldError, match=message):
        list_competition_files(Kaggle(status), "toy")


def test_the_client_is_missing_or_has_no_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kaggle", types.SimpleNamespace(api=Kaggle(1)))
    with pytest.raises(MaskfoldError, match="found no credentials"):
        connect_kaggle()
    assert capsys.readouterr().out == "", "the client's long text is discarded"
    for status, message in ((403, r"rejected the credentials \(403\)"), (404, "cannot be reached: HTTP status 404")):
        monkeypatch.setitem(sys.modules, "kaggle", types.SimpleNamespace(api=Kaggle(status)))
        with pytest.raises(MaskfoldError, match=message):
            connect_kaggle()
    monkeypatch.setitem(sys.modules, "kaggle", None)  # as if it were not installed
    with pytest.raises(MaskfoldError, match=r'pip install "maskfold\[kaggle\]"'):
        connect_kaggle()


def test_names_of_competitions() -> None:
    assert parse_competition_name("kaggle:dsb-2018") == "dsb-2018"
    assert parse_competition_name("kaggle:https://www.kaggle.com/competitions/dsb-2018/data") == "dsb-2018"
    for bad in ("kaggle:", "kaggle:../up", "kaggle:a b"):
        with pytest.raises(MaskfoldError) as error:
            parse_competition_name(bad)
        assert error.value.status == 2
