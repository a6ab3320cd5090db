"""Writing an archive: open it, start runs, see what is done and what is not, keep anchors and reports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from lsap_archive.errors import OBJECT_ERRORS, ArchiveMismatchError, ArchiveNotFoundError, StoreUnavailableError
from lsap_archive.format.arrays import as_before, check_arrays, declared_arrays
from lsap_archive.format.chunks import laid_out
from lsap_archive.format.documents import utc_now
from lsap_archive.format.evaluations import EvaluationInfo, EvaluationPlan
from lsap_archive.format.layout import (
    ANCHORS_PREFIX,
    ARCHIVE_KEY,
    CALIBRATING_PREFIX,
    CALIBRATIONS_PREFIX,
    IMAGES_NAME,
    RUNS_PREFIX,
    SEEN_PREFIX,
    SEQUENCE_PREFIX,
    STAGING_FOLDER,
    VERSIONS_PREFIX,
    Geometry,
    anchor_copy_key,
    anchor_key,
    calibration_key,
    calibration_part_key,
    calibration_parts,
    report_key,
    run_prefix,
    versions_key,
)
from lsap_archive.format.manifest import Manifest, encode_header
from lsap_archive.format.plan import PlannedRow, RunPlan, images_digest, planned_table
from lsap_archive.format.rows import IMAGES_SCHEMA, from_parquet, to_parquet
from lsap_archive.format.shards import coordinate_objects, run_metadata
from lsap_archive.reading.checked import measured_object, read_header
from lsap_archive.reading.kept import (
    encode_anchor_copy,
    encode_calibration,
    encode_calibration_part,
    npz_problem,
    read_anchor_copy,
    read_calibration,
    read_calibration_part,
    read_kept_anchor,
    read_versions,
    versions_digest,
)
from lsap_archive.reading.retirement import is_retired
from lsap_archive.reading.sets import ImageSet
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store
from lsap_archive.writing.evaluation_writer import EvaluationWriter
from lsap_archive.writing.publication import Publication
from lsap_archive.writing.published_lists import keep_published_lists
from lsap_archive.writing.run_writer import RunWriter


class ArchiveWriter:
    """An archive opened for writing. Build it with `ArchiveWriter.open`, in as many processes as you like.

    Attributes:
        store: the archive's objects.
        generator: {"digest": ..., "name": ...} of the generator whose codes it holds.
        geometry: sizes of that generator's inputs.
    """

    def __init__(self, store: Store, generator: dict[str, str], geometry: Geometry) -> None:
        self.store = store
        self.generator = generator
        self.geometry = geometry

    def __repr__(self) -> str:
        return f"ArchiveWriter({self.store.url!r})"

    @classmethod
    def open(
        cls,
        url: str,
        *,
        generator_digest: str,
        generator_name: str,
        geometry: Geometry,
        storage_options: Mapping[str, Any] | None = None,
    ) -> ArchiveWriter:
        """The archive at `url`, made if there is none.

        Args:
            url: a local path, or file://, memory:// or s3://bucket/prefix.
            generator_digest: digest of the generator's weights.
            generator_name: what people call it.
            geometry: sizes of its inputs.
            storage_options: for s3, what s3fs takes.

        Raises:
            ArchiveMismatchError: the archive holds codes of another generator or geometry.
            StoreUnavailableError: the store does not answer, refuses, or does not keep create-only writes.
        """
        store = Store.from_url(url, storage_options)
        wanted = {"digest": generator_digest, "name": generator_name}
        data = encode_header(wanted, geometry.to_dict(), utc_now())
        if not store.exists(ARCHIVE_KEY) and store.create(ARCHIVE_KEY, data) and store.create(ARCHIVE_KEY, data):
            raise StoreUnavailableError(
                f"{store.url} overwrites what was asked to be create-only, so two writers could both win: "
                "use a store with conditional writes (AWS S3, MinIO, Ceph, a local disk)"
            )
        generator, found = read_header(store)
        if generator["digest"] != generator_digest:
            raise ArchiveMismatchError(
                f"{store.url} holds codes of generator {generator['digest']}, this run has "
                f"{generator_digest}: name that generator's file (the field generator, or the domain), or a new archive"
            )
        if found != geometry:
            raise ArchiveMismatchError(
                f"{store.url} holds codes of {found}, this run has {geometry}: "
                "name that generator's file (the field generator, or the domain), or a new archive"
            )
        return cls(store, generator, found)

    def start_run(self, plan: RunPlan) -> RunWriter:
        """Make a run ready to be worked; a run started before is opened.

        Two coordinators may start the same plan at once. plan.json comes last: without it there is no run.

        Args:
            plan: what the run works on.

        Raises:
            ArchiveMismatchError: a run of this id has another plan, or its rows are not those of its subject.
            ArchiveNotFoundError: its subject is not published.
        """
        plan = replace(plan, arrays=laid_out(plan.arrays, plan.num_rows, plan.shard_rows))
        store, wanted = self.store, plan.document()
        publication = Publication(store, Manifest, plan.run_id)
        if not publication.is_planned:
            check_arrays(plan.arrays, self.geometry, f"run {plan.run_id}")
            if plan.subject is not None:
                self._check_subject(plan)
            objects = run_metadata(plan, self.generator["digest"])
            objects |= coordinate_objects(plan, self.generator["digest"], [one.image_id for one in plan.rows])
            objects[IMAGES_NAME] = to_parquet(plan.table())
            for name, data in objects.items():
                if not store.create(publication.key(name), data):
                    self._check_leftover(publication.key(name), name, data, plan)
            stored = in_threads(lambda name: measured_object(store, publication.prefix, name), sorted(objects))
            publication.put_plan({**wanted, "objects": [vars(one) for one in stored]})
        run = RunWriter(store, plan.run_id, self.generator, self.geometry)
        publication.check_plan(run.plan, wanted)
        return run

    def start_evaluation(self, plan: EvaluationPlan) -> EvaluationWriter:
        """Make an evaluation ready to be worked; one that was started before is opened.

        Raises:
            ArchiveMismatchError: an evaluation of this id has another plan.
        """
        publication, wanted = Publication(self.store, EvaluationInfo, plan.evaluation_id), plan.document()
        if not publication.is_planned:
            publication.put_plan(wanted)
        evaluation = EvaluationWriter(self.store, plan.evaluation_id)
        publication.check_plan(evaluation.plan.document(), wanted)
        return evaluation

    def unretired(self, plan: EvaluationPlan) -> tuple[EvaluationPlan, tuple[str, ...]]:
        """The plan under the first id that is free for it, and the ids before that, the newest first.

        What takes the place of a retired evaluation is named after it: "<id>.2", "<id>.3". So is what takes the place
        of one under way of which nothing is measured yet and whose shards are of another size than planned now: it may
        not be possible to work it at all.
        """
        passed: list[str] = []
        found = plan
        while is_retired(self.store, "evaluation", found.evaluation_id) or self._is_planned_anew(found):
            passed.insert(0, found.evaluation_id)
            found = replace(plan, evaluation_id=f"{plan.evaluation_id}.{len(passed) + 1}")
        return found, tuple(passed)

    def give_up_empty(self, evaluation_id: str, reason: str) -> None:
        """Give up an evaluation under way of which nothing is measured; another one has taken its place."""
        if not is_retired(self.store, "evaluation", evaluation_id):
            begun = EvaluationWriter(self.store, evaluation_id)
            if begun.is_empty:
                begun.give_up(reason)

    def _is_planned_anew(self, plan: EvaluationPlan) -> bool:
        """Whether an evaluation under way is worth nothing yet, and is not as it would be planned now.

        One of a run has the shards of the run.
        """
        if "run_id" in plan.subject or not self.is_evaluation_planned(plan.evaluation_id):
            return False
        begun = EvaluationWriter(self.store, plan.evaluation_id)
        return begun.plan.shard_rows != plan.shard_rows and begun.is_empty

    def is_planned(self, run_id: str) -> bool:
        """Whether a run of this id was started, published or not."""
        return Publication(self.store, Manifest, run_id).is_planned

    def is_evaluation_planned(self, evaluation_id: str) -> bool:
        """Whether an evaluation of this id was started, published or not."""
        return Publication(self.store, EvaluationInfo, evaluation_id).is_planned

    def keep_calibration(self, digest: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a calibration, JSON values; returns the kept one, which is the first of its digest.

        Its parts are removed.
        """
        self.store.create(calibration_key(digest), encode_calibration(digest, values))
        kept = self.get_calibration(digest)
        assert kept is not None
        self.store.delete_folder(calibration_parts(digest))
        return kept

    def keep_calibration_part(self, digest: str, name: str, values: Sequence[float | None]) -> list[float | None]:
        """Keep what was measured of some images for a calibration that is under way.

        Args:
            digest: of the calibration.
            name: of the part; letters and digits.
            values: finite numbers, None where there is none.

        Returns:
            The kept ones, which are the first of that name.
        """
        self.store.create(calibration_part_key(digest, name), encode_calibration_part(digest, name, values))
        kept = self.get_calibration_part(digest, name)
        assert kept is not None
        return kept

    def get_calibration_part(self, digest: str, name: str) -> list[float | None] | None:
        """What was kept of a part, or None."""
        try:
            return read_calibration_part(self.store, calibration_part_key(digest, name))
        except ArchiveNotFoundError:
            return None

    def get_calibration(self, digest: str) -> dict[str, Any] | None:
        """A kept calibration, or None."""
        try:
            return read_calibration(self.store, digest)
        except ArchiveNotFoundError:
            return None

    def keep_set_number(self, of: ImageSet, summary: Mapping[str, Any]) -> None:
        """Keep the number of a set of images whose sums were added up, JSON values; the first one stays."""
        self.store.create(of.key, of.encode(summary))

    def run(self, run_id: str) -> RunWriter:
        """A run that was planned before.

        Raises:
            ArchiveNotFoundError, CorruptArchiveError: it has no sound plan.
        """
        return RunWriter(self.store, run_id, self.generator, self.geometry)

    def runs(self) -> list[RunWriter]:
        """Every run that has a plan and is not retired, by id."""
        return self.runs_and_retired()[0]

    def runs_and_retired(self) -> tuple[list[RunWriter], list[str]]:
        """Every run that has a plan and is not retired, and the ids of the retired ones, both by id."""

        def run_or_none(run_id: str) -> RunWriter | str | None:
            if not self.is_planned(run_id):
                return None
            if is_retired(self.store, "run", run_id):
                return run_id
            return self.run(run_id)

        found = in_threads(run_or_none, self.store.folders(RUNS_PREFIX))
        return [one for one in found if isinstance(one, RunWriter)], [one for one in found if isinstance(one, str)]

    def tidy(self, retired: Sequence[str]) -> None:
        """Remove what killed commands left of given-up runs, and half-written files beside the runs.

        Args:
            retired: ids of retired runs.
        """

        def tidy_one(run_id: str) -> None:
            staged = f"{run_prefix(run_id)}/{STAGING_FOLDER}"
            if not self.store.has_folder(staged):
                return
            if not self.is_published(run_id):
                with contextlib.suppress(*OBJECT_ERRORS):  # a damaged plan, which it may be retired for
                    self.run(run_id).give_up("it is retired")
            self.store.delete_folder(staged)

        in_threads(tidy_one, retired)
        for digest in self.store.folders(CALIBRATING_PREFIX):
            if self.store.exists(calibration_key(digest)):  # a command was killed when it had found it
                self.store.delete_folder(calibration_parts(digest))
        for prefix in (SEQUENCE_PREFIX, ANCHORS_PREFIX, CALIBRATIONS_PREFIX, SEEN_PREFIX, VERSIONS_PREFIX):
            self.store.delete_temporary(prefix)

    def is_published(self, run_id: str) -> bool:
        """Whether a run has a manifest."""
        return Publication(self.store, Manifest, run_id).is_published

    def is_taken(self, run_id: str) -> bool:
        """Whether a run of this id is published or retired: another one with its plan needs another id."""
        return self.is_published(run_id) or is_retired(self.store, "run", run_id)

    def unfinished_runs(self, method_digest: str | None = None) -> list[RunWriter]:
        """Runs that were planned and are not published, by id.

        Args:
            method_digest: only runs of this method; None for all.
        """
        return [
            run for run in self.runs() if not run.is_published and method_digest in (None, run.plan["method_digest"])
        ]

    def keep_versions(self, images: Sequence[PlannedRow]) -> None:
        """Keep that these images, which no new run needs, lie where they lie in these versions; see `versions`."""
        data = to_parquet(planned_table(images))
        self.store.create(versions_key(versions_digest(data)), data)

    def versions(self) -> Iterator[pa.Table]:
        """What `keep_versions` has kept, in IMAGES_SCHEMA, a table at a time."""
        for key in sorted(self.store.keys(VERSIONS_PREFIX)):
            yield from_parquet(read_versions(self.store, key), IMAGES_SCHEMA, self.store.join(key))

    def put_anchor(self, digest: str, data: bytes) -> bool:
        """Keep an anchor (bytes of an .npz file). The first one of a digest stays.

        Returns:
            Whether this one is kept; if not, `get_anchor` gives the one that is.
        """
        is_new = self.store.create(anchor_key(digest), data)
        copy = encode_anchor_copy(digest, self.store.get(anchor_key(digest)))
        if not self.store.create(anchor_copy_key(digest), copy) and is_new:  # of one that was lost
            self.store.put(anchor_copy_key(digest), copy)
        return is_new

    def get_anchor(self, digest: str) -> bytes | None:
        """The kept anchor (bytes of an .npz file), or None.

        Raises:
            CorruptArchiveError: it or its copy is altered.
        """
        try:
            return read_kept_anchor(self.store, digest)
        except ArchiveNotFoundError:
            return None

    def has_anchor(self, digest: str) -> bool:
        """Whether an anchor is kept; whoever reads it sees whether it is whole.

        One that was lost comes back from its copy, and one that was kept before there were copies gets it.

        Raises:
            CorruptArchiveError: it is lost, and its copy altered.
        """
        key, copy_key = anchor_key(digest), anchor_copy_key(digest)
        if self.store.exists(key):
            if not self.store.exists(copy_key) and npz_problem(data := self.store.get(key)) is None:
                self.store.create(copy_key, encode_anchor_copy(digest, data))
            return True
        copy = read_anchor_copy(self.store, digest)
        if copy is not None:
            self.store.create(key, copy)
        return copy is not None

    def keep_published_lists(self) -> None:
        """Write what other readers go by, below `published/`, where it is not what is published now.

        Whoever publishes does so; this is for archives of older versions, and for what killed commands left.
        """
        keep_published_lists(self.store)

    def put_report(self, name: str, data: bytes) -> str:
        """Write a report, in the place of an older one.

        Args:
            name: key below reports/, e.g. "run-1/index.html".
            data: its content.

        Returns:
            URL of the report.
        """
        self.store.put(report_key(name), data)
        return self.store.join(report_key(name))

    def _check_subject(self, plan: RunPlan) -> None:
        """Accept what is made of exactly the rows of a run that readers see; refinements only of inversions."""
        assert plan.subject is not None
        does = "edits" if plan.subject.is_edit else "refines"
        subject = RunWriter(self.store, plan.subject.run_id, self.generator, self.geometry)
        if not subject.is_published:
            raise ArchiveNotFoundError(
                f"run {plan.run_id} {does} run {subject.run_id}, which is not published in {self.store.url}: "
                "finish that run first"
            )
        found = (plan.subject.method, plan.subject.method_digest, images_digest(plan.table()))
        wanted = tuple(subject.plan[name] for name in ("method", "method_digest", "images_digest"))
        inversion = None if subject.subject is None else subject.subject.run_id
        is_fit = subject.subject is None or (plan.subject.is_edit and not subject.subject.is_edit)
        if found != wanted or not is_fit or plan.subject.inversion != inversion:
            raise ArchiveMismatchError(
                f"run {plan.run_id} has not the method and images of run {subject.run_id}, which it {does}: "
                "plan it with the rows of that run"
            )

    def _check_leftover(self, key: str, name: str, data: bytes, plan: RunPlan) -> None:
        """Accept what an earlier start of the same plan left behind, and nothing else."""
        found = self.store.get(key)
        if name == IMAGES_NAME:
            same = from_parquet(found, IMAGES_SCHEMA, key).equals(plan.table())
        elif not (same := found == data):
            undeclared = {name: value for name, value in plan.document().items() if name != "arrays"}
            older = (  # before version 7 there were no coordinates; before version 6 nothing was compressed;
                plan.arrays,
                tuple(as_before(array) for array in plan.arrays),
                declared_arrays(
                    undeclared, self.geometry, key
                ),  # before version 4 noise maps were told that never came
            )
            digest = self.generator["digest"]
            left = [run_metadata(replace(plan, arrays=of), digest, has_coordinates=False).get(name) for of in older]
            if same := found in left:
                self.store.put(key, data)
        if not same:
            raise ArchiveMismatchError(
                f"{self.store.url}/{key} was left by a start of run {plan.run_id} with another plan: "
                "choose another run id"
            )
