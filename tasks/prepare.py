"""Everything before the first shard: generator, archive, source, anchor and plan, checked before work is spent."""

from __future__ import annotations

from dataclasses import dataclass

from lsap_archive import ArchiveWriter, Geometry, RunPlan, RunWriter, Store
from lsap_archive.layout import ARCHIVE_KEY
from lsap_core.generators.config import GeneratorConfig
from lsap_core.presets import Method
from tasks.anchor import AnchorOptions, keep_anchor
from tasks.networks import NetworkChoice
from tasks.planning import MethodPlan, PlannedShard, missing_shards, plan_method, plan_runs, run_plan
from tasks.sources import PlannedImage, open_source, plan_items
from tasks.weights import LoadedGenerator, load_generator


@dataclass(frozen=True)
class Request:
    """What is asked for, as the tasks take it."""

    source: str
    archive: str
    generator: str
    methods: tuple[Method, ...]
    networks: NetworkChoice
    anchor: AnchorOptions
    fit: str
    seed: int
    shard_rows: int


@dataclass(frozen=True)
class Prepared:
    """What is left to do.

    Attributes:
        anchor: digest of the kept anchor.
        runs: ids of the runs to finish, unfinished ones of earlier commands first.
        shards: the shards that still need work.
        num_images: images in the source.
        source: one sentence about the source.
    """

    anchor: str
    runs: tuple[str, ...]
    shards: tuple[PlannedShard, ...]
    num_images: int
    source: str


def prepare(request: Request) -> Prepared:
    """Open everything, keep the anchor, write the plans of new runs.

    Raises:
        SourceError: the source cannot be read, or holds no image.
        ArchiveMismatchError: the archive belongs to another generator.
        MissingWeightsError, CheckpointError, ConfigError: a network is not there or does not fit.
    """
    loaded = _checked_generator(request)
    images, description = list_images(request.source)
    archive = open_writer(request.archive, loaded)
    anchor = keep_anchor(archive, loaded.generator, loaded.digest, request.anchor)
    runs, _ = plan_runs(archive, _method_plans(request, loaded), images, shard_rows=request.shard_rows)
    shards = tuple(shard for run in runs for shard in missing_shards(run, images))
    return Prepared(anchor, tuple(run.run_id for run in runs), shards, len(images), description)


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
    loaded = _checked_generator(request)
    images, description = list_images(request.source)
    plans = _method_plans(request, loaded)
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


def _checked_generator(request: Request) -> LoadedGenerator:
    loaded = load_generator(request.generator)
    request.networks.check(loaded.config)
    return loaded


def _method_plans(request: Request, loaded: LoadedGenerator) -> list[MethodPlan]:
    anchor = request.anchor.digest(loaded.digest)
    return [
        plan_method(
            method,
            generator_digest=loaded.digest,
            anchor=anchor,
            networks=request.networks,
            fit=request.fit,
            seed=request.seed,
        )
        for method in request.methods
    ]


def check(request: Request) -> None:
    """Everything that can be refused before any work: weights, networks, archive and source.

    Raises:
        As `prepare`.
    """
    loaded = _checked_generator(request)
    if Store.from_url(request.archive).exists(ARCHIVE_KEY):
        open_writer(request.archive, loaded)
    with open_source(request.source) as source:
        next(source.items())  # raises where there is none; the others are counted once the run has begun
