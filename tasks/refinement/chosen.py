"""Which refiners of which inversions: checked before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from tasks.weights.refiners import LoadedNetworks, load_refiner_networks, name_of_networks
from tasks.weights.segmenters import Segmenter, choose_segmenter


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
        return _bytes_of(self.arrays)


@dataclass(frozen=True)
class _NamedNetworks:
    """Networks of a refiner, and the name that somebody gave their file."""

    name: str
    found: LoadedNetworks


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
    for refiner, networks in _checked_refiners(request, tuple(runs), loaded):
        arrays = _arrays(refiner, request, loaded.config)
        segmenter = _segmenter(refiner, request)
        for name, of_method in runs.items():
            about = _about(refiner, request, networks[name], segmenter)
            notes = _notes(refiner, networks[name], loaded, archive, of_method)
            chosen.append(RefinedMethod(of_method, refiner, about, arrays, notes))
    return loaded, chosen


def check_refiners(request: RefinementRequest) -> dict[str, int]:
    """What of a refinement can be refused before there is an archive with its inversions.

    Args:
        request: what is asked for; it names its methods.

    Returns:
        Bytes that are kept of an image, by refinement.

    Raises:
        ConfigError, CheckpointError, MissingWeightsError: as `choose_refinements`.
    """
    loaded = request.generator.load()
    request.networks.check(loaded.config)
    kept: dict[str, int] = {}
    for refiner, _ in _checked_refiners(request, request.methods, loaded):
        _segmenter(refiner, request)  # raises where none can be had
        kept |= {
            f"{name}/{refiner.name}": _bytes_of(_arrays(refiner, request, loaded.config)) for name in request.methods
        }
    return kept


def _checked_refiners(
    request: RefinementRequest, methods: Sequence[str], loaded: LoadedGenerator
) -> Iterator[tuple[NamedRefiner, dict[str, _NamedNetworks | None]]]:
    """One refiner after the other with its networks by method; those that nobody names a file for are told at once."""
    names = {refiner.name: _names_of_networks(refiner, methods, request) for refiner in request.refiners}
    if missing := [one for one in request.refiners if None in names[one.name].values()]:
        told = [f"refiner {one.name} needs its networks" for one in missing]
        wanted = dict.fromkeys(f"refiner_networks.{one.networks or one.name}=..." for one in missing)
        raise MissingWeightsError(
            f"{', '.join(told)}, and no file is named: {', '.join(wanted)}, a released file or one by "
            "`lsap run train_refiner`"
        )
    for refiner in request.refiners:
        by_method = names[refiner.name]
        read = {name: _networks(refiner, name, request, loaded) for name in dict.fromkeys(by_method.values()) if name}
        _check_room(request, refiner, loaded.config)
        yield refiner, {method: read.get(by_method.get(method) or "") for method in methods}


def _names_of_networks(
    refiner: NamedRefiner, methods: Sequence[str], request: RefinementRequest
) -> dict[str, str | None]:
    """By method, the name that the file of a refiner's networks has; None where nobody names one."""
    if not refiner.settings.needs_networks:
        return {}
    name = refiner.networks or refiner.name
    return {method: name_of_networks(f"{method}/{name}", request.refiner_networks) for method in methods}


def _networks(refiner: NamedRefiner, name: str, request: RefinementRequest, loaded: LoadedGenerator) -> _NamedNetworks:
    """The networks of a name, which fit the refiner and the generator."""
    file = request.refiner_networks[name]
    found = load_refiner_networks(file, loaded.config)
    if found.kind != refiner.settings.kind:
        raise ConfigError(
            f"{file} holds networks of {found.kind}, {refiner.name} wants those of {refiner.settings.kind}: name their "
            f"file, refiner_networks.{name}=..."
        )
    try:
        refiner.settings.refiner(RefinementParts(loaded.generator, NoLoss(), found.networks))  # raises if it cannot
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    return _NamedNetworks(name, found)


def _notes(
    refiner: NamedRefiner,
    networks: _NamedNetworks | None,
    loaded: LoadedGenerator,
    archive: Archive,
    runs: tuple[RunInfo, ...],
) -> tuple[str, ...]:
    """What is allowed, and told: networks that were trained for others than they are used with."""
    if networks is None:
        return ()
    found, notes = networks.found, list(networks.found.notes)
    if found.generator_digest not in (None, loaded.digest):
        notes.append(f"{refiner.name} was trained with another generator ({found.generator_digest})")
    run = runs[-1]
    encoder = config_of(run).encoder
    if found.encoder_digest is not None and found.encoder_digest != (encoder.digest if encoder else None):
        notes.append(f"{refiner.name} was trained on codes of another embedding than those of {run.method}")
    if found.group is not None:
        notes += _notes_of_group(refiner, found.group, archive, runs)
    return tuple(notes)


def _notes_of_group(refiner: NamedRefiner, group: Group, archive: Archive, runs: tuple[RunInfo, ...]) -> list[str]:
    """Weights that were tuned to a group, and other inversions are refined with."""
    notes, run = [], runs[-1]
    if group.method_digest != run.method_digest:
        notes.append(f"{refiner.name} was tuned to other codes ({group.method}) than those of {run.method}")
    rows = archive.rows(["run_id", "image_id"], history=True)
    of_runs = rows.filter(pc.is_in(rows["run_id"], pa.array([one.run_id for one in runs])))
    image_ids = set(of_runs["image_id"].to_pylist())
    if strangers := len(image_ids - set(group.image_ids)):
        notes.append(
            f"{refiner.name} was tuned to {len(group.image_ids)} images, and {strangers} of the {len(image_ids)} of "
            f"{run.method} are not among them"
        )
    return notes


def _segmenter(refiner: NamedRefiner, request: RefinementRequest) -> Segmenter | None:
    """What finds the segments of images for a refiner, or None where it asks for none."""
    if not isinstance(refiner.settings, SamSettings) or refiner.settings.only is not None:
        return None
    return choose_segmenter(request.segmenter, request.networks.published)


def _about(
    refiner: NamedRefiner, request: RefinementRequest, networks: _NamedNetworks | None, segmenter: Segmenter | None
) -> dict[str, Any]:
    about = {
        "name": refiner.name,
        "settings": recorded_refinement(refiner.settings),
        "networks": None if networks is None else networks.name,
        "digest": None if networks is None else networks.found.digest,
        "keep": request.keep,
    }
    if segmenter is not None:
        about["segmenter"] = asdict(segmenter)
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


def _bytes_of(arrays: Sequence[RunArray]) -> int:
    """What arrays take of an image."""
    return sum(np.dtype(one.dtype).itemsize * int(np.prod(one.item_shape)) for one in arrays)


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
