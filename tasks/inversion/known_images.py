"""What an archive's runs say of images, looked up by id in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive import PlannedImages, RunWriter, hangs_on_fit, published_rows
from tasks.archived.originals import fit_of
from tasks.digests import digest_of
from tasks.pictures.decoding import Fit, has_aspect
from tasks.pictures.formats import may_be_read_now

MEMORY_LIMIT = "256MB"  # of the database; what does not fit is on disk
ROWS_TOGETHER = 10_000
CHANGES_NO_PIXEL = ("title", "base", "fit")
"""What a run's configuration tells that its results do not follow from; `fit` where the image has the right shape."""

_Found = tuple[str, int, str, str, str | None, bool, bool]  # an id and the fields of a Fact


def key_of(config: Mapping[str, Any]) -> str:
    """Digest of what decides the pixels of a run's results, but for those of images that had to be fitted."""
    return digest_of({name: value for name, value in config.items() if name not in CHANGES_NO_PIXEL})


class Fact(NamedTuple):
    """What one run was planned with.

    Attributes:
        run: the run's place: published ones in their order, the newest last, then unfinished ones.
        uri: where the image lay.
        digest: of its content.
        version: of the storage, or None.
        is_settled: False where this content was not there any more when it was the image's turn, or was not read for
            want of a reader that is here now.
        is_fitted: whether the result is that of the run's `fit` alone: with another one it would be another.
    """

    run: int
    uri: str
    digest: str
    version: str | None
    is_settled: bool
    is_fitted: bool


class KnownRun(NamedTuple):
    """A run of the archive, without its images.

    Attributes:
        run: the run.
        method_digest: of its plan.
        key: of its configuration; see `key_of`.
        fit: what it did with images of another shape.
        is_published: whether readers see it.
        first_id, last_id: of its images.
    """

    run: RunWriter
    method_digest: str
    key: str
    fit: Fit
    is_published: bool
    first_id: str
    last_id: str


class KnownImages:
    """Facts about images, sorted by id on disk; they are asked for in the order of a listing.

    Attributes:
        runs: the runs of the archive by their place.
    """

    def __init__(
        self,
        planned: Iterable[PlannedImages] = (),
        read: Iterable[pa.Table] = (),
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Copy what is known to a database in a temporary folder.

        Args:
            planned: the inversions of an archive.
            read: what was read without being planned, with image_id, uri, digest and version.
            size: height and width that images are fitted to: rows of schema versions before 4 do not tell what was
                fitted, but their shape does.
        """
        self._size = size
        self._folder = tempfile.TemporaryDirectory(prefix="lsap-known-images-")
        self._database = duckdb.connect(f"{self._folder.name}/images.duckdb", config={"memory_limit": MEMORY_LIMIT})
        self._database.execute(
            "create table facts (image_id varchar, run integer, uri varchar, digest varchar, version varchar, "
            "is_settled boolean, is_fitted boolean); create table unfinished (run integer, uri varchar)"
        )
        self.runs: list[KnownRun] = []
        try:
            for one in planned:
                self._add_run(one)
            for table in read:
                self._insert(table, -1, pa.array([True] * table.num_rows))
            self._asked = ""
            self._facts: Iterator[_Found] = iter(())
            self._next: _Found | None = None
            self._has_begun = False
        except BaseException:
            self.close()
            raise

    def _add_run(self, planned: PlannedImages) -> None:
        place, images = len(self.runs), planned.images
        plan = planned.run.plan
        config, span = plan["config"], pc.min_max(images.column("image_id")).as_py()
        known = KnownRun(
            planned.run,
            plan["method_digest"],
            key_of(config),
            fit_of(config),
            planned.is_published,
            first_id=span["min"] or "",
            last_id=span["max"] or "",
        )
        self.runs.append(known)
        then = plan["provenance"].get("settings", {}).get("readers", {})
        now_read = {reason for reason in set(planned.of_reader.values()) if may_be_read_now(reason, then)}
        again = {image_id for image_id, reason in planned.of_reader.items() if reason in now_read}
        unsettled = pa.array(sorted(planned.unsettled | again), pa.string())
        self._insert(images, place, pc.invert(pc.is_in(images.column("image_id"), unsettled)))
        if not planned.is_published:
            self._database.register("arrived", images.select(["uri"]))
            self._database.execute("insert into unfinished select ?, uri from arrived", [place])

    def _insert(self, images: pa.Table, place: int, is_settled: pa.Array | pa.ChunkedArray) -> None:
        named = images.select(["image_id", "uri", "digest", "version"]).append_column("is_settled", is_settled)
        self._database.register("arrived", named)
        self._database.execute(
            "insert into facts select image_id, ?, uri, digest, version, is_settled, false from arrived", [place]
        )

    def digest_for(self, config: Mapping[str, Any], otherwise: str) -> str:
        """The digest that the archive has a configuration under.

        Runs that differ in nothing but what changes no pixel, such as a title or the `fit` of square images, share it:
        that of whichever began. The archive may have several from when `fit` was a part of what is digested.

        Args:
            config: of a run.
            otherwise: its own digest, which counts if there is a run of it, or no other.
        """
        if any(run.method_digest == otherwise for run in self.runs):
            return otherwise
        key = key_of(config)
        alike = [run for run in self.runs if run.key == key]
        newest = [run.method_digest for run in alike if run.is_published] or [run.method_digest for run in alike]
        return newest[-1] if newest else otherwise

    def places_of(self, method_digest: str, fit: Fit = "refuse") -> frozenset[int]:
        """Places of the runs of a method; of those with another fit it is looked up what they fitted."""
        places = frozenset(place for place, run in enumerate(self.runs) if run.method_digest == method_digest)
        for place in sorted(places):
            if self.runs[place].is_published and self.runs[place].fit != fit:
                self._look_up_fitted(place)
        return places

    def _look_up_fitted(self, place: int) -> None:
        """Mark the images of a run whose result is that of its fit alone, by their content: copies are as they are."""
        run = self.runs[place]
        for table in published_rows(run.run, ["digest", "reason", "width", "height", "altered"]):
            digests = [row["digest"] for row in table.to_pylist() if self._is_fitted(row, run.fit)]
            if not digests:
                continue
            self._database.register("fitted", pa.table({"digest": pa.array(digests, pa.string())}))
            self._database.execute(
                "update facts set is_fitted = true from fitted where facts.run = ? and facts.digest = fitted.digest",
                [place],
            )

    def _is_fitted(self, row: Mapping[str, Any], fit: Fit) -> bool:
        told = hangs_on_fit(row)
        if told is not None or fit == "refuse":  # by which it would have been refused
            return bool(told)
        return self._size is None or not has_aspect((row["width"], row["height"]), self._size)

    def of(self, image_id: str) -> list[Fact]:
        """Facts about an image, of the newest run last. Ids are asked for in ascending order; others take longer."""
        if image_id < self._asked or not self._has_begun:
            self._has_begun = True
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

    def _from(self, image_id: str) -> Iterator[_Found]:
        """Facts by id and run, from this id on."""
        cursor = self._database.cursor()
        facts = cursor.sql(
            "select image_id, run, uri, digest, version, is_settled, is_fitted from facts where image_id >= ? "
            "order by image_id, run",
            params=[image_id],
        )
        for batch in facts.to_arrow_reader(ROWS_TOGETHER):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
