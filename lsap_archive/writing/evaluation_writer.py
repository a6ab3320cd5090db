"""Evaluations: what is measured of a run, or of synthetic images; shards in any order, each kept once, then published.

A shard is one Parquet file, so putting it create-only is its commit. Where a set-level number is asked for, the sums
of the shard that it is made from are put before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import pyarrow as pa

from lsap_archive.errors import (
    HOW_TO_REPAIR,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    IncompleteRunError,
)
from lsap_archive.format.documents import as_json, decode_document, encode_document, now
from lsap_archive.format.evaluations import EvaluationInfo, EvaluationPlan
from lsap_archive.format.layout import (
    MANIFEST_NAME,
    PLAN_NAME,
    copy_name,
    evaluation_manifest_key,
    evaluation_plan_key,
    evaluation_prefix,
    evaluation_retired_key,
    measurements_name,
    state_name,
)
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA, OWN_COLUMNS, conform_measurements
from lsap_archive.format.plan import first_difference
from lsap_archive.format.rows import from_parquet, to_parquet
from lsap_archive.format.sequence import next_sequence
from lsap_archive.reading.evaluations import read_evaluation
from lsap_archive.reading.published import measured_object, read_checked, read_header
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store


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
        self._prefix = evaluation_prefix(evaluation_id)
        key = evaluation_plan_key(evaluation_id)
        try:
            values = decode_document(store.get(key), store.join(key))
        except ArchiveNotFoundError as error:
            raise ArchiveNotFoundError(
                f"{store.url} has no evaluation {evaluation_id}: start it with start_evaluation"
            ) from error
        if values.get("evaluation_id") != evaluation_id:
            raise CorruptArchiveError(f"{store.join(key)} is the plan of another evaluation: {HOW_TO_REPAIR}")
        self.plan = EvaluationPlan(**{one.name: values[one.name] for one in fields(EvaluationPlan)})

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
        return self.store.exists(evaluation_manifest_key(self.evaluation_id))

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
        return range(shard * plan.shard_rows, min((shard + 1) * plan.shard_rows, plan.num_rows))

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
        info = read_evaluation(self.store, retired_id)
        files = {file.name: file for file in info.files}
        taken = []
        for shard in self.missing_shards():
            names = [name for name in (measurements_name(shard), state_name(shard)) if name in files]
            try:
                found = [read_checked(self.store, f"{prefix}/{name}", files[name]) for name in names]
                rows = from_parquet(found[0], MEASUREMENT_SCHEMA, f"{prefix}/{names[0]}", list(OWN_COLUMNS))
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
        if state is not None:
            self.store.create(f"{self._prefix}/{state_name(shard)}", state)
        return self.store.create(f"{self._prefix}/{measurements_name(shard)}", to_parquet(table))

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
            IncompleteRunError: shards are missing.
            CorruptArchiveError: a shard is damaged.
        """
        if self.is_published or self._publish_from_copy():
            return False
        if missing := self.missing_shards():
            raise IncompleteRunError(
                f"evaluation {self.evaluation_id} lacks {len(missing)} of {self.plan.num_shards} shards "
                f"({', '.join(map(str, missing[:10]))}): measure these shards, then publish"
            )
        prefix = self._prefix
        names = sorted(key.removeprefix(f"{prefix}/") for key in self.store.keys(prefix) if f"{prefix}/_" not in key)
        files = in_threads(lambda name: measured_object(self.store, prefix, name), names)
        shards = [measurements_name(shard) for shard in range(self.plan.num_shards)]
        sizes = in_threads(lambda name: self._num_measurements(f"{prefix}/{name}"), shards)
        info = EvaluationInfo(
            **vars(self.plan),
            created=now(),
            num_measurements=sum(sizes),
            summary=as_json(dict(summary), f"the summary of evaluation {self.evaluation_id}"),
            files=tuple(files),
            sequence=next_sequence(self.store, self.evaluation_id),
        )
        won = self.store.create(evaluation_manifest_key(self.evaluation_id), info.encode())
        self.keep_copies()
        return won

    def keep_copies(self) -> list[str]:
        """Keep manifest and plan once more, for repair; as RunWriter.keep_copies."""
        info = read_evaluation(self.store, self.evaluation_id)
        plan = next(file for file in info.files if file.name == PLAN_NAME)
        found = {
            PLAN_NAME: read_checked(self.store, f"{self._prefix}/{PLAN_NAME}", plan),
            MANIFEST_NAME: self.store.get(evaluation_manifest_key(self.evaluation_id)),
        }
        return [name for name, data in found.items() if self.store.create(f"{self._prefix}/{copy_name(name)}", data)]

    def _publish_from_copy(self) -> bool:
        """Put back the manifest of an evaluation that was published and lost it; whether there was a copy."""
        key = f"{self._prefix}/{copy_name(MANIFEST_NAME)}"
        try:
            data = self.store.get(key)
        except ArchiveNotFoundError:
            return False
        EvaluationInfo.decode(data, self.store.join(key))
        self.store.create(evaluation_manifest_key(self.evaluation_id), data)
        return True

    def _num_measurements(self, key: str) -> int:
        table = from_parquet(self.store.get(key), MEASUREMENT_SCHEMA, self.store.join(key), ["row"])
        return int(table.num_rows)


def start_evaluation(store: Store, plan: EvaluationPlan) -> EvaluationWriter:
    """Make an evaluation ready to be worked; one that was started before is opened.

    Raises:
        ArchiveMismatchError: an evaluation of this id has another plan.
    """
    key, wanted = evaluation_plan_key(plan.evaluation_id), plan.document()
    if not store.exists(key):
        store.create(key, encode_document({**wanted, "created": now()}, key))
    started = EvaluationWriter(store, plan.evaluation_id)
    if different := first_difference(started.plan.document(), wanted):
        raise ArchiveMismatchError(
            f"evaluation {plan.evaluation_id} in {store.url} was planned with another {different}: "
            "choose another evaluation id"
        )
    return started


def unretired(store: Store, plan: EvaluationPlan) -> tuple[EvaluationPlan, tuple[str, ...]]:
    """The plan under the first id that is not retired, and the retired ids, the newest first.

    What takes the place of a retired evaluation is named after it: "<id>.2", "<id>.3".
    """
    retired: list[str] = []
    found = plan
    while store.exists(evaluation_retired_key(found.evaluation_id)):
        retired.insert(0, found.evaluation_id)
        found = replace(plan, evaluation_id=f"{plan.evaluation_id}.{len(retired) + 1}")
    return found, tuple(retired)
