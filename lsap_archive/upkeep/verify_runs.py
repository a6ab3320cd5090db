"""Is everything of a run there, and is it what was written? One object and one shard's rows in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import OBJECT_ERRORS, ArchiveNotFoundError
from lsap_archive.format.arrays import RunArray
from lsap_archive.format.coordinates import COORDINATES, IMAGE_ID
from lsap_archive.format.documents import decode_document
from lsap_archive.format.layout import (
    COMMIT_FOLDER,
    IMAGES_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    STAGING_FOLDER,
    Geometry,
    chunk_name,
    commit_name,
    image_name,
    previews_name,
    rows_name,
    rows_of_shard,
    run_prefix,
)
from lsap_archive.format.manifest import Manifest, RunPlanDocument, ShardCommit, StoredObject
from lsap_archive.format.plan import images_digest
from lsap_archive.format.previews import decode_previews
from lsap_archive.format.rows import IMAGES_SCHEMA, OK, ROW_SCHEMA, count_by_status
from lsap_archive.format.shards import chunk_of, coordinate_objects, decode_shard
from lsap_archive.reading.checked import digest_or_none, is_vital
from lsap_archive.reading.previews import previews_of_manifest
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.verify_objects import checked_object, readable_table
from lsap_archive.upkeep.verify_publication import checked_plan, verify_records, verify_retirements
from lsap_archive.upkeep.verify_report import VerifyReport
from lsap_archive.upkeep.verify_rows import RowLedger
from lsap_archive.writing.publication import Publication


class PublishedRun:
    """Looks at one published run.

    Attributes:
        publication: the run.
        manifest: of the run.
        report: gets counts and problems.
        hidden: shards that are retired; they are not looked at.
    """

    def __init__(
        self, publication: Publication[Manifest], manifest: Manifest, hidden: frozenset[int], report: VerifyReport
    ) -> None:
        self.publication = publication
        self.store = publication.store
        self.manifest = manifest
        self.hidden = hidden
        self.report = report
        self._files = {file.name: file for file in manifest.files}
        self._metadata: dict[str, bytes | None] = {}

    def verify(self, geometry: Geometry | None, ledger: RowLedger) -> None:
        """Look at every object, and note every row in the ledger; None where the archive does not tell its geometry."""
        manifest, report = self.manifest, self.report
        report.count("published_runs")
        if geometry is not None and Geometry.from_dict(manifest.geometry, self._key(MANIFEST_NAME)) != geometry:
            report.note(self._key(MANIFEST_NAME), str(manifest.geometry), str(geometry), is_damage=False)
        metadata = ("zarr.json", *(f"{array.name}/zarr.json" for array in manifest.arrays))
        begun = [name for name in COORDINATES if f"{name}/zarr.json" in self._files]  # before version 7 there were none
        for name in (PLAN_NAME, IMAGES_NAME, *metadata, *(chunk_name(name, 0, 1) for name in begun)):
            if name not in self._files:
                report.note(self._key(name), "no entry in the manifest", "one")
        found = {name: self._checked(name) for name in self._files if is_vital(name)}
        self._metadata = {name: data for name, data in found.items() if name.endswith(".json")}
        if IMAGES_NAME in found:
            self._verify_images(found[IMAGES_NAME], found.get(chunk_name(IMAGE_ID, 0, 1)))
        self._verify_shards(ledger)
        self._verify_markers()
        verify_retirements(self.publication, report)
        verify_records(self.publication, manifest, report)
        _note_staging(self.publication, set(), report)

    def _verify_shards(self, ledger: RowLedger) -> None:
        totals: dict[str, int] = {}
        shown = [shard for shard in self.manifest.own_shards if shard not in self.hidden]
        num_problems = len(self.report.problems)
        for shard in shown:
            rows = self._verify_shard(shard)
            if rows is not None:
                ledger.add(self.manifest, rows)
                for status, number in count_by_status(rows).items():
                    totals[status] = totals.get(status, 0) + number
        for status, number in totals.items():
            self.report.count(status, number)
        self.report.count("rows", sum(totals.values()))
        self.report.count("retired_shards", len(self.hidden & set(self.manifest.own_shards)))
        whole = len(shown) == len(self.manifest.own_shards) and len(self.report.problems) == num_problems
        if whole and totals != self.manifest.rows_by_status:
            key = self._key(MANIFEST_NAME)
            self.report.note(key, f"rows {totals}", f"rows {self.manifest.rows_by_status}", is_damage=False)

    def _verify_shard(self, shard: int) -> Any:
        """The rows of a shard if they are sound, else None."""
        manifest, report = self.manifest, self.report
        name = rows_name(shard)
        key = self._key(name)
        rows = rows_of_shard(shard, manifest.shard_rows, manifest.num_rows)
        for image in (image_name(row) for row in rows):
            if image in self._files:
                self._checked(image)
        self._verify_previews(shard, rows)
        if name not in self._files:
            report.note(key, "no entry in the manifest", "the rows of the shard")
            return None
        table = readable_table(self._checked(name), ROW_SCHEMA, key, report)
        is_ok = None
        if table is not None and table.column("row").to_pylist() != list(rows):
            report.note(key, f"{table.num_rows} rows", f"rows {rows[0]} to {rows[-1]}")
            table = None
        if table is not None:
            is_ok = np.array([status == OK for status in table.column("status").to_pylist()])
        self._verify_arrays(shard, is_ok)
        return table

    def _verify_arrays(self, shard: int, is_ok: NDArray[np.bool_] | None) -> None:
        for array in self.manifest.arrays:
            chunk = chunk_of(array, shard)
            key = self._key(chunk)
            if chunk not in self._files:
                if array.is_needed and is_ok is not None and is_ok.any():
                    self.report.note(key, "no entry in the manifest", f"values of {is_ok.sum()} ok rows")
                continue
            blob = self._checked(chunk)
            metadata = self._metadata.get(f"{array.name}/zarr.json")
            if blob is not None and metadata is not None and is_ok is not None:
                _verify_values(blob, metadata, shard, key, is_ok, array, self.report)

    def _verify_previews(self, shard: int, rows: range) -> None:
        """Previews are WebP files of the shard's rows; where they were taken away, nothing is lost that is needed."""
        if (stored := self._files.get(previews_name(shard))) is None:
            return
        key = self._key(stored.name)
        if not self.store.exists(key):
            self.report.information.append(f"{key} is not there any more: readers show no previews of these images")
            return
        try:
            data = previews_of_manifest(self.store, key, stored, len(rows))
            decode_previews(data, rows, key)
        except OBJECT_ERRORS as error:
            self.report.note(key, str(error), "previews of the shard")
            return
        self.report.count("objects")
        self.report.count("bytes", len(data))

    def _verify_images(self, data: bytes | None, coordinate: bytes | None) -> None:
        key = self._key(IMAGES_NAME)
        table = readable_table(data, IMAGES_SCHEMA, key, self.report)
        plan = self._metadata.get(PLAN_NAME)
        if table is None or plan is None:
            return
        try:
            where = self._key(PLAN_NAME)
            wanted = RunPlanDocument.of(decode_document(plan, where), where).images_digest
        except OBJECT_ERRORS as error:
            self.report.note(self._key(PLAN_NAME), str(error), "the run's plan")
            return
        if images_digest(table) != wanted:
            self.report.note(key, "other images", f"the planned images, digest {wanted[:16]}")
        elif coordinate is not None:
            ids, name = table.column("image_id").to_pylist(), chunk_name(IMAGE_ID, 0, 1)
            if coordinate_objects(self.manifest, self.manifest.generator["digest"], ids)[name] != coordinate:
                self.report.note(self._key(name), "other image ids", "those of the planned images", is_damage=False)

    def _verify_markers(self) -> None:
        manifest = self.manifest
        for shard in manifest.own_shards:
            key = self._key(commit_name(shard))
            commit = read_commit(self.store, key, self.report)
            if commit is None or shard in self.hidden:
                continue
            differing = [one.name for one in commit.objects if self._files.get(one.name) != _as_published(one)]
            if (commit.run_id, commit.shard) != (manifest.run_id, shard) or differing:
                self.report.note(key, "objects that the manifest does not have", "the marker of this shard")

    def _key(self, name: str) -> str:
        return self.publication.key(name)

    def _checked(self, name: str) -> bytes | None:
        return checked_object(self.store, self._key(name), self._files[name], self.report)


def _as_published(stored: StoredObject) -> StoredObject:
    """As the manifest says it: there is no staged copy any more."""
    return StoredObject(stored.name, stored.size, stored.sha256, checksums=stored.checksums)


def read_commit(store: Store, key: str, report: VerifyReport) -> ShardCommit | None:
    """A commit marker; None if it is missing or damaged, and the problem is noted."""
    try:
        return ShardCommit.decode(store.get(key), key)
    except ArchiveNotFoundError:
        report.note(key, "nothing", "a commit marker")
    except OBJECT_ERRORS as error:
        report.note(key, str(error), "a commit marker")
    return None


def verify_unfinished(publication: Publication[Manifest], report: VerifyReport) -> None:
    """Look at a run that is not published: its plan, its markers, and every object that was committed."""
    store = publication.store
    report.count("unfinished_runs")
    if not publication.is_planned:
        report.information.append(f"{publication.prefix} has no plan: a start that was cut short")
        return
    document = checked_plan(publication, report)
    if document is None:
        return
    plan = RunPlanDocument.of(document, publication.key(PLAN_NAME))
    for stored in plan.objects:
        _verify_committed(publication, stored, report)
    winners = set()
    keys = store.keys(publication.key(COMMIT_FOLDER))
    for key in keys:
        commit = read_commit(store, key, report)
        if commit is None:
            continue
        winners.add(f"{commit.attempt}.{commit.token}")
        for one in commit.objects:
            _verify_committed(publication, one, report)
    num_shards = plan.num_shards if plan.shards is None else len(plan.shards)
    report.information.append(
        f"{publication.prefix} is not published: {len(keys)} of {num_shards} shards are committed"
    )
    _note_staging(publication, winners, report)


def _verify_committed(publication: Publication[Manifest], stored: StoredObject, report: VerifyReport) -> None:
    """An object that was committed: at its final key, or at its staged one and to be copied when all is published."""
    store, key, wanted = publication.store, publication.key(stored.name), (stored.size, stored.sha256)
    report.count("objects")
    found = digest_or_none(store, key)
    again = (publication.key(stored.staged), key) if stored.staged else ()  # promoted meanwhile, perhaps
    if found != wanted and not any(digest_or_none(store, place) == wanted for place in again):
        told = "nothing" if found is None else f"{found[0]} bytes, sha256 {found[1]}"
        report.note(key, told, f"{stored.size} bytes, sha256 {stored.sha256}, here or where it was staged")


def _note_staging(publication: Publication[Manifest], winners: set[str], report: VerifyReport) -> None:
    """Name attempts that were cut short."""
    staged = publication.store.keys(publication.key(STAGING_FOLDER))
    attempts = {key.split("/")[4]: "/".join(key.split("/")[:5]) for key in staged}
    for attempt, folder in sorted(attempts.items()):
        if attempt not in winners:
            report.information.append(f"{folder} was staged and never promoted: an attempt that was cut short")


def verify_subjects(runs: Mapping[str, Manifest], retired: Collection[str], report: VerifyReport) -> None:
    """What runs are made of is there or retired, and has as many rows as they."""
    for run_id, manifest in runs.items():
        for hangs_on in manifest.lineage[1:]:
            subject = runs.get(hangs_on)
            if hangs_on not in retired and (subject is None or subject.num_rows != manifest.num_rows):
                found = "nothing" if subject is None else f"{subject.num_rows} rows"
                wanted = f"{manifest.num_rows} rows in run {hangs_on}, which it is made of"
                report.note(f"{run_prefix(run_id)}/{MANIFEST_NAME}", found, wanted, is_damage=False)


def _verify_values(
    blob: bytes,
    metadata: bytes,
    shard: int,
    key: str,
    is_ok: NDArray[np.bool_],
    array: RunArray,
    report: VerifyReport,
) -> None:
    """Checksums of a shard's object, finite values at ok rows unless there may be gaps, and nothing at the others."""
    try:
        values = decode_shard(metadata, shard, blob, key, len(is_ok), array.item_shape)
    except OBJECT_ERRORS as error:
        report.note(key, str(error), "a Zarr shard")
        return
    wanted = (len(is_ok), *array.item_shape)
    if values.shape != wanted or values.dtype != array.dtype:
        report.note(key, f"{values.dtype}{values.shape}", f"{array.dtype}{wanted}")
        return
    flat = values.reshape(len(values), -1)
    gaps = is_ok & ~np.isfinite(flat).all(axis=1)
    if gaps.any() and not array.has_gaps:
        found = f"values that are not finite at {gaps.sum()} ok rows, first {np.flatnonzero(gaps)[0]}"
        report.note(key, found, "finite values")
    is_empty = np.isnan(flat) if np.isnan(array.fill_value) else flat == array.fill_value
    others = ~is_ok & ~is_empty.all(axis=1)
    if others.any():
        found = f"values at {others.sum()} rows that are not ok, first {np.flatnonzero(others)[0]}"
        report.note(key, found, f"{array.fill_value} at these rows")
