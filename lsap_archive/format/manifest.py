"""The two records that make results visible: commit marker of a shard, manifest of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveMismatchError, CorruptArchiveError
from lsap_archive.format.arrays import RunArray, declared_arrays
from lsap_archive.format.documents import ONLY_FIELDS, Count, Size, decode_document, encode_document, typed
from lsap_archive.format.layout import (
    ARCHIVE_KEY,
    FORMAT_NAME,
    FORMAT_VERSION,
    READABLE_VERSIONS,
    Geometry,
    checked_file_name,
    checked_name,
)
from lsap_archive.format.rows import STATUSES
from lsap_archive.format.subject import Subject


def _has_all_statuses(rows_by_status: dict[str, int]) -> dict[str, int]:
    if missing := [status for status in STATUSES if status not in rows_by_status]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return rows_by_status


def _has_digest_and_name(generator: dict[str, str]) -> dict[str, str]:
    if not {"digest", "name"} <= set(generator):
        raise ValueError("digest and name are wanted")
    return generator


MAX_SHARDS = 2**20
"""Of a run or evaluation; a command plans at most 100,000 images in one."""
RowsByStatus = Annotated[dict[str, Count], AfterValidator(_has_all_statuses)]
GeneratorName = Annotated[dict[str, str], AfterValidator(_has_digest_and_name)]


@dataclass(frozen=True)
class StoredObject:
    """One object of a run.

    Attributes:
        name: key relative to the run's folder.
        size: bytes.
        sha256: digest of its content.
        staged: key of the staged copy relative to the run's folder, empty if there never was one.
        checksums: of a Zarr shard, the CRC-32C of its index and of each inner chunk, eight hexadecimal digits each: a
            read of a few rows is compared with them. Empty for other objects, and for those of older versions.
    """

    __pydantic_config__: ClassVar = ONLY_FIELDS
    name: str
    size: Count
    sha256: str
    staged: str = ""
    checksums: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What a manifest says of it, as JSON values."""
        values = {"name": self.name, "size": self.size, "sha256": self.sha256}
        return values | ({"checksums": self.checksums} if self.checksums else {})


def check_names(objects: Iterable[StoredObject], where: str) -> None:
    """Refuse names that lead out of the folder of a run or evaluation.

    Args:
        objects: as a manifest, a plan or a commit marker names them.
        where: that document, for the message.

    Raises:
        ArchiveMismatchError: the name of one, or of its staged copy, does.
    """
    for stored in objects:
        checked_file_name(stored.name, where)
        if stored.staged:
            checked_file_name(stored.staged, where)


@dataclass(frozen=True)
class ShardCommit:
    """Which attempt won a shard, and what it wrote.

    Attributes:
        run_id: the run.
        shard: number of the shard.
        attempt: the attempt, as its rows name it.
        token: tells apart two attempts of the same name.
        created: UTC time, ISO 8601.
        rows_by_status: number of rows of each status.
        objects: what the attempt wrote.
    """

    __pydantic_config__: ClassVar = ONLY_FIELDS
    run_id: str
    shard: Count
    attempt: str
    token: str
    created: str
    rows_by_status: RowsByStatus
    objects: tuple[StoredObject, ...]

    def encode(self) -> bytes:
        """The marker as bytes."""
        values = {**vars(self), "objects": [vars(stored) for stored in self.objects]}
        return encode_document(values, f"the commit of shard {self.shard} of run {self.run_id}")

    @classmethod
    def decode(cls, data: bytes, name: str) -> ShardCommit:
        """The marker that `encode` wrote.

        Raises:
            CorruptArchiveError: it is damaged, or makes no sense.
            ArchiveMismatchError: it names files outside the run's folder.
        """
        found: ShardCommit = typed(cls, decode_document(data, name), name)
        check_names(found.objects, name)
        return found


class Published(ABC):
    """What the manifests of runs and of evaluations have in common; put last, it makes all of it visible.

    Attributes:
        kind: "run" or "evaluation".
        created: UTC time of publication by the clock of whoever published it, ISO 8601.
        files: every object of it.
        sequence: orders the manifests of an archive without asking a clock; 0 in those of older versions.
    """

    kind: ClassVar[str]
    created: str
    files: tuple[StoredObject, ...]
    sequence: int

    @property
    def name(self) -> str:
        """Its id."""
        name: str = getattr(self, f"{self.kind}_id")
        return name

    @property
    def order(self) -> tuple[int, str, str]:
        """Sorts them, the newest last: those of older versions come first, in the order of their clocks."""
        return self.sequence, "" if self.sequence else self.created, self.name

    @property
    def num_bytes(self) -> int:
        """Of all its objects, as they are stored."""
        return sum(stored.size for stored in self.files)

    def values(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return {**vars(self), "files": [file.to_dict() for file in self.files], "format_version": FORMAT_VERSION}

    def encode(self) -> bytes:
        """The manifest as bytes."""
        return encode_document(self.values(), f"the manifest of {self.kind} {self.name}")

    @classmethod
    def decode(cls, data: bytes, where: str, owner: str | None = None) -> Self:
        """The manifest that `encode` wrote.

        Args:
            data: the bytes.
            where: where they were, for the message.
            owner: id of the run or evaluation in whose folder they were.

        Raises:
            CorruptArchiveError: it is damaged, makes no sense, or is that of another run or evaluation.
            ArchiveMismatchError: a newer version of the format wrote it, or it names what cannot be.
        """
        values = decode_document(data, where)
        check_version(values, where)
        del values["format_version"]
        found: Self = typed(cls, cls._current(values, where), where)
        checked_name(found.name, f"{where}: {cls.kind} id")
        check_names(found.files, where)
        if owner not in (None, found.name):
            raise CorruptArchiveError(f"{where} is the manifest of {cls.kind} {found.name}: {HOW_TO_REPAIR}")
        if problem := found.contradiction():
            raise CorruptArchiveError(f"{where} makes no sense: {problem}: {HOW_TO_REPAIR}")
        return found

    @classmethod
    def _current(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """The values of an older version as this one writes them."""
        return values

    @classmethod
    @abstractmethod
    def check_plan(cls, values: Mapping[str, Any], where: str) -> None:
        """Refuse a document that is no plan of what such a manifest publishes.

        Raises:
            CorruptArchiveError, ArchiveMismatchError: it is none.
        """

    @abstractmethod
    def contradiction(self) -> str | None:
        """What cannot be true at once, in words; None where all can."""

    def file(self, name: str) -> StoredObject:
        """An object that there has to be.

        Raises:
            CorruptArchiveError: the manifest does not name it.
        """
        for stored in self.files:
            if stored.name == name:
                return stored
        raise CorruptArchiveError(f"the manifest of {self.kind} {self.name} names no {name}: {HOW_TO_REPAIR}")


@dataclass(frozen=True)
class Manifest(Published):
    """A published run; readers start from it.

    Attributes:
        run_id, method, method_digest, config, provenance: as in the plan.
        created, files, sequence: as in Published.
        num_rows, shard_rows, num_shards: sizes of the run.
        arrays: what it keeps of each image, as in the plan.
        rows_by_status: number of rows of each status.
        summary: what the flow had to say, JSON values.
        generator: {"digest": ..., "name": ...}.
        geometry: {"num_ws": ..., "w_dim": ..., "noise_sides": [...]}.
        schema_version: of the rows.
        subject: of a refinement or an edit, what it is made of; None for an inversion.
        shards: shards of a run that has not all of its subject's, because it makes up for retired ones.
    """

    __pydantic_config__: ClassVar = ONLY_FIELDS
    kind = "run"
    run_id: str
    method: str
    method_digest: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    created: str
    num_rows: Size
    shard_rows: Size
    num_shards: Size
    arrays: tuple[RunArray, ...]
    rows_by_status: RowsByStatus
    summary: dict[str, Any]
    generator: GeneratorName
    geometry: dict[str, Any]
    schema_version: Count
    files: tuple[StoredObject, ...] = field(repr=False)
    subject: Subject | None = None
    sequence: Count = 0
    shards: tuple[Count, ...] | None = None

    @property
    def own_shards(self) -> tuple[int, ...]:
        """Numbers of the shards that it has."""
        return tuple(range(self.num_shards)) if self.shards is None else self.shards

    @property
    def is_edit(self) -> bool:
        """Whether it edits codes, rather than finding or refining them."""
        return self.subject is not None and self.subject.is_edit

    @property
    def lineage(self) -> tuple[str, ...]:
        """The run itself, and those that it is made of, the inversion last."""
        return (self.run_id, *(self.subject.lineage if self.subject else ()))

    @property
    def refinement(self) -> str | None:
        """The run whose arrays its images are rendered with: itself, if it is a refinement, or the one it edits."""
        if self.subject is None:
            return None
        if not self.subject.is_edit:
            return self.run_id
        return None if self.subject.inversion is None else self.subject.run_id

    @property
    def inversion(self) -> str:
        """The run whose images, noise maps and retirements it shares: itself, if it is an inversion."""
        return self.lineage[-1]

    def values(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        subject = None if self.subject is None else self.subject.to_dict()
        return {**super().values(), "arrays": [vars(array) for array in self.arrays], "subject": subject}

    @classmethod
    def check_plan(cls, values: Mapping[str, Any], where: str) -> None:
        """Refuse a document that is no plan of a run."""
        RunPlanDocument.of(values, where)

    @classmethod
    def _current(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        geometry = Geometry.from_dict(values.get("geometry"), where)
        if "arrays" not in values:
            values["arrays"] = [vars(array) for array in declared_arrays(values, geometry, where)]
        return {name: value for name, value in values.items() if name not in ("trace_steps", "trace_terms")}

    def contradiction(self) -> str | None:
        """What cannot be true at once, in words; None where all can."""
        if problem := contradiction_of_shards(self.num_rows, self.shard_rows, self.num_shards, self.shards):
            return problem
        for array in self.arrays:
            if self.num_shards > 1 and array.chunk_rows is not None and self.shard_rows % array.chunk_rows:
                return f"chunks of {array.chunk_rows} rows of {array.name} do not fill shards of {self.shard_rows}"
        num_own = self.num_shards if self.shards is None else len(self.shards)
        return f"it has {num_own} shards in {len(self.files)} files" if num_own > len(self.files) else None


@dataclass(frozen=True)
class RunPlanDocument:
    """plan.json of a run as it is read; `RunPlan.document` and `start_run` write it.

    Attributes:
        run_id, method, method_digest, config, provenance: as in RunPlan.
        num_rows, shard_rows, num_shards: sizes of the run.
        images_digest: of the planned images.
        objects: what the run's folder begins with: images and metadata of arrays.
        subject, shards: as in RunPlan.
    """

    run_id: str
    method: str
    method_digest: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    num_rows: Size
    shard_rows: Size
    num_shards: Size
    images_digest: str
    objects: tuple[StoredObject, ...]
    subject: Subject | None = None
    shards: tuple[Count, ...] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> RunPlanDocument:
        """The plan that a document is.

        Raises:
            CorruptArchiveError: it is none.
            ArchiveMismatchError: it names files outside the run's folder.
        """
        found: RunPlanDocument = typed(cls, values, where)
        check_names(found.objects, where)
        problem = contradiction_of_shards(found.num_rows, found.shard_rows, found.num_shards, found.shards)
        if problem:
            raise CorruptArchiveError(f"{where} makes no sense: {problem}: {HOW_TO_REPAIR}")
        return found


def contradiction_of_shards(
    num_rows: int, shard_rows: int, num_shards: int, shards: Collection[int] | None
) -> str | None:
    """What cannot be true at once of the sizes of a run or evaluation; None where all can."""
    if num_shards > MAX_SHARDS or num_shards != -(-num_rows // shard_rows):
        return f"{num_rows} rows in {num_shards} shards of {shard_rows}"
    if shards is not None and (not shards or max(shards) >= num_shards):
        return f"shards up to {max(shards, default=0)} of {num_shards}"
    return None


def encode_header(generator: Mapping[str, str], geometry: Mapping[str, Any], created: str) -> bytes:
    """archive.json: what the archive holds, as JSON values, and since when."""
    told = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, "created": created}
    return encode_document({**told, "generator": dict(generator), "geometry": dict(geometry)}, ARCHIVE_KEY)


@dataclass(frozen=True)
class _Header:
    """archive.json as it is read."""

    generator: GeneratorName
    geometry: dict[str, Any]


def decode_header(data: bytes, where: str) -> tuple[dict[str, str], Geometry]:
    """Generator and geometry of the archive.json that `encode_header` wrote.

    Raises:
        CorruptArchiveError: it is damaged, or makes no sense.
        ArchiveMismatchError: it is of another version of the format.
    """
    values = decode_document(data, where)
    check_version(values, where)
    header: _Header = typed(_Header, values, where)
    return header.generator, Geometry.from_dict(header.geometry, where)


def check_version(values: Mapping[str, Any], name: str) -> None:
    """Refuse a document of a version this package does not know.

    Raises:
        ArchiveMismatchError: it is of another version.
    """
    found = values.get("format_version")
    if type(found) is not int:
        raise CorruptArchiveError(f"{name} does not say its format version: {HOW_TO_REPAIR}")
    if found not in READABLE_VERSIONS:
        readable = ", ".join(str(version) for version in READABLE_VERSIONS)
        raise ArchiveMismatchError(
            f"{name} is of format version {found}, this package reads {readable}: "
            "install the lsap_archive that wrote it"
        )
