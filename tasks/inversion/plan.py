"""Everything before the first shard: generator, archive, source, anchor and plan, checked before work is spent."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from lsap_archive import ArchiveWriter, RunPlan, Store
from lsap_archive.format.layout import ARCHIVE_KEY
from lsap_archive.writing.planned import planned_images
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import ContentBox
from lsap_core.inversion.by_encoder import EncoderEmbedder
from lsap_core.presets import METHODS, Method, encoder_settings
from tasks.archived.anchors import AnchorOptions, keep_anchor
from tasks.archived.opening import open_writer
from tasks.inversion.known_images import KnownImages
from tasks.inversion.listing import list_images
from tasks.inversion.methods import MethodPlan, PlannedShard, missing_shards, plan_method, planned_rows
from tasks.inversion.run_planner import RunPlanner, UnfinishedRun
from tasks.sources.items import SourceItem
from tasks.sources.source import Source, open_source
from tasks.weights.encoders import LoadedEncoder, check_generator, load_encoder
from tasks.weights.generators import LoadedGenerator, load_generator
from tasks.weights.networks import NetworkChoice


@dataclass(frozen=True)
class Request:
    """What is asked for, as the tasks take it.

    Attributes:
        source: where the images are.
        archive: URL of the archive.
        generator: path or URL of the generator's weights.
        methods: what to run, in order.
        networks: what compares images.
        anchor: what decides the anchor.
        fit: what to do with images of another shape.
        seed: of the run.
        shard_rows: images of a shard.
        encoders: path or URL of every encoder that a method names.
        content_box: rows and columns of the generator's images that carry the picture, or None for what it says.
    """

    source: str
    archive: str
    generator: str
    methods: tuple[Method, ...]
    networks: NetworkChoice
    anchor: AnchorOptions
    fit: str
    seed: int
    shard_rows: int
    encoders: Mapping[str, str] = field(default_factory=dict)
    content_box: ContentBox | None = None


@dataclass(frozen=True)
class PlannedRun:
    """A run to work on.

    Attributes:
        run_id: the run; its plan is in the archive.
        method: name of its method.
        shards: those that need work; none where it only has to be published.
    """

    run_id: str
    method: str
    shards: tuple[PlannedShard, ...]


@dataclass(frozen=True)
class Prepared:
    """What is left to do.

    Attributes:
        anchor: digest of the kept anchor.
        runs: ids of the runs to finish, unfinished ones of earlier commands first.
        shards: the shards that still need work.
        num_images: images in the source.
        source: one sentence about the source.
        methods: what is run, with the titles that files of encoders give.
        encoders: digest of each encoder by name.
    """

    anchor: str
    runs: tuple[str, ...]
    shards: tuple[PlannedShard, ...]
    num_images: int
    source: str
    methods: tuple[Method, ...]
    encoders: Mapping[str, str]


class OpenPlan:
    """A plan whose runs are made one by one, while the source is listed. To be closed (`with`).

    Attributes:
        anchor: digest of the kept anchor.
        methods: what is run, with the titles that files of encoders give.
        encoders: digest of each encoder by name.
        num_images: images in the source, as far as it has been listed.
    """

    def __init__(self, request: Request) -> None:
        """Open everything and keep the anchor; nothing is planned yet.

        Raises:
            SourceError: the source cannot be read, or holds no image.
            ArchiveMismatchError: the archive belongs to another generator.
            MissingWeightsError, CheckpointError, ConfigError: a network is not there or does not fit.
        """
        parts = _checked(request)
        self.methods, self.encoders = parts.methods, parts.encoders
        with contextlib.ExitStack() as opened:
            self._source = opened.enter_context(open_source(request.source))
            items = _first_looked_at(self._source)
            self._archive = open_writer(request.archive, parts.generator)
            self.anchor = keep_anchor(self._archive, parts.generator.generator, parts.generator.digest, request.anchor)
            known = opened.enter_context(_known_images(self._archive))
            self._planner = RunPlanner(
                known,
                _method_plans(request, parts),
                shard_rows=request.shard_rows,
                is_taken=self._archive.is_taken,
                keep_read=lambda images: self._archive.keep_versions(planned_rows(images)),
            )
            self._listing = list_images(self._source, items, known)
            self._opened = opened.pop_all()

    @property
    def num_images(self) -> int:
        """Images of the source so far."""
        return self._planner.num_images

    def runs(self) -> Iterator[PlannedRun]:
        """The runs to finish, each with its plan in the archive; to be gone through once.

        Raises:
            SourceError: the listing breaks off, or the storage does not answer.
        """
        for found in self._planner.runs(self._listing):
            if isinstance(found, RunPlan):
                found = UnfinishedRun(self._archive.start_run(found), {})
            shards = missing_shards(found.run, found.moved)
            yield PlannedRun(found.run.run_id, found.run.plan["method"], tuple(shards))

    def describe(self) -> str:
        """One sentence about the source, once `runs` has come to its end."""
        return str(self._source.describe())

    def close(self) -> None:
        """Let go of the source, and of what is known."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def prepare(request: Request) -> Prepared:
    """The whole plan at once, all of it in the archive and in memory; for sources of some ten thousand images.

    Raises:
        As `OpenPlan` and `OpenPlan.runs`.
    """
    with OpenPlan(request) as plan:
        runs = list(plan.runs())
        return Prepared(
            anchor=plan.anchor,
            runs=tuple(run.run_id for run in runs),
            shards=tuple(shard for run in runs for shard in run.shards),
            num_images=plan.num_images,
            source=plan.describe(),
            methods=plan.methods,
            encoders=plan.encoders,
        )


@dataclass(frozen=True)
class DryPlan:
    """What `prepare` would do.

    Attributes:
        config: of the generator.
        num_images: images in the source.
        source: one sentence about the source.
        unfinished: ids of unfinished runs that would be finished.
        new: ids of runs that would be made.
        images_left: images by method that would be embedded.
        shards_left: shards that would be worked on.
    """

    config: GeneratorConfig
    num_images: int
    source: str
    unfinished: tuple[str, ...]
    new: tuple[str, ...]
    images_left: Mapping[str, int]
    shards_left: int


def prepare_dry(request: Request) -> DryPlan:
    """The same checks and the same plan, without writing anything, and a run at a time in memory."""
    parts = _checked(request)
    unfinished, new, images_left, shards_left = [], [], Counter[str](), 0
    with open_source(request.source) as source:
        items = _first_looked_at(source)
        is_there = Store.from_url(request.archive).exists(ARCHIVE_KEY)
        archive = open_writer(request.archive, parts.generator) if is_there else None
        with _known_images(archive) as known:
            plans = _method_plans(request, parts)
            is_taken = (lambda run_id: False) if archive is None else archive.is_taken
            planner = RunPlanner(known, plans, shard_rows=request.shard_rows, is_taken=is_taken)
            for found in planner.runs(list_images(source, items, known)):
                if isinstance(found, RunPlan):
                    new.append(found.run_id)
                    images_left[found.method] += found.num_rows
                    shards_left += found.num_shards
                else:
                    shards = missing_shards(found.run, found.moved)
                    unfinished.append(found.run.run_id)
                    images_left[found.run.plan["method"]] += sum(shard.num_images for shard in shards)
                    shards_left += len(shards)
        description = str(source.describe())
    left = {method: number for method, number in images_left.items() if number}
    config = parts.generator.config
    return DryPlan(config, planner.num_images, description, tuple(unfinished), tuple(new), left, shards_left)


def _first_looked_at(source: Source) -> Iterator[SourceItem]:
    """The items of a source; raises at once where there is none."""
    items = source.items()
    return itertools.chain([next(items)], items)


def _known_images(archive: ArchiveWriter | None) -> KnownImages:
    if archive is None:
        return KnownImages()
    return KnownImages(planned_images(archive.runs()), archive.versions())


@dataclass(frozen=True)
class _Parts:
    """What was looked at before any work, and fits together."""

    generator: LoadedGenerator
    methods: tuple[Method, ...]
    encoders: dict[str, str]  # digest by name


def _checked(request: Request) -> _Parts:
    loaded = load_generator(request.generator, content_box=request.content_box)
    request.networks.check(loaded.config)
    digests: dict[str, str] = {}
    titles: dict[str, str] = {}
    for name in dict.fromkeys(method.encoder for method in request.methods if method.encoder is not None):
        encoder = _load_fitting(request.encoders[name], loaded)
        for method in request.methods:
            if method.encoder == name:
                _check_settings(method, encoder, loaded)
        digests[name] = encoder.digest
        titles[name] = f"{encoder.title} ({name})" if encoder.title else name
    methods = (
        replace(method, title=titles[method.name]) if method.name in titles.keys() - METHODS.keys() else method
        for method in request.methods
    )
    return _Parts(loaded, tuple(methods), digests)


def _load_fitting(location: str, generator: LoadedGenerator) -> LoadedEncoder:
    encoder = load_encoder(location, generator_config=generator.config)
    check_generator(encoder, generator, location)
    return encoder


def _check_settings(method: Method, encoder: LoadedEncoder, generator: LoadedGenerator) -> None:
    try:
        EncoderEmbedder(generator.generator, encoder.encoder, encoder_settings(method.settings, method.encoder))
    except ConfigError as error:
        raise ConfigError(f"method {method.name}: {error}") from error


def _method_plans(request: Request, parts: _Parts) -> list[MethodPlan]:
    digest = parts.generator.digest
    anchor = request.anchor.digest(digest)
    return [
        plan_method(
            method,
            generator_digest=digest,
            anchor=anchor,
            networks=request.networks,
            fit=request.fit,
            seed=request.seed,
            encoder=parts.encoders.get(method.encoder or ""),
        )
        for method in parts.methods
    ]


def check(request: Request) -> None:
    """Everything that can be refused before any work: weights, networks, archive and source.

    Raises:
        As `prepare`.
    """
    loaded = _checked(request).generator
    if Store.from_url(request.archive).exists(ARCHIVE_KEY):
        open_writer(request.archive, loaded)
    with open_source(request.source) as source:
        next(source.items())  # raises where there is none; the others are counted once the run has begun
