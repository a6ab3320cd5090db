"""Evaluations: what is measured of a run, or of synthetic images; shards in any order, each kept once, then published.

A shard is one Parquet file, so putting it create-only is its commit. Where a set-level number is asked for, the sums
of the shard that it is made from are put before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive.concurrency import in_threads
from lsap_archive.documents import as_json, decode_document, encode_document, now
from lsap_archive.errors import (
    HOW_TO_REPAIR,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    IncompleteRunError,
)
from lsap_archive.layout import (
    EVALUATIONS_PREFIX,
    FORMAT_VERSION,
    MANIFEST_NAME,
    PLAN_NAME,
    checked_name,
    copy_name,
    evaluation_manifest_key,
    evaluation_plan_key,
    evaluation_prefix,
    evaluation_retired_key,
    measurements_name,
    state_name,
)
from lsap_archive.manifest import StoredObject, check_version
from lsap_archive.measurements import MEASUREMENT_SCHEMA, OWN_COLUMNS, conform_measurements
from lsap_archive.plan import first_difference
from lsap_archive.published import measured_object, read_checked, read_checked_table, read_header
from lsap_archive.schema import from_parquet, to_parquet
from lsap_archive.sequence import next_sequence
from lsap_archive.store import Store


@dataclass(frozen=True)
class EvaluationPlan:
    """What is to be measured.

    Attributes:
        evaluation_id: name of the evaluation, unique in the archive.
        subject: {"run_id": ...} of a run of the archive, or what synthetic images are made from, JSON values.
        method: the measured method, as the run names it ("e4e", "e4e/slant").
        edit: name of the edit, or None for an inversion.
        strength: of the edit, or None.
        config: everything that decides the values, JSON values.
        provenance: versions, digests, seeds, JSON values.
        num_rows: images, those of the run included of which nothing can be measured.
        shard_rows: images of a shard.

    Raises:
        ArchiveMismatchError: a name or size that cannot be.
    """

    evaluation_id: str
    subject: dict[str, Any]
    method: str
    edit: str | None
    strength: float | None
    config: dict[str, Any]
    provenance: dict[str, Any]
    num_rows: int
    shard_rows: int

    def __post_init__(self) -> None:
        checked_name(self.evaluation_id, "evaluation id")
        if self.num_rows < 1 or self.shard_rows < 1:
            raise ArchiveMismatchError(
                f"evaluation {self.evaluation_id} has {self.num_rows} rows in shards of {self.shard_rows}: "
                "at least 1 is wanted of both"
            )

    @property
    def num_shards(self) -> int:
        """ceil(num_rows / shard_rows)."""
        return -(-self.num_rows // self.shard_rows)

    def document(self) -> dict[str, Any]:
        """plan.json without what start_evaluation adds, as JSON gives it back."""
        document: dict[str, Any] = as_json(vars(self), f"the plan of evaluation {self.evaluation_id}")
        return document


@dataclass(frozen=True)
class EvaluationInfo:
    """A published evaluation, and its manifest.

    Attributes:
        evaluation_id, subject, method, edit, strength, config, provenance, num_rows, shard_rows: as in the plan.
        created: UTC time of publication, ISO 8601.
        num_measurements: rows of its table.
        summary: numbers of the whole set, such as {"fid": ...}, JSON values.
        files: every object of the evaluation.
        sequence: as in Manifest.
    """

    evaluation_id: str
    subject: dict[str, Any]
    method: str
    edit: str | None
    strength: float | None
    config: dict[str, Any]
    provenance: dict[str, Any]
    num_rows: int
    shard_rows: int
    created: str
    num_measurements: int
    summary: dict[str, Any]
    files: tuple[StoredObject, ...] = field(repr=False)
    sequence: int = 0

    @property
    def order(self) -> tuple[int, str, str]:
        """Sorts evaluations, the newest last; as Manifest.order."""
        return self.sequence, "" if self.sequence else self.created, self.evaluation_id

    @property
    def run_id(self) -> str | None:
        """The measured run, None for synthetic images."""
        run_id: str | None = self.subject.get("run_id")
        return run_id

    def encode(self) -> bytes:
        """The manifest as bytes."""
        files = [file.to_dict() for file in self.files]
        values = {**vars(self), "files": files, "format_version": FORMAT_VERSION}
        return encode_document(values, f"the manifest of evaluation {self.evaluation_id}")

    @classmethod
    def decode(cls, data: bytes, name: str) -> EvaluationInfo:
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
            checked_name(values["evaluation_id"], f"{name}: evaluation id")
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CorruptArchiveError(f"{name} is not a manifest of an evaluation ({error})") from error


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
            rows: see `lsap_archive.measurements.conform_measurements`.
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


def read_evaluation(store: Store, evaluation_id: str) -> EvaluationInfo:
    """A published evaluation, also a retired one.

    Raises:
        ArchiveNotFoundError: it is not published.
        CorruptArchiveError: its manifest is damaged, or that of another evaluation.
    """
    key = evaluation_manifest_key(evaluation_id)
    info = EvaluationInfo.decode(store.get(key), store.join(key))
    if info.evaluation_id != evaluation_id:
        raise CorruptArchiveError(f"{store.join(key)} is the manifest of {info.evaluation_id}: {HOW_TO_REPAIR}")
    return info


def read_evaluations(store: Store) -> list[EvaluationInfo]:
    """Every evaluation that is published and not retired, the oldest first."""

    def info_or_none(evaluation_id: str) -> EvaluationInfo | None:
        if store.exists(evaluation_retired_key(evaluation_id)):
            return None
        try:
            return read_evaluation(store, evaluation_id)
        except ArchiveNotFoundError:
            return None

    found = in_threads(info_or_none, store.folders(EVALUATIONS_PREFIX))
    return sorted((one for one in found if one), key=lambda one: one.order)


def read_measurements(store: Store, info: EvaluationInfo) -> pa.Table:
    """The measurements of a published evaluation, in the order of its shards, every file checked.

    Raises:
        CorruptArchiveError: a file is missing or altered.
    """

    def read(stored: StoredObject) -> pa.Table:
        key = f"{evaluation_prefix(info.evaluation_id)}/{stored.name}"
        return read_checked_table(store, key, stored, MEASUREMENT_SCHEMA)

    files = [file for file in info.files if file.name.startswith("shards/")]
    files.sort(key=lambda one: (len(one.name), one.name))
    return pa.concat_tables([MEASUREMENT_SCHEMA.empty_table(), *in_threads(read, files)])


def newest_measurements(evaluations: Sequence[EvaluationInfo], tables: Iterable[pa.Table]) -> pa.Table:
    """All measurements, the oldest evaluation first; what was measured of a subject again counts once, the newest.

    Args:
        evaluations: the oldest first.
        tables: the measurements of each.
    """
    taken: set[tuple[str, str, str | None]] = set()
    kept = []
    for info, table in zip(reversed(evaluations), reversed(list(tables)), strict=True):
        subject = repr(sorted(info.subject.items())) + info.method
        names = set(zip(*(table.column(name).to_pylist() for name in ("measure", "by")), strict=True))
        for measure, by in names:
            if (subject, measure, by) in taken:
                same_by = pc.is_null(table.column("by")) if by is None else pc.equal(table.column("by"), by)
                again = pc.and_(pc.equal(table.column("measure"), measure), pc.fill_null(same_by, False))
                table = table.filter(pc.invert(again))
        taken |= {(subject, measure, by) for measure, by in names}
        kept.append(table)
    return pa.concat_tables([MEASUREMENT_SCHEMA.empty_table(), *reversed(kept)])
