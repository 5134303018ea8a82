"""Competitions of Kaggle, by Kaggle's own client (the extra [kaggle])."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition.config.errors import MaskfoldError
from competition.data.fetch.archive import unpack
from competition.data.fetch.download import Watch
from competition.data.fetch.place import check_room, folder_above

PREFIX = "kaggle:"
MARKER = ".kaggle-partial"  # of the client's own, beside a file that is not whole yet
PAGE = 200  # files a call
MOST_PAGES = 50  # after which the rest is not counted


@dataclass(frozen=True)
class Listing:
    """What a competition's files add up to.

    Attributes:
        name: of the competition, as in its address.
        files: (name, bytes) of each.
        whole: whether all were listed.
    """

    name: str
    files: list[tuple[str, int]]
    whole: bool = True

    @property
    def size(self) -> int:
        """Bytes, unpacked."""
        return sum(size for _, size in self.files)

    @property
    def rules(self) -> str:
        """Where the licence of the data is."""
        return f"https://www.kaggle.com/competitions/{self.name}/rules"


def competition_name(word: str) -> str:
    """The name in `kaggle:NAME`; an address of Kaggle is understood too.

    Raises:
        MaskfoldError: it cannot be one (status 2).
    """
    name = word.removeprefix(PREFIX).rstrip("/")
    name = re.sub(r"^https?://(www\.)?kaggle\.com/(competitions|c)/", "", name).partition("/")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name):
        raise MaskfoldError(f"{word} names no competition.", "Write kaggle:NAME with the name in the competition's address.",
                            status=2)
    return name


def connect() -> Any:
    """Kaggle's client, which knows who the user is.

    Raises:
        MaskfoldError: it is not installed, or finds no credentials.
    """
    try:
        with aside():  # it talks while it is imported
            import kaggle
    except ImportError as error:
        what = "is not installed" if error.name == "kaggle" else f"cannot be imported: {error}"
        raise MaskfoldError(f"Kaggle's client {what}.", 'Type: python -m pip install "maskfold[kaggle]".') from error
    except (SystemExit, OSError) as error:
        raise _nobody() from error
    api = kaggle.api
    try:
        with aside():
            api.authenticate()
    except SystemExit as error:
        raise _nobody() from error
    except OSError as error:
        raise refused("Kaggle", "https://www.kaggle.com", error) from error
    return api


def list_files(api: Any, name: str) -> Listing:
    """A competition's files and their sizes.

    Raises:
        MaskfoldError: there is no such competition, its rules are not accepted, or there is no network.
    """
    files: list[tuple[str, int]] = []
    token = None
    try:
        for _ in range(MOST_PAGES):
            with aside():
                page = api.competition_list_files(name, page_token=token, page_size=PAGE)
            files += [(str(file.name), int(file.total_bytes or 0)) for file in page.files or []]
            token = page.next_page_token or None
            if token is None:
                break
    except OSError as error:
        raise refused(name, Listing(name, []).rules, error) from error
    return Listing(name, files, whole=token is None)


def fetch_competition(api: Any, listing: Listing, folder: Path, watch: Callable[[str], Watch], show: bool) -> int:
    """Downloads a competition and unpacks it; what was downloaded before an interruption is gone on with.

    Args:
        api: of `connect`.
        listing: of `list_files`.
        folder: what it becomes.
        watch: gives a bar for what it is told to count.
        show: let the client draw its own bar.

    Returns:
        How many files.

    Raises:
        MaskfoldError: see `list_files` and `archive.unpack`.
    """
    staging = folder.parent / f".{folder.name}.kaggle"
    with folder_above(folder), folder_above(staging / "archive"):
        check_room(folder, 2 * listing.size)
        return _fetch(api, listing, folder, staging, watch, show)


def _fetch(api: Any, listing: Listing, folder: Path, staging: Path, watch: Callable[[str], Watch], show: bool) -> int:
    try:
        with aside(shown=show):
            api.competition_download_files(listing.name, path=str(staging), quiet=not show)
    except OSError as error:
        raise refused(listing.name, listing.rules, error) from error
    archives = [path for path in staging.iterdir() if path.suffix != MARKER]
    if not archives:
        raise MaskfoldError(f"Kaggle's client left no archive of {listing.name} in {staging}.", "Type the same command again.")
    count = unpack(archives[0], folder, watch("files unpacked"))
    for path in staging.iterdir():
        path.unlink()
    staging.rmdir()
    return count


@contextmanager
def aside(shown: bool = False) -> Iterator[None]:
    """What the client prints is left out, or goes to standard error."""
    with redirect_stdout(sys.stderr if shown else io.StringIO()):
        yield


def _nobody() -> MaskfoldError:
    return MaskfoldError("Kaggle's client finds no credentials.",
                         "Make a token at https://www.kaggle.com/settings and put it into ~/.kaggle/kaggle.json (chmod 600), "
                         "or set KAGGLE_USERNAME and KAGGLE_KEY, or KAGGLE_API_TOKEN.")


def refused(name: str, rules: str, error: OSError) -> MaskfoldError:
    """An error of the client in our words; its own may hold addresses with tokens."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code == 401:
        return MaskfoldError("Kaggle does not accept the credentials (401).",
                             "Make a new token at https://www.kaggle.com/settings.")
    if code == 403:
        return MaskfoldError(f"Kaggle does not hand out {name} (403).",
                             f"Accept the rules at {rules} first, logged in as the same user.")
    if code == 404:
        return MaskfoldError(f"Kaggle knows no competition {name} (404).", "Write the name as in the competition's address.",
                             status=2)
    why = f"it answers {code}" if code else type(error).__name__
    return MaskfoldError(f"Kaggle cannot be reached: {why}.",
                         "Check the network (https_proxy names a proxy) and type the same command again; it goes on where it "
                         "stopped.")
