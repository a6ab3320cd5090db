"""Runs of one method with the same images, as two commands at once plan them: each image counts once.

Of two runs that have an image with the same content the one that was published first counts. A run whose images all
are in older ones is given up; where some are, the shards that hold nothing else are retired, and of the other shards
readers leave out what is there twice.

Two commands may publish at the same time, each before it sees the other's manifest. So both look again afterwards, at
what they published and at what is newer: whoever is last sees all, and what it does follows from the manifests alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lsap_archive.errors import ArchiveNotFoundError, CorruptArchiveError, IncompleteRunError
from lsap_archive.format.layout import RUNS_PREFIX, Geometry
from lsap_archive.format.manifest import Manifest
from lsap_archive.reading.checked import read_header
from lsap_archive.reading.retirement import is_retired, retired_of
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store
from lsap_archive.writing.planned_images import planned_images, unfitted
from lsap_archive.writing.publication import Publication
from lsap_archive.writing.run_writer import RunWriter


class _Span(NamedTuple):
    """Between which ids the images of a run lie."""

    first: str
    last: str

    def meets(self, other: _Span) -> bool:
        """Whether both may have an image."""
        return self.first <= other.last and other.first <= self.last


class Overlaps:
    """Finds what runs of an archive have in common; what it has looked at once it remembers."""

    def __init__(self, store: Store, generator: dict[str, str], geometry: Geometry) -> None:
        self._store = store
        self._generator = generator
        self._geometry = geometry
        self._methods: dict[str, str | None] = {}  # None of what is made of a run, and goes with it
        self._spans: dict[str, _Span] = {}

    @classmethod
    def of_archive(cls, store: Store) -> Overlaps:
        """Those of the runs of an archive.

        Raises:
            ArchiveNotFoundError, CorruptArchiveError, ArchiveMismatchError: as `read_header`.
        """
        return cls(store, *read_header(store))

    def note(self, run_id: str, method_digest: str, first_id: str, last_id: str) -> None:
        """Remember between which ids the images of an inversion lie, so that they are not read for it."""
        self._methods[run_id] = method_digest
        self._spans[run_id] = _Span(first_id, last_id)

    def publish(self, run: RunWriter, summarize: Callable[[RunWriter], Mapping[str, Any]]) -> str | None:
        """Publish an inversion, unless readers see all its images already.

        Args:
            run: with all shards committed.
            summarize: gives the summary that RunWriter.publish takes.

        Returns:
            None if it is published, by whomever; else why it was given up, in one sentence.

        Raises:
            IncompleteRunError, CorruptArchiveError: as RunWriter.publish, and where it was given up although its
                images are nowhere else.
        """
        if run.is_given_up:
            return self._given_up(run)
        run.promote_committed()
        if not run.is_published and (why := self.give_up_if_seen(run)):
            return why
        try:
            run.show(summarize(run))
        except (CorruptArchiveError, IncompleteRunError):  # what it consists of is removed when it is given up
            if not run.is_given_up:
                raise
        if run.is_given_up:
            return self._given_up(run)
        self.settle(run)
        run.tidy()
        return run.why_given_up() if run.is_given_up else None

    def give_up_if_seen(self, run: RunWriter) -> str | None:
        """Give up a run that is not published and whose images readers see all, with the same content.

        Returns:
            Why, in one sentence; None where it was not.
        """
        seen_in = self.seen_in(run)
        if seen_in is None:
            return None
        why = f"all its images are in {_named(seen_in)}, with the same content"
        run.give_up(why)
        return why

    def seen_in(self, run: RunWriter) -> list[str] | None:
        """The other runs in which readers see all images of a run; None where they do not see all."""
        found = self._elsewhere(run, self._others(run))
        return sorted(set(found.values())) if len(found) == run.num_rows else None

    def settle(self, run: RunWriter) -> list[str]:
        """Let images of a published run, and of newer ones that have them too, count once.

        Returns:
            What was retired, by name.
        """
        others = self._others(run)
        if not others:
            return []
        orders = self._orders([run, *others])
        newer = [one for one in others if orders.get(one.run_id, ()) > orders[run.run_id]]
        done = self._settle_one(run, [one for one in others if one not in newer and one.run_id in orders])
        for one in newer:
            of_one = self._others(one)
            orders |= self._orders([other for other in of_one if other.run_id not in orders])
            done += self._settle_one(one, [x for x in of_one if orders.get(x.run_id, ()) < orders[one.run_id]])
        return done

    def tidy(self, runs: Sequence[RunWriter]) -> None:
        """Do the last steps of publishing for published inversions of which a killed command left them."""
        for run, is_tidy in zip(runs, in_threads(lambda run: run.is_tidy, runs), strict=True):
            if not is_tidy:
                self.settle(run)
                run.tidy()

    def _settle_one(self, run: RunWriter, older: Sequence[RunWriter]) -> list[str]:
        """Retire what older runs have of a run, by shards or all of it, and note what is left of that."""
        found = self._elsewhere(run, older)
        if not found:
            return []
        publication = Publication(self._store, Manifest, run.run_id)
        where = f"in {_named(sorted(set(found.values())))}, with the same content"
        retired = retired_of(self._store, run.run_id)
        left = [shard for shard in run.own_shards if shard not in retired.shards]
        twice = [shard for shard in left if all(row in found for row in run.rows_of(shard))]
        if twice == left:
            publication.retire([f"all its images are {where}"])
            return [publication.prefix]
        for shard in twice:
            publication.retire([f"all its images are {where}"], shard)
        done = [f"shard {shard} of {publication.prefix}" for shard in twice]
        mixed = {row for shard in left if shard not in twice for row in run.rows_of(shard)}
        if not retired.has_twice and (number := len(mixed & found.keys())):
            publication.count_once([f"of its images {number} are {where}, and count there"])
            done.append(f"{number} rows of {publication.prefix}")
        return done

    def _given_up(self, run: RunWriter) -> str:
        """Why a run that this command worked on was given up meanwhile.

        Raises:
            IncompleteRunError: its images are nowhere else.
        """
        why = self.give_up_if_seen(run)  # also removes what was written since
        if why is None:
            run.refuse_given_up()
        return why or run.why_given_up()

    def _elsewhere(self, run: RunWriter, others: Sequence[RunWriter]) -> dict[int, str]:
        """Rows of a run whose images readers see in others with this content, and in which: the newest that has it."""
        if not others:
            return {}
        columns = (run.images.column(name).to_pylist() for name in ("image_id", "digest"))
        digests = dict(zip(*columns, strict=True))
        newest: dict[str, str | None] = {}
        for one in planned_images(list(others)):
            alike = None if _fit_of(run) == _fit_of(one.run) else unfitted(run) & unfitted(one.run)
            ids, found = (one.images.column(name).to_pylist() for name in ("image_id", "digest"))
            for image_id, digest in zip(ids, found, strict=True):
                if image_id in digests:
                    is_open = image_id in one.unsettled or image_id in one.of_reader
                    is_same = digest == digests[image_id] and not is_open
                    is_same &= alike is None or image_id in alike
                    newest[image_id] = one.run.run_id if is_same else None
        rows = ((row, newest.get(image_id)) for row, image_id in enumerate(digests))
        return {row: run_id for row, run_id in rows if run_id is not None}

    def _orders(self, runs: Sequence[RunWriter]) -> dict[str, tuple[int, str, str]]:
        """What sorts runs that are published, the newest last, by id."""

        def order_of(run: RunWriter) -> tuple[int, str, str] | None:
            try:
                return run.manifest().order
            except ArchiveNotFoundError:
                return None

        found = zip(runs, in_threads(order_of, runs), strict=True)
        return {run.run_id: order for run, order in found if order is not None}

    def _others(self, run: RunWriter) -> list[RunWriter]:
        """Other inversions of the same method that readers see and that may have images of this one."""
        if run.subject is not None:
            return []
        method_digest, own = run.plan["method_digest"], self._span_of(run)
        found = []
        for run_id in self._store.folders(RUNS_PREFIX):
            if run_id == run.run_id or self._method_of(run_id) != method_digest:
                continue
            if run_id in self._spans and not self._spans[run_id].meets(own):
                continue
            other = RunWriter(self._store, run_id, self._generator, self._geometry)
            if self._span_of(other).meets(own) and other.is_published and not other.is_given_up:
                found.append(other)
        return found

    def _method_of(self, run_id: str) -> str | None:
        """Digest of the method of an inversion; None for everything else."""
        if run_id not in self._methods:
            if is_retired(self._store, "run", run_id):
                self._methods[run_id] = None
            elif Publication(self._store, Manifest, run_id).is_planned:
                run = RunWriter(self._store, run_id, self._generator, self._geometry)
                self._methods[run_id] = None if run.subject is not None else run.plan["method_digest"]
        return self._methods.get(run_id)

    def _span_of(self, run: RunWriter) -> _Span:
        if run.run_id not in self._spans:
            ids = run.images.column("image_id").to_pylist()
            self._spans[run.run_id] = _Span(min(ids), max(ids))
        return self._spans[run.run_id]


def _fit_of(run: RunWriter) -> Any:
    """What an inversion does with images of another shape than the generator's; two may differ in it."""
    return run.plan["config"].get("fit")


def _named(run_ids: Sequence[str]) -> str:
    """Some runs by name; of many the first ones."""
    shown = ", ".join(run_ids[:3]) + (f" and {len(run_ids) - 3} more" if len(run_ids) > 3 else "")
    return f"{'run' if len(run_ids) == 1 else 'runs'} {shown}"
