"""The two records that make results visible: commit marker of a shard, manifest of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveMismatchError, CorruptArchiveError
from lsap_archive.format.arrays import RunArray, declared_arrays
from lsap_archive.format.documents import decode_document, encode_document
from lsap_archive.format.layout import (
    ARCHIVE_KEY,
    FORMAT_NAME,
    FORMAT_VERSION,
    READABLE_VERSIONS,
    Geometry,
    checked_file_name,
    checked_name,
)
from lsap_archive.format.subject import Subject


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

    name: str
    size: int
    sha256: str
    staged: str = ""
    checksums: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What a manifest says of it, as JSON values."""
        values = {"name": self.name, "size": self.size, "sha256": self.sha256}
        return values | ({"checksums": self.checksums} if self.checksums else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> StoredObject:
        """The object that `to_dict` wrote, or a plan or commit marker.

        Raises:
            ArchiveMismatchError: its name or that of its staged copy leads out of the run's folder.
        """
        stored = cls(**values)
        checked_file_name(stored.name, where)
        if stored.staged:
            checked_file_name(stored.staged, where)
        return stored


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

    run_id: str
    shard: int
    attempt: str
    token: str
    created: str
    rows_by_status: dict[str, int]
    objects: tuple[StoredObject, ...]

    def encode(self) -> bytes:
        """The marker as bytes."""
        values = {**vars(self), "objects": [vars(stored) for stored in self.objects]}
        return encode_document(values, f"the commit of shard {self.shard} of run {self.run_id}")

    @classmethod
    def decode(cls, data: bytes, name: str) -> ShardCommit:
        """The marker that `encode` wrote.

        Raises:
            CorruptArchiveError: it is damaged.
        """
        values = decode_document(data, name)
        try:
            values["objects"] = tuple(StoredObject.from_dict(stored, name) for stored in values["objects"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CorruptArchiveError(f"{name} is not a commit marker ({error})") from error


class Published:
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
            CorruptArchiveError: it is damaged, or that of another run or evaluation.
            ArchiveMismatchError: a newer version of the format wrote it, or it names what cannot be.
        """
        values = decode_document(data, where)
        check_version(values, where)
        try:
            del values["format_version"]
            values["files"] = tuple(StoredObject.from_dict(file, where) for file in values["files"])
            name = checked_name(values[f"{cls.kind}_id"], f"{where}: {cls.kind} id")
            found = cls(**cls._from_values(values, where))
        except (KeyError, TypeError) as error:
            raise CorruptArchiveError(f"{where} is not a manifest of this kind ({error})") from error
        if owner not in (None, name):
            raise CorruptArchiveError(f"{where} is the manifest of {cls.kind} {name}: {HOW_TO_REPAIR}")
        return found

    @classmethod
    def _from_values(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """Fields that JSON does not give back as they were."""
        return values


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
        subject: of an edit run, what it edits; None for an inversion.
        shards: shards of an edit run that has not all of its subject's, because it makes up for retired ones.
    """

    kind = "run"
    run_id: str
    method: str
    method_digest: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    created: str
    num_rows: int
    shard_rows: int
    num_shards: int
    arrays: tuple[RunArray, ...]
    rows_by_status: dict[str, int]
    summary: dict[str, Any]
    generator: dict[str, str]
    geometry: dict[str, Any]
    schema_version: int
    files: tuple[StoredObject, ...] = field(repr=False)
    subject: Subject | None = None
    sequence: int = 0
    shards: tuple[int, ...] | None = None

    @property
    def own_shards(self) -> tuple[int, ...]:
        """Numbers of the shards that it has."""
        return tuple(range(self.num_shards)) if self.shards is None else self.shards

    def values(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        subject = None if self.subject is None else self.subject.to_dict()
        return {**super().values(), "arrays": [vars(array) for array in self.arrays], "subject": subject}

    @classmethod
    def _from_values(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        arrays = declared_arrays(values, Geometry.from_dict(values["geometry"]), where)
        kept = {name: value for name, value in values.items() if name not in ("trace_steps", "trace_terms")}
        shards = None if values.get("shards") is None else tuple(values["shards"])
        return {**kept, "arrays": arrays, "shards": shards, "subject": Subject.from_dict(values.get("subject"))}


def encode_header(generator: Mapping[str, str], geometry: Mapping[str, Any], created: str) -> bytes:
    """archive.json: what the archive holds, as JSON values, and since when."""
    told = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, "created": created}
    return encode_document({**told, "generator": dict(generator), "geometry": dict(geometry)}, ARCHIVE_KEY)


def check_version(values: Mapping[str, Any], name: str) -> None:
    """Refuse a document of a version this package does not know.

    Raises:
        ArchiveMismatchError: it is of another version.
    """
    found = values.get("format_version")
    if found not in READABLE_VERSIONS:
        readable = ", ".join(str(version) for version in READABLE_VERSIONS)
        raise ArchiveMismatchError(
            f"{name} is of format version {found}, this package reads {readable}: "
            "install the lsap_archive that wrote it"
        )
