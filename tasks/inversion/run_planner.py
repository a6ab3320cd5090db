"""What is left to do: the images of a source, minus what the archive shows, as runs made while the listing goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lsap_archive import RunPlan, RunWriter
from tasks.inversion.known_images import Fact, KnownImages
from tasks.inversion.listing import ListedImage
from tasks.inversion.methods import MethodPlan, run_plan
from tasks.sources.source import PlannedImage

RUN_IMAGES = 100_000
"""A new run has at most so many images: it is planned in memory, and readers see it when all of it is done."""


@dataclass(frozen=True)
class UnfinishedRun:
    """A run of an earlier command.

    Attributes:
        run: the run.
        moved: image id -> where the image is now, of images that lay elsewhere when the run was planned.
    """

    run: RunWriter
    moved: Mapping[str, str]


class RunPlanner:
    """Goes through a listing once and gives the runs that have to be worked.

    An image is left for a method when neither the newest published run of the method that has it, nor an unfinished
    one, has it with the same content; and, if it is of another shape than the generator's images, with the same `fit`.
    What was refused is not refused again, however it was fitted since. An unfinished run that shares nothing with the
    source is that of another source, and waits for it.

    An unfinished run of which nothing is committed yet and whose shards are of another size than asked is passed over:
    its images are planned anew, as if it was not there. It may not be possible to work it at all.

    Attributes:
        num_images: images of the listing so far.
    """

    def __init__(
        self,
        known: KnownImages,
        methods: Sequence[MethodPlan],
        *,
        shard_rows: int,
        is_taken: Callable[[str], bool] = lambda run_id: False,
        keep_read: Callable[[Sequence[PlannedImage]], None] = lambda images: None,
        run_images: int = RUN_IMAGES,
    ) -> None:
        """Begin a plan.

        Args:
            known: what the archive has.
            methods: what to run.
            shard_rows: images of a shard.
            is_taken: whether a run id can not be given any more.
            keep_read: is given images that had to be read, although no method needs them: their versions are news.
            run_images: images of a run, at most.
        """
        self.num_images = 0
        self._known = known
        digests = [known.digest_for(planned.config, planned.digest) for planned in methods]
        places = [known.places_of(digest, planned.fit) for digest, planned in zip(digests, methods, strict=True)]
        unfinished = [place for place in sorted(frozenset().union(*places)) if not known.runs[place].is_published]
        self._passed = frozenset(place for place in unfinished if _is_planned_anew(known.runs[place].run, shard_rows))
        self._plans = [
            _MethodImages(planned, digest, found - self._passed)
            for planned, digest, found in zip(methods, digests, places, strict=True)
        ]
        self._waiting: dict[int, dict[str, str]] = {place: {} for place in unfinished if place not in self._passed}
        self._of_source: set[int] = set()
        self._shard_rows = shard_rows
        self._is_taken = is_taken
        self._keep_read = keep_read
        self._read: list[PlannedImage] = []
        self._run_images = run_images

    def runs(self, listing: Iterable[list[ListedImage]]) -> Iterator[UnfinishedRun | RunPlan]:
        """Runs to work on: unfinished ones as soon as the listing is past them, new ones when they are full.

        Where less is left than fills a run, all unfinished runs come before all new ones, and these in the order of the
        methods. The plans of new runs are not in the archive yet.
        """
        for listed in listing:
            self.num_images += len(listed)
            unfinished = self._waiting.keys() | self._passed
            self._of_source |= self._known.unfinished_at([one.image.uri for one in listed]) & unfinished
            for one in listed:
                self._look_at(one)
            yield from self._unfinished_before(listed[-1].image.image_id)
            yield from self._new_runs(self._run_images)
            self._hand_over_read(self._run_images)
        yield from self._unfinished_before(None)
        yield from self._new_runs(1)
        self._hand_over_read(1)

    @property
    def passed_over(self) -> list[RunWriter]:
        """Runs that are passed over and have images of this source, as far as it was listed."""
        return [self._known.runs[place].run for place in sorted(self._passed & self._of_source)]

    def _look_at(self, one: ListedImage) -> None:
        self._of_source |= {fact.run for fact in one.facts if fact.digest == one.image.digest} & self._passed
        is_left = False
        for images in self._plans:
            if self._is_done(one, images):
                continue
            images.left.append(one.image)
            is_left = True
        if one.was_read and not is_left and one.image.version is not None and one.image.problem is None:
            self._read.append(one.image)

    def _is_done(self, one: ListedImage, images: _MethodImages) -> bool:
        is_done = is_unfinished = False
        for fact in one.facts:
            if fact.run not in images.places:
                continue
            run, is_same = self._known.runs[fact.run], fact.digest == one.image.digest
            if run.is_published and is_same and fact.is_fitted and run.fit != images.planned.fit:
                is_done &= images.planned.fit == "refuse"
            elif run.is_published:
                is_done = is_same and fact.is_settled
            elif is_same:
                is_unfinished = True
                self._find(fact, one.image)
        return is_unfinished or is_done

    def _find(self, fact: Fact, image: PlannedImage) -> None:
        """An image of an unfinished run is there, perhaps at another place."""
        self._of_source.add(fact.run)
        if fact.uri != image.uri and fact.run in self._waiting:
            self._waiting[fact.run][image.image_id] = image.uri

    def _unfinished_before(self, image_id: str | None) -> Iterator[UnfinishedRun]:
        """Those of this source whose images the listing has passed; None is the end of the listing."""
        for place in sorted(self._waiting.keys() & self._of_source, key=self._order):
            run = self._known.runs[place]
            if image_id is None or run.last_id <= image_id:
                yield UnfinishedRun(run.run, self._waiting.pop(place))

    def _order(self, place: int) -> tuple[str, int]:
        """That in which runs were planned: along the listing, and there by method."""
        methods = [number for number, images in enumerate(self._plans) if place in images.places]
        return self._known.runs[place].last_id, methods[0]

    def _new_runs(self, fewest: int) -> Iterator[RunPlan]:
        for images in self._plans:
            while len(images.left) >= fewest:
                part, images.left = images.left[: self._run_images], images.left[self._run_images :]
                yield self._new_run(images, part)

    def _hand_over_read(self, fewest: int) -> None:
        if len(self._read) >= fewest:
            self._keep_read(self._read)
            self._read = []

    def _new_run(self, images: _MethodImages, part: Sequence[PlannedImage]) -> RunPlan:
        plan, repetition = run_plan(images.planned, part, self._shard_rows, known_as=images.digest), 0
        while self._is_taken(plan.run_id):  # content came back that had been replaced, or its shards were retired
            repetition += 1
            known_as, planned = images.digest, images.planned
            plan = run_plan(planned, part, self._shard_rows, repetition=repetition, known_as=known_as)
        return plan


def _is_planned_anew(run: RunWriter, shard_rows: int) -> bool:
    """Whether an unfinished run is worth nothing yet, and is not as it would be planned now."""
    return run.shard_rows != shard_rows and not run.committed_shards()


@dataclass
class _MethodImages:
    """A method, the digest and the places of its runs in the archive, and the images that are left for its next run."""

    planned: MethodPlan
    digest: str
    places: frozenset[int]
    left: list[PlannedImage] = field(default_factory=list)
