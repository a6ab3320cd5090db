"""What is left to be measured of an archive: one evaluation for each run, or for each encoder on synthetic images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lsap_archive import (
    ArchiveWriter,
    EvaluationPlan,
    EvaluationWriter,
    Provenance,
    RunInfo,
    RunWriter,
    open_archive,
)
from lsap_archive.format.layout import evaluation_plan_key
from lsap_archive.writing.evaluation_writer import unretired
from lsap_core.errors import ConfigError
from lsap_core.images import ContentBox
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.presets import settings_of
from lsap_core.spaces.styles import StyleSet
from tasks.archived.jobs import PROVENANCE_PACKAGES
from tasks.archived.opening import open_writer
from tasks.archived.runs import id_part, runs_by_method
from tasks.editing.calibration import CalibrationOptions
from tasks.editing.plan import EditedMethod, check_edit, edited_method
from tasks.editing.spec import EditSpec
from tasks.evaluation.worker import EvaluationWork
from tasks.measuring.attributes import load_attribute
from tasks.measuring.frechet import INCEPTION, check_frechet, find_inception
from tasks.measuring.networks import EvaluationChoice
from tasks.sources.source import open_source
from tasks.weights.encoders import check_generator, load_encoder
from tasks.weights.generators import LoadedGenerator, load_generator
from tasks.weights.networks import digest_of_file, network_digest


@dataclass(frozen=True)
class Synthetic:
    """Images whose codes are known.

    Attributes:
        count: how many.
        psi: truncation of their codes.
        seed: of their codes.
        style_set: which style vectors S is made of.
        encoders: settings of each encoder by name.
        shard_rows: images of a shard.
    """

    count: int
    psi: float
    seed: int
    style_set: StyleSet
    encoders: Mapping[str, EncoderSettings]
    shard_rows: int


@dataclass(frozen=True)
class EvaluationRequest:
    """What is asked for, as the tasks take it.

    Attributes:
        archive: URL of the archive.
        generator: path or URL of the generator's weights.
        methods: inversions and edits, by name; empty for all.
        versions: by name, digest of the configuration that is meant instead of the newest.
        networks: what looks at images.
        source: where the originals are, or None.
        fit: what is done with originals of another shape.
        attributes: measured of images, by name.
        lec: edits of the editing consistency, by name.
        calibration: how those of equal effect are calibrated.
        frechet: network of the Fréchet distance, or None.
        reference: source of real images, or None.
        encoders: path or URL of encoders by name.
        content_box: rows and columns of the generator's images that carry the picture, or None for what it says.
        synthetic: measure encoders on these, and not what is in the archive.
    """

    archive: str
    generator: str
    methods: tuple[str, ...]
    networks: EvaluationChoice
    calibration: CalibrationOptions
    source: str | None = None
    fit: str = "refuse"
    attributes: tuple[str, ...] = ()
    lec: Mapping[str, EditSpec] = field(default_factory=dict)
    frechet: str | None = None
    reference: str | None = None
    encoders: Mapping[str, str] = field(default_factory=dict)
    content_box: ContentBox | None = None
    synthetic: Synthetic | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def backbones(self) -> str | None:
        """Folder of published networks, or None for torch's cache."""
        return self.networks.backbones


@dataclass(frozen=True)
class ChosenRuns:
    """What is to be measured, checked.

    Attributes:
        generator: the loaded generator.
        runs: of every method or edit, the oldest first.
        lec: edits of the editing consistency of every method that an encoder inverted.
        encoders: name, digest and num_refinements of the encoder by method.
    """

    generator: LoadedGenerator
    runs: Mapping[str, tuple[RunInfo, ...]]
    lec: Mapping[str, tuple[EditedMethod, ...]]
    encoders: Mapping[str, dict[str, Any]]

    @property
    def all_lec(self) -> list[EditedMethod]:
        """The edits of every method."""
        return [edit for edits in self.lec.values() for edit in edits]


@dataclass(frozen=True)
class PlannedEvaluation:
    """A shard that still needs work.

    Attributes:
        name: of the method or edit.
        work: what a worker is told.
        num_images: how many images it has.
    """

    name: str
    work: EvaluationWork
    num_images: int


@dataclass(frozen=True)
class PreparedEvaluations:
    """What is left to do.

    Attributes:
        evaluations: ids of the evaluations that count, by method or edit; published or not.
        unpublished: ids of those that are not published yet.
        shards: the shards that still need work.
        refused: why an edit of the editing consistency has no strength, by edited method; it is not measured.
    """

    evaluations: dict[str, tuple[str, ...]]
    unpublished: tuple[str, ...]
    shards: tuple[PlannedEvaluation, ...]
    refused: dict[str, str]


def choose_runs(request: EvaluationRequest) -> ChosenRuns:
    """Everything that is asked for, checked; nothing is written.

    Raises:
        ArchiveNotFoundError, ArchiveMismatchError: no archive is there, or that of another generator.
        ArchiveKeyError: it has no such method.
        ConfigError, CheckpointError, MissingWeightsError: a network, edit or encoder is not there or does not fit.
        SourceError: a source cannot be read.
    """
    loaded = load_generator(request.generator, content_box=request.content_box)
    if request.synthetic is not None:
        return ChosenRuns(loaded, {}, {}, _encoders_of_synthetic(request, request.synthetic, loaded))
    archive = open_archive(request.archive)
    open_writer(request.archive, loaded)
    _check_networks(request, loaded)
    runs = runs_by_method(archive, request.methods, with_edits=True, versions=request.versions)
    lec: dict[str, tuple[EditedMethod, ...]] = {}
    encoders: dict[str, dict[str, Any]] = {}
    for name, of_method in runs.items() if request.lec else ():
        if not _is_by_encoder(of_method[0]):
            continue
        encoders[name] = _checked_encoder(request, loaded, **_encoder_of(of_method[0]))
        for spec in request.lec.values():
            check_edit(spec, loaded, archive, of_method)
        lec[name] = tuple(
            edited_method(spec, of_method, loaded.digest, request.calibration) for spec in request.lec.values()
        )
    if request.lec and not lec:
        raise ConfigError(
            f"lec: none of {', '.join(runs)} was inverted by an encoder; leave it out, or add such methods"
        )
    return ChosenRuns(loaded, runs, lec, encoders)


def _check_networks(request: EvaluationRequest, loaded: LoadedGenerator) -> None:
    request.networks.check(loaded.config)
    if request.frechet is not None:
        check_frechet(request.frechet, loaded.config, request.backbones)
    for name in request.attributes:
        load_attribute(name, device=torch.device("cpu"), backbones=request.backbones)
    if request.reference is not None and request.networks.judge is None:
        raise ConfigError("reference: a judge has to look at the real images; name a classifier, or leave it out")
    for spec in (request.source, request.reference):
        if spec is not None:
            with open_source(spec) as source:
                next(source.items())  # raises where there is none


def _is_by_encoder(run: RunInfo) -> bool:
    return run.subject is None and isinstance(settings_of(run.config), EncoderSettings)


def _encoder_of(run: RunInfo) -> dict[str, Any]:
    settings = settings_of(run.config)
    assert isinstance(settings, EncoderSettings)
    return {"name": run.config["encoder"]["name"], "wanted": run.config["encoder"]["digest"], "settings": settings}


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
    found = load_encoder(request.encoders[name], generator_config=loaded.config)
    check_generator(found, loaded, request.encoders[name])
    if wanted not in (None, found.digest):
        raise ConfigError(
            f"{request.encoders[name]} holds encoder {found.digest}, the archive's codes are by {wanted}: name the "
            f"file of that one, encoders.{name}=..."
        )
    EncoderEmbedder(loaded.generator, found.encoder, settings)  # raises where the settings do not fit
    return {"name": name, "digest": found.digest, "num_refinements": settings.num_refinements}


def _encoders_of_synthetic(
    request: EvaluationRequest, synthetic: Synthetic, loaded: LoadedGenerator
) -> dict[str, dict[str, Any]]:
    if synthetic.psi != 1 and not loaded.generator.has_w_avg:
        raise ConfigError(f"psi is {synthetic.psi:g} and {request.generator} has no mean of W to truncate to; wanted 1")
    return {
        name: _checked_encoder(request, loaded, name=name, settings=settings, wanted=None)
        for name, settings in synthetic.encoders.items()
    }


def plan_evaluations(request: EvaluationRequest, chosen: ChosenRuns, *, start: bool = True) -> PreparedEvaluations:
    """The evaluations that count, and the shards that are left of them.

    A method with an edit of the editing consistency whose calibration is not kept is measured without it.

    Args:
        request: what is asked for.
        chosen: as `choose_runs` gives it.
        start: write the new evaluations' plans into the archive; False only tells what would be written.
    """
    writer = open_writer(request.archive, chosen.generator) if start or request.synthetic is None else None
    if request.synthetic is not None:
        plans = [(plan, _NOWHERE) for plan in _plans_of_synthetic(request, chosen, request.synthetic)]
    else:
        assert writer is not None
        plans = _plans_of_runs(request, chosen, writer)
    evaluations: dict[str, tuple[str, ...]] = {}
    unpublished: list[str] = []
    shards: list[PlannedEvaluation] = []
    for first, places in plans:
        plan, retired = (first, ()) if writer is None else unretired(writer.store, first)
        evaluations[plan.method] = (*evaluations.get(plan.method, ()), plan.evaluation_id)
        evaluation = _opened(writer, plan, start=start)
        if evaluation is not None and evaluation.is_published:
            continue
        if evaluation is not None and start:
            for evaluation_id in retired:
                evaluation.take_over(evaluation_id)
        unpublished.append(plan.evaluation_id)
        left = range(plan.num_shards) if evaluation is None else evaluation.missing_shards()
        shards += [_planned_shard(plan, shard, places) for shard in left]
    refused = {} if writer is None else _refused(writer, chosen.all_lec)
    return PreparedEvaluations(evaluations, tuple(unpublished), tuple(shards), refused)


@dataclass(frozen=True)
class _Places:
    """Where the originals of a run are now.

    Attributes:
        image_ids: of the run's rows.
        moved: where those are that lay elsewhere, None for one that is gone.
    """

    image_ids: Sequence[str] = ()
    moved: Mapping[str, str | None] = field(default_factory=dict)


_NOWHERE = _Places()


def _opened(writer: ArchiveWriter | None, plan: EvaluationPlan, *, start: bool) -> EvaluationWriter | None:
    """The evaluation of a plan; None where it is new and not to be started."""
    if writer is None:
        return None
    if writer.store.exists(evaluation_plan_key(plan.evaluation_id)):
        return EvaluationWriter(writer.store, plan.evaluation_id)
    return writer.start_evaluation(plan) if start else None


def _planned_shard(plan: EvaluationPlan, shard: int, places: _Places) -> PlannedEvaluation:
    start = shard * plan.shard_rows
    size = min(plan.shard_rows, plan.num_rows - start)
    members = places.image_ids[start : start + size]
    moved = {image_id: places.moved[image_id] for image_id in members if image_id in places.moved}
    return PlannedEvaluation(plan.method, EvaluationWork(plan.evaluation_id, shard, moved), size)


def _plans_of_runs(
    request: EvaluationRequest, chosen: ChosenRuns, writer: ArchiveWriter
) -> list[tuple[EvaluationPlan, _Places]]:
    now = _places_now(request.source)
    networks = {
        "lpips": list(request.networks.lpips),
        "identity": list(request.networks.identity),
        "judge": request.networks.judge,
        "digests": request.networks.digests(),
    }
    shared = {
        "networks": networks,
        "attributes": list(request.attributes),
        "originals": request.source is not None,
        "fit": request.fit,
        "frechet": _about_frechet(request),
        "reference": _about_reference(request.reference),
        "generator": chosen.generator.digest,
    }
    plans = []
    for name, runs in chosen.runs.items():
        lec = _about_lec(writer, chosen.lec.get(name, ()))
        for run in runs:
            images = RunWriter.open(request.archive, run.run_id)
            places = _places_of(images, now)
            gone = sorted(image_id for image_id, uri in places.moved.items() if uri is None)
            config = {
                **shared,
                "subject": {"run_id": run.run_id, "method": run.method, "method_digest": run.method_digest},
                "anchor": run.config["anchor"],
                "absent": _digest(gone) if gone else None,
                "lec": lec,
                "encoder": chosen.encoders.get(name) if lec else None,
            }
            decisive = {**config, "lec": {edit: [one["digest"], one["calibrated"]] for edit, one in lec.items()}}
            subject = run.subject
            plan = EvaluationPlan(
                evaluation_id=f"{id_part(name)}-{_digest(decisive)[:16]}",
                subject={"run_id": run.run_id},
                method=run.method,
                edit=None if subject is None else subject.edit,
                strength=None if subject is None else subject.strength,
                config=config,
                provenance=_provenance(chosen.generator.digest),
                num_rows=images.num_rows,
                shard_rows=images.shard_rows,
            )
            plans.append((plan, places))
    return plans


def _plans_of_synthetic(request: EvaluationRequest, chosen: ChosenRuns, synthetic: Synthetic) -> list[EvaluationPlan]:
    about = {name: value for name, value in asdict(synthetic).items() if name in ("count", "psi", "seed")}
    plans = []
    for name, encoder in chosen.encoders.items():
        config = {"generator": chosen.generator.digest, "encoder": encoder, "style_set": synthetic.style_set}
        plans.append(
            EvaluationPlan(
                evaluation_id=f"{id_part(name)}-synthetic-{_digest([config, about])[:16]}",
                subject={"synthetic": about},
                method=name,
                edit=None,
                strength=None,
                config=config,
                provenance=_provenance(chosen.generator.digest),
                num_rows=synthetic.count,
                shard_rows=synthetic.shard_rows,
            )
        )
    return plans


def _about_lec(writer: ArchiveWriter, edits: Sequence[EditedMethod]) -> dict[str, dict[str, Any]]:
    """The edits of the editing consistency with their strengths; without those that have none."""
    found = {}
    for edit in edits:
        kept = None if edit.calibration is None else writer.get_calibration(edit.calibration)
        if edit.calibration is None or (kept is not None and not kept.get("refused")):
            calibrated = None if kept is None else kept["strength"]
            strength = edit.spec.strength if kept is None else calibrated
            found[edit.spec.name] = {**edit.spec.describe(), "strength": strength, "calibrated": calibrated}
    return found


def _refused(writer: ArchiveWriter, edits: Sequence[EditedMethod]) -> dict[str, str]:
    kept = {edit.name: writer.get_calibration(edit.calibration) for edit in edits if edit.calibration is not None}
    return {name: one["refused"] for name, one in kept.items() if one is not None and one.get("refused")}


def _about_frechet(request: EvaluationRequest) -> dict[str, str] | None:
    name = request.frechet
    if name is None:
        return None
    is_inception = name == INCEPTION
    digest = digest_of_file(find_inception(request.backbones)) if is_inception else network_digest(name, None)
    return {"network": name, "digest": digest}


def _about_reference(spec: str | None) -> dict[str, Any] | None:
    """A source of real images by the names that it lists; their content is not read for it."""
    if spec is None:
        return None
    with open_source(spec) as source:
        ids = [item.image_id for item in source.items()]
    return {"source": spec, "num_images": len(ids), "digest": _digest(ids)}


def _places_now(spec: str | None) -> dict[str, str] | None:
    """Where every image of a source is, by id; None without a source."""
    if spec is None:
        return None
    with open_source(spec) as source:
        return {item.image_id: item.uri for item in source.items()}


def _places_of(images: RunWriter, now: Mapping[str, str] | None) -> _Places:
    ids, uris = (images.images.column(name).to_pylist() for name in ("image_id", "uri"))
    if now is None:
        return _Places(ids)
    moved = {image_id: now.get(image_id) for image_id, uri in zip(ids, uris, strict=True) if now.get(image_id) != uri}
    return _Places(ids, moved)


def _provenance(generator_digest: str) -> dict[str, Any]:
    provenance = Provenance.collect(
        (*PROVENANCE_PACKAGES, "torchmetrics", "torch-fidelity"), digests={"generator": generator_digest}
    ).to_dict()
    del provenance["created"]
    return provenance


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
