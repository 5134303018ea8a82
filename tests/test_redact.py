"""Secrets of environment variables in any spelling and encoding, and ordinary words that are left alone."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from competition.redact import is_secret_name, redact

SECRET = "hush?hush>4711"  # `?` and `>` differ in the two alphabets of base64


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Without the secrets of the machine that runs the tests."""
    for name in [name for name in os.environ if is_secret_name(name)]:
        monkeypatch.delenv(name)
    yield monkeypatch


@pytest.mark.parametrize(
    "name",
    [
        "MYSQL_PWD", "DB_PASS", "GITHUB_PAT", "kaggle_key", "AZURE_CONN_STR", "AZURE_STORAGE_CONNECTION_STRING",
        "KAGGLE_KEY", "HF_TOKEN", "PGPASSWORD", "DBPASSWD", "WANDB_APIKEY", "AWS_ACCESS_KEY_ID", "S3_SECRET",
        "GPG_PASSPHRASE", "smtpPass", "GOOGLE_CREDENTIALS", "AZURE_SAS", "KEY2", "mlflow-token",
    ],
)  # fmt: skip
def test_a_variable_with_a_secret_name(environment: pytest.MonkeyPatch, name: str) -> None:
    assert is_secret_name(name)
    environment.setenv(name, SECRET)
    assert redact(f"failed with {SECRET}!") == "failed with …!"


@pytest.mark.parametrize(
    "name",
    [
        "passes", "compass", "keypoints", "PATH", "PATTERN", "KEYBOARD", "TOKENIZERS_PARALLELISM", "COMPASS_MODE",
        "BYPASS", "HOTKEY", "MONKEY", "LOWPASS", "MAX_CONNECTIONS", "PATIENT", "SIGMA", "SECRETARY", "SSH_KEY_PATH",
        "PASSWORD_FILE", "author", "channels",
    ],
)  # fmt: skip
def test_a_variable_with_an_ordinary_name(environment: pytest.MonkeyPatch, name: str) -> None:
    assert not is_secret_name(name)
    environment.setenv(name, "ordinary")
    assert redact("ordinary") == "ordinary"


@pytest.mark.parametrize(
    "text",
    [
        "?passes=12345678&compass=north-west&keypoints=17points;sigma=1.5",
        "Did you mean keypoints, compass or passes?",
        "key=value overrides", "Basic authentication failed", "Basic segmentation", "Bearer authentication",
        "the bearer identification", "a/keypoints=3",
    ],
)  # fmt: skip
def test_ordinary_texts_stay(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "https://h/x?MYSQL_PWD={}&a=1", "https://h/x?a=1&kaggle_key={}", "b?sig={}",
        "DefaultEndpoints;AccountKey={};a=1", "Server=h;Pwd={}", "X?X-Amz-Signature={}",
    ],
)  # fmt: skip
def test_secrets_in_addresses_and_connection_strings(text: str) -> None:
    secret = "unknown4711=="
    assert redact(text.format(secret)) == text.format("…")


@pytest.mark.parametrize("user", ["", "m", "me", "you", "用户"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("after", ["", "\n", " and more"])
def test_a_known_password_in_base64(environment: pytest.MonkeyPatch, user: str, encode: object, after: str) -> None:
    environment.setenv("DB_PASS", SECRET)
    encoded = encode(f"{user}:{SECRET}{after}".encode()).decode()  # type: ignore[operator]
    assert redact(f"header Proxy: {encoded}, done") == "header Proxy: …, done"
    assert redact(f"Authorization: Basic {encoded}") == "Authorization: Basic …"


def test_headers_with_unknown_secrets() -> None:
    encoded = base64.b64encode(b"me:never seen").decode()
    assert redact(f"{{'authorization': 'Basic {encoded}'}}") == "{'authorization': 'Basic …'}"
    assert redact("Authorization: Bearer abcdef0123456789ab") == "Authorization: Bearer …"


def test_a_known_password_in_percent_encoding(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DB_PASS", SECRET)
    assert redact(f"x={quote(SECRET, safe='')}") == "x=…"


def test_parts_of_a_connection_string_and_passwords_of_addresses(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AZURE_CONN", "AccountName=me;AccountKey=abcdef4711==;EndpointSuffix=core.windows.net")
    environment.setenv("STORE", f"postgresql://me:{quote(SECRET, safe='')}@host/runs")  # a name that says nothing
    assert redact("abcdef4711== of me at core.windows.net") == "… of me at core.windows.net"
    assert redact(f"login with {SECRET}") == "login with …"


def test_paths_are_no_secrets_but_a_secret_may_start_with_a_slash(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DEPLOY_KEY", os.getcwd())
    environment.setenv("PWD", "/removed/folder")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "/abcdef4711")
    text = f"{os.getcwd()} /removed/folder"
    assert redact(f"{text} /abcdef4711") == f"{text} …"
