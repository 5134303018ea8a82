"""Download a competition, submit files and fetch scores with Kaggle's own client (pip install "maskfold[kaggle]")."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition.datasets.download import ProgressWrapper, check_free_space, created_parent, unpack_archive
from competition.errors import MaskfoldError
from competition.redact import redact

KAGGLE_PREFIX = "kaggle:"
PARTIAL_SUFFIX = ".kaggle-partial"  # suffix of the file that the client writes next to an incomplete download
PAGE_SIZE = 200  # number of files or submissions per request
MAX_PAGES = 50  # maximum number of pages of the listing of files
MAX_MESSAGE_LENGTH = 300  # maximum number of characters of the host's message
LIMIT_REACHED_PATTERN = re.compile(
    r"(?i)daily|per day|today|submission limit|limit of|maximum number|too many submissions"
)
COMPETITION_CLOSED_PATTERN = re.compile(r"(?i)deadline|\bended\b|\bclosed\b|expired|not accepting|no longer")

# Connection and download


@dataclass(frozen=True)
class CompetitionListing:
    """Hold the list of files of a competition at Kaggle.

    Attributes:
        name: name of the competition, as in its URL.
        files: (name, size in bytes) of each file.
        complete: whether `files` contains all files; False if there are more than `MAX_PAGES` pages.
    """

    name: str
    files: list[tuple[str, int]]
    complete: bool = True

    @property
    def size(self) -> int:
        """Size in bytes of all listed files together, after unpacking."""
        return sum(size for _, size in self.files)

    @property
    def rules_url(self) -> str:
        """URL of the competition's rules, which contain the licence of the data."""
        return f"https://www.kaggle.com/competitions/{self.name}/rules"


def parse_competition_name(argument: str) -> str:
    """Return the name of a competition from `kaggle:NAME`, or from its URL at Kaggle.

    Raises:
        MaskfoldError: the name is not valid (status 2).
    """
    name = argument.removeprefix(KAGGLE_PREFIX).rstrip("/")
    name = re.sub(r"^https?://(www\.)?kaggle\.com/(competitions|c)/", "", name).partition("/")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name):
        raise MaskfoldError(
            f"The name of the Kaggle competition is not valid: found {argument}, expected kaggle:NAME.",
            "Use the NAME in the competition's address: https://www.kaggle.com/competitions/NAME.",
            status=2,
        )
    return name


def connect_kaggle() -> Any:
    """Import Kaggle's client, log in with the user's credentials, and return the client.

    Raises:
        MaskfoldError: the client is not installed, or finds no credentials.
    """
    try:
        with redirect_client_output():  # the client prints text while it is imported
            import kaggle
    except ImportError as error:
        problem = "is not installed" if error.name == "kaggle" else f"cannot be imported: {error}"
        raise MaskfoldError(
            f"Kaggle's client {problem}.", 'Install it: python -m pip install "maskfold[kaggle]".'
        ) from error
    except (SystemExit, OSError) as error:
        raise _no_credentials() from error
    api = kaggle.api
    try:
        with redirect_client_output():
            api.authenticate()
    except SystemExit as error:
        raise _no_credentials() from error
    except OSError as error:
        if _status_of(error) in (401, 403):
            raise _rejected_credentials(error) from error
        raise _unreachable(error) from error
    return api


def list_competition_files(api: Any, name: str) -> CompetitionListing:
    """Return the list of the files of a competition, with their sizes.

    Raises:
        MaskfoldError: the competition does not exist, the user has not accepted its rules, or the network fails.
    """
    files: list[tuple[str, int]] = []
    token = None
    try:
        for _ in range(MAX_PAGES):
            with redirect_client_output():
                page = api.competition_list_files(name, page_token=token, page_size=PAGE_SIZE)
            files += [(str(file.name), int(file.total_bytes or 0)) for file in page.files or []]
            token = page.next_page_token or None
            if token is None:
                break
    except OSError as error:
        raise kaggle_client_error(name, CompetitionListing(name, []).rules_url, error) from error
    return CompetitionListing(name, files, complete=token is None)


def fetch_competition(
    api: Any, listing: CompetitionListing, folder: Path, new_progress: Callable[[str], ProgressWrapper], show: bool
) -> int:
    """Download the archive of a competition and unpack it; an interrupted download is resumed.

    Args:
        api: Kaggle's client, from `connect_kaggle`.
        listing: the list of files, from `list_competition_files`.
        folder: the folder to create for the files.
        new_progress: function that receives a label, and returns a function that wraps an iteration with a progress
            bar.
        show: whether the client draws its own progress bar during the download.

    Returns:
        The number of unpacked files.

    Raises:
        MaskfoldError: the competition cannot be downloaded, the disk has too little space, or the archive is damaged.
    """
    download_folder = folder.parent / f".{folder.name}.kaggle"
    with created_parent(folder), created_parent(download_folder / "archive"):
        check_free_space(folder, 2 * listing.size)
        return _fetch(api, listing, folder, download_folder, new_progress, show)


def _fetch(
    api: Any,
    listing: CompetitionListing,
    folder: Path,
    download_folder: Path,
    new_progress: Callable[[str], ProgressWrapper],
    show: bool,
) -> int:
    try:
        with redirect_client_output(show=show):
            api.competition_download_files(listing.name, path=str(download_folder), quiet=not show)
    except OSError as error:
        raise kaggle_client_error(listing.name, listing.rules_url, error) from error
    archives = [path for path in download_folder.iterdir() if path.suffix != PARTIAL_SUFFIX]
    if not archives:
        raise MaskfoldError(
            f"Kaggle's client reported no error, but there is no archive of {listing.name} in {download_folder}.",
            "Run the same command again.",
        )
    count = unpack_archive(archives[0], folder, new_progress("files unpacked"))
    for path in download_folder.iterdir():
        path.unlink()
    download_folder.rmdir()
    return count


@contextmanager
def redirect_client_output(show: bool = False) -> Iterator[None]:
    """Discard what the client prints during the `with` block or, if `show` is True, print it to standard error."""
    with redirect_stdout(sys.stderr if show else io.StringIO()):
        yield


def _no_credentials() -> MaskfoldError:
    return MaskfoldError(
        "Kaggle's client found no credentials.",
        "Create a token at https://www.kaggle.com/settings, and save it as ~/.kaggle/kaggle.json "
        "(chmod 600). Or set the variables KAGGLE_USERNAME and KAGGLE_KEY, or KAGGLE_API_TOKEN.",
    )


def kaggle_client_error(name: str, rules_url: str, error: OSError) -> MaskfoldError:
    """Return the MaskfoldError for an exception of Kaggle's client.

    The message of the exception is left out, because it may contain tokens.

    Args:
        name: name of the competition.
        rules_url: URL of the competition's rules, for the hint.
        error: the exception.
    """
    status_code = _status_of(error)
    if status_code == 401:
        return _rejected_credentials(error)
    if status_code == 403:
        return MaskfoldError(
            f"Kaggle denied access to {name} (403).",
            f"Log in to Kaggle with the account of these credentials, and accept the rules at {rules_url}.",
        )
    if status_code == 404:
        return MaskfoldError(
            f"Kaggle has no competition {name} (404).",
            "Use the NAME in the competition's address: https://www.kaggle.com/competitions/NAME.",
            status=2,
        )
    return _unreachable(error)


def _status_of(error: OSError) -> int | None:
    """Return the HTTP status of an exception of Kaggle's client; None if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _rejected_credentials(error: OSError) -> MaskfoldError:
    return MaskfoldError(
        f"Kaggle rejected the credentials ({_status_of(error)}).",
        "Create a new token at https://www.kaggle.com/settings. Replace the old one in ~/.kaggle/kaggle.json, or in "
        "the variable KAGGLE_KEY or KAGGLE_API_TOKEN.",
    )


def _unreachable(error: OSError) -> MaskfoldError:
    status_code = _status_of(error)
    reason = f"HTTP status {status_code}" if status_code else type(error).__name__
    return MaskfoldError(
        f"Kaggle cannot be reached: {reason}.",
        "Check the network (the variable https_proxy sets a proxy). Then run the same command again. "
        "An interrupted download is resumed.",
    )


# Submissions and scores


@dataclass(frozen=True)
class SubmissionLimits:
    """Hold how many submissions the user's team has made today, and how many it may still make.

    Attributes:
        used: number of submissions made today (UTC).
        left: number of submissions that are still allowed now.
        by_total: whether `left` follows from a limit on all submissions to the competition. False if it follows from a
            limit per day.
    """

    used: int
    left: int
    by_total: bool = False


@dataclass(frozen=True)
class KaggleSubmission:
    """Hold a submission as Kaggle reports it.

    Attributes:
        ref: Kaggle's number of the submission.
        date: time of the submission, in ISO format, UTC; empty if unknown.
        file: name of the file.
        description: description of the submission.
        status: pending, complete or error.
        public: score on the public leaderboard; None if unknown.
        private: score on the private leaderboard; None if unknown.
        error: reason why Kaggle did not score the file; empty if there is none.
    """

    ref: int
    date: str
    file: str
    description: str
    status: str
    public: float | None
    private: float | None
    error: str


class UploadRejected(MaskfoldError):
    """Report that Kaggle has rejected a submission, or has not received it.

    Such a submission does not count towards the daily limit.
    """


def fetch_limits(api: Any, slug: str) -> SubmissionLimits | None:
    """Return today's submission limits of a competition; None if Kaggle or its client does not report them.

    Raises:
        MaskfoldError: the competition does not exist, its rules are not accepted, the credentials are wrong, or there
            is no network.
    """
    if not hasattr(api, "competition_get_submission_limits"):
        return None  # the client is older than 2.2
    try:
        with redirect_client_output():
            limits = api.competition_get_submission_limits(slug)
    except OSError as error:
        if (_code(error) or 0) >= 500 or _code(error) == 400:
            return None
        raise _kaggle_error(slug, error) from error
    used, left, total = int(limits.num_today or 0), int(limits.num_allowed_now or 0), int(limits.num_total or 0)
    return SubmissionLimits(used, left, bool(limits.limited_by_total)) if used or left or total else None


def submit_file(api: Any, slug: str, path: Path, message: str) -> int | None:
    """Submit a CSV to a competition.

    Args:
        api: Kaggle's client, from `connect_kaggle`.
        slug: name of the competition, as in its URL.
        path: the CSV.
        message: description of the submission, which Kaggle shows.

    Returns:
        Kaggle's number of the submission; None if Kaggle reports no number.

    Raises:
        UploadRejected: Kaggle has rejected the file, or the upload was interrupted. The submission does not count
            towards the daily limit.
        MaskfoldError: the connection was lost. The submission may count towards the daily limit.
    """
    try:
        with redirect_client_output():
            answer = api.competition_submit(str(path), message, slug, quiet=True)
    except OSError as error:
        raise _kaggle_error(slug, error) from error
    if str(answer.message) == getattr(
        api, "COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE", "Could not submit to competition"
    ):
        raise UploadRejected(
            f"The upload of {path.name} to Kaggle was interrupted, so Kaggle has not counted a submission.",
            "Check the network, and run the same command again.",
        )
    return int(getattr(answer, "ref", 0) or 0) or None


def submit_notebook(api: Any, slug: str, notebook: str, version: int, file: str, message: str) -> int | None:
    """Submit the output of a notebook to a competition; see `submit_file` for the result and the errors.

    Args:
        api: Kaggle's client, from `connect_kaggle`.
        slug: name of the competition, as in its URL.
        notebook: `owner/name` of the notebook.
        version: version of the notebook.
        file: name of the output file.
        message: description of the submission, which Kaggle shows.
    """
    try:
        with redirect_client_output():
            answer = api.competition_submit_code(file, message, slug, notebook, version, quiet=True)
    except OSError as error:
        raise _kaggle_error(slug, error, notebook) from error
    return int(getattr(answer, "ref", 0) or 0) or None


def fetch_submissions(api: Any, slug: str) -> list[KaggleSubmission]:
    """Return the latest submissions of the user's team to a competition, at most `PAGE_SIZE`.

    Raises:
        MaskfoldError: the competition does not exist, its rules are not accepted, the credentials are wrong, or there
            is no network.
    """
    try:
        with redirect_client_output():
            submissions = api.competition_submissions(slug, page_size=PAGE_SIZE)
    except OSError as error:
        raise _kaggle_error(slug, error) from error
    return [_parse_submission(submission) for submission in submissions or [] if submission is not None]


def _parse_submission(submission: Any) -> KaggleSubmission:
    status = getattr(submission.status, "name", str(submission.status or "")).lower()
    return KaggleSubmission(
        int(submission.ref),
        submission.date.isoformat() if submission.date else "",
        str(submission.file_name or ""),
        str(submission.description or ""),
        status,
        _number(submission.public_score),
        _number(submission.private_score),
        redact(str(submission.error_description or ""))[:MAX_MESSAGE_LENGTH],
    )


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < float("inf") else None


def _code(error: OSError) -> int | None:
    """Return the status code of Kaggle's answer: the code in its body or, if the body has none, the HTTP status."""
    body = _body(error)
    code = body.get("code") if isinstance(body.get("code"), int) else None
    return code or getattr(getattr(error, "response", None), "status_code", None)


def _body(error: OSError) -> dict[str, Any]:
    try:
        body = error.response.json()  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _message(error: OSError) -> str:
    """Return the message in Kaggle's answer, without URLs.

    The message of the client's exception is not used, because it may contain tokens.
    """
    text = re.sub(r"\S+://\S+", "…", redact(str(_body(error).get("message") or "")))
    return " ".join(text.split())[:MAX_MESSAGE_LENGTH].rstrip(".")


def _kaggle_error(slug: str, error: OSError, notebook: str | None = None) -> MaskfoldError:
    """Return the MaskfoldError, with a hint, for an exception of the client during a submission.

    Args:
        slug: name of the competition.
        error: the exception.
        notebook: name of the notebook; None if a file was submitted.
    """
    code, message = _code(error), _message(error)
    rules = f"https://www.kaggle.com/competitions/{slug}/rules"
    quoted = f": “{message}”" if message else ""
    if code is None:
        return MaskfoldError(
            f"Cannot connect to Kaggle: {type(error).__name__}.",
            "Check the network (the variable https_proxy sets a proxy). `maskfold ledger` shows whether "
            "the submission was counted. If it was not, run the same command again.",
        )
    if code == 401:
        plain = kaggle_client_error(slug, rules, error)
        return UploadRejected("Kaggle rejected the credentials (401).", plain.hint)
    if code == 429 or (code in (400, 403) and LIMIT_REACHED_PATTERN.search(message)):
        return UploadRejected(
            f"Kaggle accepts no more submissions to {slug} today ({code}){quoted}.",
            "Wait until 00:00 UTC, when the daily limit is reset.",
        )
    if COMPETITION_CLOSED_PATTERN.search(message):
        return UploadRejected(
            f"The competition {slug} accepts no more submissions ({code}){quoted}.",
            f"Check at {rules.removesuffix('/rules')} whether late submissions are possible.",
        )
    if code == 403:
        return UploadRejected(
            f"Kaggle does not let you submit to {slug} (403){quoted}.",
            f"Log in to Kaggle with the account of these credentials, and accept the rules at {rules}.",
        )
    if code == 404:
        missing = f"competition {slug}" + (f" or this version of the notebook {notebook}" if notebook else "")
        return UploadRejected(
            f"Kaggle does not have the {missing} (404).",
            "Write the names as in the addresses at Kaggle. To set the competition, write "
            "`submission.kaggle` in competition.yaml, or add --competition.",
            status=2,
        )
    if code < 500:
        return UploadRejected(
            f"Kaggle rejected the submission ({code}){quoted}.",
            f"Correct what Kaggle's message names, or check the rules of the competition at {rules}.",
        )
    return MaskfoldError(
        f"Kaggle's server failed ({code}){quoted}.",
        "Try again later. `maskfold ledger` shows whether the submission was counted.",
    )
