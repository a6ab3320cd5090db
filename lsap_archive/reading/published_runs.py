"""The published runs of an opened archive: what all that reads in it has in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from lsap_archive.errors import ArchiveKeyError
from lsap_archive.format.layout import rows_name, rows_of_shard, run_prefix
from lsap_archive.format.manifest import Manifest
from lsap_archive.reading.arrays import PublishedObjects
from lsap_archive.reading.retirement import RetiredShards, hidden_of, may_be_twice, retired_by_run
from lsap_archive.reading.row_columns import RowColumns, RowFile
from lsap_archive.reading.row_table import RowTable, Suspect
from lsap_archive.stores.store import Store


class PublishedRuns:
    """Runs that readers see, by their number, the oldest first. What is retired, and rows, are read when asked for.

    Attributes:
        store: the archive's objects.
        url: where it is.
        manifests: of the runs.
        objects: of each run, what it published.
    """

    def __init__(self, store: Store, manifests: Sequence[Manifest]) -> None:
        self.store = store
        self.url = store.url
        self.manifests = list(manifests)
        self.objects = [PublishedObjects(store, run_prefix(one.run_id), one.files) for one in self.manifests]

    @property
    def methods(self) -> list[str]:
        """Names of the methods with published inversions or refinements, sorted."""
        return sorted({one.method for one in self.manifests if not one.is_edit})

    @property
    def edits(self) -> list[str]:
        """Names of the methods with a published edit, sorted."""
        return sorted({one.method for one in self.manifests if one.is_edit})

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Number of each run, by its id."""
        return {one.run_id: run for run, one in enumerate(self.manifests)}

    def number_of(self, run_id: str) -> int:
        """Number of a run.

        Raises:
            ArchiveKeyError: no such published run.
        """
        if run_id not in self.numbers:
            known = ", ".join(self.numbers) or "none"
            raise ArchiveKeyError(f"{self.url} has no published run {run_id}: it has {known}")
        return self.numbers[run_id]

    def of_method(self, method: str) -> list[int]:
        """Numbers of the runs of a method, by its name or digest.

        Raises:
            ArchiveKeyError: there is none.
        """
        runs = [run for run, one in enumerate(self.manifests) if method in (one.method, one.method_digest)]
        if not runs:
            known = ", ".join([*self.methods, *self.edits]) or "none"
            raise ArchiveKeyError(f"{self.url} has no published run of method {method}: it has {known}")
        return runs

    @cached_property
    def rows(self) -> RowTable:
        """Rows of all runs."""
        twice = [self.may_be_twice(one) for one in self.manifests]
        digests = {one.method_digest for one, is_twice in zip(self.manifests, twice, strict=True) if is_twice}
        suspects = {
            run: Suspect(manifest.method_digest, twice[run])
            for run, manifest in enumerate(self.manifests)
            if manifest.method_digest in digests
        }
        columns = RowColumns(self.store, list(self._row_files()))
        return RowTable(columns, [manifest.method for manifest in self.manifests], suspects)

    def _row_files(self) -> Iterator[RowFile]:
        for run, manifest in enumerate(self.manifests):
            files = {file.name: file for file in manifest.files if file.name.startswith("rows/")}
            for shard in manifest.own_shards:
                if shard not in self.hidden[manifest.run_id] and (name := rows_name(shard)) in files:
                    rows = rows_of_shard(shard, manifest.shard_rows, manifest.num_rows)
                    yield RowFile(run, f"{run_prefix(manifest.run_id)}/{name}", files[name], rows)

    @cached_property
    def hidden(self) -> dict[str, frozenset[int]]:
        """Retired shards by run."""
        return {one.run_id: hidden_of(one, self._retired) for one in self.manifests}

    def may_be_twice(self, manifest: Manifest) -> bool:
        """Whether rows of a run count in older runs that have them too."""
        return may_be_twice(manifest, self._retired)

    @cached_property
    def _retired(self) -> dict[str, RetiredShards]:
        return retired_by_run(self.store, self.manifests)

    def counts(self) -> list[dict[str, int]]:
        """Of each run, rows that readers see, by status; they are read only where some are not seen."""
        return [
            self.rows.counts_in(run) if self.hidden[one.run_id] or self.may_be_twice(one) else one.rows_by_status
            for run, one in enumerate(self.manifests)
        ]
