"""What evaluations have measured of what readers see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive.errors import ArchiveKeyError
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import EVALUATIONS_PREFIX
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA
from lsap_archive.reading.evaluations import measurement_parts, newest_measurements, read_evaluations
from lsap_archive.reading.lost import refuse_lost
from lsap_archive.reading.published_runs import PublishedRuns
from lsap_archive.reading.published_tables import evaluations_table
from lsap_archive.reading.sets import SET_SCHEMA, ImageSet, image_sets, read_states, with_set_numbers


class Measured:
    """Published evaluations and their measurements, read when they are first asked for.

    Args:
        runs: of the archive.
    """

    def __init__(self, runs: PublishedRuns) -> None:
        self._runs = runs

    @cached_property
    def published(self) -> list[EvaluationInfo]:
        """As their manifests have them, the oldest first.

        Raises:
            CorruptArchiveError: a manifest is damaged, or an evaluation that was published has none any more.
        """
        store = self._runs.store
        found = read_evaluations(store)
        names = set(store.folders(EVALUATIONS_PREFIX))
        refuse_lost(store, EvaluationInfo.kind, names - {one.evaluation_id for one in found})
        return found

    @cached_property
    def evaluations(self) -> list[EvaluationInfo]:
        """As `published`, with the numbers of `sets` in their summaries."""
        return with_set_numbers(self.published, self.sets)

    @cached_property
    def sets(self) -> list[ImageSet]:
        """Set-level numbers, one for each method and network.

        Raises:
            CorruptArchiveError: an evaluation's manifest or a kept number is damaged.
        """
        runs = self._runs
        twice = {
            manifest.run_id: runs.rows.twice_in(run).tolist()
            for run, manifest in enumerate(runs.manifests)
            if runs.may_be_twice(manifest)
        }
        return image_sets(runs.store, runs.manifests, self.published, runs.hidden, twice)

    def states(self, of: ImageSet) -> Iterator[bytes]:
        """The sums that make up a set, a shard at a time; bytes of .npz files.

        Raises:
            CorruptArchiveError: one is missing or altered.
        """
        return read_states(self._runs.store, of, self.published)

    def set_numbers(self) -> pa.Table:
        """`sets` as a table in SET_SCHEMA, one row for each."""
        return pa.Table.from_pylist([one.to_row() for one in self.sets], SET_SCHEMA)

    def evaluations_table(self) -> pa.Table:
        """`evaluations` in EVALUATIONS_SCHEMA, with what each has measured."""
        measured = [
            {(measure, by or "") for part in self._parts_of(one, ["measure", "by"]) for measure, by in _pairs_of(part)}
            for one in self.published
        ]
        return evaluations_table(self.evaluations, measured)

    def table(
        self, columns: Sequence[str] | None, *, method: str | None, evaluations: Sequence[str] | None
    ) -> pa.Table:
        """Measurements that count, or all of some evaluations; see `Archive.measurements`."""
        _check(columns or ())
        table = self.newest if evaluations is None else self._measured_by(evaluations)
        if method is not None:
            table = table.filter(pc.equal(table.column("method"), method))
        return table if columns is None else table.select(list(columns))

    def parts(self, columns: Sequence[str], evaluations: Sequence[str]) -> Iterator[pa.Table]:
        """Measurements of evaluations in parts of some shards; see `Archive.measurement_parts`."""
        _check(columns)
        for info in self._evaluations_of(evaluations):
            yield from self._parts_of(info, columns)

    @cached_property
    def newest(self) -> pa.Table:
        """Of each newest row and each measure, what the newest evaluation has."""
        return newest_measurements(self.published, self._tables[1:], self._of_newest).combine_chunks()

    def all(self) -> pa.Table:
        """All measurements of what readers see, also what was measured again since."""
        return pa.concat_tables(self._tables)

    def _of_newest(self, info: EvaluationInfo, measured: pa.Table) -> pa.Table:
        """What was measured of rows that are the newest of their image and method, or of synthetic images."""
        if info.run_id is None or not measured.num_rows:
            return measured
        rows = self._runs.rows.newest_in(self._runs.numbers[info.run_id])
        return measured.filter(pc.is_in(measured.column("row"), pa.array(rows)))

    @cached_property
    def _tables(self) -> list[pa.Table]:
        """An empty one, and that of each evaluation."""
        return [MEASUREMENT_SCHEMA.empty_table(), *map(self._measured_in, self.published)]

    def _measured_in(self, info: EvaluationInfo) -> pa.Table:
        return pa.concat_tables([MEASUREMENT_SCHEMA.empty_table(), *self._parts_of(info, MEASUREMENT_SCHEMA.names)])

    def _measured_by(self, evaluation_ids: Sequence[str]) -> pa.Table:
        wanted = [self._measured_in(one) for one in self._evaluations_of(evaluation_ids)]
        return pa.concat_tables([MEASUREMENT_SCHEMA.empty_table(), *wanted])

    def _parts_of(self, info: EvaluationInfo, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Measurements of an evaluation, without those of rows of the run that it measured which readers do not see."""
        runs = self._runs
        parts = measurement_parts(runs.store, info, list(dict.fromkeys([*columns, "row"])))
        if info.run_id is None:
            yield from (part.select(columns) for part in parts)
            return
        run = runs.numbers.get(info.run_id)
        if run is None:
            return
        manifest = runs.manifests[run]
        hidden = pa.array(sorted(runs.hidden[info.run_id]), pa.int64())
        is_twice = runs.may_be_twice(manifest)
        for part in parts:
            shards = pc.divide(part.column("row"), manifest.shard_rows)
            part = part.filter(pc.invert(pc.is_in(shards, hidden)))
            if is_twice:
                part = part.filter(pc.invert(pc.is_in(part.column("row"), pa.array(runs.rows.twice_in(run)))))
            yield part.select(columns)

    def _evaluations_of(self, evaluation_ids: Sequence[str]) -> list[EvaluationInfo]:
        known = {info.evaluation_id: info for info in self.published}
        for evaluation_id in evaluation_ids:
            if evaluation_id not in known:
                raise ArchiveKeyError(f"{self._runs.url} has no published evaluation {evaluation_id}: see evaluations")
        return [known[one] for one in dict.fromkeys(evaluation_ids)]


def _check(columns: Sequence[str]) -> None:
    unknown = [name for name in columns if name not in MEASUREMENT_SCHEMA.names]
    if unknown:
        known = ", ".join(MEASUREMENT_SCHEMA.names)
        raise ArchiveKeyError(f"no column {', '.join(unknown)}: the measurements have {known}")


def _pairs_of(part: pa.Table) -> Iterator[tuple[str, str | None]]:
    """The different pairs of measure and by in some measurements."""
    for pair in part.group_by(["measure", "by"]).aggregate([]).to_pylist():
        yield pair["measure"], pair["by"]
