"""Everything before the first shard: generator, archive, source, anchor and plan, checked before work is spent."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final, Self

import torch

from lsap_archive import ArchiveWriter, Overlaps, RunPlan, RunWriter, is_archive, planned_images
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.inversion.by_encoder import EncoderEmbedder
from lsap_core.presets import METHODS, Method, encoder_settings
from tasks.archived.anchors import keep_anchor
from tasks.archived.jobs import goes_on_in_shards_of, shards_of, summary_of
from tasks.archived.opening import geometry_of, open_writer
from tasks.archived.originals import fit_of
from tasks.inversion.known_images import KnownImages
from tasks.inversion.listing import list_images
from tasks.inversion.methods import MethodPlan, missing_shards, plan_method, planned_rows
from tasks.inversion.request import InversionRequest
from tasks.inversion.run_planner import RunPlanner, UnfinishedRun
from tasks.inversion.worker import EmbedWorker
from tasks.sources.items import SourceItem
from tasks.sources.source import PlannedImage, Source, open_source
from tasks.stage import Job
from tasks.weights.devices import FLOAT_BYTES, bytes_of_image, check_room
from tasks.weights.encoders import EncoderFacts, encoder_facts
from tasks.weights.generators import LoadedGenerator

"""Of generators that pictures can be inverted into: gray levels or colours, without an alpha channel."""


@dataclass(frozen=True)
class InversionFacts:
    """What follows from a request alone.

    Attributes:
        config: of the generator.
        anchor: digest of the anchor.
        methods: what is run, with the titles that files of encoders give.
        encoders: digest of each encoder by name.
        notes: what files of weights did not say, and what was done instead.
    """

    config: GeneratorConfig
    anchor: str
    methods: tuple[Method, ...]
    encoders: Mapping[str, str]
    notes: tuple[str, ...] = ()


def facts_of(request: InversionRequest) -> InversionFacts:
    """What a done inversion is read by; nothing is listed or planned.

    Raises:
        MissingWeightsError, CheckpointError, ConfigError: a network is not there or does not fit.
    """
    return _checked(request)[1]


class InversionStage:
    """The inversion of a source by some methods: runs are planned one by one, while the source is listed.

    To be closed (`with`).

    Attributes:
        facts: what follows from the request.
        num_images: images in the source, as far as it has been listed.
        notes: what whoever asked should know, a sentence each, so far.
    """

    part: Final = "inversions"
    verb: Final = "embed"

    def __init__(self, request: InversionRequest, *, start: bool = True) -> None:
        """Open everything and keep the anchor; nothing is planned yet.

        Args:
            request: what is asked for.
            start: write anchor and plans into the archive; False only tells what would be done.

        Raises:
            SourceError: the source cannot be read, or holds no image.
            ArchiveMismatchError: the archive belongs to another generator.
            MissingWeightsError, CheckpointError, ConfigError: a network is not there or does not fit.
            StoreRefusedError: this process may not write there.
        """
        loaded, self.facts = _checked(request)
        self.build_worker = functools.partial(EmbedWorker, request)
        self.batch_size = request.batch_size
        self.notes: list[str] = []
        self._start = start
        self._request = request
        self._left: set[str] = set()  # jobs that were handed out and are not published
        self._is_listed = False
        with contextlib.ExitStack() as opened:
            self._source = opened.enter_context(open_source(request.source))
            items = _first_looked_at(self._source)
            is_there = start or is_archive(request.archive)
            self._archive = open_writer(request.archive, loaded) if is_there else None
            if start and self._archive is not None:
                self._archive.store.check_writable()
                keep_anchor(self._archive, loaded.generator, loaded.digest, request.anchor)
            runs, retired = ([], []) if self._archive is None else self._archive.runs_and_retired()
            known = opened.enter_context(_known_images(self._archive, runs, self.facts.config.content_size))
            methods = _method_plans(request, self.facts, loaded.digest)
            self._overlaps = None if self._archive is None else _overlaps(self._archive, known)
            if start:
                self._tidy(known, {known.digest_for(planned.config, planned.digest) for planned in methods}, retired)
            self._planner = RunPlanner(
                known,
                methods,
                shard_rows=request.shard_rows,
                is_taken=self._is_taken,
                keep_read=self._keep_read,
            )
            self._listing = list_images(self._source, items, known)
            self._opened = opened.pop_all()

    @property
    def num_images(self) -> int:
        """Images of the source so far."""
        return self._planner.num_images

    def jobs(self) -> Iterator[Job]:
        """The runs to finish, unfinished ones of earlier commands first; to be gone through once.

        Raises:
            SourceError: the listing breaks off, or the storage does not answer.
        """
        for found in self._planner.runs(self._listing):
            if isinstance(found, RunPlan):
                if not self._start or self._archive is None:
                    left = range(found.num_shards)
                    shards = shards_of(found.run_id, found.method, found.num_rows, found.shard_rows, left)
                    yield Job(found.run_id, found.method, shards, is_new=True)
                    continue
                run = self._archive.start_run(found)
                yield self._job(UnfinishedRun(run, {}), is_new=True)
            elif not self._is_seen(found.run):
                yield self._job(found, is_new=False)
        self._is_listed = True
        self.notes += [self._told_anew(run) for run in self._planner.passed_over]
        self._give_up_passed_over()

    def publish(self, job_id: str) -> None:
        """Check every object of a finished run and make it visible to readers, unless they see its images already.

        Raises:
            IncompleteRunError: the run was given up, and its images are in no other one.
        """
        assert self._overlaps is not None, "who publishes has an archive"
        run = RunWriter.open(self._request.archive, job_id)
        if why := self._overlaps.publish(run, summary_of):
            self.notes.append(f"run {job_id} was not published: {why}")
        self._left.discard(job_id)
        self._give_up_passed_over()

    def describe(self) -> str:
        """One sentence about the source, once `jobs` has come to its end."""
        return str(self._source.describe())

    def close(self) -> None:
        """Let go of the source, and of what is known."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _job(self, found: UnfinishedRun, *, is_new: bool) -> Job:
        run, asked = found.run, self._request.shard_rows
        self._left.add(run.run_id)
        notes = []
        if run.shard_rows != asked:
            url = self._request.archive
            notes.append(goes_on_in_shards_of("run", run.run_id, begun=run.shard_rows, asked=asked, archive=url))
        if (begun := fit_of(run.plan["config"])) != self._request.fit:
            notes.append(
                f"run {run.run_id} is finished with the fit it was begun with, {begun}: run the same command again for "
                "images that it refuses"
            )
        self.notes += notes
        shards = tuple(missing_shards(run, found.moved))
        return Job(run.run_id, run.plan["method"], shards, is_new, "; ".join(notes))

    def _is_seen(self, run: RunWriter) -> bool:
        """Whether readers see all images of an unfinished run, which then is given up: two commands planned them."""
        assert self._overlaps is not None, "who finds a run has an archive"
        if not self._start:
            return self._overlaps.seen_in(run) is not None
        if why := self._overlaps.give_up_if_seen(run):
            self.notes.append(f"run {run.run_id}, which was unfinished, is given up: {why}")
        return bool(why)

    def _told_anew(self, run: RunWriter) -> str:
        return (
            f"run {run.run_id} was planned with shard_rows {run.shard_rows} and nothing of it is done: its images are "
            f"planned anew with {self._request.shard_rows}"
        )

    def _give_up_passed_over(self) -> None:
        """Once all that was planned is published: somebody else may be at such a run, and should not lose it before."""
        if self._start and self._is_listed and not self._left:
            for run in self._planner.passed_over:
                if not run.is_published and not run.committed_shards():
                    run.give_up(self._told_anew(run))

    def _tidy(self, known: KnownImages, methods: Set[str], retired: Sequence[str]) -> None:
        """Do what killed commands left of publishing: a listing for each run of these methods, and each retired one."""
        assert self._archive is not None and self._overlaps is not None, "who starts has an archive"
        published = [run.run for run in known.runs if run.is_published and run.method_digest in methods]
        self._overlaps.tidy(published)
        self._archive.tidy(retired)

    def _is_taken(self, run_id: str) -> bool:
        return self._archive is not None and self._archive.is_taken(run_id)

    def _keep_read(self, images: Sequence[PlannedImage]) -> None:
        if self._start and self._archive is not None:
            self._archive.keep_versions(planned_rows(images))


def _first_looked_at(source: Source) -> Iterator[SourceItem]:
    """The items of a source; raises at once where there is none."""
    items = source.items()
    return itertools.chain([next(items)], items)


def _known_images(archive: ArchiveWriter | None, runs: list[RunWriter], size: tuple[int, int]) -> KnownImages:
    if archive is None:
        return KnownImages()
    return KnownImages(planned_images(runs), archive.versions(), size=size)


def _overlaps(archive: ArchiveWriter, known: KnownImages) -> Overlaps:
    overlaps = Overlaps(archive.store, archive.generator, archive.geometry)
    for one in known.runs:
        if one.last_id:
            overlaps.note(one.run.run_id, one.method_digest, one.first_id, one.last_id)
    return overlaps


def _checked(request: InversionRequest) -> tuple[LoadedGenerator, InversionFacts]:
    """The generator, and what follows from the request, once everything was looked at and fits together."""
    loaded = request.generator.load()
    request.networks.check(loaded.config)
    _check_room(request, loaded.config)
    notes = [f"generator: {note}" for note in loaded.notes]
    digests: dict[str, str] = {}
    titles: dict[str, str] = {}
    for name in dict.fromkeys(method.encoder for method in request.methods if method.encoder is not None):
        encoder = encoder_facts(request.encoders[name], loaded, name=name, heads=request.heads.get(name))
        notes += [f"encoder {name}: {note}" for note in encoder.notes]
        for method in request.methods:
            if method.encoder == name:
                _check_settings(method, encoder, loaded)
        digests[name] = encoder.digest
        titles[name] = f"{encoder.title} ({name})" if encoder.title else name
    methods = (
        replace(method, title=titles[method.name]) if method.name in titles.keys() - METHODS.keys() else method
        for method in request.methods
    )
    return loaded, InversionFacts(
        loaded.config, request.anchor.digest(loaded.digest), tuple(methods), digests, tuple(notes)
    )


def _check_room(request: InversionRequest, config: GeneratorConfig) -> None:
    """A batch, and the trace of a shard, that no memory can hold."""
    for method in request.methods:
        bytes_each = bytes_of_image(config, goes_back=bool(method.settings.trace_terms))  # there is a loss
        check_room("batch_size", request.batch_size, bytes_each, request.device)
        recorded = len(method.settings.trace_steps) * len(method.settings.trace_terms)
        if recorded:
            field = f"shard_rows, with {len(method.settings.trace_steps)} recorded steps of {method.name}"
            check_room(field, request.shard_rows, FLOAT_BYTES * recorded, "cpu")


def _check_settings(method: Method, encoder: EncoderFacts, generator: LoadedGenerator) -> None:
    try:
        with torch.device("meta"):  # sizes are compared; its weights are for workers
            network = Encoder(encoder.config)
        EncoderEmbedder(generator.generator, network, encoder_settings(method.settings, method.encoder))
    except ConfigError as error:
        raise ConfigError(f"method {method.name}: {error}") from error


def _method_plans(request: InversionRequest, facts: InversionFacts, generator_digest: str) -> list[MethodPlan]:
    return [
        plan_method(
            method,
            generator_digest=generator_digest,
            anchor=facts.anchor,
            networks=request.networks,
            fit=request.fit,
            seed=request.seed,
            geometry=geometry_of(facts.config),
            encoder=facts.encoders.get(method.encoder or ""),
        )
        for method in facts.methods
    ]


def check(request: InversionRequest) -> None:
    """Everything that can be refused before any work: weights, networks, archive with its anchor, and source.

    Raises:
        CorruptArchiveError: the anchor is altered.
        Else as `InversionStage`.
    """
    loaded, facts = _checked(request)
    if is_archive(request.archive):
        open_writer(request.archive, loaded).get_anchor(facts.anchor)  # raises where it is altered
    with open_source(request.source) as source:
        next(source.items())  # raises where there is none; the others are counted once the run has begun
