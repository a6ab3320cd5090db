"""What must never be shown or kept: credentials of storage clients, wherever they were given."""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import fsspec.config

_SECRET_NAMES = re.compile("key|secret|token|pass|cred|sas|conn", re.IGNORECASE)
_SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_CLIENT_SECRET",
)
_ADDRESS_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST", "HTTP_PROXY", "HTTPS_PROXY")
_SHORTEST = 6  # characters; what is shorter would blacken ordinary words
_PASSWORD = re.compile(r"://[^/\s@:]*:(?!\d+/|:)[^\s@]*@")  # also with a slash in it; host:port/path is none
_PASSWORD_IN_URL = re.compile(r"://[^/@:]*:(?!\d+/|:)[^@]*@")  # the same where all is one URL, spaces too
_USER = re.compile(r"://[^/\s@]*@")
_SIGNED = re.compile(
    r"[?&](?:x-(?:amz|goog)-(?:signature|credential|security-token)|sig|signature|awsaccesskeyid|googleaccessid"
    r"|access_?token|token|api_?key|password|secret)=",
    re.IGNORECASE,
)
_QUERY_VALUE = re.compile(r"([?&][^=&\s]*(?:sig|token|credential|key|secret|passw)[^=&\s]*=)[^&\s'\")]+", re.IGNORECASE)


def credential_in(url: str) -> str | None:
    """What of a URL is a credential, in words: a user with password, or a signed query; None for neither.

    Example:
        >>> credential_in("s3://bucket/folder"), credential_in("https://me:hunter2@host/a.png")
        (None, 'a password')
        >>> credential_in("https://host/a.png?X-Amz-Signature=5f3a")
        'a signed query'
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme in ("file", "local", "memory"):
        return None
    if _PASSWORD_IN_URL.search(url) or (scheme in ("s3", "s3a", "gs", "gcs") and _USER.search(url)):
        return "a password"
    return "a signed query" if _SIGNED.search(url) else None


class Secrets:
    """Hides in a text what must not be seen: secret options and variables, passwords in URLs, signed queries.

    Args:
        storage_options: what a file system was opened with. The environment and fsspec's own configuration are
            looked at as well.
    """

    def __init__(self, storage_options: Mapping[str, Any] | None = None) -> None:
        given = {*_in_options(storage_options or {}), *_in_environment(), *_in_options(fsspec.config.conf)}
        forms = {form for value in given for form in (value, quote(value, safe=""), json.dumps(value)[1:-1])}
        self._values = sorted((form for form in forms if len(form) >= _SHORTEST), key=len, reverse=True)

    def __repr__(self) -> str:
        return "Secrets()"

    def hide(self, text: str) -> str:
        """The text with every credential as `***`."""
        for value in self._values:
            text = text.replace(value, "***")
        text = _USER.sub("://***@", _PASSWORD.sub("://***@", text))
        return _QUERY_VALUE.sub(r"\1***", text)

    def in_document(self, data: bytes) -> bool:
        """Whether a document holds a credential that this process was given."""
        return any(len(value) >= 2 * _SHORTEST and value.encode() in data for value in self._values)

    def safe_cause(self, error: BaseException) -> BaseException | None:
        """The error to be shown as a cause, or None if it or what is behind it tells a credential."""
        behind: BaseException | None = error
        while behind is not None:
            told = "".join(traceback.format_exception_only(behind))
            if self.hide(told) != told:
                return None
            behind = behind.__cause__ or behind.__context__
        return error


def _in_options(options: Mapping[str, Any]) -> Iterator[str]:
    """Values of options whose names say that they are secret, and passwords inside URLs, at any depth."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _in_options(value)
        elif isinstance(value, str) and value:
            if _SECRET_NAMES.search(str(name)):
                yield value
                yield from re.findall(r"(?:AccountKey|SharedAccessSignature)=([^;]+)", value)
            yield from _in_address(value)


def _in_environment() -> Iterator[str]:
    yield from _in_options({name: os.environ[name] for name in _SECRET_VARIABLES if name in os.environ})
    for name in _ADDRESS_VARIABLES:
        yield from _in_address(os.environ.get(name) or os.environ.get(name.lower()) or "")


def _in_address(text: str) -> Iterator[str]:
    """User and password of a URL, as written and as they are meant."""
    found = re.match(r"[a-z0-9+]+://([^/@:]*):(.+)@", text, re.IGNORECASE)
    for part in found.groups() if found else ():
        yield part
        yield unquote(part)


def host_of(url: str) -> str:
    """Scheme, host and port of a URL, without user and password; "" if it has no host.

    Example:
        >>> host_of("http://me:hunter2@store:9000/path")
        'http://store:9000'
    """
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.hostname else ""
    except ValueError:
        return ""
