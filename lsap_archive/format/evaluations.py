"""Evaluations: what is to be measured, and the manifest of what was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lsap_archive.errors import (
    ArchiveMismatchError,
    CorruptArchiveError,
)
from lsap_archive.format.documents import as_json, decode_document, encode_document
from lsap_archive.format.layout import (
    FORMAT_VERSION,
    checked_name,
)
from lsap_archive.format.manifest import StoredObject, check_version


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
class EvaluationInfo:
    """A published evaluation, and its manifest.

    Attributes:
        evaluation_id, subject, method, edit, strength, config, provenance, num_rows, shard_rows: as in the plan.
        created: UTC time of publication, ISO 8601.
        num_measurements: rows of its table.
        summary: numbers of the whole set, such as {"fid": ...}, JSON values.
        files: every object of the evaluation.
        sequence: as in Manifest.
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
    created: str
    num_measurements: int
    summary: dict[str, Any]
    files: tuple[StoredObject, ...] = field(repr=False)
    sequence: int = 0

    @property
    def order(self) -> tuple[int, str, str]:
        """Sorts evaluations, the newest last; as Manifest.order."""
        return self.sequence, "" if self.sequence else self.created, self.evaluation_id

    @property
    def run_id(self) -> str | None:
        """The measured run, None for synthetic images."""
        run_id: str | None = self.subject.get("run_id")
        return run_id

    def encode(self) -> bytes:
        """The manifest as bytes."""
        files = [file.to_dict() for file in self.files]
        values = {**vars(self), "files": files, "format_version": FORMAT_VERSION}
        return encode_document(values, f"the manifest of evaluation {self.evaluation_id}")

    @classmethod
    def decode(cls, data: bytes, name: str) -> EvaluationInfo:
        """The manifest that `encode` wrote.

        Raises:
            CorruptArchiveError: it is damaged.
            ArchiveMismatchError: a newer version of the format wrote it.
        """
        values = decode_document(data, name)
        check_version(values, name)
        try:
            del values["format_version"]
            values["files"] = tuple(StoredObject.from_dict(file, name) for file in values["files"])
            checked_name(values["evaluation_id"], f"{name}: evaluation id")
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CorruptArchiveError(f"{name} is not a manifest of an evaluation ({error})") from error
