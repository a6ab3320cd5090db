"""What is left to be measured of an archive: one evaluation for each run, or for each encoder on synthetic images."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from lsap_archive import ArchiveWriter, EvaluationPlan, EvaluationWriter, RunInfo, RunWriter, is_archive, open_archive
from tasks.archived.jobs import goes_on_in_shards_of, provenance_of, shards_of
from tasks.archived.opening import open_writer
from tasks.archived.originals import fit_of
from tasks.archived.places import known_places, with_places
from tasks.archived.runs import config_of, id_part
from tasks.digests import digest_of
from tasks.editing.calibration import part_size
from tasks.editing.chosen import EditedMethod, MissingCalibrations, missing_calibrations
from tasks.evaluation.chosen import ChosenRuns, choose_runs
from tasks.evaluation.request import EvaluationRequest, Synthetic
from tasks.evaluation.worker import EvaluationWorker
from tasks.measuring.frechet import INCEPTION, added_up, find_inception
from tasks.sources.source import open_source
from tasks.stage import Job
from tasks.weights.networks import digest_of_file, network_digest

MEASURING_PACKAGES = ("torchmetrics", "torch-fidelity")


class EvaluationStage:
    """The evaluations of an archive; edits of the editing consistency wait for their calibrations.

    Attributes:
        chosen: what is to be measured.
        writer: the archive; None where it is not needed and perhaps not there.
        evaluations: ids of the evaluations that count, by method or edit; published or not.
        notes: what whoever asked should know, a sentence each, so far.
    """

    part: Final = "evaluations"
    verb: Final = "evaluate"
    batch_size: Final = 1

    def __init__(self, request: EvaluationRequest, *, start: bool = True) -> None:
        """Check methods, networks, sources and encoders against the archive; nothing is written yet.

        Args:
            request: what is asked for.
            start: write the new evaluations' plans into the archive; False only tells what would be done.

        Raises:
            StoreRefusedError: this process may not write there.
            Else as `choose_runs`.
        """
        self.build_worker = functools.partial(EvaluationWorker, request)
        self.evaluations: dict[str, tuple[str, ...]] = {}
        self.notes: list[str] = []
        self._before: dict[str, tuple[str, ...]] = {}  # those that an evaluation takes the place of
        self._request = request
        self._start = start
        self.chosen = choose_runs(request)
        self.notes += self.chosen.left_out
        has_archive = start or request.synthetic is None or is_archive(request.archive)
        self.writer = open_writer(request.archive, self.chosen.generator) if has_archive else None
        if start and self.writer is not None:
            self.writer.store.check_writable()

    def missing_calibrations(self) -> MissingCalibrations:
        """What has to be calibrated before `jobs`; edits whose calibration is not kept are not measured there."""
        if self.writer is None:
            return MissingCalibrations((), ())
        return missing_calibrations(self.writer, self.chosen.all_lec, self._request.calibration)

    @property
    def part_size(self) -> int:
        """Images of a part of a calibration."""
        return part_size(self.chosen.generator.config.size, self._request.batch_size)

    @property
    def refused(self) -> dict[str, str]:
        """Why an edit of the editing consistency has no strength and is not measured, by edited method."""
        if self.writer is None:
            return {}
        edits = [edit for edit in self.chosen.all_lec if edit.calibration is not None]
        kept = {edit.name: self.writer.get_calibration(edit.calibration or "") for edit in edits}
        return {name: one["refused"] for name, one in kept.items() if one is not None and one.get("refused")}

    def jobs(self) -> Iterator[Job]:
        """The evaluations that are left, of each method those of older runs first; to be gone through once.

        Raises:
            SourceError: the listing of the originals breaks off.
        """
        synthetic = self._request.synthetic
        if synthetic is not None:
            for name, encoder in self.chosen.encoders.items():
                yield from self._job(_plan_of_synthetic(name, encoder, self.chosen.generator.digest, synthetic))
            return
        assert self.writer is not None
        with known_places(self._request.source) as places:
            shared = _shared_config(self._request, self.chosen)
            for name, runs in self.chosen.runs.items():
                lec = _about_lec(self.writer, self.chosen.lec.get(name, ()))
                config = {**shared, "lec": lec, "encoder": self.chosen.encoders.get(name) if lec else None}
                for run in runs:
                    planned = RunWriter.open(self._request.archive, run.run_id)
                    moved = places.moved(planned.images)
                    ids = planned.images.column("image_id").to_pylist()
                    fitted = {**config, **self._about_fit(planned, config["reference"])}
                    yield from self._job(_plan_of_run(name, run, planned, moved, fitted), ids, moved)

    def publish(self, job_id: str) -> None:
        """Add up what belongs to all its images together, and make a finished evaluation visible to readers."""
        evaluation = EvaluationWriter.open(self._request.archive, job_id)
        whole = added_up(evaluation.states())
        evaluation.publish({} if whole is None else {"fid": whole.summary()})
        assert self.writer is not None, "who publishes has an archive"
        for evaluation_id in self._before.get(job_id, ()):
            reason = f"nothing of it was measured, and evaluation {job_id} measures the same in other shards"
            self.writer.give_up_empty(evaluation_id, reason)

    def add_up_sets(self) -> list[str]:
        """Number again every set of images of these methods that readers see and nobody has numbered as it is now.

        That is after images were added, retired or made again: then the sums of several evaluations make up the set.

        Returns:
            The methods and edits whose set was numbered.

        Raises:
            CorruptArchiveError: sums are missing or altered.
        """
        if self.writer is None:
            return []
        archive, numbered = open_archive(self._request.archive), []
        asked = {evaluation_id for ids in self.evaluations.values() for evaluation_id in ids}
        for one in archive.sets:
            if one.is_stale and asked & set(one.parts):
                whole = added_up(archive.states(one))
                assert whole is not None, "a set without sums is none"
                self.writer.keep_set_number(one, whole.summary())
                numbered.append(one.method)
        return numbered

    def _job(
        self, first: EvaluationPlan, image_ids: Sequence[str] = (), moved: Mapping[str, str | None] | None = None
    ) -> Iterator[Job]:
        """What is left of an evaluation, if readers do not see it; one that was retired is made up for by another."""
        plan, before = (first, ()) if self.writer is None else self.writer.unretired(first)
        self.evaluations[plan.method] = (*self.evaluations.get(plan.method, ()), plan.evaluation_id)
        is_new = self.writer is None or not self.writer.is_evaluation_planned(plan.evaluation_id)
        note = ""
        if self.writer is None or (is_new and not self._start):
            left: Sequence[int] = range(plan.num_shards)
        else:
            evaluation = self._opened(self.writer, plan, is_new=is_new)
            if evaluation.is_published:
                if self._start and not evaluation.is_tidy:
                    evaluation.tidy()
                return
            for evaluation_id in before if self._start else ():
                evaluation.take_over(evaluation_id)
            left = evaluation.missing_shards()
            self._before[plan.evaluation_id] = before
            if (begun := evaluation.plan.shard_rows) != (asked := plan.shard_rows):
                url, plan = self._request.archive, evaluation.plan
                note = goes_on_in_shards_of("evaluation", plan.evaluation_id, begun=begun, asked=asked, archive=url)
                self.notes.append(note)
        shards = shards_of(plan.evaluation_id, plan.method, plan.num_rows, plan.shard_rows, left)
        if moved:
            shards = tuple(with_places(shard, image_ids, moved, plan.shard_rows) for shard in shards)
        yield Job(plan.evaluation_id, plan.method, shards, is_new, note)

    def _about_fit(self, run: RunWriter, reference: Mapping[str, Any] | None) -> dict[str, Any]:
        """The originals of a run are fitted as they were when it was made; what else is shown to judges, as asked."""
        asked = self._request.fit
        if self._request.source is None:
            return {}
        inversion = run if run.subject is None else RunWriter.open(self._request.archive, run.subject.lineage[-1])
        fit = fit_of(inversion.plan["config"], asked)
        if reference is None or fit == asked:
            return {"fit": fit}
        return {"fit": fit, "reference": {**reference, "fit": asked}}

    @staticmethod
    def _opened(writer: ArchiveWriter, plan: EvaluationPlan, *, is_new: bool) -> EvaluationWriter:
        if is_new:
            return writer.start_evaluation(plan)
        return EvaluationWriter(writer.store, plan.evaluation_id)


def _shared_config(request: EvaluationRequest, chosen: ChosenRuns) -> dict[str, Any]:
    """What all evaluations of a request have in common."""
    networks = {
        "lpips": list(request.networks.lpips),
        "identity": list(request.networks.identity),
        "judge": request.networks.judge,
        "digests": request.networks.digests(),
    }
    return {
        "networks": networks,
        "attributes": list(request.attributes),
        "originals": request.source is not None,
        "fit": request.fit,
        "frechet": _about_frechet(request),
        "reference": _about_reference(request.reference),
        "generator": chosen.generator.digest,
    }


def _plan_of_run(
    name: str, run: RunInfo, planned: RunWriter, moved: Mapping[str, str | None], shared: Mapping[str, Any]
) -> EvaluationPlan:
    """The plan of a run's evaluation; the same run, settings and missing originals give the same id."""
    gone = sorted(image_id for image_id, uri in moved.items() if uri is None)
    config = {
        **shared,
        "subject": {"run_id": run.run_id, "method": run.method, "method_digest": run.method_digest},
        "anchor": config_of(run).anchor,
        "absent": digest_of(gone) if gone else None,
    }
    edits = {edit: [one["digest"], one["calibrated"]] for edit, one in config["lec"].items()}
    subject = run.subject
    return EvaluationPlan(
        evaluation_id=f"{id_part(name)}-{digest_of({**config, 'lec': edits})[:16]}",
        subject={"run_id": run.run_id},
        method=run.method,
        edit=None if subject is None else subject.edit,
        strength=None if subject is None else subject.strength,
        config=config,
        provenance=provenance_of(config["generator"], *MEASURING_PACKAGES),
        num_rows=planned.num_rows,
        shard_rows=planned.shard_rows,
    )


def _plan_of_synthetic(
    name: str, encoder: dict[str, Any], generator_digest: str, synthetic: Synthetic
) -> EvaluationPlan:
    about = {"count": synthetic.count, "psi": synthetic.psi, "seed": synthetic.seed}
    config = {"generator": generator_digest, "encoder": encoder, "style_set": synthetic.style_set}
    return EvaluationPlan(
        evaluation_id=f"{id_part(name)}-synthetic-{digest_of([config, about])[:16]}",
        subject={"synthetic": about},
        method=name,
        edit=None,
        strength=None,
        config=config,
        provenance=provenance_of(generator_digest, *MEASURING_PACKAGES),
        num_rows=synthetic.count,
        shard_rows=synthetic.shard_rows,
    )


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


def _about_frechet(request: EvaluationRequest) -> dict[str, str] | None:
    name = request.frechet
    if name is None:
        return None
    is_inception = name == INCEPTION
    digest = (
        digest_of_file(find_inception(request.published)) if is_inception else network_digest(name, request.published)
    )
    return {"network": name, "digest": digest}


def _about_reference(spec: str | None) -> dict[str, Any] | None:
    """A source of real images by the names that it lists; their content is not read for it."""
    if spec is None:
        return None
    with open_source(spec) as source:
        ids = [item.image_id for item in source.items()]
    return {"source": spec, "num_images": len(ids), "digest": digest_of(ids)}
