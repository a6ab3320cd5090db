"""What a storage client raised, in words: every client has errors of its own for the same few causes."""

from __future__ import annotations

import errno
from typing import Any

from lsap_archive.errors import StoreRefusedError, StoreUnavailableError
from lsap_archive.stores.local_files import NO_ROOM

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_CONFIGURATION = ("ProfileNotFound", "ConfigParseError", "ConfigNotFound", "InvalidConfigError")
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
}


def is_missing(error: BaseException) -> bool:
    """Whether an object is not there. A bucket that is not there is another matter, where the client tells it."""
    return isinstance(error, (FileNotFoundError, IsADirectoryError)) and not names_no_bucket(error)


def names_no_bucket(error: BaseException) -> bool:
    """Whether the client says that the bucket is not there."""
    return error_code(error) in _NO_BUCKET


def is_taken(error: BaseException) -> bool:
    """Whether a create-only write was refused because the object is there (HTTP 412, or 409 at Azure)."""
    return isinstance(error, FileExistsError) or http_status(error) == 412


def is_refused(error: BaseException) -> bool:
    """Whether this process may not do that there, so that trying again is no use."""
    if error_code(error) == "RequestTimeTooSkewed":  # a clock can be set meanwhile
        return False
    of_disk = isinstance(error, OSError) and error.errno in _NOT_ALLOWED
    return of_disk or isinstance(error, PermissionError) or http_status(error) in (401, 403)


def as_unavailable(error: BaseException, text: str) -> StoreUnavailableError:
    """Our error for one of a client, with this text."""
    return StoreRefusedError(text) if is_refused(error) else StoreUnavailableError(text)


def describe(error: BaseException, kind: str, endpoint: str) -> str:
    """What happened, and what to do.

    Args:
        error: of the client, or of the operating system.
        kind: "file", "memory", "s3", "gs" or "az".
        endpoint: where the store is, as a person would say it.
    """
    name, code = type(error).__name__, error_code(error)
    told = f" ({code})" if code else ""
    if code == "RequestTimeTooSkewed":
        return f"{endpoint} refuses requests of this machine, whose clock is too far off its own; set the clock"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error.strerror}; make room and run the same command again, it goes on where this one stopped"
    if kind == "file" and is_refused(error):
        reason = getattr(error, "strerror", None) or name
        return f"permission denied ({reason}); give it to this process, or name another place"
    if is_refused(error) or "Authentication" in name:
        return f"permission denied{told}; check the credentials, what they may do there, and this machine's clock"
    if name in _CONFIGURATION:
        return f"the client's configuration is refused ({error}); check AWS_PROFILE and ~/.aws/config"
    if "Credential" in name:
        return f"no credentials found; {_CREDENTIALS.get(kind, 'check them')}"
    if "SSL" in name or "Certificate" in name:
        return f"{endpoint} has no certificate that is trusted here; check the endpoint, or name the CA (AWS_CA_BUNDLE)"
    if any(word in name for word in ("Connect", "Timeout", "ServiceRequest", "ServiceResponse")):
        return f"{endpoint} does not answer; check the network and endpoint_url (AWS_ENDPOINT_URL for s3)"
    detail = code or getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"the store answered {name} ({detail}); check the store and try again"


def http_status(error: BaseException) -> int:
    """The HTTP status that a client tells of, or 0."""
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    for found in (status, getattr(error, "status_code", None), getattr(error, "code", None)):  # S3, Azure, Google
        if isinstance(found, int):
            return found
    return 403 if type(error) is OSError and str(error).startswith("Forbidden") else 0  # Google's client


def error_code(error: BaseException) -> str:
    """The store's own name of an error, or ""."""
    code = _response(error).get("Error", {}).get("Code") or getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))


def _response(error: BaseException) -> dict[str, Any]:
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}
