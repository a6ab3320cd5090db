"""What a run is made of that inverts nothing itself: the run whose codes it refines or edits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.documents import ONLY_FIELDS, Number, typed


@dataclass(frozen=True)
class Subject:
    """The run that a refinement or an edit is made of. Row i of the one is row i of the other.

    Attributes:
        run_id: the run; an inversion, or of an edit also a refinement.
        method: its method.
        method_digest: digest of that.
        edit: of an edit, its name; None for a refinement.
        strength: how far the edit goes, or None for one that has no strength.
        refiner: of a refinement, its name; None for an edit.
        inversion: of an edit of a refinement, the run that was refined; else None.

    Raises:
        ArchiveMismatchError: neither an edit nor a refiner is named, or both.
    """

    __pydantic_config__: ClassVar = ONLY_FIELDS
    run_id: str
    method: str
    method_digest: str
    edit: str | None
    strength: Number | None
    refiner: str | None = None
    inversion: str | None = None

    def __post_init__(self) -> None:
        if (self.edit is None) == (self.refiner is None) or (self.refiner and self.inversion):
            raise ArchiveMismatchError(
                f"{self}: a run is an edit of an inversion or of a refinement, or the refinement of an inversion"
            )

    @property
    def is_edit(self) -> bool:
        """Whether codes are edited, rather than refined."""
        return self.edit is not None

    @property
    def lineage(self) -> tuple[str, ...]:
        """The runs that it hangs on, the inversion last."""
        return (self.run_id,) if self.inversion is None else (self.run_id, self.inversion)

    def to_dict(self) -> dict[str, Any]:
        """The subject as JSON values; an edit of an inversion as it always was."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value is not None}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Subject | None:
        """The subject that `to_dict` wrote; None for None, as in inversions.

        Raises:
            CorruptArchiveError, ArchiveMismatchError: it is none; the message begins with where.
        """
        found: Subject | None = typed(cls | None, values, where)
        return found


_LATER = ("refiner", "inversion")  # fields of version 5
