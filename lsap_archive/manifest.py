"""The two records that make results visible: commit marker of a shard, manifest of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lsap_archive.documents import decode_document, encode_document
from lsap_archive.errors import ArchiveMismatchError, CorruptArchiveError
from lsap_archive.layout import FORMAT_VERSION, READABLE_VERSIONS
from lsap_archive.subject import Subject


@dataclass(frozen=True)
class StoredObject:
    """One object of a run.

    Attributes:
        name: key relative to the run's folder.
        size: bytes.
        sha256: digest of its content.
        staged: key of the staged copy relative to the run's folder, empty if there never was one.
    """

    name: str
    size: int
    sha256: str
    staged: str = ""


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
            values["objects"] = tuple(StoredObject(**stored) for stored in values["objects"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CorruptArchiveError(f"{name} is not a commit marker ({error})") from error


@dataclass(frozen=True)
class Manifest:
    """A published run; readers start from it.

    Attributes:
        run_id, method, method_digest, config, provenance: as in the plan.
        created: UTC time of publication, ISO 8601; orders the runs of a method.
        num_rows, shard_rows, num_shards: sizes of the run.
        trace_steps, trace_terms: what the trace holds.
        rows_by_status: number of rows of each status.
        summary: what the flow had to say, JSON values.
        generator: {"digest": ..., "name": ...}.
        geometry: {"num_ws": ..., "w_dim": ..., "noise_sides": [...]}.
        schema_version: of the rows.
        files: every object of the run.
        subject: of an edit run, what it edits; None for an inversion.
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

    def encode(self) -> bytes:
        """The manifest as bytes."""
        files = [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in self.files]
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
            values["files"] = tuple(StoredObject(**file) for file in values["files"])
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
        readable = " and ".join(str(version) for version in READABLE_VERSIONS)
        raise ArchiveMismatchError(
            f"{name} is of format version {found}, this package reads {readable}: "
            "install the lsap_archive that wrote it"
        )
