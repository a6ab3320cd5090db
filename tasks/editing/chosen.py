"""Which edits of which methods: checked before any work, and what of them has to be calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import torch

from lsap_archive import (
    OK,
    Archive,
    ArchiveKeyError,
    ArchiveWriter,
    RunInfo,
    open_archive,
)
from lsap_core.editing import add_shifts, style_shift
from lsap_core.errors import CheckpointError, ConfigError, LsapError
from lsap_core.generators.generator import StyleShift
from tasks.archived.opening import open_writer
from tasks.archived.refiners import renderable
from tasks.archived.runs import runs_by_method
from tasks.editing.calibration import (
    CalibrationOptions,
    CalibrationWork,
    SpreadWork,
    calibration_digest,
    deviation_digest,
)
from tasks.editing.request import EditRequest
from tasks.editing.spec import EditSpec, build_edit
from tasks.measuring.attributes import load_attribute
from tasks.weights.devices import bytes_of_image, check_room
from tasks.weights.generators import LoadedGenerator


@dataclass(frozen=True)
class EditedMethod:
    """An edit of a method.

    Attributes:
        runs: the method's runs, the oldest first.
        spec: the edit.
        calibration: name under which its calibration is kept; None where the strength is given.
    """

    runs: tuple[RunInfo, ...]
    spec: EditSpec
    calibration: str | None

    @property
    def name(self) -> str:
        """Such as "lsap_e/slant"."""
        return f"{self.runs[0].method}/{self.spec.name}"


@dataclass(frozen=True)
class MissingCalibrations:
    """What has to be measured before edits of equal effect can be planned.

    Attributes:
        spreads: of attributes over synthetic images.
        strengths: the others.
    """

    spreads: tuple[SpreadWork, ...]
    strengths: tuple[CalibrationWork, ...]


def choose_edits(request: EditRequest) -> tuple[LoadedGenerator, list[EditedMethod], list[str]]:
    """The generator, every edit of every method, checked, and what was left out; nothing is written.

    Raises:
        ArchiveNotFoundError, ArchiveMismatchError: no archive is there, or that of another generator.
        ArchiveKeyError: it has no such method or image.
        ConfigError, CheckpointError: an edit does not fit the generator or the images.
        ConfigError: a refinement that was asked for cannot be rendered.
    """
    archive = open_archive(request.archive)
    loaded = request.generator.load()
    open_writer(request.archive, loaded)
    check_room("batch_size", request.batch_size, bytes_of_image(loaded.config, goes_back=False), request.device)
    chosen = []
    by_method = runs_by_method(archive, request.methods, with_edits=False)
    by_method, left_out = renderable(by_method, request.methods, request.refiners)
    for runs in by_method.values():
        for spec in request.edits.values():
            check_edit(spec, loaded, archive, runs)
            chosen.append(edited_method(spec, runs, loaded.digest, request.calibration))
    return loaded, chosen, left_out


def check_edits(request: EditRequest) -> None:
    """What of edits can be refused before there is an archive with their inversions.

    Raises:
        ConfigError, CheckpointError, MissingWeightsError: as `choose_edits`, and where nothing can measure an effect.
    """
    loaded = request.generator.load()
    check_room("batch_size", request.batch_size, bytes_of_image(loaded.config, goes_back=False), request.device)
    for spec in request.edits.values():
        check_file(spec, loaded)
    for name in {spec.equal_effect.attribute for spec in request.edits.values() if spec.equal_effect is not None}:
        load_attribute(name, device=torch.device("cpu"), published=request.published)


def edited_method(
    spec: EditSpec, runs: tuple[RunInfo, ...], generator_digest: str, options: CalibrationOptions
) -> EditedMethod:
    """An edit of a method, with the name of its calibration if it needs one."""
    calibration = None
    if spec.equal_effect is not None:
        calibration = calibration_digest(spec, runs[0].method_digest, generator_digest, options)
    return EditedMethod(runs, spec, calibration)


def check_edit(spec: EditSpec, loaded: LoadedGenerator, archive: Archive, runs: Sequence[RunInfo]) -> None:
    """Refuse an edit that does not fit the generator, or that needs a code which the method does not have.

    Raises:
        ConfigError, CheckpointError: it does not fit.
        ArchiveKeyError: the method has no code of an image.
    """
    if not spec.needs_images:
        check_file(spec, loaded)
        return
    others = other_images(spec)
    try:
        archive.codes(sorted(set(others.values())), runs[0].method_digest)
    except ArchiveKeyError as error:
        raise ArchiveKeyError(f'edit "{spec.name}" of {runs[0].method}: {error}') from error
    if None in others:
        return
    rows = rows_of(archive, runs, ["image_id", "status"])
    for image_id in rows.filter(pc.equal(rows.column("status"), OK)).column("image_id").to_pylist():
        if image_id not in others:
            raise ConfigError(f'edit "{spec.name}" names no image to go to from {image_id}; name one for each')


def check_file(spec: EditSpec, loaded: LoadedGenerator) -> None:
    """Refuse an edit whose file does not fit the generator; of one that needs images nothing can be told yet.

    Raises:
        ConfigError, CheckpointError: it does not fit.
    """
    if spec.needs_images:
        return
    strength = None if spec.equal_effect is None else 1.0
    try:
        build_edit(spec, config=loaded.config, generator_digest=loaded.digest, strength=strength)
    except CheckpointError:
        raise
    except LsapError as error:
        raise ConfigError(f'edit "{spec.name}": {error}') from error


def shift_of_edit(spec: EditSpec, loaded: LoadedGenerator, strength: float | None) -> StyleShift:
    """What an edit adds to the styles of every image, [1, width] by layer; empty where it is one of W+ alone.

    Args:
        spec: the edit; parts that lead to other images are none in S.
        loaded: the generator.
        strength: in the place of the spec's, or that itself; None of a sequence.

    Raises:
        ConfigError, CheckpointError, ShapeError: as `build_edit`.
    """
    if spec.parts:
        return add_shifts(*(shift_of_edit(part, loaded, part.strength) for part in spec.parts))
    if spec.needs_images:
        return {}
    edit = build_edit(spec, config=loaded.config, generator_digest=loaded.digest, strength=strength)
    return style_shift(edit, torch.zeros(1, loaded.config.num_ws, loaded.config.w_dim))


def refuse_in_s(spec: EditSpec, loaded: LoadedGenerator, purpose: str) -> None:
    """Refuse an edit in S where only those of codes make sense.

    Raises:
        ConfigError: it is one.
    """
    if shift_of_edit(spec, loaded, 1.0 if spec.equal_effect else spec.strength):
        raise ConfigError(
            f'edit "{spec.name}" is in S, and {purpose} compares codes, which it does not change: leave it out'
        )


def other_images(spec: EditSpec) -> dict[str | None, str]:
    """Ids of the images that an edit goes to, by the image that it starts from; under None the same for all."""
    found: dict[str | None, str] = {}
    for part in (spec, *spec.parts):
        if isinstance(part.images, str):
            found[None] = part.images
        elif part.images is not None:
            found.update({image_id: other for image_id, other in part.images.items()})
    return found


def missing_calibrations(
    writer: ArchiveWriter, edits: Sequence[EditedMethod], options: CalibrationOptions
) -> MissingCalibrations:
    """What the archive does not keep of the calibrations that these edits need."""
    spreads: dict[str, SpreadWork] = {}
    strengths = []
    for edit in edits:
        if edit.calibration is None or writer.get_calibration(edit.calibration) is not None:
            continue
        assert edit.spec.equal_effect is not None
        attribute = edit.spec.equal_effect.attribute
        name = deviation_digest(attribute, writer.generator["digest"], options)
        if writer.get_calibration(name) is None:
            spreads[name] = SpreadWork(name, attribute, options)
        run_ids = tuple(run.run_id for run in edit.runs)
        strengths.append(CalibrationWork(edit.calibration, edit.runs[0].method, run_ids, edit.spec, options))
    return MissingCalibrations(tuple(spreads.values()), tuple(strengths))


def with_deviation(work: CalibrationWork, writer: ArchiveWriter) -> CalibrationWork:
    """The work with the unit of its change, which the archive keeps by now."""
    assert work.spec.equal_effect is not None
    name = deviation_digest(work.spec.equal_effect.attribute, writer.generator["digest"], work.options)
    kept = writer.get_calibration(name)
    assert kept is not None, "deviations are measured before"
    return replace(work, deviation=kept["deviation"])


def rows_of(archive: Archive, runs: Sequence[RunInfo], columns: list[str]) -> pa.Table:
    """Rows of some runs, the oldest run first."""
    rows = archive.rows(["run_id", *columns], history=True)
    run_ids = pa.array([run.run_id for run in runs], pa.string())
    return rows.filter(pc.is_in(rows.column("run_id"), run_ids)).select(columns)
