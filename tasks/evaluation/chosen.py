"""Which inversions and edits are to be measured, and with what: checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lsap_archive import RunInfo, open_archive, read_anchor
from lsap_core.errors import ConfigError
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.presets import PASSES, encoder_settings, settings_of
from tasks.archived.opening import open_writer
from tasks.archived.refiners import renderable
from tasks.archived.runs import IMPORTED, config_of, runs_by_method
from tasks.editing.chosen import EditedMethod, check_edit, check_file, edited_method, refuse_in_s
from tasks.evaluation.request import EvaluationRequest, Synthetic
from tasks.measuring.attributes import load_attribute
from tasks.measuring.frechet import check_frechet
from tasks.sources.source import open_source
from tasks.weights.devices import bytes_of_image, check_room
from tasks.weights.encoders import check_generator, load_encoder
from tasks.weights.generators import LoadedGenerator


@dataclass(frozen=True)
class ChosenRuns:
    """What is to be measured, checked.

    Attributes:
        generator: the loaded generator.
        runs: of every method or edit, the oldest first.
        lec: edits of the editing consistency of every method that an encoder inverted.
        encoders: name, digest and passes of the encoder by method.
        left_out: refinements that cannot be rendered, a sentence each.
    """

    generator: LoadedGenerator
    runs: Mapping[str, tuple[RunInfo, ...]]
    lec: Mapping[str, tuple[EditedMethod, ...]]
    encoders: Mapping[str, dict[str, Any]]
    left_out: tuple[str, ...] = ()

    @property
    def all_lec(self) -> list[EditedMethod]:
        """The edits of every method."""
        return [edit for edits in self.lec.values() for edit in edits]


def choose_runs(request: EvaluationRequest) -> ChosenRuns:
    """Everything that is asked for, checked; nothing is written.

    Raises:
        ArchiveNotFoundError, ArchiveMismatchError: no archive is there, or that of another generator.
        ArchiveNotFoundError, CorruptArchiveError: an anchor of the codes is missing or altered.
        ArchiveKeyError: it has no such method.
        ConfigError, CheckpointError, MissingWeightsError: a network, edit or encoder is not there or does not fit.
        SourceError: a source cannot be read.
    """
    loaded = request.generator.load()
    check_room("batch_size", request.batch_size, bytes_of_image(loaded.config, goes_back=False), request.device)
    if request.synthetic is not None:
        return ChosenRuns(loaded, {}, {}, _encoders_of_synthetic(request, request.synthetic, loaded))
    archive = open_archive(request.archive)
    open_writer(request.archive, loaded)
    _check_networks(request, loaded)
    runs = runs_by_method(archive, request.methods, with_edits=True, versions=request.versions)
    runs, left_out = renderable(runs, request.methods, request.refiners)
    for digest in {run.config["anchor"] for of_method in runs.values() for run in of_method}:
        read_anchor(request.archive, digest)  # raises where no worker could measure SNCD by it
    lec: dict[str, tuple[EditedMethod, ...]] = {}
    encoders: dict[str, dict[str, Any]] = {}
    for name, of_method in runs.items() if request.lec else ():
        if not _is_by_encoder(of_method[0]):
            continue
        encoders[name] = _checked_encoder(request, loaded, **_encoder_of(of_method[0]))
        for spec in request.lec.values():
            check_edit(spec, loaded, archive, of_method)
            refuse_in_s(spec, loaded, "lec")
        lec[name] = tuple(
            edited_method(spec, of_method, loaded.digest, request.calibration) for spec in request.lec.values()
        )
    if request.lec and not lec:
        raise ConfigError(
            f"lec: none of {', '.join(runs)} was inverted by an encoder; leave it out, or add such methods"
        )
    return ChosenRuns(loaded, runs, lec, encoders, tuple(left_out))


def check_evaluation(request: EvaluationRequest) -> None:
    """What of an evaluation can be refused before there is an archive with what it measures.

    Raises:
        ConfigError, CheckpointError, MissingWeightsError, SourceError: as `choose_runs`.
    """
    loaded = request.generator.load()
    check_room("batch_size", request.batch_size, bytes_of_image(loaded.config, goes_back=False), request.device)
    if request.synthetic is not None:
        _encoders_of_synthetic(request, request.synthetic, loaded)
        return
    _check_networks(request, loaded)
    for spec in request.lec.values():
        check_file(spec, loaded)
        refuse_in_s(spec, loaded, "lec")


def _check_networks(request: EvaluationRequest, loaded: LoadedGenerator) -> None:
    request.networks.check(loaded.config)
    if request.frechet is not None:
        check_frechet(request.frechet, loaded.config, request.published)
    for name in request.attributes:
        load_attribute(name, device=torch.device("cpu"), published=request.published)
    if request.reference is not None and request.networks.judge is None:
        raise ConfigError("reference: a judge has to look at the real images; name a classifier, or leave it out")
    for spec in (request.source, request.reference):
        if spec is not None:
            with open_source(spec) as source:
                next(source.items())  # raises where there is none


def _is_by_encoder(run: RunInfo) -> bool:
    return run.subject is None and IMPORTED not in run.config and settings_of(run.config).kind == EncoderSettings.kind


def _encoder_of(run: RunInfo) -> dict[str, Any]:
    encoder = config_of(run).encoder
    if encoder is None:
        raise ConfigError(f"run {run.run_id} of the archive does not say by which encoder it is: leave its method out")
    settings = encoder_settings(settings_of(run.config), encoder.name)
    return {"name": encoder.name, "wanted": encoder.digest, "settings": settings}


def _checked_encoder(
    request: EvaluationRequest, loaded: LoadedGenerator, *, name: str, settings: EncoderSettings, wanted: str | None
) -> dict[str, Any]:
    """What a plan says of an encoder, once its file was looked at.

    Raises:
        ConfigError: it is not known where it lies, or it is another one than codes were made with.
        CheckpointError: it is no encoder of this generator.
    """
    if name not in request.encoders:
        raise ConfigError(f"encoder {name} of the archive has no file; name it: encoders.{name}=...")
    found = load_encoder(
        request.encoders[name], generator_config=loaded.config, name=name, heads=request.heads.get(name)
    )
    check_generator(found, loaded, request.encoders[name])
    if wanted not in (None, found.digest):
        raise ConfigError(
            f"{request.encoders[name]} holds encoder {found.digest}, the archive's codes are by {wanted}: name the "
            f"file of that one, encoders.{name}=..."
        )
    EncoderEmbedder(loaded.generator, found.encoder, settings)  # raises where the settings do not fit
    return {"name": name, "digest": found.digest, PASSES: settings.num_passes}


def _encoders_of_synthetic(
    request: EvaluationRequest, synthetic: Synthetic, loaded: LoadedGenerator
) -> dict[str, dict[str, Any]]:
    if synthetic.psi != 1 and not loaded.generator.has_w_avg:
        place = request.generator.place
        raise ConfigError(f"psi is {synthetic.psi:g} and {place} has no mean of W to truncate to; wanted 1")
    return {
        name: _checked_encoder(request, loaded, name=name, settings=settings, wanted=None)
        for name, settings in synthetic.encoders.items()
    }
