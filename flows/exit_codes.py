"""Which errors mean that a command was asked wrongly, so that trying again cannot help."""

from __future__ import annotations

from flows.run_file import ParameterError
from lsap_archive import ArchiveKeyError, ArchiveMismatchError, ArchiveNotFoundError
from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError, OutOfReachError
from tasks.errors import SourceError
from tasks.training_store import OtherRunError

WRONG_REQUESTS = (
    ParameterError,
    ConfigError,
    CheckpointError,
    MissingWeightsError,
    OutOfReachError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    ArchiveKeyError,
    OtherRunError,
)


def is_wrong_request(error: BaseException) -> bool:
    """Whether the request has to change, rather than the machine."""
    if isinstance(error, SourceError):
        return not error.is_transient
    return isinstance(error, WRONG_REQUESTS)
