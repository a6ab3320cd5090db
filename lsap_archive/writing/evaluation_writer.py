"""Evaluations: what is measured of a run, or of synthetic images; shards in any order, each kept once, then published.

A shard is one Parquet file, so putting it create-only is its commit. Where a set-level number is asked for, the sums
of the shard that it is made from are put before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from lsap_archive.format.documents import as_json, sha256_of, utc_now
from lsap_archive.format.evaluations import EvaluationInfo, EvaluationPlan
from lsap_archive.format.layout import (
    PLAN_NAME,
    evaluation_prefix,
    measurements_name,
    rows_of_shard,
    seen_key,
    state_name,
)
from lsap_archive.format.measurements import MEASURED_COLUMNS, MEASUREMENT_SCHEMA, STATE_NOTE, conform_measurements
from lsap_archive.format.rows import from_parquet, notes_of, to_parquet
from lsap_archive.format.seen import encode_seen
from lsap_archive.format.sequence import next_sequence
from lsap_archive.reading.checked import measured_object, read_checked, read_header, read_manifest
from lsap_archive.reading.kept import read_seen
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store
from lsap_archive.writing.publication import Publication
from lsap_archive.writing.published_lists import keep_published_lists


class EvaluationWriter:
    """One evaluation, opened for writing; light enough to open in every worker.

    Attributes:
        store: the archive's objects.
        evaluation_id: the evaluation.
        plan: what is to be measured.
    """

    def __init__(self, store: Store, evaluation_id: str) -> None:
        self.store = store
        self.evaluation_id = evaluation_id
        self._publication = Publication(store, EvaluationInfo, evaluation_id)
        self._prefix = self._publication.prefix
        self.plan = EvaluationPlan.of(self._publication.read_plan(), store.join(self._publication.key(PLAN_NAME)))

    def __repr__(self) -> str:
        return f"EvaluationWriter({self.store.url!r}, {self.evaluation_id!r})"

    @classmethod
    def open(cls, url: str, evaluation_id: str, storage_options: Mapping[str, Any] | None = None) -> EvaluationWriter:
        """An evaluation that was started, from the archive's URL alone.

        Raises:
            ArchiveNotFoundError: no such archive or evaluation.
            StoreUnavailableError: the store does not answer or refuses.
        """
        store = Store.from_url(url, storage_options)
        read_header(store)
        return cls(store, evaluation_id)

    @property
    def is_published(self) -> bool:
        """Whether readers see the evaluation."""
        return self._publication.is_published

    @property
    def is_empty(self) -> bool:
        """Whether it is under way and nothing is measured yet."""
        return not self.is_published and len(self.missing_shards()) == self.plan.num_shards

    def rows_of(self, shard: int) -> range:
        """Rows of a shard.

        Raises:
            ArchiveMismatchError: no such shard.
        """
        plan = self.plan
        if not 0 <= shard < plan.num_shards:
            raise ArchiveMismatchError(
                f"evaluation {self.evaluation_id} has shards 0 to {plan.num_shards - 1}, not {shard}"
            )
        return rows_of_shard(shard, plan.shard_rows, plan.num_rows)

    def missing_shards(self) -> list[int]:
        """Shards that still need work, in order."""
        there = {key.rsplit("/", 1)[1] for key in self.store.keys(f"{self._prefix}/shards")}
        names = (measurements_name(shard).rsplit("/", 1)[1] for shard in range(self.plan.num_shards))
        return [shard for shard, name in enumerate(names) if name not in there]

    def take_over(self, retired_id: str) -> list[int]:
        """Take what is sound of a retired evaluation of the same plan, so that only what is damaged is measured again.

        Returns:
            The shards that were taken.
        """
        prefix = evaluation_prefix(retired_id)
        try:
            retired = read_manifest(self.store, EvaluationInfo, retired_id)
        except ArchiveNotFoundError:
            return []  # it was given up before it was published: no digests tell what is sound
        if retired.shard_rows != self.plan.shard_rows:
            return []
        files = {file.name: file for file in retired.files}
        taken = []
        for shard in self.missing_shards():
            names = [name for name in (measurements_name(shard), state_name(shard)) if name in files]
            try:
                found = [read_checked(self.store, f"{prefix}/{name}", files[name]) for name in names]
                rows = from_parquet(found[0], MEASUREMENT_SCHEMA, f"{prefix}/{names[0]}", list(MEASURED_COLUMNS))
            except CorruptArchiveError:
                continue  # this is what it was retired for
            if self.write_shard(shard, rows, *found[1:]):
                taken.append(shard)
        return taken

    def write_shard(self, shard: int, rows: pa.Table, state: bytes | None = None) -> bool:
        """Write what was measured of a shard. Writing it again changes nothing.

        Args:
            shard: number of the shard.
            rows: see `lsap_archive.format.measurements.conform_measurements`.
            state: sums of this shard that a set-level number is made from; bytes of an .npz file.

        Returns:
            Whether this is what is kept; if not, another attempt was first.

        Raises:
            ArchiveMismatchError: the rows are not those of the plan. Nothing was written.
            StoreUnavailableError: the store does not answer or refuses; the same call may be tried again.
        """
        table = conform_measurements(
            rows,
            constants={
                "evaluation_id": self.evaluation_id,
                "run_id": self.plan.subject.get("run_id"),
                "method": self.plan.method,
                "edit": self.plan.edit,
                "strength": self.plan.strength,
                "shard": shard,
            },
            planned=self.rows_of(shard),
            where=f"shard {shard} of evaluation {self.evaluation_id}",
        )
        notes = None
        if state is not None:
            key = f"{self._prefix}/{state_name(shard)}"
            kept = state if self.store.create(key, state) else self.store.get(key)
            notes = {STATE_NOTE: sha256_of(kept)}
        return self.store.create(f"{self._prefix}/{measurements_name(shard)}", to_parquet(table, notes))

    def seen(self, digest: str) -> dict[str, NDArray[np.floating]] | None:
        """What a network saw of some originals, by digest of the image, whoever measured them; None if nobody did.

        Args:
            digest: of everything that decides it: the network, the images, and how they were placed.

        Raises:
            CorruptArchiveError: it is damaged.
        """
        try:
            return read_seen(self.store, digest)
        except ArchiveNotFoundError:
            return None

    def keep_seen(self, digest: str, seen: Mapping[str, NDArray[np.floating]]) -> bool:
        """Keep what a network saw of some originals, by digest of the image; the first one of a digest stays.

        Args:
            digest: as for `seen`.
            seen: arrays of one shape, float32 or float64; at least one.

        Returns:
            Whether this is what is kept.
        """
        return self.store.create(seen_key(digest), encode_seen(digest, seen))

    def states(self) -> Iterator[bytes]:
        """Sums of every shard that has some, in order, one at a time."""
        keys = sorted(self.store.keys(f"{self._prefix}/states"), key=lambda key: (len(key), key))
        yield from (self.store.get(key) for key in keys)

    def publish(self, summary: Mapping[str, Any]) -> bool:
        """Make the evaluation visible: read every shard, then put the manifest. May be called again.

        Args:
            summary: numbers of the whole set, JSON values.

        Returns:
            Whether this call published it; False if it was published already.

        Raises:
            IncompleteRunError: shards are missing, or it was given up.
            CorruptArchiveError: a shard is damaged.
        """
        self.refuse_given_up()
        try:
            won = self._publication.publish(lambda: self._new_manifest(summary))
        finally:  # what was measured of it is removed when it is given up
            self.refuse_given_up()
        self.tidy()
        return won

    def tidy(self) -> None:
        """Last step of publish: lists for other readers, and copies for repair. It may be repeated at any time."""
        self.store.delete_temporary(self._prefix)
        keep_published_lists(self.store, self.evaluation_id)
        self._publication.keep_copies()  # last: it tells whether all is done

    @property
    def is_tidy(self) -> bool:
        """Whether the last step of publish was done."""
        return self._publication.has_copies

    @property
    def is_given_up(self) -> bool:
        """Whether the evaluation is retired: no reader sees it, or will, and nobody goes on with it."""
        return self._publication.is_retired

    def give_up(self, reason: str) -> None:
        """Retire the evaluation, and remove what was measured while it was not published.

        Whoever works on it meanwhile is not disturbed, and finds at the end that it was given up. May be called again.

        Args:
            reason: one sentence that tells why; that of the first call is kept.
        """
        self._publication.retire([reason])
        self._publication.remove_work(("states", "shards"))
        self.store.delete_temporary(self._prefix)
        if self.is_published:  # somebody was at it meanwhile
            keep_published_lists(self.store)

    def refuse_given_up(self) -> None:
        """Make sure that the evaluation was not given up; what was measured since is removed then.

        Raises:
            IncompleteRunError: it was.
        """
        if self.is_given_up:
            why = self._publication.why_retired()
            self.give_up(why)
            raise IncompleteRunError(
                f"evaluation {self.evaluation_id} was given up while it was worked on ({why}): run the same command "
                "again"
            )

    def _new_manifest(self, summary: Mapping[str, Any]) -> EvaluationInfo:
        """The manifest of an evaluation whose shards are all there, every table read."""
        self._publication.check_complete(self.missing_shards(), self.plan.num_shards)
        prefix = self._prefix
        names = sorted(key.removeprefix(f"{prefix}/") for key in self.store.keys(prefix) if f"{prefix}/_" not in key)
        files = in_threads(lambda name: measured_object(self.store, prefix, name), names)
        digests = {file.name: file.sha256 for file in files}
        sizes = in_threads(lambda shard: self._num_measurements(shard, digests), range(self.plan.num_shards))
        return EvaluationInfo(
            **vars(self.plan),
            created=utc_now(),
            num_measurements=sum(sizes),
            summary=as_json(dict(summary), f"the summary of evaluation {self.evaluation_id}"),
            files=tuple(files),
            sequence=next_sequence(self.store, self.evaluation_id),
        )

    def _num_measurements(self, shard: int, digests: Mapping[str, str]) -> int:
        """Rows of a shard's table, whose sums have to be those that were put before it."""
        key, state = f"{self._prefix}/{measurements_name(shard)}", state_name(shard)
        data = self.store.get(key)
        wanted = notes_of(data, self.store.join(key)).get(STATE_NOTE)
        if wanted not in (None, digests.get(state)):
            where = self.store.join(f"{self._prefix}/{state}")
            raise CorruptArchiveError(f"{where} is not what shard {shard} was measured with: {HOW_TO_REPAIR}")
        table = from_parquet(data, MEASUREMENT_SCHEMA, self.store.join(key), ["row"])
        return int(table.num_rows)
