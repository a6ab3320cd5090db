"""Evaluations: what is to be measured, and the manifest of what was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveMismatchError, CorruptArchiveError
from lsap_archive.format.documents import ONLY_FIELDS, Count, Number, Size, as_json, typed
from lsap_archive.format.layout import checked_name, state_name
from lsap_archive.format.manifest import Published, StoredObject, contradiction_of_shards


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
    strength: Number | None
    config: dict[str, Any]
    provenance: dict[str, Any]
    num_rows: Size
    shard_rows: Size

    def __post_init__(self) -> None:
        checked_name(self.evaluation_id, "evaluation id")
        if self.run_id is not None:
            checked_name(self.run_id, f"the run that evaluation {self.evaluation_id} measures")
        if self.num_rows < 1 or self.shard_rows < 1:
            raise ArchiveMismatchError(
                f"evaluation {self.evaluation_id} has {self.num_rows} rows in shards of {self.shard_rows}: "
                "at least 1 is wanted of both"
            )

    @property
    def run_id(self) -> str | None:
        """The measured run, None for synthetic images."""
        run_id: str | None = self.subject.get("run_id")
        return run_id

    @property
    def num_shards(self) -> int:
        """ceil(num_rows / shard_rows)."""
        return -(-self.num_rows // self.shard_rows)

    @property
    def sums_of(self) -> tuple[str, str] | None:
        """Name and digest of the network of whose features sums are kept; None where no set-level number was asked."""
        asked = self.config.get("frechet")
        if not isinstance(asked, Mapping) or not {"network", "digest"} <= asked.keys():
            return None
        return str(asked["network"]), str(asked["digest"])

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> EvaluationPlan:
        """The plan that a document is.

        Raises:
            CorruptArchiveError, ArchiveMismatchError: it is none.
        """
        names = [one.name for one in fields(cls)]
        found: EvaluationPlan = typed(cls, {name: values[name] for name in names if name in values}, where)
        if problem := contradiction_of_shards(found.num_rows, found.shard_rows, found.num_shards, None):
            raise CorruptArchiveError(f"{where} makes no sense: {problem}: {HOW_TO_REPAIR}")
        return found

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
        summary: numbers of all images of this evaluation together, such as {"fid": ...}, JSON values. Those that an
            `Archive` gives are of all images of the method that readers see, see `lsap_archive.reading.sets`.
    """

    __pydantic_config__: ClassVar = ONLY_FIELDS
    kind = "evaluation"
    created: str
    num_measurements: Count
    summary: dict[str, Any]
    files: tuple[StoredObject, ...] = field(repr=False)
    sequence: Count = 0

    @property
    def summed_shards(self) -> tuple[int, ...]:
        """Shards of which there are sums that set-level numbers are made from, in order."""
        named = {state_name(shard): shard for shard in range(self.num_shards)}
        return tuple(sorted(named[file.name] for file in self.files if file.name in named))

    @classmethod
    def check_plan(cls, values: Mapping[str, Any], where: str) -> None:
        """Refuse a document that is no plan of an evaluation."""
        EvaluationPlan.of(values, where)

    def contradiction(self) -> str | None:
        """What cannot be true at once, in words; None where all can."""
        if self.num_shards > len(self.files):
            return f"it has {self.num_shards} shards in {len(self.files)} files"
        return contradiction_of_shards(self.num_rows, self.shard_rows, self.num_shards, None)
