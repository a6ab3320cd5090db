"""Which refiners of which inversions: checked before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive import (
    Archive,
    RunArray,
    RunInfo,
    code_arrays,
    open_archive,
    read_anchor,
    trace_arrays,
)
from lsap_core.errors import ConfigError, MissingWeightsError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.presets import NamedRefiner, recorded_refinement
from lsap_core.refinement import RefinementParts
from lsap_core.refinement.pti_checkpoint import Group
from lsap_core.refinement.sam import SamSettings
from tasks.archived.opening import geometry_of, open_writer
from tasks.archived.refiners import NoLoss
from tasks.archived.runs import config_of, inversions_by_method
from tasks.refinement.request import RefinementRequest
from tasks.sources.source import open_source
from tasks.weights.devices import FLOAT_BYTES, bytes_of_image, check_room
from tasks.weights.generators import LoadedGenerator
from tasks.weights.networks import network_digest
from tasks.weights.refiners import LoadedNetworks, load_refiner_networks
from tasks.weights.segmenters import choose_segmenter


@dataclass(frozen=True)
class RefinedMethod:
    """A refiner of a method.

    Attributes:
        runs: the method's runs, the oldest first.
        refiner: with its settings.
        about: what runs say of it, JSON values.
        arrays: what is kept of every image, codes among it.
        notes: what whoever asked should know of its networks, a sentence each.
    """

    runs: tuple[RunInfo, ...]
    refiner: NamedRefiner
    about: dict[str, Any]
    arrays: tuple[RunArray, ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as "lsap_e/pti"."""
        return f"{self.runs[0].method}/{self.refiner.name}"

    @property
    def bytes_per_image(self) -> int:
        """What is kept of an image beside its row, without files of images."""
        return sum(np.dtype(one.dtype).itemsize * int(np.prod(one.item_shape)) for one in self.arrays)


def choose_refinements(request: RefinementRequest) -> tuple[LoadedGenerator, list[RefinedMethod]]:
    """The generator, and every refiner of every method, checked; nothing is written.

    Raises:
        ArchiveNotFoundError, ArchiveMismatchError: no archive is there, or that of another generator.
        ArchiveKeyError: it has no such inversion.
        ArchiveNotFoundError, CorruptArchiveError: an anchor of the codes is missing or altered.
        ConfigError, CheckpointError, MissingWeightsError: a network or segmenter is not there or does not fit, or no
            memory can hold what is asked for.
        SourceError: the source cannot be read.
    """
    archive = open_archive(request.archive)
    loaded = request.generator.load()
    open_writer(request.archive, loaded)
    request.networks.check(loaded.config)
    with open_source(request.source) as source:
        next(source.items())  # raises where there is none
    runs = inversions_by_method(archive, request.methods)
    for digest in {run.config["anchor"] for of_method in runs.values() for run in of_method}:
        read_anchor(request.archive, digest)  # raises where no worker could measure SNCD by it
    chosen = []
    for refiner in request.refiners:
        networks = _networks(refiner, request, loaded)
        about = _about(refiner, request, networks)
        arrays = _arrays(refiner, request, loaded.config)
        _check_room(request, refiner, loaded.config)
        chosen += [
            RefinedMethod(of_method, refiner, about, arrays, _notes(refiner, networks, loaded, archive, of_method))
            for of_method in runs.values()
        ]
    return loaded, chosen


def _networks(refiner: NamedRefiner, request: RefinementRequest, loaded: LoadedGenerator) -> LoadedNetworks | None:
    """The networks of a refiner, which fit it and the generator."""
    if not refiner.settings.needs_networks:
        return None
    name = refiner.networks or refiner.name
    if name not in request.refiner_networks:
        raise MissingWeightsError(
            f"refiner {refiner.name} needs its networks, and no file is named: refiner_networks.{name}=..., a "
            "released file or one by `lsap run train_refiner`"
        )
    found = load_refiner_networks(request.refiner_networks[name], loaded.config)
    if found.kind != refiner.settings.kind:
        raise ConfigError(
            f"{request.refiner_networks[name]} holds networks of {found.kind}, {refiner.name} wants those of "
            f"{refiner.settings.kind}: name their file, refiner_networks.{name}=..."
        )
    try:
        parts = RefinementParts(loaded.generator, NoLoss(), found.networks)
        refiner.settings.refiner(parts)  # raises where they do not fit
    except ConfigError as error:
        raise ConfigError(f"{request.refiner_networks[name]}: {error}") from error
    return found


def _notes(
    refiner: NamedRefiner,
    networks: LoadedNetworks | None,
    loaded: LoadedGenerator,
    archive: Archive,
    runs: tuple[RunInfo, ...],
) -> tuple[str, ...]:
    """What is allowed, and told: networks that were trained for others than they are used with."""
    if networks is None:
        return ()
    notes = list(networks.notes)
    if networks.generator_digest not in (None, loaded.digest):
        notes.append(f"{refiner.name} was trained with another generator ({networks.generator_digest})")
    run = runs[-1]
    encoder = config_of(run).encoder
    if networks.encoder_digest is not None and networks.encoder_digest != (encoder.digest if encoder else None):
        notes.append(f"{refiner.name} was trained on codes of another embedding than those of {run.method}")
    if networks.group is not None:
        notes += _notes_of_group(refiner, networks.group, archive, runs)
    return tuple(notes)


def _notes_of_group(refiner: NamedRefiner, group: Group, archive: Archive, runs: tuple[RunInfo, ...]) -> list[str]:
    """Weights that were tuned to a group, and other inversions are refined with."""
    notes, run = [], runs[-1]
    if group.method_digest != run.method_digest:
        notes.append(f"{refiner.name} was tuned to other codes ({group.method}) than those of {run.method}")
    rows = archive.rows(["run_id", "image_id"])
    of_runs = rows.filter(pc.is_in(rows["run_id"], pa.array([one.run_id for one in runs])))
    image_ids = set(of_runs["image_id"].to_pylist())
    if strangers := len(image_ids - set(group.image_ids)):
        notes.append(
            f"{refiner.name} was tuned to {len(group.image_ids)} images, and {strangers} of the {len(image_ids)} of "
            f"{run.method} are not among them"
        )
    return notes


def _about(refiner: NamedRefiner, request: RefinementRequest, networks: LoadedNetworks | None) -> dict[str, Any]:
    about = {
        "name": refiner.name,
        "settings": recorded_refinement(refiner.settings),
        "networks": None if networks is None else refiner.networks or refiner.name,
        "digest": None if networks is None else networks.digest,
        "keep": request.keep,
    }
    if isinstance(refiner.settings, SamSettings):
        about["segmenter"] = asdict(choose_segmenter(request.segmenter, request.networks.published))
    return about


def digests_of_networks(request: RefinementRequest) -> dict[str, str]:
    """Of what compares images while it is refined, by name: they decide what comes of it."""
    name = request.networks.perceptual
    return {name: network_digest(name, request.networks.published)}


def _arrays(refiner: NamedRefiner, request: RefinementRequest, config: GeneratorConfig) -> tuple[RunArray, ...]:
    settings = refiner.settings
    arrays = [*code_arrays(geometry_of(config)), *trace_arrays(settings.trace_steps, settings.trace_terms)]
    if request.keep == "state":
        arrays += [
            RunArray(one.name, one.shape, one.dimensions, dtype=request.state_type)
            for one in settings.state_arrays(config)
        ]
    return tuple(arrays)


def _check_room(request: RefinementRequest, refiner: NamedRefiner, config: GeneratorConfig) -> None:
    """A batch that no memory can hold."""
    state = sum(FLOAT_BYTES * int(np.prod(one.shape)) for one in refiner.settings.state_arrays(config))
    bytes_each = bytes_of_image(config, goes_back=refiner.settings.goes_back) + state
    check_room(f"batch_size, of {refiner.name}", request.batch_size, bytes_each, request.device)


def check_state_fits(request: RefinementRequest, one: RefinedMethod, shard_rows: int) -> None:
    """A shard's states are in a worker's memory until the shard is written.

    Raises:
        ConfigError: no memory holds them.
    """
    try:
        check_room(f"shards of {one.name}", shard_rows, one.bytes_per_image, "cpu")
    except ConfigError as error:
        raise ConfigError(
            f"{error}; shards are those of the inversion: invert with smaller shard_rows, or refine with keep: images"
        ) from error
