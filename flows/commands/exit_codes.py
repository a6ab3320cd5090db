"""Which errors mean that a command was asked wrongly, so that trying again cannot help."""

from __future__ import annotations

import httpx
from prefect.settings import PREFECT_API_URL

from flows.parameters.run_file import ParameterError
from lsap_archive import ArchiveKeyError, ArchiveMismatchError, ArchiveNotFoundError, StoreRefusedError
from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError, OutOfReachError
from tasks.errors import SourceError, memory_told
from tasks.training.store import OtherRunError

WRONG_REQUESTS = (
    ParameterError,
    ConfigError,
    CheckpointError,
    MissingWeightsError,
    OutOfReachError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    ArchiveKeyError,
    StoreRefusedError,
    OtherRunError,
)


def is_wrong_request(error: BaseException) -> bool:
    """Whether the request has to change, rather than the machine."""
    if isinstance(error, SourceError):
        return not error.is_transient
    return isinstance(error, WRONG_REQUESTS)


def is_server_gone(error: BaseException) -> bool:
    """Whether the Prefect server does not answer; only its client asks with httpx."""
    return isinstance(error, httpx.TransportError)


def told(error: BaseException) -> str:
    """What failed, and what to do where the error itself does not say it."""
    if is_server_gone(error):
        return (
            f"the Prefect server at {PREFECT_API_URL.value()} does not answer ({error}): start it again, or unset "
            "PREFECT_API_URL to do without; the same command goes on where this one stopped"
        )
    return memory_told(error) or f"{type(error).__name__}: {error}"
