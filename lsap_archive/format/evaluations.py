"""Evaluations: what is to be measured, and the manifest of what was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.documents import as_json
from lsap_archive.format.layout import checked_name
from lsap_archive.format.manifest import Published, StoredObject


@dataclass(frozen=True)
class EvaluationPlan:
    """What is to be measured.

    Attributes:
        evaluation_id: name of the evaluation, unique in the archive.
        subject: {"run_id": ...} of a run of the archive, or what synthetic images are made from, JSON values.
        method: the measured method, as the run names it ("e4e", "e4e/slant").
        edit: name of the edit, or None for an inversion.
        strength: of the edit, or None.
        config: everything that decides the values, JSON values.
        provenance: versions, digests, seeds, JSON values.
        num_rows: images, those of the run included of which nothing can be measured.
        shard_rows: images of a shard.

    Raises:
        ArchiveMismatchError: a name or size that cannot be.
    """

    evaluation_id: str
    subject: dict[str, Any]
    method: str
    edit: str | None
    strength: float | None
    config: dict[str, Any]
    provenance: dict[str, Any]
    num_rows: int
    shard_rows: int

    def __post_init__(self) -> None:
        checked_name(self.evaluation_id, "evaluation id")
        if self.num_rows < 1 or self.shard_rows < 1:
            raise ArchiveMismatchError(
                f"evaluation {self.evaluation_id} has {self.num_rows} rows in shards of {self.shard_rows}: "
                "at least 1 is wanted of both"
            )

    @property
    def num_shards(self) -> int:
        """ceil(num_rows / shard_rows)."""
        return -(-self.num_rows // self.shard_rows)

    def document(self) -> dict[str, Any]:
        """plan.json without what start_evaluation adds, as JSON gives it back."""
        document: dict[str, Any] = as_json(vars(self), f"the plan of evaluation {self.evaluation_id}")
        return document


@dataclass(frozen=True)
class EvaluationInfo(EvaluationPlan, Published):
    """A published evaluation, and its manifest: the plan, and what came of it.

    Attributes:
        created, files, sequence: as in Published.
        num_measurements: rows of its table.
        summary: numbers of the whole set, such as {"fid": ...}, JSON values.
    """

    kind = "evaluation"
    created: str
    num_measurements: int
    summary: dict[str, Any]
    files: tuple[StoredObject, ...] = field(repr=False)
    sequence: int = 0

    @property
    def run_id(self) -> str | None:
        """The measured run, None for synthetic images."""
        run_id: str | None = self.subject.get("run_id")
        return run_id
