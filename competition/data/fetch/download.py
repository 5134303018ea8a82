"""One file from the network: taken up where it stopped, and checked.

`monai.apps.download_url` goes through the system's temporary folder, which may be small, begins anew after every
interruption, and takes a denied permission for success.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from competition.config.errors import MaskfoldError
from competition.data.files import room

BLOCK = 2**20
TRIES = 4  # in a row without a new byte
AGAIN = {408, 429, 500, 502, 503, 504}  # answers after which a server may think better of it

Watch = Callable[[Iterator[Any], int], Iterator[Any]]


@dataclass(frozen=True)
class Source:
    """A file on the network.

    Attributes:
        url: where.
        size: bytes, as far as known beforehand.
        md5: its checksum, 32 hexadecimal digits.
    """

    url: str
    size: int
    md5: str


def download(source: Source, part: Path, watch: Watch, *, pause: float = 1.0, seconds: float = 60.0) -> None:
    """Downloads to `part`; what is there already is a beginning.

    Args:
        source: what.
        part: the file; it stays there when the network fails or the process is ended.
        watch: wraps the blocks of 1 MiB, given how many there will be.
        pause: seconds before another try; doubles.
        seconds: of silence after which the connection is given up.

    Raises:
        MaskfoldError: the host cannot be reached, refuses, or sends something else; or another process downloads it.
        FullDisk: there is no room.
    """
    with _alone(part):
        resumed = part.stat().st_size > 0
        _download(source.url, part, watch, pause, seconds)
        if md5(part) == source.md5:
            return
        if resumed:  # the beginning may have been of another version: once more from the start
            os.truncate(part, 0)
            _download(source.url, part, watch, pause, seconds)
        if (found := md5(part)) != source.md5:
            size = part.stat().st_size
            part.unlink()
            raise MaskfoldError(f"{source.url} gave {size:,} bytes with the MD5 {found}, and {source.md5} is expected.",
                                "Type the same command again; should that repeat, the host changed the file, or a proxy does.")


def md5(path: Path) -> str:
    """The checksum of a file: against damage, not against malice."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _download(url: str, part: Path, watch: Watch, pause: float, seconds: float) -> None:
    """Until the last byte is there, or `TRIES` tries in a row brought none."""
    failed = 0
    while True:
        before = part.stat().st_size
        try:
            if _take(url, part, watch, seconds):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing after what we have: whole, or not of this file
                if re.fullmatch(rf"bytes \*/{before}", error.headers.get("Content-Range", "")):
                    return
                os.truncate(part, 0)
                continue
            reason = f"it answers {error.code} {error.reason}"
            if error.code not in AGAIN:
                raise _unreachable(url, reason) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
            if not part.stat().st_size and isinstance(error, urllib.error.URLError):
                raise _unreachable(url, reason) from error  # not even the beginning: there is no network
        failed = failed + 1 if part.stat().st_size <= before else 1
        if failed >= TRIES:
            raise _unreachable(url, reason)
        time.sleep(pause * 2 ** (failed - 1))


def _take(url: str, part: Path, watch: Watch, seconds: float) -> bool:
    """One connection; True if the file is whole then."""
    have = part.stat().st_size
    request = urllib.request.Request(url, headers={"User-Agent": "maskfold", **({"Range": f"bytes={have}-"} if have else {})})
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        length = answer.headers.get("Content-Length")
        if have and not (answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
            os.truncate(part, 0)  # a server that knows no ranges sends all of it
            have = 0
        expected = None if length is None else have + int(length)
        with open(part, "ab") as stream:
            for block in watch(_blocks(answer), -(-int(length or 0) // BLOCK)):
                _write(stream, block, part)
    return expected is None or part.stat().st_size == expected


def _blocks(answer: Any) -> Iterator[bytes]:
    """What comes; what came before a connection broke is not lost."""
    while True:
        try:
            block = answer.read(BLOCK)
        except http.client.IncompleteRead as error:
            block = error.partial
            if block:
                yield block
            return
        if not block:
            return
        yield block


def _write(stream: Any, block: bytes, part: Path) -> None:
    try:
        with room(part, len(block)):
            stream.write(block)
            stream.flush()
    except OSError as error:
        raise MaskfoldError(f"{part} cannot be written: {error.strerror or error}.", "Name another folder with -o.") from error


def _unreachable(url: str, reason: str) -> MaskfoldError:
    name = Path(urlsplit(url).path).name
    return MaskfoldError(f"{url} cannot be fetched: {reason.rstrip('.')}.",
                         "Check the network (https_proxy names a proxy) and type the same command again, "
                         f"or put {name} from elsewhere into the folder of -o.")


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Only one process at a time appends to a file."""
    with open(part, "ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MaskfoldError(f"Another process is downloading {part}.", "Wait for it, or end it.") from error
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()
