"""Writing one run: shards in any order, from any process, each kept once; then publishing it.

A shard is *staged* under keys of its own attempt, *committed* by one create-only marker, *promoted* by copies
inside the store to its final keys, and the run is *published* by a manifest put last. Any step may be killed
and repeated, by anybody, at any time: the marker decides which attempt's rows and codes are kept, together.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lsap_archive.errors import (
    HOW_TO_REPAIR,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    IncompleteRunError,
)
from lsap_archive.format.arrays import RunArray, check_arrays, declared_arrays
from lsap_archive.format.documents import as_json, sha256_of, utc_now
from lsap_archive.format.layout import (
    COMMIT_FOLDER,
    IMAGES_FOLDER,
    IMAGES_NAME,
    PLAN_NAME,
    PREVIEWS_FOLDER,
    ROWS_FOLDER,
    STAGING_FOLDER,
    Geometry,
    attempt_name,
    checked_name,
    commit_name,
    image_name,
    previews_name,
    rows_name,
    rows_of_shard,
)
from lsap_archive.format.manifest import Manifest, RunPlanDocument, ShardCommit, StoredObject
from lsap_archive.format.plan import images_digest
from lsap_archive.format.previews import Preview, encode_previews
from lsap_archive.format.rows import (
    IMAGES_SCHEMA,
    OK,
    SCHEMA_VERSION,
    STATUSES,
    conform_rows,
    count_by_status,
    from_parquet,
    to_parquet,
)
from lsap_archive.format.sequence import given_sequence, next_sequence
from lsap_archive.format.shards import chunk_of, encode_shard, shard_checksums
from lsap_archive.reading.checked import describe, digest_or_none, measured_object, read_header
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store
from lsap_archive.writing.publication import Publication
from lsap_archive.writing.published_lists import keep_published_lists


class RunWriter:
    """One run, opened for writing; light enough to open in every worker.

    Attributes:
        store: the archive's objects.
        run_id: the run.
        generator: as in ArchiveWriter.
        geometry: sizes of the generator's inputs.
        plan: plan.json (run_id, method, method_digest, config, provenance, num_rows, shard_rows, num_shards, and shards
            where the run has not all of its subject's).
        subject: of a refinement or an edit, what it is made of; None for an inversion.
        arrays: what it keeps of each image, by name.
    """

    def __init__(self, store: Store, run_id: str, generator: dict[str, str], geometry: Geometry) -> None:
        self.store = store
        self.run_id = run_id
        self.generator = generator
        self.geometry = geometry
        self._publication = Publication(store, Manifest, run_id)
        self._prefix = self._publication.prefix
        self.plan = self._publication.read_plan()
        where = store.join(self._publication.key(PLAN_NAME))
        document = RunPlanDocument.of(self.plan, where)
        self.subject, self._planned_objects = document.subject, document.objects
        declared = declared_arrays(self.plan, geometry, where)
        check_arrays(declared, geometry, where)
        self.arrays = {array.name: array for array in declared}
        self._metadata: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"RunWriter({self.store.url!r}, {self.run_id!r})"

    @classmethod
    def open(cls, url: str, run_id: str, storage_options: Mapping[str, Any] | None = None) -> RunWriter:
        """A run that was started, from the archive's URL alone.

        Raises:
            ArchiveNotFoundError: no such archive or run.
            StoreUnavailableError: the store does not answer or refuses.
        """
        store = Store.from_url(url, storage_options)
        return cls(store, run_id, *read_header(store))

    @property
    def num_rows(self) -> int:
        """N, images of the run."""
        return int(self.plan["num_rows"])

    @property
    def shard_rows(self) -> int:
        """Rows of a shard; the last one may have fewer."""
        return int(self.plan["shard_rows"])

    @property
    def num_shards(self) -> int:
        """How many shards the run has."""
        return int(self.plan["num_shards"])

    @property
    def own_shards(self) -> tuple[int, ...]:
        """Numbers of the shards that it has: all, but of one that makes up for retired ones only those."""
        shards = self.plan.get("shards")
        return tuple(range(self.num_shards)) if shards is None else tuple(shards)

    @property
    def is_published(self) -> bool:
        """Whether readers see the run."""
        return self._publication.is_published

    @cached_property
    def images(self) -> pa.Table:
        """The planned images in IMAGES_SCHEMA.

        Raises:
            CorruptArchiveError: images.parquet is damaged or not that of the plan.
        """
        key = f"{self._prefix}/{IMAGES_NAME}"
        table = from_parquet(self.store.get(key), IMAGES_SCHEMA, self.store.join(key))
        if images_digest(table) != self.plan["images_digest"]:
            raise CorruptArchiveError(f"{self.store.join(key)} does not hold the planned images: {HOW_TO_REPAIR}")
        return table

    def rows_of(self, shard: int) -> range:
        """Rows of a shard in the run's arrays.

        Raises:
            ArchiveMismatchError: no such shard.
        """
        if shard not in self.own_shards:
            raise ArchiveMismatchError(
                f"run {self.run_id} has shards {self.own_shards[0]} to {self.own_shards[-1]}, not {shard}"
            )
        return rows_of_shard(shard, self.shard_rows, self.num_rows)

    def planned_rows(self, shard: int) -> pa.Table:
        """The planned images of a shard in IMAGES_SCHEMA."""
        rows = self.rows_of(shard)
        return self.images.slice(rows.start, len(rows))

    def committed_shards(self) -> set[int]:
        """Shards that some attempt has won; they need no more work."""
        keys = self.store.keys(self._publication.key(COMMIT_FOLDER))
        return {int(key.rsplit("/", 1)[1].removesuffix(".json")) for key in keys}

    def is_committed(self, shard: int) -> bool:
        """Whether some attempt has won the shard."""
        return self.store.exists(self._publication.key(commit_name(shard)))

    def missing_shards(self) -> list[int]:
        """Shards that still need work, in order."""
        return sorted(set(self.own_shards) - self.committed_shards())

    def commit_of(self, shard: int) -> ShardCommit:
        """Which attempt won a shard.

        Raises:
            ArchiveNotFoundError: none yet.
        """
        self.rows_of(shard)
        key = self._publication.key(commit_name(shard))
        return ShardCommit.decode(self.store.get(key), self.store.join(key))

    def write_shard(
        self,
        shard: int,
        arrays: Mapping[str, NDArray[Any]],
        rows: pa.Table,
        attempt: str,
        *,
        images: Iterable[tuple[int, bytes]] = (),
        previews: Iterable[Preview] = (),
    ) -> bool:
        """Write a shard: stage, commit, promote. Writing it again changes nothing.

        Args:
            shard: number of the shard.
            arrays: by name, as the plan declares them, each [rows of the shard, ...] in the plan's order; what is not
                needed may be left out. What stands at rows that are not "ok" is not written: these hold NaN, or 0.
            rows: pyarrow table, see `lsap_archive.format.rows.conform_rows`.
            attempt: who does it, e.g. "actor-3-try-1"; kept in the rows.
            images: (row, PNG file) of ok rows of this shard to keep, of an edit run only; may be made one by one.
            previews: small WebP pictures of ok rows of this shard; asked for after the images were, so that both may
                be made in one pass.

        Returns:
            Whether this attempt won the shard. If not, its results are dropped: another attempt's are kept.

        Raises:
            ArchiveMismatchError: arrays or rows are not those of the plan, or an ok row is not finite.
                Nothing was written.
            StoreUnavailableError: the store does not answer or refuses; the same call may be tried again.
        """
        self.rows_of(shard)
        if self.is_committed(shard):
            self._tidy_lost()
            return False
        staged = self.stage(shard, arrays, rows, attempt, images=images, previews=previews)
        if not self.commit(staged):
            self.discard(staged)
            return False
        self.promote(staged)
        return True

    def stage(
        self,
        shard: int,
        arrays: Mapping[str, NDArray[Any]],
        rows: pa.Table,
        attempt: str,
        *,
        images: Iterable[tuple[int, bytes]] = (),
        previews: Iterable[Preview] = (),
    ) -> ShardCommit:
        """First step of write_shard: write everything under keys of this attempt alone."""
        checked_name(attempt, "attempt")
        table = conform_rows(
            rows,
            planned=self.planned_rows(shard),
            run_id=self.run_id,
            method=self.plan["method"],
            shard=shard,
            attempt=attempt,
            subject=self.subject,
        )
        is_ok = np.array([status == OK for status in table.column("status").to_pylist()])
        self._check_names(arrays, shard)
        token = uuid.uuid4().hex[:12]
        folder = attempt_name(shard, f"{attempt}.{token}")
        for name, values in arrays.items():
            self._check_values(self.arrays[name], values, is_ok, shard)
        objects = []
        for name, values in sorted(arrays.items()):
            array = self.arrays[name]
            kept = np.array(values)  # a copy: the caller's array stays as it is
            kept[~is_ok] = array.fill_value
            metadata = self._array_metadata(name)
            data = encode_shard(metadata, shard, kept)
            if data is not None:
                checksums = shard_checksums(metadata, data)
                objects.append(self._stage_object(folder, chunk_of(array, shard), data, checksums))
        for row, png in images:
            self._check_image(row, is_ok, shard)
            objects.append(self._stage_object(folder, image_name(row), png))
        file = encode_previews(self._checked_previews(previews, is_ok, shard), f"shard {shard} of run {self.run_id}")
        if file is not None:
            objects.append(self._stage_object(folder, previews_name(shard), file))
        objects.append(self._stage_object(folder, rows_name(shard), to_parquet(table)))
        return ShardCommit(
            run_id=self.run_id,
            shard=shard,
            attempt=attempt,
            token=token,
            created=utc_now(),
            rows_by_status=count_by_status(table),
            objects=tuple(objects),
        )

    def commit(self, staged: ShardCommit) -> bool:
        """Second step: the create-only marker. The store decides the one winner.

        Returns:
            Whether `staged` won. It is True as well if its marker was written and the answer got lost.
        """
        if self.store.create(self._publication.key(commit_name(staged.shard)), staged.encode()):
            return True
        winner = self.commit_of(staged.shard)
        return (winner.attempt, winner.token) == (staged.attempt, staged.token)

    def promote(self, commit: ShardCommit) -> None:
        """Third step: copy the winner's objects to their final keys. Anybody may do it, any number of times.

        Raises:
            CorruptArchiveError: a staged object is gone and the run is neither published nor given up.
        """
        in_threads(self.promote_object, commit.objects)

    def promote_object(self, stored: StoredObject) -> None:
        """Copy one committed object from its staged to its final key."""
        try:
            self.store.copy(f"{self._prefix}/{stored.staged}", f"{self._prefix}/{stored.name}")
        except ArchiveNotFoundError as error:
            # Publishing removes the staged objects: then all was promoted before. So does giving the run up.
            if not self.is_published and not self.is_given_up:
                raise CorruptArchiveError(
                    f"{self.store.url}/{self._prefix}/{stored.staged} is gone and {stored.name} needs it: "
                    f"{HOW_TO_REPAIR}"
                ) from error

    def promote_committed(self) -> list[str]:
        """Repair: promote every committed object that is absent from its final key or has another size.

        Returns:
            Names of the objects that were copied.
        """
        sizes = self.store.sizes(self._prefix)
        commits = in_threads(self.commit_of, sorted(self.committed_shards()))
        wanted = [stored for commit in commits for stored in commit.objects]
        behind = [stored for stored in wanted if sizes.get(f"{self._prefix}/{stored.name}") != stored.size]
        in_threads(self.promote_object, behind)
        return [stored.name for stored in behind]

    def discard(self, staged: ShardCommit) -> None:
        """Remove what an attempt staged; only for one that lost."""
        folder = attempt_name(staged.shard, f"{staged.attempt}.{staged.token}")
        self.store.delete_folder(f"{self._prefix}/{folder}")
        self._tidy_lost()

    def _tidy_lost(self) -> None:
        """Leave nothing of a shard that was lost: who published the run may have tidied up before this was written."""
        if self.is_published:
            self.store.delete_folder(self._publication.key(STAGING_FOLDER))

    def publish(self, summary: Mapping[str, Any]) -> bool:
        """Make the run visible: check every object against its commit, then put the manifest.

        May be called again, and by two coordinators at once; what was staged is removed at the end.

        Args:
            summary: what the flow has to say about the run, JSON values.

        Returns:
            Whether this call published the run; False if it was published already.

        Raises:
            IncompleteRunError: shards are missing; the message names them.
            CorruptArchiveError: an object is not what was committed and its staged copy cannot repair it.
        """
        won = self.show(summary)
        self.tidy()
        return won

    def show(self, summary: Mapping[str, Any]) -> bool:
        """First step of publish: put the manifest."""
        return self._publication.publish(lambda: self._verified_manifest(summary))

    def tidy(self) -> None:
        """Last step of publish: copies for repair, lists for other readers, and what was staged is removed.

        It may be repeated at any time.
        """
        self._publication.keep_copies()
        keep_published_lists(self.store, self.run_id)
        self.store.delete_temporary(self._prefix)
        self.store.delete_folder(self._publication.key(STAGING_FOLDER))  # last: it tells whether all is done

    @property
    def is_tidy(self) -> bool:
        """Whether nothing is left of what was staged; while it is not published or given up, there may be."""
        return not self.store.has_folder(self._publication.key(STAGING_FOLDER))

    @property
    def is_given_up(self) -> bool:
        """Whether the run is retired: no reader sees it, or will, and nobody goes on with it."""
        return self._publication.is_retired

    def why_given_up(self) -> str:
        """What whoever gave it up says."""
        return self._publication.why_retired()

    def refuse_given_up(self) -> None:
        """Make sure that the run was not given up; what was made of it since is removed then.

        Raises:
            IncompleteRunError: it was.
        """
        if self.is_given_up:
            why = self.why_given_up()
            self.give_up(why)
            raise IncompleteRunError(
                f"run {self.run_id} was given up while it was worked on ({why}): run the same command again"
            )

    def give_up(self, reason: str) -> None:
        """Retire the run, and remove what was made of it while it was not published.

        Whoever works on it meanwhile is not disturbed, and finds at the end that it was given up. Its plan and its
        markers stay. May be called again, to remove what such a worker left.

        Args:
            reason: one sentence that tells why; that of the first call is kept.
        """
        self._publication.retire([reason])
        arrays = (f"{name}/c" for name in self.arrays)
        self._publication.remove_work((ROWS_FOLDER, IMAGES_FOLDER, PREVIEWS_FOLDER, *arrays, STAGING_FOLDER))
        self.store.delete_temporary(self._prefix)
        if self.is_published:  # somebody was at it meanwhile
            keep_published_lists(self.store)

    def _verified_manifest(self, summary: Mapping[str, Any]) -> Manifest:
        """The manifest of a run whose shards are all committed, every object checked in full."""
        self._publication.check_complete(self.missing_shards(), len(self.own_shards))
        commits, sizes = in_threads(self.commit_of, self.own_shards), self.store.sizes(self._prefix)
        in_threads(lambda stored: self._verify_object(stored, sizes), self._objects_of(commits))
        sequence = next_sequence(self.store, self.run_id)
        return self._new_manifest(commits, summary, created=utc_now(), sequence=sequence)

    def manifest_of_markers(self) -> Manifest:
        """The manifest of a published run put together once more, for repair; without what the flow had to say.

        Raises:
            ArchiveNotFoundError, CorruptArchiveError: a commit marker is missing or damaged.
        """
        commits = in_threads(self.commit_of, self.own_shards)
        newest = max(commit.created for commit in commits)
        return self._new_manifest(commits, {}, created=newest, sequence=given_sequence(self.store, self.run_id))

    def manifest(self) -> Manifest:
        """The run's manifest.

        Raises:
            ArchiveNotFoundError: the run is not published.
        """
        return self._publication.manifest()

    def _new_manifest(
        self, commits: list[ShardCommit], summary: Mapping[str, Any], *, created: str, sequence: int
    ) -> Manifest:
        plan = measured_object(self.store, self._prefix, PLAN_NAME)
        kept = ("method", "method_digest", "config", "provenance", "num_rows", "shard_rows", "num_shards")
        return Manifest(
            run_id=self.run_id,
            created=created,
            arrays=tuple(self.arrays.values()),
            rows_by_status={status: sum(c.rows_by_status[status] for c in commits) for status in STATUSES},
            summary=as_json(dict(summary), f"the summary of run {self.run_id}"),
            generator=self.generator,
            geometry=self.geometry.to_dict(),
            schema_version=SCHEMA_VERSION,
            subject=self.subject,
            files=(plan, *self._objects_of(commits)),
            sequence=sequence,
            shards=None if self.plan.get("shards") is None else tuple(self.plan["shards"]),
            **{name: self.plan[name] for name in kept},
        )

    def _objects_of(self, commits: list[ShardCommit]) -> list[StoredObject]:
        """Every object of the run but the plan: what the plan names, and what was committed."""
        return [*self._planned_objects, *(stored for commit in commits for stored in commit.objects)]

    def _verify_object(self, stored: StoredObject, sizes: Mapping[str, int]) -> None:
        """Check an object in full; a wrong one is promoted once more."""
        key = f"{self._prefix}/{stored.name}"
        wanted = (stored.size, stored.sha256)
        found = digest_or_none(self.store, key, sizes[key]) if key in sizes else None
        if found != wanted and stored.staged:
            self.promote_object(stored)
            found = digest_or_none(self.store, key)
        if found != wanted:
            raise CorruptArchiveError(
                f"{self.store.url}/{key} is {describe(found)}, {describe(wanted)} was committed: {HOW_TO_REPAIR}"
            )

    def _stage_object(self, folder: str, name: str, data: bytes, checksums: str = "") -> StoredObject:
        self.store.put(f"{self._prefix}/{folder}/{name}", data)
        return StoredObject(name, len(data), sha256_of(data), staged=f"{folder}/{name}", checksums=checksums)

    def _array_metadata(self, array: str) -> bytes:
        if array not in self._metadata:
            self._metadata[array] = self.store.get(f"{self._prefix}/{array}/zarr.json")
        return self._metadata[array]

    def _check_names(self, arrays: Mapping[str, NDArray[Any]], shard: int) -> None:
        where = f"shard {shard} of run {self.run_id}"
        unknown = sorted(set(arrays) - set(self.arrays))
        if unknown:
            raise ArchiveMismatchError(
                f"{where}: no array is named {', '.join(unknown)}; the run has {', '.join(self.arrays)}"
            )
        missing = [name for name, array in self.arrays.items() if array.is_needed and name not in arrays]
        if missing:
            raise ArchiveMismatchError(f"{where}: {', '.join(missing)} is missing; the plan needs it of every image")

    def _check_image(self, row: int, is_ok: NDArray[np.bool_], shard: int) -> None:
        where = f"shard {shard} of run {self.run_id}"
        if self.subject is None:
            raise ArchiveMismatchError(f"{where}: an inversion keeps no images: leave them out")
        rows = self.rows_of(shard)
        if row not in rows or not is_ok[row - rows.start]:
            raise ArchiveMismatchError(f"{where}: an image of row {row} was given, which is not an ok row of it")

    def _checked_previews(self, previews: Iterable[Preview], is_ok: NDArray[np.bool_], shard: int) -> Iterator[Preview]:
        """Refuse previews of rows that are not ok ones of the shard, and originals of what is made of an inversion."""
        where, rows = f"shard {shard} of run {self.run_id}", self.rows_of(shard)
        for one in previews:
            if one.row not in rows or not is_ok[one.row - rows.start]:
                raise ArchiveMismatchError(
                    f"{where}: a preview of row {one.row} was given, which is not an ok row of it"
                )
            if one.original is not None and self.subject is not None:
                raise ArchiveMismatchError(
                    f"{where}: an original of row {one.row} was given: its inversion keeps it, leave it out"
                )
            yield one

    def _check_values(self, array: RunArray, values: NDArray[Any], is_ok: NDArray[np.bool_], shard: int) -> None:
        """Refuse a wrong shape or type, and ok rows that are not finite where the plan wants no gaps."""
        where = f"{array.name} of shard {shard} of run {self.run_id}"
        wanted = (len(is_ok), *array.item_shape)
        if values.shape != wanted or values.dtype != array.dtype:
            raise ArchiveMismatchError(f"{where} is {values.dtype}{values.shape}, {array.dtype}{wanted} is wanted")
        if array.has_gaps:
            return
        finite = np.isfinite(values).reshape(len(is_ok), -1).all(axis=1)
        if (is_ok & ~finite).any():
            index = int(np.flatnonzero(is_ok & ~finite)[0])
            image_id = self.planned_rows(shard).column("image_id")[index].as_py()
            raise ArchiveMismatchError(
                f"{where}: image {image_id} is ok, yet its values are not finite: give it status failed"
            )
