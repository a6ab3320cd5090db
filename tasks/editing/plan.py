"""Which edits of which methods an archive lacks: what has to be calibrated, and the runs that are left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive import (
    Archive,
    ArchiveKeyError,
    ArchiveWriter,
    PlannedRow,
    Provenance,
    RunInfo,
    RunPlan,
    RunWriter,
    Subject,
    open_archive,
)
from lsap_archive.format.layout import plan_key
from lsap_archive.format.rows import OK
from lsap_archive.reading.retirement import retired_of
from lsap_core.errors import CheckpointError, ConfigError, LsapError
from lsap_core.images import ContentBox
from tasks.archived.jobs import PROVENANCE_PACKAGES
from tasks.archived.opening import open_writer
from tasks.archived.runs import id_part, runs_by_method, title_of
from tasks.editing.calibration import CalibrationOptions, CalibrationWork, calibration_digest, deviation_digest
from tasks.editing.spec import EditSpec, build_edit
from tasks.editing.worker import EditWork
from tasks.weights.generators import LoadedGenerator, load_generator


@dataclass(frozen=True)
class EditRequest:
    """What is asked for, as the tasks take it.

    Attributes:
        archive: URL of the archive.
        generator: path or URL of the generator's weights.
        methods: inversions to edit, by name; empty for all.
        edits: by name.
        keep_images: whether edited images are kept.
        calibration: how edits of equal effect are calibrated.
        content_box: rows and columns of the generator's images that carry the picture, or None for what it says.
    """

    archive: str
    generator: str
    methods: tuple[str, ...]
    edits: Mapping[str, EditSpec]
    keep_images: bool
    calibration: CalibrationOptions
    content_box: ContentBox | None = None


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
        deviations: (attribute, seed) by the name under which the spread over synthetic images is kept.
        strengths: the others.
    """

    deviations: Mapping[str, tuple[str, int]]
    strengths: tuple[CalibrationWork, ...]


@dataclass(frozen=True)
class PlannedEdit:
    """A shard of an edit run that still needs work.

    Attributes:
        name: such as "lsap_e/slant".
        work: what a worker is told.
        num_images: how many images it has.
    """

    name: str
    work: EditWork
    num_images: int


@dataclass(frozen=True)
class PreparedEdits:
    """What is left to do.

    Attributes:
        runs: ids of the edit runs that are not published, those of older inversions first.
        shards: the shards that still need work.
        strengths: of each edit of each method, such as "lsap_e/slant"; None where an edit has none.
        digests: of each of these edits with its strength: which version of an edit of that name is meant.
        refused: why an edit of equal effect has no strength, by edited method.
    """

    runs: tuple[str, ...]
    shards: tuple[PlannedEdit, ...]
    strengths: dict[str, float | None]
    digests: dict[str, str]
    refused: dict[str, str]


def choose_edits(request: EditRequest) -> tuple[LoadedGenerator, list[EditedMethod]]:
    """The generator, and every edit of every method, checked; nothing is written.

    Raises:
        ArchiveNotFoundError, ArchiveMismatchError: no archive is there, or that of another generator.
        ArchiveKeyError: it has no such method or image.
        ConfigError, CheckpointError: an edit does not fit the generator or the images.
    """
    archive = open_archive(request.archive)
    loaded = load_generator(request.generator, content_box=request.content_box)
    open_writer(request.archive, loaded)
    chosen = []
    for runs in runs_by_method(archive, request.methods, with_edits=False).values():
        for spec in request.edits.values():
            check_edit(spec, loaded, archive, runs)
            chosen.append(edited_method(spec, runs, loaded.digest, request.calibration))
    return loaded, chosen


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
        strength = None if spec.equal_effect is None else 1.0
        try:
            build_edit(spec, config=loaded.config, generator_digest=loaded.digest, strength=strength)
        except CheckpointError:
            raise
        except LsapError as error:
            raise ConfigError(f'edit "{spec.name}": {error}') from error
        return
    others = other_images(spec)
    try:
        archive.codes(sorted(set(others.values())), runs[0].method_digest)
    except ArchiveKeyError as error:
        raise ArchiveKeyError(f'edit "{spec.name}" of {runs[0].method}: {error}') from error
    if None in others:
        return
    rows = _rows_of(archive, runs, ["image_id", "status"])
    for image_id in rows.filter(pc.equal(rows.column("status"), OK)).column("image_id").to_pylist():
        if image_id not in others:
            raise ConfigError(f'edit "{spec.name}" names no image to go to from {image_id}; name one for each')


def other_images(spec: EditSpec) -> dict[str | None, str]:
    """Ids of the images that an edit goes to, by the image that it starts from; under None the same for all."""
    found: dict[str | None, str] = {}
    for part in (spec, *spec.parts):
        if isinstance(part.images, str):
            found[None] = part.images
        elif part.images is not None:
            found |= dict(part.images)
    return found


def missing_calibrations(
    writer: ArchiveWriter, edits: Sequence[EditedMethod], options: CalibrationOptions
) -> MissingCalibrations:
    """What the archive does not keep of the calibrations that these edits need."""
    deviations: dict[str, tuple[str, int]] = {}
    strengths = []
    for edit in edits:
        if edit.calibration is None or writer.get_calibration(edit.calibration) is not None:
            continue
        assert edit.spec.equal_effect is not None
        attribute = edit.spec.equal_effect.attribute
        name = deviation_digest(attribute, writer.generator["digest"], options.seed)
        if writer.get_calibration(name) is None:
            deviations[name] = (attribute, options.seed)
        run_ids = tuple(run.run_id for run in edit.runs)
        strengths.append(CalibrationWork(edit.calibration, edit.runs[0].method, run_ids, edit.spec, options))
    return MissingCalibrations(deviations, tuple(strengths))


def with_deviation(work: CalibrationWork, writer: ArchiveWriter) -> CalibrationWork:
    """The work with the unit of its change, which the archive keeps by now."""
    assert work.spec.equal_effect is not None
    name = deviation_digest(work.spec.equal_effect.attribute, writer.generator["digest"], work.options.seed)
    kept = writer.get_calibration(name)
    assert kept is not None, "deviations are measured before"
    return replace(work, deviation=kept["deviation"])


def plan_edit_runs(
    request: EditRequest, loaded: LoadedGenerator, edits: Sequence[EditedMethod], *, start: bool = True
) -> PreparedEdits:
    """The edit runs and shards that are left; edits whose calibration is not kept are left out.

    Args:
        request: what is asked for.
        loaded: the generator.
        edits: as `choose_edits` gives them.
        start: write the new runs' plans into the archive; False only tells what would be written.
    """
    writer = open_writer(request.archive, loaded)
    archive = open_archive(request.archive)
    runs: list[tuple[tuple[int, str, str], str]] = []
    shards: list[PlannedEdit] = []
    strengths: dict[str, float | None] = {}
    digests: dict[str, str] = {}
    refused: dict[str, str] = {}
    for edit in edits:
        kept = None if edit.calibration is None else writer.get_calibration(edit.calibration)
        if edit.calibration is not None and kept is None:
            continue
        if kept is not None and kept.get("refused"):
            refused[edit.name] = kept["refused"]
            continue
        strengths[edit.name] = edit.spec.strength if kept is None else kept["strength"]
        for subject in edit.runs:
            first = _run_plan(request, archive, subject, edit, kept)
            digests[edit.name] = first.method_digest
            plan = plan_of_missing(writer, first)
            if plan is None:
                continue
            if not writer.store.exists(plan_key(plan.run_id)) and not start:
                left = range(plan.num_shards) if plan.shards is None else plan.shards
                shards += _shards(edit.name, plan.run_id, plan.num_rows, plan.shard_rows, left)
                continue
            run = _opened(writer, plan)
            runs.append((subject.order, run.run_id))
            shards += _shards(edit.name, run.run_id, run.num_rows, run.shard_rows, run.missing_shards())
    return PreparedEdits(tuple(run_id for _, run_id in sorted(runs)), tuple(shards), strengths, digests, refused)


def plan_of_missing(writer: ArchiveWriter, plan: RunPlan) -> RunPlan | None:
    """The plan of the run that is left of an edit: itself, or one more with the shards that were retired since.

    Args:
        writer: the archive.
        plan: of the edit, with all shards.

    Returns:
        A plan, of a run that may be under way; None if readers see every shard that the subject has.
    """
    assert plan.subject is not None
    wanted = set(range(plan.num_shards)) - retired_of(writer.store, plan.subject.run_id).shards
    if not wanted:
        return None
    asked = plan if len(wanted) == plan.num_shards else replace(plan, shards=tuple(sorted(wanted)))
    repetition = 1
    while writer.is_taken(asked.run_id):
        retired = retired_of(writer.store, asked.run_id)
        own = set(range(plan.num_shards) if asked.shards is None else asked.shards)
        wanted -= set() if retired.whole else own - retired.shards
        if not wanted:
            return None
        repetition += 1
        shards = tuple(sorted(wanted))
        asked = replace(plan, run_id=f"{plan.run_id}.{repetition}", shards=shards)
    return asked


def _opened(writer: ArchiveWriter, plan: RunPlan) -> RunWriter:
    """The run of a plan; one that was planned before may have been told the same files by other names."""
    if writer.store.exists(plan_key(plan.run_id)):
        return RunWriter(writer.store, plan.run_id, writer.generator, writer.geometry)
    return writer.start_run(plan)


def _shards(name: str, run_id: str, num_rows: int, shard_rows: int, shards: Sequence[int]) -> list[PlannedEdit]:
    sizes = [min(shard_rows, num_rows - shard * shard_rows) for shard in shards]
    return [PlannedEdit(name, EditWork(run_id, shard), size) for shard, size in zip(shards, sizes, strict=True)]


def _run_plan(
    request: EditRequest, archive: Archive, subject: RunInfo, edit: EditedMethod, calibration: Mapping[str, Any] | None
) -> RunPlan:
    """The plan of one edit of one run; the same edit, strength and run give the same run id."""
    strength = edit.spec.strength if calibration is None else calibration["strength"]
    inverted = RunWriter.open(request.archive, subject.run_id)
    config: dict[str, Any] = {
        "method": edit.name,
        "title": f"{title_of(subject)}, {edit.spec.name}",
        "edit": {**edit.spec.describe(), "strength": strength},
        "calibration": None if calibration is None else dict(calibration),
        "subject": {"run_id": subject.run_id, "method": subject.method, "method_digest": subject.method_digest},
        "generator": archive.generator["digest"],
        "anchor": subject.config.get("anchor"),
        "keep_images": request.keep_images,
    }
    if edit.calibration is not None:
        config["calibration_digest"] = edit.calibration
    if "noise" in subject.config:
        config["noise"] = subject.config["noise"]
    decisive = [edit.name, edit.spec.digest, strength, subject.method_digest, config["generator"], request.keep_images]
    if edit.spec.needs_images:
        config["others"] = _contents_of_others(archive, edit)
        decisive.append(config["others"])
    digest = _digest(decisive)
    provenance = Provenance.collect(PROVENANCE_PACKAGES, digests={"generator": config["generator"]}).to_dict()
    del provenance["created"]
    return RunPlan(
        run_id=f"{id_part(edit.name)}-{_digest([digest, subject.run_id])[:16]}",
        method=edit.name,
        method_digest=digest,
        config=config,
        provenance=provenance,
        rows=tuple(PlannedRow(**row) for row in inverted.images.to_pylist()),
        shard_rows=inverted.shard_rows,
        subject=Subject(subject.run_id, subject.method, subject.method_digest, edit.spec.name, strength),
    )


def _contents_of_others(archive: Archive, edit: EditedMethod) -> dict[str, str]:
    """Digest of the content of every image that an edit goes to: the edit is another one when it changes."""
    rows = _rows_of(archive, edit.runs, ["image_id", "digest"])
    wanted = pa.array(sorted(set(other_images(edit.spec).values())), pa.string())
    rows = rows.filter(pc.is_in(rows.column("image_id"), wanted))
    return dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))  # the last one counts


def _rows_of(archive: Archive, runs: Sequence[RunInfo], columns: list[str]) -> pa.Table:
    """Rows of some runs, the oldest run first."""
    rows = archive.rows(["run_id", *columns])
    run_ids = pa.array([run.run_id for run in runs], pa.string())
    return rows.filter(pc.is_in(rows.column("run_id"), run_ids)).select(columns)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
