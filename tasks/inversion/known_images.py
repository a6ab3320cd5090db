"""What an archive's runs say of images, looked up by id in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive import PlannedImages, RunWriter

MEMORY_LIMIT = "256MB"  # of the database; what does not fit is on disk
ROWS_TOGETHER = 10_000


class Fact(NamedTuple):
    """What one run was planned with.

    Attributes:
        run: the run's place: published ones in their order, the newest last, then unfinished ones.
        uri: where the image lay.
        digest: of its content.
        version: of the storage, or None.
        is_settled: False where this content was not there any more when it was the image's turn.
    """

    run: int
    uri: str
    digest: str
    version: str | None
    is_settled: bool


class KnownRun(NamedTuple):
    """A run of the archive, without its images."""

    run: RunWriter
    method_digest: str
    is_published: bool
    last_id: str


class KnownImages:
    """Facts about images, sorted by id on disk; they are asked for in the order of a listing.

    Attributes:
        runs: the runs of the archive by their place.
    """

    def __init__(self, planned: Iterable[PlannedImages] = (), read: Iterable[pa.Table] = ()) -> None:
        """Copy what is known to a database in a temporary folder.

        Args:
            planned: the inversions of an archive.
            read: what was read without being planned, with image_id, uri, digest and version.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="lsap-known-images-")
        self._database = duckdb.connect(f"{self._folder.name}/images.duckdb", config={"memory_limit": MEMORY_LIMIT})
        self._database.execute(
            "create table facts (image_id varchar, run integer, uri varchar, digest varchar, version varchar, "
            "is_settled boolean); create table unfinished (run integer, uri varchar)"
        )
        self.runs: list[KnownRun] = []
        try:
            for one in planned:
                self._add_run(one)
            for table in read:
                self._insert(table, -1, pa.array([True] * table.num_rows))
            self._asked = ""
            self._facts = self._from("")
            self._next = next(self._facts, None)
        except BaseException:
            self.close()
            raise

    def _add_run(self, planned: PlannedImages) -> None:
        place, images = len(self.runs), planned.images
        plan = planned.run.plan
        last_id = pc.max(images.column("image_id")).as_py() or ""
        self.runs.append(KnownRun(planned.run, plan["method_digest"], planned.is_published, last_id))
        unsettled = pa.array(sorted(planned.unsettled), pa.string())
        self._insert(images, place, pc.invert(pc.is_in(images.column("image_id"), unsettled)))
        if not planned.is_published:
            self._database.register("arrived", images.select(["uri"]))
            self._database.execute("insert into unfinished select ?, uri from arrived", [place])

    def _insert(self, images: pa.Table, place: int, is_settled: pa.Array | pa.ChunkedArray) -> None:
        named = images.select(["image_id", "uri", "digest", "version"]).append_column("is_settled", is_settled)
        self._database.register("arrived", named)
        self._database.execute(
            "insert into facts select image_id, ?, uri, digest, version, is_settled from arrived", [place]
        )

    def places_of(self, method_digest: str) -> frozenset[int]:
        """Places of the runs of a method."""
        return frozenset(place for place, run in enumerate(self.runs) if run.method_digest == method_digest)

    def of(self, image_id: str) -> list[Fact]:
        """Facts about an image, of the newest run last. Ids are asked for in ascending order; others take longer."""
        if image_id < self._asked:
            self._facts = self._from(image_id)
            self._next = next(self._facts, None)
        self._asked = image_id
        found = []
        while self._next is not None and self._next[0] <= image_id:
            if self._next[0] == image_id:
                found.append(Fact(*self._next[1:]))
            self._next = next(self._facts, None)
        return found

    def unfinished_at(self, uris: Sequence[str]) -> set[int]:
        """Places of the unfinished runs that were planned with images at some of these addresses."""
        if all(run.is_published for run in self.runs):
            return set()
        cursor = self._database.cursor()
        cursor.register("asked", pa.table({"uri": pa.array(uris, pa.string())}))
        found = cursor.execute("select distinct run from unfinished semi join asked using (uri)")
        return {run for (run,) in found.fetchall()}

    def close(self) -> None:
        """Remove the database."""
        self._database.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _from(self, image_id: str) -> Iterator[tuple[str, int, str, str, str | None, bool]]:
        """Facts by id and run, from this id on."""
        cursor = self._database.cursor()
        facts = cursor.sql(
            "select image_id, run, uri, digest, version, is_settled from facts where image_id >= ? "
            "order by image_id, run",
            params=[image_id],
        )
        for batch in facts.to_arrow_reader(ROWS_TOGETHER):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
