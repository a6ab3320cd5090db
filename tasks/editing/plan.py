"""Which edits of which methods an archive lacks: what has to be calibrated, and the runs that are left."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive import (
    Archive,
    PlannedRow,
    RunInfo,
    RunPlan,
    RunWriter,
    Subject,
    code_arrays,
    open_archive,
)
from tasks.archived.jobs import opened, plan_of_missing, provenance_of, publish_made, shards_of
from tasks.archived.opening import open_writer
from tasks.archived.rendering import STYLE_SHIFT, told_shift
from tasks.archived.runs import id_part, title_of
from tasks.digests import digest_of
from tasks.editing.calibration import part_size
from tasks.editing.chosen import (
    EditedMethod,
    MissingCalibrations,
    choose_edits,
    missing_calibrations,
    other_images,
    rows_of,
    shift_of_edit,
)
from tasks.editing.request import EditRequest
from tasks.editing.worker import EditWorker
from tasks.sources.source import open_source
from tasks.stage import Job
from tasks.weights.generators import LoadedGenerator


class EditingStage:
    """The edits of an archive's codes; those of equal effect wait for their calibrations.

    Attributes:
        generator: the loaded generator.
        edits: every edit of every method.
        writer: the archive.
        strengths: of each edit of each method, such as "lsap_e/slant"; None where an edit has none.
        digests: of each of these edits with its strength: which version of an edit of that name is meant.
        refused: why an edit of equal effect has no strength, by edited method.
        notes: what whoever asked should know, a sentence each: refinements that cannot be edited.
    """

    part: Final = "edits"
    verb: Final = "edit"
    batch_size: Final = 1

    def __init__(self, request: EditRequest, *, start: bool = True) -> None:
        """Check edits, methods and generator against the archive; nothing is written yet.

        Args:
            request: what is asked for.
            start: write the new runs' plans into the archive; False only tells what would be done.

        Raises:
            StoreRefusedError: this process may not write there.
            SourceError: nothing is where the originals should be.
            Else as `choose_edits`.
        """
        self.build_worker = functools.partial(EditWorker, request)
        self.strengths: dict[str, float | None] = {}
        self.digests: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._request = request
        self._start = start
        self.generator, self.edits, self.notes = choose_edits(request)
        if request.source is not None:
            open_source(request.source).close()  # a mistyped one is told before the work, not by the report after it
        self.writer = open_writer(request.archive, self.generator)
        if start:
            self.writer.store.check_writable()

    def missing_calibrations(self) -> MissingCalibrations:
        """What has to be calibrated before `jobs`; edits whose calibration is not kept are left out there."""
        return missing_calibrations(self.writer, self.edits, self._request.calibration)

    @property
    def part_size(self) -> int:
        """Images of a part of a calibration."""
        return part_size(self.generator.config.size, self._request.batch_size)

    def jobs(self) -> Iterator[Job]:
        """The edit runs that are left, of each edit those of older inversions first; to be gone through once."""
        archive = open_archive(self._request.archive)
        for edit in self.edits:
            kept = None if edit.calibration is None else self.writer.get_calibration(edit.calibration)
            if edit.calibration is not None and kept is None:
                continue
            if kept is not None and kept.get("refused"):
                self.refused[edit.name] = kept["refused"]
                continue
            self.strengths[edit.name] = edit.spec.strength if kept is None else kept["strength"]
            for subject in edit.runs:
                whole = _run_plan(self._request, archive, subject, edit, kept, self.generator)
                self.digests[edit.name] = whole.method_digest
                plan = plan_of_missing(self.writer, whole, tidy=self._start)
                if plan is not None:
                    yield self._job(edit.name, plan)

    def _job(self, name: str, plan: RunPlan) -> Job:
        is_new = not self.writer.is_planned(plan.run_id)
        if is_new and not self._start:
            left = list(range(plan.num_shards) if plan.shards is None else plan.shards)
        else:
            left = opened(self.writer, plan).missing_shards()
        return Job(plan.run_id, name, shards_of(plan.run_id, name, plan.num_rows, plan.shard_rows, left), is_new)

    def publish(self, job_id: str) -> None:
        """Check every object of a finished edit run and make it visible to readers."""
        publish_made(self._request.archive, job_id)


def _run_plan(
    request: EditRequest,
    archive: Archive,
    subject: RunInfo,
    edit: EditedMethod,
    calibration: Mapping[str, Any] | None,
    generator: LoadedGenerator,
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
    if shift := shift_of_edit(edit.spec, generator, strength):
        config[STYLE_SHIFT] = told_shift(shift)
    config |= {name: subject.config[name] for name in ("noise", "refiner") if name in subject.config}
    decisive = [edit.name, edit.spec.digest, strength, subject.method_digest, config["generator"], request.keep_images]
    if edit.spec.needs_images:
        config["others"] = _contents_of_others(archive, edit)
        decisive.append(config["others"])
    digest = digest_of(decisive)
    return RunPlan(
        run_id=f"{id_part(edit.name)}-{digest_of([digest, subject.run_id])[:16]}",
        method=edit.name,
        method_digest=digest,
        config=config,
        provenance=provenance_of(config["generator"]),
        rows=tuple(PlannedRow(**row) for row in inverted.images.to_pylist()),
        arrays=code_arrays(archive.geometry),
        shard_rows=inverted.shard_rows,
        subject=Subject(
            subject.run_id,
            subject.method,
            subject.method_digest,
            edit.spec.name,
            strength,
            inversion=None if subject.subject is None else subject.subject.run_id,
        ),
    )


def _contents_of_others(archive: Archive, edit: EditedMethod) -> dict[str, str]:
    """Digest of the content of every image that an edit goes to: the edit is another one when it changes."""
    rows = rows_of(archive, edit.runs, ["image_id", "digest"])
    wanted = pa.array(sorted(set(other_images(edit.spec).values())), pa.string())
    rows = rows.filter(pc.is_in(rows.column("image_id"), wanted))
    return dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))  # the last one counts
