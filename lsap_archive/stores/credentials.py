"""What must never be shown or kept: credentials of storage clients, wherever they were given."""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any
from urllib.parse import quote, unquote, unquote_plus, urlsplit

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
    "HF_TOKEN",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
    "PREFECT_SERVER_API_AUTH_STRING",
    "RAY_AUTH_TOKEN",
)
_ADDRESS_VARIABLES = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST", "HTTP_PROXY", "HTTPS_PROXY"),
    *("PREFECT_API_URL", "LSAP_BACKBONES", "LSAP_RAY_ADDRESS", "LSAP_RESULTS"),
)
HIDDEN = "***"  # in the place of a credential
_SHORTEST = 6  # characters; what is shorter would blacken ordinary words
_PASSWORD = re.compile(r"://[^/\s@:]*:(?!\d+/|:)[^\s@]*@")  # also with a slash in it; host:port/path is none
_PASSWORD_IN_URL = re.compile(r"://[^/@:]*:(?!\d+/|:)[^@]*@")  # the same where all is one URL, spaces too
_USER = re.compile(r"://[^/\s@]*@")
_CHAINED = re.compile(r"::(?=[a-zA-Z][\w+.-]*:/)")
_LOCAL = ("", "file", "local", "memory")
_USER_IS_PUBLIC = ("az", "abfs", "abfss", "wasb", "wasbs", "adl", "sftp", "ssh", "hdfs", "webhdfs", "smb", "git")
"""Where a name before @ is a container or an account; elsewhere it is a token or half of a password."""

# Names of queries, options and variables. Each is taken apart into words: X-Amz-Security-Token, auth_key, wsSecret.
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS = {
    *("password", "passwd", "passphrase", "passcode", "pwd", "pw", "psw", "secret", "secrets", "credential"),
    *("credentials", "creds", "token", "tokens", "jwt", "bearer", "signature", "sig", "hmac", "auth", "authorization"),
    *("hdnts", "hdnea", "sas", "pass", "apikey"),
}
_KEY_OF = {
    *("access", "account", "admin", "api", "app", "application", "auth", "aws", "client", "consumer", "customer"),
    *("deploy", "encryption", "function", "host", "license", "master", "oss", "private", "project", "secret"),
    *("security", "service", "session", "shared", "signing", "ssh", "storage", "subscription", "user", "write"),
}
"""Of which a key is a secret; a sort key, a partition key and a keyword are none."""
_COMPACT = re.compile(
    f"(?:{'|'.join(sorted(_KEY_OF))})keys?(?:id)?$|(?:access|auth|id|refresh|security|session|bearer|api|sas)token$"
    "|accessid$|clientsecret$|secretkey|password|passphrase|credential|signature$"
)
_TOLD_BY_ITS_VALUE = {"key", "keys", "sign", "code", "ticket", "session", "sid", "ak", "sk"}
"""Names of all kinds of things: a secret where the value looks like one."""
_ABOUT_A_SECRET = {
    *("algorithm", "budget", "count", "counts", "expires", "expiry", "hint", "length", "limit", "max", "method"),
    *("min", "mode", "name", "num", "number", "size", "ttl", "type", "url", "version"),
}
_TOKEN = re.compile(
    r"(?<![\w-])(?:eyJ[\w-]{6,}\.[\w-]{6,}\.|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,}|xox[abp]-\w{8,}"
    r"|(?:ghp|gho|ghs|ghu|github_pat|glpat|hf|sk)[_-]\w{16,})"
)
"""What is a token wherever it stands: signed JSON, keys of Amazon and Google, of GitHub, GitLab and Hugging Face."""
_QUERY = re.compile(r"(?<=[?&#;])([^=?&#;\s'\"<>]+)=([^&#;\s'\")<>]*)")


def credential_in(url: str) -> str | None:
    """What of a URL is a credential, in words: a user with password, or a query that opens something; None for neither.

    Each address of a chain of file systems (`zip://a.png::https://...`) is looked at.

    Example:
        >>> credential_in("s3://bucket/folder"), credential_in("https://me:hunter2@host/a.png")
        (None, 'a password')
        >>> credential_in("https://host/a.png?X-Amz-Signature=5f3a"), credential_in("https://host/a?auth_key=17-0-3f")
        ('a signed query', 'a signed query')
        >>> credential_in("https://host/photos?key=photo-1&page_token_count=2") is None
        True
    """
    if "://" not in url:
        return None
    for address in _CHAINED.split(url) if "::" in url else (url,):
        scheme = address.partition("://")[0].lower() if "://" in address else ""
        if scheme in _LOCAL:
            continue
        if "@" in address and (
            _PASSWORD_IN_URL.search(address) or (scheme not in _USER_IS_PUBLIC and _USER.search(address))
        ):
            return "a password"
        if "=" in address and any(
            is_secret(unquote_plus(name), unquote_plus(value)) for name, value in _QUERY.findall(address)
        ):
            return "a signed query"
        if scheme in ("http", "https") and _TOKEN.search(address):
            return "a token"
    return None


def is_secret(name: str, value: str) -> bool:
    """Whether a value that is given under a name, such as in the query of a URL, opens something.

    Example:
        >>> is_secret("x-api-key", "1"), is_secret("wsSecret", "3f2a91"), is_secret("sort_key", "name")
        (True, True, False)
        >>> is_secret("key", "photo-1"), is_secret("key", "q83Jf0aLk2PzR7xVbN"), is_secret("max_tokens", "100")
        (False, True, False)
    """
    if not value or value.lower() in (HIDDEN, "true", "false", "none", "null"):
        return False
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in _ABOUT_A_SECRET:
        return False
    if any(word in ("key", "keys") and before in _KEY_OF for before, word in pairwise(words)):
        return True
    if _SECRET_WORDS & set(words) or _COMPACT.search("".join(words)):
        is_small_number = value.isdecimal() and len(value) <= 3
        return not is_small_number or bool({"password", "passwd", "secret", "pwd"} & set(words))
    return bool(_TOLD_BY_ITS_VALUE & set(words)) and _looks_random(value)


def _looks_random(value: str) -> bool:
    """Whether a text is made of what keys are made of: long, of letters and digits in turns, or all hexadecimal."""
    if re.fullmatch(r"[0-9a-fA-F]{32,}", value):
        return True
    if not re.fullmatch(r"[\w+/=.~%-]{16,}", value):
        return False
    kinds = ["d" if char.isdigit() else "u" if char.isupper() else "l" for char in value if char.isalnum()]
    return "d" in kinds and sum(one != other for one, other in pairwise(kinds)) >= len(kinds) / 3


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
            text = text.replace(value, HIDDEN)
        text = _USER.sub(f"://{HIDDEN}@", _PASSWORD.sub(f"://{HIDDEN}@", text))
        return _TOKEN.sub(HIDDEN, _QUERY.sub(_hidden, text))

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


def _hidden(query: re.Match[str]) -> str:
    """A name and its value in a query, without what opens something; rather too little than too much is shown."""
    name, value = query.groups()
    is_hidden = is_secret(unquote_plus(name), unquote_plus(value)) or _SECRET_NAMES.search(name) or "sig" in name
    return f"{name}={HIDDEN if is_hidden and value else value}"


def _in_options(options: Mapping[str, Any]) -> Iterator[str]:
    """Values of options whose names say that they are secret, and passwords inside URLs, at any depth."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _in_options(value)
        elif isinstance(value, list | tuple):
            yield from (found for one in value for found in _in_options({name: one}))
        elif isinstance(value, str) and value:
            if _SECRET_NAMES.search(str(name)) or is_secret(str(name), value):
                yield value
                yield re.sub(r"^(?:Bearer|Basic|Token) +", "", value)
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
