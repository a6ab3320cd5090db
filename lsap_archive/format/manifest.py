"""The two records that make results visible: commit marker of a shard, manifest of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lsap_archive.errors import ArchiveMismatchError, CorruptArchiveError
from lsap_archive.format.documents import decode_document, encode_document
from lsap_archive.format.layout import FORMAT_VERSION, READABLE_VERSIONS, checked_file_name, checked_name
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


@dataclass(frozen=True)
class Manifest:
    """A published run; readers start from it.

    Attributes:
        run_id, method, method_digest, config, provenance: as in the plan.
        created: UTC time of publication by the clock of whoever published it, ISO 8601.
        num_rows, shard_rows, num_shards: sizes of the run.
        trace_steps, trace_terms: what the trace holds.
        rows_by_status: number of rows of each status.
        summary: what the flow had to say, JSON values.
        generator: {"digest": ..., "name": ...}.
        geometry: {"num_ws": ..., "w_dim": ..., "noise_sides": [...]}.
        schema_version: of the rows.
        files: every object of the run.
        subject: of an edit run, what it edits; None for an inversion.
        sequence: orders the manifests of an archive without asking a clock; 0 in those of older versions.
        shards: shards of an edit run that has not all of its subject's, because it makes up for retired ones.
    """

    run_id: str
    method: str
    method_digest: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    created: str
    num_rows: int
    shard_rows: int
    num_shards: int
    trace_steps: tuple[int, ...]
    trace_terms: tuple[str, ...]
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
    def order(self) -> tuple[int, str, str]:
        """Sorts runs, the newest last: those of older versions come first, in the order of their clocks."""
        return self.sequence, "" if self.sequence else self.created, self.run_id

    @property
    def own_shards(self) -> tuple[int, ...]:
        """Numbers of the shards that it has."""
        return tuple(range(self.num_shards)) if self.shards is None else self.shards

    def encode(self) -> bytes:
        """The manifest as bytes."""
        files = [file.to_dict() for file in self.files]
        subject = None if self.subject is None else self.subject.to_dict()
        values = {**vars(self), "files": files, "subject": subject, "format_version": FORMAT_VERSION}
        return encode_document(values, f"the manifest of run {self.run_id}")

    @classmethod
    def decode(cls, data: bytes, name: str) -> Manifest:
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
            checked_name(values["run_id"], f"{name}: run id")
            if values.get("shards") is not None:
                values["shards"] = tuple(values["shards"])
            for part in ("trace_steps", "trace_terms"):
                values[part] = tuple(values[part])
            values["subject"] = Subject.from_dict(values.get("subject"))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CorruptArchiveError(f"{name} is not a manifest ({error})") from error


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
