"""Is everything of a run there, and is it what was written? One object and one shard's rows in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from lsap_archive.errors import ArchiveError, ArchiveNotFoundError
from lsap_archive.format.arrays import array_layouts, chunk_of, decode_shard
from lsap_archive.format.documents import decode_document
from lsap_archive.format.layout import (
    IMAGES_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    TRACE,
    Geometry,
    commit_key,
    commit_prefix,
    copy_name,
    image_name,
    manifest_key,
    plan_key,
    retired_key,
    retired_prefix,
    rows_name,
    run_prefix,
    sequence_key,
    staging_prefix,
)
from lsap_archive.format.manifest import Manifest, ShardCommit, StoredObject
from lsap_archive.format.plan import images_digest
from lsap_archive.format.rows import IMAGES_SCHEMA, OK, ROW_SCHEMA, count_by_status
from lsap_archive.format.sequence import sequence_document
from lsap_archive.reading.published import digest_or_none, is_vital
from lsap_archive.reading.retirement import Retirement
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.verify_objects import checked_document, checked_object, readable_table
from lsap_archive.upkeep.verify_report import VerifyReport
from lsap_archive.upkeep.verify_rows import RowLedger


class PublishedRun:
    """Looks at one published run.

    Attributes:
        store: the archive's objects.
        manifest: of the run.
        report: gets counts and problems.
        hidden: shards that are retired; they are not looked at.
    """

    def __init__(self, store: Store, manifest: Manifest, hidden: frozenset[int], report: VerifyReport) -> None:
        self.store = store
        self.manifest = manifest
        self.hidden = hidden
        self.report = report
        self._prefix = run_prefix(manifest.run_id)
        self._files = {file.name: file for file in manifest.files}
        self._metadata: dict[str, bytes | None] = {}

    def verify(self, geometry: Geometry, ledger: RowLedger) -> None:
        """Look at every object, and note every row in the ledger."""
        manifest, report = self.manifest, self.report
        report.count("published_runs")
        if Geometry.from_dict(manifest.geometry) != geometry:
            key = manifest_key(manifest.run_id)
            report.note(key, str(manifest.geometry), str(geometry), is_damage=False)
        for name in (PLAN_NAME, IMAGES_NAME, "zarr.json", "w_plus/zarr.json"):
            if name not in self._files:
                report.note(f"{self._prefix}/{name}", "no entry in the manifest", "one")
        vital = [name for name in self._files if is_vital(name)]
        found = {name: self._checked(name) for name in vital}
        self._metadata = {name: data for name, data in found.items() if name.endswith(".json")}
        if IMAGES_NAME in found:
            self._verify_images(found[IMAGES_NAME])
        self._verify_shards(geometry, ledger)
        self._verify_records()
        self._verify_copies(vital)
        self._note_others()

    def _verify_shards(self, geometry: Geometry, ledger: RowLedger) -> None:
        totals: dict[str, int] = {}
        shown = [shard for shard in self.manifest.own_shards if shard not in self.hidden]
        num_problems = len(self.report.problems)
        for shard in shown:
            rows = self._verify_shard(geometry, shard)
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
            key = manifest_key(self.manifest.run_id)
            self.report.note(key, f"rows {totals}", f"rows {self.manifest.rows_by_status}", is_damage=False)

    def _verify_shard(self, geometry: Geometry, shard: int) -> Any:
        """The rows of a shard if they are sound, else None."""
        manifest, report = self.manifest, self.report
        name = rows_name(shard)
        key = f"{self._prefix}/{name}"
        start = shard * manifest.shard_rows
        rows = range(start, min(start + manifest.shard_rows, manifest.num_rows))
        for image in (image_name(row) for row in rows):
            if image in self._files:
                self._checked(image)
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
        self._verify_arrays(geometry, shard, is_ok)
        return table

    def _verify_arrays(self, geometry: Geometry, shard: int, is_ok: np.ndarray[Any, np.dtype[np.bool_]] | None) -> None:
        manifest = self.manifest
        steps, terms = manifest.trace_steps, manifest.trace_terms
        for layout in array_layouts(geometry, steps, terms, has_noise=manifest.subject is None).values():
            chunk = chunk_of(layout, shard)
            key = f"{self._prefix}/{chunk}"
            if chunk not in self._files:
                if layout.name == "w_plus" and is_ok is not None and is_ok.any():
                    self.report.note(key, "no entry in the manifest", f"{is_ok.sum()} codes")
                continue
            blob = self._checked(chunk)
            array_json = self._metadata.get(f"{layout.name}/zarr.json")
            if blob is not None and array_json is not None and is_ok is not None:
                _verify_values(blob, array_json, shard, key, is_ok, layout.name, self.report)

    def _verify_images(self, data: bytes | None) -> None:
        key = f"{self._prefix}/{IMAGES_NAME}"
        table = readable_table(data, IMAGES_SCHEMA, key, self.report)
        plan = self._metadata.get(PLAN_NAME)
        if table is None or plan is None:
            return
        try:
            wanted = decode_document(plan, plan_key(self.manifest.run_id))["images_digest"]
        except ArchiveError as error:
            self.report.note(plan_key(self.manifest.run_id), str(error), "the run's plan")
            return
        if images_digest(table) != wanted:
            self.report.note(key, "other images", f"the planned images, digest {wanted[:16]}")

    def _verify_records(self) -> None:
        """The small documents beside the manifest: commit markers, retirements, the number that it was given."""
        manifest, report = self.manifest, self.report
        for shard in manifest.own_shards:
            key = commit_key(manifest.run_id, shard)
            commit = read_commit(self.store, key, report)
            if commit is None or shard in self.hidden:
                continue
            differing = [one.name for one in commit.objects if self._files.get(one.name) != _as_published(one)]
            if (commit.run_id, commit.shard) != (manifest.run_id, shard) or differing:
                report.note(key, "objects that the manifest does not have", "the marker of this shard")
        verify_retirements(self.store, manifest.run_id, report)
        if manifest.sequence:
            key, wanted = sequence_key(manifest.sequence), sequence_document(manifest.run_id)
            document = checked_document(self.store, key, f"the number of run {manifest.run_id}", report)
            if document is not None and decode_document(wanted, key) != document:
                report.note(key, f"the number of {document.get('of')}", f"that of run {manifest.run_id}")

    def _verify_copies(self, vital: list[str]) -> None:
        there = set(self.store.keys(f"{self._prefix}/_copy"))
        missing = [name for name in vital if f"{self._prefix}/{copy_name(name)}" not in there]
        for name in vital:
            if name not in missing:
                self._checked(name, of=copy_name(name))
        key = f"{self._prefix}/{copy_name(MANIFEST_NAME)}"
        if key not in there:
            missing.append(MANIFEST_NAME)
        elif self.store.get(key) != self.store.get(manifest_key(self.manifest.run_id)):
            self.report.note(key, "another document", "a copy of the manifest")
        if missing:
            self.report.information.append(
                f"{self._prefix} has no copy of {len(missing)} objects that all of it hangs on: "
                "`lsap archive repair` makes them"
            )

    def _note_others(self) -> None:
        """Objects of a published run that its manifest does not name."""
        run_id = self.manifest.run_id
        note_staging(self.store, run_id, set(), self.report)
        folders = (staging_prefix(run_id), commit_prefix(run_id), retired_prefix(run_id), f"{self._prefix}/_copy")
        known = (*(f"{folder}/" for folder in folders), manifest_key(run_id))
        for key in self.store.keys(self._prefix):
            if key.removeprefix(f"{self._prefix}/") not in self._files and not key.startswith(known):
                self.report.information.append(f"{key} is named by no manifest")

    def _checked(self, name: str, *, of: str | None = None) -> bytes | None:
        return checked_object(self.store, f"{self._prefix}/{of or name}", self._files[name], self.report)


def _as_published(stored: StoredObject) -> StoredObject:
    """As the manifest says it: there is no staged copy any more."""
    return StoredObject(stored.name, stored.size, stored.sha256, checksums=stored.checksums)


def read_commit(store: Store, key: str, report: VerifyReport) -> ShardCommit | None:
    """A commit marker; None if it is missing or damaged, and the problem is noted."""
    document = checked_document(store, key, "a commit marker", report)
    if document is None:
        return None
    try:
        return ShardCommit.decode(store.get(key), key)
    except ArchiveError as error:
        report.note(key, str(error), "a commit marker")
        return None


def verify_retirements(store: Store, run_id: str, report: VerifyReport) -> None:
    """The documents that say why shards of a run are retired: damaged ones retire them all the same."""
    for key in store.keys(retired_prefix(run_id)):
        try:
            why = Retirement.decode(store.get(key), key)
        except ArchiveNotFoundError:
            continue
        except ArchiveError as error:
            report.note(key, str(error), "why this is retired")
            continue
        what = run_prefix(run_id) if key == retired_key(run_id, None) else f"shard {why.shard} of {run_prefix(run_id)}"
        report.information.append(f"{what} is retired: {'; '.join(why.problems)}")


def verify_unfinished(store: Store, run_id: str, report: VerifyReport) -> None:
    """Look at a run that is not published: its plan, its markers, and every object that was committed."""
    report.count("unfinished_runs")
    if not store.exists(plan_key(run_id)):
        report.information.append(f"{run_prefix(run_id)} has no plan: a start that was cut short")
        return
    plan = checked_document(store, plan_key(run_id), "the run's plan", report)
    if plan is None:
        return
    for stored in plan["objects"]:
        _verify_committed(store, run_id, StoredObject.from_dict(stored, plan_key(run_id)), report)
    winners = set()
    keys = store.keys(commit_prefix(run_id))
    for key in keys:
        commit = read_commit(store, key, report)
        if commit is None:
            continue
        winners.add(f"{commit.attempt}.{commit.token}")
        for one in commit.objects:
            _verify_committed(store, run_id, one, report)
    num_shards = plan["num_shards"] if plan.get("shards") is None else len(plan["shards"])
    report.information.append(
        f"{run_prefix(run_id)} is not published: {len(keys)} of {num_shards} shards are committed"
    )
    note_staging(store, run_id, winners, report)


def _verify_committed(store: Store, run_id: str, stored: StoredObject, report: VerifyReport) -> None:
    """An object that was committed: at its final key, or at its staged one and to be copied when all is published."""
    key, wanted = f"{run_prefix(run_id)}/{stored.name}", (stored.size, stored.sha256)
    report.count("objects")
    places = [key, f"{run_prefix(run_id)}/{stored.staged}", key] if stored.staged else [key]
    found = [digest_or_none(store, place) for place in places[:1]]
    while found[-1] != wanted and len(found) < len(places):  # the last look: it may have been promoted meanwhile
        found.append(digest_or_none(store, places[len(found)]))
    if found[-1] != wanted:
        told = "nothing" if found[0] is None else f"{found[0][0]} bytes, sha256 {found[0][1]}"
        report.note(key, told, f"{stored.size} bytes, sha256 {stored.sha256}, here or where it was staged")


def note_staging(store: Store, run_id: str, winners: set[str], report: VerifyReport) -> None:
    """Name attempts that were cut short."""
    attempts = {key.split("/")[4]: "/".join(key.split("/")[:5]) for key in store.keys(staging_prefix(run_id))}
    for attempt, folder in sorted(attempts.items()):
        if attempt not in winners:
            report.information.append(f"{folder} was staged and never promoted: an attempt that was cut short")


def verify_subjects(runs: Mapping[str, Manifest], retired: Collection[str], report: VerifyReport) -> None:
    """What is edited is there or retired, and has as many rows as its edit."""
    for run_id, manifest in runs.items():
        if manifest.subject is None or manifest.subject.run_id in retired:
            continue
        subject = runs.get(manifest.subject.run_id)
        if subject is None or subject.num_rows != manifest.num_rows:
            found = "nothing" if subject is None else f"{subject.num_rows} rows"
            wanted = f"{manifest.num_rows} rows in run {manifest.subject.run_id}, which it edits"
            report.note(manifest_key(run_id), found, wanted, is_damage=False)


def _verify_values(
    blob: bytes,
    array_json: bytes,
    shard: int,
    key: str,
    is_ok: np.ndarray[Any, np.dtype[np.bool_]],
    array: str,
    report: VerifyReport,
) -> None:
    """Checksums of a shard's object, and NaN exactly at rows that are not ok (the trace may have gaps)."""
    try:
        values = decode_shard(array_json, shard, blob, key)
    except ArchiveError as error:
        report.note(key, str(error), "a Zarr shard")
        return
    if len(values) != len(is_ok):
        report.note(key, f"{len(values)} rows", f"{len(is_ok)} rows")
        return
    flat = values.reshape(len(values), -1)
    finite = np.isfinite(flat).all(axis=1)
    empty = np.isnan(flat).all(axis=1)
    if array != TRACE and (is_ok & ~finite).any():
        rows = np.flatnonzero(is_ok & ~finite)
        report.note(key, f"values that are not finite at {len(rows)} ok rows, first {rows[0]}", "finite values")
    if (~is_ok & ~empty).any():
        rows = np.flatnonzero(~is_ok & ~empty)
        report.note(key, f"values at {len(rows)} rows that are not ok, first {rows[0]}", "NaN at these rows")
