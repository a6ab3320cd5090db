"""What an edit run edits: the run whose codes it changes, and by which edit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from lsap_archive.format.documents import ONLY_FIELDS, Number, typed


@dataclass(frozen=True)
class Subject:
    """The run that an edit run edits. Row i of the one is row i of the other.

    Attributes:
        run_id: the edited run, an inversion.
        method: its method.
        method_digest: digest of that.
        edit: name of the edit.
        strength: how far it goes, or None for an edit that has no strength.
    """

    __pydantic_config__: ClassVar = ONLY_FIELDS
    run_id: str
    method: str
    method_digest: str
    edit: str
    strength: Number | None

    def to_dict(self) -> dict[str, Any]:
        """The subject as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Subject | None:
        """The subject that `to_dict` wrote; None for None, as in inversions.

        Raises:
            CorruptArchiveError: it is none; the message begins with where.
        """
        found: Subject | None = typed(cls | None, values, where)
        return found
