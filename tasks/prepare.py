"""Everything before the first shard: generator, archive, source, anchor and plan, checked before work is spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lsap_archive import ArchiveWriter, Geometry, RunPlan, RunWriter, Store
from lsap_archive.layout import ARCHIVE_KEY
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import ContentBox
from lsap_core.inversion.by_encoder import EncoderEmbedder
from lsap_core.presets import METHODS, Method
from tasks.anchor import AnchorOptions, keep_anchor
from tasks.encoders import LoadedEncoder, check_generator, load_encoder
from tasks.networks import NetworkChoice
from tasks.planning import (
    MethodPlan,
    PlannedShard,
    encoder_settings,
    missing_shards,
    plan_method,
    plan_runs,
    run_plan,
)
from tasks.sources import PlannedImage, open_source, plan_items
from tasks.weights import LoadedGenerator, load_generator


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


def prepare(request: Request) -> Prepared:
    """Open everything, keep the anchor, write the plans of new runs.

    Raises:
        SourceError: the source cannot be read, or holds no image.
        ArchiveMismatchError: the archive belongs to another generator.
        MissingWeightsError, CheckpointError, ConfigError: a network is not there or does not fit.
    """
    parts = _checked(request)
    loaded = parts.generator
    images, description = list_images(request.source)
    archive = open_writer(request.archive, loaded)
    anchor = keep_anchor(archive, loaded.generator, loaded.digest, request.anchor)
    runs, _ = plan_runs(archive, _method_plans(request, parts), images, shard_rows=request.shard_rows)
    shards = tuple(shard for run in runs for shard in missing_shards(run, images))
    run_ids = tuple(run.run_id for run in runs)
    return Prepared(anchor, run_ids, shards, len(images), description, parts.methods, parts.encoders)


@dataclass(frozen=True)
class DryPlan:
    """What `prepare` would do."""

    config: GeneratorConfig
    num_images: int
    source: str
    unfinished: tuple[RunWriter, ...]
    new: tuple[RunPlan, ...]


def prepare_dry(request: Request) -> DryPlan:
    """The same checks and the same plan, without writing anything."""
    parts = _checked(request)
    loaded = parts.generator
    images, description = list_images(request.source)
    plans = _method_plans(request, parts)
    if Store.from_url(request.archive).exists(ARCHIVE_KEY):
        archive = open_writer(request.archive, loaded)
        runs, new = plan_runs(archive, plans, images, shard_rows=request.shard_rows, start=False)
    else:
        runs, new = [], [run_plan(plan, images, request.shard_rows) for plan in plans]
    return DryPlan(loaded.config, len(images), description, tuple(runs), tuple(new))


def list_images(spec: str) -> tuple[list[PlannedImage], str]:
    """Every image of a source with its digest, and one sentence about the source.

    Raises:
        SourceError: the source cannot be read, or holds no image.
    """
    with open_source(spec) as source:
        images = list(plan_items(source))
        description = str(source.describe())
    return images, description


def open_writer(url: str, loaded: LoadedGenerator) -> ArchiveWriter:
    """The archive of a generator, made if there is none."""
    config = loaded.config
    return ArchiveWriter.open(
        url,
        generator_digest=loaded.digest,
        generator_name=f"stylegan2-{config.resolution}",
        geometry=Geometry(config.num_ws, config.w_dim, config.noise_sides),
    )


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
