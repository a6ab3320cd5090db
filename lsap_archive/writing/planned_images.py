"""What the runs of an archive were planned with, a run at a time: what a planner subtracts from a source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive.errors import ArchiveNotFoundError
from lsap_archive.format.layout import IMAGES_NAME, rows_name, run_prefix
from lsap_archive.format.manifest import Manifest, ShardCommit, StoredObject
from lsap_archive.format.rows import (
    DUPLICATE,
    FAILED,
    IMAGES_SCHEMA,
    OF_READER,
    ROW_SCHEMA,
    UNSETTLED,
    hangs_on_fit,
)
from lsap_archive.reading.checked import read_checked_table, read_row_files
from lsap_archive.reading.retirement import retired_of
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.writing.run_writer import RunWriter

NUM_UNSETTLED = "unsettled"
"""In the summary of a manifest: how many rows of the run are unsettled."""
NUM_OF_READER = "of_reader"
"""Likewise: how many failed for a reason of `OF_READER`."""
_SHARDS_TOGETHER = 64  # files of rows that are read at once


@dataclass(frozen=True)
class PlannedImages:
    """The images of one inversion, published or not.

    Attributes:
        run: the run.
        is_published: whether readers see it.
        images: what it was planned with, in IMAGES_SCHEMA, without the images of retired shards.
        unsettled: ids of images whose planned content was not there when it was their turn, or was left to such a one.
        of_reader: image id -> reason, of images that failed for a reason of `OF_READER`.
        order: of a published run: sorts them, the newest last.
    """

    run: RunWriter
    is_published: bool
    images: pa.Table
    unsettled: frozenset[str] = frozenset()
    of_reader: Mapping[str, str] = field(default_factory=dict)
    order: tuple[int, str, str] = (0, "", "")


@dataclass(frozen=True)
class _Published:
    """What is needed of a manifest, which is a hundred times larger."""

    order: tuple[int, str, str]
    images: StoredObject
    rows: tuple[StoredObject, ...]  # of runs that have rows to be looked at, or may have


@dataclass(frozen=True)
class _Open:
    """What is to be tried again, at once or by a machine that reads more; as in PlannedImages."""

    unsettled: frozenset[str]
    of_reader: Mapping[str, str]


def planned_images(runs: list[RunWriter]) -> Iterator[PlannedImages]:
    """The images of inversions: of published runs, the newest last, and then of the unfinished ones by id.

    One run is in memory at a time.

    Args:
        runs: as `ArchiveWriter.runs` gives them; edits among them are passed over.

    Raises:
        CorruptArchiveError: a plan is missing or altered.
        StoreUnavailableError: the store does not answer or refuses.
    """
    inversions = [run for run in runs if run.subject is None]
    published = dict(zip([run.run_id for run in inversions], in_threads(_published, inversions), strict=True))
    orders = {run_id: one.order for run_id, one in published.items() if one is not None}
    for run in sorted((run for run in inversions if run.run_id in orders), key=lambda run: orders[run.run_id]):
        one = published[run.run_id]
        assert one is not None
        yield _of_published(run, one)
    for run in inversions:
        if run.run_id not in orders:
            yield PlannedImages(run, False, run.images)


def published_rows(run: RunWriter, columns: list[str]) -> Iterator[pa.Table]:
    """Rows of a published run as they were written, some shards at a time, without those of retired shards.

    Args:
        run: a published inversion.
        columns: names from ROW_SCHEMA.

    Raises:
        ArchiveNotFoundError: it is not published.
        CorruptArchiveError: a file is missing or altered.
    """
    hidden = {rows_name(shard) for shard in retired_of(run.store, run.run_id).shards}
    files = [file for file in run.manifest().files if file.name.startswith("rows/") and file.name not in hidden]
    for start in range(0, len(files), _SHARDS_TOGETHER):
        yield from read_row_files(run.store, run.run_id, files[start : start + _SHARDS_TOGETHER], columns)


def committed_rows(run: RunWriter, commit: ShardCommit, columns: list[str]) -> pa.Table:
    """Rows of a committed shard as they were written, whether or not their run is published.

    Args:
        run: the run.
        commit: of the shard.
        columns: names from ROW_SCHEMA.

    Raises:
        CorruptArchiveError: the file is missing or altered.
    """
    (stored,) = (one for one in commit.objects if one.name == rows_name(commit.shard))
    key, staged = (f"{run_prefix(run.run_id)}/{name}" for name in (stored.name, stored.staged))
    where = key if run.store.exists(key) else staged  # a kill may have left it there
    return read_checked_table(run.store, where, stored, ROW_SCHEMA, columns)


def count_open(run: RunWriter) -> dict[str, int]:
    """How many rows of a fully committed run may be tried again; for the summary that it is published with."""
    commits = in_threads(run.commit_of, run.own_shards)
    names = {rows_name(commit.shard) for commit in commits if commit.rows_by_status[FAILED]}
    files = [stored for commit in commits for stored in commit.objects if stored.name in names]
    found = _open_of(run, files)
    return {NUM_UNSETTLED: len(found.unsettled), NUM_OF_READER: len(found.of_reader)}


def unfitted(run: RunWriter) -> frozenset[str]:
    """Ids of images that became what they would with any `fit`, as far as the committed shards of a run tell."""
    columns = ["image_id", "digest", "width", "reason", "altered"]
    may_be_fitted = run.plan["config"].get("fit") != "refuse"  # where rows do not tell
    commits = in_threads(run.commit_of, sorted(run.committed_shards()))
    tables = in_threads(lambda commit: committed_rows(run, commit, columns), commits)
    rows = [row for table in tables for row in table.to_pylist()]
    told = [hangs_on_fit(row) for row in rows]
    fitted = {
        row["digest"] for row, is_so in zip(rows, told, strict=True) if is_so or (is_so is None and may_be_fitted)
    }
    return frozenset(row["image_id"] for row in rows if row["digest"] not in fitted)


def _published(run: RunWriter) -> _Published | None:
    try:
        manifest = run.manifest()
    except ArchiveNotFoundError:
        return None
    return _Published(manifest.order, manifest.file(IMAGES_NAME), _rows_to_look_at(manifest))


def _rows_to_look_at(manifest: Manifest) -> tuple[StoredObject, ...]:
    told = [manifest.summary.get(name) for name in (NUM_UNSETTLED, NUM_OF_READER)]
    if not manifest.rows_by_status[FAILED] or told == [0, 0]:
        return ()
    return tuple(file for file in manifest.files if file.name.startswith("rows/"))


def _of_published(run: RunWriter, published: _Published) -> PlannedImages:
    key = f"{run_prefix(run.run_id)}/{IMAGES_NAME}"
    images = read_checked_table(run.store, key, published.images, IMAGES_SCHEMA)
    retired = retired_of(run.store, run.run_id).shards
    if retired:
        shards = pc.divide(images.column("row"), run.shard_rows)
        images = images.filter(pc.invert(pc.is_in(shards, pa.array(sorted(retired), pa.int64()))))
    hidden = {rows_name(shard) for shard in retired}
    files = [file for file in published.rows if file.name not in hidden]
    found = _open_of(run, files)
    return PlannedImages(run, True, images, found.unsettled, found.of_reader, published.order)


def _open_of(run: RunWriter, files: list[StoredObject]) -> _Open:
    """Images that could be read when they were planned, and could not, or were others, at their turn; or not decoded.

    Those that were left to one that was not there, because they have the same content, are among them.
    """
    found: list[str] = []
    of_reader: dict[str, str] = {}
    copies: list[pa.Table] = []
    columns = ["image_id", "digest", "status", "reason", "duplicate_of"]
    for table in read_row_files(run.store, run.run_id, files, columns):
        was_read = pc.invert(pc.starts_with(table.column("digest"), "unreadable:"))
        failed = table.filter(pc.and_(pc.equal(table.column("status"), FAILED), was_read))
        for image_id, reason in zip(*(failed.column(name).to_pylist() for name in ("image_id", "reason")), strict=True):
            if reason in UNSETTLED:
                found.append(image_id)
            elif reason in OF_READER:
                of_reader[image_id] = reason
        copies.append(table.filter(pc.equal(table.column("status"), DUPLICATE)))
    originals = pa.array(found, pa.string())
    for table in copies if found else ():
        found += table.filter(pc.is_in(table.column("duplicate_of"), originals)).column("image_id").to_pylist()
    return _Open(frozenset(found), of_reader)
