"""Which errors mean that a command was asked wrongly, so that trying again cannot help."""

from __future__ import annotations

from flows.parameters.run_file import ParameterError
from flows.running import server
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


def told(error: BaseException) -> str:
    """What failed, and what to do where the error itself does not say it."""
    return server.told(error) or memory_told(error) or f"{type(error).__name__}: {error}"
